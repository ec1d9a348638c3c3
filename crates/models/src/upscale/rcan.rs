//! RCAN (Zhang et al. 2018): groups of residual blocks that weigh their channels by their means.

use candle_core::Tensor;
use candle_nn::ops::pixel_unshuffle;
use weights::detect;

use super::layers::{Layers, Net, plain, plus, then};
use crate::{
    error::Result,
    ops::{self, Backend, Conv2d, Function},
    pad::pad_tensor,
    watch::Progress,
};

/// The range of numbers of a network that takes off a mean.
const RGB_RANGE: f64 = 255.0;

/// The whole network.
#[derive(Debug)]
pub(super) struct Rcan {
    layout: detect::Rcan,
    backend: Backend,
    /// What takes the mean colour off, and what adds it again.
    means: Option<[Conv2d; 2]>,
    head: Conv2d,
    groups: Vec<(Vec<Block>, Conv2d)>,
    body: Conv2d,
    upsample: Vec<(Conv2d, usize)>,
    tail: Conv2d,
}

impl Rcan {
    pub(super) fn load(layout: &detect::Rcan, layers: &Layers<'_>) -> Result<Self> {
        let group = |g: usize| -> Result<_> {
            let name = format!("body.{g}.body");
            let blocks = (0..layout.n_resblocks).map(|b| Block::load(layers, &format!("{name}.{b}.body")));
            Ok((blocks.collect::<Result<_>>()?, layers.conv(&format!("{name}.{}", layout.n_resblocks))?))
        };
        let step = |(i, r): (usize, &usize)| Ok((layers.conv(&format!("tail.0.{}", 2 * i))?, *r));
        Ok(Self {
            means: match layout.norm {
                true => Some([layers.conv("sub_mean")?, layers.conv("add_mean")?]),
                false => None,
            },
            head: layers.conv(layout.head())?,
            groups: (0..layout.n_resgroups).map(group).collect::<Result<_>>()?,
            body: layers.conv(&format!("body.{}", layout.n_resgroups))?,
            upsample: layout.steps.iter().enumerate().map(step).collect::<Result<_>>()?,
            tail: layers.conv("tail.1")?,
            backend: layers.backend.clone(),
            layout: layout.clone(),
        })
    }
}

impl Net for Rcan {
    fn work(&self) -> f64 {
        (self.layout.n_resgroups * self.layout.n_resblocks + 4) as f64 // the tail takes as long as about four blocks
    }

    fn values_per_pixel(&self) -> usize {
        let grown: usize = self.layout.steps.iter().map(|r| r * r).product();
        let factor = self.layout.unshuffle.unwrap_or(1);
        // The tail's features before and after the last shuffle, or those of a block; and the picture.
        self.layout.n_feats * (5 * grown / 2).max(12) / (factor * factor) + 24
    }

    fn forward(&self, x: &Tensor, progress: &mut Progress<'_>) -> Result<Tensor> {
        let backend = &self.backend;
        let (_, _, h, w) = x.dims4()?;
        let factor = self.layout.unshuffle.unwrap_or(1);
        let multiple = |side: usize| side.next_multiple_of(factor) - side;
        let mut x = pad_tensor(x, multiple(w), multiple(h))?;
        if let Some([sub_mean, _]) = &self.means {
            x = sub_mean.forward(&(x * RGB_RANGE)?, plain())?;
        }
        if factor > 1 {
            x = pixel_unshuffle(&x, factor)?;
        }
        let first = self.head.forward(&x, plain())?; // [1, n_feats, h', w']
        let mut y = first.clone();
        for (blocks, conv) in &self.groups {
            let input = y.clone();
            for block in blocks {
                y = block.forward(backend, &y)?;
                progress.advance(1.0)?;
            }
            y = conv.forward(&y, plus(&input))?;
        }
        y = self.body.forward(&y, plus(&first))?;
        for (conv, r) in &self.upsample {
            y = ops::pixel_shuffle(backend, &conv.forward(&y, plain())?, *r)?;
        }
        y = self.tail.forward(&y, plain())?;
        if let Some([_, add_mean]) = &self.means {
            y = (add_mean.forward(&y, plain())? / RGB_RANGE)?;
        }
        progress.advance(4.0)?;
        let grown = self.layout.steps.iter().product::<usize>();
        Ok(y.narrow(2, 0, h * grown / factor)?.narrow(3, 0, w * grown / factor)?)
    }
}

/// Two convolutions, and a weight for each channel.
#[derive(Debug)]
struct Block {
    convs: [Conv2d; 2],
    attention: [Conv2d; 2],
}

impl Block {
    fn load(layers: &Layers<'_>, name: &str) -> Result<Self> {
        let conv = |part: &str| layers.conv(&format!("{name}.{part}"));
        Ok(Self { convs: [conv("0")?, conv("2")?], attention: [conv("3.conv_du.0")?, conv("3.conv_du.2")?] })
    }

    /// Keeps the shape of x, [1, n_feats, h, w].
    fn forward(&self, backend: &Backend, x: &Tensor) -> Result<Tensor> {
        let y = self.convs[1].forward(&self.convs[0].forward(x, then(Function::Relu))?, plain())?;
        let (_, c, h, w) = y.dims4()?;
        let means = ops::mean(backend, &y.reshape((c, h * w))?)?.reshape((1, c, 1, 1))?;
        let [squeeze, expand] = &self.attention;
        let weights = expand.forward(&squeeze.forward(&means, then(Function::Relu))?, then(Function::Sigmoid))?;
        Ok((y.broadcast_mul(&weights)? + x)?)
    }
}
