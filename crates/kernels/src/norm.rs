//! Normalization of groups of channels, and of rows.
//!
//! Means and variances are found in two passes, so that large means do no harm. Each sum runs in eight vectors over parts of
//! 4096 numbers, and the sums of parts are added in f64: the order is the same everywhere.

use crate::{
    level::Level,
    math::silu,
    simd::{Kernel, LANES, Simd, dispatch, lanes, lanes_mut},
    threads,
};

/// Numbers that are summed in f32.
const PART: usize = 4096;
/// Vectors in which they are summed.
const SUMS: usize = 8;

/// Group normalization of a map of channels, `[channels][pixels]`, with SiLU behind it or not.
#[derive(Debug, Clone, Copy)]
pub struct GroupNorm<'a> {
    /// The level of the kernels.
    pub level: Level,
    /// Into how many groups neighbouring channels are put.
    pub groups: usize,
    /// What each channel is multiplied by.
    pub weight: &'a [f32],
    /// What is added to each channel.
    pub bias: &'a [f32],
    /// Added to the variance.
    pub eps: f32,
    /// Whether SiLU follows.
    pub silu: bool,
}

impl GroupNorm<'_> {
    /// Writes what `x` becomes to `out`.
    ///
    /// # Panics
    /// If the lengths do not fit together, or this processor lacks the level.
    pub fn run(&self, x: &[f32], out: &mut [f32]) {
        let channels = self.weight.len();
        assert_eq!(self.bias.len(), channels, "a bias for each channel");
        assert!(self.groups > 0 && channels.is_multiple_of(self.groups), "groups of equally many channels");
        assert!(x.len() == out.len() && x.len().is_multiple_of(channels.max(1)), "as many pixels in each channel");
        let size = x.len() / self.groups; // of a group
        let mut jobs = Vec::new();
        let mut rest = out;
        for share in threads::shares(self.groups) {
            let (out, others) = rest.split_at_mut(share.len() * size);
            rest = others;
            let channels = share.start * channels / self.groups..share.end * channels / self.groups;
            let part = Self {
                groups: share.len(),
                weight: &self.weight[channels.clone()],
                bias: &self.bias[channels],
                ..*self
            };
            jobs.push(Groups { norm: part, x: &x[share.start * size..share.end * size], out });
        }
        threads::each(jobs, |job| dispatch(self.level, job));
    }
}

/// Layer normalization of rows, `[rows][width]`, where `width` numbers are given as weight and bias.
#[derive(Debug, Clone, Copy)]
pub struct LayerNorm<'a> {
    /// The level of the kernels.
    pub level: Level,
    /// What each number of a row is multiplied by.
    pub weight: &'a [f32],
    /// What is added to each number of a row.
    pub bias: &'a [f32],
    /// Added to the variance.
    pub eps: f32,
}

impl LayerNorm<'_> {
    /// Writes what `x` becomes to `out`.
    ///
    /// # Panics
    /// If the lengths do not fit together, or this processor lacks the level.
    pub fn run(&self, x: &[f32], out: &mut [f32]) {
        let width = self.weight.len();
        assert_eq!(self.bias.len(), width, "a bias for each number of a row");
        assert!(width > 0 && x.len() == out.len() && x.len().is_multiple_of(width), "whole rows");
        let mut jobs = Vec::new();
        let (mut x, mut out) = (x, out);
        for share in threads::shares(x.len() / width) {
            let (some, others) = x.split_at(share.len() * width);
            let (to, rest) = out.split_at_mut(share.len() * width);
            (x, out) = (others, rest);
            jobs.push(Rows { norm: *self, x: some, out: to });
        }
        threads::each(jobs, |job| dispatch(self.level, job));
    }
}

/// The sum of each row of `x`, `[rows][width]`.
///
/// # Panics
/// If the rows are not whole, or this processor lacks `level`.
pub fn sums(level: Level, x: &[f32], width: usize) -> Vec<f64> {
    row_sums(level, x, width, false)
}

/// The sum of the squares of each row of `x`, `[rows][width]`.
///
/// # Panics
/// As [`sums`].
pub fn squares(level: Level, x: &[f32], width: usize) -> Vec<f64> {
    row_sums(level, x, width, true)
}

fn row_sums(level: Level, x: &[f32], width: usize, squared: bool) -> Vec<f64> {
    assert!(width > 0 && x.len().is_multiple_of(width), "whole rows of {width} numbers");
    let mut sums = vec![0.0; x.len() / width];
    let rows = threads::parts(sums.iter_mut().zip(x.chunks_exact(width)).collect());
    threads::each(rows, |rows| dispatch(level, RowSums { rows, squared }));
    sums
}

