//! The float resamplers (reference: pixels.md, section 6.1). None of them widens when a picture shrinks.
//!
//! Columns first, then rows, both in `f32`. Like the 8-bit resampler they run over windows of rows.

use std::ops::Range;

use domain::region::Size;

use crate::frames::PixelError;

/// How a pixel is made of its neighbours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interpolation {
    /// The pixel under the centre.
    NearestExact,
    /// Two neighbours a side.
    Bilinear,
    /// Four neighbours a side, a = -0.75; values may leave 0..1.
    Bicubic,
    /// The mean of all pixels touched.
    Area,
    /// Two neighbours a side, turned into one another as vectors of channels: for latents.
    Bislerp,
}

/// What every output position of one axis is made of.
#[derive(Debug)]
enum Axis {
    /// Sums of weighted taps: the input position and weight of each, and where each output's taps end.
    Weighted { taps: Vec<(usize, f32)>, ends: Vec<usize> },
    /// Turns from a first position to a second one, by a ratio.
    Turned(Vec<(usize, usize, f32)>),
}

/// The input coordinate of output position `i`, pixel centres at .5: rounded once, as by a fused multiply-add.
fn coordinate(i: usize, ratio: f32) -> f32 {
    (f64::from(ratio) * (i as f64 + 0.5) - 0.5) as f32
}

/// The two neighbours of output position `i` and how far it is on the way to the second.
fn neighbours(i: usize, from: usize, ratio: f32) -> (usize, usize, f32) {
    let position = coordinate(i, ratio).max(0.0);
    let first = (position as usize).min(from - 1);
    (first, (first + 1).min(from - 1), position - first as f32)
}

/// The four weights of a cubic at `t` between its second and third tap.
fn cubic(t: f32) -> [f32; 4] {
    const A: f32 = -0.75;
    let near = |x: f32| ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0;
    let far = |x: f32| ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A;
    [far(t + 1.0), near(t), near(1.0 - t), far(2.0 - t)]
}

impl Axis {
    fn new(interpolation: Interpolation, from: usize, to: usize) -> Self {
        let ratio = from as f32 / to as f32;
        if interpolation == Interpolation::Bislerp {
            return Self::Turned((0..to).map(|i| turn(i, from, ratio)).collect());
        }
        let (mut taps, mut ends) = (Vec::new(), Vec::with_capacity(to));
        for i in 0..to {
            match interpolation {
                Interpolation::NearestExact => taps.push(((((i as f32 + 0.5) * ratio) as usize).min(from - 1), 1.0)),
                Interpolation::Bilinear => {
                    let (first, second, t) = neighbours(i, from, ratio);
                    taps.extend([(first, 1.0 - t), (second, t)]);
                }
                Interpolation::Bicubic => {
                    let position = coordinate(i, ratio);
                    let base = position.floor();
                    let clamp = |offset: isize| (base as isize + offset).clamp(0, from as isize - 1) as usize;
                    taps.extend((-1..).zip(cubic(position - base)).map(|(offset, weight)| (clamp(offset), weight)));
                }
                Interpolation::Area => {
                    let span = i * from / to..((i + 1) * from).div_ceil(to);
                    let weight = 1.0 / span.len() as f32;
                    taps.extend(span.map(|x| (x, weight)));
                }
                Interpolation::Bislerp => unreachable!("handled above"),
            }
            ends.push(taps.len());
        }
        Self::Weighted { taps, ends }
    }

    fn taps(&self, i: usize) -> &[(usize, f32)] {
        match self {
            Self::Weighted { taps, ends } => &taps[if i == 0 { 0 } else { ends[i - 1] }..ends[i]],
            Self::Turned(_) => &[],
        }
    }

    /// The input positions that the output positions `wanted` touch.
    fn needed(&self, wanted: Range<usize>) -> Range<usize> {
        let positions = wanted.flat_map(|i| {
            let turn = if let Self::Turned(turns) = self { Some([turns[i].0, turns[i].1]) } else { None };
            self.taps(i).iter().map(|tap| tap.0).chain(turn.into_iter().flatten())
        });
        let (low, high) = positions.fold((usize::MAX, 0), |(low, high), at| (low.min(at), high.max(at + 1)));
        low.min(high)..high
    }
}

