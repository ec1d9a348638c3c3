use std::{path::Path, sync::Arc, time::Duration};

use domain::{
    digest::Digest,
    job::{Job, Timestamp},
    layout,
    picture::{Color, Format, Sample},
    pipe::MaskRef,
    plan::plan,
    region::Region,
    segs::Placed,
};
use imaging::{
    encode::{EncodeOptions, Encoder},
    picture::Limits,
};
use proto::{
    farm::{Beat, Worker},
    v1::{self, create_job_request::Kind},
};
use store::{Key, MemoryStore, Store};
use tempfile::TempDir;
use tokio::sync::Semaphore;
use weights::{
    checkpoint::Float,
    synthetic::{self, Fill, diffusion},
};

use super::*;
use crate::{catalog::Catalog, roster::Roster};

/// An intake over a store in memory.
struct Door {
    intake: Intake,
    store: Arc<dyn Store>,
    scratch: TempDir,
}

impl Door {
    fn new() -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let intake = Intake {
            store: store.clone(),
            catalog: Arc::new(Catalog::new(store.clone())),
            roster: Arc::new(Roster::new(Duration::from_secs(60))),
            limits: Limits::default(),
            scratch: scratch.path().to_owned(),
            default_class: Some("cpu.x.f32".parse().unwrap()),
            max_upload_bytes: 1 << 30,
            decoding: Semaphore::new(2),
        };
        Self { intake, store, scratch }
    }

    /// A door behind which there is an SD 1.x checkpoint called `sd`.
    async fn with_checkpoint() -> Self {
        let door = Self::new();
        door.synthetic("sd", diffusion::Model::Sd1).await;
        door
    }

    async fn synthetic(&self, name: &str, model: diffusion::Model) {
        let path = self.scratch.path().join(name);
        model.save(diffusion::Size::Tiny, Float::F16, &path).unwrap();
        self.model(name, &path).await;
    }

    async fn model(&self, name: &str, path: &Path) {
        let digest = Digest::of(&std::fs::read(path).unwrap());
        self.intake.catalog.add(name, digest, path).await.unwrap();
    }

    async fn upload(&self, name: &str, bytes: Vec<u8>) -> v1::PictureSource {
        let digest = Digest::of(&bytes);
        self.store.put(&Key::new(layout::artifact(digest)).unwrap(), bytes.into()).await.unwrap();
        let source = v1::picture_source::Source::Digest(digest.to_string());
        v1::PictureSource { name: name.to_owned(), source: Some(source) }
    }

    async fn picture(&self, color: Color, width: u32, height: u32) -> v1::PictureSource {
        let bytes = png(color, width, height, |x, y| (x * 7 + y * 3) as u8);
        self.upload("p.png", bytes).await
    }

    /// A mask that is 1 from column `from` on.
    async fn mask(&self, width: u32, height: u32, from: u32) -> v1::PictureSource {
        let bytes = png(Color::Grey, width, height, |x, _| if x >= from { 255 } else { 0 });
        self.upload("mask.png", bytes).await
    }

    async fn floats(&self, digest: Digest) -> Vec<f32> {
        let bytes = self.store.get(&Key::new(layout::artifact(digest)).unwrap()).await.unwrap();
        bytes.chunks_exact(4).map(|number| f32::from_le_bytes(number.try_into().unwrap())).collect()
    }

    async fn resolve(&self, kind: Kind) -> Result<Job, Refusal> {
        let request = v1::CreateJobRequest { kind: Some(kind), ..Default::default() };
        self.intake.resolve("job-1".parse().unwrap(), request, None).await
    }

    async fn detail(&self, job: v1::SegsDetailJob) -> (SegsDetail, Vec<String>) {
        let job = self.resolve(Kind::SegsDetail(job)).await.unwrap();
        plan(&job).unwrap();
        let JobKind::SegsDetail(detail) = job.kind else { panic!("{:?}", job.kind) };
        (*detail, job.warnings)
    }

    async fn upscale(&self, job: v1::SegsUpscaleJob) -> SegsUpscale {
        let job = self.resolve(Kind::SegsUpscale(job)).await.unwrap();
        plan(&job).unwrap();
        let JobKind::SegsUpscale(upscale) = job.kind else { panic!("{:?}", job.kind) };
        *upscale
    }

    /// The field that is refused, and why.
    async fn refused(&self, kind: Kind) -> (String, String) {
        match self.resolve(kind).await.unwrap_err() {
            Refusal::Field(invalid) => (invalid.field, invalid.why),
            Refusal::NotFound { field, what } => (field, format!("no {what}")),
            other => panic!("{other:?}"),
        }
    }
}

