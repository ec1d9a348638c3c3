//! What the transformers share: the convolution behind a row of blocks, and the head that makes the picture larger.

use super::DetectError;
use super::parts::Builder;
use super::shapes::Reader;

/// What follows a row of transformer blocks before its input is added (`resi_connection`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resi {
    /// One 3x3 convolution.
    Conv1,
    /// A 3x3, a 1x1 and a 3x3 convolution over a quarter of the channels, numbered 0, 2 and 4.
    Conv3,
    /// Nothing.
    Identity,
}

impl Resi {
    /// Tells it from the convolution `name`; nothing is there only if `identity` is allowed.
    pub(super) fn infer(from: &Reader<'_>, name: &str, identity: bool) -> Result<Self, DetectError> {
        let weight = format!("{name}.weight");
        if from.has(&weight) {
            Ok(Self::Conv1)
        } else if from.has(&format!("{name}.0.weight")) {
            Ok(Self::Conv3)
        } else if identity {
            Ok(Self::Identity)
        } else {
            Err(from.missing(weight))
        }
    }

    /// Adds the convolutions called `name`.
    pub(super) fn add(self, to: &mut Builder, name: &str, channels: usize) {
        let quarter = channels / 4;
        match self {
            Self::Conv1 => to.conv(name, channels, channels, 3),
            Self::Conv3 => {
                to.conv(&format!("{name}.0"), quarter, channels, 3);
                to.conv(&format!("{name}.2"), quarter, quarter, 1);
                to.conv(&format!("{name}.4"), channels, quarter, 3);
            }
            Self::Identity => {}
        }
    }

    /// Returns its name in the hyperparameters.
    pub fn name(self) -> &'static str {
        match self {
            Self::Conv1 => "1conv",
            Self::Conv3 => "3conv",
            Self::Identity => "identity",
        }
    }
}

/// How features become a larger picture (`upsampler`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Upsampler {
    /// Not larger: `conv_last` gives what is added to the picture.
    None,
    /// `upsample.0` and one pixel shuffle give the picture.
    Direct {
        /// The factor of the pixel shuffle.
        scale: usize,
    },
    /// `conv_before_upsample.0`, for each step `i` the convolution `upsample.{2i}` and a pixel shuffle, then `conv_last`.
    PixelShuffle {
        /// The channels of all but the last convolution.
        num_feat: usize,
        /// The factor of each pixel shuffle.
        steps: Vec<usize>,
    },
    /// `conv_before_upsample.0`, doublings by repeating pixels with `conv_up{1..=ups}` behind each, `conv_hr`, then `conv_last`.
    NearestConv {
        /// The channels of all but the last convolution.
        num_feat: usize,
        /// How often the sides are doubled.
        ups: usize,
    },
}

impl Upsampler {
    /// Tells it from the names and shapes of its convolutions; the picture has `channels`.
    pub(super) fn infer(from: &Reader<'_>, channels: usize) -> Result<Self, DetectError> {
        if from.has("conv_before_upsample.0.weight") {
            let (num_feat, _) = from.convolution("conv_before_upsample.0")?;
            let ups = (1..).take_while(|up| from.has(&format!("conv_up{up}.weight"))).count();
            if ups > 0 {
                return Ok(Self::NearestConv { num_feat, ups });
            }
            Ok(Self::PixelShuffle { num_feat, steps: pixel_shuffles(from, "upsample", num_feat)? })
        } else if from.has("upsample.0.weight") {
            Ok(Self::Direct { scale: from.shuffle_to("upsample.0", channels)? })
        } else if from.has("conv_last.weight") {
            Ok(Self::None)
        } else {
            Err(from.missing("conv_last.weight"))
        }
    }

    /// Adds its convolutions, from `embed_dim` to `channels`.
    pub(super) fn add(&self, to: &mut Builder, embed_dim: usize, channels: usize) {
        match self {
            Self::None => to.conv("conv_last", channels, embed_dim, 3),
            Self::Direct { scale } => to.conv("upsample.0", channels * scale * scale, embed_dim, 3),
            Self::PixelShuffle { num_feat, steps } => {
                to.conv("conv_before_upsample.0", *num_feat, embed_dim, 3);
                add_pixel_shuffles(to, "upsample", *num_feat, steps);
                to.conv("conv_last", channels, *num_feat, 3);
            }
            Self::NearestConv { num_feat, ups } => {
                to.conv("conv_before_upsample.0", *num_feat, embed_dim, 3);
                (1..=*ups).for_each(|up| to.conv(&format!("conv_up{up}"), *num_feat, *num_feat, 3));
                to.conv("conv_hr", *num_feat, *num_feat, 3);
                to.conv("conv_last", channels, *num_feat, 3);
            }
        }
    }

    /// Returns how many times wider and higher it makes its features.
    pub fn scale(&self) -> usize {
        match self {
            Self::None => 1,
            Self::Direct { scale } => *scale,
            Self::PixelShuffle { steps, .. } => product(steps),
            Self::NearestConv { ups, .. } => 1 << ups.min(&32),
        }
    }

    /// Returns its name in the hyperparameters.
    pub fn name(&self) -> &'static str {
        match self {
            Self::None => "",
            Self::Direct { .. } => "pixelshuffledirect",
            Self::PixelShuffle { .. } => "pixelshuffle",
            Self::NearestConv { .. } => "nearest+conv",
        }
    }
}

/// Returns the factors of the pixel shuffles behind the convolutions `<list>.0`, `<list>.2`, ...
pub(super) fn pixel_shuffles(from: &Reader<'_>, list: &str, num_feat: usize) -> Result<Vec<usize>, DetectError> {
    let names = (0..).step_by(2).map(|i| format!("{list}.{i}"));
    let steps = names.take_while(|name| from.has(&format!("{name}.weight")));
    steps.map(|name| from.shuffle_to(&name, num_feat)).collect()
}

/// Adds the convolutions of pixel shuffles by `steps`.
pub(super) fn add_pixel_shuffles(to: &mut Builder, list: &str, num_feat: usize, steps: &[usize]) {
    for (i, step) in steps.iter().enumerate() {
        to.conv(&format!("{list}.{}", 2 * i), num_feat * step * step, num_feat, 3);
    }
}

/// Multiplies factors; more than any picture grows by is all the same.
pub(super) fn product(steps: &[usize]) -> usize {
    steps.iter().fold(1usize, |product, step| product.saturating_mul(*step)).min(1 << 32)
}
