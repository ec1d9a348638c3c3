//! Products of bf16 matrices in AMX's tile registers.
//!
//! A processor with AMX has eight registers of sixteen 64-byte lines. One instruction multiplies sixteen rows of 32 bf16 with
//! 32 x 16 weights and adds the 256 results to sums in f32. Here six registers hold sums, of up to 48 rows and 32 outputs;
//! one holds rows and one holds weights. So for each 6 products of 16 cycles, 7 registers are loaded, of 8 cycles each, and
//! 2 KiB of weights come from the cache, 21 bytes a cycle.
//!
//! The instructions are behind [`Tiles`], which has two implementations: [`Hardware`], and, for tests on any processor,
//! `Emulated`, after Intel's manual. All else is written over the trait. [`TileProducts`] makes [`Products`] of it.

#![cfg_attr(not(any(test, target_arch = "x86_64")), allow(dead_code))]

#[cfg(test)]
pub(crate) mod emulated;
#[cfg(target_arch = "x86_64")]
mod hardware;

use std::{fmt, marker::PhantomData};

use crate::{
    line::{HalfLine, Line},
    product::Products,
};
#[cfg(target_arch = "x86_64")]
pub(crate) use hardware::{Hardware, is_available};

/// Lines of a register, and numbers in a line of sums.
pub(crate) const LINES: usize = 16;
/// Registers of sums for each 16 outputs.
const MOST_ROWS: usize = 3;

/// The tile registers: 0 to 5 hold sums, one more holds rows, and the last one holds weights.
///
/// All but the weights have as many lines as was last said by [`Self::set_lines`]; the weights have sixteen.
pub(crate) trait Tiles: Sized {
    /// Takes the registers of this thread, of sixteen lines each, until they are dropped.
    ///
    /// # Panics
    /// If this processor has none, or they are taken.
    fn take() -> Self;

    /// From now on, registers have this many lines, 1 to 16. What they hold is lost if that is a change.
    fn set_lines(&mut self, lines: usize);

    /// Sets sums to zero.
    fn zero<const SUMS: usize>(&mut self);

    /// Loads sums from each `pitch`-th line.
    fn load_sums<const SUMS: usize>(&mut self, from: &[Line], pitch: usize);

    /// Stores sums to each `pitch`-th line.
    fn store_sums<const SUMS: usize>(&mut self, to: &mut [Line], pitch: usize);

    /// Loads rows: one line of 32 neighbouring numbers for each. What lies behind them is not read.
    fn load_rows(&mut self, from: &[HalfLine]);

    /// Loads the weights of 16 outputs for 32 numbers of a row, `[pair of numbers][output][2]`.
    fn load_weights(&mut self, from: &[HalfLine; LINES]);

    /// Adds the products of the rows with the weights to sums.
    ///
    /// For each row and output, the products of the first numbers of all pairs are summed in turn, and so are those of the
    /// second ones; then both are added, and that to the sum. Each step is rounded once, to nearest, ties to even; what is
    /// too small for a normal number is zero, before and after.
    fn multiply<const SUMS: usize>(&mut self);

    /// Rounds pairs of lines to bf16: each `step`-th of `low` to the first half of a line, and each `step`-th of `high`, or
    /// zeros if that is empty, to the second, until `to` is full or the lines are used up.
    fn round(low: &[Line], high: &[Line], step: usize, to: &mut [HalfLine]);
}

/// Products of bf16 in the tile registers `T`, summed in f32.
pub(crate) struct TileProducts<T>(PhantomData<fn() -> T>);

impl<T> TileProducts<T> {
    /// The products. They panic when they are used on a processor that has no such registers.
    pub(crate) const fn new() -> Self {
        Self(PhantomData)
    }
}

impl<T> Clone for TileProducts<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for TileProducts<T> {}

impl<T> fmt::Debug for TileProducts<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TileProducts")
    }
}

/// The weights of a group are packed `[line of 32 numbers][vector of 16 outputs][pair of numbers][output][2]`.
impl<T: Tiles> Products for TileProducts<T> {
    type Line = HalfLine;

    fn group(self) -> usize {
        2 * LINES
    }

    fn product(
        self,
        a: &[HalfLine],
        rows: usize,
        offsets: &[usize],
        _last: usize,
        b: &[HalfLine],
        vectors: usize,
        fresh: bool,
        out: &mut [Line],
    ) {
        product(&mut T::take(), a, rows, offsets, b, vectors, fresh, out);
    }
}

