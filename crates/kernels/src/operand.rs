//! What products are taken of: f32 numbers packed into lines, and the choice of who takes the products.
//!
//! A product has rows on one side and columns on the other. [`Operand`] says how both are packed for its kind of line, so
//! that linear layers and attention are written once for f32 and bf16.

use std::ops::Range;

use half::bf16;

use crate::{
    kept::{Kept, widened},
    level::Level,
    line::{HalfLine, Line},
    precision::Precision,
    product::{F32, Products},
    simd::{self, Kernel, LANES, Simd},
};

/// Columns, or rows of weights, that are packed once: of the kind that [`dispatch`] chooses.
#[derive(Debug, Clone)]
pub(crate) enum Packed {
    F32(Vec<Line>),
    Bf16(Vec<HalfLine>),
    /// As [`Self::F32`], to be read with [`Operand::widened`] alone.
    Kept(Kept),
}

impl Packed {
    /// Keeps weights as short as they can be without loss.
    pub(crate) fn kept(self) -> Self {
        match self {
            Self::F32(lines) => Self::Kept(Kept::new(lines)),
            other => other,
        }
    }
}

/// A line of numbers of a product.
pub(crate) trait Operand: Copy + Send + Sync + 'static {
    /// All zero.
    const ZERO: Self;
    /// Numbers of a row that a line holds.
    const NUMBERS: usize;

    /// A line of a row: `from`, at most [`Self::NUMBERS`] numbers, then zeros.
    fn row<S: Simd>(s: S, from: &[f32]) -> Self;

    /// Sets number `k` of a line of a row.
    fn set_row(&mut self, k: usize, value: f32);

    /// Sets number `k` of one of the `vectors` * 16 columns that `lines` hold.
    fn set_column(lines: &mut [Self], vectors: usize, k: usize, column: usize, value: f32);

    /// Sets numbers `k`, which is even, and `k + 1` of the sixteen columns of `vector`, one of `vectors` that `lines` hold.
    fn set_columns<S: Simd>(s: S, lines: &mut [Self], vectors: usize, k: usize, vector: usize, values: [S::V; 2]);

    /// Wraps lines.
    fn packed(lines: Vec<Self>) -> Packed;

    /// The lines in `packed`.
    ///
    /// # Panics
    /// If they are of another kind, or kept.
    fn lines(packed: &Packed) -> &[Self];

    /// Some of the lines in `packed`, which may be kept: widened into `to`, if they are short.
    ///
    /// # Panics
    /// If they are of another kind.
    fn widened<'a, S: Simd>(s: S, packed: &'a Packed, which: Range<usize>, to: &'a mut Vec<Line>) -> &'a [Self];
}

impl Operand for Line {
    const ZERO: Self = Line::ZERO;
    const NUMBERS: usize = LANES;

    #[inline(always)]
    fn row<S: Simd>(s: S, from: &[f32]) -> Self {
        let mut line = Line::ZERO;
        match <&[f32; LANES]>::try_from(from) {
            Ok(from) => s.store(s.load(from), &mut line.0),
            Err(_) => line = Line::of(from),
        }
        line
    }

    #[inline(always)]
    fn set_row(&mut self, k: usize, value: f32) {
        self.0[k] = value;
    }

    #[inline(always)]
    fn set_column(lines: &mut [Self], vectors: usize, k: usize, column: usize, value: f32) {
        lines[k * vectors + column / LANES].0[column % LANES] = value;
    }

    #[inline(always)]
    fn set_columns<S: Simd>(s: S, lines: &mut [Self], vectors: usize, k: usize, vector: usize, values: [S::V; 2]) {
        s.store(values[0], &mut lines[k * vectors + vector].0);
        s.store(values[1], &mut lines[(k + 1) * vectors + vector].0);
    }

    fn packed(lines: Vec<Self>) -> Packed {
        Packed::F32(lines)
    }

    #[inline(always)]
    fn lines(packed: &Packed) -> &[Self] {
        match packed {
            Packed::F32(lines) => lines,
            _ => unreachable!("packed for the products that are taken"),
        }
    }

    #[inline(always)]
    fn widened<'a, S: Simd>(s: S, packed: &'a Packed, which: Range<usize>, to: &'a mut Vec<Line>) -> &'a [Self] {
        match packed {
            Packed::F32(lines) | Packed::Kept(Kept::F32(lines)) => &lines[which],
            Packed::Kept(Kept::F16(lines)) => widened(s, &lines[which], to),
            Packed::Kept(Kept::Bf16(lines)) => widened(s, &lines[which], to),
            Packed::Bf16(_) => unreachable!("packed for the products that are taken"),
        }
    }
}

impl Operand for HalfLine {
    const ZERO: Self = HalfLine::ZERO;
    const NUMBERS: usize = 2 * LANES;

