//! PLKSR and RealPLKSR: large kernels on a part of the channels (Lee et al. 2024, arXiv 2404.11848).

use serde_json::{Value, json};

use super::dysample::DySample;
use super::parts::{Builder, Part};
use super::shapes::{Reader, whole};
use super::{DetectError, ModelFacts, SizeRequirements, facts};

pub(super) const ARCHITECTURE: &str = "PLKSR";

/// The channels of the picture, in and out.
const COLOURS: usize = 3;

/// The sizes of a PLKSR network of either kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plksr {
    /// The channels of the trunk.
    pub dim: usize,
    /// How many blocks there are: `feats.1` to `feats.{n_blocks}`.
    pub n_blocks: usize,
    /// How many times wider and higher the output is.
    pub upscaling_factor: usize,
    /// The side of the large kernel, in pixels.
    pub kernel_size: usize,
    /// How many channels, the first ones, the large kernel is applied to.
    pub split: usize,
    /// Whether each block has the element-wise attention `attn.f.0`.
    pub use_ea: bool,
    /// Which of the two networks it is.
    pub kind: PlksrKind,
}

/// What the two networks called PLKSR do not share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlksrKind {
    /// The paper's: `channe_mixer` (spelled so) with GELU and no norms, then a pixel shuffle.
    Plain {
        /// The sides of the kernels of the two convolutions of the mixer: 3 and 1, 1 and 3, or 3 and 3.
        mixer: [usize; 2],
    },
    /// The one made for real pictures: `channel_mixer` with Mish.
    Real {
        /// Whether the norm of a block is `layer_norm` at its start instead of the group norm `norm` at its end.
        layer_norm: bool,
        /// What stands in for the pixel shuffle, under `to_img`.
        dysample: Option<DySample>,
    },
}

impl Plksr {
    /// The groups of the group norm of [`PlksrKind::Real`].
    pub const NORM_GROUPS: usize = 4;

    pub(super) fn infer(from: &Reader<'_>) -> Result<Self, DetectError> {
        let (dim, _) = from.convolution("feats.0")?;
        if !from.has("feats.1.lk.conv.weight") {
            // How far apart the points of a sparse kernel lie is not in the file.
            return Err(DetectError::NotSupported { architecture: "sparse-kernel PLKSR" });
        }
        let (split, _, kernel_size) = from.odd_kernel("feats.1.lk.conv")?;
        if split > dim {
            return Err(from.odd("feats.1.lk.conv.weight", "a part of the channels"));
        }
        let length = from.length("feats")?;
        let last = format!("feats.{}", length.saturating_sub(1));
        let is_plain = from.has("feats.1.channe_mixer.0.weight");
        let kind = if is_plain {
            let (_, _, first) = from.kernel("feats.1.channe_mixer.0")?;
            let (_, _, second) = from.kernel("feats.1.channe_mixer.2")?;
            if !matches!([first, second], [3, 1] | [1, 3] | [3, 3]) {
                return Err(from.odd("feats.1.channe_mixer.2.weight", "the kind of channel mixer"));
            }
            PlksrKind::Plain { mixer: [first, second] }
        } else {
            let layer_norm = from.has("feats.1.layer_norm.bias");
            if !layer_norm && whole(dim, Self::NORM_GROUPS).is_none() {
                return Err(from.odd("feats.0.weight", "how 4 groups share the channels"));
            }
            let groups = |scale| if scale % 2 == 1 { COLOURS } else { 4 };
            let dysample = from.has("to_img.init_pos").then(|| DySample::infer(from, "to_img", groups)).transpose()?;
            PlksrKind::Real { layer_norm, dysample }
        };
        // Behind the blocks of the second kind, a dropout has a number of its own.
        let around = if is_plain { 2 } else { 3 };
        Ok(Self {
            dim,
            n_blocks: length.saturating_sub(around),
            upscaling_factor: from.shuffle_to(&last, COLOURS)?,
            kernel_size,
            split,
            use_ea: from.has("feats.1.attn.f.0.weight"),
            kind,
        })
    }