/// What [`Products::product`] does, in registers that are at hand.
pub(crate) fn product<T: Tiles>(
    tiles: &mut T,
    a: &[HalfLine],
    rows: usize,
    offsets: &[usize],
    b: &[HalfLine],
    vectors: usize,
    fresh: bool,
    out: &mut [Line],
) {
    let registers = rows / LINES;
    let blocks = registers.div_ceil(MOST_ROWS);
    for block in 0..blocks {
        let (from, to) = (registers * block / blocks, registers * (block + 1) / blocks); // as even as can be
        let out = &mut out[from * LINES * vectors..to * LINES * vectors];
        some_rows(tiles, &a[from * LINES..], to - from, offsets, b, vectors, fresh, out);
    }
    let rest = rows % LINES;
    if rest > 0 {
        let from = rows - rest;
        tiles.set_lines(rest);
        some_rows(tiles, &a[from..], 1, offsets, b, vectors, fresh, &mut out[from * vectors..rows * vectors]);
        tiles.set_lines(LINES);
    }
}

/// Products of as many rows as fill `registers`, at most [`MOST_ROWS`].
fn some_rows<T: Tiles>(
    tiles: &mut T,
    a: &[HalfLine],
    registers: usize,
    offsets: &[usize],
    b: &[HalfLine],
    vectors: usize,
    fresh: bool,
    out: &mut [Line],
) {
    match (registers, vectors) {
        (1, 1) => sum::<T, 1, 1>(tiles, a, offsets, b, fresh, out),
        (2, 1) => sum::<T, 2, 1>(tiles, a, offsets, b, fresh, out),
        (3, 1) => sum::<T, 3, 1>(tiles, a, offsets, b, fresh, out),
        (1, 2) => sum::<T, 1, 2>(tiles, a, offsets, b, fresh, out),
        (2, 2) => sum::<T, 2, 2>(tiles, a, offsets, b, fresh, out),
        (3, 2) => sum::<T, 3, 2>(tiles, a, offsets, b, fresh, out),
        _ => unreachable!("one to three registers of rows, one or two vectors"),
    }
}

/// Sums one block: `ROWS` registers of rows, and `VECTORS` of outputs. The sums of rows r and vector v are register
/// `MOST_ROWS * v + r`.
fn sum<T: Tiles, const ROWS: usize, const VECTORS: usize>(
    tiles: &mut T,
    a: &[HalfLine],
    offsets: &[usize],
    b: &[HalfLine],
    fresh: bool,
    out: &mut [Line],
) {
    /// Does something with each register of sums, whose number must be known when this is compiled.
    macro_rules! each_sum {
        (|$register:ident, $at:ident| $do:expr) => {
            each_sum!(|$register, $at| $do; 0 0 0, 1 1 0, 2 2 0, 3 0 1, 4 1 1, 5 2 1)
        };
        (|$register:ident, $at:ident| $do:expr; $($number:literal $row:literal $vector:literal),*) => {$(
            if $row < ROWS && $vector < VECTORS {
                const $register: usize = $number;
                let $at = $row * LINES * VECTORS + $vector; // its first line
                $do
            }
        )*};
    }

    if fresh {
        each_sum!(|SUMS, _at| tiles.zero::<SUMS>());
    } else {
        each_sum!(|SUMS, at| tiles.load_sums::<SUMS>(&out[at..], VECTORS));
    }
    for (&offset, b) in offsets.iter().zip(b.chunks_exact(LINES * VECTORS)) {
        let rows = |register: usize| &a[offset + register * LINES..];
        let weights = |vector: usize| b[vector * LINES..][..LINES].try_into().expect("the lines of a register");
        tiles.load_weights(weights(0));
        tiles.load_rows(rows(0));
        tiles.multiply::<0>();
        if ROWS > 1 {
            tiles.load_rows(rows(1));
            tiles.multiply::<1>();
        }
        if ROWS > 2 {
            tiles.load_rows(rows(2));
            tiles.multiply::<2>();
        }
        if VECTORS > 1 {
            // Backwards, since the last rows are still there.
            tiles.load_weights(weights(1));
            if ROWS > 2 {
                tiles.multiply::<5>();
                tiles.load_rows(rows(1));
            }
            if ROWS > 1 {
                tiles.multiply::<4>();
                tiles.load_rows(rows(0));
            }
            tiles.multiply::<3>();
        }
    }
    each_sum!(|SUMS, at| tiles.store_sums::<SUMS>(&mut out[at..], VECTORS));
}

#[cfg(test)]
pub(crate) mod tests {
    use half::bf16;
    use rayon::prelude::*;

    use super::{emulated::Emulated, *};

    /// Whether this processor has tile registers; says aloud if it has not.
    pub(crate) fn has_tiles(test: &str) -> bool {
        let has = crate::level::Level::Amx.is_available();
        if !has {
            eprintln!("skipped: {test} on AMX, which this processor lacks");
        }
        has
    }

