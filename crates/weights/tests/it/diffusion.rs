//! Synthetic checkpoints of diffusion models, and what is reckoned from their sizes.

use std::collections::BTreeMap;

use serde_json::Value;
use weights::{
    checkpoint::{Checkpoint, Float},
    detect::diffusion::{
        ControlNet, Unet, Vae,
        memory::{Engine, text_bytes},
    },
    synthetic::{
        self,
        diffusion::{Model, Size},
    },
};

type Shapes = BTreeMap<String, Vec<usize>>;

fn shapes(model: Model, size: Size) -> Shapes {
    model.tensors(size).0.into_iter().collect()
}

fn below(shapes: &Shapes, prefix: &str) -> Shapes {
    shapes.iter().filter_map(|(name, shape)| Some((name.strip_prefix(prefix)?.to_owned(), shape.clone()))).collect()
}

fn count(shapes: &Shapes) -> usize {
    shapes.values().map(|shape| shape.iter().product::<usize>()).sum()
}

#[test]
fn tiny_models_are_those_of_the_recorded_cases() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/diffusion/models.json");
    let recorded: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let mut compared = 0;
    for model in Model::ALL {
        let (tensors, metadata) = model.tensors(Size::Tiny);
        let Some(recorded) = recorded["models"].get(&metadata["family"]) else { continue };
        let wanted: Shapes = serde_json::from_value(recorded["tensors"].clone()).unwrap();
        let tensors: Shapes = tensors.into_iter().collect();
        assert_eq!(tensors, wanted, "{}", model.id());
        assert_eq!(serde_json::to_value(metadata).unwrap(), recorded["metadata"], "{}", model.id());
        compared += 1;
    }
    assert!(compared >= 6, "{compared} models are among the recorded ones");
}

#[test]
fn full_models_have_as_many_parameters_as_the_published_ones() {
    let parameters = |model: Model, prefix: &str| count(&below(&shapes(model, Size::Full), prefix));
    assert_eq!(parameters(Model::Sd1, "model.diffusion_model."), 859_520_964);
    assert_eq!(parameters(Model::Sd2, "model.diffusion_model."), 865_910_724);
    assert_eq!(parameters(Model::Sdxl, "model.diffusion_model."), 2_567_463_684);
    assert_eq!(parameters(Model::Sd1, "first_stage_model."), 83_653_863);
    assert_eq!(parameters(Model::Sd1, "cond_stage_model."), 123_060_480);
    assert_eq!(parameters(Model::ControlSd1, "control_model."), 361_279_120);
}

#[test]
fn a_synthetic_checkpoint_is_written_as_it_is_computed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("control.safetensors");
    Model::ControlSd1.save(Size::Tiny, Float::F32, &path).unwrap();
    let file = Checkpoint::open(&path).unwrap();
    let net = file.part("control_model.");
    assert_eq!(ControlNet::infer(&net.shapes(), net.metadata()).unwrap().tensors().count(), net.tensors().len());
    let name = "control_model.zero_convs.3.0.weight";
    assert_eq!(file.read_f32(name).unwrap(), synthetic::tensor(name, &[32, 32, 1, 1]));
    Model::ControlSd1.save(Size::Tiny, Float::F16, &path).unwrap();
    let halves = Checkpoint::open(&path).unwrap().read_f32(name).unwrap();
    let exact = synthetic::tensor(name, &[32, 32, 1, 1]);
    assert!(halves.iter().zip(&exact).all(|(half, exact)| (half - exact).abs() < 1e-3));
    assert_ne!(halves, exact);
}

#[test]
fn memory_grows_with_the_picture() {
    let model = shapes(Model::Sd1, Size::Full);
    let unet = Unet::infer(&below(&model, "model.diffusion_model."), &BTreeMap::new()).unwrap();
    let vae = Vae::infer(&below(&model, "first_stage_model.")).unwrap();
    let net = below(&shapes(Model::ControlSd1, Size::Full), "control_model.");
    let net = ControlNet::infer(&net, &BTreeMap::new()).unwrap();
    for engine in [Engine::Kernels, Engine::Library { number_bytes: 2 }] {
        let call = |batch, side| unet.call_bytes(engine, batch, side, side, 77);
        assert_eq!(call(2, 64), 2 * call(1, 64));
        assert!(call(1, 128) >= 4 * call(1, 64));
        assert!(net.call_bytes(engine, 1, 64, 64, 77) < 2 * call(1, 64));
        let (small, large) = (vae.decode_bytes(engine, 1, 64, 64), vae.decode_bytes(engine, 1, 256, 256));
        assert!(large >= 16 * small);
        assert!(vae.encode_bytes(engine, 1, 2048, 2048) >= 16 * vae.encode_bytes(engine, 1, 512, 512));
        assert!(text_bytes(engine, 768, 12, 2) < small);
    }
    // Measured: so much more at 512 x 512 pixels than at 256 x 256.
    let grows = |bytes: fn(&Vae, usize) -> u64| (bytes(&vae, 64) - bytes(&vae, 32)) as f64 / 1e6;
    let decode = grows(|vae, side| vae.decode_bytes(Engine::Kernels, 1, side, side));
    let encode = grows(|vae, side| vae.encode_bytes(Engine::Kernels, 1, 8 * side, 8 * side));
    assert!((decode - 667.0).abs() < 20.0 && (encode - 444.0).abs() < 15.0, "{decode} {encode}");
    // What a tensor library writes out that kernels do not.
    assert!(
        unet.call_bytes(Engine::Library { number_bytes: 4 }, 1, 64, 64, 77)
            > 2 * unet.call_bytes(Engine::Kernels, 1, 64, 64, 77)
    );
}
