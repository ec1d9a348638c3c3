//! DAT (Chen et al. 2023): attention within windows and attention over channels in turn, each with a convolution beside it.

use candle_core::{Device, Tensor};
use weights::detect;

use super::{
    layers::{BodyConv, Head, Layers, Net, Range, plain, plus, then},
    parts::values,
    window::{Windows, bias, chunks, relative_position},
};
use crate::{
    error::Result,
    ops::{self, Backend, Columns, Conv2d, Function, Linear, Norm, WindowAttention},
    watch::Progress,
};

/// What is added to variances.
const EPS: f64 = 1e-5;

/// The whole network.
#[derive(Debug)]
pub(super) struct Dat {
    layout: detect::Dat,
    backend: Backend,
    range: Range,
    conv_first: Conv2d,
    before: Norm,
    layers: Vec<(Vec<Block>, BodyConv)>,
    norm: Norm,
    conv_after_body: BodyConv,
    head: Head,
}

impl Dat {
    pub(super) fn load(layout: &detect::Dat, layers: &Layers<'_>) -> Result<Self> {
        let layer = |(l, (depth, heads)): (usize, (&usize, &usize))| -> Result<_> {
            let blocks = (0..*depth).map(|b| Block::load(layout, layers, l, b, *heads)).collect::<Result<_>>()?;
            Ok((blocks, BodyConv::load(layers, layout.resi_connection, &format!("layers.{l}.conv"))?))
        };
        Ok(Self {
            range: Range::new(layers.backend, layout.in_chans, 1.0)?,
            conv_first: layers.conv("conv_first")?,
            before: layers.norm("before_RG.1", EPS)?,
            layers: layout.depth.iter().zip(&layout.num_heads).enumerate().map(layer).collect::<Result<_>>()?,
            norm: layers.norm("norm", EPS)?,
            conv_after_body: BodyConv::load(layers, layout.resi_connection, "conv_after_body")?,
            head: Head::load(layers, &layout.upsampler)?,
            backend: layers.backend.clone(),
            layout: layout.clone(),
        })
    }
}

impl Net for Dat {
    fn work(&self) -> f64 {
        let blocks: usize = self.layout.depth.iter().sum();
        blocks as f64 + 2.0 // the head takes as long as about two blocks
    }

    fn values_per_pixel(&self) -> usize {
        let body = 15 * self.layout.embed_dim;
        body.max(2 * self.layout.embed_dim + Head::values_per_pixel(&self.layout.upsampler, self.layout.embed_dim))
    }

