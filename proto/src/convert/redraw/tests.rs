use domain::{digest::Digest, pipe::Area, segs::Select};

use super::*;
use crate::convert::{Source, segs::MaskRequest};

fn source() -> v1::PictureSource {
    let digest = v1::picture_source::Source::Digest(Digest::of(b"picture").to_string());
    v1::PictureSource { name: String::new(), source: Some(digest) }
}

fn nowhere() -> v1::PictureSource {
    v1::PictureSource { name: String::new(), source: None }
}

fn basic_pipe() -> v1::BasicPipe {
    v1::BasicPipe { checkpoint: "sd".to_owned(), ..Default::default() }
}

fn segs(segs: Vec<v1::Seg>) -> Option<v1::SegsSource> {
    let segs = v1::Segs { width: 64, height: 48, segs };
    Some(v1::SegsSource { source: Some(v1::segs_source::Source::Segs(segs)) })
}

fn seg() -> v1::Seg {
    v1::Seg { crop_region: vec![-4, 0, 32, 32], ..Default::default() }
}

fn detail() -> v1::SegsDetailJob {
    v1::SegsDetailJob {
        picture: Some(source()),
        segs: segs(vec![seg()]),
        basic_pipe: Some(basic_pipe()),
        ..Default::default()
    }
}

fn upscale() -> v1::SegsUpscaleJob {
    v1::SegsUpscaleJob {
        picture: Some(source()),
        segs: segs(vec![seg()]),
        basic_pipe: Some(basic_pipe()),
        ..Default::default()
    }
}

fn piped_sampler() -> v1::PipedSampler {
    v1::PipedSampler { basic_pipe: Some(basic_pipe()), ..Default::default() }
}

fn latent() -> v1::LatentUpscaleJob {
    v1::LatentUpscaleJob {
        source: Some(v1::latent_upscale_job::Source::Picture(source())),
        base_sampler: Some(piped_sampler()),
        ..Default::default()
    }
}

#[test]
fn what_is_left_out_of_a_detailer_has_its_default() {
    let request = SegsDetailRequest::try_from(detail()).unwrap();
    assert_eq!(request.detailer, SegsDetailer::default());
    assert_eq!((request.paste, request.refiner_basic_pipe.is_none()), (None, true));
    assert_eq!(request.picture.name, "picture");
    assert_eq!(request.picture.source, Source::Digest(Digest::of(b"picture")));
    let RenderRequest { precision, reproducibility, class, output, reference_quirks } = request.render;
    assert_eq!((precision, reproducibility), (Precision::Exact, Reproducibility::SameClass));
    assert_eq!((class, output, reference_quirks), (None, Output::default(), false));
    let pipe = request.basic_pipe;
    assert_eq!((pipe.checkpoint.as_str(), pipe.vae, pipe.stop_at_clip_layer), ("sd", None, None));
    for prompts in [pipe.positive, pipe.negative] {
        assert_eq!((prompts.len(), prompts[0].text.as_str(), prompts[0].strength), (1, "", 1.0));
    }
    let SegsRequest::Given(given) = request.segs else { panic!("{:?}", request.segs) };
    let seg = &given.segs[0];
    assert_eq!(
        (seg.crop_region.to_string(), seg.bbox.to_string()),
        ("(-4, 0, 32, 32)".into(), "(-4, 0, 32, 32)".into())
    );
    assert_eq!((seg.confidence, &seg.cropped_mask), (1.0, &MaskRequest::Full));
    let pasted = v1::SegsDetailJob { paste: Some(v1::SegsPaste::default()), ..detail() };
    assert_eq!(SegsDetailRequest::try_from(pasted).unwrap().paste, Some(SegsPaste::default()));
}

#[test]
fn what_is_left_out_of_the_other_jobs_has_its_default() {
    let request = SegsUpscaleRequest::try_from(upscale()).unwrap();
    assert_eq!((request.upscaler, request.upscale_model), (SegsUpscaler::default(), None));
    let request = LatentUpscaleRequest::try_from(latent()).unwrap();
    assert_eq!((request.upscale_factor, request.steps, request.tile_size), (1.5, 3, 512));
    assert_eq!((request.step_mode, request.scale_method), (StepMode::Simple, ResizeMethod::NearestExact));
    assert!(request.decode && !request.use_tiled_vae && request.vae.is_none());
    let SamplersRequest::One(sampler) = request.samplers else { panic!("{:?}", request.samplers) };
    assert_eq!(sampler.sampler, KSampler::default());
    let two = v1::LatentUpscaleJob { mask_sampler: Some(piped_sampler()), mask: Some(source()), ..latent() };
    let SamplersRequest::Two(two) = LatentUpscaleRequest::try_from(two).unwrap().samplers else { panic!("two") };
    assert_eq!((two.full_sampler, two.full_sample_schedule), (None, FullSamplerSchedule::None));
}

