//! ATD (Zhang et al. 2024): attention in windows, to the tokens of a dictionary, and among pixels that are like the same token.
//!
//! Each pixel belongs to the token that it attends to most; pixels are sorted by it, and each run of so many attends to itself.
//! Of equally good tokens the first counts, and pixels of one token keep the order of the picture; the reference leaves the latter
//! open (its sort is not a stable one). Where two tokens are nearly as good, the last digits of a sum decide, so that kernels of
//! different processors differ by more here than in other networks.

use candle_core::{DType, Device, Tensor};
use candle_nn::ops::sigmoid;
use weights::detect;

use super::{
    layers::{BodyConv, Head, Layers, Net, Range, plain, plus, then},
    window::{Windows, bias, chunks, relative_position},
};
use crate::{
    error::Result,
    ops::{self, Backend, Columns, Conv2d, Function, Linear, Norm, Rows, Then, WindowAttention},
    watch::Progress,
};

/// What is added to variances.
const EPS: f64 = 1e-5;

/// The greatest factor of scores among pixels of one token.
const MOST_LOGIT_SCALE: f64 = 100.0;

/// The whole network.
#[derive(Debug)]
pub(super) struct Atd {
    layout: detect::Atd,
    backend: Backend,
    /// Of some networks the mean stays.
    range: Option<Range>,
    conv_first: Conv2d,
    patch_norm: Option<Norm>,
    groups: Vec<Group>,
    norm: Norm,
    conv_after_body: BodyConv,
    head: Head,
}

/// Layers that share a dictionary, which each refines for the next.
#[derive(Debug)]
struct Group {
    /// The dictionary that the first layer has, [m, c].
    td: Tensor,
    layers: Vec<Layer>,
    conv: BodyConv,
}

impl Atd {
    pub(super) fn load(layout: &detect::Atd, layers: &Layers<'_>) -> Result<Self> {
        let group = |(g, (depth, heads)): (usize, (&usize, &usize))| -> Result<_> {
            let name = format!("layers.{g}.residual_group");
            let layer = |l: usize| Layer::load(layout, layers, &format!("{name}.layers.{l}"), *heads, l + 1 == *depth);
            Ok(Group {
                td: layers.tensor(&format!("{name}.td"))?,
                layers: (0..*depth).map(layer).collect::<Result<_>>()?,
                conv: BodyConv::load(layers, layout.resi_connection, &format!("layers.{g}.conv"))?,
            })
        };
        Ok(Self {
            range: layout.norm.then(|| Range::new(layers.backend, layout.in_chans, 1.0)).transpose()?,
            conv_first: layers.conv("conv_first")?,
            patch_norm: layout.patch_norm.then(|| layers.norm("patch_embed.norm", EPS)).transpose()?,
            groups: layout.depths.iter().zip(&layout.num_heads).enumerate().map(group).collect::<Result<_>>()?,
            norm: layers.norm("norm", EPS)?,
            conv_after_body: BodyConv::load(layers, layout.resi_connection, "conv_after_body")?,
            head: Head::load(layers, &layout.upsampler)?,
            backend: layers.backend.clone(),
            layout: layout.clone(),
        })
    }
}

impl Net for Atd {
    fn work(&self) -> f64 {
        let layers: usize = self.layout.depths.iter().sum();
        layers as f64 + 2.0 // the head takes as long as about two layers
    }

    fn values_per_pixel(&self) -> usize {
        let detect::Atd { embed_dim: c, num_tokens, .. } = self.layout;
        // Queries, keys, values and what the attentions give stand beside each other, and copies of the likeness.
        let body = 15 * c + 3 * num_tokens;
        body.max(7 * c + Head::values_per_pixel(&self.layout.upsampler, c))
    }

    fn forward(&self, x: &Tensor, progress: &mut Progress<'_>) -> Result<Tensor> {
        let (backend, size) = (&self.backend, self.layout.window_size);
        let x = mirror(x, size)?;
        let x = match &self.range {
            Some(range) => range.enter(&x)?,
            None => x,
        };
        let (_, _, h, w) = x.dims4()?;
        let shallow = self.conv_first.forward(&x, plain())?; // [1, c, h, w]

        let windows = [0, size / 2].map(|shift| Windows::new((h, w), (h, w), (size, size), (shift, shift)));
        let mut tokens = ops::to_rows(backend, &shallow)?; // [h*w, c], in the order of the map all along
        if let Some(norm) = &self.patch_norm {
            tokens = norm.rows(backend, &tokens)?;
        }
        for group in &self.groups {
            let input = tokens.clone();
            let mut td = group.td.clone();
            for (l, layer) in group.layers.iter().enumerate() {
                (tokens, td) = layer.forward(backend, &tokens, td, (h, w), &windows[l % 2])?;
                progress.advance(1.0)?;
            }
            let map = ops::to_map(backend, &tokens, h, w)?;
            tokens = ops::to_rows(backend, &group.conv.forward(&map, &ops::to_map(backend, &input, h, w)?)?)?;
        }
        let tokens = self.norm.rows(backend, &tokens)?;
        let features = self.conv_after_body.forward(&ops::to_map(backend, &tokens, h, w)?, &shallow)?;
        drop((tokens, shallow));
        let y = self.head.forward(backend, &features, &x)?;
        let y = match &self.range {
            Some(range) => range.leave(&y)?,
            None => y,
        };
        progress.advance(2.0)?;
        Ok(y)
    }
}