fn png(color: Color, width: u32, height: u32, value: impl Fn(u32, u32) -> u8) -> Vec<u8> {
    let options = EncodeOptions::new(Format::Png, color, Sample::U8);
    let mut encoder = Encoder::new(tempfile::tempfile().unwrap(), width, height, options, &Limits::default()).unwrap();
    for y in 0..height {
        let row: Vec<u8> = (0..width).flat_map(|x| vec![value(x, y); color.channels()]).collect();
        encoder.write_rows(&row).unwrap();
    }
    let mut file = encoder.finish().unwrap();
    let mut bytes = Vec::new();
    std::io::Seek::rewind(&mut file).unwrap();
    std::io::Read::read_to_end(&mut file, &mut bytes).unwrap();
    bytes
}

fn basic_pipe(checkpoint: &str) -> Option<v1::BasicPipe> {
    Some(v1::BasicPipe { checkpoint: checkpoint.to_owned(), ..Default::default() })
}

fn source(source: v1::segs_source::Source) -> Option<v1::SegsSource> {
    Some(v1::SegsSource { source: Some(source) })
}

fn given(width: u32, height: u32, segs: Vec<v1::Seg>) -> Option<v1::SegsSource> {
    source(v1::segs_source::Source::Segs(v1::Segs { width, height, segs }))
}

fn seg(crop_region: [i64; 4]) -> v1::Seg {
    v1::Seg { crop_region: crop_region.to_vec(), ..Default::default() }
}

fn masked(crop_region: [i64; 4], picture: v1::PictureSource) -> v1::Seg {
    let source = Some(v1::seg_mask::Source::Picture(picture));
    v1::Seg { cropped_mask: Some(v1::SegMask { source }), ..seg(crop_region) }
}

fn detail_job(picture: v1::PictureSource, segs: Option<v1::SegsSource>) -> v1::SegsDetailJob {
    v1::SegsDetailJob { picture: Some(picture), segs, basic_pipe: basic_pipe("sd"), ..Default::default() }
}

fn upscale_job(picture: v1::PictureSource, segs: Option<v1::SegsSource>) -> v1::SegsUpscaleJob {
    v1::SegsUpscaleJob { picture: Some(picture), segs, basic_pipe: basic_pipe("sd"), ..Default::default() }
}

#[tokio::test]
async fn given_segs_are_laid_on_the_picture_with_their_masks_in_the_store() {
    let door = Door::with_checkpoint().await;
    let picture = door.picture(Color::Rgba, 64, 48).await;
    let half = masked([0, 0, 32, 32], door.mask(32, 32, 16).await);
    let runs = v1::RunLengths { width: 16, height: 16, counts: vec![256] };
    let mut empty = seg([40, 8, 56, 24]);
    empty.cropped_mask = Some(v1::SegMask { source: Some(v1::seg_mask::Source::Rle(runs)) });
    let over = masked([48, 32, 80, 64], door.mask(32, 32, 0).await);
    let (job, warnings) = door.detail(detail_job(picture, given(0, 0, vec![half, empty, over]))).await;
    assert_eq!((job.basic_pipe.checkpoint.in_channels, job.picture.size), (4, Size::new(64, 48)));
    let [half, empty, over] = &job.segs[..] else { panic!("{:?}", job.segs) };
    assert_eq!(half.touched.bounds(), Some(Region::new(16, 0, 16, 32)), "nothing is feathered that is not pasted");
    let MaskRef { digest, size } = half.seg.cropped_mask;
    assert_eq!((size, &door.floats(digest).await[14..18]), (Size::new(32, 32), &[0.0, 0.0, 1.0, 1.0][..]));
    assert!(empty.is_empty && empty.touched.is_empty());
    assert_eq!(over.region(job.picture.size), Region::new(48, 32, 16, 16));
    assert_eq!(over.seg.cropped_mask.size, Size::new(16, 16));
    assert_eq!(
        warnings,
        [
            "the crop region (48, 32, 80, 64) of segment 2 was cut to the 64x48 picture, and its mask with it",
            "the picture's alpha channel is left out",
            "the mask of segment 1 is all zero: it stays as it is",
        ]
    );
}

