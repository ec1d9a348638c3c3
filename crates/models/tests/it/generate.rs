//! Pictures of words at tiny sizes, from a synthetic checkpoint.

use std::{collections::BTreeMap, path::Path};

use candle_core::{DType, Device};
use models::{
    diffusion::{
        generate::{ControlPicture, GenerateError, Pixels, Request, Stage, Start, generate},
        model::{File, ModelFiles},
    },
    ops::Backend,
    watch::Unwatched,
};
use weights::{
    checkpoint::Checkpoint,
    synthetic::{
        self, Fill,
        diffusion::{Model, Size},
    },
};

use crate::diffusion::backends;

/// The tiny checkpoint of a model, of which the tensors that `scaled` chooses are multiplied.
fn file(model: Model, scaled: impl Fn(&str) -> f32) -> File {
    let (tensors, metadata) = model.tensors(Size::Tiny);
    let entry = |(name, shape): (String, Vec<usize>)| {
        let factor = scaled(&name);
        let values = synthetic::tensor(&name, &shape).into_iter().map(|value| value * factor).collect();
        (name, shape, Fill::Given(values))
    };
    let entries: Vec<_> = tensors.into_iter().map(entry).collect();
    let metadata: BTreeMap<_, _> = metadata;
    File::new(model.id(), Checkpoint::from_bytes(synthetic::with_metadata(&entries, metadata)).unwrap())
}

fn files(model: Model) -> ModelFiles {
    ModelFiles::single(file(model, |_| 1.0))
}

fn pixels(height: usize, width: usize) -> Pixels {
    let values = (0..height * width * 3).map(|i| (i % 17) as f32 / 16.0).collect();
    Pixels { frames: 1, height, width, values }
}

fn request() -> Request {
    Request {
        positive: "a cat".to_owned(),
        negative: String::new(),
        stop_at_clip_layer: None,
        start: Start::Noise { height: 24, width: 16 },
        mask: None,
        controls: Vec::new(),
        sampler_name: "euler".to_owned(),
        scheduler: "karras".to_owned(),
        steps: 2,
        cfg: 4.0,
        denoise: 1.0,
        seed: 7,
        vae_tile: None,
    }
}

fn made(files: &ModelFiles, request: &Request) -> Pixels {
    generate(files, &backends()[0], request, &Unwatched, &mut |_| {}).unwrap().picture
}

#[test]
fn a_seed_makes_one_picture_and_stages_come_in_order() {
    let files = files(Model::Sd1);
    let mut stages = Vec::new();
    let first = generate(&files, &backends()[0], &request(), &Unwatched, &mut |stage| stages.push(stage)).unwrap();
    assert_eq!((first.picture.height, first.picture.width, first.dtype, first.family), (24, 16, "f32", "sd1"));
    assert!(first.picture.values.iter().all(|value| (0.0..=1.0).contains(value)));
    assert!(first.notes.is_empty() && first.memory_bytes > 0, "{:?}", first.notes);
    let sampling = |done| Stage::Sampling { done, steps: 2 };
    let encoding = Stage::Encoding { memory_bytes: first.memory_bytes };
    let wanted = [Stage::Loading, encoding, sampling(0), sampling(1), sampling(2), Stage::Decoding];
    assert_eq!(stages, wanted);
    assert_eq!(made(&files, &request()), first.picture);
    assert_ne!(made(&files, &Request { seed: 8, ..request() }), first.picture);
    assert_ne!(made(&files, &Request { positive: "a dog".to_owned(), ..request() }), first.picture);
}

#[test]
fn a_mask_keeps_what_it_does_not_cover() {
    let picture = pixels(32, 35);
    let mut mask = Pixels { frames: 1, height: 32, width: 35, values: vec![0.0; 32 * 35] };
    let start = Start::Picture(picture);
    let plain = Request { start, denoise: 0.5, ..request() };
    for model in [Model::Sd1, Model::Sd1Inpaint] {
        let files = files(model);
        let kept = made(&files, &Request { mask: Some(mask.clone()), ..plain.clone() });
        assert_eq!((kept.height, kept.width), (32, 32), "{}", model.id());
        // Whatever is kept does not depend on the seed.
        let again = made(&files, &Request { mask: Some(mask.clone()), seed: 8, ..plain.clone() });
        let farthest = |other: &Pixels| {
            kept.values.iter().zip(&other.values).fold(0.0, |most: f32, (a, b)| most.max((a - b).abs()))
        };
        assert!(farthest(&again) < 1e-4, "{}", farthest(&again));
        assert!(farthest(&made(&files, &plain)) > 0.01);
    }
    mask.values[40] = 1.0;
    let made = generate(&files(Model::Sd1), &backends()[0], &plain, &Unwatched, &mut |_| {}).unwrap();
    assert_eq!(made.notes, ["35x32 was cut to 32x32, sides that are multiples of 8"]);
}

