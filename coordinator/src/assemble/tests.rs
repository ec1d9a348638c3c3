use std::path::Path;

use bytes::Bytes;
use domain::{
    document::{Document, MaskSource, Source},
    job::{Job, Output, Picture, Precision, Priority, Reproducibility, Timestamp},
    layout,
    nodes::{LatentSource, LatentUpscale, PipedSampler, Rendering, Samplers, SegsDetail, SegsDetailer, StepMode},
    picture::{Color, Format, Sample},
    pipe::{BasicPipe, Checkpoint, Conditioning, ControlNet, Family, MaskRef, PixelsRef, Weights},
    plan::plan,
    region::Region,
    resize::ResizeMethod,
    sampling::KSampler,
    segs::{Placed, Prompts, Seg},
    task::{Base, DECODE_REVISION, Layer, LayerPixels, PASTE_REVISION, Paste},
    tiles::{TileGrid, Tiling},
    touched::Touched,
};
use imaging::{
    bytes::{from_le, from_u8, to_le},
    decode::decode_rows,
    frames::Frames,
    mask::Mask,
    pack::pack,
    paste::tensor_paste,
    raster::{Band, BandWriter, RasterInfo},
    tiled::{BandBlender, Placement},
};
use store::{Key, MemoryStore};
use tempfile::TempDir;

use super::*;
use crate::intake::RasterRecord;

/// Samples on the grid of bytes that look random.
fn noise(seed: u64, count: u64) -> Vec<f32> {
    (0..count).map(|i| from_u8(((i ^ (seed << 20)).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8)).collect()
}

/// An assembler over a store in memory that holds a decoded picture.
struct Bench {
    assembler: Assembler,
    picture: Picture,
    pixels: Frames,
    _scratch: TempDir,
}

impl Bench {
    async fn new(size: Size) -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let store = Arc::new(MemoryStore::new());
        let assembler = Assembler { store, scratch: scratch.path().to_owned(), limits: Limits::default() };
        let digest = Digest::of(b"picture");
        let picture = Picture {
            name: "lantern.png".to_owned(),
            digest,
            size,
            color: Color::Rgb,
            sample: Sample::U8,
            format: Format::Png,
        };
        let raster = RasterInfo::new(size.width, size.height, Color::Rgb, Sample::U8);
        let samples = noise(1, size.pixels() * 3);
        let mut bands: Vec<Band> = Vec::new();
        let mut keep = |band| {
            bands.push(band);
            Ok::<_, std::convert::Infallible>(())
        };
        let Ok(()) = BandWriter::new(raster).push(&pack(&samples, None, Color::Rgb, Sample::U8), &mut keep);
        let record = RasterRecord { raster, format: Format::Png, has_icc: false, has_exif: false };
        put_json(&*assembler.store, &layout::raster_info(digest), &record).await.unwrap();
        let bench = Self { assembler, picture, pixels: Frames::new(1, size, 3, samples).unwrap(), _scratch: scratch };
        for band in bands {
            bench.put(&layout::raster_band(digest, band.index), band.bytes).await;
        }
        bench
    }

    async fn put(&self, key: &str, bytes: Vec<u8>) {
        self.assembler.store.put(&Key::new(key).unwrap(), bytes.into()).await.unwrap();
    }

    async fn get(&self, key: &str) -> Bytes {
        self.assembler.store.get(&Key::new(key).unwrap()).await.unwrap()
    }

    /// Stores samples under their digest.
    async fn artifact(&self, samples: &[f32]) -> Digest {
        let bytes = to_le(samples);
        let digest = Digest::of(&bytes);
        self.put(&layout::artifact(digest), bytes).await;
        digest
    }

    async fn mask(&self, size: Size, values: &[f32]) -> MaskRef {
        MaskRef { digest: self.artifact(values).await, size }
    }

    fn base(&self) -> Base {
        Base { picture: self.picture.digest, decode: DECODE_REVISION, size: self.picture.size, enlarged: None }
    }

    fn job(&self, kind: JobKind) -> Job {
        Job {
            id: "job-1".parse().unwrap(),
            request_id: String::new(),
            created: Timestamp(0),
            labels: Default::default(),
            priority: Priority::Normal,
            deadline: None,
            traceparent: None,
            warnings: Vec::new(),
            kind,
        }
    }

    /// Assembles the last task of `operation`.
    async fn assemble(&self, job: &Job, operation: &str) -> Result<JobOutput, AssembleError> {
        let plan = plan(job).unwrap();
        let of = |task: &&Task| plan.context_of(task).context.operation() == operation;
        let task = plan.tasks().iter().rfind(of).unwrap();
        let output = self.assembler.assemble(job, &plan, task, &CancellationToken::new()).await?;
        let record: JobOutput = serde_json::from_slice(&self.get(&plan.key_of(task).path()).await).unwrap();
        assert_eq!(record, output, "it is found again");
        assert_eq!(Digest::of(&self.get(&output.artifact.key).await), output.artifact.digest);
        Ok(output)
    }

    /// The samples of a picture in the store, and how many bits they have.
    async fn decoded(&self, digest: Digest) -> (Size, Color, Sample, Vec<u8>) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), self.get(&layout::artifact(digest)).await).unwrap();
        decoded(file.path())
    }
}