/// The two positions between which bislerp turns, and how far.
///
/// The second is found by resampling the positions shifted by one, so it is not always the first plus one.
fn turn(i: usize, from: usize, ratio: f32) -> (usize, usize, f32) {
    let (low, high, t) = neighbours(i, from, ratio);
    let resampled = |value: &dyn Fn(usize) -> usize| (1.0 - t) * value(low) as f32 + t * value(high) as f32;
    let first = resampled(&|x| x);
    let second = resampled(&|x| (x + 1).min(from - 1));
    (first as usize, second as usize, first - first.floor())
}

/// A resize of floats from one size to another, to be run over a picture in windows of rows.
#[derive(Debug)]
pub struct FloatResizer {
    from: Size,
    to: Size,
    channels: usize,
    columns: Axis,
    rows: Axis,
}

impl FloatResizer {
    /// Prepares a resize of pictures with any number of channels.
    pub fn new(interpolation: Interpolation, from: Size, to: Size, channels: usize) -> Result<Self, PixelError> {
        for size in [from, to] {
            if size.pixels() == 0 {
                return Err(PixelError::Empty { operation: "resampling", size });
            }
        }
        let axis = |from: u32, to: u32| Axis::new(interpolation, from as usize, to as usize);
        Ok(Self { from, to, channels, columns: axis(from.width, to.width), rows: axis(from.height, to.height) })
    }

    /// The size that comes out.
    pub fn output(&self) -> Size {
        self.to
    }

    /// The input rows that the output rows `rows` are made of.
    pub fn rows_needed(&self, rows: Range<usize>) -> Range<usize> {
        self.rows.needed(rows)
    }

    /// Makes the output rows `rows` out of `input`, which holds whole input rows from row `first_row` on.
    ///
    /// # Panics
    /// When `input` lacks a row of [`FloatResizer::rows_needed`].
    pub fn rows(&self, rows: Range<usize>, input: &[f32], first_row: usize) -> Vec<f32> {
        let needed = self.rows_needed(rows.clone());
        let stride = self.from.width as usize * self.channels;
        let input = &input[(needed.start - first_row) * stride..(needed.end - first_row) * stride];
        let mut pixels = Vec::with_capacity(needed.len() * self.to.width as usize * self.channels);
        input.chunks_exact(stride).for_each(|row| self.across(row, &mut pixels));
        let stride = self.to.width as usize * self.channels;
        let mut out = Vec::with_capacity(rows.len() * stride);
        rows.for_each(|y| self.down(y, |from| &pixels[(from - needed.start) * stride..][..stride], &mut out));
        out
    }

