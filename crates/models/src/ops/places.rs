//! Numbers that change places, and pictures that change their size.

use candle_core::{Device, Result, Tensor, bail};
use kernels::rearrange;
pub use kernels::rearrange::NO_ROW;

use super::{Backend, with_numbers};

/// Which rows of a matrix stand where in another. See [`gather_rows`].
#[derive(Debug, Clone)]
pub struct Rows {
    rows: Vec<u32>,
}

impl Rows {
    /// Row `i` of the result is row `rows[i]`, or zeros where that is [`NO_ROW`].
    pub fn new(rows: Vec<u32>) -> Self {
        Self { rows }
    }

    /// How many rows the result has.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether the result has none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// `length` of these, from the row `first` of the result on.
    ///
    /// # Panics
    /// If there are not so many.
    pub fn part(&self, first: usize, length: usize) -> Self {
        Self { rows: self.rows[first..first + length].to_vec() }
    }

    /// What undoes these: where each of `count` rows stands now. Of one that stands nowhere it is [`NO_ROW`].
    pub fn inverse(&self, count: usize) -> Self {
        let mut rows = vec![NO_ROW; count];
        for (place, row) in self.rows.iter().enumerate() {
            if *row != NO_ROW {
                rows[*row as usize] = place as u32;
            }
        }
        Self { rows }
    }

    /// These rows of those of `before`.
    pub fn after(&self, before: &Self) -> Self {
        let of = |row: &u32| before.rows.get(*row as usize).copied().unwrap_or(NO_ROW);
        Self { rows: self.rows.iter().map(of).collect() }
    }
}

/// Gathers rows of x, [n, c], to [m, c].
pub fn gather_rows(backend: &Backend, x: &Tensor, rows: &Rows) -> Result<Tensor> {
    let (n, c) = x.dims2()?;
    let is_wrong = |row: &u32| *row as usize >= n && *row != NO_ROW;
    if let Some(row) = rows.rows.iter().find(|row| is_wrong(row)) {
        bail!("{:?} has no row {row}", x.shape());
    }
    match backend {
        Backend::Candle(device, _) => {
            // Behind the last row stands one of zeros.
            let zeros = Tensor::zeros((1, c), x.dtype(), x.device())?;
            let rows: Vec<u32> = rows.rows.iter().map(|row| (*row).min(n as u32)).collect();
            Tensor::cat(&[x, &zeros], 0)?.index_select(&Tensor::new(rows, device)?, 0)
        }
        Backend::Kernels(_) => with_numbers(x, |x| {
            let mut out = vec![0.0; rows.len() * c];
            rearrange::gather_rows(x, c, &rows.rows, &mut out);
            Tensor::from_vec(out, (rows.len(), c), &Device::Cpu)
        }),
    }
}

/// Makes columns of rows: from [n, m] to [m, n].
pub fn transpose(backend: &Backend, x: &Tensor) -> Result<Tensor> {
    let (n, m) = x.dims2()?;
    match backend {
        Backend::Candle(..) => x.t()?.contiguous(),
        Backend::Kernels(_) => with_numbers(x, |x| {
            let mut out = vec![0.0; n * m];
            rearrange::transpose(x, n, m, &mut out);
            Tensor::from_vec(out, (m, n), &Device::Cpu)
        }),
    }
}

/// Makes tokens of the pixels of maps: from [b, c, h, w] to [b, h*w, c].
pub fn to_tokens(backend: &Backend, maps: &Tensor) -> Result<Tensor> {
    let (b, c, h, w) = maps.dims4()?;
    transpose_each(backend, maps, (b, c, h * w))
}

/// Makes maps of tokens: from [b, h*w, c] to [b, c, h, w].
pub fn to_maps(backend: &Backend, tokens: &Tensor, h: usize, w: usize) -> Result<Tensor> {
    let (b, n, c) = tokens.dims3()?;
    if n != h * w {
        bail!("{:?} has not as many tokens as {h} x {w} pixels", tokens.shape());
    }
    transpose_each(backend, tokens, (b, n, c))?.reshape((b, c, h, w))
}

/// Makes maps of tokens as [`to_maps`] does, and adds them to `maps`, [b, c, h, w].
pub fn add_to_maps(backend: &Backend, tokens: &Tensor, maps: &Tensor) -> Result<Tensor> {
    let (b, c, h, w) = maps.dims4()?;
    if tokens.dims() != [b, h * w, c] {
        bail!("tokens {:?} cannot be added to maps {:?}", tokens.shape(), maps.shape());
    }
    match backend {
        Backend::Candle(..) => to_maps(backend, tokens, h, w)? + maps,
        Backend::Kernels(_) => with_numbers(tokens, |tokens| {
            with_numbers(maps, |maps| {
                let mut out = vec![0.0; maps.len()];
                let size = (c * h * w).max(1);
                for (tokens, out) in tokens.chunks_exact(size).zip(out.chunks_exact_mut(size)) {
                    rearrange::transpose(tokens, h * w, c, out);
                }
                out.iter_mut().zip(maps).for_each(|(out, map)| *out += map);
                Tensor::from_vec(out, (b, c, h, w), &Device::Cpu)
            })
        }),
    }
}

