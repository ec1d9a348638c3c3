//! Compact: SRVGGNetCompact of Real-ESRGAN (`basicsr/archs/srvgg_arch.py`).

mod chained;

use candle_core::{Module, Tensor};
use candle_nn::ops::pixel_shuffle;
use candle_nn::{Conv2d, PReLU};
use weights::detect;

use super::{
    layers::Net,
    parts::{Parts, work},
};
use crate::error::Result;
use crate::watch::Progress;
pub(super) use chained::ChainedCompact;

/// A row of convolutions that computes what the picture lacks over its enlargement by repeated pixels.
#[derive(Debug)]
pub(super) struct Compact {
    /// All convolutions but the last, each with the activation behind it: `body.{2j}` and `body.{2j+1}`.
    body: Vec<(Conv2d, PReLU)>,
    last: Conv2d,
    upscale: usize,
}

impl Compact {
    pub(super) fn load(layout: &detect::Compact, parts: &Parts<'_>) -> Result<Self> {
        let step = |i: usize| {
            let act = PReLU::new(parts.tensor(&format!("body.{}.weight", i + 1))?, false);
            Ok((parts.conv3x3(&format!("body.{i}"))?, act))
        };
        let last = layout.last();
        Ok(Self {
            body: (0..last).step_by(2).map(step).collect::<Result<_>>()?,
            last: parts.conv3x3(&format!("body.{last}"))?,
            upscale: layout.upscale,
        })
    }
}

impl Net for Compact {
    fn work(&self) -> f64 {
        self.body.iter().map(|(conv, _)| work(conv)).sum::<f64>() + work(&self.last)
    }

    /// How many numbers are alive at the peak, for each pixel of the input.
    fn values_per_pixel(&self) -> usize {
        let (outputs, features) = (self.last.weight().dims()[0], self.last.weight().dims()[1]);
        // In an activation: input, zeros, both halves, their product with the slopes, and the sum; at the end: the residual
        // before and after it is shuffled, the enlarged picture and the sum.
        (6 * features).max(2 * features + 4 * outputs)
    }

    /// Takes x, [1, c, h, w], and gives [1, c', h*upscale, w*upscale].
    fn forward(&self, x: &Tensor, progress: &mut Progress<'_>) -> Result<Tensor> {
        let (_, _, h, w) = x.dims4()?;
        let mut y = x.clone();
        for (conv, act) in &self.body {
            y = act.forward(&conv.forward(&y)?)?; // [1, num_feat, h, w]
            progress.advance(work(conv))?;
        }
        let y = self.last.forward(&y)?; // [1, c' * upscale^2, h, w]
        let y = pixel_shuffle(&y, self.upscale)?;
        let base = x.upsample_nearest2d(h * self.upscale, w * self.upscale)?;
        let y = y.broadcast_add(&base)?; // a model may add to one channel only
        progress.advance(work(&self.last))?;
        Ok(y)
    }
}