fn decoded(path: &Path) -> (Size, Color, Sample, Vec<u8>) {
    let mut samples = Vec::new();
    let mut take = |rows: imaging::picture::Rows<'_>| {
        samples.extend_from_slice(rows.bytes);
        Ok(())
    };
    let info = decode_rows(path, &Limits::default(), &mut take).unwrap();
    (Size::new(info.width, info.height), info.color, info.sample, samples)
}

fn rendering() -> Rendering {
    Rendering {
        precision: Precision::Exact,
        reproducibility: Reproducibility::SameClass,
        class: "cpu.fma-1.f32".parse().unwrap(),
        output: Output::default(),
        reference_quirks: false,
    }
}

fn weights(name: &str) -> Weights {
    Weights { digest: Digest::of(name.as_bytes()), name: name.to_owned() }
}

fn pipe() -> BasicPipe {
    BasicPipe {
        checkpoint: Checkpoint { weights: weights("checkpoint"), family: Family::Sd1, in_channels: 4 },
        vae: None,
        loras: Vec::new(),
        embeddings: Vec::new(),
        stop_at_clip_layer: None,
        positive: vec![Conditioning::everywhere("a lantern")],
        negative: vec![Conditioning::everywhere("")],
        control_nets: Vec::new(),
    }
}

#[tokio::test]
async fn a_picture_of_tiles_is_blended_in_their_order() {
    let bench = Bench::new(Size::new(50, 300)).await;
    let (size, tiling, scale) = (bench.picture.size, Tiling { side: 32, overlap: 8 }, 2);
    let grid = TileGrid::new(size, tiling, scale).unwrap();
    let mut blender = BandBlender::new(grid.output(), 3, 0..grid.output().height);
    let mut tiles = Vec::new();
    for (seed, tile) in (30..).zip(grid.tiles()) {
        let samples = noise(seed, tile.output.size().pixels() * 3);
        blender.add(&Placement::from(&tile), 0, &samples).unwrap();
        let key = ResultKey::new(Digest::of(b"tiles"), tile.input);
        bench.put(&key.path(), to_le(&samples)).await;
        tiles.push(key);
    }
    let encoding = Encoding { format: Format::Png, color: Color::Rgb, sample: Sample::U16, quality: 95 };
    let order = TiledPicture { picture: bench.picture.digest, size, tiling, scale, encoding, resize: None, tiles };
    let file = bench.assembler.tiled(&order).await.unwrap();
    let want = pack(&blender.finish().unwrap(), None, Color::Rgb, Sample::U16);
    assert!(decoded(file.path()) == (grid.output(), Color::Rgb, Sample::U16, want));
    let gone = order.tiles[3];
    bench.assembler.store.delete(&Key::new(gone.path()).unwrap()).await.unwrap();
    let refused = bench.assembler.tiled(&order).await.unwrap_err();
    assert!(matches!(&refused, AssembleError::Missing(keys) if *keys == [gone]), "{refused:?}");
}

