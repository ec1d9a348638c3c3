//! SwinIR (Liang et al. 2021): layers of Swin blocks between convolutions.

use candle_core::Tensor;
use weights::detect;

use super::{
    layers::{BodyConv, Head, Layers, Net, Range, plain},
    window::{SwinBlock, Windows, reorder},
};
use crate::{
    error::Result,
    ops::{self, Backend, Conv2d, Norm},
    pad::pad_tensor,
    watch::Progress,
};

/// The whole network.
#[derive(Debug)]
pub(super) struct SwinIr {
    layout: detect::SwinIr,
    backend: Backend,
    range: Range,
    conv_first: Conv2d,
    patch_norm: Option<Norm>,
    layers: Vec<(Vec<SwinBlock>, BodyConv)>,
    norm: Norm,
    conv_after_body: BodyConv,
    head: Head,
}

impl SwinIr {
    pub(super) fn load(layout: &detect::SwinIr, layers: &Layers<'_>) -> Result<Self> {
        let (size, channels) = (layout.window_size, layout.embed_dim);
        let layer = |(l, (depth, heads)): (usize, (&usize, &usize))| -> Result<_> {
            let block = |b: usize| {
                let name = format!("layers.{l}.residual_group.blocks.{b}");
                SwinBlock::load(layers, &name, size, *heads, channels)
            };
            let blocks = (0..*depth).map(block).collect::<Result<_>>()?;
            Ok((blocks, BodyConv::load(layers, layout.resi_connection, &format!("layers.{l}.conv"))?))
        };
        Ok(Self {
            range: Range::new(layers.backend, layout.in_chans, layout.img_range())?,
            conv_first: layers.conv(layout.conv_first())?,
            patch_norm: layout.patch_norm.then(|| layers.norm("patch_embed.norm", 1e-5)).transpose()?,
            layers: layout.depths.iter().zip(&layout.num_heads).enumerate().map(layer).collect::<Result<_>>()?,
            norm: layers.norm("norm", 1e-5)?,
            conv_after_body: BodyConv::load(layers, layout.resi_connection, "conv_after_body")?,
            head: Head::load(layers, &layout.upsampler)?,
            backend: layers.backend.clone(),
            layout: layout.clone(),
        })
    }
}

impl Net for SwinIr {
    fn work(&self) -> f64 {
        let blocks: usize = self.layout.depths.iter().sum();
        blocks as f64 + 2.0 // the head takes as long as about two blocks
    }

    fn values_per_pixel(&self) -> usize {
        let body = 8 * self.layout.embed_dim;
        body.max(2 * self.layout.embed_dim + Head::values_per_pixel(&self.layout.upsampler, self.layout.embed_dim))
    }

    fn forward(&self, x: &Tensor, progress: &mut Progress<'_>) -> Result<Tensor> {
        let (backend, size) = (&self.backend, self.layout.window_size);
        let (_, _, picture_h, picture_w) = x.dims4()?;
        let multiple = |side: usize| side.next_multiple_of(size * self.layout.start_unshuffle) - side;
        let x = pad_tensor(x, multiple(picture_w), multiple(picture_h))?;
        let mut x = self.range.enter(&x)?;
        if self.layout.start_unshuffle > 1 {
            x = candle_nn::ops::pixel_unshuffle(&x, self.layout.start_unshuffle)?;
        }
        let (_, _, h, w) = x.dims4()?;
        let shallow = self.conv_first.forward(&x, plain())?; // [1, c, h, w]

        let shift = size / 2;
        let windows = [0, shift].map(|shift| Windows::new((h, w), (h, w), (size, size), (shift, shift)));
        let mut tokens = ops::to_rows(backend, &shallow)?; // [h*w, c]
        if let Some(norm) = &self.patch_norm {
            tokens = norm.rows(backend, &tokens)?;
        }
        for (blocks, conv) in &self.layers {
            let input = tokens.clone();
            let mut order = None;
            for (b, block) in blocks.iter().enumerate() {
                let next = &windows[b % 2];
                tokens = reorder(backend, &tokens, order, Some(next), h * w)?;
                order = Some(next);
                tokens = block.forward(backend, &tokens, next, progress, 1.0)?;
            }
            tokens = reorder(backend, &tokens, order, None, h * w)?;
            let map = ops::to_map(backend, &tokens, h, w)?;
            tokens = ops::to_rows(backend, &conv.forward(&map, &ops::to_map(backend, &input, h, w)?)?)?;
        }
        let tokens = self.norm.rows(backend, &tokens)?;
        let features = self.conv_after_body.forward(&ops::to_map(backend, &tokens, h, w)?, &shallow)?;
        drop((tokens, shallow));
        let y = self.range.leave(&self.head.forward(backend, &features, &x)?)?;
        progress.advance(2.0)?;
        Ok(y)
    }
}
