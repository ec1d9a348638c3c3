//! Whole models: which they are, from whatever files they come, and what is refused.

use std::{
    collections::BTreeMap,
    error::Error,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use candle_core::{DType, Device, Tensor};
use models::{
    diffusion::{
        controlnet::ControlNet,
        lora::LoraFile,
        model::{File, LoadError, Model, ModelFiles},
        schedule::Prediction,
        text::{Options, size::SdxlSize},
        unet::Inputs,
    },
    ops::Backend,
    watch::Unwatched,
};
use safetensors::SafeTensors;
use serde_json::Value;
use weights::{
    checkpoint::Checkpoint,
    detect::diffusion::{Family, Purpose},
    diffusers,
    synthetic::{self, Entry, Fill},
};

fn goldens() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/diffusion")
}

/// A file of the golden cases, tensors by name.
pub fn recorded(file: &str, name: &str) -> Tensor {
    let bytes = fs::read(goldens().join(file)).unwrap();
    let view = SafeTensors::deserialize(&bytes).unwrap();
    let view = view.tensor(name).unwrap();
    let numbers: Vec<f32> = view.data().as_chunks().0.iter().map(|x| f32::from_le_bytes(*x)).collect();
    Tensor::from_vec(numbers, view.shape(), &Device::Cpu).unwrap()
}

/// The tensors of a model in `models.json`, and what its header says.
fn listed(model: &str) -> (Vec<Entry>, BTreeMap<String, String>) {
    let models: Value = serde_json::from_slice(&fs::read(goldens().join("models.json")).unwrap()).unwrap();
    let model = &models["models"][model];
    let scales: BTreeMap<String, f32> = serde_json::from_value(model["extra_scale"].clone()).unwrap();
    let tensors: BTreeMap<String, Vec<usize>> = serde_json::from_value(model["tensors"].clone()).unwrap();
    let entry = |(name, shape): (String, Vec<usize>)| {
        let fill = match scales.get(&name) {
            Some(scale) => Fill::Given(synthetic::tensor(&name, &shape).iter().map(|x| x * scale).collect()),
            None => Fill::Synthetic,
        };
        (name, shape, fill)
    };
    (tensors.into_iter().map(entry).collect(), serde_json::from_value(model["metadata"].clone()).unwrap())
}

fn bytes(model: &str, change: impl FnOnce(&mut Vec<Entry>)) -> Vec<u8> {
    let (mut entries, metadata) = listed(model);
    change(&mut entries);
    synthetic::with_metadata(&entries, metadata)
}

/// A model of `models.json` as a file.
pub fn file(model: &str) -> File {
    File::new(model, Checkpoint::from_bytes(bytes(model, |_| {})).unwrap())
}

pub fn backend() -> Backend {
    Backend::Kernels(crate::cpu())
}

pub fn load(files: &ModelFiles) -> Result<Model, LoadError> {
    Model::load(files, &backend())
}

/// An error with all its causes.
pub fn story(error: &LoadError) -> String {
    let mut story = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        story += &format!(": {error}");
        cause = error.source();
    }
    story
}

fn refusal(files: &ModelFiles) -> String {
    story(&load(files).unwrap_err())
}

pub fn numbers(x: &Tensor) -> Vec<f32> {
    x.flatten_all().unwrap().to_vec1().unwrap()
}

pub fn check_close(what: &str, got: &Tensor, want: &[f32], tolerance: f32) {
    let got = numbers(got);
    assert_eq!(got.len(), want.len(), "{what}");
    let worst = got.iter().zip(want).map(|(got, want)| (got - want).abs()).fold(0.0, f32::max);
    assert!(worst <= tolerance, "{what} is off by {worst}, {tolerance} allowed");
}

#[test]
fn structure_and_markers_tell_what_a_model_is() {
    let check = |model: &str, family, purpose, prediction, sigma_max: f32| {
        let loaded =
            load(&ModelFiles::single(file(model))).unwrap_or_else(|error| panic!("{model}: {}", story(&error)));
        assert_eq!((loaded.family, loaded.purpose), (family, purpose), "{model}");
        assert_eq!(loaded.sampling.prediction(), prediction, "{model}");
        assert!((loaded.sampling.sigma_max() - sigma_max).abs() < 1e-3 * sigma_max, "{model}");
        assert!(loaded.text.is_some() && loaded.vae.is_some() && loaded.unused.is_empty(), "{model}");
        assert_eq!(loaded.latent_scale, family.latent_scale());
    };
    use Prediction::{Epsilon, Velocity};
    use Purpose::{Generate, Inpaint};
    check("sd1", Family::Sd1, Generate, Epsilon, 14.6146);
    check("sd1_inpaint", Family::Sd1, Inpaint, Epsilon, 14.6146);
    check("sd2", Family::Sd2, Generate, Epsilon, 14.6146);
    check("sd2_v", Family::Sd2, Generate, Velocity, 14.6146);
    check("sdxl", Family::Sdxl, Generate, Epsilon, 14.6146);
    check("sdxl_v", Family::Sdxl, Generate, Velocity, 14.6146);
    check("sdxl_zsnr", Family::Sdxl, Generate, Velocity, 4518.8);
    check("sdxl_inpaint", Family::Sdxl, Inpaint, Epsilon, 14.6146);
    check("sdxl_refiner", Family::SdxlRefiner, Generate, Epsilon, 14.6146);
}

