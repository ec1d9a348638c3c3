//! The names by which each architecture is known, in the order in which they are tried.

use super::{atd, compact, dat, esrgan, hat, mosr, omnisr, plksr, rcan, span, swinir};

/// Known only in order not to be taken for SwinIR, whose names it has as well.
const SWIN2SR: &str = "Swin2SR";

/// The names of tensors that tell an architecture.
pub(super) struct Signature {
    /// The architecture.
    pub(super) architecture: &'static str,
    /// Names that all must be there.
    all: &'static [&'static str],
    /// Groups of names, of which one must be there.
    any: &'static [&'static [&'static str]],
}

/// Returns the first architecture all of whose names are there.
///
/// The order matters: some architectures have all the names that another one is known by.
pub(super) fn find(has: impl Fn(&str) -> bool) -> Option<&'static str> {
    let is_there = |names: &[&str]| names.iter().all(|name| has(name));
    let fits = |signature: &&Signature| {
        is_there(signature.all) && (signature.any.is_empty() || signature.any.iter().any(|names| is_there(names)))
    };
    SIGNATURES.iter().find(fits).map(|signature| signature.architecture)
}

/// Returns the architecture of whose names the largest share is there, with those that are not; none if no name is there.
pub(super) fn nearest(has: impl Fn(&str) -> bool) -> Option<(&'static str, Vec<&'static str>)> {
    let mut best: Option<(f64, &'static str, Vec<&'static str>)> = None;
    for Signature { architecture, all, any } in SIGNATURES {
        let none: &[&[&str]] = &[&[]];
        for group in if any.is_empty() { none } else { any } {
            let names: Vec<_> = all.iter().chain(*group).copied().collect();
            let missing: Vec<_> = names.iter().copied().filter(|name| !has(name)).collect();
            let share = (names.len() - missing.len()) as f64 / names.len() as f64;
            if share > best.as_ref().map_or(0.0, |(best, ..)| *best) {
                best = Some((share, architecture, missing));
            }
        }
    }
    best.map(|(_, architecture, missing)| (architecture, missing))
}

/// Says whether these are the tensors of LaMa, which fills in what a mask covers and so needs one.
pub(super) fn is_lama(has: impl Fn(&str) -> bool) -> bool {
    has("model.model.1.bn_l.running_mean") || has("generator.model.1.bn_l.running_mean")
}

