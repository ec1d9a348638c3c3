//! PLKSR (Lee et al. 2024) and RealPLKSR: blocks with a large kernel on some of the channels.

use candle_core::{Device, Tensor};
use weights::detect::{self, PlksrKind};

use super::layers::{Layers, Net, plain, plus, then};
use crate::{
    error::Result,
    ops::{self, Backend, Conv2d, Function, Norm},
    watch::Progress,
};

/// The whole network.
#[derive(Debug)]
pub(super) struct Plksr {
    layout: detect::Plksr,
    backend: Backend,
    first: Conv2d,
    blocks: Vec<Block>,
    last: Conv2d,
    dysample: Option<DySample>,
}

impl Plksr {
    pub(super) fn load(layout: &detect::Plksr, layers: &Layers<'_>) -> Result<Self> {
        let dysample = match layout.kind {
            PlksrKind::Real { dysample: Some(sizes), .. } => Some(DySample::load(&sizes, layers, "to_img")?),
            _ => None,
        };
        Ok(Self {
            first: layers.conv("feats.0")?,
            blocks: (1..=layout.n_blocks).map(|block| Block::load(layout, layers, block)).collect::<Result<_>>()?,
            last: layers.conv(&format!("feats.{}", layout.last()))?,
            dysample,
            backend: layers.backend.clone(),
            layout: *layout,
        })
    }
}

impl Net for Plksr {
    fn work(&self) -> f64 {
        (self.blocks.len() + 1) as f64
    }

    fn values_per_pixel(&self) -> usize {
        let body = 10 * self.layout.dim;
        match &self.dysample {
            Some(dysample) => body.max(dysample.values_per_pixel(3 * self.layout.upscaling_factor.pow(2))),
            None => body,
        }
    }

    fn forward(&self, x: &Tensor, progress: &mut Progress<'_>) -> Result<Tensor> {
        let backend = &self.backend;
        let scale = self.layout.upscaling_factor;
        let mut y = self.first.forward(x, plain())?; // [1, dim, h, w]
        for block in &self.blocks {
            y = block.forward(backend, &y)?;
            progress.advance(1.0)?;
        }
        // Each channel of the picture stands for all the pixels that it becomes.
        let (_, c, h, w) = x.dims4()?;
        let repeated = x.reshape((1, c, 1, h, w))?.repeat((1, 1, scale * scale, 1, 1))?;
        let repeated = repeated.reshape((1, c * scale * scale, h, w))?;
        let y = self.last.forward(&y, plus(&repeated))?;
        let y = match &self.dysample {
            Some(dysample) => dysample.forward(&y)?,
            None => ops::pixel_shuffle(backend, &y, scale)?,
        };
        progress.advance(1.0)?;
        Ok(y)
    }
}

#[derive(Debug)]
struct Block {
    layer_norm: Option<Norm>,
    channel_mixer: [Conv2d; 2],
    activation: Function,
    lk: Conv2d,
    /// How many channels, the first ones, `lk` is for.
    split: usize,
    attn: Option<Conv2d>,
    refine: Conv2d,
    norm: Option<Norm>,
}

impl Block {
    fn load(layout: &detect::Plksr, layers: &Layers<'_>, block: usize) -> Result<Self> {
        let conv = |part: &str| layers.conv(&format!("feats.{block}.{part}"));
        let norm = |part: &str, eps| layers.norm(&format!("feats.{block}.{part}"), eps);
        let (mixer, activation, layer_norm, norm) = match layout.kind {
            PlksrKind::Plain { .. } => ("channe_mixer", Function::Gelu, None, None), // spelled so in the files
            PlksrKind::Real { layer_norm: true, .. } => {
                ("channel_mixer", Function::Mish, Some(norm("layer_norm", 1e-6)?), None)
            }
            PlksrKind::Real { layer_norm: false, .. } => {
                ("channel_mixer", Function::Mish, None, Some(norm("norm", 1e-5)?))
            }
        };
        Ok(Self {
            layer_norm,
            channel_mixer: [conv(&format!("{mixer}.0"))?, conv(&format!("{mixer}.2"))?],
            activation,
            lk: conv("lk.conv")?,
            split: layout.split,
            attn: layout.use_ea.then(|| conv("attn.f.0")).transpose()?,
            refine: conv("refine")?,
            norm,
        })
    }

