//! HAT (Chen et al. 2023): Swin blocks with a convolution beside each attention, and layers that end with windows that look
//! beyond their edges.

use candle_core::Tensor;
use weights::detect;

use super::{
    layers::{BodyConv, Head, Layers, Net, Range, plain, plus, then},
    window::{Attention, Mlp, Windows, bias, chunks},
};
use crate::{
    error::Result,
    ops::{self, Backend, Columns, Conv2d, Function, Linear, NO_ROW, Norm, Rows, WindowAttention},
    pad::pad_tensor,
    watch::Progress,
};

/// The whole network.
#[derive(Debug)]
pub(super) struct Hat {
    layout: detect::Hat,
    backend: Backend,
    range: Range,
    conv_first: Conv2d,
    patch_norm: Option<Norm>,
    layers: Vec<Layer>,
    norm: Norm,
    conv_after_body: BodyConv,
    head: Head,
}

#[derive(Debug)]
struct Layer {
    blocks: Vec<HybridBlock>,
    overlap_attn: OverlapAttention,
    conv: BodyConv,
}

impl Hat {
    pub(super) fn load(layout: &detect::Hat, layers: &Layers<'_>) -> Result<Self> {
        let layer = |(l, (depth, heads)): (usize, (&usize, &usize))| -> Result<_> {
            let name = format!("layers.{l}.residual_group");
            let block = |b: usize| HybridBlock::load(layout, layers, &format!("{name}.blocks.{b}"), *heads);
            Ok(Layer {
                blocks: (0..*depth).map(block).collect::<Result<_>>()?,
                overlap_attn: OverlapAttention::load(layout, layers, &format!("{name}.overlap_attn"), *heads)?,
                conv: BodyConv::load(layers, layout.resi_connection, &format!("layers.{l}.conv"))?,
            })
        };
        Ok(Self {
            range: Range::new(layers.backend, layout.in_chans, 1.0)?,
            conv_first: layers.conv("conv_first")?,
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

impl Net for Hat {
    fn work(&self) -> f64 {
        let blocks: usize = self.layout.depths.iter().map(|depth| depth + 1).sum();
        blocks as f64 + 2.0 // the head takes as long as about two blocks
    }

    fn values_per_pixel(&self) -> usize {
        let body = 11 * self.layout.embed_dim;
        body.max(2 * self.layout.embed_dim + Head::values_per_pixel(&self.layout.upsampler, self.layout.embed_dim))
    }

    fn forward(&self, x: &Tensor, progress: &mut Progress<'_>) -> Result<Tensor> {
        let (backend, size) = (&self.backend, self.layout.window_size);
        let (_, _, h, w) = x.dims4()?;
        let multiple = |side: usize| side.next_multiple_of(size) - side;
        let x = self.range.enter(&pad_tensor(x, multiple(w), multiple(h))?)?;
        let (h, w) = (h + multiple(h), w + multiple(w));
        let shallow = self.conv_first.forward(&x, plain())?; // [1, c, h, w]

        let windows = [0, size / 2].map(|shift| Windows::new((h, w), (h, w), (size, size), (shift, shift)));
        let mut tokens = ops::to_rows(backend, &shallow)?; // [h*w, c], in the order of the map all along
        if let Some(norm) = &self.patch_norm {
            tokens = norm.rows(backend, &tokens)?;
        }
        for layer in &self.layers {
            let input = tokens.clone();
            for (b, block) in layer.blocks.iter().enumerate() {
                tokens = block.forward(backend, &tokens, (h, w), &windows[b % 2], progress)?;
            }
            tokens = layer.overlap_attn.forward(backend, &tokens, (h, w), &windows[0], progress)?;
            let map = ops::to_map(backend, &tokens, h, w)?;
            tokens = ops::to_rows(backend, &layer.conv.forward(&map, &ops::to_map(backend, &input, h, w)?)?)?;
        }
        let tokens = self.norm.rows(backend, &tokens)?;
        let features = self.conv_after_body.forward(&ops::to_map(backend, &tokens, h, w)?, &shallow)?;
        drop((tokens, shallow));
        let y = self.range.leave(&self.head.forward(backend, &features, &x)?)?;
        progress.advance(2.0)?;
        Ok(y)
    }
}

/// Attention in windows and, beside it, convolutions whose channels are weighted by their means.
#[derive(Debug)]
struct HybridBlock {
    norm1: Norm,
    attn: Attention,
    conv_block: ChannelBranch,
    mlp: Mlp,
}

impl HybridBlock {
    fn load(layout: &detect::Hat, layers: &Layers<'_>, name: &str, heads: usize) -> Result<Self> {
        Ok(Self {
            norm1: layers.norm(&format!("{name}.norm1"), 1e-5)?,
            attn: Attention::load(layers, &format!("{name}.attn"), layout.window_size, heads, layout.embed_dim)?,
            conv_block: ChannelBranch::load(layers, &format!("{name}.conv_block.cab"))?,
            mlp: Mlp::load(layers, &format!("{name}.norm2"), &format!("{name}.mlp"))?,
        })
    }

    /// Keeps the shape of tokens, [h*w, c].
    fn forward(
        &self,
        backend: &Backend,
        tokens: &Tensor,
        (h, w): (usize, usize),
        windows: &Windows,
        progress: &mut Progress<'_>,
    ) -> Result<Tensor> {
        let y = self.norm1.rows(backend, tokens)?;
        let beside = self.conv_block.forward(backend, &ops::to_map(backend, &y, h, w)?)?;
        let input = (tokens + (ops::to_rows(backend, &beside)? * detect::Hat::CONV_SCALE)?)?;
        drop(beside);

        let (area, count) = (windows.area(), windows.kinds.len());
        let biases = self.attn.biases(windows)?;
        let [y, input] = [y, input].map(|x| ops::gather_rows(backend, &x, &windows.tokens));
        let (y, input) = (y?, input?);
        let mut parts = Vec::new();
        for (first, length) in chunks(backend, count, area) {
            let part = |x: &Tensor| x.narrow(0, first * area, length * area);
            let kinds = &windows.kinds[first..first + length];
            let x = self.attn.forward(backend, &part(&y)?, (area, kinds, &biases), &part(&input)?)?;
            parts.push(self.mlp.forward(backend, &x)?);
            progress.advance(length as f64 / count as f64)?;
        }
        Ok(ops::gather_rows(backend, &Tensor::cat(&parts, 0)?, &windows.tokens.inverse(h * w))?)
    }
}

/// Convolutions, then a weight for each channel that its mean decides.
#[derive(Debug)]
struct ChannelBranch {
    squeeze: Conv2d,
    expand: Conv2d,
    attention: [Linear; 2],
}

impl ChannelBranch {
    fn load(layers: &Layers<'_>, name: &str) -> Result<Self> {
        let attention = |i: usize| layers.linear(&format!("{name}.3.attention.{i}"));
        Ok(Self {
            squeeze: layers.conv(&format!("{name}.0"))?,
            expand: layers.conv(&format!("{name}.2"))?,
            attention: [attention(1)?, attention(3)?],
        })
    }

    /// Keeps the shape of x, [1, c, h, w].
    fn forward(&self, backend: &Backend, x: &Tensor) -> Result<Tensor> {
        let y = self.expand.forward(&self.squeeze.forward(x, then(Function::Gelu))?, plain())?;
        let (_, c, h, w) = y.dims4()?;
        let means = ops::mean(backend, &y.reshape((c, h * w))?)?.reshape((1, c))?;
        let weights = self.attention[1]
            .forward(&self.attention[0].forward(&means, then(Function::Relu))?, then(Function::Sigmoid))?;
        Ok(y.broadcast_mul(&weights.reshape((1, c, 1, 1))?)?)
    }
}

/// Attention from each window to a larger one around it, then two layers.
#[derive(Debug)]
struct OverlapAttention {
    norm1: Norm,
    qkv: Linear,
    proj: Linear,
    mlp: Mlp,
    /// [heads, keys, queries].
    bias: Tensor,
    heads: usize,
    /// The sides of the windows that are attended from, and to.
    sides: (usize, usize),
}

impl OverlapAttention {
    fn load(layout: &detect::Hat, layers: &Layers<'_>, name: &str, heads: usize) -> Result<Self> {
        let (size, wide) = (layout.window_size, layout.overlap_win_size);
        let table = layers.numbers(&format!("{name}.relative_position_bias_table"))?;
        let places = table.dim(0)? as i64;
        // Some places are before the first: these are counted from the end, as trained tables have them.
        let index = |query: usize, key: usize| {
            let [size, wide, query, key] = [size, wide, query, key].map(|x| x as i64);
            let (y, x) = (key / wide - query / size, key % wide - query % size);
            ((y + size - wide + 1) * (size + wide - 1) + x + size - wide + 1).rem_euclid(places) as usize
        };
        Ok(Self {
            norm1: layers.norm(&format!("{name}.norm1"), 1e-5)?,
            qkv: layers.linear(&format!("{name}.qkv"))?,
            proj: layers.linear(&format!("{name}.proj"))?,
            mlp: Mlp::load(layers, &format!("{name}.norm2"), &format!("{name}.mlp"))?,
            bias: bias(layers.backend, &table, size * size, wide * wide, index)?,
            heads,
            sides: (size, wide),
        })
    }

    /// For each window of `size` pixels a side, the tokens of the one of `wide` pixels around it.
    fn around(&self, h: usize, w: usize) -> Vec<u32> {
        let (size, wide) = self.sides;
        let border = (wide - size) / 2;
        let mut tokens = Vec::with_capacity(h / size * (w / size) * wide * wide);
        for (row, column) in (0..h / size).flat_map(|row| (0..w / size).map(move |column| (row, column))) {
            for (y, x) in (0..wide).flat_map(|y| (0..wide).map(move |x| (y, x))) {
                let at =
                    |cell: usize, i: usize, side: usize| (cell * size + i).checked_sub(border).filter(|i| *i < side);
                let token = at(row, y, h).zip(at(column, x, w));
                tokens.push(token.map_or(NO_ROW, |(y, x)| (y * w + x) as u32));
            }
        }
        tokens
    }

    /// Keeps the shape of tokens, [h*w, c].
    fn forward(
        &self,
        backend: &Backend,
        tokens: &Tensor,
        (h, w): (usize, usize),
        windows: &Windows,
        progress: &mut Progress<'_>,
    ) -> Result<Tensor> {
        let qkv = self.qkv.forward(&self.norm1.rows(backend, tokens)?, plain())?; // [h*w, 3c]
        let input = ops::gather_rows(backend, tokens, &windows.tokens)?;
        let query_rows = ops::gather_rows(backend, &qkv, &windows.tokens)?;
        let (area, around) = (windows.area(), self.sides.1 * self.sides.1);
        let (count, c) = (windows.kinds.len(), tokens.dim(1)?);
        let around_all = self.around(h, w);
        let width = c / self.heads;
        let biases = std::slice::from_ref(&self.bias);
        let mut parts = Vec::new();
        for (first, length) in chunks(backend, count, area) {
            let rows = Rows::new(around_all[first * around..(first + length) * around].to_vec());
            let wide = ops::gather_rows(backend, &qkv, &rows)?; // [windows * around, 3c]
            let queries = query_rows.narrow(0, first * area, length * area)?;
            let attention = WindowAttention {
                heads: self.heads,
                width,
                queries: area,
                keys: around,
                scale: (width as f64).powf(-0.5),
                biases,
                kinds: &vec![0; length],
            };
            let columns = |x, i: usize| Columns { x, first: i * c };
            let y = attention.run(backend, columns(&queries, 0), columns(&wide, 1), columns(&wide, 2))?;
            let x = self.proj.forward(&y, plus(&input.narrow(0, first * area, length * area)?))?;
            parts.push(self.mlp.forward(backend, &x)?);
            progress.advance(length as f64 / count as f64)?;
        }
        Ok(ops::gather_rows(backend, &Tensor::cat(&parts, 0)?, &windows.tokens.inverse(h * w))?)
    }
}
