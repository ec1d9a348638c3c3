//! Files of diffusion models: names, numbers of 8 bits, nested pickles, LoRAs.

use std::collections::BTreeMap;

use safetensors::tensor::{Dtype, TensorView};
use serde_json::Value;
use weights::{
    checkpoint::{Checkpoint, CheckpointError, Float},
    detect::{
        Shapes,
        diffusion::{Family, InputBlock, Unet, network},
    },
    diffusers::{UnetNames, vae},
    lora::{Lora, Method, Role},
    synthetic::{self, Fill},
};

/// The UNet of a model in `models.json`.
fn unet(model: &str) -> (Shapes, Unet) {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/diffusion/models.json");
    let models: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let model = &models["models"][model];
    let tensors: Shapes = serde_json::from_value(model["tensors"].clone()).unwrap();
    let below =
        |(name, shape): (String, Vec<usize>)| Some((name.strip_prefix("model.diffusion_model.")?.to_owned(), shape));
    let shapes: Shapes = tensors.into_iter().filter_map(below).collect();
    let metadata: BTreeMap<String, String> = serde_json::from_value(model["metadata"].clone()).unwrap();
    let unet = Unet::infer(&shapes, &metadata).unwrap();
    (shapes, unet)
}

fn entries(tensors: &[(&str, &[usize])]) -> Checkpoint {
    let entry = |(name, shape): &(&str, &[usize])| ((*name).to_owned(), shape.to_vec(), Fill::Synthetic);
    Checkpoint::from_bytes(synthetic::safetensors(&tensors.iter().map(entry).collect::<Vec<_>>())).unwrap()
}

#[test]
fn both_names_of_a_tensor_lead_to_each_other() {
    for model in ["sd1", "sd2", "sdxl", "sdxl_refiner"] {
        let (shapes, unet) = unet(model);
        let names = UnetNames::of(&unet);
        let theirs: Shapes = shapes
            .iter()
            .map(|(name, shape)| (names.to_diffusers(name).unwrap_or_else(|| panic!("{model}: {name}")), shape.clone()))
            .collect();
        assert_eq!(theirs.len(), shapes.len(), "{model}: two tensors get one name");
        // What the names of diffusers say by themselves is the same.
        let read = UnetNames::of_diffusers(&theirs);
        for name in shapes.keys() {
            let other = names.to_diffusers(name).unwrap();
            assert_eq!(read.to_ldm(&other).as_ref(), Some(name), "{model}: {other}");
            assert_eq!(names.to_ldm(&other).as_ref(), Some(name), "{model}: {other}");
        }
    }
}

#[test]
fn names_are_those_that_diffusers_give() {
    let check = |model: &str, ldm: &str, diffusers: &str| {
        assert_eq!(UnetNames::of(&unet(model).1).to_diffusers(ldm).as_deref(), Some(diffusers));
    };
    check("sd1", "input_blocks.0.0.weight", "conv_in.weight");
    check("sd1", "time_embed.2.bias", "time_embedding.linear_2.bias");
    check("sd1", "input_blocks.1.0.emb_layers.1.weight", "down_blocks.0.resnets.0.time_emb_proj.weight");
    check("sd1", "input_blocks.3.0.op.weight", "down_blocks.0.downsamplers.0.conv.weight");
    check("sd1", "input_blocks.5.1.norm.weight", "down_blocks.1.attentions.1.norm.weight");
    check("sd1", "middle_block.2.out_layers.3.bias", "mid_block.resnets.1.conv2.bias");
    check("sd1", "output_blocks.2.1.conv.bias", "up_blocks.0.upsamplers.0.conv.bias");
    check("sd1", "output_blocks.5.2.conv.weight", "up_blocks.1.upsamplers.0.conv.weight");
    check("sd1", "output_blocks.11.0.skip_connection.weight", "up_blocks.3.resnets.2.conv_shortcut.weight");
    check("sdxl", "label_emb.0.2.weight", "add_embedding.linear_2.weight");
    check("sdxl", "out.0.weight", "conv_norm_out.weight");
    check(
        "sdxl",
        "input_blocks.8.1.transformer_blocks.1.attn2.to_out.0.bias",
        "down_blocks.2.attentions.1.transformer_blocks.1.attn2.to_out.0.bias",
    );
    let check = |diffusers: &str, ldm: &str| assert_eq!(vae::to_ldm(diffusers, 4).as_deref(), Some(ldm));
    check("encoder.down_blocks.2.resnets.1.conv_shortcut.bias", "encoder.down.2.block.1.nin_shortcut.bias");
    check("encoder.down_blocks.0.downsamplers.0.conv.weight", "encoder.down.0.downsample.conv.weight");
    check("decoder.up_blocks.0.resnets.2.norm1.weight", "decoder.up.3.block.2.norm1.weight");
    check("decoder.up_blocks.2.upsamplers.0.conv.bias", "decoder.up.1.upsample.conv.bias");
    check("decoder.mid_block.attentions.0.to_out.0.weight", "decoder.mid.attn_1.proj_out.weight");
    check("decoder.mid_block.attentions.0.query.weight", "decoder.mid.attn_1.q.weight");
    check("encoder.mid_block.resnets.1.conv2.weight", "encoder.mid.block_2.conv2.weight");
    check("encoder.conv_norm_out.bias", "encoder.norm_out.bias");
    check("post_quant_conv.weight", "post_quant_conv.weight");
}

