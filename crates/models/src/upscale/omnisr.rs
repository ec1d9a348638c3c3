//! Omni-SR (Wang et al. 2023): attention within windows, over grids, and over channels of each of them, in turn.

use candle_core::Tensor;
use weights::detect;

use super::{
    layers::{Layers, Net, plain, plus, then},
    parts::values,
    window::{Windows, bias, relative_position},
};
use crate::{
    error::Result,
    ops::{self, Backend, Columns, Conv2d, Function, Linear, Norm, Rows, WindowAttention},
    watch::Progress,
};

const HEADS: usize = detect::OmniSr::HEADS;

/// The whole network.
#[derive(Debug)]
pub(super) struct OmniSr {
    layout: detect::OmniSr,
    backend: Backend,
    input: Conv2d,
    groups: Vec<Group>,
    output: Conv2d,
    up: Conv2d,
}

impl OmniSr {
    pub(super) fn load(layout: &detect::OmniSr, layers: &Layers<'_>) -> Result<Self> {
        Ok(Self {
            input: layers.conv("input")?,
            groups: (0..layout.res_num).map(|group| Group::load(layout, layers, group)).collect::<Result<_>>()?,
            output: layers.conv("output")?,
            up: layers.conv("up.0")?,
            backend: layers.backend.clone(),
            layout: *layout,
        })
    }
}

impl Net for OmniSr {
    fn work(&self) -> f64 {
        (self.layout.res_num * self.layout.block_num + 1) as f64
    }

    fn values_per_pixel(&self) -> usize {
        let detect::OmniSr { num_feat, num_out_ch, up_scale, .. } = self.layout;
        14 * num_feat + 2 * num_out_ch * up_scale * up_scale
    }

    fn forward(&self, x: &Tensor, progress: &mut Progress<'_>) -> Result<Tensor> {
        let (_, _, h, w) = x.dims4()?;
        let (size, scale) = (self.layout.window_size, self.layout.up_scale);
        let multiple = |side: usize| side.next_multiple_of(size) - side;
        let x = x.pad_with_zeros(2, 0, multiple(h))?.pad_with_zeros(3, 0, multiple(w))?;
        let first = self.input.forward(&x, plain())?; // [1, c, h', w']
        let places = Places::new(h + multiple(h), w + multiple(w), size);
        let mut y = first.clone();
        for group in &self.groups {
            y = group.forward(&self.backend, &y, &places, progress)?;
        }
        let y = self.up.forward(&self.output.forward(&y, plus(&first))?, plain())?;
        let y = ops::pixel_shuffle(&self.backend, &y, scale)?;
        progress.advance(1.0)?;
        Ok(y.narrow(2, 0, h * scale)?.narrow(3, 0, w * scale)?)
    }
}

/// Which pixels attend to each other.
#[derive(Debug)]
struct Places {
    /// Neighbours: squares of pixels.
    windows: Rows,
    /// Pixels as far apart as they can be: one of each square that the picture is cut into.
    grids: Rows,
    /// How many windows there are, and as many grids.
    count: usize,
    /// Pixels of a window.
    area: usize,
    /// What brings pixels back from the order of windows, and of grids.
    back: [Rows; 2],
}

impl Places {
    fn new(h: usize, w: usize, size: usize) -> Self {
        let windows = Windows::new((h, w), (h, w), (size, size), (0, 0)).tokens;
        // The pixels of a grid are h / size rows and w / size columns apart.
        let (down, across) = (h / size, w / size);
        let grid = |(y, x): (usize, usize)| {
            let cells = (0..size).flat_map(move |i| (0..size).map(move |j| (i, j)));
            cells.map(move |(i, j)| ((i * down + y) * w + j * across + x) as u32)
        };
        let grids = Rows::new((0..down).flat_map(|y| (0..across).map(move |x| (y, x))).flat_map(grid).collect());
        let back = [windows.inverse(h * w), grids.inverse(h * w)];
        Self { windows, grids, count: down * across, area: size * size, back }
    }
}

