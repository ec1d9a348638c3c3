//! SwinIR: rows of window attention, windows shifted in every second block (Liang et al. 2021, arXiv 2108.10257).

use serde_json::json;

use super::head::{Resi, Upsampler};
use super::parts::{Builder, Part, Role};
use super::shapes::{Reader, root, whole};
use super::{DetectError, ModelFacts, SizeRequirements, facts};

pub(super) const ARCHITECTURE: &str = "SwinIR";

/// The sizes of a SwinIR network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SwinIr {
    /// The channels of the picture, in and out.
    pub in_chans: usize,
    /// The side of the pictures it was trained on, as far as can be told.
    pub img_size: usize,
    /// The channels of the trunk.
    pub embed_dim: usize,
    /// How many blocks each layer has.
    pub depths: Vec<usize>,
    /// How many heads the attention of each layer has.
    pub num_heads: Vec<usize>,
    /// The side of a window, in pixels.
    pub window_size: usize,
    /// The channels between the two linear layers of a block.
    pub mlp_hidden: usize,
    /// Whether `patch_embed.norm` stands before the layers.
    pub patch_norm: bool,
    /// What stands behind the blocks of a layer, and behind all layers.
    pub resi_connection: Resi,
    /// How the picture gets larger.
    pub upsampler: Upsampler,
    /// By how much the sides of the picture are divided first, its pixels becoming channels; 1 for not at all. If it is more,
    /// the first convolution is called `conv_first.1`.
    pub start_unshuffle: usize,
}

impl SwinIr {
    pub(super) fn infer(from: &Reader<'_>) -> Result<Self, DetectError> {
        let is_unshuffled = from.has("conv_first.1.weight");
        let conv_first = if is_unshuffled { "conv_first.1" } else { "conv_first" };
        let (embed_dim, inputs) = from.convolution(conv_first)?;
        let start_unshuffle = if is_unshuffled { nearest_root(inputs / 3) } else { 1 };
        let in_chans = whole(inputs, start_unshuffle * start_unshuffle)
            .ok_or_else(|| from.odd(&format!("{conv_first}.weight"), "the number of channels"))?;

        let first = "layers.0.residual_group.blocks.0";
        let window_size = from.window(&format!("{first}.attn.relative_position_index"))?;
        let (mlp_hidden, _) = from.linear(&format!("{first}.mlp.fc1"))?;
        let layers = from.count("layers")?;
        let blocks = |layer| format!("layers.{layer}.residual_group.blocks");
        let depths = (0..layers).map(|layer| from.count(&blocks(layer))).collect::<Result<_, _>>()?;
        let heads = |layer| heads(from, &format!("{}.0.attn.relative_position_bias_table", blocks(layer)), embed_dim);
        let num_heads = (0..layers).map(heads).collect::<Result<_, _>>()?;

        let mask = from.shapes.get("layers.0.residual_group.blocks.1.attn_mask");
        let windows = mask.and_then(|mask| mask.first().copied().and_then(root));
        Ok(Self {
            in_chans,
            img_size: windows.map_or(64, |windows| windows.saturating_mul(window_size)),
            embed_dim,
            depths,
            num_heads,
            window_size,
            mlp_hidden,
            patch_norm: from.has("patch_embed.norm.weight"),
            resi_connection: Resi::infer(from, "conv_after_body", false)?,
            upsampler: Upsampler::infer(from, in_chans)?,
            start_unshuffle,
        })
    }

    /// Returns what values from 0 to 1 are multiplied by on the way in, and divided by on the way out: the models against JPEG
    /// artefacts, the only ones of windows of 7, were trained on 0 to 255.
    pub fn img_range(&self) -> f64 {
        if self.window_size == 7 { 255.0 } else { 1.0 }
    }

