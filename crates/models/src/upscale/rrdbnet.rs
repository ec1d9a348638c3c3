//! RRDBNet: the generator of ESRGAN (Wang et al. 2018), its ESRGAN+ variant (Rakotonirina and Rasoanaivo 2020) and the
//! networks of Real-ESRGAN (`basicsr/archs/rrdbnet_arch.py`).

mod chained;

use candle_core::{Module, Result as Candle, Tensor};
use candle_nn::Conv2d;
use candle_nn::ops::{leaky_relu, pixel_unshuffle};
use weights::detect::{self, Naming};

use super::{
    layers::Net,
    parts::{Parts, work},
};
use crate::error::Result;
use crate::watch::Progress;
pub(super) use chained::ChainedRrdbNet;

/// By what the output of a block is multiplied before it is added to its input.
const RESIDUAL_SCALE: f64 = 0.2;

fn lrelu(x: &Tensor) -> Candle<Tensor> {
    leaky_relu(x, 0.2)
}

/// The whole network. The parts go by the names that BasicSR gives them.
#[derive(Debug)]
pub(super) struct RrdbNet {
    /// By how much the sides are divided, pixels becoming channels, before anything else.
    unshuffle: usize,
    conv_first: Conv2d,
    body: Vec<[DenseBlock; 3]>,
    conv_body: Conv2d,
    conv_up: Vec<Conv2d>,
    conv_hr: Conv2d,
    conv_last: Conv2d,
}

impl RrdbNet {
    pub(super) fn load(layout: &detect::RrdbNet, parts: &Parts<'_>) -> Result<Self> {
        let names = layout.naming;
        let block = |i: usize| -> Result<_> {
            let rdb = |r: usize| DenseBlock::load(layout, i, r, parts);
            Ok([rdb(1)?, rdb(2)?, rdb(3)?])
        };
        Ok(Self {
            unshuffle: layout.shuffle_factor.unwrap_or(1),
            conv_first: parts.conv3x3(names.first())?,
            body: (0..layout.num_blocks).map(block).collect::<Result<_>>()?,
            conv_body: parts.conv3x3(&names.trunk(layout.num_blocks))?,
            conv_up: (1..=layout.ups).map(|up| parts.conv3x3(&names.up(up))).collect::<Result<_>>()?,
            conv_hr: parts.conv3x3(&names.hr())?,
            conv_last: parts.conv3x3(&names.last())?,
        })
    }
}

impl Net for RrdbNet {
    /// The multiplications for each pixel of the input, whose sides are `unshuffle` times those of the trunk.
    fn work(&self) -> f64 {
        let trunk = work(&self.conv_first)
            + self.body.iter().flatten().map(DenseBlock::work).sum::<f64>()
            + work(&self.conv_body);
        let ups = self.conv_up.iter().zip(1..).map(|(conv, up)| work(conv) * area(up)).sum::<f64>();
        trunk + ups + (work(&self.conv_hr) + work(&self.conv_last)) * area(self.conv_up.len())
    }

    /// How many numbers are alive at the peak, for each pixel of the input.
    fn values_per_pixel(&self) -> usize {
        let features = self.conv_first.weight().dims()[0];
        let widest = features + 4 * 32; // what the last convolution of a dense block takes
        // In a dense block: the net's, the block's and the dense block's input, the outputs of its convolutions, all of these
        // once more in one tensor and the copy of it that a convolution makes.
        let trunk = 2 * features + 3 * widest;
        // Behind it: what a convolution takes, its copy, what it gives, and the parts of the activation.
        let tail = (6 * features) << (2 * self.conv_up.len());
        trunk.max(tail) / (self.unshuffle * self.unshuffle)
    }