/// Blocks, and a weight for each pixel and channel behind them.
#[derive(Debug)]
struct Group {
    blocks: Vec<Block>,
    conv: Conv2d,
    esa: SpatialAttention,
}

impl Group {
    fn load(layout: &detect::OmniSr, layers: &Layers<'_>, group: usize) -> Result<Self> {
        let name = |part: usize| format!("residual_layer.{group}.residual_layer.{part}");
        Ok(Self {
            blocks: (0..layout.block_num)
                .map(|block| Block::load(layout, layers, &format!("{}.layer", name(block))))
                .collect::<Result<_>>()?,
            conv: layers.conv(&name(layout.block_num))?,
            esa: SpatialAttention::load(layers, &format!("residual_layer.{group}.esa"))?,
        })
    }

    /// Keeps the shape of x, [1, c, h, w], as all below do.
    fn forward(&self, backend: &Backend, x: &Tensor, places: &Places, progress: &mut Progress<'_>) -> Result<Tensor> {
        let mut y = x.clone();
        for block in &self.blocks {
            y = block.forward(backend, &y, places)?;
            progress.advance(1.0)?;
        }
        self.esa.forward(&self.conv.forward(&y, plus(x))?)
    }
}

#[derive(Debug)]
struct Block {
    local: LocalConv,
    /// Each with the channel attention behind it: within windows, then over grids.
    attentions: [(TokenAttention, FeedForward, ChannelAttention, FeedForward); 2],
}

impl Block {
    fn load(layout: &detect::OmniSr, layers: &Layers<'_>, name: &str) -> Result<Self> {
        let part = |i: usize| format!("{name}.{i}");
        let four = |[tokens, first, channels, second]: [usize; 4]| -> Result<_> {
            Ok((
                TokenAttention::load(layout, layers, &part(tokens))?,
                FeedForward::load(layers, &part(first))?,
                ChannelAttention::load(layers, &part(channels))?,
                FeedForward::load(layers, &part(second))?,
            ))
        };
        Ok(Self {
            local: LocalConv::load(layers, &part(0))?,
            attentions: [four([2, 4, 5, 6])?, four([8, 10, 11, 12])?],
        })
    }

    fn forward(&self, backend: &Backend, x: &Tensor, places: &Places) -> Result<Tensor> {
        let mut y = self.local.forward(backend, x)?;
        for (i, (tokens, first, channels, second)) in self.attentions.iter().enumerate() {
            let rows = if i == 0 { &places.windows } else { &places.grids };
            y = tokens.forward(backend, &y, rows, &places.back[i], places)?;
            y = first.forward(backend, &y)?;
            // Channels attend over what tokens do not: over windows' neighbours first, then over pixels a window apart.
            y = channels.forward(backend, &y, places, i == 1)?;
            y = second.forward(backend, &y)?;
        }
        Ok(y)
    }
}

/// A convolution of each channel between two of each pixel, and a weight for each channel.
#[derive(Debug)]
struct LocalConv {
    enter: Conv2d,
    depthwise: Conv2d,
    gate: [Linear; 2],
    leave: Conv2d,
}

impl LocalConv {
    fn load(layers: &Layers<'_>, name: &str) -> Result<Self> {
        let part = |part: &str| format!("{name}.fn.{part}");
        Ok(Self {
            enter: layers.conv(&part("0"))?,
            depthwise: layers.depthwise(&part("2"))?,
            gate: [layers.linear(&part("4.gate.1"))?, layers.linear(&part("4.gate.3"))?],
            leave: layers.conv(&part("5"))?,
        })
    }

    fn forward(&self, backend: &Backend, x: &Tensor) -> Result<Tensor> {
        let (_, c, h, w) = x.dims4()?;
        let y = self.depthwise.forward(&self.enter.forward(x, then(Function::Gelu))?, then(Function::Gelu))?;
        let means = ops::mean(backend, &y.reshape((c, h * w))?)?.reshape((1, c))?;
        let [squeeze, expand] = &self.gate;
        let gate = expand.forward(&squeeze.forward(&means, then(Function::Silu))?, then(Function::Sigmoid))?;
        Ok(self.leave.forward(&y.broadcast_mul(&gate.reshape((1, c, 1, 1))?)?, plus(x))?)
    }
}

