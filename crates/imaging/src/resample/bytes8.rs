//! The 8-bit resampler, exact to the byte (reference: pixels.md, section 6.3; that is Pillow's resampler).
//!
//! No library has these bytes: `fast_image_resize` follows Pillow-SIMD, whose 16-bit weights round differently, and
//! `image` computes in `f32`. The rules are few, so the kernel stands here. It works on windows of rows, so that a
//! picture of any height passes through in bounded memory; the bytes do not depend on the windows.
//!
//! The same rules serve samples of 16 bits and floats ([`Level`]).

use std::marker::PhantomData;
use std::ops::Range;

use domain::{
    nodes::ResamplingMethod,
    region::{Region, Size},
    resize::{BICUBIC_SUPPORT, taps},
};

use super::level::{Level, PRECISION};
use crate::frames::PixelError;

/// Which neighbours a pixel is made of. All but `Nearest` widen when a picture shrinks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filter {
    /// The pixel under the centre.
    Nearest,
    /// A triangle over 2 pixels.
    Bilinear,
    /// A cubic over 4 pixels, with a = -0.5.
    Bicubic,
    /// A windowed sinc over 6 pixels.
    Lanczos,
}

impl From<ResamplingMethod> for Filter {
    fn from(method: ResamplingMethod) -> Self {
        match method {
            ResamplingMethod::Nearest => Self::Nearest,
            ResamplingMethod::Bilinear => Self::Bilinear,
            ResamplingMethod::Bicubic => Self::Bicubic,
            ResamplingMethod::Lanczos => Self::Lanczos,
        }
    }
}

impl Filter {
    /// Half the width of the kernel, in pixels of the coarser side.
    fn support(self) -> f64 {
        match self {
            Self::Nearest => 0.0,
            Self::Bilinear => 1.0,
            Self::Bicubic => BICUBIC_SUPPORT,
            Self::Lanczos => 3.0,
        }
    }

    /// The kernel at `x`.
    fn weight(self, x: f64) -> f64 {
        let sinc = |x: f64| if x == 0.0 { 1.0 } else { (x * std::f64::consts::PI).sin() / (x * std::f64::consts::PI) };
        const A: f64 = -0.5;
        match (self, x.abs()) {
            (Self::Bilinear, x) if x < 1.0 => 1.0 - x,
            (Self::Bicubic, x) if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
            (Self::Bicubic, x) if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
            (Self::Lanczos, _) if (-3.0..3.0).contains(&x) => sinc(x) * sinc(x / 3.0),
            _ => 0.0,
        }
    }
}

/// The weighted taps of the output positions of one axis that are wanted.
#[derive(Debug)]
struct Axis {
    /// The first output position that is wanted.
    start: usize,
    /// First input position, and the range of its weights.
    taps: Vec<(usize, Range<usize>)>,
    weights: Vec<i32>,
}

impl Axis {
    fn new(filter: Filter, from: usize, to: usize, wanted: Range<usize>) -> Self {
        let scale = from as f64 / to as f64;
        let widen = scale.max(1.0);
        let mut axis = Self { start: wanted.start, taps: Vec::with_capacity(wanted.len()), weights: Vec::new() };
        let mut real = Vec::new();
        for i in wanted {
            let centre = (i as f64 + 0.5) * scale;
            let taps = taps(filter.support(), from, to, i);
            let first = taps.start;
            real.clear();
            real.extend(taps.map(|x| filter.weight((x as f64 - centre + 0.5) * (1.0 / widen))));
            let sum: f64 = real.iter().sum();
            let start = axis.weights.len();
            axis.weights.extend(real.iter().map(|&weight| {
                let share = if sum == 0.0 { weight } else { weight / sum };
                (share * f64::from(1 << PRECISION) + if share < 0.0 { -0.5 } else { 0.5 }) as i32
            }));
            axis.taps.push((first, start..axis.weights.len()));
        }
        axis
    }

    /// Output position `i`: its first input position and the weights from there on.
    fn at(&self, i: usize) -> (usize, &[i32]) {
        let (first, weights) = &self.taps[i - self.start];
        (*first, &self.weights[weights.clone()])
    }