    fn forward(&self, x: &Tensor, progress: &mut Progress<'_>) -> Result<Tensor> {
        let backend = &self.backend;
        let x = self.range.enter(x)?;
        let (_, _, h, w) = x.dims4()?;
        let shallow = self.conv_first.forward(&x, plain())?; // [1, c, h, w]
        let mut tokens = self.before.rows(backend, &ops::to_rows(backend, &shallow)?)?; // [h*w, c]
        for (blocks, conv) in &self.layers {
            let input = tokens.clone();
            for block in blocks {
                tokens = block.forward(backend, &tokens, (h, w))?;
                progress.advance(1.0)?;
            }
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

/// A convolution with the normalization behind it, whose mean and variance were measured in training.
fn normalized(layers: &Layers<'_>, conv: &str, norm: &str) -> Result<Conv2d> {
    let numbers = |name: String| values(layers.checkpoint, &name);
    let [factor, offset, mean, variance] =
        ["weight", "bias", "running_mean", "running_var"].map(|part| numbers(format!("{norm}.{part}")));
    let (factor, offset, mean, variance) = (factor?, offset?, mean?, variance?);
    let factors: Vec<f64> =
        factor.iter().zip(&variance).map(|(f, v)| f64::from(*f) / (f64::from(*v) + EPS).sqrt()).collect();
    let weight = layers.numbers(&format!("{conv}.weight"))?;
    let shape = weight.dims().to_vec();
    let outputs = shape[0];
    let mut weights = weight.flatten_all()?.to_vec1::<f32>()?;
    let each = weights.len() / outputs;
    for (weights, factor) in weights.chunks_exact_mut(each).zip(&factors) {
        weights.iter_mut().for_each(|weight| *weight = (f64::from(*weight) * factor) as f32);
    }
    let bias: Vec<f32> = numbers(format!("{conv}.bias"))?
        .into_iter()
        .enumerate()
        .map(|(i, bias)| ((f64::from(bias) - f64::from(mean[i])) * factors[i] + f64::from(offset[i])) as f32)
        .collect();
    let bias = Tensor::from_vec(bias, outputs, &Device::Cpu)?;
    let weight = Tensor::from_vec(weights, shape.clone(), &Device::Cpu)?;
    Ok(match shape[1..] {
        [1, 3, 3] => Conv2d::depthwise(layers.backend, &weight, Some(&bias))?,
        _ => Conv2d::new(layers.backend, &weight, Some(&bias), 1, 0)?,
    })
}

/// Attention, then two layers with a gate between.
#[derive(Debug)]
struct Block {
    norm1: Norm,
    qkv: Linear,
    attention: Attention,
    /// The branch of convolution beside the attention.
    dwconv: Conv2d,
    channel_interaction: [Conv2d; 2],
    spatial_interaction: [Conv2d; 2],
    proj: Linear,
    norm2: Norm,
    fc1: Linear,
    gate_norm: Norm,
    gate_conv: Conv2d,
    fc2: Linear,
}

#[derive(Debug)]
enum Attention {
    /// Within windows: half of the channels in those of S0 x S1 pixels, half in those of S1 x S0.
    Spatial {
        branches: [Branch; 2],
        /// Whether windows are shifted by half their sides.
        is_shifted: bool,
    },
    /// Of channels, to those of the same head.
    Channel { temperature: Vec<f32> },
}

#[derive(Debug)]
struct Branch {
    /// Rows and columns of a window.
    size: (usize, usize),
    heads: usize,
    /// [heads, keys, queries].
    bias: Tensor,
}

impl Block {
    fn load(layout: &detect::Dat, layers: &Layers<'_>, l: usize, b: usize, heads: usize) -> Result<Self> {
        let block = format!("layers.{l}.blocks.{b}");
        let (attn, ffn) = (format!("{block}.attn"), format!("{block}.ffn"));
        let attention = if b.is_multiple_of(2) {
            let [rows, columns] = layout.split_size;
            let branch = |i: usize, size| Branch::load(layers, &format!("{attn}.attns.{i}"), size, heads / 2);
            Attention::Spatial {
                branches: [branch(0, (rows, columns))?, branch(1, (columns, rows))?],
                // Every other one: from the third block on in even layers, from the first on in odd ones.
                is_shifted: b % 4 == 2 * usize::from(l.is_multiple_of(2)),
            }
        } else {
            Attention::Channel { temperature: values(layers.checkpoint, &format!("{attn}.temperature"))? }
        };
        let pair = |name: &str, conv: usize| -> Result<_> {
            let part = |i: usize| format!("{attn}.{name}.{i}");
            Ok([normalized(layers, &part(conv), &part(conv + 1))?, layers.conv(&part(conv + 3))?])
        };
        Ok(Self {
            norm1: layers.norm(&format!("{block}.norm1"), EPS)?,
            qkv: layers.linear(&format!("{attn}.qkv"))?,
            attention,
            dwconv: normalized(layers, &format!("{attn}.dwconv.0"), &format!("{attn}.dwconv.1"))?,
            channel_interaction: pair("channel_interaction", 1)?,
            spatial_interaction: pair("spatial_interaction", 0)?,
            proj: layers.linear(&format!("{attn}.proj"))?,
            norm2: layers.norm(&format!("{block}.norm2"), EPS)?,
            fc1: layers.linear(&format!("{ffn}.fc1"))?,
            gate_norm: layers.norm(&format!("{ffn}.sg.norm"), EPS)?,
            gate_conv: layers.depthwise(&format!("{ffn}.sg.conv"))?,
            fc2: layers.linear(&format!("{ffn}.fc2"))?,
        })
    }

    /// Keeps the shape of tokens, [h*w, c].
    fn forward(&self, backend: &Backend, tokens: &Tensor, (h, w): (usize, usize)) -> Result<Tensor> {
        let c = tokens.dim(1)?;
        let qkv = self.qkv.forward(&self.norm1.rows(backend, tokens)?, plain())?; // [h*w, 3c]
        let columns = ops::transpose(backend, &qkv)?; // [3c, h*w]
        let v = columns.narrow(0, 2 * c, c)?.reshape((1, c, h, w))?;
        let beside = self.dwconv.forward(&v, then(Function::Gelu))?; // [1, c, h, w]
        drop(v);
        let mixed = match &self.attention {
            Attention::Spatial { branches, is_shifted } => {
                drop(columns);
                let found = self.windows(backend, &qkv, branches, *is_shifted, (h, w))?;
                let [of_channels, of_pixels] = [self.channel_gate(backend, &beside)?, self.spatial_gate(&found)?];
                (found.broadcast_mul(&of_channels)? + beside.broadcast_mul(&of_pixels)?)?
            }
            Attention::Channel { temperature } => {
                let found = over_channels(backend, &columns, temperature)?.reshape((1, c, h, w))?;
                let [of_pixels, of_channels] = [self.spatial_gate(&beside)?, self.channel_gate(backend, &found)?];
                (found.broadcast_mul(&of_pixels)? + beside.broadcast_mul(&of_channels)?)?
            }
        };
        drop((qkv, beside));
        let tokens = self.proj.forward(&ops::to_rows(backend, &mixed)?, plus(tokens))?;
        self.feed_forward(backend, &tokens, (h, w))
    }

    /// What each token finds in its windows, [1, c, h, w].
    fn windows(
        &self,
        backend: &Backend,
        qkv: &Tensor,
        branches: &[Branch; 2],
        is_shifted: bool,
        (h, w): (usize, usize),
    ) -> Result<Tensor> {
        let c = qkv.dim(1)? / 3;
        let most = branches[0].size.0.max(branches[0].size.1);
        let padded = (h.next_multiple_of(most), w.next_multiple_of(most));
        let half = |(i, branch): (usize, &Branch)| -> Result<Tensor> {
            let Branch { size, heads, ref bias } = *branch;
            let shift = if is_shifted { (size.0 / 2, size.1 / 2) } else { (0, 0) };
            let windows = Windows::new((h, w), padded, size, shift);
            let biases = windows.biases(bias)?;
            let (area, width) = (windows.area(), c / 2 / heads);
            let tokens = ops::gather_rows(backend, qkv, &windows.tokens)?;
            let mut parts = Vec::new();
            for (first, length) in chunks(backend, windows.kinds.len(), area) {
                let attention = WindowAttention {
                    heads,
                    width,
                    queries: area,
                    keys: area,
                    scale: (width as f64).powf(-0.5),
                    biases: &biases,
                    kinds: &windows.kinds[first..first + length],
                };
                let x = &tokens.narrow(0, first * area, length * area)?;
                let part = |of: usize| Columns { x, first: of * c + i * c / 2 };
                parts.push(attention.run(backend, part(0), part(1), part(2))?);
            }
            let found = Tensor::cat(&parts, 0)?; // [tokens, c / 2]
            Ok(ops::gather_rows(backend, &found, &windows.tokens.inverse(h * w))?)
        };
        let halves = branches.iter().enumerate().map(half).collect::<Result<Vec<_>>>()?;
        let maps =
            halves.iter().map(|half| ops::to_map(backend, half, h, w)).collect::<candle_core::Result<Vec<_>>>()?;
        Ok(Tensor::cat(&maps, 1)?)
    }

    /// A weight for each channel of x, [1, c, h, w]: [1, c, 1, 1].
    fn channel_gate(&self, backend: &Backend, x: &Tensor) -> Result<Tensor> {
        let (_, c, h, w) = x.dims4()?;
        let means = ops::mean(backend, &x.reshape((c, h * w))?)?.reshape((1, c, 1, 1))?;
        let [squeeze, expand] = &self.channel_interaction;
        Ok(expand.forward(&squeeze.forward(&means, then(Function::Gelu))?, then(Function::Sigmoid))?)
    }

    /// A weight for each pixel of x, [1, c, h, w]: [1, 1, h, w].
    fn spatial_gate(&self, x: &Tensor) -> Result<Tensor> {
        let [squeeze, expand] = &self.spatial_interaction;
        Ok(expand.forward(&squeeze.forward(x, then(Function::Gelu))?, then(Function::Sigmoid))?)
    }

    /// Keeps the shape of tokens, [h*w, c].
    fn feed_forward(&self, backend: &Backend, tokens: &Tensor, (h, w): (usize, usize)) -> Result<Tensor> {
        let hidden = self.fc1.forward(&self.norm2.rows(backend, tokens)?, then(Function::Gelu))?;
        let half = hidden.dim(1)? / 2;
        let gate = self.gate_norm.rows(backend, &hidden.narrow(1, half, half)?.contiguous()?)?;
        let gate = self.gate_conv.forward(&ops::to_map(backend, &gate, h, w)?, plain())?;
        let gated = (hidden.narrow(1, 0, half)? * ops::to_rows(backend, &gate)?)?;
        Ok(self.fc2.forward(&gated, plus(tokens))?)
    }
}

impl Branch {
    fn load(layers: &Layers<'_>, name: &str, size: (usize, usize), heads: usize) -> Result<Self> {
        let area = size.0 * size.1;
        let table = distance_biases(layers, &format!("{name}.pos"), size)?;
        let index = |query, key| relative_position(size, query, key);
        Ok(Self { size, heads, bias: bias(layers.backend, &table, area, area, index)? })
    }
}

/// What a small network makes of each distance (dy, dx) within a window: [distances, heads], dy slower than dx.
fn distance_biases(layers: &Layers<'_>, name: &str, size: (usize, usize)) -> Result<Tensor> {
    let (rows, columns) = (size.0 as i32, size.1 as i32);
    let distances = (1 - rows..rows).flat_map(|dy| (1 - columns..columns).flat_map(move |dx| [dy as f32, dx as f32]));
    let distances = Tensor::from_iter(distances, &Device::Cpu)?.reshape(((), 2))?;
    let mut y = layers.linear(&format!("{name}.pos_proj"))?.forward(&layers.backend.take(&distances)?, plain())?;
    for step in 1..=3 {
        y = layers.norm(&format!("{name}.pos{step}.0"), EPS)?.rows(layers.backend, &y)?;
        y = ops::function(layers.backend, Function::Relu, &y)?;
        y = layers.linear(&format!("{name}.pos{step}.2"))?.forward(&y, plain())?;
    }
    Ok(y.to_device(&Device::Cpu)?.to_dtype(candle_core::DType::F32)?)
}

/// What each channel finds in those of its head: from qkv, [3c, pixels], to [c, pixels].
fn over_channels(backend: &Backend, qkv: &Tensor, temperature: &[f32]) -> Result<Tensor> {
    let c = qkv.dim(0)? / 3;
    let width = c / temperature.len();
    let head = |(i, temperature): (usize, &f32)| -> Result<Tensor> {
        let part = |of: usize| qkv.narrow(0, of * c + i * width, width);
        let (q, k) = (ops::unit_rows(backend, &part(0)?)?, ops::unit_rows(backend, &part(1)?)?);
        let scores = (ops::product_of_rows(backend, &q, &k)? * f64::from(*temperature))?;
        Ok(ops::product(backend, &ops::softmax(backend, &scores)?, &part(2)?.contiguous()?)?)
    };
    Ok(Tensor::cat(&temperature.iter().enumerate().map(head).collect::<Result<Vec<_>>>()?, 0)?)
}
