//! Windows of a map of tokens, and attention within them (Swin, Liu et al. 2021).
//!
//! Tokens are rows, [h*w, c], in the order of the map's pixels or in that of windows. What is done to each token by itself is
//! done in whichever order they stand, so that each block costs one change of places.

use candle_core::{Device, Tensor};

use super::layers::{Layers, plain, plus, then};
use crate::{
    error::Result,
    ops::{self, Backend, Columns, Function, Linear, NO_ROW, Norm, Rows, WindowAttention},
    watch::Progress,
};

/// What the score of tokens loses that are neighbours only since the map was rolled.
const APART: f32 = -100.0;

/// Tokens that one thread of a CPU takes at once: few enough that what is made of them stays in the cache.
const CHUNK: usize = 1024;
/// Tokens that another device takes at once: the scores of all of a picture's would not fit.
const DEVICE_CHUNK: usize = 16 * 1024;

/// A map cut into windows, one after the other in reading order.
#[derive(Debug)]
pub(super) struct Windows {
    /// For each place in the order of windows, the token there. Beyond the map's edge there is none.
    pub(super) tokens: Rows,
    /// For each window, whether it is the last of a row (1), of a column (2), or both (3).
    pub(super) kinds: Vec<u8>,
    /// The sides of a window.
    size: (usize, usize),
    /// By how many pixels the map was rolled up and to the left before.
    shift: (usize, usize),
}

impl Windows {
    /// Cuts `h` x `w` pixels, zeros at the right and at the bottom if `padded` is larger, into windows of `size`.
    pub(super) fn new(
        (h, w): (usize, usize),
        padded: (usize, usize),
        size: (usize, usize),
        shift: (usize, usize),
    ) -> Self {
        let (down, across) = (padded.0 / size.0, padded.1 / size.1);
        let mut tokens = Vec::with_capacity(padded.0 * padded.1);
        let mut kinds = Vec::with_capacity(down * across);
        for (row, column) in (0..down).flat_map(|row| (0..across).map(move |column| (row, column))) {
            for y in 0..size.0 {
                let y = (row * size.0 + y + shift.0) % padded.0;
                tokens.extend((0..size.1).map(|x| {
                    let x = (column * size.1 + x + shift.1) % padded.1;
                    if y < h && x < w { (y * w + x) as u32 } else { NO_ROW }
                }));
            }
            kinds.push(u8::from(column + 1 == across) + 2 * u8::from(row + 1 == down));
        }
        Self { tokens: Rows::new(tokens), kinds, size, shift }
    }

    /// The tokens of a window.
    pub(super) fn area(&self) -> usize {
        self.size.0 * self.size.1
    }

    /// What each of the four kinds of window adds to scores: `bias`, [heads, keys, queries], and [`APART`] between tokens
    /// that come from different sides of the map. Only rolled maps have more than one kind.
    pub(super) fn biases(&self, bias: &Tensor) -> Result<Vec<Tensor>> {
        if self.shift == (0, 0) {
            return Ok(vec![bias.clone(); 4]);
        }
        let area = self.area();
        let side = |kind: u8, token: usize| {
            let (y, x) = (token / self.size.1, token % self.size.1);
            let right = kind & 1 != 0 && x >= self.size.1 - self.shift.1;
            let below = kind & 2 != 0 && y >= self.size.0 - self.shift.0;
            (right, below)
        };
        let of_kind = |kind: u8| {
            let mask = (0..area * area).map(|i| if side(kind, i / area) == side(kind, i % area) { 0.0 } else { APART });
            let mask = Tensor::from_iter(mask, &Device::Cpu)?.reshape((1, area, area))?;
            Ok(bias.broadcast_add(&mask.to_device(bias.device())?.to_dtype(bias.dtype())?)?)
        };
        (0..4).map(of_kind).collect()
    }
}

/// Looks up the bias of pairs of tokens: from `table`, [places, heads], to [heads, keys, queries], where `index` says the
/// place of a query and a key.
pub(super) fn bias(
    backend: &Backend,
    table: &Tensor,
    queries: usize,
    keys: usize,
    index: impl Fn(usize, usize) -> usize,
) -> Result<Tensor> {
    let (places, heads) = table.dims2()?;
    let table = table.flatten_all()?.to_vec1::<f32>()?;
    let mut bias = Vec::with_capacity(heads * keys * queries);
    for head in 0..heads {
        for key in 0..keys {
            bias.extend((0..queries).map(|query| table[index(query, key).min(places - 1) * heads + head]));
        }
    }
    Ok(backend.take(&Tensor::from_vec(bias, (heads, keys, queries), &Device::Cpu)?)?)
}

/// The place of a query and a key in a table of what lies between them, in windows of `hh` x `ww` pixels.
pub(super) fn relative_position((hh, ww): (usize, usize), query: usize, key: usize) -> usize {
    let (yq, xq, yk, xk) = (query / ww, query % ww, key / ww, key % ww);
    (yq + hh - 1 - yk) * (2 * ww - 1) + (xq + ww - 1 - xk)
}

/// Cuts `count` windows of `area` tokens into ranges, (first, length), that are computed at once.
pub(super) fn chunks(backend: &Backend, count: usize, area: usize) -> impl Iterator<Item = (usize, usize)> {
    let most = match backend {
        Backend::Kernels(_) => (CHUNK * kernels::threads::threads()).div_ceil(area),
        Backend::Candle(..) => DEVICE_CHUNK.div_ceil(area),
    };
    (0..count).step_by(most).map(move |first| (first, most.min(count - first)))
}

