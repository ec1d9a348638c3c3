//! What the tile registers do, in plain Rust: for tests on processors that have none.

use half::bf16;

use super::{LINES, Tiles};
use crate::line::{HalfLine, Line};

/// Registers in memory.
pub(crate) struct Emulated {
    lines: usize,
    sums: [[Line; LINES]; 6],
    rows: [HalfLine; LINES],
    weights: [HalfLine; LINES],
}

impl Emulated {
    /// Registers that nobody has set: who reads them is found out by NaN.
    fn new(lines: usize) -> Self {
        let unset = [HalfLine([bf16::NAN; 32]); LINES];
        Self { lines, sums: [[Line([f32::NAN; 16]); LINES]; 6], rows: unset, weights: unset }
    }
}

impl Tiles for Emulated {
    fn take() -> Self {
        Self::new(LINES)
    }

    fn set_lines(&mut self, lines: usize) {
        assert!((1..=LINES).contains(&lines), "a register has 1 to 16 lines");
        if lines != self.lines {
            *self = Self::new(lines);
        }
    }

    fn zero<const SUMS: usize>(&mut self) {
        self.sums[SUMS] = [Line::ZERO; LINES];
    }

    fn load_sums<const SUMS: usize>(&mut self, from: &[Line], pitch: usize) {
        for (i, line) in self.sums[SUMS].iter_mut().enumerate() {
            *line = if i < self.lines { from[i * pitch] } else { Line::ZERO };
        }
    }

    fn store_sums<const SUMS: usize>(&mut self, to: &mut [Line], pitch: usize) {
        for (i, line) in self.sums[SUMS][..self.lines].iter().enumerate() {
            to[i * pitch] = *line;
        }
    }

    fn load_rows(&mut self, from: &[HalfLine]) {
        self.rows = [HalfLine::ZERO; LINES];
        self.rows[..self.lines].copy_from_slice(&from[..self.lines]);
    }

    fn load_weights(&mut self, from: &[HalfLine; LINES]) {
        self.weights = *from;
    }

    fn multiply<const SUMS: usize>(&mut self) {
        // [first or second of a pair][pair][output]
        let weights: [[[f64; 16]; LINES]; 2] =
            [0, 1].map(|i| self.weights.map(|line| std::array::from_fn(|output| number(line.0[2 * output + i]))));
        for (sums, row) in self.sums[SUMS].iter_mut().zip(&self.rows).take(self.lines) {
            let mut products = [[0f32; 16]; 2];
            for (i, (products, weights)) in products.iter_mut().zip(&weights).enumerate() {
                for (pair, weights) in row.0.chunks_exact(2).zip(weights) {
                    let number = number(pair[i]);
                    for (product, weight) in products.iter_mut().zip(weights) {
                        // f64 holds any product of bf16, and its sum with a f32 wherever rounding that could tell.
                        *product = flush((f64::from(*product) + number * weight) as f32);
                    }
                }
            }
            for (sum, (first, second)) in sums.0.iter_mut().zip(products[0].iter().zip(&products[1])) {
                *sum = flush(flush(*sum) + flush(first + second));
            }
        }
    }

    fn round(low: &[Line], high: &[Line], step: usize, to: &mut [HalfLine]) {
        for (i, to) in to.iter_mut().enumerate() {
            let high = if high.is_empty() { Line::ZERO } else { high[i * step] };
            for (to, from) in to.0.iter_mut().zip(low[i * step].0.iter().chain(&high.0)) {
                *to = bf16::from_f32(flush(*from));
            }
        }
    }
}

/// A bf16 as the processor takes it.
fn number(x: bf16) -> f64 {
    f64::from(flush(x.to_f32()))
}

/// Zero, with its sign, instead of a number that is too small to be normal.
fn flush(x: f32) -> f32 {
    if x.abs() < f32::MIN_POSITIVE { x * 0.0 } else { x }
}