const SIGNATURES: &[Signature] = &[
    Signature { architecture: compact::ARCHITECTURE, all: &["body.0.weight", "body.1.weight"], any: &[] },
    Signature {
        architecture: hat::ARCHITECTURE,
        all: &[
            "relative_position_index_SA",
            "conv_first.weight",
            "layers.0.residual_group.blocks.0.norm1.weight",
            "layers.0.residual_group.blocks.0.conv_block.cab.0.weight",
            "layers.0.residual_group.blocks.0.conv_block.cab.2.weight",
            "layers.0.residual_group.blocks.0.conv_block.cab.3.attention.1.weight",
            "layers.0.residual_group.blocks.0.conv_block.cab.3.attention.3.weight",
            "layers.0.residual_group.blocks.0.mlp.fc1.bias",
            "layers.0.residual_group.blocks.0.mlp.fc2.weight",
            "layers.0.residual_group.overlap_attn.relative_position_bias_table",
            "layers.0.residual_group.overlap_attn.qkv.weight",
            "layers.0.residual_group.overlap_attn.proj.weight",
            "layers.0.residual_group.overlap_attn.mlp.fc1.weight",
            "layers.0.residual_group.overlap_attn.mlp.fc2.weight",
            "conv_last.weight",
        ],
        any: &[],
    },
    Signature {
        architecture: SWIN2SR,
        all: &[
            "layers.0.residual_group.blocks.0.norm1.weight",
            "layers.0.residual_group.blocks.0.mlp.fc1.bias",
            "layers.0.residual_group.blocks.0.attn.relative_position_index",
            "conv_first.weight",
            "patch_embed.proj.weight",
        ],
        any: &[],
    },
    Signature {
        architecture: swinir::ARCHITECTURE,
        all: &[
            "layers.0.residual_group.blocks.0.norm1.weight",
            "layers.0.residual_group.blocks.0.mlp.fc1.bias",
            "layers.0.residual_group.blocks.0.attn.relative_position_index",
        ],
        any: &[&["conv_first.weight"], &["conv_first.1.weight"]],
    },
    Signature {
        architecture: omnisr::ARCHITECTURE,
        all: &["residual_layer.0.residual_layer.0.layer.0.fn.0.weight", "input.weight", "up.0.weight"],
        any: &[],
    },
    Signature {
        architecture: dat::ARCHITECTURE,
        all: &[
            "conv_first.weight",
            "before_RG.1.weight",
            "before_RG.1.bias",
            "layers.0.blocks.0.attn.attns.0.rpe_biases",
            "layers.0.blocks.0.attn.attns.0.relative_position_index",
            "layers.0.blocks.0.attn.attns.0.pos.pos_proj.weight",
            "layers.0.blocks.0.ffn.sg.conv.weight",
            "norm.weight",
        ],
        any: &[
            &["conv_after_body.weight", "conv_before_upsample.0.weight", "conv_last.weight"],
            &["conv_after_body.weight", "upsample.0.weight"],
            &["conv_after_body.4.weight", "upsample.0.weight"],
        ],
    },
    Signature {
        architecture: span::ARCHITECTURE,
        all: &[
            "conv_1.sk.weight",
            "block_1.c1_r.sk.weight",
            "block_1.c1_r.eval_conv.weight",
            "block_1.c3_r.eval_conv.weight",
            "conv_cat.weight",
            "conv_2.sk.weight",
            "conv_2.eval_conv.weight",
            "upsampler.0.weight",
        ],
        any: &[],
    },
    Signature {
        architecture: atd::ARCHITECTURE,
        all: &[
            "relative_position_index_SA",
            "conv_first.weight",
            "conv_first.bias",
            "layers.0.residual_group.td",
            "layers.0.residual_group.layers.0.sigma",
            "layers.0.residual_group.layers.0.norm1.weight",
            "layers.0.residual_group.layers.0.norm3.weight",
            "layers.0.residual_group.layers.0.wqkv.weight",
            "layers.0.residual_group.layers.0.attn_win.relative_position_bias_table",
            "layers.0.residual_group.layers.0.attn_atd.scale",
            "layers.0.residual_group.layers.0.attn_atd.wq.weight",
            "layers.0.residual_group.layers.0.attn_aca.logit_scale",
            "layers.0.residual_group.layers.0.convffn.fc1.weight",
            "layers.0.residual_group.layers.0.convffn.dwconv.depthwise_conv.0.weight",
            "norm.weight",
        ],
        any: &[],
    },
    Signature {
        architecture: esrgan::ARCHITECTURE,
        all: &[],
        any: &[
            &["model.0.weight", "model.1.sub.0.RDB1.conv1.0.weight"],
            &["conv_first.weight", "body.0.rdb1.conv1.weight", "conv_body.weight", "conv_last.weight"],
            &["conv_first.weight", "RRDB_trunk.0.RDB1.conv1.weight", "trunk_conv.weight", "conv_last.weight"],
            &["model.0.weight", "model.1.sub.0.RDB1.conv1x1.weight"],
        ],
    },
    Signature {
        architecture: plksr::ARCHITECTURE,
        all: &["feats.0.weight", "feats.1.refine.weight"],
        any: &[
            &["feats.1.lk.conv.weight", "feats.1.channel_mixer.0.weight"],
            &["feats.1.lk.conv.weight", "feats.1.channe_mixer.0.weight"],
            &["feats.1.lk.convs.0.weight", "feats.1.channe_mixer.0.weight"],
            &["feats.1.lk.mn_conv.weight", "feats.1.channe_mixer.0.weight"],
        ],
    },
    Signature {
        architecture: mosr::ARCHITECTURE,
        all: &[
            "gblocks.0.weight",
            "gblocks.0.bias",
            "gblocks.1.norm.weight",
            "gblocks.1.norm.bias",
            "gblocks.1.fc1.weight",
            "gblocks.1.fc1.bias",
            "gblocks.1.conv.weight",
            "gblocks.1.conv.bias",
            "gblocks.1.fc2.weight",
            "gblocks.1.fc2.bias",
        ],
        any: &[],
    },
    Signature {
        architecture: rcan::ARCHITECTURE,
        all: &["tail.1.weight", "body.0.body.0.body.0.weight", "body.0.body.0.body.3.conv_du.0.weight"],
        any: &[&["head.0.weight"], &["head.1.weight"]],
    },
];