    #[inline(always)]
    fn row<S: Simd>(s: S, from: &[f32]) -> Self {
        let mut line = HalfLine::ZERO;
        for (half, from) in line.0.chunks_exact_mut(LANES).zip(from.chunks(LANES)) {
            let half: &mut [bf16; LANES] = half.try_into().expect("sixteen numbers");
            match <&[f32; LANES]>::try_from(from) {
                Ok(from) => s.store_bf16(s.load(from), half),
                Err(_) => s.store_bf16(s.load_part(from, 0.0), half),
            }
        }
        line
    }

    #[inline(always)]
    fn set_row(&mut self, k: usize, value: f32) {
        self.0[k] = bf16::from_f32(value);
    }

    #[inline(always)]
    fn set_column(lines: &mut [Self], vectors: usize, k: usize, column: usize, value: f32) {
        let (line, k) = (k / Self::NUMBERS, k % Self::NUMBERS);
        let tile = (line * vectors + column / LANES) * LANES;
        lines[tile + k / 2].0[column % LANES * 2 + k % 2] = bf16::from_f32(value);
    }

    #[inline(always)]
    fn set_columns<S: Simd>(s: S, lines: &mut [Self], vectors: usize, k: usize, vector: usize, values: [S::V; 2]) {
        for (k, value) in (k..).zip(values) {
            for (lane, value) in s.array(value).into_iter().enumerate() {
                Self::set_column(lines, vectors, k, vector * LANES + lane, value);
            }
        }
    }

    fn packed(lines: Vec<Self>) -> Packed {
        Packed::Bf16(lines)
    }

    #[inline(always)]
    fn lines(packed: &Packed) -> &[Self] {
        match packed {
            Packed::Bf16(lines) => lines,
            _ => unreachable!("packed for the products that are taken"),
        }
    }

    #[inline(always)]
    fn widened<'a, S: Simd>(_: S, packed: &'a Packed, which: Range<usize>, _: &'a mut Vec<Line>) -> &'a [Self] {
        &Self::lines(packed)[which]
    }
}

/// A kernel that takes products. Its `run` must be `#[inline(always)]`, as that of a [`Kernel`].
pub(crate) trait ProductKernel {
    type Output;
    fn run<S: Simd, P: Products>(self, s: S, products: P) -> Self::Output;
}

