//! HAT: SwinIR with a branch of channel attention in each block, and windows that overlap at the end of each layer
//! (Chen et al. 2022, arXiv 2205.04437).

use serde_json::{Value, json};

use super::head::{Resi, Upsampler};
use super::parts::{Builder, Part, Role};
use super::shapes::{Reader, root, whole};
use super::swinir::{add_attention, heads};
use super::{DetectError, ModelFacts, SizeRequirements, facts};

pub(super) const ARCHITECTURE: &str = "HAT";

/// The sizes of a HAT network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hat {
    /// The channels of the picture, in and out.
    pub in_chans: usize,
    /// The channels of the trunk.
    pub embed_dim: usize,
    /// How many blocks each layer has.
    pub depths: Vec<usize>,
    /// How many heads the attention of each layer has.
    pub num_heads: Vec<usize>,
    /// The side of a window, in pixels.
    pub window_size: usize,
    /// The side of the larger window that keys and values of the overlapping attention are taken from, in pixels.
    pub overlap_win_size: usize,
    /// The channels between the two convolutions of a block's channel branch.
    pub compressed: usize,
    /// The channels between the two convolutions of its channel attention.
    pub squeezed: usize,
    /// The channels between the two linear layers of a block.
    pub mlp_hidden: usize,
    /// Whether queries, keys and values have a bias.
    pub qkv_bias: bool,
    /// Whether `patch_embed.norm` stands before the layers.
    pub patch_norm: bool,
    /// What stands behind the blocks of a layer, and behind all layers.
    pub resi_connection: Resi,
    /// How the picture gets larger.
    pub upsampler: Upsampler,
}

impl Hat {
    /// What the channel branch of a block is multiplied by.
    pub const CONV_SCALE: f64 = 0.01;

    pub(super) fn infer(from: &Reader<'_>) -> Result<Self, DetectError> {
        let (embed_dim, in_chans) = from.convolution("conv_first")?;
        let window_size = from.window("relative_position_index_SA")?;
        let (overlap, what) = ("relative_position_index_OCA", "the size of the overlapping window");
        let [_, pixels] = from.sides(overlap, what)?;
        let overlap_win_size =
            root(pixels).filter(|side| *side >= window_size).ok_or_else(|| from.odd(overlap, what))?;

        let group = |layer| format!("layers.{layer}.residual_group");
        let first = format!("{}.blocks.0", group(0));
        let layers = from.count("layers")?;
        let depths = (0..layers).map(|layer| from.count(&format!("{}.blocks", group(layer))));
        let table = |layer| format!("{}.overlap_attn.relative_position_bias_table", group(layer));
        let num_heads = (0..layers).map(|layer| heads(from, &table(layer), embed_dim));
        Ok(Self {
            in_chans,
            embed_dim,
            depths: depths.collect::<Result<_, _>>()?,
            num_heads: num_heads.collect::<Result<_, _>>()?,
            window_size,
            overlap_win_size,
            compressed: from.convolution(&format!("{first}.conv_block.cab.0"))?.0,
            squeezed: from.convolution(&format!("{first}.conv_block.cab.3.attention.1"))?.0,
            mlp_hidden: from.linear(&format!("{first}.mlp.fc1"))?.0,
            qkv_bias: from.has(&format!("{first}.attn.qkv.bias")),
            patch_norm: from.has("patch_embed.norm.weight"),
            resi_connection: Resi::infer(from, "conv_after_body", true)?,
            upsampler: Upsampler::infer(from, in_chans)?,
        })
    }