#[test]
fn names_that_count_too_far_cost_nothing_and_are_no_network() {
    let far = usize::MAX.to_string();
    let shapes = Shapes::from([
        ("conv_in.weight".to_owned(), vec![32, 4, 3, 3]),
        (format!("down_blocks.{far}.resnets.{far}.conv1.weight"), vec![1]),
        (format!("down_blocks.0.resnets.{far}.conv1.weight"), vec![1]),
        ("down_blocks.0.resnets.0.conv1.weight".to_owned(), vec![1]),
    ]);
    let names = UnetNames::of_diffusers(&shapes);
    assert_eq!(names.to_ldm(&format!("down_blocks.{far}.resnets.0.conv1.weight")), None);
    assert_eq!(vae::to_ldm(&format!("decoder.up_blocks.{far}.resnets.0.norm1.weight"), 4), None);
    assert_eq!(vae::to_ldm(&format!("decoder.mid_block.resnets.{far}.norm1.weight"), 4), None);
}

#[test]
fn families_are_told_by_structure_whatever_the_width() {
    let family = |linear: bool, context_dim: usize, adm_in_channels: Option<usize>| {
        Family::of(&Unet { is_linear: linear, context_dim, adm_in_channels, ..unet("sd1").1 })
    };
    let check = |found: Result<Family, _>, family| assert_eq!(found, Ok::<_, weights::detect::DetectError>(family));
    check(family(false, 768, None), Family::Sd1);
    check(family(true, 1024, None), Family::Sd2);
    check(family(true, 1024, Some(1536)), Family::Sd2Unclip);
    check(family(true, 1024, Some(2048)), Family::Sd2Unclip);
    check(family(true, 2048, Some(2816)), Family::Sdxl);
    check(family(true, 1280, Some(2560)), Family::SdxlRefiner);
    let error = family(true, 768, Some(64)).unwrap_err().to_string();
    assert!(error.contains("label_emb.0.0.weight") && error.contains("family"), "{error}");
}

#[test]
fn distilled_networks_have_a_short_middle_or_none() {
    let (shapes, _) = unet("sdxl");
    let infer = |keep: &dyn Fn(&str) -> bool| {
        let mut shapes = shapes.clone();
        shapes.retain(|name, _| keep(name));
        Unet::infer(&shapes, &BTreeMap::from([("unet.num_head_channels".to_owned(), "16".to_owned())]))
    };
    assert_eq!(infer(&|_| true).unwrap().middle, Some(2));
    let ssd = infer(&|name| !name.starts_with("middle_block.1.") && !name.starts_with("middle_block.2.")).unwrap();
    assert_eq!(ssd.middle, Some(0));
    let koala = infer(&|name| !name.starts_with("middle_block.")).unwrap();
    assert_eq!((koala.middle, Family::of(&koala)), (None, Ok(Family::Sdxl)));
    assert!(matches!(koala.input.last(), Some(InputBlock::Res { depth: 2, .. })));
}

#[test]
fn a_network_is_found_below_any_prefix() {
    let tensors: Vec<String> = (0..7).map(|i| format!("{i}.weight")).collect();
    for (prefix, found) in [("model.diffusion_model.", 7), ("model.model.", 7), ("net.", 7), ("model.", 7), ("", 7)] {
        let names: Vec<String> = tensors.iter().map(|name| format!("{prefix}{name}")).collect();
        let list: Vec<(&str, &[usize])> = names.iter().map(|name| (name.as_str(), &[2][..])).collect();
        let part = network(&entries(&list));
        assert_eq!(part.tensors().keys().filter(|name| tensors.contains(name)).count(), found, "`{prefix}`");
    }
}