/// Pads x, [1, c, h, w], at the right and at the bottom to multiples of `size`, with its mirror image, whose first line is the
/// picture's last once more. Where that ends the picture follows again, which the reference refuses.
fn mirror(x: &Tensor, size: usize) -> Result<Tensor> {
    let along = |x: &Tensor, axis: usize| -> Result<_> {
        let length = x.dim(axis)?;
        if length.is_multiple_of(size) {
            return Ok(x.clone());
        }
        let source = |i: usize| (i % (2 * length)).min(2 * length - 1 - i % (2 * length)) as u32;
        let lines: Vec<u32> = (0..length.next_multiple_of(size)).map(source).collect();
        Ok(x.index_select(&Tensor::new(lines, x.device())?, axis)?)
    };
    along(&along(x, 2)?, 3)
}

/// The three attentions side by side, then a feed-forward part with a convolution in it.
#[derive(Debug)]
struct Layer {
    norm1: Norm,
    wqkv: Linear,
    attn_win: Among,
    /// What lies between pixels of a window adds to their scores, [heads, keys, queries].
    bias: Tensor,
    attn_atd: DictionaryAttention,
    attn_aca: Among,
    category_size: usize,
    convffn: ConvFfn,
    refinement: Option<Refinement>,
}

impl Layer {
    fn load(layout: &detect::Atd, layers: &Layers<'_>, name: &str, heads: usize, is_last: bool) -> Result<Self> {
        let (size, width) = (layout.window_size, layout.embed_dim / heads);
        let table = layers.numbers(&format!("{name}.attn_win.relative_position_bias_table"))?;
        let index = |query, key| relative_position((size, size), query, key);
        let among = |part: &str, scale| -> Result<_> {
            Ok(Among { proj: layers.linear(&format!("{name}.{part}.proj"))?, heads, width, scale })
        };
        let logit_scale = layers.numbers(&format!("{name}.attn_aca.logit_scale"))?.reshape(())?.to_scalar::<f32>()?;
        Ok(Self {
            norm1: layers.norm(&format!("{name}.norm1"), EPS)?,
            wqkv: layers.linear(&format!("{name}.wqkv"))?,
            attn_win: among("attn_win", (width as f64).powf(-0.5))?,
            bias: bias(layers.backend, &table, size * size, size * size, index)?,
            attn_atd: DictionaryAttention::load(layers, &format!("{name}.attn_atd"))?,
            attn_aca: among("attn_aca", f64::from(logit_scale).exp().min(MOST_LOGIT_SCALE))?,
            category_size: layout.category_size(),
            convffn: ConvFfn::load(layers, name)?,
            refinement: (!is_last).then(|| Refinement::load(layers, name)).transpose()?,
        })
    }

    /// Keeps the shapes of tokens, [h*w, c], and of the dictionary, [m, c].
    fn forward(
        &self,
        backend: &Backend,
        tokens: &Tensor,
        td: Tensor,
        (h, w): (usize, usize),
        windows: &Windows,
    ) -> Result<(Tensor, Tensor)> {
        let y = self.norm1.rows(backend, tokens)?;
        let qkv = self.wqkv.forward(&y, plain())?; // [h*w, 3c]
        let (x, similarity) = self.attn_atd.forward(backend, &y, &td, tokens)?;
        drop(y);

        let kinds = &windows.kinds;
        let found = self.attn_win.forward(backend, &qkv, &windows.tokens, kinds, &windows.biases(&self.bias)?)?;
        let x = (x + ops::gather_rows(backend, &found, &windows.tokens.inverse(h * w))?)?;
        drop(found);

        let categories = Categories::new(&similarity, self.category_size)?;
        let found = self.attn_aca.forward(backend, &qkv, &categories.runs, &vec![0; categories.count], &[])?;
        drop(qkv);
        let x = (x + ops::gather_rows(backend, &found, &categories.back)?)?;
        drop(found);

        let x = self.convffn.forward(backend, &x, (h, w))?;
        let td = match &self.refinement {
            Some(refinement) => refinement.forward(backend, &td, similarity, &x)?,
            None => td,
        };
        Ok((x, td))
    }
}