/// Runs `kernel` with the instructions of `level`, and the products that are best there for `precision`.
///
/// # Panics
/// If this processor lacks the level.
pub(crate) fn dispatch<K: ProductKernel>(level: Level, precision: Precision, kernel: K) -> K::Output {
    struct Exact<K>(K);
    impl<K: ProductKernel> Kernel for Exact<K> {
        type Output = K::Output;
        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> K::Output {
            self.0.run(s, F32(s))
        }
    }
    match (precision, level) {
        #[cfg(target_arch = "x86_64")]
        (Precision::Fast, Level::Avx512Bf16 | Level::Amx) => crate::bf16::dispatch(level, kernel),
        _ => simd::dispatch(level, Exact(kernel)),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Numbers between `-scale` and `scale`, the same for the same seed.
    pub(crate) fn random(count: usize, scale: f32, seed: u64) -> Vec<f32> {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            ((state >> 40) as f32 / 8_388_608.0 - 1.0) * scale
        };
        (0..count).map(|_| next()).collect()
    }

    /// Runs at each level of this processor, with some numbers of threads: bytes do not depend on these, and AVX2 and AVX-512
    /// give the same.
    pub(crate) fn check_levels(what: &str, run: impl Fn(Level) -> Vec<f32> + Send + Sync) {
        let bits = |out: Vec<f32>| out.into_iter().map(f32::to_bits).collect::<Vec<u32>>();
        let mut vector = None;
        for level in Level::ALL {
            if !level.is_available() {
                eprintln!("skipped: {what} at {level}, which this processor lacks");
                continue;
            }
            let once = on_threads(1, || bits(run(level)));
            for threads in [2, 3, 7] {
                assert_eq!(on_threads(threads, || bits(run(level))), once, "{what} at {level} on {threads} threads");
            }
            if level > Level::Portable {
                assert_eq!(vector.get_or_insert(once.clone()), &once, "{what}: {level} differs from avx2");
            }
        }
    }

    /// Runs at a level of bf16, with some numbers of threads.
    pub(crate) fn check_fast(what: &str, run: impl Fn(Level) -> Vec<f32> + Send + Sync) {
        for level in [Level::Avx512Bf16, Level::Amx] {
            if !level.is_available() {
                eprintln!("skipped: {what} at {level}, which this processor lacks");
                continue;
            }
            let once = on_threads(1, || run(level));
            for threads in [2, 3, 7] {
                assert_eq!(on_threads(threads, || run(level)), once, "{what} at {level} on {threads} threads");
            }
        }
    }

    fn on_threads<T: Send>(threads: usize, run: impl FnOnce() -> T + Send) -> T {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads can be started");
        pool.install(run)
    }

    /// The largest difference over the root mean square of what is wanted.
    pub(crate) fn distance(got: &[f32], want: &[f64]) -> f64 {
        assert_eq!(got.len(), want.len());
        let scale = (want.iter().map(|x| x * x).sum::<f64>() / want.len().max(1) as f64).sqrt().max(1e-30);
        let far = got.iter().zip(want).map(|(&got, want)| (f64::from(got) - want).abs());
        far.fold(0.0, |most, far| if far > most || far.is_nan() { far } else { most }) / scale
    }

    /// Rows and columns, packed and multiplied, against plain sums.
    struct Check {
        rows: usize,
        numbers: usize,
        vectors: usize,
        short: bool,
    }

    impl ProductKernel for Check {
        type Output = Option<(Vec<f32>, Vec<f64>)>;

        #[inline(always)]
        fn run<S: Simd, P: Products>(self, s: S, products: P) -> Self::Output {
            let Self { rows, numbers, vectors, short } = self;
            if vectors > products.group() / LANES {
                return None;
            }
            let lines = numbers.div_ceil(P::Line::NUMBERS);
            let (a, b) = (random(rows * numbers, 1.0, 1), random(numbers * vectors * LANES, 1.0, 2)); // [k][column]
            let mut packed = vec![P::Line::ZERO; lines * rows];
            for (r, row) in a.chunks_exact(numbers).enumerate() {
                for (l, part) in row.chunks(P::Line::NUMBERS).enumerate() {
                    packed[l * rows + r] = P::Line::row(s, part);
                }
            }
            let mut columns = vec![P::Line::ZERO; lines * vectors * LANES];
            for k in (0..numbers).step_by(2) {
                for v in 0..vectors {
                    let load = |k: usize| {
                        let from = b.get(k * vectors * LANES + v * LANES..).filter(|_| k < numbers);
                        from.map_or(s.splat(0.0), |from| s.load(simd::lanes(from, 0)))
                    };
                    products.set_columns(s, &mut columns, vectors, k, v, [load(k), load(k + 1)]);
                }
            }
            // The plain way to pack gives the same.
            let mut plain = vec![P::Line::ZERO; columns.len()];
            for (i, value) in b.iter().enumerate() {
                P::Line::set_column(&mut plain, vectors, i / (vectors * LANES), i % (vectors * LANES), *value);
            }
            let offsets: Vec<usize> = (0..lines).map(|l| l * rows).collect();
            let last = numbers - (lines - 1) * P::Line::NUMBERS;
            let (mut out, mut again) =
                (vec![Line([7.0; LANES]); rows * vectors], vec![Line([0.0; LANES]); rows * vectors]);
            let all = P::Line::NUMBERS;
            products.product(
                &packed,
                rows,
                &offsets,
                if short { last } else { all },
                &columns,
                vectors,
                true,
                &mut out,
            );
            products.product(&packed, rows, &offsets, all, &plain, vectors, false, &mut again);
            assert_eq!(out, again, "{rows} rows of {numbers}");
            let want = (0..rows * vectors * LANES).map(|i| {
                let (row, column) = (i / (vectors * LANES), i % (vectors * LANES));
                (0..numbers).map(|k| f64::from(a[row * numbers + k]) * f64::from(b[k * vectors * LANES + column])).sum()
            });
            Some((out.iter().flat_map(|line| line.0).collect(), want.collect()))
        }
    }

    #[test]
    fn products_are_those_of_plain_sums() {
        for level in Level::available() {
            for precision in [Precision::Exact, Precision::Fast] {
                for (rows, numbers) in [(1, 1), (3, 5), (13, 16), (14, 17), (15, 32), (29, 40), (128, 77), (5, 320)] {
                    for vectors in [1, 2] {
                        for short in [false, true] {
                            let check = Check { rows, numbers, vectors, short };
                            let Some((got, want)) = dispatch(level, precision, check) else { continue };
                            let fast = precision == Precision::Fast && level >= Level::Avx512Bf16;
                            let far = distance(&got, &want);
                            assert!(
                                far < if fast { 3e-2 } else { 4e-6 },
                                "{level} {precision:?} {rows} x {numbers}: {far}"
                            );
                        }
                    }
                }
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn products_in_tiles_are_those_of_plain_sums() {
        for (rows, numbers) in [(1, 1), (16, 32), (40, 128), (128, 40), (61, 77)] {
            for vectors in [1, 2] {
                let check = Check { rows, numbers, vectors, short: true };
                let Some(products) = crate::bf16::tests::emulate(check) else { return };
                let (got, want) = products.expect("groups of two vectors");
                let far = distance(&got, &want);
                assert!(far < 3e-2, "{rows} x {numbers}: {far}");
            }
        }
    }
}