#[test]
fn numbers_of_8_bits_are_widened_and_scaled() {
    let bytes: [u8; 8] = [0x00, 0x38, 0xB8, 0x7E, 0x01, 0x07, 0x08, 0x3C];
    let e4m3 = [0.0, 1.0, -1.0, 448.0, 0.001_953_125, 0.013_671_875, 0.015_625, 1.5];
    let e5m2 = [0.0, 0.5, -0.5, f32::NAN, 1.525_878_9e-5, 1.068_115_2e-4, 1.220_703_1e-4, 1.0];
    let file = |dtype: Dtype, scale: Option<f32>| {
        let scale = scale.map(f32::to_le_bytes);
        let mut views = BTreeMap::from([("x.weight", TensorView::new(dtype, vec![2, 4], &bytes).unwrap())]);
        if let Some(scale) = &scale {
            views.insert("x.scale_weight", TensorView::new(Dtype::F32, vec![], scale).unwrap());
            views.insert("scaled_fp8", TensorView::new(dtype, vec![0], &[]).unwrap());
        }
        Checkpoint::from_bytes(safetensors::serialize(views, None).unwrap()).unwrap()
    };
    let check = |checkpoint: &Checkpoint, want: &[f32]| {
        for (got, want) in checkpoint.read_f32("x.weight").unwrap().iter().zip(want) {
            assert!(got == want || got.is_nan() && want.is_nan(), "{got} and {want}");
        }
    };
    check(&file(Dtype::F8_E4M3, None), &e4m3);
    check(&file(Dtype::F8_E5M2, None), &e5m2);
    let scaled = file(Dtype::F8_E4M3, Some(0.25));
    check(&scaled, &e4m3.map(|x| x * 0.25));
    // Behind another file and with a prefix less they are the same.
    let joined = Checkpoint::joined([entries(&[("y", &[3])]), scaled.clone()]).unwrap();
    check(&joined, &e4m3.map(|x| x * 0.25));
    assert_eq!(joined.part("x.").read_f32("weight").unwrap(), scaled.read_f32("x.weight").unwrap());
    assert!(matches!(Checkpoint::joined([joined, scaled.clone()]), Err(CheckpointError::Duplicate { .. })));

    // Written as they are they keep their factor; as other numbers they have it in them.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    for float in [None, Some(Float::F32)] {
        let names = scaled.tensors().keys().map(String::as_str);
        scaled.save_safetensors(&path, names, float, &BTreeMap::new()).unwrap();
        check(&Checkpoint::open(&path).unwrap(), &e4m3.map(|x| x * 0.25));
    }
}

#[test]
fn a_nested_pickle_of_stable_diffusion_is_read_without_its_callbacks() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/stable_diffusion.ckpt");
    let checkpoint = Checkpoint::open(path.as_ref()).unwrap();
    let names: Vec<_> = checkpoint.tensors().keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "cond_stage_model.transformer.text_model.embeddings.position_ids",
            "first_stage_model.quant_conv.bias",
            "model.diffusion_model.out.2.bias",
            "model.diffusion_model.out.2.weight",
            "model_ema.decay",
        ]
    );
    assert_eq!(checkpoint.part("model.diffusion_model.").read_f32("out.2.bias").unwrap(), [0.0, 1.0, 2.0, 3.0]);
}

#[test]
fn the_tensors_of_a_lora_are_sorted_by_module_and_method() {
    let file = entries(&[
        ("unet.a.to_q_lora.up.weight", &[8, 2]),
        ("unet.a.to_q_lora.down.weight", &[2, 6]),
        ("unet.a.to_q.alpha", &[]),
        ("b.lora_B.default.weight", &[8, 3]),
        ("b.lora_A.default.weight", &[3, 6]),
        ("b.dora_scale", &[8, 1]),
        ("c.hada_w1_a", &[4, 2]),
        ("d.oft_blocks", &[2, 4, 4]),
        ("e.oft_blocks", &[3, 2, 4, 4]),
        ("f.diff_b", &[5]),
        ("g.alpha", &[]),
        ("h", &[5]),
    ]);
    let lora = Lora::read(&file);
    let methods: Vec<_> = lora.modules.iter().map(|(name, module)| (name.as_str(), module.method())).collect();
    assert_eq!(
        methods,
        [
            ("b", Some(Method::Lora)),
            ("d", Some(Method::Oft)),
            ("e", Some(Method::Boft)),
            ("f", None),
            ("unet.a.to_q", Some(Method::Lora)),
        ]
    );
    // What is incomplete, and what is no tensor of a LoRA.
    let mut others = lora.others.clone();
    others.sort();
    assert_eq!(others, ["c.hada_w1_a", "g.alpha", "h"]);
    assert_eq!(lora.ranks(), [2, 3]);
    assert_eq!(lora.modules["f"].bias(), Some("f.diff_b"));
    let module = &lora.modules["unet.a.to_q"];
    assert_eq!(module.tensors[&Role::Alpha], "unet.a.to_q.alpha");
    assert!(module.fits(&[8, 6]) && module.fits(&[8, 6, 1, 1]) && module.fits(&[8, 2, 3]) && !module.fits(&[8, 5]));
}
