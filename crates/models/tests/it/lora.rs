//! LoRAs on tiny models, against the reference's numbers; the formulas of each method are tested beside them.

use std::{collections::BTreeMap, path::Path};

use models::diffusion::{
    lora::{LoraError, LoraFile},
    model::{File, LoadError, Model, ModelFiles},
    text::Options,
};
use weights::{
    checkpoint::Checkpoint,
    detect::diffusion::Family,
    synthetic::{self, Fill},
};

use crate::model::{backend, check_close, file, load, numbers, recorded, story};

fn golden(name: &str, strength_model: f64, strength_clip: f64) -> LoraFile {
    let name = format!("lora_{name}.safetensors");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/diffusion").join(&name);
    LoraFile { file: File::new(name, Checkpoint::open(&path).unwrap()), strength_model, strength_clip }
}

fn with(model: &File, loras: impl Into<Vec<LoraFile>>) -> ModelFiles {
    ModelFiles { loras: loras.into(), ..ModelFiles::single(model.clone()) }
}

/// A LoRA of tensors computed from their names.
fn synthetic_lora(tensors: &[(&str, &[usize])]) -> LoraFile {
    let entries: Vec<_> =
        tensors.iter().map(|(name, shape)| ((*name).to_owned(), shape.to_vec(), Fill::Synthetic)).collect();
    let checkpoint = Checkpoint::from_bytes(synthetic::safetensors(&entries)).unwrap();
    LoraFile { file: File::new("synthetic", checkpoint), strength_model: 1.0, strength_clip: 1.0 }
}

#[test]
fn weights_and_text_are_those_of_the_reference_by_every_naming() {
    const CONV: &str = "input_blocks.4.0.in_layers.2.weight";
    const EMB: &str = "input_blocks.4.0.emb_layers.1.weight";
    const PROJ: &str = "middle_block.1.proj_in.weight";
    // Equal tensors of several cases are recorded once.
    let places: BTreeMap<(&str, &str), [(&str, &str); 3]> = BTreeMap::from([
        (("sd1", "kohya"), [(CONV, "sd1/kohya"), (EMB, "sd1/kohya"), (PROJ, "sd1/kohya")]),
        (("sd1", "kohya_ldm"), [(CONV, "sd1/kohya_ldm"), (EMB, "sd1/kohya_ldm"), (PROJ, "sd1/kohya_ldm")]),
        (("sd1", "peft"), [(CONV, "sd1/peft"), (EMB, "sd1/peft"), (PROJ, "sd1/peft")]),
        (("sdxl", "kohya"), [(CONV, "sd1/kohya"), (EMB, "sd1/kohya"), (PROJ, "sdxl/kohya")]),
        (("sdxl", "kohya_ldm"), [(CONV, "sd1/kohya_ldm"), (EMB, "sd1/kohya_ldm"), (PROJ, "sdxl/kohya_ldm")]),
        (("sdxl", "peft"), [(CONV, "sd1/peft"), (EMB, "sd1/peft"), (PROJ, "sdxl/peft")]),
    ]);
    for model in ["sd1", "sdxl"] {
        let whole = file(model);
        for naming in ["kohya", "kohya_ldm", "peft", "diffusers_attn"] {
            let files = with(&whole, [golden(&format!("{model}_{naming}"), 0.8, 0.6)]);
            let changed = load(&files).unwrap_or_else(|error| panic!("{model} {naming}: {}", story(&error)));
            assert_eq!(changed.unused, [], "{model} {naming}");
            for (tensor, place) in places.get(&(model, naming)).into_iter().flatten() {
                let want = recorded("lora.safetensors", &format!("{place}/out.patched.diffusion_model.{tensor}"));
                let got = Model::weight(&files, tensor).unwrap();
                assert_eq!(got.dims(), want.dims());
                check_close(&format!("{model} {naming} {tensor}"), &got, &numbers(&want), 1e-6);
            }
            // What changes no text encoder has the conditioning of the plain model, which is recorded under this name.
            let place = if naming.starts_with("kohya") { "kohya" } else { "diffusers_attn" };
            let encoded = changed.text.as_ref().unwrap().encode("a (red:1.2) hat", &Options::default()).unwrap();
            for (name, got) in [("positive", &encoded.cond), ("positive_pooled", &encoded.pooled)] {
                let want = recorded("lora.safetensors", &format!("{model}/{place}/out.{name}"));
                check_close(&format!("{model} {naming} {name}"), got, &numbers(&want), 2e-4);
            }
        }
    }
}

#[test]
fn several_add_up_and_a_negative_strength_takes_away() {
    let (whole, tensor) = (file("sd1"), "middle_block.1.proj_in.weight");
    let weight = |loras: Vec<LoraFile>| Model::weight(&with(&whole, loras), tensor).unwrap();
    let (plain, lora) = (weight(vec![]), |strength| golden("sd1_kohya", strength, 0.0));
    let twice = weight(vec![lora(0.5), lora(0.25)]);
    check_close("sum", &twice, &numbers(&weight(vec![lora(0.75)])), 1e-6);
    check_close("nothing", &weight(vec![lora(0.5), lora(-0.5)]), &numbers(&plain), 1e-6);
    check_close("no strength", &weight(vec![lora(0.0)]), &numbers(&plain), 0.0);
    let change = (twice - plain).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
    assert!(change > 0.01, "the weight changes by {change} only");
}