#[tokio::test]
async fn segs_are_scaled_to_the_enlarged_picture_and_touch_what_their_feather_reaches() {
    let door = Door::with_checkpoint().await;
    let picture = door.picture(Color::Rgb, 64, 64).await;
    let half = || async { given(64, 64, vec![masked([0, 0, 32, 32], door.mask(32, 32, 16).await)]) };
    let job = door.upscale(upscale_job(picture.clone(), half().await)).await;
    let Placed { seg, touched, .. } = &job.segs[0];
    assert_eq!((seg.crop_region, seg.cropped_mask.size), ([0, 0, 64, 64].into(), Size::new(64, 64)));
    // The bilinear edge is one pixel wide on its dark side, and the feather five.
    assert_eq!(touched.bounds().map(|bounds| bounds.x), Some(31 - 5));
    let hard = v1::SegsUpscaleJob { feather: Some(0), ..upscale_job(picture, half().await) };
    let job = door.upscale(hard).await;
    assert_eq!(job.segs[0].touched.bounds().map(|bounds| bounds.x), Some(31));
}

#[tokio::test]
async fn a_grid_is_of_the_submitted_picture_and_scaled_like_any_segs() {
    let door = Door::with_checkpoint().await;
    let tiles = v1::MakeTileSegs { bbox_size: 64, crop_factor: Some(1.0), min_overlap: Some(0), ..Default::default() };
    let picture = door.picture(Color::Rgb, 128, 64).await;
    let job = door.upscale(upscale_job(picture, source(v1::segs_source::Source::Tiles(tiles)))).await;
    let regions: Vec<_> = job.segs.iter().map(|placed| placed.seg.crop_region.to_string()).collect();
    assert_eq!(regions, ["(0, 0, 128, 128)", "(128, 0, 256, 128)"]);
}

#[tokio::test]
async fn the_masks_of_a_grid_need_not_fit_into_memory_together() {
    let mut door = Door::with_checkpoint().await;
    door.intake.limits.max_whole_picture_bytes = 96 * 96 * 4; // one mask
    let picture = door.picture(Color::Rgb, 512, 512).await;
    let grid = |crop_factor| {
        let tiles = v1::MakeTileSegs {
            bbox_size: 64,
            crop_factor: Some(crop_factor),
            min_overlap: Some(0),
            ..Default::default()
        };
        let job = detail_job(picture.clone(), source(v1::segs_source::Source::Tiles(tiles)));
        v1::SegsDetailJob { paste: Some(v1::SegsPaste::default()), ..job }
    };
    let (job, _) = door.detail(grid(1.5)).await;
    assert_eq!(job.segs.len(), 64);
    let first = &job.segs[0];
    assert_eq!(first.touched.bounds(), Some(Region::new(0, 0, 64 + 5, 64 + 5)), "the tile and its feather");
    let inner: Vec<_> =
        job.segs.iter().filter(|placed| placed.seg.cropped_mask == job.segs[9].seg.cropped_mask).collect();
    assert_eq!(inner.len(), 36, "all but those at the edges have one mask");
    for Placed { seg, touched, .. } in inner {
        let [x1, y1, ..] = <[i64; 4]>::from(seg.crop_region).map(|at| at as u32);
        assert_eq!(touched.bounds(), Some(Region::new(x1 + 16 - 5, y1 + 16 - 5, 64 + 10, 64 + 10)));
    }
    let (field, why) = door.refused(Kind::SegsDetail(grid(1.6))).await;
    assert_eq!(field, "segs_detail.segs.tiles.crop_factor");
    assert!(why.contains("limits.max_whole_picture_bytes"), "{why}");
}