/// Transposes each of b matrices: from [b, n, m] to [b, m, n].
fn transpose_each(backend: &Backend, x: &Tensor, (b, n, m): (usize, usize, usize)) -> Result<Tensor> {
    match backend {
        Backend::Candle(..) => x.reshape((b, n, m))?.transpose(1, 2)?.contiguous(),
        Backend::Kernels(_) => with_numbers(x, |x| {
            let mut out = vec![0.0; b * n * m];
            let size = (n * m).max(1);
            for (x, out) in x.chunks_exact(size).zip(out.chunks_exact_mut(size)) {
                rearrange::transpose(x, n, m, out);
            }
            Tensor::from_vec(out, (b, m, n), &Device::Cpu)
        }),
    }
}

/// Makes rows of one map's pixels: from [1, c, h, w] to [h*w, c].
pub fn to_rows(backend: &Backend, map: &Tensor) -> Result<Tensor> {
    to_tokens(backend, map)?.squeeze(0)
}

/// Makes a map of rows: from [h*w, c] to [1, c, h, w].
pub fn to_map(backend: &Backend, rows: &Tensor, h: usize, w: usize) -> Result<Tensor> {
    to_maps(backend, &rows.unsqueeze(0)?, h, w)
}

/// Resizes x, [b, c, h, w], to [b, c, to.0, to.1]: each pixel is the one in whose area its top left corner lies.
pub fn resize_nearest(backend: &Backend, x: &Tensor, to: (usize, usize)) -> Result<Tensor> {
    let (_, _, h, w) = x.dims4()?;
    if x.elem_count() > 0 && to.0 * to.1 > 0 && to.0.is_multiple_of(h) && to.1.is_multiple_of(w) && to.0 / h == to.1 / w
    {
        return super::upsample_nearest(backend, x, to.0 / h);
    }
    resize_by_place(x, to, 0.0)
}

/// Resizes x, [b, c, h, w], to [b, c, to.0, to.1]: each pixel is the one in whose area its middle lies (`nearest-exact`).
pub fn resize_nearest_exact(x: &Tensor, to: (usize, usize)) -> Result<Tensor> {
    resize_by_place(x, to, 0.5)
}

/// Resizes x so that each pixel is the one in whose area the place `offset` behind its top left corner lies.
fn resize_by_place(x: &Tensor, to: (usize, usize), offset: f32) -> Result<Tensor> {
    let (b, c, h, w) = x.dims4()?;
    if x.elem_count() == 0 || to.0 * to.1 == 0 {
        bail!("{:?} cannot become {to:?}", x.shape());
    }
    let sources = |from: usize, to: usize| -> Vec<usize> {
        let scale = from as f32 / to as f32;
        (0..to).map(|i| (((i as f32 + offset) * scale) as usize).min(from - 1)).collect()
    };
    let (rows, columns) = (sources(h, to.0), sources(w, to.1));
    on_cpu(x, &[b, c, to.0, to.1], |x, out| {
        for (x, out) in x.chunks_exact(h * w).zip(out.chunks_exact_mut(to.0 * to.1)) {
            for (row, out) in rows.iter().zip(out.chunks_exact_mut(to.1)) {
                for (column, out) in columns.iter().zip(out) {
                    *out = x[row * w + column];
                }
            }
        }
    })
}

/// Computes on the numbers of a tensor on a CPU. They are brought there from another device, and the result back.
fn on_cpu(x: &Tensor, shape: &[usize], run: impl FnOnce(&[f32], &mut [f32])) -> Result<Tensor> {
    let here = x.to_device(&Device::Cpu)?.to_dtype(candle_core::DType::F32)?;
    let y = with_numbers(&here, |numbers| {
        let mut out = vec![0.0; shape.iter().product()];
        run(numbers, &mut out);
        Tensor::from_vec(out, shape, &Device::Cpu)
    })?;
    y.to_dtype(x.dtype())?.to_device(x.device())
}