    /// Takes x, [1, c, h, w], and gives [1, c', h*scale, w*scale]. The sides are multiples of `unshuffle`.
    fn forward(&self, x: &Tensor, progress: &mut Progress<'_>) -> Result<Tensor> {
        let x = if self.unshuffle == 1 { x.clone() } else { pixel_unshuffle(x, self.unshuffle)? };
        let first = self.conv_first.forward(&x)?; // [1, num_filters, h, w], the sides now those of the trunk
        progress.advance(work(&self.conv_first))?;

        let mut y = first.clone();
        for block in &self.body {
            let input = y.clone();
            for rdb in block {
                y = rdb.forward(&y)?;
                progress.advance(rdb.work())?;
            }
            y = ((y * RESIDUAL_SCALE)? + input)?;
        }
        let mut y = (first + self.conv_body.forward(&y)?)?;
        progress.advance(work(&self.conv_body))?;

        for (conv, up) in self.conv_up.iter().zip(1..) {
            let (_, _, h, w) = y.dims4()?;
            y = lrelu(&conv.forward(&y.upsample_nearest2d(2 * h, 2 * w)?)?)?; // [1, num_filters, 2h, 2w]
            progress.advance(work(conv) * area(up))?;
        }
        let grown = area(self.conv_up.len());
        y = lrelu(&self.conv_hr.forward(&y)?)?;
        progress.advance(work(&self.conv_hr) * grown)?;
        y = self.conv_last.forward(&y)?; // [1, c', h*scale, w*scale]
        progress.advance(work(&self.conv_last) * grown)?;
        Ok(y)
    }
}

/// By how much the area of the picture has grown after `ups` doublings of its sides.
fn area(ups: usize) -> f64 {
    4f64.powi(ups as i32)
}

/// A dense block: each convolution sees the input and all outputs before it.
#[derive(Debug)]
struct DenseBlock {
    conv1: Conv2d,
    conv2: Conv2d,
    conv3: Conv2d,
    conv4: Conv2d,
    conv5: Conv2d,
    /// Only in ESRGAN+.
    conv1x1: Option<Conv2d>,
}

impl DenseBlock {
    fn load(layout: &detect::RrdbNet, block: usize, rdb: usize, parts: &Parts<'_>) -> Result<Self> {
        let conv = |k: usize| parts.conv3x3(&layout.naming.dense(block, rdb, k));
        let conv1x1 = layout.plus.then(|| parts.conv1x1(&Naming::dense_1x1(block, rdb)));
        Ok(Self {
            conv1: conv(1)?,
            conv2: conv(2)?,
            conv3: conv(3)?,
            conv4: conv(4)?,
            conv5: conv(5)?,
            conv1x1: conv1x1.transpose()?,
        })
    }

    fn work(&self) -> f64 {
        let convs = [&self.conv1, &self.conv2, &self.conv3, &self.conv4, &self.conv5];
        convs.into_iter().chain(&self.conv1x1).map(work).sum()
    }

    /// Keeps the shape of x, [1, num_filters, h, w].
    fn forward(&self, x: &Tensor) -> Candle<Tensor> {
        let x1 = lrelu(&self.conv1.forward(x)?)?; // [1, 32, h, w], and so x2, x3 and x4
        let mut x2 = lrelu(&self.conv2.forward(&Tensor::cat(&[x, &x1], 1)?)?)?;
        if let Some(conv1x1) = &self.conv1x1 {
            x2 = (x2 + conv1x1.forward(x)?)?;
        }
        let x3 = lrelu(&self.conv3.forward(&Tensor::cat(&[x, &x1, &x2], 1)?)?)?;
        let mut x4 = lrelu(&self.conv4.forward(&Tensor::cat(&[x, &x1, &x2, &x3], 1)?)?)?;
        if self.conv1x1.is_some() {
            x4 = (x4 + &x2)?;
        }
        let x5 = self.conv5.forward(&Tensor::cat(&[x, &x1, &x2, &x3, &x4], 1)?)?; // [1, num_filters, h, w]
        (x5 * RESIDUAL_SCALE)? + x
    }
}