/// A paste of layers that overlap: two results, pixels that somebody brought and that hang over, and the base's own.
async fn overlapping(bench: &Bench) -> (Paste, Frames) {
    let mut whole = bench.pixels.clone();
    let mut layers = Vec::new();
    for (seed, kind, region) in [
        (2, "result", Region::new(5, 3, 40, 50)),
        (3, "given", Region::new(70, 40, 50, 60)),
        (4, "base", Region::new(20, 20, 30, 100)),
        (5, "result", Region::new(0, 30, 100, 20)),
    ] {
        let size = region.size();
        let samples = noise(seed, size.pixels() * 3);
        let pixels = match kind {
            "base" => LayerPixels::Base,
            "given" => LayerPixels::Given(PixelsRef { digest: bench.artifact(&samples).await, size }),
            _ => {
                let key = ResultKey::new(Digest::of(b"redraw"), region);
                bench.put(&key.path(), to_le(&samples)).await;
                LayerPixels::Result(key)
            }
        };
        // One mask is not as large as what it belongs to.
        let mask_size = if seed == 3 { Size::new(21, 34) } else { size };
        let values: Vec<f32> = noise(seed + 10, mask_size.pixels()).into_iter().map(f32::round).collect();
        let mask = bench.mask(mask_size, &values).await;
        let patch = match kind {
            "base" => bench.pixels.crop(&region.into()),
            _ => Frames::new(1, size, 3, samples).unwrap(),
        };
        let weights = Mask::new(1, mask_size, values).unwrap().feather(3).map(|m| m * (200.0 / 255.0_f64) as f32);
        tensor_paste(&mut whole, &patch, (region.x.into(), region.y.into()), &weights).unwrap();
        layers.push(Layer { pixels, region, mask });
    }
    let encoding = Encoding { format: Format::Png, color: Color::Rgb, sample: Sample::U16, quality: 95 };
    let paste = Paste { revision: PASTE_REVISION, base: bench.base(), layers, feather: 3, alpha: 200, encoding };
    (paste, whole)
}

#[tokio::test]
async fn a_paste_has_the_samples_of_the_whole_whatever_the_height_of_its_bands() {
    let bench = Bench::new(Size::new(100, 150)).await;
    let (paste, whole) = overlapping(&bench).await;
    let want = pack(&whole.data, None, Color::Rgb, Sample::U16);
    for budget in [1, 12 * 100 * 7, 12 * 100 * 64, BAND_BYTES] {
        let file = bench.assembler.pasted(&paste, budget).await.unwrap();
        assert!(decoded(file.path()).3 == want, "bands of {budget} bytes");
    }
}

#[tokio::test]
async fn results_that_vanished_are_named_and_what_is_no_number_is_refused() {
    let bench = Bench::new(Size::new(100, 150)).await;
    let (paste, _) = overlapping(&bench).await;
    let keys: Vec<ResultKey> = paste
        .layers
        .iter()
        .filter_map(|layer| if let LayerPixels::Result(key) = layer.pixels { Some(key) } else { None })
        .collect();
    let first = Key::new(keys[0].path()).unwrap();
    bench.put(&keys[1].path(), to_le(&[f32::NAN; 100 * 20 * 3])).await;
    let refused = bench.assembler.pasted(&paste, BAND_BYTES).await.unwrap_err();
    assert!(matches!(refused, AssembleError::Pixels(PixelError::NotFinite { .. })), "{refused:?}");
    for key in &keys {
        bench.assembler.store.delete(&Key::new(key.path()).unwrap()).await.unwrap();
    }
    let refused = bench.assembler.pasted(&paste, BAND_BYTES).await.unwrap_err();
    let AssembleError::Missing(mut missing) = refused else { panic!("{refused:?}") };
    let mut keys = keys;
    keys.sort_unstable();
    missing.sort_unstable();
    assert_eq!(missing, keys, "all of a band are named together");
    bench.put(first.as_str(), vec![0; 5]).await;
    bench.assembler.store.delete(&Key::new(layout::artifact(paste.layers[1].mask.digest)).unwrap()).await.unwrap();
    let refused = bench.assembler.pasted(&paste, 1).await.unwrap_err();
    assert!(matches!(refused, AssembleError::WrongSize { .. }), "{refused:?}");
}

fn placed(label: &str, region: Region, mask: MaskRef, is_empty: bool) -> Placed {
    let touched = match is_empty {
        true => Touched::default(),
        false => Touched::of(region, &vec![1.0; region.size().pixels() as usize]),
    };
    let seg = Seg {
        bbox: domain::region::Corners::from(region).into(),
        crop_region: region.into(),
        label: label.to_owned(),
        confidence: 0.75,
        cropped_mask: mask,
        cropped_image: None,
        prompts: Prompts { positive: Some(label.to_owned()), negative: None },
        control_nets: Vec::new(),
    };
    Placed { seg, is_empty, touched }
}

fn control(image: Option<PixelsRef>) -> ControlNet {
    ControlNet {
        weights: weights("canny"),
        family: Family::Sd1,
        strength: 0.5,
        start_percent: 0.0,
        end_percent: 1.0,
        advanced: false,
        image,
    }
}

