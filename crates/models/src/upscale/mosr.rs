//! MoSR: gated blocks of convolutions after MambaOut (Yu and Wang 2024).

use candle_core::Tensor;
use weights::detect::{self, MoSrUpsampler};

use super::{
    layers::{Layers, Net, plain, plus, then},
    plksr::DySample,
};
use crate::{
    error::Result,
    ops::{self, Backend, Conv2d, Function, Norm},
    watch::Progress,
};

/// What each sum of a block and its input is lowered by.
const SHIFT: f64 = 0.5;

/// The whole network.
#[derive(Debug)]
pub(super) struct MoSr {
    layout: detect::MoSr,
    backend: Backend,
    first: Conv2d,
    blocks: Vec<Block>,
    /// The convolutions behind the blocks.
    last: [Conv2d; 3],
    shortcut: [Conv2d; 2],
    shortcut_1x1: Conv2d,
    upsampler: Upsampler,
}

#[derive(Debug)]
enum Upsampler {
    PixelShuffle(Conv2d),
    /// To several pictures, whose mean counts.
    Ensemble(Conv2d),
    DySample(Box<DySample>),
}

impl MoSr {
    pub(super) fn load(layout: &detect::MoSr, layers: &Layers<'_>) -> Result<Self> {
        let conv = |i: usize| layers.conv(&format!("gblocks.{i}"));
        let n = layout.n_block;
        Ok(Self {
            first: conv(0)?,
            blocks: (1..=n).map(|i| Block::load(layout, layers, i)).collect::<Result<_>>()?,
            last: [conv(n + 1)?, conv(n + 3)?, conv(n + 5)?],
            shortcut: [layers.conv("shortcut.block.0")?, layers.conv("shortcut.block.2")?],
            shortcut_1x1: layers.conv("shortcut.conv11")?,
            upsampler: match &layout.upsampler {
                MoSrUpsampler::PixelShuffle => Upsampler::PixelShuffle(layers.conv("upsampler.0")?),
                MoSrUpsampler::Ensemble => Upsampler::Ensemble(layers.conv("upsampler.in_to_k")?),
                MoSrUpsampler::DySample(sizes) => {
                    Upsampler::DySample(Box::new(DySample::load(sizes, layers, "upsampler")?))
                }
            },
            backend: layers.backend.clone(),
            layout: *layout,
        })
    }
}

impl Net for MoSr {
    fn work(&self) -> f64 {
        (self.blocks.len() + 2) as f64
    }

    fn values_per_pixel(&self) -> usize {
        let detect::MoSr { dim, hidden, out_ch, upscale, .. } = self.layout;
        let end = match &self.upsampler {
            Upsampler::PixelShuffle(_) => dim + 2 * out_ch * upscale * upscale,
            Upsampler::Ensemble(_) => dim + 10 * out_ch * upscale * upscale,
            Upsampler::DySample(dysample) => dysample.values_per_pixel(dim),
        };
        (2 * dim + 7 * hidden).max(end)
    }

    fn forward(&self, x: &Tensor, progress: &mut Progress<'_>) -> Result<Tensor> {
        let mut y = self.first.forward(x, plain())?; // [1, dim, h, w]
        for block in &self.blocks {
            y = block.forward(&self.backend, &y)?;
            progress.advance(1.0)?;
        }
        let mish = || then(Function::Mish);
        let [widen, narrow, last] = &self.last;
        y = last.forward(&narrow.forward(&widen.forward(&y, mish())?, mish())?, plain())?;
        let shortcut = self.shortcut[1].forward(&self.shortcut[0].forward(x, mish())?, mish())?;
        y = (y + (self.shortcut_1x1.forward(x, plus(&shortcut))? - SHIFT)?)?;
        progress.advance(1.0)?;
        let shuffle = |y: &Tensor| ops::pixel_shuffle(&self.backend, y, self.layout.upscale);
        let y = match &self.upsampler {
            Upsampler::PixelShuffle(conv) => shuffle(&conv.forward(&y, plain())?)?,
            Upsampler::Ensemble(conv) => {
                let y = conv.forward(&y, plain())?;
                let (_, c, h, w) = y.dims4()?;
                let pictures = detect::MoSr::PICTURES;
                shuffle(&y.reshape((1, pictures, c / pictures, h, w))?.mean(1)?)?
            }
            Upsampler::DySample(dysample) => dysample.forward(&y)?,
        };
        progress.advance(1.0)?;
        Ok(y)
    }
}

/// Convolutions whose outputs gate each other.
#[derive(Debug)]
struct Block {
    norm: Norm,
    fc1: Conv2d,
    conv: Conv2d,
    fc2: Conv2d,
    /// Channels that gate, and those of the gated that `conv` is for.
    hidden: usize,
    conv_channels: usize,
}

impl Block {
    fn load(layout: &detect::MoSr, layers: &Layers<'_>, i: usize) -> Result<Self> {
        let name = |part: &str| format!("gblocks.{i}.{part}");
        Ok(Self {
            norm: layers.norm(&name("norm"), 1e-6)?,
            fc1: layers.conv(&name("fc1"))?,
            conv: layers.depthwise(&name("conv"))?,
            fc2: layers.conv(&name("fc2"))?,
            hidden: layout.hidden,
            conv_channels: layout.conv_channels,
        })
    }

    /// Keeps the shape of x, [1, dim, h, w].
    fn forward(&self, backend: &Backend, x: &Tensor) -> Result<Tensor> {
        let (_, _, h, w) = x.dims4()?;
        let rows = self.norm.rows(backend, &ops::to_rows(backend, x)?)?;
        let y = self.fc1.forward(&ops::to_map(backend, &rows, h, w)?, plain())?; // [1, 2 * hidden, h, w]
        let (hidden, convolved) = (self.hidden, self.conv_channels);
        let gate = ops::function(backend, Function::Mish, &y.narrow(1, 0, hidden)?)?;
        let kept = y.narrow(1, hidden, hidden - convolved)?;
        let convolved = self.conv.forward(&y.narrow(1, 2 * hidden - convolved, convolved)?, plain())?;
        let gated = (gate * Tensor::cat(&[kept, convolved], 1)?)?;
        Ok((self.fc2.forward(&gated, then(Function::Mish))? + (x - SHIFT)?)?)
    }
}