#[tokio::test]
async fn more_segments_than_a_job_may_have_are_refused_before_one_is_laid() {
    let door = Door::with_checkpoint().await;
    // As low as this, tiles of 33 pixels that share 32 of them come pixel by pixel.
    let picture = door.picture(Color::Rgb, 20_040, 33).await;
    let tiles = v1::MakeTileSegs { bbox_size: 64, min_overlap: Some(32), ..Default::default() };
    let grid = detail_job(picture, source(v1::segs_source::Source::Tiles(tiles)));
    let (field, why) = door.refused(Kind::SegsDetail(grid)).await;
    assert_eq!(field, "segs_detail.segs.tiles.bbox_size");
    assert_eq!(why, "makes 20040 segments, and the most is 20000: larger tiles are fewer");

    let specks = png(Color::Grey, 3 * 150, 3 * 150, |x, y| if x % 3 < 2 && y % 3 < 2 { 255 } else { 0 });
    let mask = door.upload("specks.png", specks).await;
    let parts = v1::MaskToSegs { mask: Some(mask), drop_size: Some(1), ..Default::default() };
    let picture = door.picture(Color::Rgb, 3 * 150, 3 * 150).await;
    let specks = detail_job(picture, source(v1::segs_source::Source::Mask(parts)));
    let (field, why) = door.refused(Kind::SegsDetail(specks)).await;
    assert_eq!(field, "segs_detail.segs.mask.mask");
    assert!(why.starts_with("makes 22500 segments") && why.contains("drop_size"), "{why}");
}

#[tokio::test]
async fn filters_keep_a_grid_to_some_of_its_tiles() {
    let door = Door::with_checkpoint().await;
    let picture = door.picture(Color::Rgb, 128, 128).await;
    let filter = |segs| Some(v1::Segs { width: 128, height: 128, segs });
    let right = masked([0, 0, 128, 128], door.mask(32, 32, 16).await); // stretched, from column 62 on
    let tiles = v1::MakeTileSegs {
        bbox_size: 64,
        crop_factor: Some(1.0),
        min_overlap: Some(0),
        filter_segs_dilation: Some(0),
        filter_in_segs: filter(vec![right]),
        filter_out_segs: filter(vec![seg([0, 0, 128, 30]), seg([0, 20, 128, 64])]),
        ..Default::default()
    };
    let (job, _) = door.detail(detail_job(picture, source(v1::segs_source::Source::Tiles(tiles)))).await;
    let regions: Vec<_> = job.segs.iter().map(|placed| placed.seg.crop_region.to_string()).collect();
    assert_eq!(regions, ["(62, 64, 126, 128)", "(64, 64, 128, 128)"]);
}

#[tokio::test]
async fn a_mask_becomes_segs_if_it_is_as_large_as_the_picture() {
    let door = Door::with_checkpoint().await;
    let parts = |mask| {
        let mask = v1::MaskToSegs { mask: Some(mask), crop_factor: Some(1.0), ..Default::default() };
        source(v1::segs_source::Source::Mask(mask))
    };
    let picture = door.picture(Color::Rgb, 64, 48).await;
    let (job, _) = door.detail(detail_job(picture.clone(), parts(door.mask(64, 48, 32).await))).await;
    assert_eq!(job.segs.len(), 1);
    assert_eq!(job.segs[0].seg.crop_region, [32, 0, 64, 48].into());
    let (field, why) = door.refused(Kind::SegsDetail(detail_job(picture, parts(door.mask(32, 48, 8).await)))).await;
    assert_eq!(field, "segs_detail.segs.mask.mask");
    assert!(why.contains("32x48") && why.contains("64x48"), "{why}");
}

#[tokio::test]
async fn control_pictures_are_cut_at_the_size_of_the_segs() {
    let door = Door::with_checkpoint().await;
    door.synthetic("canny", diffusion::Model::ControlSd1).await;
    let image = door.picture(Color::Rgb, 256, 256).await;
    let net = v1::ControlNet { control_net: "canny".to_owned(), image: Some(image.clone()), ..Default::default() };
    let steered = v1::Seg { control_nets: vec![net.clone()], ..seg([0, 0, 32, 16]) };
    let picture = door.picture(Color::Rgb, 128, 128).await;
    let mut job = detail_job(picture, given(64, 64, vec![steered]));
    job.basic_pipe = Some(v1::BasicPipe { control_nets: vec![net], ..basic_pipe("sd").unwrap() });
    let (job, _) = door.detail(job).await;
    let size = |net: &domain::pipe::ControlNet| net.image.map(|image| image.size);
    assert_eq!(job.segs[0].seg.crop_region, [0, 0, 64, 32].into());
    assert_eq!(size(&job.segs[0].seg.control_nets[0]), Some(Size::new(32, 16)));
    assert_eq!(size(&job.basic_pipe.control_nets[0]), Some(Size::new(256, 256)));
}