    /// Returns the number of the last convolution in `feats`.
    pub fn last(&self) -> usize {
        match self.kind {
            PlksrKind::Plain { .. } => self.n_blocks + 1,
            PlksrKind::Real { .. } => self.n_blocks + 2,
        }
    }

    pub(super) fn parts(&self) -> Vec<Part> {
        let Self { dim, split, upscaling_factor, .. } = *self;
        let mut to = Builder::default();
        to.conv("feats.0", dim, COLOURS, 3);
        for block in (1..=self.n_blocks).map(|block| format!("feats.{block}")) {
            match self.kind {
                PlksrKind::Plain { mixer: [first, second] } => {
                    to.conv(&format!("{block}.channe_mixer.0"), 2 * dim, dim, first);
                    to.conv(&format!("{block}.channe_mixer.2"), dim, 2 * dim, second);
                }
                PlksrKind::Real { layer_norm, .. } => {
                    to.norm(&format!("{block}.{}", if layer_norm { "layer_norm" } else { "norm" }), dim);
                    to.conv(&format!("{block}.channel_mixer.0"), 2 * dim, dim, 3);
                    to.conv(&format!("{block}.channel_mixer.2"), dim, 2 * dim, 3);
                }
            }
            to.conv(&format!("{block}.lk.conv"), split, split, self.kernel_size);
            if self.use_ea {
                to.conv(&format!("{block}.attn.f.0"), dim, dim, 3);
            }
            to.conv(&format!("{block}.refine"), dim, dim, 1);
        }
        to.conv(&format!("feats.{}", self.last()), COLOURS * upscaling_factor * upscaling_factor, dim, 3);
        if let PlksrKind::Real { dysample: Some(dysample), .. } = self.kind {
            // It takes what the last convolution gives, and enlarges as much as a pixel shuffle would.
            let in_channels = COLOURS * upscaling_factor * upscaling_factor;
            DySample { in_channels, out_ch: COLOURS, scale: upscaling_factor, ..dysample }.add(&mut to, "to_img");
        }
        to.parts
    }

    pub(super) fn facts(&self) -> ModelFacts {
        let Self { dim, n_blocks, upscaling_factor, kernel_size, split, use_ea, kind } = *self;
        let mut tags = vec![format!("{dim}dim"), format!("{n_blocks}nb"), format!("{kernel_size}ks")];
        let mut hyperparameters = facts::map(json!({
            "dim": dim,
            "n_blocks": n_blocks,
            "upscaling_factor": upscaling_factor,
            "kernel_size": kernel_size,
            "split_ratio": split as f64 / dim as f64,
            "use_ea": use_ea,
        }));
        let more: Value = match kind {
            PlksrKind::Plain { mixer } => {
                let ccm_type = match mixer {
                    [3, 1] => "CCM",
                    [1, 3] => "ICCM",
                    _ => "DCCM",
                };
                tags.push(ccm_type.to_owned());
                json!({
                    "ccm_type": ccm_type,
                    "lk_type": "PLK",
                    "use_max_kernel": false,
                    "sparse_kernels": [5, 5, 5, 5],
                    "sparse_dilations": [1, 2, 3, 4],
                    "with_idt": false,
                })
            }
            PlksrKind::Real { layer_norm, dysample } => {
                tags.push("Real".to_owned());
                tags.extend(dysample.is_some().then(|| "DySample".to_owned()));
                tags.extend(layer_norm.then(|| "LayerNorm".to_owned()));
                json!({
                    "norm_groups": Self::NORM_GROUPS,
                    "dropout": 0,
                    "dysample": dysample.is_some(),
                    "layer_norm": layer_norm,
                })
            }
        };
        hyperparameters.extend(facts::map(more));
        ModelFacts {
            scale: upscaling_factor as u32,
            input_channels: COLOURS as u32,
            output_channels: COLOURS as u32,
            size_requirements: SizeRequirements::NONE,
            tags,
            hyperparameters,
            ..ModelFacts::of(ARCHITECTURE)
        }
    }
}