    /// The input positions that the wanted output positions are made of.
    fn needed(&self) -> Range<usize> {
        let end = |(first, weights): &(usize, Range<usize>)| first + weights.len();
        self.taps.first().map_or(0, |taps| taps.0)..self.taps.last().map_or(0, end)
    }
}

/// Input positions for nearest: the position is a running sum, because its rounding errors are part of the result.
fn nearest(from: usize, to: usize, wanted: Range<usize>) -> Vec<usize> {
    let step = from as f64 / to as f64;
    let mut position = step * 0.5;
    let mut next = || {
        let index = (position as usize).min(from - 1);
        position += step;
        index
    };
    (0..wanted.end).map(|_| next()).skip(wanted.start).collect()
}

#[derive(Debug)]
enum Plan {
    Copy,
    Nearest { columns: Vec<usize>, rows: Vec<usize> },
    Weighted { columns: Option<Axis>, rows: Option<Axis> },
}

impl Plan {
    /// The input columns that the output columns `wanted` are made of.
    fn columns_needed(&self, wanted: Range<usize>) -> Range<usize> {
        match self {
            Self::Nearest { columns, .. } => columns[0]..columns[columns.len() - 1] + 1,
            Self::Weighted { columns: Some(axis), .. } => axis.needed(),
            Self::Copy | Self::Weighted { columns: None, .. } => wanted,
        }
    }
}

/// A resize of bytes, exact to the byte.
pub type ByteResizer = LevelResizer<u8>;

/// A resize of samples from one size to another, to be run over a picture in windows of rows.
///
/// Pixels are interleaved. With 4 channels the last is alpha, and colours are weighted by it.
#[derive(Debug)]
pub struct LevelResizer<L> {
    from: Size,
    to: Size,
    /// The pixels that come out.
    window: Region,
    /// The input columns that the rows hold which go in.
    columns: Range<usize>,
    channels: usize,
    plan: Plan,
    level: PhantomData<L>,
}

impl<L: Level> LevelResizer<L> {
    /// Prepares a resize of pictures with 1, 3 or 4 channels. Equal sizes are copied; an axis that keeps its length is
    /// not touched.
    pub fn new(filter: Filter, from: Size, to: Size, channels: usize) -> Result<Self, PixelError> {
        let whole = Region::new(0, 0, to.width, to.height);
        let columns = 0..from.width as usize;
        Ok(Self { columns, ..Self::windowed(filter, from, to, channels, whole)? })
    }

    /// Prepares the part of a resize that makes the pixels of `window`: they are those of the whole, and no others are
    /// computed. Rows go in with the columns of [`LevelResizer::columns`], and come out with those of the window.
    ///
    /// # Panics
    /// When the window does not lie within `to`.
    pub fn windowed(filter: Filter, from: Size, to: Size, channels: usize, window: Region) -> Result<Self, PixelError> {
        if !matches!(channels, 1 | 3 | 4) {
            return Err(PixelError::Channels { operation: "8-bit resampling", want: "1, 3 or 4", got: channels });
        }
        for size in [from, to] {
            if size.pixels() == 0 {
                return Err(PixelError::Empty { operation: "8-bit resampling", size });
            }
        }
        assert!(window.is_within(to), "{window} of a {to} picture");
        let across = window.x as usize..window.right() as usize;
        let down = window.y as usize..window.bottom() as usize;
        let axis = |from: u32, to: u32, wanted: &Range<usize>| {
            (from != to).then(|| Axis::new(filter, from as usize, to as usize, wanted.clone()))
        };
        let plan = match filter {
            _ if from == to => Plan::Copy,
            Filter::Nearest => Plan::Nearest {
                columns: nearest(from.width as usize, to.width as usize, across.clone()),
                rows: nearest(from.height as usize, to.height as usize, down),
            },
            _ => Plan::Weighted {
                columns: axis(from.width, to.width, &across),
                rows: axis(from.height, to.height, &down),
            },
        };
        let columns = plan.columns_needed(across);
        Ok(Self { from, to, window, columns, channels, plan, level: PhantomData })
    }

    /// The input columns that rows must hold which go in.
    pub fn columns(&self) -> Range<usize> {
        self.columns.clone()
    }

    /// The size of the whole picture that comes out.
    pub fn output(&self) -> Size {
        self.to
    }

