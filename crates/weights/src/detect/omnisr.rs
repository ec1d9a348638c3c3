//! Omni-SR: attention within windows, over grids and over channels in turn (Wang et al. 2023, arXiv 2304.10244).

use serde_json::json;

use super::parts::{Builder, Part};
use super::shapes::{Reader, root, whole};
use super::{DetectError, ModelFacts, SizeRequirements, facts};

pub(super) const ARCHITECTURE: &str = "OmniSR";

/// The sizes of an Omni-SR network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OmniSr {
    /// The channels of the picture that goes in.
    pub num_in_ch: usize,
    /// The channels of the picture that comes out.
    pub num_out_ch: usize,
    /// The channels of the trunk.
    pub num_feat: usize,
    /// How many groups of blocks there are.
    pub res_num: usize,
    /// How many blocks a group has.
    pub block_num: usize,
    /// Whether attention has a bias for each distance.
    pub pe: bool,
    /// The side of a window, in pixels.
    pub window_size: usize,
    /// How many times wider and higher the output is.
    pub up_scale: usize,
    /// Whether the convolutions outside of the blocks have a bias.
    pub bias: bool,
}

impl OmniSr {
    /// How many heads every attention has.
    pub const HEADS: usize = 4;

    pub(super) fn infer(from: &Reader<'_>) -> Result<Self, DetectError> {
        let (num_feat, num_in_ch) = from.convolution("input")?;
        if whole(num_feat, Self::HEADS).is_none() {
            return Err(from.odd("input.weight", "how 4 heads share the channels"));
        }
        let (num_out_ch, up_scale) = from.shuffle("up.0", num_in_ch)?;
        let res_num = from.count("residual_layer")?;
        let parts = from.shared(res_num, |group| format!("residual_layer.{group}.residual_layer"))?;
        let table = "residual_layer.0.residual_layer.0.layer.2.fn.rel_pos_bias.weight";
        let pe = from.has(table);
        let window_size = if pe {
            let what = "the size of the window";
            let [distances, _] = from.sides(table, what)?;
            let side = root(distances).filter(|side| side % 2 == 1).ok_or_else(|| from.odd(table, what))?;
            side.div_ceil(2)
        } else {
            8
        };
        Ok(Self {
            num_in_ch,
            num_out_ch,
            num_feat,
            res_num,
            block_num: parts.saturating_sub(1), // the last of the blocks is the convolution behind them
            pe,
            window_size,
            up_scale,
            bias: from.has("input.bias"),
        })
    }

    /// Says whether `name` is what a tool that counts operations left behind.
    pub(super) fn ignores(name: &str) -> bool {
        name.ends_with("total_ops") || name.ends_with("total_params")
    }

    /// Returns the channels within the spatial attention at the end of a group.
    pub fn esa_channels(&self) -> usize {
        (self.num_feat / 4).max(16)
    }

    pub(super) fn parts(&self) -> Vec<Part> {
        let c = self.num_feat;
        let mut to = Builder::default();
        to.conv_if(self.bias, "input", c, self.num_in_ch, 3);
        for group in (0..self.res_num).map(|group| format!("residual_layer.{group}")) {
            for block in 0..self.block_num {
                self.add_block(&mut to, &format!("{group}.residual_layer.{block}.layer"));
            }
            to.conv_if(self.bias, &format!("{group}.residual_layer.{}", self.block_num), c, c, 1);
            let (esa, f) = (format!("{group}.esa"), self.esa_channels());
            to.conv(&format!("{esa}.conv1"), f, c, 1);
            to.conv(&format!("{esa}.conv_f"), f, f, 1);
            to.conv(&format!("{esa}.conv2"), f, f, 3);
            to.conv(&format!("{esa}.conv3"), f, f, 3);
            to.conv(&format!("{esa}.conv4"), c, f, 1);
        }
        to.conv_if(self.bias, "output", c, c, 3);
        to.conv_if(self.bias, "up.0", self.num_out_ch * self.up_scale * self.up_scale, c, 3);
        to.parts
    }

    fn add_block(&self, to: &mut Builder, layer: &str) {
        let (c, distances) = (self.num_feat, 2 * self.window_size - 1);
        to.conv(&format!("{layer}.0.fn.0"), c, c, 1);
        to.conv(&format!("{layer}.0.fn.2"), c, 1, 3);
        to.linear_if(false, &format!("{layer}.0.fn.4.gate.1"), c / 4, c);
        to.linear_if(false, &format!("{layer}.0.fn.4.gate.3"), c, c / 4);
        to.conv(&format!("{layer}.0.fn.5"), c, c, 1);
        for attention in [2, 8].map(|i| format!("{layer}.{i}")) {
            to.norm(&format!("{attention}.norm"), c);
            to.linear_if(false, &format!("{attention}.fn.to_qkv"), 3 * c, c);
            to.linear_if(false, &format!("{attention}.fn.to_out.0"), c, c);
            if self.pe {
                to.parameter(format!("{attention}.fn.rel_pos_bias.weight"), [distances * distances, Self::HEADS]);
            }
        }
        for channels in [5, 11].map(|i| format!("{layer}.{i}")) {
            to.norm(&format!("{channels}.norm"), c);
            to.parameter(format!("{channels}.fn.temperature"), [Self::HEADS, 1, 1]);
            to.conv_if(false, &format!("{channels}.fn.qkv"), 3 * c, c, 1);
            to.conv_if(false, &format!("{channels}.fn.qkv_dwconv"), 3 * c, 1, 3);
            to.conv_if(false, &format!("{channels}.fn.project_out"), c, c, 1);
        }
        for feed_forward in [4, 6, 10, 12].map(|i| format!("{layer}.{i}")) {
            to.norm(&format!("{feed_forward}.norm"), c);
            to.conv_if(false, &format!("{feed_forward}.fn.project_in"), 2 * c, c, 1);
            to.conv_if(false, &format!("{feed_forward}.fn.dwconv"), 2 * c, 1, 3);
            to.conv_if(false, &format!("{feed_forward}.fn.project_out"), c, c, 1);
        }
    }

    pub(super) fn facts(&self) -> ModelFacts {
        ModelFacts {
            scale: self.up_scale as u32,
            input_channels: self.num_in_ch as u32,
            output_channels: self.num_out_ch as u32,
            size_requirements: SizeRequirements { minimum: 16, ..SizeRequirements::NONE },
            tags: vec![format!("{}nf", self.num_feat), format!("w{}", self.window_size), format!("{}nr", self.res_num)],
            hyperparameters: facts::map(json!({
                "num_in_ch": self.num_in_ch,
                "num_out_ch": self.num_out_ch,
                "num_feat": self.num_feat,
                "block_num": self.block_num,
                "pe": self.pe,
                "window_size": self.window_size,
                "res_num": self.res_num,
                "up_scale": self.up_scale,
                "bias": self.bias,
            })),
            ..ModelFacts::of(ARCHITECTURE)
        }
    }
}