/// Attention of each token to those of its window, with the tables of what lies between them.
#[derive(Debug)]
pub(super) struct Attention {
    qkv: Linear,
    proj: Linear,
    /// [heads, keys, queries].
    bias: Tensor,
    heads: usize,
    width: usize,
}

impl Attention {
    /// Loads `name`, whose windows are squares of `size`, with `heads` heads of tokens with `channels`.
    pub(super) fn load(layers: &Layers<'_>, name: &str, size: usize, heads: usize, channels: usize) -> Result<Self> {
        let table = layers.numbers(&format!("{name}.relative_position_bias_table"))?;
        let index = |query, key| relative_position((size, size), query, key);
        Ok(Self {
            qkv: layers.linear(&format!("{name}.qkv"))?,
            proj: layers.linear(&format!("{name}.proj"))?,
            bias: bias(layers.backend, &table, size * size, size * size, index)?,
            heads,
            width: channels / heads,
        })
    }

    /// What windows add to the scores of this attention.
    pub(super) fn biases(&self, windows: &Windows) -> Result<Vec<Tensor>> {
        windows.biases(&self.bias)
    }

    /// Adds what tokens find in their windows to `residual`. Both are [windows * area, c].
    pub(super) fn forward(
        &self,
        backend: &Backend,
        tokens: &Tensor,
        (area, kinds, biases): (usize, &[u8], &[Tensor]),
        residual: &Tensor,
    ) -> Result<Tensor> {
        let qkv = self.qkv.forward(tokens, plain())?; // [windows * area, 3c]
        let Self { heads, width, .. } = *self;
        let attention = WindowAttention {
            heads,
            width,
            queries: area,
            keys: area,
            scale: (width as f64).powf(-0.5),
            biases,
            kinds,
        };
        let part = |i: usize| Columns { x: &qkv, first: i * heads * width };
        let y = attention.run(backend, part(0), part(1), part(2))?;
        Ok(self.proj.forward(&y, plus(residual))?)
    }
}

/// Two layers that see each token by itself: x + fc2(gelu(fc1(norm(x)))).
#[derive(Debug)]
pub(super) struct Mlp {
    norm: Norm,
    fc1: Linear,
    fc2: Linear,
}

impl Mlp {
    pub(super) fn load(layers: &Layers<'_>, norm: &str, mlp: &str) -> Result<Self> {
        Ok(Self {
            norm: layers.norm(norm, 1e-5)?,
            fc1: layers.linear(&format!("{mlp}.fc1"))?,
            fc2: layers.linear(&format!("{mlp}.fc2"))?,
        })
    }

    /// Keeps the shape of tokens, [n, c].
    pub(super) fn forward(&self, backend: &Backend, tokens: &Tensor) -> Result<Tensor> {
        let hidden = self.fc1.forward(&self.norm.rows(backend, tokens)?, then(Function::Gelu))?;
        Ok(self.fc2.forward(&hidden, plus(tokens))?)
    }
}

/// A block of Swin: attention in windows, then two layers.
#[derive(Debug)]
pub(super) struct SwinBlock {
    norm1: Norm,
    attn: Attention,
    mlp: Mlp,
}

impl SwinBlock {
    pub(super) fn load(layers: &Layers<'_>, name: &str, size: usize, heads: usize, channels: usize) -> Result<Self> {
        Ok(Self {
            norm1: layers.norm(&format!("{name}.norm1"), 1e-5)?,
            attn: Attention::load(layers, &format!("{name}.attn"), size, heads, channels)?,
            mlp: Mlp::load(layers, &format!("{name}.norm2"), &format!("{name}.mlp"))?,
        })
    }

    /// Keeps the shape of tokens, [n, c], which stand in the order of `windows`. Tells progress of `work`.
    pub(super) fn forward(
        &self,
        backend: &Backend,
        tokens: &Tensor,
        windows: &Windows,
        progress: &mut Progress<'_>,
        work: f64,
    ) -> Result<Tensor> {
        let (area, count) = (windows.area(), windows.kinds.len());
        let biases = self.attn.biases(windows)?;
        let mut parts = Vec::new();
        for (first, length) in chunks(backend, count, area) {
            let x = tokens.narrow(0, first * area, length * area)?;
            let y = self.norm1.rows(backend, &x)?;
            let kinds = &windows.kinds[first..first + length];
            let x = self.attn.forward(backend, &y, (area, kinds, &biases), &x)?;
            parts.push(self.mlp.forward(backend, &x)?);
            progress.advance(work * length as f64 / count as f64)?;
        }
        Ok(Tensor::cat(&parts, 0)?)
    }
}

/// Brings tokens from one order into another: that of windows, or none for that of the map.
pub(super) fn reorder(
    backend: &Backend,
    tokens: &Tensor,
    from: Option<&Windows>,
    to: Option<&Windows>,
    pixels: usize,
) -> Result<Tensor> {
    let rows = match (from, to) {
        (None, None) => return Ok(tokens.clone()),
        (None, Some(to)) => to.tokens.clone(),
        (Some(from), None) => from.tokens.inverse(pixels),
        (Some(from), Some(to)) => to.tokens.after(&from.tokens.inverse(pixels)),
    };
    Ok(ops::gather_rows(backend, tokens, &rows)?)
}