    /// Keeps the shape of x, [1, dim, h, w].
    fn forward(&self, backend: &Backend, x: &Tensor) -> Result<Tensor> {
        let (_, dim, h, w) = x.dims4()?;
        let mut y = x.clone();
        if let Some(norm) = &self.layer_norm {
            y = ops::to_map(backend, &norm.rows(backend, &ops::to_rows(backend, &y)?)?, h, w)?;
        }
        let [widen, narrow] = &self.channel_mixer;
        y = narrow.forward(&widen.forward(&y, then(self.activation))?, plain())?;
        let large = self.lk.forward(&y.narrow(1, 0, self.split)?, plain())?;
        y = match dim - self.split {
            0 => large,
            others => Tensor::cat(&[large, y.narrow(1, self.split, others)?], 1)?,
        };
        if let Some(attn) = &self.attn {
            y = (attn.forward(&y, then(Function::Sigmoid))? * y)?;
        }
        match &self.norm {
            None => Ok(self.refine.forward(&y, plus(x))?),
            Some(norm) => {
                let y = self.refine.forward(&y, plain())?;
                Ok((norm.groups(backend, &y, detect::Plksr::NORM_GROUPS, false)? + x)?)
            }
        }
    }
}

/// A larger picture by looking where to look (Liu et al. 2023).
#[derive(Debug)]
pub(super) struct DySample {
    scale: usize,
    groups: usize,
    offset: Conv2d,
    scope: Conv2d,
    /// [1, 2 * groups * scale * scale, 1, 1].
    init_pos: Tensor,
    /// None where the picture keeps its size.
    end_conv: Option<Conv2d>,
}

impl DySample {
    pub(super) fn load(sizes: &detect::DySample, layers: &Layers<'_>, name: &str) -> Result<Self> {
        let (scale, groups) = (sizes.scale, sizes.groups);
        // Without any offset, the middles of the pixels that each pixel becomes.
        let middle = |i: usize| (i as f32 - (scale as f32 - 1.0) / 2.0) / scale as f32;
        let places = (0..2 * groups * scale * scale).map(|channel| {
            let (i, j) = (channel / scale % scale, channel % scale);
            middle(if channel < groups * scale * scale { j } else { i })
        });
        let init_pos = Tensor::from_iter(places, &Device::Cpu)?.reshape((1, (), 1, 1))?;
        Ok(Self {
            scale,
            groups,
            offset: layers.conv(&format!("{name}.offset"))?,
            scope: layers.conv(&format!("{name}.scope"))?,
            init_pos: layers.backend.take(&init_pos)?,
            end_conv: sizes.end_conv.then(|| layers.conv(&format!("{name}.end_conv"))).transpose()?,
        })
    }

    /// How many numbers are alive at the peak, for each pixel of the input, which has `channels`.
    pub(super) fn values_per_pixel(&self, channels: usize) -> usize {
        (channels * (self.scale * self.scale + 1)) + (8 * self.groups + 6) * self.scale * self.scale
    }

    /// Takes x, [1, c, h, w], to [1, out, h*scale, w*scale].
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let scope = (self.scope.forward(x, then(Function::Sigmoid))? * 0.5)?;
        let places = (self.offset.forward(x, plain())? * scope)?.broadcast_add(&self.init_pos)?;
        let sampled = ops::sample(x, &places, self.groups, self.scale)?;
        match &self.end_conv {
            Some(conv) => Ok(conv.forward(&sampled, plain())?),
            None => Ok(sampled),
        }
    }
}