    /// The input pixels that the window is made of: rows as far as they are needed, with [`LevelResizer::columns`].
    pub fn input(&self) -> Region {
        let rows = self.rows_needed(self.window.y as usize..self.window.bottom() as usize);
        let (x, y) = (self.columns.start as u32, rows.start as u32);
        Region::new(x, y, self.columns.len() as u32, rows.len() as u32)
    }

    /// The input rows that the output rows `rows` are made of.
    pub fn rows_needed(&self, rows: Range<usize>) -> Range<usize> {
        if rows.is_empty() {
            return 0..0;
        }
        let (first, last) = (rows.start, rows.end - 1);
        match &self.plan {
            Plan::Nearest { rows, .. } => {
                let top = self.window.y as usize;
                rows[first - top]..rows[last - top] + 1
            }
            Plan::Weighted { rows: Some(axis), .. } => {
                let (end, weights) = axis.at(last);
                axis.at(first).0..end + weights.len()
            }
            Plan::Copy | Plan::Weighted { rows: None, .. } => rows,
        }
    }

    /// Makes the output rows `rows` out of `input`, which holds whole input rows from row `first_row` on.
    ///
    /// # Panics
    /// When `input` lacks a row of [`LevelResizer::rows_needed`].
    pub fn rows(&self, rows: Range<usize>, input: &[L], first_row: usize) -> Vec<L> {
        let needed = self.rows_needed(rows.clone());
        let stride = self.columns.len() * self.channels;
        let input = &input[(needed.start - first_row) * stride..(needed.end - first_row) * stride];
        let stride_out = self.window.width as usize * self.channels;
        let mut narrowed = Vec::with_capacity(needed.len() * stride_out);
        input.chunks_exact(stride).for_each(|row| self.across(row, &mut narrowed));
        let mut out = Vec::with_capacity(rows.len() * stride_out);
        rows.for_each(|y| self.down(y, |from| &narrowed[(from - needed.start) * stride_out..][..stride_out], &mut out));
        out
    }

    /// Resizes a whole picture.
    ///
    /// # Panics
    /// When `input` is not a picture of the size that was prepared for.
    pub fn picture(&self, input: &[L]) -> Vec<L> {
        let samples = self.from.pixels() * self.channels as u64;
        assert_eq!(input.len() as u64, samples, "a whole picture goes in, to be resized whole");
        self.rows(0..self.to.height as usize, input, 0)
    }

    /// Appends one input row at the output's width, its colours multiplied by alpha.
    pub(super) fn across(&self, row: &[L], out: &mut Vec<L>) {
        let left = self.columns.start;
        match &self.plan {
            Plan::Copy => out.extend_from_slice(row),
            Plan::Nearest { columns, .. } => {
                let pixel = |x: &usize| &row[(x - left) * self.channels..][..self.channels];
                columns.iter().for_each(|x| out.extend_from_slice(pixel(x)));
            }
            Plan::Weighted { columns: None, .. } if self.channels == 4 => {
                row.as_chunks::<4>().0.iter().for_each(|&pixel| out.extend(premultiplied(pixel)));
            }
            Plan::Weighted { columns: None, .. } => out.extend_from_slice(row),
            Plan::Weighted { columns: Some(axis), .. } => match self.channels {
                1 => weigh(axis, row.as_chunks::<1>().0, left, out),
                3 => weigh(axis, row.as_chunks::<3>().0, left, out),
                _ => {
                    let pixels: Vec<[L; 4]> =
                        row.as_chunks::<4>().0.iter().map(|&pixel| premultiplied(pixel)).collect();
                    weigh(axis, &pixels, left, out);
                }
            },
        }
    }