#[test]
fn sdxl_is_marked_by_tensors_in_a_fixed_order() {
    let marked = |markers: &[(&str, f32)]| {
        let add = |entries: &mut Vec<Entry>| {
            entries.extend(markers.iter().map(|(name, value)| ((*name).to_owned(), vec![], Fill::Given(vec![*value]))));
        };
        load(&ModelFiles::single(File::new("marked", Checkpoint::from_bytes(bytes("sdxl", add)).unwrap())))
    };
    let model = marked(&[("edm_vpred.sigma_max", 80.0), ("edm_vpred.sigma_min", 0.01), ("v_pred", 0.0)]).unwrap();
    assert_eq!(model.sampling.prediction(), Prediction::Velocity);
    assert!((model.sampling.sigma_min() - 0.01).abs() < 1e-6 && (model.sampling.sigma_max() - 80.0).abs() < 1e-3);
    let error = marked(&[("edm_mean", 0.0), ("edm_std", 0.0), ("v_pred", 0.0)]).unwrap_err();
    assert!(matches!(error, LoadError::Training { .. }), "{error}");
    assert!(matches!(marked(&[("edm_vpred.sigma_max", f32::NAN)]), Err(LoadError::Levels(_))));
}

#[test]
fn parts_come_from_files_of_their_own() {
    let whole = file("sdxl");
    let part = |name: &str, prefix: &str| File::new(name, whole.checkpoint.part(prefix));
    let files = ModelFiles {
        unet: Some(part("unet", "model.diffusion_model.")),
        vae: Some(part("vae", "first_stage_model.")),
        // In another order than the conditioning has them.
        clip: vec![part("g", "conditioner.embedders.1."), part("l", "conditioner.embedders.0.transformer.")],
        ..ModelFiles::default()
    };
    // All headers say what both encoders' heads are, so that each encoder must be told by its file.
    let alone = |file: &File, clip: &str| {
        let metadata = file.checkpoint.metadata().iter().filter(|(key, _)| key.starts_with(clip));
        let metadata = metadata.map(|(key, value)| (key.clone(), value.clone())).collect();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        let names = file.checkpoint.tensors().keys().map(String::as_str);
        file.checkpoint.save_safetensors(&path, names, None, &metadata).unwrap();
        File::new(&*file.name, Checkpoint::open(&path).unwrap())
    };
    let clip = vec![alone(&files.clip[0], "clip_g"), alone(&files.clip[1], "clip_l")];
    let apart = load(&ModelFiles { clip, ..files.clone() }).unwrap_or_else(|error| panic!("{}", story(&error)));
    let together = load(&ModelFiles::single(whole.clone())).unwrap();
    let encode = |model: &Model| model.text.as_ref().unwrap().encode("a (red:1.2) hat", &Options::default()).unwrap();
    check_close("cond", &encode(&apart).cond, &numbers(&encode(&together).cond), 0.0);
    let latent = recorded("vae.safetensors", "decode/8x8/in.latent");
    let decode = |model: &Model| model.vae.as_ref().unwrap().decode(&latent, &Unwatched).unwrap();
    check_close("pixels", &decode(&apart), &numbers(&decode(&together)), 0.0);

    let bare = load(&ModelFiles { vae: None, clip: vec![], ..files }).unwrap();
    assert!(bare.text.is_none() && bare.vae.is_none() && bare.family == Family::Sdxl);
}

/// The networks that `data/make.py` made with diffusers.
fn of_diffusers() -> Value {
    serde_json::from_str(include_str!("../data/diffusers.json")).unwrap()
}

fn synthetic_file(shapes: &Value) -> Vec<u8> {
    let shapes: BTreeMap<String, Vec<usize>> = serde_json::from_value(shapes.clone()).unwrap();
    synthetic::network(&shapes.into_iter().collect::<Vec<_>>())
}

fn given(name: &str, shape: &[usize]) -> Tensor {
    let numbers = synthetic::tensor(&format!("{name}.bias"), &[shape.iter().product()]).into_iter().map(|x| x * 50.0);
    Tensor::from_iter(numbers, &Device::Cpu).unwrap().reshape(shape).unwrap()
}

fn floats(value: &Value) -> Vec<f32> {
    serde_json::from_value(value.clone()).unwrap()
}