#[test]
fn control_nets_steer_and_those_of_another_family_are_refused() {
    let control = |model, strength| ControlPicture {
        file: file(model, |_| 1.0),
        is_averaged: false,
        picture: pixels(48, 32),
        strength,
        start_percent: 0.0,
        end_percent: 1.0,
    };
    let files = files(Model::Sd1);
    let free = made(&files, &request());
    let steered = |model, strength| Request { controls: vec![control(model, strength)], ..request() };
    assert_ne!(made(&files, &steered(Model::ControlSd1, 1.0)), free);
    assert_eq!(made(&files, &steered(Model::ControlSd1, 0.0)), free);
    let request = steered(Model::ControlSdxl, 1.0);
    let error = generate(&files, &backends()[0], &request, &Unwatched, &mut |_| {}).unwrap_err();
    assert!(matches!(error, GenerateError::ControlFamily { found: 160, wanted: 64, .. }), "{error}");
}

#[test]
fn what_makes_no_sense_is_refused_before_a_file_is_read() {
    let nothing = ModelFiles::default();
    let refusal = |request: Request| {
        generate(&nothing, &backends()[0], &request, &Unwatched, &mut |_| {}).unwrap_err().to_string()
    };
    assert!(refusal(request()).starts_with("there is no network"));
    let unknown = refusal(Request { sampler_name: "eular".to_owned(), ..request() });
    assert!(unknown.starts_with("unknown sampler `eular`; known are euler, "), "{unknown}");
    let unknown = refusal(Request { scheduler: "carras".to_owned(), ..request() });
    assert!(unknown.starts_with("unknown scheduler `carras`; known are "), "{unknown}");
    assert_eq!(refusal(Request { steps: 0, ..request() }), "steps is 0, but must be at least 1");
    for (denoise, shown) in [(0.0, "0"), (f64::NAN, "NaN"), (1.5, "1.5"), (-1.0, "-1")] {
        let wanted = format!("denoise is {shown}, but must be above 0 and at most 1");
        assert_eq!(refusal(Request { denoise, ..request() }), wanted);
    }
    assert_eq!(refusal(Request { cfg: f64::NAN, ..request() }), "cfg is NaN, but must be a finite number");
    let start = Start::Noise { height: 7, width: 16 };
    assert_eq!(refusal(Request { start, ..request() }), "height is 7, but must be at least 8 pixels");
    let mask = Pixels { frames: 1, height: 16, width: 16, values: vec![1.0; 256] };
    assert!(refusal(Request { mask: Some(mask.clone()), ..request() }).starts_with("a mask says"));
    let start = Start::Picture(pixels(16, 24));
    assert_eq!(
        refusal(Request { start, mask: Some(mask), ..request() }),
        "the mask is 16x16, but the picture is 24x16"
    );
    let refused = refusal(Request { stop_at_clip_layer: Some(0), ..request() });
    assert_eq!(refused, "stop_at_clip_layer is 0, but must be -1 to -24");
    assert!(refusal(Request { vae_tile: Some(40), ..request() }).starts_with("vae_tile is 40"));
}

#[test]
fn a_run_that_is_stopped_says_so() {
    let mut is_decoding = false;
    let watch = |done: f64| done < 0.5;
    let error = generate(&files(Model::Sd1), &backends()[0], &request(), &watch, &mut |stage| {
        is_decoding |= stage == Stage::Decoding;
    });
    assert!(error.unwrap_err().is_interruption() && !is_decoding);
}

#[test]
fn numbers_that_are_too_large_for_16_bits_are_tried_in_32() {
    // A network whose numbers grow beyond 65504 on their way, and shrink again.
    let scaled = |name: &str| match name {
        "model.diffusion_model.input_blocks.0.0.weight" => 3e5,
        _ => 1.0,
    };
    let files = ModelFiles::single(file(Model::Sd1, scaled));
    let halves = Backend::Candle(Device::Cpu, DType::F16);
    let mut retried = 0;
    let made = generate(&files, &halves, &request(), &Unwatched, &mut |stage| {
        retried += usize::from(stage == Stage::Retrying);
    });
    let made = made.unwrap();
    assert_eq!((retried, made.dtype), (1, "f32"));
    let [note] = &made.notes[..] else { panic!("{:?}", made.notes) };
    assert!(note.starts_with("the latent of step 1 of 2") && note.ends_with("it was done again in f32"), "{note}");
    assert!(made.picture.values.iter().all(|value| value.is_finite()));
}

#[test]
fn a_prompt_of_ten_thousand_words_is_encoded() {
    let request = Request { positive: "cat ".repeat(10_000), steps: 1, ..request() };
    let start = Start::Noise { height: 8, width: 8 };
    assert_eq!(made(&files(Model::Sd1), &Request { start, ..request }).values.len(), 8 * 8 * 3);
}

#[test]
fn a_missing_part_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path: &Path = &folder.path().join("unet.safetensors");
    let unet = file(Model::Sd1, |_| 1.0).checkpoint;
    let names: Vec<&str> =
        unet.tensors().keys().map(String::as_str).filter(|name| !name.starts_with("first")).collect();
    unet.save_safetensors(path, names, None, unet.metadata()).unwrap();
    let files = ModelFiles::single(File::new("x", Checkpoint::open(path).unwrap()));
    let error = generate(&files, &backends()[0], &request(), &Unwatched, &mut |_| {}).unwrap_err().to_string();
    assert_eq!(error, "the checkpoint holds no VAE: give a file that does");
}