/// Normalizes the channels of each pixel of x, [1, c, h, w].
fn normalize(backend: &Backend, norm: &Norm, x: &Tensor) -> Result<Tensor> {
    let (_, _, h, w) = x.dims4()?;
    Ok(ops::to_map(backend, &norm.rows(backend, &ops::to_rows(backend, x)?)?, h, w)?)
}

/// Attention of pixels to those of the same window or grid.
#[derive(Debug)]
struct TokenAttention {
    norm: Norm,
    to_qkv: Linear,
    to_out: Linear,
    /// [heads, keys, queries], for all windows; none in some models.
    biases: Vec<Tensor>,
}

impl TokenAttention {
    fn load(layout: &detect::OmniSr, layers: &Layers<'_>, name: &str) -> Result<Self> {
        let size = layout.window_size;
        let biases = match layout.pe {
            true => {
                let table = layers.numbers(&format!("{name}.fn.rel_pos_bias.weight"))?;
                let index = |query, key| relative_position((size, size), query, key);
                vec![bias(layers.backend, &table, size * size, size * size, index)?]
            }
            false => Vec::new(),
        };
        Ok(Self {
            norm: layers.norm(&format!("{name}.norm"), 1e-5)?,
            to_qkv: layers.linear(&format!("{name}.fn.to_qkv"))?,
            to_out: layers.linear(&format!("{name}.fn.to_out.0"))?,
            biases,
        })
    }

    fn forward(&self, backend: &Backend, x: &Tensor, rows: &Rows, back: &Rows, places: &Places) -> Result<Tensor> {
        let (_, c, h, w) = x.dims4()?;
        let tokens = ops::to_rows(backend, x)?; // [h*w, c]
        let tokens = ops::gather_rows(backend, &tokens, rows)?;
        let qkv = self.to_qkv.forward(&self.norm.rows(backend, &tokens)?, plain())?;
        let width = c / HEADS;
        let attention = WindowAttention {
            heads: HEADS,
            width,
            queries: places.area,
            keys: places.area,
            scale: (width as f64).powf(-0.5),
            biases: &self.biases,
            kinds: &vec![0; places.count],
        };
        let part = |i: usize| Columns { x: &qkv, first: i * c };
        let found = attention.run(backend, part(0), part(1), part(2))?;
        let tokens = self.to_out.forward(&found, plus(&tokens))?;
        Ok(ops::to_map(backend, &ops::gather_rows(backend, &tokens, back)?, h, w)?)
    }
}

/// Attention of channels to those of the same head, over some of the pixels at a time.
#[derive(Debug)]
struct ChannelAttention {
    norm: Norm,
    qkv: Conv2d,
    depthwise: Conv2d,
    project_out: Conv2d,
    temperature: Vec<f32>,
}

impl ChannelAttention {
    fn load(layers: &Layers<'_>, name: &str) -> Result<Self> {
        Ok(Self {
            norm: layers.norm(&format!("{name}.norm"), 1e-6)?,
            qkv: layers.conv(&format!("{name}.fn.qkv"))?,
            depthwise: layers.depthwise(&format!("{name}.fn.qkv_dwconv"))?,
            project_out: layers.conv(&format!("{name}.fn.project_out"))?,
            temperature: values(layers.checkpoint, &format!("{name}.fn.temperature"))?,
        })
    }