    /// Appends output row `y`, made of rows that [`Self::across`] gave; `row` hands over that of an input row.
    pub(super) fn down<'a>(&self, y: usize, row: impl Fn(usize) -> &'a [f32], out: &mut Vec<f32>) {
        match &self.rows {
            Axis::Weighted { .. } => {
                let start = out.len();
                out.resize(start + self.to.width as usize * self.channels, 0.0);
                for &(from, weight) in self.rows.taps(y) {
                    out[start..].iter_mut().zip(row(from)).for_each(|(sum, x)| *sum += weight * x);
                }
            }
            Axis::Turned(turns) => {
                let (first, second, ratio) = turns[y];
                let pairs = row(first).chunks_exact(self.channels).zip(row(second).chunks_exact(self.channels));
                pairs.for_each(|(a, b)| slerp(a, b, ratio, out));
            }
        }
    }

    /// Appends one input row at the output's width.
    pub(super) fn across(&self, row: &[f32], out: &mut Vec<f32>) {
        match (&self.columns, self.channels) {
            (Axis::Weighted { .. }, 1) => self.weigh::<1>(row, out),
            (Axis::Weighted { .. }, 3) => self.weigh::<3>(row, out),
            (Axis::Weighted { .. }, 4) => self.weigh::<4>(row, out),
            (Axis::Weighted { .. }, channels) => {
                for x in 0..self.to.width as usize {
                    let sum = |c: usize| {
                        self.columns.taps(x).iter().map(|(from, w)| w * row[from * channels + c]).sum::<f32>()
                    };
                    out.extend((0..channels).map(sum));
                }
            }
            (Axis::Turned(turns), channels) => {
                let pixel = |x: usize| &row[x * channels..][..channels];
                turns.iter().for_each(|&(first, second, ratio)| slerp(pixel(first), pixel(second), ratio, out));
            }
        }
    }

    /// Appends one row of pixels of `C` channels, weighed by the taps of the columns.
    fn weigh<const C: usize>(&self, row: &[f32], out: &mut Vec<f32>) {
        let (pixels, _) = row.as_chunks::<C>();
        for x in 0..self.to.width as usize {
            let mut sum = [0.0; C];
            for &(from, weight) in self.columns.taps(x) {
                sum.iter_mut().zip(&pixels[from]).for_each(|(sum, sample)| *sum += weight * sample);
            }
            out.extend_from_slice(&sum);
        }
    }

    /// Resizes a whole picture.
    ///
    /// # Panics
    /// When `input` is not a picture of the size that was prepared for.
    pub fn picture(&self, input: &[f32]) -> Vec<f32> {
        assert_eq!(input.len() as u64, self.from.pixels() * self.channels as u64, "a whole picture goes in");
        self.rows(0..self.to.height as usize, input, 0)
    }
}

/// Appends the vector that lies `ratio` of the way from `a` to `b`, along the arc and in length.
fn slerp(a: &[f32], b: &[f32], ratio: f32, out: &mut Vec<f32>) {
    let norm = |v: &[f32]| v.iter().map(|x| x * x).sum::<f32>().sqrt();
    let (norm_a, norm_b) = (norm(a), norm(b));
    let unit = |x: f32, norm: f32| if norm == 0.0 { 0.0 } else { x / norm };
    let dot: f32 = a.iter().zip(b).map(|(&a, &b)| unit(a, norm_a) * unit(b, norm_b)).sum();
    if dot > 1.0 - 1e-5 {
        out.extend_from_slice(a);
    } else if dot < 1e-5 - 1.0 {
        out.extend(a.iter().zip(b).map(|(a, b)| a * (1.0 - ratio) + b * ratio));
    } else {
        let omega = dot.acos();
        let (from, to) = (((1.0 - ratio) * omega).sin() / omega.sin(), (ratio * omega).sin() / omega.sin());
        let length = norm_a * (1.0 - ratio) + norm_b * ratio;
        out.extend(a.iter().zip(b).map(|(&a, &b)| (from * unit(a, norm_a) + to * unit(b, norm_b)) * length));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: [Interpolation; 5] = [
        Interpolation::NearestExact,
        Interpolation::Bilinear,
        Interpolation::Bicubic,
        Interpolation::Area,
        Interpolation::Bislerp,
    ];

    #[test]
    fn equal_sizes_change_nothing() {
        let size = Size::new(5, 4);
        let input: Vec<f32> = (0..60).map(|i| (i as f32 * 0.7).sin()).collect();
        for interpolation in ALL {
            let out = FloatResizer::new(interpolation, size, size, 3).unwrap().picture(&input);
            let worst = out.iter().zip(&input).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst < 1e-6, "{interpolation:?}: {worst}");
        }
    }

    proptest! {
        #[test]
        fn windows_of_rows_give_the_values_of_the_whole(
            from in (1..20u32, 1..30u32), to in (1..20u32, 1..30u32), channels in 1..5usize, window in 1..20usize,
            interpolation in prop::sample::select(ALL.to_vec()),
        ) {
            let resizer =
                FloatResizer::new(interpolation, Size::new(from.0, from.1), Size::new(to.0, to.1), channels).unwrap();
            let stride = from.0 as usize * channels;
            let input: Vec<f32> = (0..stride * from.1 as usize).map(|i| (i as f32 * 1.3).sin()).collect();
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
