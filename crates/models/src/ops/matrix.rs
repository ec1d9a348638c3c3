//! Products of matrices that are no weights, and what attention over channels is made of.

use candle_core::{D, Device, Result, Tensor, bail};
use candle_nn::ops;
use kernels::{
    attention::{self, Heads},
    linear::{self, Epilogue},
    math::Function,
    norm,
};

use super::{Backend, with_numbers};

/// Computes a bᵀ: from a, [n, k], and b, [m, k], to [n, m].
pub fn product_of_rows(backend: &Backend, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let ((n, k), (m, other)) = (a.dims2()?, b.dims2()?);
    if k != other || n * m * k == 0 {
        bail!("rows of {:?} and {:?} have no products", a.shape(), b.shape());
    }
    match backend {
        Backend::Candle(..) => a.matmul(&b.t()?),
        Backend::Kernels(cpu) => with_numbers(a, |a| {
            with_numbers(b, |b| {
                let mut out = vec![0.0; n * m];
                linear::Linear::new(cpu.level, cpu.precision, k, b, None).forward(a, Epilogue::default(), &mut out);
                Tensor::from_vec(out, (n, m), &Device::Cpu)
            })
        }),
    }
}

/// Computes a b: from a, [n, k], and b, [k, m], to [n, m].
pub fn product(backend: &Backend, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let ((n, k), (other, m)) = (a.dims2()?, b.dims2()?);
    if k != other || n * m * k == 0 {
        bail!("{:?} and {:?} have no product", a.shape(), b.shape());
    }
    match backend {
        Backend::Candle(..) => a.matmul(b),
        Backend::Kernels(cpu) => with_numbers(a, |a| {
            with_numbers(b, |b| {
                let mut out = vec![0.0; n * m];
                linear::Conv1x1::new(cpu.level, cpu.precision, k, a, None).forward(b, Epilogue::default(), &mut out);
                Tensor::from_vec(out, (n, m), &Device::Cpu)
            })
        }),
    }
}

/// Makes the numbers of each row of x, [.., m], positive with sum 1: e to the power of each, over their sum.
pub fn softmax(backend: &Backend, x: &Tensor) -> Result<Tensor> {
    let width = x.dim(D::Minus1)?;
    let cpu = match backend {
        Backend::Candle(..) => return ops::softmax_last_dim(&x.contiguous()?),
        Backend::Kernels(cpu) => cpu,
    };
    let mut numbers = with_numbers(x, |x| Ok(x.to_vec()))?;
    for row in numbers.chunks_exact_mut(width.max(1)) {
        let greatest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        row.iter_mut().for_each(|x| *x -= greatest);
    }
    Function::Exp.apply(cpu.level, &mut numbers);
    for row in numbers.chunks_exact_mut(width.max(1)) {
        let factor = 1.0 / row.iter().sum::<f32>();
        row.iter_mut().for_each(|x| *x *= factor);
    }
    Tensor::from_vec(numbers, x.shape(), &Device::Cpu)
}

/// The mean of each row of x, [.., m], as [.., 1].
pub fn mean(backend: &Backend, x: &Tensor) -> Result<Tensor> {
    match backend {
        Backend::Candle(..) => x.mean_keepdim(D::Minus1),
        Backend::Kernels(cpu) => row_numbers(x, |x, width| {
            norm::sums(cpu.level, x, width).into_iter().map(|sum| (sum / width as f64) as f32).collect()
        }),
    }
}

/// Divides each row of x, [n, m], by its length, which counts as 1e-12 at least.
pub fn unit_rows(backend: &Backend, x: &Tensor) -> Result<Tensor> {
    let length = match backend {
        Backend::Candle(..) => x.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?,
        Backend::Kernels(cpu) => row_numbers(x, |x, width| {
            norm::squares(cpu.level, x, width).into_iter().map(|sum| sum.sqrt() as f32).collect()
        })?,
    };
    x.broadcast_div(&length.maximum(1e-12f32)?)
}

/// One number of each row.
fn row_numbers(x: &Tensor, of: impl FnOnce(&[f32], usize) -> Vec<f32>) -> Result<Tensor> {
    let mut shape = x.dims().to_vec();
    match shape.last_mut() {
        Some(width) if *width > 0 => {
            let width = std::mem::replace(width, 1);
            with_numbers(x, |x| Tensor::from_vec(of(x, width), shape, &Device::Cpu))
        }
        _ => bail!("{:?} has no rows of numbers", x.shape()),
    }
}