    /// Appends output row `y`, made of rows that [`Self::across`] gave; `row` hands over that of an input row.
    pub(super) fn down<'a>(&self, y: usize, row: impl Fn(usize) -> &'a [L], out: &mut Vec<L>) {
        match &self.plan {
            Plan::Copy => out.extend_from_slice(row(y)),
            Plan::Nearest { rows, .. } => out.extend_from_slice(row(rows[y - self.window.y as usize])),
            Plan::Weighted { rows, .. } => {
                let start = out.len();
                match rows {
                    None => out.extend_from_slice(row(y)),
                    Some(axis) => {
                        let (first, weights) = axis.at(y);
                        let mut sums = vec![L::HALF; self.window.width as usize * self.channels];
                        for (from, &weight) in (first..).zip(weights) {
                            let samples = row(from);
                            sums.iter_mut().zip(samples).for_each(|(sum, &x)| *sum = L::plus(*sum, x, weight));
                        }
                        out.extend(sums.into_iter().map(L::of_sum));
                    }
                }
                if self.channels == 4 {
                    for [r, g, b, alpha] in out[start..].as_chunks_mut::<4>().0 {
                        [r, g, b].into_iter().for_each(|color| *color = color.unpremultiplied(*alpha));
                    }
                }
            }
        }
    }
}

/// Appends a row of pixels of `C` channels, weighed by the taps of the columns; the first pixel is at column `left`.
fn weigh<L: Level, const C: usize>(axis: &Axis, row: &[[L; C]], left: usize, out: &mut Vec<L>) {
    for x in (axis.start..).take(axis.taps.len()) {
        let (first, weights) = axis.at(x);
        let mut sums = [L::HALF; C];
        for (pixel, &weight) in row[first - left..].iter().zip(weights) {
            sums.iter_mut().zip(pixel).for_each(|(sum, &sample)| *sum = L::plus(*sum, sample, weight));
        }
        out.extend(sums.map(L::of_sum));
    }
}

fn premultiplied<L: Level>([r, g, b, alpha]: [L; 4]) -> [L; 4] {
    let [r, g, b] = [r, g, b].map(|color| color.premultiplied(alpha));
    [r, g, b, alpha]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FILTERS: [Filter; 4] = [Filter::Nearest, Filter::Bilinear, Filter::Bicubic, Filter::Lanczos];

    fn noise(len: usize) -> Vec<u8> {
        (0..len as u64).map(|i| (i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8).collect()
    }

    #[test]
    fn a_flat_picture_stays_flat() {
        for filter in FILTERS {
            let resizer = ByteResizer::new(filter, Size::new(31, 17), Size::new(12, 40), 3).unwrap();
            assert!(resizer.picture(&[77; 31 * 17 * 3]).iter().all(|&byte| byte == 77), "{filter:?}");
        }
    }

    #[test]
    fn transparent_pixels_do_not_bleed_their_color() {
        let (from, to) = (Size::new(2, 1), Size::new(1, 1));
        let resizer = ByteResizer::new(Filter::Bilinear, from, to, 4).unwrap();
        let out = resizer.picture(&[200, 100, 50, 255, 0, 255, 255, 0]);
        assert_eq!(out[3], 128);
        assert!(out[0].abs_diff(200) <= 2 && out[1].abs_diff(100) <= 2 && out[2].abs_diff(50) <= 2, "{out:?}");
    }

    #[test]
    fn two_channels_and_empty_sizes_are_refused() {
        let size = Size::new(4, 4);
        assert!(ByteResizer::new(Filter::Lanczos, size, size, 2).is_err());
        assert!(ByteResizer::new(Filter::Lanczos, size, Size::new(0, 4), 3).is_err());
    }

    proptest! {
        #[test]
        fn windows_of_rows_give_the_bytes_of_the_whole(
            from in (1..40u32, 1..60u32), to in (1..40u32, 1..60u32), channels in prop::sample::select(vec![1, 3, 4]),
            window in 1..20usize, filter in prop::sample::select(FILTERS.to_vec()),
        ) {
            let resizer = ByteResizer::new(filter, Size::new(from.0, from.1), Size::new(to.0, to.1), channels).unwrap();
            let stride = from.0 as usize * channels;
            let input = noise(stride * from.1 as usize);
            let whole = resizer.picture(&input);
            let mut banded = Vec::new();
            for start in (0..to.1 as usize).step_by(window) {
                let rows = start..(start + window).min(to.1 as usize);
                let needed = resizer.rows_needed(rows.clone());
                let part = &input[needed.start * stride..needed.end * stride];
                banded.extend(resizer.rows(rows, part, needed.start));
            }
            prop_assert_eq!(whole, banded);
        }
    }
}