#[test]
fn what_is_left_out_of_sources_of_segs_has_its_default() {
    use v1::segs_source::Source as Wire;
    let read = |source| {
        let job = v1::SegsDetailJob { segs: Some(v1::SegsSource { source: Some(source) }), ..detail() };
        SegsDetailRequest::try_from(job).unwrap().segs
    };
    let SegsRequest::Mask(mask) = read(Wire::Mask(v1::MaskToSegs { mask: Some(source()), ..Default::default() }))
    else {
        panic!("a mask")
    };
    assert_eq!((mask.crop_factor, mask.drop_size, mask.combined, mask.contour_fill), (3.0, 10, false, false));
    let SegsRequest::Tiles(tiles) = read(Wire::Tiles(v1::MakeTileSegs::default())) else { panic!("tiles") };
    assert_eq!((tiles.bbox_size, tiles.crop_factor, tiles.min_overlap), (512, 3.0, 5));
    assert_eq!((tiles.filter_segs_dilation, tiles.irregular_mask_mode.as_str()), (20, "Reuse fast"));
}

#[test]
fn the_parts_of_a_pipe_have_their_defaults() {
    let lora = |strength_model| v1::Lora { lora: "l".to_owned(), strength_model, strength_clip: None };
    let net = v1::ControlNet { control_net: "c".to_owned(), ..Default::default() };
    let area = v1::ConditioningArea { percentage: false, width: 64.0, height: 32.0, x: 8.0, y: 0.0 };
    let prompt = v1::Conditioning { text: "a".to_owned(), area: Some(area), ..Default::default() };
    let wire = v1::BasicPipe {
        loras: vec![lora(None), lora(Some(0.5))],
        control_nets: vec![net],
        positive: vec![prompt],
        stop_at_clip_layer: -2,
        ..basic_pipe()
    };
    let pipe = PipeRequest::read("p", wire).unwrap();
    let strengths: Vec<_> = pipe.loras.iter().map(|lora| (lora.strength_model, lora.strength_clip)).collect();
    assert_eq!(strengths, [(1.0, 1.0), (0.5, 0.5)]);
    let net = &pipe.control_nets[0];
    assert_eq!((net.strength, net.start_percent, net.end_percent), (1.0, 0.0, 1.0));
    assert_eq!(pipe.positive[0].area, Some(Area::Pixels { width: 64, height: 32, x: 8, y: 0 }));
    assert_eq!(pipe.stop_at_clip_layer, Some(-2));
}

#[test]
fn a_wrong_field_of_a_detailer_is_named_by_its_path() {
    #[track_caller]
    fn check(change: impl FnOnce(&mut v1::SegsDetailJob), field: &str) {
        let mut job = detail();
        change(&mut job);
        assert_eq!(SegsDetailRequest::try_from(job).unwrap_err().field, format!("segs_detail.{field}"));
    }
    check(|job| job.picture = None, "picture");
    check(|job| job.picture = Some(nowhere()), "picture.source");
    check(|job| job.segs = None, "segs");
    let two = |change: fn(&mut v1::Seg)| {
        let mut wrong = seg();
        change(&mut wrong);
        segs(vec![seg(), wrong])
    };
    check(|job| job.segs = two(|seg| seg.bbox = vec![1.0]), "segs.segs[1].bbox");
    check(|job| job.segs = two(|seg| seg.bbox = vec![1.0, 2.0, f64::NAN, 4.0]), "segs.segs[1].bbox");
    check(|job| job.segs = two(|seg| seg.crop_region = vec![]), "segs.segs[1].crop_region");
    check(|job| job.segs = two(|seg| seg.confidence = Some(2.0)), "segs.segs[1].confidence");
    let runs = |seg: &mut v1::Seg| {
        let rle = v1::RunLengths { width: 2, height: 2, counts: vec![3] };
        seg.cropped_mask = Some(v1::SegMask { source: Some(v1::seg_mask::Source::Rle(rle)) });
    };
    check(|job| job.segs = two(runs), "segs.segs[1].cropped_mask.rle");
    check(|job| job.segs = two(|seg| seg.cropped_image = Some(nowhere())), "segs.segs[1].cropped_image.source");
    let net = |seg: &mut v1::Seg| seg.control_nets.push(v1::ControlNet::default());
    check(|job| job.segs = two(net), "segs.segs[1].control_nets[0].control_net");
    let tiles = |tiles| Some(v1::SegsSource { source: Some(v1::segs_source::Source::Tiles(tiles)) });
    check(|job| job.segs = tiles(v1::MakeTileSegs { bbox_size: 8, ..Default::default() }), "segs.tiles.bbox_size");
    let mask = v1::segs_source::Source::Mask(v1::MaskToSegs::default());
    check(|job| job.segs = Some(v1::SegsSource { source: Some(mask) }), "segs.mask.mask");
    check(|job| job.overrides = vec![v1::SegOverride::default()], "overrides[0].select");
    check(|job| job.basic_pipe = None, "basic_pipe");
    check(|job| job.basic_pipe = Some(v1::BasicPipe::default()), "basic_pipe.checkpoint");
    check(|job| job.refiner_basic_pipe = Some(v1::BasicPipe::default()), "refiner_basic_pipe.checkpoint");
    let pipe = |change: fn(&mut v1::BasicPipe)| {
        let mut pipe = basic_pipe();
        change(&mut pipe);
        Some(pipe)
    };
    check(|job| job.basic_pipe = pipe(|pipe| pipe.loras.push(v1::Lora::default())), "basic_pipe.loras[0].lora");
    let half = |pipe: &mut v1::BasicPipe| {
        let area = v1::ConditioningArea { width: 8.5, height: 8.0, ..Default::default() };
        pipe.positive.push(v1::Conditioning { area: Some(area), ..Default::default() });
    };
    check(|job| job.basic_pipe = pipe(half), "basic_pipe.positive[0].area.width");
    let sampler = |sampler: v1::Sampler| Some(sampler);
    check(|job| job.sampler = sampler(v1::Sampler { cfg: Some(-1.0), ..Default::default() }), "sampler.cfg");
    check(|job| job.sampler = sampler(v1::Sampler { denoise: Some(0.0), ..Default::default() }), "sampler.denoise");
    let odd = v1::Sampler { sampler_name: "odd".to_owned(), ..Default::default() };
    check(|job| job.sampler = sampler(odd), "sampler.sampler_name");
    let func = Some(v1::SchedulerFunction::default());
    check(
        |job| job.sampler = sampler(v1::Sampler { scheduler_func: func, ..Default::default() }),
        "sampler.scheduler_func.kind",
    );
    check(|job| job.paste = Some(v1::SegsPaste { feather: None, alpha: Some(256) }), "paste.alpha");
    let render = |render: v1::RenderOptions| Some(render);
    check(|job| job.render = render(v1::RenderOptions { precision: 9, ..Default::default() }), "render.precision");
    let gpu = v1::RenderOptions { compute_class: "gpu".to_owned(), ..Default::default() };
    check(|job| job.render = render(gpu), "render.compute_class");
    let output = Some(v1::OutputOptions { bits: 12, ..Default::default() });
    check(|job| job.render = render(v1::RenderOptions { output, ..Default::default() }), "render.output.bits");
}