#[tokio::test]
async fn segs_are_delivered_with_their_masks_and_pictures() {
    let bench = Bench::new(Size::new(96, 80)).await;
    let (small, large) = (Size::new(16, 8), Size::new(70, 72));
    let fine: Vec<f32> = noise(7, small.pixels()).into_iter().map(|value| value * 0.7).collect();
    let grey = noise(8, small.pixels());
    let drawn = PixelsRef { digest: bench.artifact(&noise(9, small.pixels() * 3)).await, size: small };
    let edge = vec![1.0; large.pixels() as usize];

    let mut redrawn = placed("redrawn", Region::new(4, 4, 16, 8), bench.mask(small, &fine).await, false);
    redrawn.seg.control_nets = vec![control(Some(drawn)), control(None)];
    let kept = placed("kept", Region::new(20, 6, 70, 72), bench.mask(large, &edge).await, false);
    let mut own = placed("own", Region::new(0, 40, 16, 8), bench.mask(small, &grey).await, true);
    own.seg.cropped_image = Some(drawn);
    own.seg.control_nets = vec![control(Some(drawn))];
    let empty = placed("empty", Region::new(1, 1, 16, 8), bench.mask(small, &[0.0; 128]).await, true);

    let detail = SegsDetail {
        picture: bench.picture.clone(),
        segs: vec![redrawn, kept, own, empty],
        overrides: Vec::new(),
        basic_pipe: pipe(),
        refiner_basic_pipe: None,
        detailer: SegsDetailer { guide_size: 64.0, force_inpaint: false, batch_size: 2, ..SegsDetailer::default() },
        paste: None,
        rendering: rendering(),
    };
    let job = bench.job(JobKind::SegsDetail(Box::new(detail)));
    let planned = plan(&job).unwrap();
    let tasks = &planned.tasks()[..2];
    let bytes = planned.context_of(&tasks[0]).context.result_bytes(&tasks[0].part).unwrap();
    let refused = bench.assemble(&job, "deliver").await.unwrap_err();
    let AssembleError::Missing(missing) = refused else { panic!("{refused:?}") };
    assert_eq!(missing.len(), 2, "{missing:?}");
    let mut results = Vec::new();
    for (seed, task) in (20..).zip(tasks) {
        let mut samples = noise(seed, bytes / 4);
        if seed == 21 {
            samples[5] = 0.123; // not a byte's
        }
        bench.put(&planned.key_of(task).path(), to_le(&samples)).await;
        results.push(samples);
    }

    let output = bench.assemble(&job, "deliver").await.unwrap();
    assert_eq!((output.format, output.size), (OutputFormat::Segs, Size::new(96, 80)));
    let document: Document = serde_json::from_slice(&bench.get(&output.artifact.key).await).unwrap();
    assert_eq!((document.width, document.height), (96, 80));
    let labels: Vec<&str> = document.segs.iter().map(|seg| seg.label.as_str()).collect();
    assert_eq!(labels, ["redrawn", "kept", "own", "empty"].repeat(2), "rounds outside, segments inside");

    let picture = async |source: &Source| {
        let Source::Digest(digest) = source else { panic!("{source:?}") };
        bench.decoded(*digest).await
    };
    let packed = |samples: &[f32], sample| pack(samples, None, Color::Rgb, sample);
    for (round, result) in results.iter().enumerate() {
        let [redrawn, kept, own, empty] = &document.segs[round * 4..][..4] else { panic!("four segments a round") };
        let crop = small.pixels() as usize * 3;
        let sample = [Sample::U8, Sample::U16][round];
        let want = (small, Color::Rgb, sample, packed(&result[..crop], sample));
        assert_eq!(picture(redrawn.cropped_image.as_ref().unwrap()).await, want);
        let [of_its_own, of_what_it_saw] = &redrawn.control_images[..] else { panic!("two control pictures") };
        assert_eq!(picture(of_its_own).await.3, packed(&result[crop..2 * crop], Sample::U8));
        let (size, _, _, samples) = picture(of_what_it_saw).await;
        assert_eq!((size, samples), (Size::new(128, 64), packed(&result[2 * crop..], Sample::U8)));
        assert_eq!((redrawn.control_nets.len(), redrawn.confidence), (0, Some(0.75)));
        let Some(MaskSource::Digest(mask)) = &redrawn.cropped_mask else { panic!("a fine mask is a picture") };
        let (_, color, sample, samples) = bench.decoded(*mask).await;
        assert_eq!((color, sample), (Color::Grey, Sample::U16));
        let near = |(word, value): (&[u8; 2], &f32)| {
            (f32::from(u16::from_le_bytes(*word)) / 65_535.0 - value).abs() < 1.0 / 65_535.0
        };
        assert!(samples.as_chunks::<2>().0.iter().zip(&fine).all(near));

        let region = Region::new(20, 6, 70, 72);
        let want = packed(&bench.pixels.crop(&region.into()).data, Sample::U8);
        assert_eq!(picture(kept.cropped_image.as_ref().unwrap()).await.3, want);
        let Some(MaskSource::Rle(runs)) = &kept.cropped_mask else { panic!("a mask of ones is runs") };
        assert_eq!(runs.counts, [0, 70 * 72]);

        let Some(MaskSource::Digest(mask)) = &own.cropped_mask else { panic!("a grey mask is a picture") };
        assert_eq!(bench.decoded(*mask).await.2, Sample::U8);
        assert_eq!(own.cropped_image, own.control_nets[0].image);
        assert_eq!(own.control_nets[0].control_net, weights("canny").digest.to_string());
        assert_eq!((&empty.cropped_image, empty.positive.as_deref()), (&None, Some("empty")));
    }
}

