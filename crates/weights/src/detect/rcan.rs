//! RCAN: groups of residual blocks that weigh their channels (Zhang et al. 2018, arXiv 1807.02758).

use serde_json::json;

use super::head::{add_pixel_shuffles, pixel_shuffles, product};
use super::parts::{Builder, Part};
use super::shapes::{Reader, root, whole};
use super::{DetectError, ModelFacts, SizeRequirements, facts};

pub(super) const ARCHITECTURE: &str = "RCAN";

/// The sizes of an RCAN network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rcan {
    /// The channels of the picture, in and out.
    pub n_colors: usize,
    /// The channels of the trunk.
    pub n_feats: usize,
    /// How many groups there are: `body.0` to `body.{n_resgroups - 1}`, and a convolution behind them.
    pub n_resgroups: usize,
    /// How many blocks a group has, and a convolution behind them.
    pub n_resblocks: usize,
    /// The channels within the channel attention of a block.
    pub squeezed: usize,
    /// The side of the kernels, but for those of the pixel shuffles, which are 3x3.
    pub kernel_size: usize,
    /// The factors of the pixel shuffles behind `tail.0.0`, `tail.0.2`, ...
    pub steps: Vec<usize>,
    /// Whether the picture, from 0 to 255, goes through the 1x1 convolutions `sub_mean` and `add_mean` on its way in and out;
    /// else it stays as it is, from 0 to 1.
    pub norm: bool,
    /// By how much the sides of the picture are divided, its pixels becoming channels, before the first convolution, which is
    /// then called `head.1`.
    pub unshuffle: Option<usize>,
}

impl Rcan {
    pub(super) fn infer(from: &Reader<'_>) -> Result<Self, DetectError> {
        let is_unshuffled = from.length("head")? > 1;
        let head = if is_unshuffled { "head.1" } else { "head.0" };
        let (n_feats, inputs, kernel_size) = from.odd_kernel(head)?;
        let (n_colors, _) = from.convolution("tail.1")?;
        let factor = || whole(inputs, n_colors).and_then(root).filter(|factor| matches!(factor, 2 | 4));
        let unshuffle = match is_unshuffled {
            true => Some(factor().ok_or_else(|| from.odd(&format!("{head}.weight"), "the scale"))?),
            false => None,
        };
        let (squeezed, _) = from.convolution("body.0.body.0.body.3.conv_du.0")?;
        // The last of each is the convolution behind them.
        let n_resgroups = from.count("body")?.saturating_sub(1);
        let n_resblocks = from.shared(n_resgroups, |group| format!("body.{group}.body"))?.saturating_sub(1);
        Ok(Self {
            n_colors,
            n_feats,
            n_resgroups,
            n_resblocks,
            squeezed,
            kernel_size,
            steps: pixel_shuffles(from, "tail.0", n_feats)?,
            norm: from.has("sub_mean.weight"),
            unshuffle,
        })
    }

    /// Returns the name of the first convolution.
    pub fn head(&self) -> &'static str {
        if self.unshuffle.is_some() { "head.1" } else { "head.0" }
    }

    pub(super) fn parts(&self) -> Vec<Part> {
        let Self { n_colors, n_feats: c, n_resgroups, n_resblocks, squeezed, kernel_size: k, .. } = *self;
        let factor = self.unshuffle.unwrap_or(1);
        let mut to = Builder::default();
        if self.norm {
            to.conv("sub_mean", 3, 3, 1);
            to.conv("add_mean", 3, 3, 1);
        }
        to.conv(self.head(), c, n_colors * factor * factor, k);
        for group in (0..n_resgroups).map(|group| format!("body.{group}.body")) {
            for block in (0..n_resblocks).map(|block| format!("{group}.{block}.body")) {
                to.conv(&format!("{block}.0"), c, c, k);
                to.conv(&format!("{block}.2"), c, c, k);
                to.conv(&format!("{block}.3.conv_du.0"), squeezed, c, 1);
                to.conv(&format!("{block}.3.conv_du.2"), c, squeezed, 1);
            }
            to.conv(&format!("{group}.{n_resblocks}"), c, c, k);
        }
        to.conv(&format!("body.{n_resgroups}"), c, c, k);
        add_pixel_shuffles(&mut to, "tail.0", c, &self.steps);
        to.conv("tail.1", n_colors, c, k);
        to.parts
    }

    pub(super) fn facts(&self) -> Result<ModelFacts, DetectError> {
        let Self { n_colors, n_feats, n_resgroups, n_resblocks, squeezed, kernel_size, norm, unshuffle, .. } = *self;
        let scale = facts::scale(ARCHITECTURE, product(&self.steps), unshuffle.unwrap_or(1))?;
        let mut tags = vec![format!("{n_feats}nf"), format!("{n_resgroups}nrg"), format!("{n_resblocks}nrb")];
        tags.extend(unshuffle.map(|_| "unshuffle".to_owned()));
        Ok(ModelFacts {
            scale,
            input_channels: n_colors as u32,
            output_channels: n_colors as u32,
            size_requirements: SizeRequirements::NONE,
            tags,
            hyperparameters: facts::map(json!({
                "scale": scale,
                "n_resgroups": n_resgroups,
                "n_resblocks": n_resblocks,
                "n_feats": n_feats,
                "n_colors": n_colors,
                "rgb_range": 255,
                "norm": norm,
                "kernel_size": kernel_size,
                "reduction": n_feats / squeezed,
                "res_scale": 1,
                "act_mode": "relu",
                "unshuffle_mod": unshuffle.is_some(),
            })),
            ..ModelFacts::of(ARCHITECTURE)
        })
    }
}
