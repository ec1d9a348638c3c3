//! What networks of super-resolution that are no chain share.

use candle_core::{Device, Tensor};
use weights::detect::{Resi, Upsampler};

pub(super) use crate::layers::{Layers, plain, plus, then};
use crate::{
    error::Result,
    ops::{self, Backend, Conv2d, Function},
    watch::Progress,
};

/// A network whose parts are single operations.
pub(super) trait Net: std::fmt::Debug + Send + Sync {
    /// Takes x, [1, c, h, w], and gives [1, c', h*scale, w*scale].
    fn forward(&self, x: &Tensor, progress: &mut Progress<'_>) -> Result<Tensor>;

    /// The work of a run for each pixel of the input, in multiplications or any other unit that `forward` tells progress in.
    fn work(&self) -> f64;

    /// How many numbers are alive at the peak, for each pixel of the input.
    fn values_per_pixel(&self) -> usize;
}

/// The mean colour of the pictures that transformers were trained on, taken off before and added behind them.
const MEAN: [f32; 3] = [0.4488, 0.4371, 0.4040];

/// The range of numbers that a transformer computes in, and the mean that it takes off.
#[derive(Debug)]
pub(super) struct Range {
    mean: Tensor,
    range: f64,
}

impl Range {
    /// The range of a network for pictures of `channels`: only those of three have a mean.
    pub(super) fn new(backend: &Backend, channels: usize, range: f64) -> Result<Self> {
        let mean = if channels == 3 { MEAN.to_vec() } else { vec![0.0; channels] };
        Ok(Self { mean: backend.take(&Tensor::from_vec(mean, (1, channels, 1, 1), &Device::Cpu)?)?, range })
    }

    /// (x - mean) * range.
    pub(super) fn enter(&self, x: &Tensor) -> Result<Tensor> {
        Ok((x.broadcast_sub(&self.mean)? * self.range)?)
    }

    /// x / range + mean.
    pub(super) fn leave(&self, x: &Tensor) -> Result<Tensor> {
        Ok((x / self.range)?.broadcast_add(&self.mean)?)
    }
}

/// The convolutions behind the blocks of a transformer's layer, or behind all of its layers.
#[derive(Debug)]
pub(super) enum BodyConv {
    /// None at all.
    Identity,
    /// One 3 x 3 convolution.
    Conv1(Conv2d),
    /// 3 x 3 to a quarter of the channels, 1 x 1, and 3 x 3 back.
    Conv3(Box<[Conv2d; 3]>),
}

impl BodyConv {
    pub(super) fn load(layers: &Layers<'_>, resi: Resi, name: &str) -> Result<Self> {
        Ok(match resi {
            Resi::Identity => Self::Identity,
            Resi::Conv1 => Self::Conv1(layers.conv(name)?),
            Resi::Conv3 => {
                let part = |i: usize| layers.conv(&format!("{name}.{i}"));
                Self::Conv3(Box::new([part(0)?, part(2)?, part(4)?]))
            }
        })
    }

    /// Adds what it makes of x to `input`, both [1, c, h, w].
    pub(super) fn forward(&self, x: &Tensor, input: &Tensor) -> Result<Tensor> {
        let lrelu = || then(Function::LeakyRelu(0.2));
        Ok(match self {
            Self::Identity => (x + input)?,
            Self::Conv1(conv) => conv.forward(x, plus(input))?,
            Self::Conv3(convs) => {
                let [first, middle, last] = &**convs;
                last.forward(&middle.forward(&first.forward(x, lrelu())?, lrelu())?, plus(input))?
            }
        })
    }
}

/// The end of a transformer: from features to a larger picture.
#[derive(Debug)]
pub(super) enum Head {
    /// To the picture's own size: what it lacks.
    None(Conv2d),
    /// One convolution, whose channels become pixels.
    Direct(Conv2d, usize),
    /// Convolutions whose channels become pixels, by and by.
    PixelShuffle { before: Conv2d, upsample: Vec<(Conv2d, usize)>, last: Conv2d },
    /// Convolutions on repeated pixels.
    NearestConv { before: Conv2d, ups: Vec<Conv2d>, hr: Conv2d, last: Conv2d },
}

impl Head {
    pub(super) fn load(layers: &Layers<'_>, upsampler: &Upsampler) -> Result<Self> {
        let before = || layers.conv("conv_before_upsample.0");
        let last = || layers.conv("conv_last");
        Ok(match upsampler {
            Upsampler::None => Self::None(last()?),
            Upsampler::Direct { scale } => Self::Direct(layers.conv("upsample.0")?, *scale),
            Upsampler::PixelShuffle { steps, .. } => {
                let step = |(i, r): (usize, &usize)| Ok((layers.conv(&format!("upsample.{}", 2 * i))?, *r));
                let upsample = steps.iter().enumerate().map(step).collect::<Result<_>>()?;
                Self::PixelShuffle { before: before()?, upsample, last: last()? }
            }
            Upsampler::NearestConv { ups, .. } => {
                let ups = (1..=*ups).map(|up| layers.conv(&format!("conv_up{up}"))).collect::<Result<_>>()?;
                Self::NearestConv { before: before()?, ups, hr: layers.conv("conv_hr")?, last: last()? }
            }
        })
    }

    /// Takes features, [1, c, h, w], and the picture that they are of, and gives the larger picture.
    pub(super) fn forward(&self, backend: &Backend, features: &Tensor, picture: &Tensor) -> Result<Tensor> {
        let lrelu = |factor| then(Function::LeakyRelu(factor));
        Ok(match self {
            Self::None(last) => last.forward(features, plus(picture))?,
            Self::Direct(conv, scale) => ops::pixel_shuffle(backend, &conv.forward(features, plain())?, *scale)?,
            Self::PixelShuffle { before, upsample, last } => {
                let mut y = before.forward(features, lrelu(0.01))?;
                for (conv, r) in upsample {
                    y = ops::pixel_shuffle(backend, &conv.forward(&y, plain())?, *r)?;
                }
                last.forward(&y, plain())?
            }
            Self::NearestConv { before, ups, hr, last } => {
                let mut y = before.forward(features, lrelu(0.01))?;
                for conv in ups {
                    y = conv.forward(&ops::upsample_nearest(backend, &y, 2)?, lrelu(0.2))?;
                }
                last.forward(&hr.forward(&y, lrelu(0.2))?, plain())?
            }
        })
    }

    /// How many numbers are alive at the peak, for each pixel of the input, where features are `channels`.
    pub(super) fn values_per_pixel(upsampler: &Upsampler, channels: usize) -> usize {
        match upsampler {
            Upsampler::None => 2 * channels,
            Upsampler::Direct { scale } => channels + 6 * scale * scale,
            // Before the last shuffle, its copy behind it, and what the last convolution keeps.
            Upsampler::PixelShuffle { num_feat, steps } => {
                num_feat * 3 * steps.iter().map(|r| r * r).product::<usize>()
            }
            Upsampler::NearestConv { num_feat, ups } => (num_feat * 3) << (2 * ups),
        }
    }
}