#[tokio::test]
async fn models_that_do_not_go_together_are_refused_by_name() {
    let door = Door::with_checkpoint().await;
    door.synthetic("canny-xl", diffusion::Model::ControlSdxl).await;
    let lora = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/diffusion/lora_sdxl_kohya.safetensors");
    door.model("style-xl", &lora).await;
    let picture = door.picture(Color::Rgb, 64, 64).await;
    let refused = |pipe: v1::BasicPipe| {
        let segs = given(0, 0, vec![seg([0, 0, 64, 64])]);
        let job = v1::SegsDetailJob { basic_pipe: Some(pipe), ..detail_job(picture.clone(), segs) };
        door.refused(Kind::SegsDetail(job))
    };
    let pipe = || basic_pipe("sd").unwrap();
    let absent = refused(basic_pipe("nothing").unwrap()).await;
    assert_eq!(absent, ("segs_detail.basic_pipe.checkpoint".into(), "no a model called `nothing`".into()));
    let (field, why) = refused(basic_pipe("canny-xl").unwrap()).await;
    assert_eq!(field, "segs_detail.basic_pipe.checkpoint");
    assert_eq!(why, "`canny-xl` is a ControlNet, and a checkpoint is wanted");
    let lora = v1::Lora { lora: "style-xl".to_owned(), ..Default::default() };
    let (field, why) = refused(v1::BasicPipe { loras: vec![lora], ..pipe() }).await;
    assert_eq!(field, "segs_detail.basic_pipe.loras[0].lora");
    assert_eq!(why, "`style-xl` is of family sdxl, and the pipe is of sd1");
    let net = v1::ControlNet { control_net: "canny-xl".to_owned(), ..Default::default() };
    let (field, _) = refused(v1::BasicPipe { control_nets: vec![net], ..pipe() }).await;
    assert_eq!(field, "segs_detail.basic_pipe.control_nets[0].control_net");
    let (field, _) = refused(v1::BasicPipe { vae: "style-xl".to_owned(), ..pipe() }).await;
    assert_eq!(field, "segs_detail.basic_pipe.vae");
}

#[tokio::test]
async fn bad_pictures_and_regions_are_refused_with_their_field() {
    let door = Door::with_checkpoint().await;
    let all = || given(0, 0, vec![seg([0, 0, 64, 64])]);
    let grey = door.picture(Color::Grey, 64, 64).await;
    let (field, _) = door.refused(Kind::SegsDetail(detail_job(grey, all()))).await;
    assert_eq!(field, "segs_detail.picture");
    let picture = door.picture(Color::Rgb, 64, 64).await;
    let outside = given(0, 0, vec![seg([0, 0, 64, 64]), seg([64, 0, 90, 64])]);
    let (field, _) = door.refused(Kind::SegsDetail(detail_job(picture.clone(), outside))).await;
    assert_eq!(field, "segs_detail.segs.segs[1].crop_region");
    let mut broken = png(Color::Grey, 64, 64, |x, y| (x * y) as u8);
    broken.truncate(broken.len() / 2);
    let broken = given(0, 0, vec![masked([0, 0, 64, 64], door.upload("broken.png", broken).await)]);
    let (field, why) = door.refused(Kind::SegsDetail(detail_job(picture.clone(), broken))).await;
    assert_eq!(field, "segs_detail.segs.segs[0].cropped_mask.picture");
    assert!(why.contains("broken.png"), "{why}");
    let huge = v1::SegsUpscaleJob { rescale_factor: Some(100.0), ..upscale_job(picture.clone(), all()) };
    let door =
        Door { intake: Intake { limits: Limits { max_width: 4096, ..Limits::default() }, ..door.intake }, ..door };
    assert_eq!(door.refused(Kind::SegsUpscale(huge)).await.0, "segs_upscale.rescale_factor");
    let (_, warnings) = door.detail(detail_job(picture, given(0, 0, vec![]))).await;
    assert_eq!(warnings, ["there is no segment to work on: the picture stays as it is"]);
}