fn latent_upscale(source: LatentSource, decode: bool) -> LatentUpscale {
    let sampler = PipedSampler { sampler: KSampler::default(), basic_pipe: pipe(), hooks: Vec::new() };
    LatentUpscale {
        source,
        upscale_factor: 2.0,
        steps: 1,
        step_mode: StepMode::Simple,
        scale_method: ResizeMethod::Bilinear,
        vae: weights("vae"),
        use_tiled_vae: false,
        tile_size: 512,
        upscale_model: None,
        samplers: Samplers::One(Box::new(sampler)),
        decode,
        rendering: rendering(),
    }
}

#[tokio::test]
async fn a_latent_is_delivered_as_comfyui_saves_it() {
    let bench = Bench::new(Size::new(8, 8)).await;
    let given = noise(3, 4 * 5 * 6);
    let source = LatentSource::Latent(PixelsRef { digest: bench.artifact(&given).await, size: Size::new(6, 5) });
    for (upscale_factor, size) in [(1.0, Size::new(6, 5)), (2.0, Size::new(12, 10))] {
        let latent = LatentUpscale { upscale_factor, ..latent_upscale(source.clone(), false) };
        let job = bench.job(JobKind::LatentUpscale(Box::new(latent)));
        let planned = plan(&job).unwrap();
        let values = if upscale_factor == 1.0 { given.clone() } else { noise(4, 4 * size.pixels()) };
        if planned.tasks().len() > 1 {
            bench.put(&planned.key_of(&planned.tasks()[0]).path(), to_le(&values)).await;
        }
        let output = bench.assemble(&job, "deliver").await.unwrap();
        assert_eq!((output.format, output.size), (OutputFormat::Latent, Size::new(size.width * 8, size.height * 8)));
        let bytes = bench.get(&output.artifact.key).await;
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let tensor = file.tensor("latent_tensor").unwrap();
        assert_eq!(tensor.shape(), [1, 4, size.height as usize, size.width as usize]);
        assert_eq!(from_le(tensor.data()), values);
        assert_eq!(file.tensor("latent_format_version_0").unwrap().shape(), [0]);
    }
}

#[tokio::test]
async fn what_a_worker_decoded_is_encoded() {
    let bench = Bench::new(Size::new(24, 16)).await;
    let latent = latent_upscale(LatentSource::Picture(bench.picture.clone()), true);
    let job = bench.job(JobKind::LatentUpscale(Box::new(latent)));
    let planned = plan(&job).unwrap();
    let size = Size::new(48, 32);
    let samples = noise(6, size.pixels() * 3);
    let decoding = &planned.tasks()[planned.tasks().len() - 2];
    bench.put(&planned.key_of(decoding).path(), to_le(&samples)).await;
    let output = bench.assemble(&job, "encode").await.unwrap();
    assert_eq!(
        (output.format, output.size, output.name.as_str()),
        (OutputFormat::Picture(Format::Png), size, "lantern.png")
    );
    let want = (size, Color::Rgb, Sample::U8, pack(&samples, None, Color::Rgb, Sample::U8));
    assert_eq!(bench.decoded(output.artifact.digest).await, want);
}