#[test]
fn a_wrong_field_of_the_other_jobs_is_named_by_its_path() {
    #[track_caller]
    fn check(change: impl FnOnce(&mut v1::LatentUpscaleJob), field: &str) {
        let mut job = latent();
        change(&mut job);
        assert_eq!(LatentUpscaleRequest::try_from(job).unwrap_err().field, format!("latent_upscale.{field}"));
    }
    check(|job| job.source = None, "source");
    check(|job| job.source = Some(v1::latent_upscale_job::Source::Latent(nowhere())), "latent.source");
    check(|job| job.step_mode = 7, "step_mode");
    check(|job| job.scale_method = "bicubic".to_owned(), "scale_method");
    check(|job| job.full_sample_schedule = "sometimes".to_owned(), "full_sample_schedule");
    check(|job| job.base_sampler = None, "base_sampler");
    check(|job| job.base_sampler = Some(v1::PipedSampler::default()), "base_sampler.basic_pipe");
    check(|job| job.mask_sampler = Some(piped_sampler()), "mask");
    check(|job| job.mask = Some(source()), "mask");
    check(|job| job.full_sampler = Some(piped_sampler()), "full_sampler");
    check(|job| job.full_sample_schedule = "last2".to_owned(), "full_sample_schedule");
    let hooked = v1::PipedSampler { hooks: vec![v1::PkHook::default()], ..piped_sampler() };
    check(|job| job.base_sampler = Some(hooked), "base_sampler.hooks[0].target");

    let mut job = upscale();
    job.resampling_method = "best".to_owned();
    assert_eq!(SegsUpscaleRequest::try_from(job).unwrap_err().field, "segs_upscale.resampling_method");
    let tile = Some(v1::TileOptions { side: 8, ..Default::default() });
    let job = v1::SegsUpscaleJob { tile, ..upscale() };
    assert_eq!(SegsUpscaleRequest::try_from(job).unwrap_err().field, "segs_upscale.tile.side");
}

#[test]
fn segments_are_chosen_by_label_or_index() {
    let change = |select| v1::SegOverride { select: Some(select), seed: Some(3), ..Default::default() };
    let changes =
        vec![change(v1::seg_override::Select::Label("face".to_owned())), change(v1::seg_override::Select::Index(4))];
    let request = SegsDetailRequest::try_from(v1::SegsDetailJob { overrides: changes, ..detail() }).unwrap();
    let selects: Vec<_> = request.overrides.iter().map(|change| change.select.clone()).collect();
    assert_eq!(selects, [Select::Label("face".to_owned()), Select::Index(4)]);
    assert_eq!(request.overrides[0].seed, Some(3));
}
