//! DAT: attention over space and over channels in turn, each with a branch of convolution (Chen et al. 2023, arXiv 2308.03364).

use serde_json::json;

use super::head::{Resi, Upsampler};
use super::parts::{Builder, Part, Role};
use super::shapes::{Reader, root, whole};
use super::{DetectError, ModelFacts, SizeRequirements, facts};

pub(super) const ARCHITECTURE: &str = "DAT";

/// The tensor that lists the distances between pixels of a window, a row (dy, dx) for each: the last one holds the largest.
const DISTANCES: &str = "layers.0.blocks.0.attn.attns.0.rpe_biases";

/// The sizes of a DAT network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dat {
    /// The channels of the picture, in and out.
    pub in_chans: usize,
    /// The side of the pictures it was trained on, as far as can be told.
    pub img_size: usize,
    /// The channels of the trunk.
    pub embed_dim: usize,
    /// How many blocks each layer has: those of even number attend over space, the others over channels.
    pub depth: Vec<usize>,
    /// How many heads the attention of each layer has; over space, each of the two branches has half of them.
    pub num_heads: Vec<usize>,
    /// Rows and columns of the windows of the first branch; those of the second are turned.
    pub split_size: [usize; 2],
    /// The channels behind the first linear layer of a block; half of them reach the second.
    pub ffn_hidden: usize,
    /// Whether queries, keys and values have a bias.
    pub qkv_bias: bool,
    /// What stands behind the blocks of a layer, and behind all layers.
    pub resi_connection: Resi,
    /// How the picture gets larger.
    pub upsampler: Upsampler,
}

impl Dat {
    /// Tells the sizes from the shapes. Which side of a window is which cannot be told from them: the shorter one is taken to
    /// be the rows, as in every published model, until [`Self::turn`] knows better.
    pub(super) fn infer(from: &Reader<'_>) -> Result<Self, DetectError> {
        let (embed_dim, in_chans) = from.convolution("conv_first")?;
        let layers = from.count("layers")?;
        let depths = (0..layers).map(|layer| from.count(&format!("layers.{layer}.blocks")));
        let depth: Vec<usize> = depths.collect::<Result<_, _>>()?;
        let heads = depth.iter().enumerate().map(|(layer, &depth)| heads(from, layer, depth, embed_dim));
        let num_heads = heads.collect::<Result<_, _>>()?;
        let first = "layers.0.blocks.0";
        let what = "the number of channels";
        let (ffn_hidden, _) = from.linear(&format!("{first}.ffn.fc1"))?;
        if ffn_hidden % 2 == 1 {
            return Err(from.odd(&format!("{first}.ffn.fc1.weight"), what));
        }
        if embed_dim % 2 == 1 {
            return Err(from.odd("conv_first.weight", what));
        }
        let mask = from.shapes.get("layers.0.blocks.2.attn.attn_mask_0");
        let trained_on = mask.and_then(|mask| mask[..].first_chunk::<2>());
        let img_size = trained_on.map_or(64, |[windows, pixels]| windows.saturating_mul(*pixels).isqrt());
        Ok(Self {
            in_chans,
            img_size,
            embed_dim,
            depth,
            num_heads,
            split_size: split_size(from)?,
            ffn_hidden,
            qkv_bias: from.has(&format!("{first}.attn.qkv.bias")),
            resi_connection: Resi::infer(from, "conv_after_body", false)?,
            upsampler: Upsampler::infer(from, in_chans)?,
        })
    }