/// Attention of pixels among those of the same set: a window, or a run of one category.
#[derive(Debug)]
struct Among {
    proj: Linear,
    heads: usize,
    width: usize,
    scale: f64,
}

impl Among {
    /// Takes qkv, [n, 3c], and gives what the pixels `rows`, set after set, find in their sets, [rows, c]. There are as many
    /// sets as `kinds`, and `biases` for each kind, or none at all.
    fn forward(&self, backend: &Backend, qkv: &Tensor, rows: &Rows, kinds: &[u8], biases: &[Tensor]) -> Result<Tensor> {
        let Self { heads, width, scale, .. } = *self;
        let area = rows.len() / kinds.len();
        let mut parts = Vec::new();
        for (first, length) in chunks(backend, kinds.len(), area) {
            let qkv = ops::gather_rows(backend, qkv, &rows.part(first * area, length * area))?;
            let kinds = &kinds[first..first + length];
            let attention = WindowAttention { heads, width, queries: area, keys: area, scale, biases, kinds };
            let part = |i: usize| Columns { x: &qkv, first: i * heads * width };
            parts.push(self.proj.forward(&attention.run(backend, part(0), part(1), part(2))?, plain())?);
        }
        Ok(Tensor::cat(&parts, 0)?)
    }
}

/// Pixels sorted by the token that they are most like, in runs of one length.
#[derive(Debug)]
struct Categories {
    /// The pixels, run after run. The last run is filled up with the last pixels in reverse.
    runs: Rows,
    /// How many runs there are.
    count: usize,
    /// What brings the pixels of the runs back.
    back: Rows,
}

impl Categories {
    /// Sorts pixels by `similarity`, [n, m], their likeness to each token, into runs of at most `size`.
    fn new(similarity: &Tensor, size: usize) -> Result<Self> {
        let (n, tokens) = similarity.dims2()?;
        let similarity = similarity.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
        let similarity = similarity.flatten_all()?.to_vec1::<f32>()?;
        let most_like =
            |row: &[f32]| (1..tokens).fold(0, |best, token| if row[token] > row[best] { token } else { best });
        let categories: Vec<usize> = similarity.chunks_exact(tokens).map(most_like).collect();
        let mut sorted: Vec<u32> = (0..n as u32).collect();
        sorted.sort_by_key(|pixel| categories[*pixel as usize]); // stable
        let back = Rows::new(sorted.clone()).inverse(n);
        let run = size.min(n);
        let count = n.div_ceil(run);
        sorted.extend_from_within(2 * n - count * run..);
        sorted[n..].reverse();
        Ok(Self { runs: Rows::new(sorted), count, back })
    }
}

/// Attention of pixels to the tokens of a dictionary, by the angles between them.
#[derive(Debug)]
struct DictionaryAttention {
    wq: Linear,
    wk: Linear,
    wv: Linear,
    /// The factor of scores for each token, [m, 1].
    scale: Tensor,
}

impl DictionaryAttention {
    fn load(layers: &Layers<'_>, name: &str) -> Result<Self> {
        let linear = |part: &str| layers.linear(&format!("{name}.{part}"));
        let scale = layers.numbers(&format!("{name}.scale"))?;
        let tokens = scale.dim(0)?;
        let scale = ((scale.clamp(0f32, 1f32)? * (tokens as f64).ln())? + 1.0)?.reshape((tokens, 1))?;
        Ok(Self { wq: linear("wq")?, wk: linear("wk")?, wv: linear("wv")?, scale: layers.backend.take(&scale)? })
    }

    /// Adds what pixels x, [n, c], find in `td`, [m, c], to `residual`, [n, c]. Gives also how like pixels and tokens are,
    /// [n, m].
    fn forward(&self, backend: &Backend, x: &Tensor, td: &Tensor, residual: &Tensor) -> Result<(Tensor, Tensor)> {
        let unit =
            |layer: &Linear, x: &Tensor| -> Result<_> { Ok(ops::unit_rows(backend, &layer.forward(x, plain())?)?) };
        let keys = unit(&self.wk, td)?.broadcast_mul(&self.scale)?;
        let scores = ops::product_of_rows(backend, &unit(&self.wq, x)?, &keys)?;
        let similarity = ops::softmax(backend, &scores)?;
        drop(scores);
        let values = ops::transpose(backend, &self.wv.forward(td, plain())?)?; // [c, m]
        let found = Linear::new(backend, &values, None)?.forward(&similarity, plus(residual))?;
        Ok((found, similarity))
    }
}

/// Two layers that see each pixel by itself, with a convolution of each channel between them.
#[derive(Debug)]
struct ConvFfn {
    norm: Norm,
    fc1: Linear,
    dwconv: Conv2d,
    fc2: Linear,
}

