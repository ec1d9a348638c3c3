//! MoSR: gated convolutional blocks after MambaOut (Yu and Wang 2024, arXiv 2405.07992).

use serde_json::json;

use super::dysample::DySample;
use super::parts::{Builder, Part};
use super::shapes::{Reader, whole};
use super::{DetectError, ModelFacts, SizeRequirements, facts};

pub(super) const ARCHITECTURE: &str = "MoSR";

/// The sizes of a MoSR network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MoSr {
    /// The channels of the picture that goes in.
    pub in_ch: usize,
    /// The channels of the picture that comes out.
    pub out_ch: usize,
    /// The channels of the trunk.
    pub dim: usize,
    /// How many blocks there are, `gblocks.1` to `gblocks.{n_block}`; behind them come the convolutions `n_block + 1`, `+ 3` and
    /// `+ 5`.
    pub n_block: usize,
    /// The channels that gate, and those that are gated, within a block.
    pub hidden: usize,
    /// How many of those that are gated, the last ones, go through the depthwise convolution first.
    pub conv_channels: usize,
    /// The side of its kernel, in pixels.
    pub kernel_size: usize,
    /// How many times wider and higher the output is.
    pub upscale: usize,
    /// How the picture gets larger, under `upsampler`.
    pub upsampler: MoSrUpsampler,
}

/// How a MoSR network makes the picture larger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MoSrUpsampler {
    /// The convolution `upsampler.0` and a pixel shuffle (`ps`).
    PixelShuffle,
    /// The convolution `upsampler.in_to_k` to eight pictures, their mean, and a pixel shuffle (`gps`).
    Ensemble,
    /// [`DySample`] (`dys`).
    DySample(DySample),
}

impl MoSrUpsampler {
    fn name(&self) -> &'static str {
        match self {
            Self::PixelShuffle => "ps",
            Self::Ensemble => "gps",
            Self::DySample(_) => "dys",
        }
    }
}

impl MoSr {
    /// How many pictures [`MoSrUpsampler::Ensemble`] takes the mean of.
    pub const PICTURES: usize = 8;

    pub(super) fn infer(from: &Reader<'_>) -> Result<Self, DetectError> {
        let (dim, in_ch) = from.convolution("gblocks.0")?;
        let (conv_channels, _, kernel_size) = from.odd_kernel("gblocks.1.conv")?;
        let (fc1, _) = from.convolution("gblocks.1.fc1")?;
        let hidden = whole(fc1, 2).filter(|hidden| *hidden >= conv_channels);
        let hidden = hidden.ok_or_else(|| from.odd("gblocks.1.fc1.weight", "the number of hidden channels"))?;
        let (out_ch, upscale, upsampler) = if from.has("upsampler.init_pos") {
            let dysample = DySample::infer(from, "upsampler", |_| 4)?;
            (dysample.out_ch, dysample.scale, MoSrUpsampler::DySample(dysample))
        } else if from.has("upsampler.in_to_k.weight") {
            (in_ch, from.shuffle_to("upsampler.in_to_k", Self::PICTURES * in_ch)?, MoSrUpsampler::Ensemble)
        } else {
            (in_ch, from.shuffle_to("upsampler.0", in_ch)?, MoSrUpsampler::PixelShuffle)
        };
        // Behind the first convolution and the blocks come three convolutions, with an activation behind the first two.
        let n_block = from.length("gblocks")?.saturating_sub(6);
        Ok(Self { in_ch, out_ch, dim, n_block, hidden, conv_channels, kernel_size, upscale, upsampler })
    }

    pub(super) fn parts(&self) -> Vec<Part> {
        let Self { in_ch, out_ch, dim, n_block, hidden, conv_channels, kernel_size, upscale, upsampler } = *self;
        let mut to = Builder::default();
        to.conv("gblocks.0", dim, in_ch, 3);
        for block in (1..=n_block).map(|block| format!("gblocks.{block}")) {
            to.norm(&format!("{block}.norm"), dim);
            to.conv(&format!("{block}.fc1"), 2 * hidden, dim, 3);
            to.conv(&format!("{block}.conv"), conv_channels, 1, kernel_size);
            to.conv(&format!("{block}.fc2"), dim, hidden, 3);
        }
        to.conv(&format!("gblocks.{}", n_block + 1), 2 * dim, dim, 3);
        to.conv(&format!("gblocks.{}", n_block + 3), dim, 2 * dim, 3);
        to.conv(&format!("gblocks.{}", n_block + 5), dim, dim, 1);
        to.conv("shortcut.block.0", dim, in_ch, 3);
        to.conv("shortcut.block.2", dim, dim, 3);
        to.conv("shortcut.conv11", dim, in_ch, 1);
        match upsampler {
            MoSrUpsampler::PixelShuffle => to.conv("upsampler.0", out_ch * upscale * upscale, dim, 3),
            MoSrUpsampler::Ensemble => {
                to.conv("upsampler.in_to_k", Self::PICTURES * out_ch * upscale * upscale, dim, 3)
            }
            MoSrUpsampler::DySample(dysample) => DySample { in_channels: dim, ..dysample }.add(&mut to, "upsampler"),
        }
        to.parts
    }

    pub(super) fn facts(&self) -> ModelFacts {
        let Self { in_ch, out_ch, dim, n_block, hidden, conv_channels, kernel_size, upscale, upsampler } = *self;
        ModelFacts {
            scale: upscale as u32,
            input_channels: in_ch as u32,
            output_channels: out_ch as u32,
            size_requirements: SizeRequirements::NONE,
            tags: Vec::new(),
            hyperparameters: facts::map(json!({
                "in_ch": in_ch,
                "out_ch": out_ch,
                "upscale": upscale,
                "n_block": n_block,
                "dim": dim,
                "upsampler": upsampler.name(),
                "drop_path": 0.0,
                "kernel_size": kernel_size,
                "expansion_ratio": hidden as f64 / dim as f64,
                "conv_ratio": conv_channels as f64 / dim as f64,
            })),
            ..ModelFacts::of(ARCHITECTURE)
        }
    }
}