    /// Returns the tensor whose last row says which side of a window is which, if the sides differ.
    pub(super) fn distances(&self) -> Option<&'static str> {
        (self.split_size[0] != self.split_size[1]).then_some(DISTANCES)
    }

    /// Turns the windows if the longest distance within them, one less than their sides, says so.
    pub(super) fn turn(&mut self, longest: [f32; 2]) {
        let [rows, columns] = self.split_size;
        if longest.map(|distance| f64::from(distance) + 1.0) == [columns as f64, rows as f64] {
            self.split_size = [columns, rows];
        }
    }

    /// Returns the channels within the network that gives each distance its bias.
    pub fn pos_dim(&self) -> usize {
        self.embed_dim / 2 / 4 / 4
    }

    pub(super) fn parts(&self) -> Vec<Part> {
        let c = self.embed_dim;
        let mut to = Builder::default();
        to.conv("conv_first", c, self.in_chans, 3);
        to.norm("before_RG.1", c);
        for (layer, (&depth, &heads)) in self.depth.iter().zip(&self.num_heads).enumerate() {
            for block in 0..depth {
                let name = format!("layers.{layer}.blocks.{block}");
                let half = self.ffn_hidden / 2;
                to.norm(&format!("{name}.norm1"), c);
                self.add_attention(&mut to, &format!("{name}.attn"), block, heads);
                to.linear(&format!("{name}.ffn.fc1"), self.ffn_hidden, c);
                to.norm(&format!("{name}.ffn.sg.norm"), half);
                to.conv(&format!("{name}.ffn.sg.conv"), half, 1, 3);
                to.linear(&format!("{name}.ffn.fc2"), c, half);
                to.norm(&format!("{name}.norm2"), c);
            }
            self.resi_connection.add(&mut to, &format!("layers.{layer}.conv"), c);
        }
        to.norm("norm", c);
        self.resi_connection.add(&mut to, "conv_after_body", c);
        self.upsampler.add(&mut to, c, self.in_chans);
        to.parts
    }

    fn add_attention(&self, to: &mut Builder, name: &str, block: usize, heads: usize) {
        let c = self.embed_dim;
        to.linear_if(self.qkv_bias, &format!("{name}.qkv"), 3 * c, c);
        to.linear(&format!("{name}.proj"), c, c);
        if block.is_multiple_of(2) {
            let [rows, columns] = self.split_size;
            let pixels = rows * columns;
            for branch in 0..2 {
                let attention = format!("{name}.attns.{branch}");
                let distances = (2 * rows - 1) * (2 * columns - 1);
                to.tensor(format!("{attention}.rpe_biases"), [distances, 2], Role::Buffer);
                to.tensor(format!("{attention}.relative_position_index"), [pixels, pixels], Role::Buffer);
                self.add_position_bias(to, &format!("{attention}.pos"), heads / 2);
                to.tensor(format!("{name}.attn_mask_{branch}"), [1, pixels, pixels], Role::Leftover);
            }
        } else {
            to.parameter(format!("{name}.temperature"), [heads, 1, 1]);
        }
        to.conv(&format!("{name}.dwconv.0"), c, 1, 3);
        to.batch_norm(&format!("{name}.dwconv.1"), c);
        to.conv(&format!("{name}.channel_interaction.1"), c / 8, c, 1);
        to.batch_norm(&format!("{name}.channel_interaction.2"), c / 8);
        to.conv(&format!("{name}.channel_interaction.4"), c, c / 8, 1);
        to.conv(&format!("{name}.spatial_interaction.0"), c / 16, c, 1);
        to.batch_norm(&format!("{name}.spatial_interaction.1"), c / 16);
        to.conv(&format!("{name}.spatial_interaction.3"), 1, c / 16, 1);
    }

    fn add_position_bias(&self, to: &mut Builder, name: &str, heads: usize) {
        let d = self.pos_dim();
        to.linear(&format!("{name}.pos_proj"), d, 2);
        for (step, outputs) in [(1, d), (2, d), (3, heads)] {
            to.norm(&format!("{name}.pos{step}.0"), d);
            to.linear(&format!("{name}.pos{step}.2"), outputs, d);
        }
    }

    pub(super) fn facts(&self) -> Result<ModelFacts, DetectError> {
        let upscale = self.upsampler.scale();
        let [rows, columns] = self.split_size;
        let size_tag = match (self.depth.len(), self.split_size) {
            (..4, _) => "light",
            (_, [8, 16]) => "small",
            _ => "medium",
        };
        let num_feat = match self.upsampler {
            Upsampler::PixelShuffle { num_feat, .. } | Upsampler::NearestConv { num_feat, .. } => num_feat,
            Upsampler::None | Upsampler::Direct { .. } => self.embed_dim,
        };
        let expansion_factor = self.ffn_hidden as f64 / self.embed_dim as f64;
        Ok(ModelFacts {
            scale: facts::scale(ARCHITECTURE, upscale, 1)?,
            input_channels: self.in_chans as u32,
            output_channels: self.in_chans as u32,
            size_requirements: SizeRequirements { minimum: 16, ..SizeRequirements::NONE },
            tags: vec![
                size_tag.to_owned(),
                format!("s{}|{rows}x{columns}", self.img_size),
                format!("{num_feat}nf"),
                format!("{}dim", self.embed_dim),
                format!("{expansion_factor:?}ef"),
                self.resi_connection.name().to_owned(),
            ],
            hyperparameters: facts::map(json!({
                "img_size": self.img_size,
                "in_chans": self.in_chans,
                "embed_dim": self.embed_dim,
                "split_size": self.split_size,
                "depth": self.depth,
                "num_heads": self.num_heads,
                "expansion_factor": expansion_factor,
                "qkv_bias": self.qkv_bias,
                "qk_scale": null,
                "drop_rate": 0.0,
                "attn_drop_rate": 0.0,
                "drop_path_rate": 0.1,
                "use_chk": false,
                "upscale": upscale,
                "img_range": 1.0,
                "resi_connection": self.resi_connection.name(),
                "upsampler": self.upsampler.name(),
            })),
            ..ModelFacts::of(ARCHITECTURE)
        })
    }
}

/// Returns the number of heads of a layer: a block over channels has a number for each, one over space a bias for each of half.
fn heads(from: &Reader<'_>, layer: usize, depth: usize, channels: usize) -> Result<usize, DetectError> {
    let what = "the number of heads";
    let (tensor, heads) = if depth >= 2 {
        let tensor = format!("layers.{layer}.blocks.1.attn.temperature");
        let [heads, _, _] = from.sides(&tensor, what)?;
        (tensor, heads)
    } else {
        let last = format!("layers.{layer}.blocks.0.attn.attns.0.pos.pos3.2");
        (format!("{last}.weight"), 2 * from.linear(&last)?.0)
    };
    // Over space, half of the heads share half of the channels.
    match heads.is_multiple_of(2) && whole(channels, heads).is_some() {
        true => Ok(heads),
        false => Err(from.odd(&tensor, what)),
    }
}

/// Returns the sides of a window, the shorter one first, from the numbers of its pixels and of the distances between them.
///
/// For sides s and t there are p = s t pixels and n = (2s - 1)(2t - 1) distances, so that s + t = (4p + 1 - n) / 2.
fn split_size(from: &Reader<'_>) -> Result<[usize; 2], DetectError> {
    let (index, what) = ("layers.0.blocks.0.attn.attns.0.relative_position_index", "the size of the window");
    let [pixels, _] = from.sides(index, what)?;
    let [distances, _] = from.sides(DISTANCES, what)?;
    let sides = || {
        let sum = whole((4 * pixels + 1).checked_sub(distances)?, 2)?;
        let difference = match (sum * sum).checked_sub(4 * pixels)? {
            0 => 0,
            square => root(square)?,
        };
        let shorter = whole(sum.checked_sub(difference)?, 2).filter(|side| *side > 0)?;
        Some([shorter, whole(pixels, shorter)?])
    };
    sides().ok_or_else(|| from.odd(DISTANCES, what))
}