#[test]
fn a_lora_of_another_family_is_refused_naming_both() {
    let refused = |model: &str, lora: LoraFile| match load(&with(&file(model), [lora])).unwrap_err() {
        LoadError::Lora(error) => error,
        other => panic!("{}", story(&other)),
    };
    let error = refused("sd1", golden("sdxl_kohya", 1.0, 1.0));
    assert!(matches!(error, LoraError::Family { family: Family::Sd1, found: Some(Family::Sdxl), .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("was trained on SDXL, but the model is one of SD 1.x"), "{text}");

    // Of a real size: its keys are as wide as the text of SD 2.x.
    let key = "lora_unet_middle_block_1_transformer_blocks_0_attn2_to_k";
    let (up, down) = (format!("{key}.lora_up.weight"), format!("{key}.lora_down.weight"));
    let error = refused("sd1", synthetic_lora(&[(&up, &[128, 4]), (&down, &[4, 1024])])).to_string();
    assert!(error.contains("was trained on SD 2.x, but the model is one of SD 1.x"), "{error}");
    assert!(error.contains("is for 128 outputs of 1024 inputs, where the weight has shape [128, 64]"), "{error}");

    let error = refused(
        "sdxl_refiner",
        synthetic_lora(&[
            ("lora_unet_double_blocks_0.lora_up.weight", &[4, 4]),
            ("lora_unet_double_blocks_0.lora_down.weight", &[4, 4]),
        ]),
    );
    assert!(error.to_string().ends_with("module `lora_unet_double_blocks_0` belongs to no weight"), "{error}");
}

#[test]
fn what_is_no_lora_or_has_no_strength_is_refused() {
    let whole = file("sd1");
    let refused = |lora: LoraFile| load(&with(&whole, [lora])).unwrap_err().to_string();
    let nan = refused(golden("sd1_kohya", f64::NAN, 1.0));
    assert_eq!(nan, "LoRA `lora_sd1_kohya.safetensors` has strength_model NaN, which is no finite number");
    assert!(refused(golden("sd1_kohya", 1.0, f64::INFINITY)).contains("strength_clip inf"));
    let checkpoint = LoraFile { file: file("sd1"), strength_model: 1.0, strength_clip: 1.0 };
    assert!(refused(checkpoint).starts_with("`sd1` is no LoRA: none of its tensors changes a weight, such as `cond_"));

    let key = "lora_unet_middle_block_1_transformer_blocks_0_attn2_to_k";
    let (up, down) = (format!("{key}.lora_up.weight"), format!("{key}.lora_down.weight"));
    // Both fit the weight, but not each other.
    let error = load(&with(&whole, [synthetic_lora(&[(&up, &[128, 4]), (&down, &[3, 64])])])).unwrap_err();
    let words = format!("module `{key}` of LoRA `synthetic` cannot change tensor");
    assert!(story(&error).contains(&words), "{}", story(&error));
}

#[test]
fn tensors_that_change_nothing_are_listed() {
    let key = "lora_unet_middle_block_1_transformer_blocks_0_attn2_to_k";
    let (up, down) = (format!("{key}.lora_up.weight"), format!("{key}.lora_down.weight"));
    let lora = synthetic_lora(&[
        (&up, &[128, 4]),
        (&down, &[4, 64]),
        ("lora_unet_unknown.lora_up.weight", &[4, 4]),
        ("lora_unet_unknown.lora_down.weight", &[4, 4]),
        ("stray", &[3]),
    ]);
    let model =
        Model::load(&with(&file("sd1"), [lora]), &backend()).unwrap_or_else(|error| panic!("{}", story(&error)));
    let [unused] = &model.unused[..] else { panic!("{:?}", model.unused) };
    assert_eq!(unused.tensors, ["lora_unet_unknown.lora_down.weight", "lora_unet_unknown.lora_up.weight", "stray"]);
    assert!(
        unused.to_string().starts_with("3 tensors of LoRA `synthetic` change nothing of this model, such as `lora_")
    );
}

#[test]
fn biases_and_whole_layers_change_too() {
    let lora = synthetic_lora(&[
        ("lora_unet_out_2.diff_b", &[4]),
        ("lora_unet_out_2.diff", &[4, 32, 3, 3]),
        ("lora_unet_out_0.w_norm", &[32]),
        ("lora_unet_out_0.b_norm", &[32]),
    ]);
    let whole = file("sd1");
    for (tensor, change) in [
        ("out.2.bias", "lora_unet_out_2.diff_b"),
        ("out.2.weight", "lora_unet_out_2.diff"),
        ("out.0.weight", "lora_unet_out_0.w_norm"),
        ("out.0.bias", "lora_unet_out_0.b_norm"),
    ] {
        let plain = Model::weight(&with(&whole, []), tensor).unwrap();
        let want: Vec<f32> = numbers(&plain)
            .iter()
            .zip(lora.file.checkpoint.read_f32(change).unwrap())
            .map(|(weight, change)| weight + change)
            .collect();
        check_close(tensor, &Model::weight(&with(&whole, [lora.clone()]), tensor).unwrap(), &want, 1e-6);
    }
}