    pub(super) fn parts(&self) -> Vec<Part> {
        let (c, w, o) = (self.embed_dim, self.window_size, self.overlap_win_size);
        let mut to = Builder::default();
        to.tensor("relative_position_index_SA", [w * w, w * w], Role::Buffer);
        to.tensor("relative_position_index_OCA", [w * w, o * o], Role::Buffer);
        to.conv("conv_first", c, self.in_chans, 3);
        if self.patch_norm {
            to.norm("patch_embed.norm", c);
        }
        for (layer, (&depth, &heads)) in self.depths.iter().zip(&self.num_heads).enumerate() {
            let group = format!("layers.{layer}.residual_group");
            for block in 0..depth {
                let name = format!("{group}.blocks.{block}");
                to.norm(&format!("{name}.norm1"), c);
                add_attention(&mut to, &format!("{name}.attn"), c, heads, w, self.qkv_bias);
                to.conv(&format!("{name}.conv_block.cab.0"), self.compressed, c, 3);
                to.conv(&format!("{name}.conv_block.cab.2"), c, self.compressed, 3);
                to.conv(&format!("{name}.conv_block.cab.3.attention.1"), self.squeezed, c, 1);
                to.conv(&format!("{name}.conv_block.cab.3.attention.3"), c, self.squeezed, 1);
                to.norm(&format!("{name}.norm2"), c);
                to.mlp(&format!("{name}.mlp"), c, self.mlp_hidden);
            }
            let name = format!("{group}.overlap_attn");
            to.parameter(format!("{name}.relative_position_bias_table"), [(w + o - 1) * (w + o - 1), heads]);
            to.norm(&format!("{name}.norm1"), c);
            to.linear_if(self.qkv_bias, &format!("{name}.qkv"), 3 * c, c);
            to.linear(&format!("{name}.proj"), c, c);
            to.norm(&format!("{name}.norm2"), c);
            to.mlp(&format!("{name}.mlp"), c, self.mlp_hidden);
            self.resi_connection.add(&mut to, &format!("layers.{layer}.conv"), c);
        }
        to.norm("norm", c);
        self.resi_connection.add(&mut to, "conv_after_body", c);
        self.upsampler.add(&mut to, c, self.in_chans);
        to.parts
    }

    pub(super) fn facts(&self) -> Result<ModelFacts, DetectError> {
        let upscale = self.upsampler.scale();
        let compress_ratio = divisor(self.embed_dim, self.compressed);
        let size_tag = match self.depths.len() {
            9.. => "large",
            _ if compress_ratio.as_f64() > Some(4.0) => "small",
            _ => "medium",
        };
        let num_feat = match self.upsampler {
            Upsampler::PixelShuffle { num_feat, .. } | Upsampler::NearestConv { num_feat, .. } => num_feat,
            Upsampler::None | Upsampler::Direct { .. } => self.embed_dim,
        };
        Ok(ModelFacts {
            scale: facts::scale(ARCHITECTURE, upscale, 1)?,
            input_channels: self.in_chans as u32,
            output_channels: self.in_chans as u32,
            size_requirements: SizeRequirements { minimum: 16, ..SizeRequirements::NONE },
            tags: vec![
                size_tag.to_owned(),
                format!("s64w{}", self.window_size),
                format!("{num_feat}nf"),
                format!("{}dim", self.embed_dim),
                self.resi_connection.name().to_owned(),
            ],
            hyperparameters: facts::map(json!({
                "img_size": 64,
                "patch_size": 1,
                "in_chans": self.in_chans,
                "embed_dim": self.embed_dim,
                "depths": self.depths,
                "num_heads": self.num_heads,
                "window_size": self.window_size,
                "compress_ratio": compress_ratio,
                "squeeze_factor": divisor(self.embed_dim, self.squeezed),
                "conv_scale": Self::CONV_SCALE,
                "overlap_ratio": self.overlap_ratio(),
                "mlp_ratio": self.mlp_hidden as f64 / self.embed_dim as f64,
                "qkv_bias": self.qkv_bias,
                "qk_scale": null,
                "drop_rate": 0.0,
                "attn_drop_rate": 0.0,
                "drop_path_rate": 0.1,
                "ape": false,
                "patch_norm": self.patch_norm,
                "use_checkpoint": false,
                "upscale": upscale,
                "img_range": 1.0,
                "upsampler": self.upsampler.name(),
                "resi_connection": self.resi_connection.name(),
                "num_feat": num_feat,
            })),
            ..ModelFacts::of(ARCHITECTURE)
        })
    }

    /// Returns by which share of a window the larger one exceeds it. Several shares give the same size: the roundest of them.
    fn overlap_ratio(&self) -> f64 {
        let (window, larger) = (self.window_size as f64, self.overlap_win_size as f64);
        let round = [0.0, 1.0, 0.5, 0.25, 0.75, 0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.8, 0.9];
        let fits = |ratio: &f64| (window + window * ratio).floor() == larger;
        round.into_iter().find(fits).unwrap_or((larger - window) / window + 0.01)
    }
}

/// Returns the number by which `whole` channels are divided, rounding down, to give `part`; a whole number if there is one.
fn divisor(all: usize, part: usize) -> Value {
    let near = all / part;
    match whole(all, part) {
        Some(exact) => json!(exact),
        None => [near + 1, near]
            .into_iter()
            .find(|&divisor| divisor > 0 && all / divisor == part)
            .map_or_else(|| json!(all as f64 / part as f64), |divisor| json!(divisor)),
    }
}