    /// Returns the name of the first convolution.
    pub fn conv_first(&self) -> &'static str {
        if self.start_unshuffle > 1 { "conv_first.1" } else { "conv_first" }
    }

    pub(super) fn parts(&self) -> Vec<Part> {
        let (c, w) = (self.embed_dim, self.window_size);
        let mut to = Builder::default();
        to.conv(self.conv_first(), c, self.in_chans * self.start_unshuffle * self.start_unshuffle, 3);
        if self.patch_norm {
            to.norm("patch_embed.norm", c);
        }
        for (layer, (&depth, &heads)) in self.depths.iter().zip(&self.num_heads).enumerate() {
            for block in 0..depth {
                let name = format!("layers.{layer}.residual_group.blocks.{block}");
                to.norm(&format!("{name}.norm1"), c);
                add_attention(&mut to, &format!("{name}.attn"), c, heads, w, true);
                to.tensor(format!("{name}.attn.relative_position_index"), [w * w, w * w], Role::Buffer);
                if block % 2 == 1 {
                    to.tensor(format!("{name}.attn_mask"), [1, w * w, w * w], Role::Leftover);
                }
                to.norm(&format!("{name}.norm2"), c);
                to.mlp(&format!("{name}.mlp"), c, self.mlp_hidden);
            }
            self.resi_connection.add(&mut to, &format!("layers.{layer}.conv"), c);
        }
        to.norm("norm", c);
        self.resi_connection.add(&mut to, "conv_after_body", c);
        self.upsampler.add(&mut to, c, self.in_chans);
        to.parts
    }

    pub(super) fn facts(&self) -> Result<ModelFacts, DetectError> {
        let upscale = self.upsampler.scale();
        let scale = facts::scale(ARCHITECTURE, upscale, self.start_unshuffle)?;
        let size_tag = match self.depths.len() {
            ..=4 => "small",
            5..=8 => "medium",
            9.. => "large",
        };
        let num_feat = match self.upsampler {
            Upsampler::PixelShuffle { num_feat, .. } => num_feat,
            _ => 64,
        };
        let mut tags = vec![
            size_tag.to_owned(),
            format!("s{}w{}", self.img_size, self.window_size),
            format!("{num_feat}nf"),
            format!("{}dim", self.embed_dim),
            self.resi_connection.name().to_owned(),
        ];
        if self.start_unshuffle > 1 {
            tags.push(format!("{}unshuf", self.start_unshuffle));
        }
        Ok(ModelFacts {
            scale,
            input_channels: self.in_chans as u32,
            output_channels: self.in_chans as u32,
            size_requirements: SizeRequirements {
                minimum: 16,
                multiple_of: (self.start_unshuffle * self.start_unshuffle) as u32,
                square: false,
            },
            tags,
            hyperparameters: facts::map(json!({
                "img_size": self.img_size,
                "patch_size": 1,
                "in_chans": self.in_chans,
                "embed_dim": self.embed_dim,
                "depths": self.depths,
                "num_heads": self.num_heads,
                "window_size": self.window_size,
                "mlp_ratio": self.mlp_hidden as f64 / self.embed_dim as f64,
                "qkv_bias": true,
                "qk_scale": null,
                "drop_rate": 0.0,
                "attn_drop_rate": 0.0,
                "drop_path_rate": 0.1,
                "ape": false,
                "patch_norm": self.patch_norm,
                "use_checkpoint": false,
                "upscale": upscale,
                "img_range": self.img_range(),
                "upsampler": self.upsampler.name(),
                "resi_connection": self.resi_connection.name(),
                "start_unshuffle": self.start_unshuffle,
            })),
            ..ModelFacts::of(ARCHITECTURE)
        })
    }
}

/// Adds attention in windows of side `window`: queries, keys and values from one linear layer, a bias for each distance, and
/// a linear layer behind.
pub(super) fn add_attention(to: &mut Builder, name: &str, channels: usize, heads: usize, window: usize, bias: bool) {
    let distances = 2 * window - 1;
    to.parameter(format!("{name}.relative_position_bias_table"), [distances * distances, heads]);
    to.linear_if(bias, &format!("{name}.qkv"), 3 * channels, channels);
    to.linear(&format!("{name}.proj"), channels, channels);
}

/// Returns the number of heads from a table with a column for each: they must share the channels evenly.
pub(super) fn heads(from: &Reader<'_>, table: &str, channels: usize) -> Result<usize, DetectError> {
    let what = "the number of heads";
    let [_, heads] = from.sides(table, what)?;
    match whole(channels, heads) {
        Some(_) => Ok(heads),
        None => Err(from.odd(table, what)),
    }
}

/// Returns the whole number whose square is nearest, at least 1.
fn nearest_root(square: usize) -> usize {
    ((square as f64).sqrt().round_ties_even() as usize).max(1)
}