impl ConvFfn {
    fn load(layers: &Layers<'_>, name: &str) -> Result<Self> {
        Ok(Self {
            norm: layers.norm(&format!("{name}.norm2"), EPS)?,
            fc1: layers.linear(&format!("{name}.convffn.fc1"))?,
            dwconv: layers.depthwise(&format!("{name}.convffn.dwconv.depthwise_conv.0"))?,
            fc2: layers.linear(&format!("{name}.convffn.fc2"))?,
        })
    }

    /// Keeps the shape of tokens, [h*w, c].
    fn forward(&self, backend: &Backend, tokens: &Tensor, (h, w): (usize, usize)) -> Result<Tensor> {
        let hidden = self.fc1.forward(&self.norm.rows(backend, tokens)?, then(Function::Gelu))?;
        let map = ops::to_map(backend, &hidden, h, w)?;
        drop(hidden);
        let map = self.dwconv.forward(&map, Then { function: Some(Function::Gelu), residual: Some(&map) })?;
        Ok(self.fc2.forward(&ops::to_rows(backend, &map)?, plus(tokens))?)
    }
}

/// How a layer refines the dictionary: towards the mean of the pixels, each counted by how like a token it is.
#[derive(Debug)]
struct Refinement {
    norm3: Norm,
    /// How much of each token stays, [m, 1].
    stays: Tensor,
}

impl Refinement {
    fn load(layers: &Layers<'_>, name: &str) -> Result<Self> {
        let stays = sigmoid(&layers.numbers(&format!("{name}.sigma"))?)?;
        Ok(Self { norm3: layers.norm(&format!("{name}.norm3"), EPS)?, stays: layers.backend.take(&stays)? })
    }

    /// Keeps the shape of `td`, [m, c]. Takes `similarity`, [n, m], of pixels x, [n, c].
    fn forward(&self, backend: &Backend, td: &Tensor, similarity: Tensor, x: &Tensor) -> Result<Tensor> {
        let by_token = ops::transpose(backend, &similarity)?; // [m, n]
        drop(similarity);
        let (m, n) = by_token.dims2()?;
        let by_token = self.norm3.groups(backend, &by_token.reshape((1, m, n))?, m, false)?;
        let weights = ops::softmax(backend, &by_token.reshape((m, n))?)?;
        drop(by_token);
        let seen = ops::product(backend, &weights, x)?; // [m, c]
        Ok((td.broadcast_mul(&self.stays)? + seen.broadcast_mul(&self.stays.affine(-1.0, 1.0)?)?)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(rows: &[[f32; 2]]) -> Tensor {
        Tensor::from_iter(rows.iter().flatten().copied(), &Device::Cpu).unwrap().reshape((rows.len(), 2)).unwrap()
    }

    /// Gathers `0, 1, 2, ...` by rows.
    fn gathered(rows: &Rows) -> Vec<u32> {
        let places = Tensor::arange(0f32, rows.len() as f32, &Device::Cpu).unwrap().reshape(((), 1)).unwrap();
        let backend = Backend::Candle(Device::Cpu, DType::F32);
        let found = ops::gather_rows(&backend, &places, rows).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        found.into_iter().map(|place| place as u32).collect()
    }

    #[test]
    fn pixels_of_one_token_keep_their_order_and_the_last_run_is_filled_up() {
        let like = [[0.2, 0.8], [0.5, 0.5], [0.3, 0.7], [0.9, 0.1], [0.4, 0.6]];
        let categories = Categories::new(&numbers(&like), 3).unwrap();
        assert_eq!(categories.count, 2);
        assert_eq!(gathered(&categories.runs), [1, 3, 0, 2, 4, 4]);
        assert_eq!(gathered(&categories.back), [2, 0, 3, 1, 4]);
    }

    #[test]
    fn few_pixels_are_one_run() {
        let categories = Categories::new(&numbers(&[[0.1, 0.9], [0.9, 0.1]]), 128).unwrap();
        assert_eq!((categories.count, gathered(&categories.runs)), (1, vec![1, 0]));
    }

    #[test]
    fn edges_are_mirrored_with_their_first_line_twice() {
        let check = |length: usize, size: usize, expected: &[f32]| {
            let x = Tensor::arange(0f32, length as f32, &Device::Cpu).unwrap();
            let row = mirror(&x.reshape((1, 1, 1, length)).unwrap(), size).unwrap();
            assert_eq!(row.dims(), [1, 1, size, expected.len()]);
            assert_eq!(row.flatten_all().unwrap().to_vec1::<f32>().unwrap()[..expected.len()], *expected);
        };
        check(4, 4, &[0., 1., 2., 3.]);
        check(6, 4, &[0., 1., 2., 3., 4., 5., 5., 4.]);
        check(3, 8, &[0., 1., 2., 2., 1., 0., 0., 1.]);
    }
}