#[tokio::test]
async fn a_crop_that_no_worker_has_room_for_is_refused_with_the_size_that_would_fit() {
    let door = Door::with_checkpoint().await;
    let worker = Worker {
        id: "w".to_owned(),
        classes: vec!["cpu.x.f32".parse().unwrap()],
        device: String::new(),
        memory_bytes: 1 << 30,
        memory_free_bytes: 0,
        tasks: Vec::new(),
        models: Vec::new(),
        tasks_done: 0,
        started: Timestamp(0),
        draining: false,
        version: String::new(),
        speeds: Vec::new(),
    };
    door.intake.roster.note(&Beat { worker, leaving: false }, now());
    let picture = door.picture(Color::Rgb, 64, 64).await;
    let mut job = detail_job(picture, given(0, 0, vec![seg([0, 0, 64, 64])]));
    (job.guide_size, job.max_size) = (Some(1024.0), Some(1024.0));
    let (field, why) = door.refused(Kind::SegsDetail(job)).await;
    assert_eq!(field, "segs_detail.segs.segs[0].crop_region");
    assert!(why.contains("redrawing 1024x1024 pixels") && why.contains("would fit"), "{why}");
}

#[tokio::test]
async fn a_latent_is_read_as_comfyui_does() {
    let door = Door::with_checkpoint().await;
    let values: Vec<f32> = (0..4 * 8 * 16).map(|i| i as f32 / 64.0).collect();
    let latent = |version: bool| {
        let entry = |name: &str, shape: Vec<usize>, values| (name.to_owned(), shape, Fill::Given(values));
        let mut entries = vec![entry("latent_tensor", vec![1, 4, 8, 16], values.clone())];
        entries.extend(version.then(|| entry("latent_format_version_0", vec![0], Vec::new())));
        synthetic::safetensors(&entries)
    };
    let job = |latent| {
        let base_sampler = Some(v1::PipedSampler { basic_pipe: basic_pipe("sd"), ..Default::default() });
        let source = Some(v1::latent_upscale_job::Source::Latent(latent));
        Kind::LatentUpscale(v1::LatentUpscaleJob { source, base_sampler, ..Default::default() })
    };
    for (version, scale) in [(true, 1.0), (false, (1.0 / 0.18215) as f32)] {
        let resolved = door.resolve(job(door.upload("l.latent", latent(version)).await)).await.unwrap();
        plan(&resolved).unwrap();
        let JobKind::LatentUpscale(resolved) = resolved.kind else { panic!("a latent upscale") };
        let LatentSource::Latent(PixelsRef { digest, size }) = resolved.source else { panic!("a latent") };
        assert_eq!(size, Size::new(16, 8));
        let kept = door.floats(digest).await;
        assert_eq!(kept[5], values[5] * scale);
        assert_eq!(resolved.vae.name, "sd", "the checkpoint's own");
    }
    let other = synthetic::safetensors(&[("x".to_owned(), vec![2], Fill::Synthetic)]);
    let (field, why) = door.refused(job(door.upload("x.latent", other).await)).await;
    assert_eq!(field, "latent_upscale.latent");
    assert!(why.contains("lacks `latent_tensor`"), "{why}");
}

#[tokio::test]
async fn a_job_that_is_retried_gets_its_picture_back() {
    let door = Door::with_checkpoint().await;
    let picture = door.picture(Color::Rgb, 64, 64).await;
    let job = door.resolve(Kind::SegsDetail(detail_job(picture, given(0, 0, vec![])))).await.unwrap();
    let info = Key::new(layout::raster_info(job.kind.pictures()[0].digest)).unwrap();
    door.store.delete(&info).await.unwrap();
    door.intake.restore(&job).await.unwrap();
    assert!(door.store.head(&info).await.unwrap().is_some());
}