/// Rows that a window attends from, or to: the columns of a matrix from `first` on.
#[derive(Debug, Clone, Copy)]
pub struct Columns<'a> {
    /// [windows * rows, width].
    pub x: &'a Tensor,
    /// The column at which the first head begins.
    pub first: usize,
}

/// Attention of many small windows, each by itself.
#[derive(Debug, Clone, Copy)]
pub struct WindowAttention<'a> {
    /// How many heads there are.
    pub heads: usize,
    /// Numbers of a row of one head.
    pub width: usize,
    /// Rows that a window attends from.
    pub queries: usize,
    /// Rows that a window attends to.
    pub keys: usize,
    /// The factor of scores.
    pub scale: f64,
    /// What is added to scores, [heads, keys, queries] each; none where there are no such tables.
    pub biases: &'a [Tensor],
    /// For each window, which of these it has.
    pub kinds: &'a [u8],
}

impl WindowAttention<'_> {
    /// Attends from q to k and v; gives [windows * queries, heads * width].
    pub fn run(&self, backend: &Backend, q: Columns<'_>, k: Columns<'_>, v: Columns<'_>) -> Result<Tensor> {
        let Self { heads, width, queries, keys, scale, biases, kinds } = *self;
        let (c, windows) = (heads * width, kinds.len());
        for (x, rows) in [(q, queries), (k, keys), (v, keys)] {
            let (n, columns) = x.x.dims2()?;
            if n != windows * rows || columns < x.first + c || c * n == 0 {
                bail!("{windows} windows of {rows} rows with {heads} heads of {width} are not in {:?}", x.x.shape());
            }
        }
        let is_wrong = |bias: &Tensor| bias.dims() != [heads, keys, queries];
        if biases.iter().any(is_wrong)
            || (!biases.is_empty() && kinds.iter().any(|kind| *kind as usize >= biases.len()))
        {
            bail!("the biases are not those of {heads} heads, {keys} keys and {queries} queries");
        }
        let cpu = match backend {
            Backend::Kernels(cpu) => cpu,
            Backend::Candle(device, _) => {
                let by_head = |x: Columns<'_>, rows: usize| {
                    x.x.narrow(1, x.first, c)?.reshape((windows, rows, heads, width))?.transpose(1, 2)?.contiguous()
                };
                let (q, k, v) = (by_head(q, queries)?, by_head(k, keys)?, by_head(v, keys)?);
                let mut scores = (q.matmul(&k.t()?)? * scale)?; // [windows, heads, queries, keys]
                if !biases.is_empty() {
                    let kinds: Vec<u32> = kinds.iter().map(|kind| u32::from(*kind)).collect();
                    let tables = Tensor::stack(biases, 0)?.transpose(2, 3)?.contiguous()?;
                    scores = (scores + tables.index_select(&Tensor::new(kinds, device)?, 0)?)?;
                }
                let weights = ops::softmax_last_dim(&scores)?;
                return weights.matmul(&v)?.transpose(1, 2)?.reshape((windows * queries, c));
            }
        };
        let tables: Vec<Vec<f32>> = biases.iter().map(|bias| bias.flatten_all()?.to_vec1()).collect::<Result<_>>()?;
        let attention = attention::Attention {
            level: cpu.level,
            precision: cpu.precision,
            heads,
            queries,
            keys,
            width,
            scale: scale as f32,
            mask: attention::Mask::None,
        };
        let mut out = vec![0.0; windows * queries * c];
        with_numbers(q.x, |q_numbers| {
            with_numbers(k.x, |k_numbers| {
                with_numbers(v.x, |v_numbers| {
                    let windows: Vec<attention::Window<'_>> = (0..windows)
                        .map(|i| attention::Window {
                            q: rows_of_window(q_numbers, q, i * queries, width),
                            k: rows_of_window(k_numbers, k, i * keys, width),
                            v: rows_of_window(v_numbers, v, i * keys, width),
                            mask: match tables.get(kinds[i] as usize) {
                                Some(table) => attention::Mask::Biased(table),
                                None => attention::Mask::None,
                            },
                        })
                        .collect();
                    attention.run_windows(&windows, &mut out);
                    Ok(())
                })
            })
        })?;
        Tensor::from_vec(out, (windows * queries, c), &Device::Cpu)
    }
}

/// The heads of rows from `first` on, whose numbers those of `columns` are.
fn rows_of_window<'a>(numbers: &'a [f32], columns: Columns<'_>, first: usize, width: usize) -> Heads<'a> {
    let row = columns.x.dims()[1];
    Heads { numbers: &numbers[first * row + columns.first..], row, head: width }
}