/// Takes the greatest number of every `side` x `side` pixels, `stride` pixels apart, from [1, c, h, w] to [1, c, h', w'].
/// Squares that hang over the edge are left out.
pub fn max_pool(x: &Tensor, side: usize, stride: usize) -> Result<Tensor> {
    let (_, c, h, w) = x.dims4()?;
    if side == 0 || stride == 0 || h < side || w < side {
        bail!("{:?} has no {side} x {side} pixels", x.shape());
    }
    let (out_h, out_w) = ((h - side) / stride + 1, (w - side) / stride + 1);
    on_cpu(x, &[1, c, out_h, out_w], |x, out| {
        for (i, out) in out.iter_mut().enumerate() {
            let (channel, y, column) = (i / (out_h * out_w), i / out_w % out_h * stride, i % out_w * stride);
            let rows = (y..y + side).flat_map(|y| &x[(channel * h + y) * w + column..][..side]);
            *out = rows.copied().fold(f32::NEG_INFINITY, f32::max);
        }
    })
}

/// Resizes [1, c, h, w] to [1, c, to.0, to.1], each pixel a mean of the four nearest, with the edges of both pictures on
/// each other.
pub fn resize_bilinear(x: &Tensor, to: (usize, usize)) -> Result<Tensor> {
    let (_, c, h, w) = x.dims4()?;
    if x.elem_count() == 0 || to.0 * to.1 == 0 {
        bail!("{:?} cannot become {to:?}", x.shape());
    }
    // For each pixel that comes out: its two neighbours and the weight of the second.
    let taps = |from: usize, to: usize| -> Vec<(usize, usize, f32)> {
        let scale = from as f32 / to as f32;
        let tap = |i: usize| {
            let place = ((i as f32 + 0.5) * scale - 0.5).max(0.0);
            let first = (place as usize).min(from - 1);
            (first, (first + 1).min(from - 1), place - first as f32)
        };
        (0..to).map(tap).collect()
    };
    let (rows, columns) = (taps(h, to.0), taps(w, to.1));
    on_cpu(x, &[1, c, to.0, to.1], |x, out| {
        for (channel, out) in out.chunks_exact_mut(to.0 * to.1).enumerate() {
            let x = &x[channel * h * w..][..h * w];
            for (out, (top, bottom, below)) in out.chunks_exact_mut(to.1).zip(&rows) {
                for (out, (left, right, beside)) in out.iter_mut().zip(&columns) {
                    let row = |y: usize| x[y * w + left] * (1.0 - beside) + x[y * w + right] * beside;
                    *out = row(*top) * (1.0 - below) + row(*bottom) * below;
                }
            }
        }
    })
}

/// Samples x, [1, c, h, w], at `scale` x `scale` places for each of its pixels, to [1, c, h*scale, w*scale].
///
/// `places`, [1, 2 * groups * scale * scale, h, w], says where: how far right (first half) and down (second half) of the
/// middle of the pixel, in pixels, for each group of channels, row and column. Each sample is a mean of the four nearest
/// pixels; what lies outside is the edge (DySample, Liu et al. 2023).
pub fn sample(x: &Tensor, places: &Tensor, groups: usize, scale: usize) -> Result<Tensor> {
    let ((_, c, h, w), (_, offsets, _, _)) = (x.dims4()?, places.dims4()?);
    if groups * scale == 0
        || offsets != 2 * groups * scale * scale
        || c % groups != 0
        || places.dims()[2..] != [h, w]
        || h * w == 0
    {
        bail!("places {:?} do not fit {:?}", places.shape(), x.shape());
    }
    let (wide, area) = (w * scale, h * w);
    let places = places.to_device(&Device::Cpu)?.to_dtype(candle_core::DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    on_cpu(x, &[1, c, h * scale, wide], |x, out| {
        let each = c / groups; // channels of a group
        for group in 0..groups {
            for (row, column) in (0..h * scale).flat_map(|row| (0..wide).map(move |column| (row, column))) {
                let (y, x_at) = (row / scale, column / scale);
                let sub = group * scale * scale + row % scale * scale + column % scale;
                let offset = |axis: usize| places[(axis * groups * scale * scale + sub) * area + y * w + x_at];
                let place = |at: usize, offset: f32, length: usize| {
                    let place = (at as f32 + offset).clamp(0.0, (length - 1) as f32);
                    let first = place as usize;
                    (first, (first + 1).min(length - 1), place - first as f32)
                };
                let (left, right, beside) = place(x_at, offset(0), w);
                let (top, bottom, below) = place(y, offset(1), h);
                for channel in group * each..(group + 1) * each {
                    let plane = &x[channel * area..][..area];
                    let line = |y: usize| plane[y * w + left] * (1.0 - beside) + plane[y * w + right] * beside;
                    out[(channel * h * scale + row) * wide + column] = line(top) * (1.0 - below) + line(bottom) * below;
                }
            }
        }
    })
}
