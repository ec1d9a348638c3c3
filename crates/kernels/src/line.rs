//! Memory in cache lines: sixteen f32, or thirty-two bf16, of one pixel or row.

use half::bf16;

/// Sixteen f32 that start a cache line.
#[derive(Debug, Clone, Copy, PartialEq)]
#[repr(C, align(64))]
pub(crate) struct Line(pub(crate) [f32; 16]);

impl Line {
    pub(crate) const ZERO: Self = Self([0.0; 16]);

    /// These numbers, at most sixteen, and zeros behind them.
    pub(crate) fn of(numbers: &[f32]) -> Self {
        let mut line = Self::ZERO;
        line.0[..numbers.len()].copy_from_slice(numbers);
        line
    }
}

/// As many numbers to a line as it holds, and zeros behind the last.
pub(crate) fn lines(numbers: &[f32]) -> Vec<Line> {
    numbers.chunks(16).map(Line::of).collect()
}

/// Thirty-two bf16 that start a cache line.
#[derive(Debug, Clone, Copy, PartialEq)]
#[repr(C, align(64))]
pub(crate) struct HalfLine(pub(crate) [bf16; 32]);

impl HalfLine {
    pub(crate) const ZERO: Self = Self([bf16::ZERO; 32]);
}

/// `count` zero lines, from pages that the system gives when they are first written.
pub(crate) fn zeroed(count: usize) -> Vec<Line> {
    // SAFETY: a line of zero bytes is a line of zeros.
    unsafe { Box::<[Line]>::new_zeroed_slice(count).assume_init() }.into_vec()
}