    /// Numbers from -1 to 1 that look random.
    pub(crate) fn numbers(count: usize, seed: u64) -> Vec<f32> {
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..count).map(|_| next()).collect()
    }

    fn half_lines(values: &[f32]) -> Vec<HalfLine> {
        values.chunks_exact(32).map(|line| HalfLine(std::array::from_fn(|i| bf16::from_f32(line[i])))).collect()
    }

    /// The operands of a product, and what is in the sums before.
    struct Case {
        a: Vec<HalfLine>,
        rows: usize,
        offsets: Vec<usize>,
        b: Vec<HalfLine>,
        vectors: usize,
        before: Vec<Line>,
    }

    impl Case {
        fn new(rows: usize, lines: usize, vectors: usize, numbers: impl Fn(usize, u64) -> Vec<f32>) -> Self {
            let offsets: Vec<usize> = (0..lines).map(|i| i * 7 % 5 * rows + i % 3).collect();
            let a = half_lines(&numbers((4 * rows + 2 + rows) * 32, 1));
            let b = half_lines(&numbers(lines * vectors * LINES * 32, 2));
            let before = numbers(rows * vectors * 16, 3);
            let before = before.chunks_exact(16).map(|line| Line(line.try_into().unwrap())).collect();
            Self { a, rows, offsets, b, vectors, before }
        }

        fn product<T: Tiles>(&self, fresh: bool) -> Vec<f32> {
            let mut out = if fresh { vec![Line([7.0; 16]); self.before.len()] } else { self.before.clone() };
            TileProducts::<T>::new().product(
                &self.a,
                self.rows,
                &self.offsets,
                32,
                &self.b,
                self.vectors,
                fresh,
                &mut out,
            );
            out.iter().flat_map(|line| line.0).collect()
        }

        /// The product in f64, and the sum of all magnitudes.
        fn plain(&self, fresh: bool) -> Vec<(f64, f64)> {
            let mut sums = Vec::new();
            for row in 0..self.rows {
                for output in 0..self.vectors * 16 {
                    let before = f64::from(self.before[row * self.vectors + output / 16].0[output % 16]);
                    let (mut sum, mut magnitude) = if fresh { (0.0, 0.0) } else { (before, before.abs()) };
                    for (i, offset) in self.offsets.iter().enumerate() {
                        for k in 0..32 {
                            let weights = self.b[(i * self.vectors + output / 16) * LINES + k / 2];
                            let product =
                                self.a[offset + row].0[k].to_f64() * weights.0[output % 16 * 2 + k % 2].to_f64();
                            sum += product;
                            magnitude += product.abs();
                        }
                    }
                    sums.push((sum, magnitude));
                }
            }
            sums
        }
    }

    const SHAPES: [(usize, usize, usize); 9] =
        [(1, 1, 1), (2, 5, 2), (15, 3, 2), (16, 9, 1), (17, 2, 2), (47, 4, 1), (48, 18, 2), (64, 3, 2), (131, 7, 2)];

    fn check_products<T: Tiles>() {
        for (rows, lines, vectors) in SHAPES {
            let case = Case::new(rows, lines, vectors, numbers);
            for fresh in [true, false] {
                let sums = case.product::<T>(fresh);
                for (i, (sum, (plain, magnitude))) in sums.iter().zip(case.plain(fresh)).enumerate() {
                    let difference = (f64::from(*sum) - plain).abs();
                    assert!(
                        difference <= magnitude * 1e-6,
                        "{rows}x{lines}x{vectors}, number {i}: {sum} is not {plain}"
                    );
                }
            }
        }
    }

    #[test]
    fn products_are_those_of_plain_sums() {
        check_products::<Emulated>();
        #[cfg(target_arch = "x86_64")]
        if has_tiles("products") {
            check_products::<Hardware>();
        }
    }

    #[test]
    fn a_row_is_the_same_whatever_its_neighbours() {
        let case = Case::new(131, 7, 2, numbers);
        let together = case.product::<Emulated>(true);
        for (row, sums) in together.chunks_exact(32).enumerate() {
            let mut alone = vec![Line::ZERO; 2];
            TileProducts::<Emulated>::new().product(&case.a[row..], 1, &case.offsets, 32, &case.b, 2, true, &mut alone);
            assert_eq!([alone[0].0, alone[1].0].concat(), sums, "row {row}");
        }
    }

    /// The first sum of one multiplication, of pairs of products that are added to `before`.
    fn dot<T: Tiles>(before: f32, pairs: &[[(f32, f32); 2]]) -> f32 {
        let (mut a, mut b) = ([HalfLine::ZERO; LINES], [HalfLine::ZERO; LINES]);
        for (k, pair) in pairs.iter().enumerate() {
            for (j, (x, weight)) in pair.iter().enumerate() {
                a[0].0[2 * k + j] = bf16::from_f32(*x);
                b[k].0[j] = bf16::from_f32(*weight);
            }
        }
        let mut out = [Line([before; 16])];
        TileProducts::<T>::new().product(&a, 1, &[0], 32, &b, 1, false, &mut out);
        out[0].0[0]
    }

    fn check_steps<T: Tiles>() {
        let (one, big, none) = ((1.0, 1.0), (4096.0, 4096.0), (0.0, 0.0));
        let ulp = 2f32.powi(24);
        // The ones beside the big number are summed before they meet it; the one behind it is lost.
        assert_eq!(dot::<T>(0.0, &[[big, one], [one, one]]), ulp + 2.0);
        assert_eq!(dot::<T>(0.0, &[[big, none], [one, none], [one, none]]), ulp);
        assert_eq!(dot::<T>(ulp, &[[one, none]]), ulp);
        assert_eq!(dot::<T>(ulp, &[[one, one]]), ulp + 2.0);
        // What is too small is zero: a number, a product, a sum.
        let (tiny, small) = (2f32.powi(-130), 2f32.powi(-126));
        assert_eq!(dot::<T>(0.0, &[[(tiny, 2f32.powi(100)), none]]), 0.0);
        assert_eq!(dot::<T>(0.0, &[[(small, 0.5), none]]), 0.0);
        assert_eq!(dot::<T>(tiny, &[[(small, 1.0), none]]), small);
        assert!(dot::<T>(0.0, &[[(f32::NAN, 0.0), none]]).is_nan());
        assert_eq!(dot::<T>(0.0, &[[(f32::INFINITY, -1.0), none]]), f32::NEG_INFINITY);
    }

    #[test]
    fn a_multiplication_takes_the_steps_of_the_manual() {
        check_steps::<Emulated>();
        #[cfg(target_arch = "x86_64")]
        if has_tiles("steps") {
            check_steps::<Hardware>();
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn hardware_does_what_is_emulated() {
        if !has_tiles("comparison") {
            return;
        }
        for (rows, lines, vectors) in SHAPES {
            let case = Case::new(rows, lines, vectors, numbers);
            for fresh in [true, false] {
                let both = case.product::<Hardware>(fresh).into_iter().zip(case.product::<Emulated>(fresh));
                for (i, (hardware, emulated)) in both.enumerate() {
                    let of = format!("number {i} of {rows}x{lines}x{vectors}");
                    assert_eq!(hardware.to_bits(), emulated.to_bits(), "{of}: {hardware} is not {emulated}");
                }
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn threads_have_registers_of_their_own() {
        if !has_tiles("threads") {
            return;
        }
        let case = Case::new(131, 7, 2, numbers);
        let alone = case.product::<Hardware>(true);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(4).build().unwrap();
        pool.install(|| (0..64).into_par_iter().for_each(|_| assert_eq!(case.product::<Hardware>(true), alone)));
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn registers_are_taken_once() {
        if !has_tiles("taking twice") {
            assert!(std::panic::catch_unwind(|| drop(Hardware::take())).is_err(), "and gives no registers");
            return;
        }
        let first = Hardware::take();
        assert!(std::panic::catch_unwind(|| drop(Hardware::take())).is_err());
        drop(first);
        drop(Hardware::take());
    }

    #[test]
    fn numbers_are_rounded_to_the_nearest() {
        let low = [Line(std::array::from_fn(|i| 1.0 + i as f32 / 512.0))];
        let mut to = [HalfLine::ZERO];
        Emulated::round(&low, &[], 1, &mut to);
        assert_eq!(to[0].0[..4].iter().map(|x| x.to_f32()).collect::<Vec<_>>(), [1.0, 1.0, 1.0, 1.0078125]);
        assert_eq!(to[0].0[16..], [bf16::ZERO; 16]);

        // Vectors of bf16 are all that this takes of the hardware.
        #[cfg(target_arch = "x86_64")]
        if crate::level::Level::Avx512Bf16.is_available() {
            let values: Vec<Line> = numbers(10 * 16, 4).chunks(16).map(|line| Line(line.try_into().unwrap())).collect();
            for (low, high, step) in [(0..10, 1..10, 2), (0..5, 5..10, 1), (0..5, 0..0, 1)] {
                let mut rounded = [[HalfLine::ZERO; 5]; 2];
                Hardware::round(&values[low.clone()], &values[high.clone()], step, &mut rounded[0]);
                Emulated::round(&values[low], &values[high], step, &mut rounded[1]);
                assert_eq!(rounded[0], rounded[1]);
            }
        } else {
            eprintln!("skipped: rounding by vectors of bf16, which this processor lacks");
        }
    }
}
