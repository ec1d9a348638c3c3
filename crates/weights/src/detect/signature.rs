//! The names by which each architecture is known, in the order in which they are tried.

use super::{Shapes, compact, esrgan};

/// Says which architecture has tensors of these names.
///
/// The order matters: some architectures have all the names that another one is known by.
pub(super) fn find(shapes: &Shapes) -> Option<&'static str> {
    type Test = fn(&dyn Fn(&str) -> bool) -> bool;
    let table: [(&'static str, Test); 8] = [
        (compact::ARCHITECTURE, |has| has("body.0.weight") && has("body.1.weight")),
        ("HAT", is_hat),
        ("SwinIR", |has| {
            let block = "layers.0.residual_group.blocks.0.";
            ["norm1.weight", "mlp.fc1.bias", "attn.relative_position_index"]
                .iter()
                .all(|name| has(&format!("{block}{name}")))
                && (has("conv_first.weight") || has("conv_first.1.weight"))
        }),
        ("OmniSR", |has| {
            has("residual_layer.0.residual_layer.0.layer.0.fn.0.weight") && has("input.weight") && has("up.0.weight")
        }),
        ("DAT", is_dat),
        ("SPAN", |has| {
            let blocks = ["c1_r.sk", "c1_r.eval_conv", "c3_r.eval_conv"];
            let rest = ["conv_1.sk", "conv_cat", "conv_2.sk", "conv_2.eval_conv", "upsampler.0"];
            blocks.iter().all(|name| has(&format!("block_1.{name}.weight")))
                && rest.iter().all(|name| has(&format!("{name}.weight")))
        }),
        (esrgan::ARCHITECTURE, |has| esrgan::naming(has).is_some()),
        ("PLKSR", |has| {
            let large_kernels = ["conv", "convs.0", "mn_conv"];
            has("feats.0.weight")
                && has("feats.1.refine.weight")
                && large_kernels.iter().any(|name| has(&format!("feats.1.lk.{name}.weight")))
                && ["channe_mixer", "channel_mixer"].iter().any(|name| has(&format!("feats.1.{name}.0.weight")))
        }),
    ];
    let has = |name: &str| shapes.contains_key(name);
    table.iter().find(|(_, test)| test(&has)).map(|(architecture, _)| *architecture)
}

fn is_hat(has: &dyn Fn(&str) -> bool) -> bool {
    let group = [
        "blocks.0.norm1.weight",
        "blocks.0.conv_block.cab.0.weight",
        "blocks.0.conv_block.cab.2.weight",
        "blocks.0.conv_block.cab.3.attention.1.weight",
        "blocks.0.conv_block.cab.3.attention.3.weight",
        "blocks.0.mlp.fc1.bias",
        "blocks.0.mlp.fc2.weight",
        "overlap_attn.relative_position_bias_table",
        "overlap_attn.qkv.weight",
        "overlap_attn.proj.weight",
        "overlap_attn.mlp.fc1.weight",
        "overlap_attn.mlp.fc2.weight",
    ];
    let rest = ["relative_position_index_SA", "conv_first.weight", "conv_last.weight"];
    group.iter().all(|name| has(&format!("layers.0.residual_group.{name}"))) && rest.iter().all(|name| has(name))
}

fn is_dat(has: &dyn Fn(&str) -> bool) -> bool {
    let block = [
        "attn.attns.0.rpe_biases",
        "attn.attns.0.relative_position_index",
        "attn.attns.0.pos.pos_proj.weight",
        "ffn.sg.conv.weight",
    ];
    let rest = ["conv_first.weight", "before_RG.1.weight", "before_RG.1.bias", "norm.weight"];
    let one_convolution = has("conv_after_body.weight");
    let shuffled = one_convolution && has("conv_before_upsample.0.weight") && has("conv_last.weight");
    block.iter().all(|name| has(&format!("layers.0.blocks.0.{name}")))
        && rest.iter().all(|name| has(name))
        && (one_convolution || has("conv_after_body.4.weight"))
        && (shuffled || has("upsample.0.weight"))
}