    /// Over the pixels of each window, or (if `apart`) over those at the same place of all windows.
    fn forward(&self, backend: &Backend, x: &Tensor, places: &Places, apart: bool) -> Result<Tensor> {
        let (_, c, h, w) = x.dims4()?;
        let qkv = self.depthwise.forward(&self.qkv.forward(&normalize(backend, &self.norm, x)?, plain())?, plain())?;
        let tokens = ops::gather_rows(backend, &ops::to_rows(backend, &qkv)?, &places.windows)?; // [count * area, 3c]
        drop(qkv);
        let Places { count, area, .. } = *places;
        // As many sets of pixels, [set][pixel][3c]; where they are apart, each has one pixel of each window.
        let tokens = match apart {
            true => tokens.reshape((count, area, 3 * c))?.transpose(0, 1)?.contiguous()?,
            false => tokens.reshape((count, area, 3 * c))?,
        };
        let width = c / HEADS;
        let (sets, _, _) = tokens.dims3()?;
        let mut found = Vec::with_capacity(sets);
        for set in 0..sets {
            let columns = ops::transpose(backend, &tokens.get(set)?)?; // [3c, pixels]
            let mut heads = Vec::with_capacity(HEADS);
            for (head, temperature) in self.temperature.iter().enumerate() {
                let part = |of: usize| columns.narrow(0, of * c + head * width, width);
                let (q, k) = (ops::unit_rows(backend, &part(0)?)?, ops::unit_rows(backend, &part(1)?)?);
                let scores = (ops::product_of_rows(backend, &q, &k)? * f64::from(*temperature))?;
                heads.push(ops::product(backend, &ops::softmax(backend, &scores)?, &part(2)?)?);
            }
            found.push(ops::transpose(backend, &Tensor::cat(&heads, 0)?)?); // [pixels, c]
        }
        let mut found = Tensor::stack(&found, 0)?;
        if apart {
            found = found.transpose(0, 1)?.contiguous()?;
        }
        let found = ops::gather_rows(backend, &found.reshape((count * area, c))?, &places.back[0])?;
        Ok(self.project_out.forward(&ops::to_map(backend, &found, h, w)?, plus(x))?)
    }
}

/// Two convolutions of each pixel, with one of each channel and a gate between.
#[derive(Debug)]
struct FeedForward {
    norm: Norm,
    project_in: Conv2d,
    depthwise: Conv2d,
    project_out: Conv2d,
}

impl FeedForward {
    fn load(layers: &Layers<'_>, name: &str) -> Result<Self> {
        Ok(Self {
            norm: layers.norm(&format!("{name}.norm"), 1e-6)?,
            project_in: layers.conv(&format!("{name}.fn.project_in"))?,
            depthwise: layers.depthwise(&format!("{name}.fn.dwconv"))?,
            project_out: layers.conv(&format!("{name}.fn.project_out"))?,
        })
    }

    fn forward(&self, backend: &Backend, x: &Tensor) -> Result<Tensor> {
        let c = x.dim(1)?;
        let y = self.project_in.forward(&normalize(backend, &self.norm, x)?, plain())?;
        let y = self.depthwise.forward(&y, plain())?; // [1, 2c, h, w]
        let gate = ops::function(backend, Function::Gelu, &y.narrow(1, 0, c)?)?;
        Ok(self.project_out.forward(&(gate * y.narrow(1, c, c)?)?, plus(x))?)
    }
}

/// A weight for each pixel and channel, from what lies around it.
#[derive(Debug)]
struct SpatialAttention {
    conv1: Conv2d,
    conv2: Conv2d,
    conv3: Conv2d,
    conv4: Conv2d,
    conv_f: Conv2d,
}

impl SpatialAttention {
    fn load(layers: &Layers<'_>, name: &str) -> Result<Self> {
        let conv = |part: &str| layers.conv(&format!("{name}.{part}"));
        Ok(Self {
            conv1: conv("conv1")?,
            conv2: layers.strided(&format!("{name}.conv2"), 2, 0)?,
            conv3: conv("conv3")?,
            conv4: conv("conv4")?,
            conv_f: conv("conv_f")?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (_, _, h, w) = x.dims4()?;
        let narrow = self.conv1.forward(x, plain())?;
        let around = ops::max_pool(&self.conv2.forward(&narrow, plain())?, 7, 3)?;
        let around = ops::resize_bilinear(&self.conv3.forward(&around, plain())?, (h, w))?;
        let weights = self.conv4.forward(&self.conv_f.forward(&narrow, plus(&around))?, then(Function::Sigmoid))?;
        Ok((weights * x)?)
    }
}