struct RowSums<'a> {
    rows: Vec<(&'a mut f64, &'a [f32])>,
    squared: bool,
}

impl Kernel for RowSums<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (to, row) in self.rows {
            *to = if self.squared { sum(s, row, |v| s.mul(v, v)) } else { sum(s, row, |v| v) };
        }
    }
}

/// The sum of a function of numbers.
#[inline(always)]
fn sum<S: Simd>(s: S, x: &[f32], of: impl Fn(S::V) -> S::V) -> f64 {
    let mut all = 0.0;
    for part in x.chunks(PART) {
        let mut sums = [s.splat(0.0); SUMS];
        let whole = part.len() / LANES * LANES;
        let (blocks, rest) = part[..whole].as_chunks::<{ SUMS * LANES }>();
        for block in blocks {
            for (i, sum) in sums.iter_mut().enumerate() {
                *sum = s.add(*sum, of(s.load(lanes(block, i * LANES))));
            }
        }
        for (vector, sum) in rest.as_chunks::<LANES>().0.iter().zip(&mut sums) {
            *sum = s.add(*sum, of(s.load(vector)));
        }
        let mut width = SUMS / 2;
        while width > 0 {
            for i in 0..width {
                sums[i] = s.add(sums[i], sums[i + width]);
            }
            width /= 2;
        }
        all += f64::from(s.sum(sums[0]));
        let rest = &part[whole..];
        if !rest.is_empty() {
            let lanes = s.array(of(s.load_part(rest, 0.0)));
            all += lanes[..rest.len()].iter().copied().map(f64::from).sum::<f64>();
        }
    }
    all
}

/// The mean of numbers, and one over their standard deviation.
#[inline(always)]
fn moments<S: Simd>(s: S, x: &[f32], eps: f32) -> (f32, f32) {
    let count = x.len() as f64;
    let mean = (sum(s, x, |v| v) / count) as f32;
    let center = s.splat(mean);
    let squares = |v: S::V| {
        let v = s.sub(v, center);
        s.mul(v, v)
    };
    let variance = sum(s, x, squares) / count;
    (mean, (1.0 / (variance + f64::from(eps)).sqrt()) as f32)
}

struct Groups<'a> {
    norm: GroupNorm<'a>,
    x: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for Groups<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { norm, x, out } = self;
        let channels = norm.weight.len();
        let pixels = x.len() / channels.max(1);
        if pixels == 0 {
            return;
        }
        let each = channels / norm.groups; // channels of a group
        for group in 0..norm.groups {
            let (mean, factor) = moments(s, &x[group * each * pixels..][..each * pixels], norm.eps);
            for channel in group * each..(group + 1) * each {
                let weight = factor * norm.weight[channel];
                let terms = [mean, weight, norm.bias[channel]].map(|term| s.splat(term));
                let at = channel * pixels..(channel + 1) * pixels;
                scale(s, &x[at.clone()], terms, norm.silu, &mut out[at]);
            }
        }
    }
}

/// Writes `(x - mean) * weight + bias`, or SiLU of it.
#[inline(always)]
fn scale<S: Simd>(s: S, x: &[f32], [mean, weight, bias]: [S::V; 3], with_silu: bool, out: &mut [f32]) {
    let (whole, rest) = x.as_chunks::<LANES>();
    let (to, to_rest) = out.as_chunks_mut::<LANES>();
    for (x, out) in whole.iter().zip(to) {
        let mut y = s.mul_add(s.sub(s.load(x), mean), weight, bias);
        if with_silu {
            y = silu(s, y);
        }
        s.store(y, out);
    }
    if !rest.is_empty() {
        let mut y = s.mul_add(s.sub(s.load_part(rest, 0.0), mean), weight, bias);
        if with_silu {
            y = silu(s, y);
        }
        s.store_part(y, to_rest);
    }
}