/// Writes networks as diffusers do: a folder for each, with a configuration.
fn folder(parts: &[(&str, &str, Vec<u8>, &Value)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (part, file, bytes, config) in parts {
        let path = folder.path().join(part);
        fs::create_dir(&path).unwrap();
        fs::write(path.join(file), bytes).unwrap();
        fs::write(path.join("config.json"), config.to_string()).unwrap();
    }
    folder
}

#[test]
fn a_folder_of_diffusers_computes_what_diffusers_compute() {
    let recorded = of_diffusers();
    for name in ["sd1", "sdxl", "ssd", "koala"] {
        let (of, vae) = (&recorded[name], &recorded["vae"]);
        let weights = "diffusion_pytorch_model.safetensors";
        let folder = folder(&[
            ("unet", weights, synthetic_file(&of["shapes"]), &of["config"]),
            ("vae", weights, synthetic_file(&vae["shapes"]), &vae["config"]),
        ]);
        let whole = File::new(name, diffusers::open(folder.path()).unwrap());
        let model = load(&ModelFiles::single(whole)).unwrap_or_else(|error| panic!("{name}: {}", story(&error)));
        assert_eq!(model.family, if name == "sd1" { Family::Sd1 } else { Family::Sdxl });
        let pooled = given("pooled", &[1, 48]);
        let y = SdxlSize::whole(64.0, 48.0).behind(&pooled).unwrap();
        let inputs = Inputs {
            x: &given("x", &[1, 4, 8, 6]),
            timesteps: &[500.0],
            context: &given("context", &[1, 5, model.unet.layout().context_dim]),
            y: Some(&y),
        };
        let output = model.unet.forward(inputs, None, &Unwatched).unwrap();
        check_close(name, &output, &floats(&of["output"]), 2e-5);

        let loaded = model.vae.unwrap();
        let pictures = ((given("pictures", &[1, 3, 8, 12]) / 2.0).unwrap() + 0.5).unwrap();
        check_close("latent", &loaded.encode(&pictures, &Unwatched).unwrap(), &floats(&vae["latent"]), 2e-5);
        let picture = loaded.decode_raw(&given("latent", &[1, 4, 4, 3]), &Unwatched).unwrap();
        check_close("picture", &picture, &floats(&vae["picture"]), 2e-5);
    }
}

#[test]
fn files_of_diffusers_need_no_folder() {
    let recorded = of_diffusers();
    let open = |name: &str| Checkpoint::from_bytes(synthetic_file(&recorded[name]["shapes"])).unwrap();
    let files = ModelFiles {
        unet: Some(File::new("unet", open("sd1"))),
        vae: Some(File::new("vae", open("vae"))),
        ..ModelFiles::default()
    };
    let model = load(&files).unwrap_or_else(|error| panic!("{}", story(&error)));
    assert_eq!(model.vae.unwrap().layout().levels, [32, 64]);
    let control = ControlNet::load(&open("control"), &backend()).unwrap();
    assert_eq!(control.layout().unet.context_dim, 32);
}

#[test]
fn what_a_folder_says_of_prediction_counts() {
    let recorded = of_diffusers();
    let (unet, weights) = (&recorded["sdxl"], "diffusion_pytorch_model.safetensors");
    let folder = folder(&[("unet", weights, synthetic_file(&unet["shapes"]), &unet["config"])]);
    let sampling = |config: &str| {
        fs::create_dir_all(folder.path().join("scheduler")).unwrap();
        fs::write(folder.path().join("scheduler/scheduler_config.json"), config).unwrap();
        let whole = diffusers::open(folder.path()).unwrap();
        load(&ModelFiles::single(File::new("folder", whole))).unwrap().sampling
    };
    assert_eq!(sampling(r#"{"prediction_type": "epsilon"}"#).prediction(), Prediction::Epsilon);
    let shifted = sampling(r#"{"prediction_type": "v_prediction", "rescale_betas_zero_snr": true}"#);
    assert!(shifted.prediction() == Prediction::Velocity && shifted.sigma_max() > 4000.0);
    fs::write(folder.path().join("scheduler/scheduler_config.json"), "{").unwrap();
    let error = diffusers::open(folder.path()).unwrap_err().to_string();
    assert!(error.ends_with("scheduler_config.json` is not valid"), "{error}");
    let empty = tempfile::tempdir().unwrap();
    assert!(diffusers::open(empty.path()).unwrap_err().to_string().contains("holds no model"));
}

#[test]
fn files_that_make_no_model_are_refused_with_the_reason() {
    let changed = |change: &dyn Fn(&mut Vec<Entry>)| {
        let checkpoint = Checkpoint::from_bytes(bytes("sd1", change)).unwrap();
        ModelFiles::single(File::new("changed", checkpoint))
    };
    let to = |name: &'static str, change: fn(&mut Entry)| {
        move |entries: &mut Vec<Entry>| {
            entries.iter_mut().filter(|entry| entry.0 == name).for_each(change);
        }
    };
    assert_eq!(refusal(&ModelFiles::default()), "there is no network: give a checkpoint, or the file of a UNet");

    let missing = "model.diffusion_model.input_blocks.5.1.proj_in.bias";
    let error = refusal(&changed(&|entries| entries.retain(|entry| entry.0 != missing)));
    assert!(error.starts_with("cannot load the network from `changed`: "), "{error}");
    assert!(error.ends_with("the UNet model lacks tensor `input_blocks.5.1.proj_in.bias`"), "{error}");

    let shape = to("first_stage_model.decoder.norm_out.bias", |entry| entry.1 = vec![7]);
    let error = refusal(&changed(&shape));
    assert!(error.starts_with("cannot load the VAE from `changed`: "), "{error}");
    assert!(error.contains("`decoder.norm_out.bias` should be [32], but is [7]"), "{error}");

    let nan = to("model.diffusion_model.out.2.bias", |entry| entry.2 = Fill::Given(vec![f32::NAN; 4]));
    let error = refusal(&changed(&nan));
    assert!(error.ends_with("tensor `out.2.bias` holds a value that is infinite or no number"), "{error}");

    let clip = "cond_stage_model.transformer.text_model.final_layer_norm.weight";
    let error = refusal(&changed(&|entries| entries.retain(|entry| entry.0 != clip)));
    assert!(error.starts_with("cannot load the text encoders from `changed`: "), "{error}");
    assert!(error.ends_with(&format!("the checkpoint has no tensor `{clip}`")), "{error}");

    let whole = file("sd1");
    let vae = || File::new("vae", whole.checkpoint.part("first_stage_model."));
    let error = refusal(&ModelFiles::single(vae()));
    assert!(error.contains("lacks tensor `input_blocks.0.0.weight`"), "{error}");
    let unet = File::new("unet", whole.checkpoint.part("model.diffusion_model."));
    let error = refusal(&ModelFiles { vae: Some(unet.clone()), ..ModelFiles::single(whole.clone()) });
    assert_eq!(error, "`unet` holds no VAE");
    let error = refusal(&ModelFiles { clip: vec![vae()], ..ModelFiles::single(whole.clone()) });
    assert!(error.starts_with("cannot load the text encoders from `vae`: there is no text encoder"), "{error}");
    let error = refusal(&ModelFiles { clip: vec![file("sd2")], ..ModelFiles::single(whole) });
    assert_eq!(error, "the network is one of SD 1.x, but the text encoders are those of Sd2");

    let half = bytes("sd1", |_| {});
    let error = Checkpoint::from_bytes(half[..half.len() / 2].to_vec()).unwrap_err().to_string();
    assert!(error.contains("it is incomplete"), "{error}");
}

#[test]
fn what_loras_do_not_change_is_shared() {
    let base = ModelFiles::single(file("sd1"));
    let model = load(&base).unwrap();
    let lora = LoraFile {
        file: File::new("lora", Checkpoint::open(&goldens().join("lora_sd1_diffusers_attn.safetensors")).unwrap()),
        strength_model: 1.0,
        strength_clip: 1.0,
    };
    let changed = model.with_loras(&ModelFiles { loras: vec![lora.clone()], ..base.clone() }).unwrap();
    assert!(!Arc::ptr_eq(&model.unet, &changed.unet));
    assert!(Arc::ptr_eq(model.vae.as_ref().unwrap(), changed.vae.as_ref().unwrap()));
    assert!(Arc::ptr_eq(model.text.as_ref().unwrap(), changed.text.as_ref().unwrap()), "it is of the network alone");
    let idle = LoraFile { strength_model: 0.0, strength_clip: 0.0, ..lora };
    let unchanged = model.with_loras(&ModelFiles { loras: vec![idle], ..base.clone() }).unwrap();
    assert!(Arc::ptr_eq(&model.unet, &unchanged.unet));
    // From a changed model there is no way back but to read anew.
    assert!(!Arc::ptr_eq(&changed.with_loras(&base).unwrap().unet, &changed.unet));
}

#[test]
fn other_devices_compute_the_same_model() {
    let files = ModelFiles::single(file("sd1"));
    let plain = Model::load(&files, &Backend::Candle(Device::Cpu, DType::F32)).unwrap();
    let (x, context) = (given("x", &[1, 4, 8, 8]), given("context", &[1, 7, 64]));
    let inputs = Inputs { x: &x, timesteps: &[500.0], context: &context, y: None };
    let forward = |model: &Model| model.unet.forward(inputs, None, &Unwatched).unwrap();
    check_close("unet", &forward(&load(&files).unwrap()), &numbers(&forward(&plain)), 1e-4);
}