struct Rows<'a> {
    norm: LayerNorm<'a>,
    x: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { norm, x, out } = self;
        let width = norm.weight.len();
        let whole = width / LANES * LANES;
        for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
            let (mean, factor) = moments(s, x, norm.eps);
            let (mean, factor) = (s.splat(mean), s.splat(factor));
            let apply = |x: S::V, weight: S::V, bias: S::V| s.mul_add(s.mul(s.sub(x, mean), factor), weight, bias);
            for at in (0..whole).step_by(LANES) {
                let load = |from: &[f32]| s.load(lanes(from, at));
                s.store(apply(load(x), load(norm.weight), load(norm.bias)), lanes_mut(out, at));
            }
            if whole < width {
                let load = |from: &[f32]| s.load_part(&from[whole..], 0.0);
                s.store_part(apply(load(x), load(norm.weight), load(norm.bias)), &mut out[whole..]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operand::tests::{check_levels, random};

    fn plain(x: &[f32], eps: f64) -> Vec<f64> {
        let count = x.len() as f64;
        let mean = x.iter().map(|&x| f64::from(x)).sum::<f64>() / count;
        let variance = x.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / count;
        x.iter().map(|&x| (f64::from(x) - mean) / (variance + eps).sqrt()).collect()
    }

    fn check_close(got: &[f32], want: &[f64], what: &str) {
        for (i, (&got, &want)) in got.iter().zip(want).enumerate() {
            assert!(
                (f64::from(got) - want).abs() <= 4e-6 * want.abs().max(1.0),
                "{what}: number {i} is {got}, not {want}"
            );
        }
    }

    #[test]
    fn groups_are_normalized() {
        for (groups, each, pixels, offset) in
            [(1, 1, 1, 0.0), (2, 3, 5, 0.0), (4, 1, 16, 9.0), (3, 10, 77, -50.0), (2, 2, 4100, 3.0)]
        {
            let channels = groups * each;
            let x: Vec<f32> = random(channels * pixels, 1.0, 1).iter().map(|x| x + offset).collect();
            let (weight, bias) = (random(channels, 1.0, 2), random(channels, 1.0, 3));
            for silu in [false, true] {
                let mut want = Vec::new();
                for (group, x) in x.chunks_exact(each * pixels).enumerate() {
                    for (i, x) in plain(x, 1e-5).into_iter().enumerate() {
                        let channel = group * each + i / pixels;
                        let y = x * f64::from(weight[channel]) + f64::from(bias[channel]);
                        want.push(if silu { y / (1.0 + (-y).exp()) } else { y });
                    }
                }
                check_levels(&format!("{groups} groups of {each} x {pixels}"), |level| {
                    let mut out = vec![0.0; x.len()];
                    GroupNorm { level, groups, weight: &weight, bias: &bias, eps: 1e-5, silu }.run(&x, &mut out);
                    if offset.abs() < 10.0 {
                        check_close(&out, &want, &format!("{level} {groups} groups of {each} x {pixels}"));
                    } else {
                        // The numbers themselves have lost digits against their mean.
                        let far = out.iter().zip(&want).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max);
                        assert!(far < 1e-4, "{level}: {far}");
                    }
                    out
                });
            }
        }
    }

    #[test]
    fn rows_are_summed() {
        for (rows, width) in [(1, 1), (3, 7), (2, 5000), (40, 33)] {
            let x = random(rows * width, 2.0, 1);
            check_levels(&format!("{rows} x {width}"), |level| {
                let (plain, squared) = (sums(level, &x, width), squares(level, &x, width));
                for (row, (sum, square)) in x.chunks_exact(width).zip(plain.iter().zip(&squared)) {
                    let of = |f: fn(f64) -> f64| row.iter().map(|x| f(f64::from(*x))).sum::<f64>();
                    assert!((sum - of(|x| x)).abs() < 1e-4, "{level}: {sum}");
                    assert!((square - of(|x| x * x)).abs() < 1e-6 * square, "{level}: {square}");
                }
                plain.into_iter().chain(squared).map(|sum| sum as f32).collect()
            });
        }
    }

    #[test]
    fn rows_are_normalized() {
        for (rows, width) in [(1, 1), (3, 7), (5, 16), (77, 768), (29, 321)] {
            let (x, weight, bias) = (random(rows * width, 2.0, 1), random(width, 1.0, 2), random(width, 1.0, 3));
            let mut want = Vec::new();
            for x in x.chunks_exact(width) {
                let x = plain(x, 1e-5).into_iter().zip(weight.iter().zip(&bias));
                want.extend(x.map(|(x, (weight, bias))| x * f64::from(*weight) + f64::from(*bias)));
            }
            check_levels(&format!("{rows} x {width}"), |level| {
                let mut out = vec![0.0; x.len()];
                LayerNorm { level, weight: &weight, bias: &bias, eps: 1e-5 }.run(&x, &mut out);
                check_close(&out, &want, &format!("{level} {rows} x {width}"));
                out
            });
        }
    }
}
