//! Products of matrices, summed in registers: what convolutions, linear layers and attention are made of.
//!
//! A product takes rows of *lines* (16 f32, or 32 bf16, of neighbouring channels). The sum of each output runs over the
//! lines that a list of offsets names, in that order and within a line from its first number to its last; it never depends on
//! how the rows are cut into tiles, or who computes them. So a product over the taps of a convolution is one list of
//! offsets, and so is one over channels that lie in several places.
//!
//! The weights of a group of outputs (one or two vectors, [`Products::group`]) are packed `[line][number in it][output]`.

use crate::{
    line::Line,
    operand::Operand,
    simd::{LANES, Simd},
};

/// A way to sum products.
pub(crate) trait Products: Copy + Send + Sync {
    /// Neighbouring channels of a row.
    type Line: Operand;

    /// Outputs that are best computed together, 16 or 32.
    fn group(self) -> usize;

    /// Adds up the products of `rows` rows with the weights of a group of `vectors` * 16 outputs, at most [`Self::group`].
    ///
    /// Row r takes the lines `a[offset + r]` for each of `offsets`; the weights of the i-th are the `16 * vectors` lines from
    /// `i * 16 * vectors` of `b`. Of the last line only the first `last` numbers are not zero, in rows as in weights; the others
    /// may be left out. Row r of the result is the lines from `r * vectors` of `out`; what they hold is added to, unless
    /// `fresh`.
    fn product(
        self,
        a: &[Self::Line],
        rows: usize,
        offsets: &[usize],
        last: usize,
        b: &[Self::Line],
        vectors: usize,
        fresh: bool,
        out: &mut [Line],
    );

    /// [`Operand::set_columns`], with what instructions there are for it.
    #[inline(always)]
    fn set_columns<S: Simd>(
        self,
        s: S,
        lines: &mut [Self::Line],
        vectors: usize,
        k: usize,
        vector: usize,
        values: [S::V; 2],
    ) {
        Self::Line::set_columns(s, lines, vectors, k, vector, values);
    }
}

/// How vector instructions multiply lines step by step: what [`sum`] is written over.
pub(crate) trait Steps: Copy {
    /// Neighbouring channels of a row.
    type Line: Copy;
    /// Sixteen sums.
    type V: Copy;

    /// Rows whose sums fit into the registers, of at most [`Self::VECTORS`] vectors each.
    const ROWS: usize;
    /// See [`Self::ROWS`].
    const VECTORS: usize;

    fn zero(self) -> Self::V;
    fn load(self, line: &Line) -> Self::V;
    fn store(self, v: Self::V, line: &mut Line);

    /// Adds the products of step `k`, of the sixteen of a line, of each row with `b`, the weights of that line.
    fn add<const ROWS: usize, const VECTORS: usize>(
        self,
        a: &[Self::Line; ROWS],
        k: usize,
        b: &[Self::Line],
        sums: &mut [[Self::V; VECTORS]; ROWS],
    );
}

/// Steps of a line, and lines of the weights of sixteen outputs for it.
const STEPS: usize = 16;

/// Does what [`Products::product`] says, in tiles of sums that fit into the registers. Of the last line, the first `last`
/// steps count.
#[inline(always)]
pub(crate) fn sum<T: Steps>(
    by: T,
    a: &[T::Line],
    rows: usize,
    offsets: &[usize],
    last: usize,
    b: &[T::Line],
    vectors: usize,
    fresh: bool,
    out: &mut [Line],
) {
    let mut from = 0;
    let blocks = rows.div_ceil(T::ROWS);
    for block in 0..blocks {
        let to = rows * (block + 1) / blocks; // as even as can be
        let (a, out) = (&a[from..], &mut out[from * vectors..to * vectors]);
        // One function for each number of rows, since registers cannot be counted at run time.
        macro_rules! tiles {
            ($($rows:literal)*) => {
                match (to - from, vectors) {
                    $(($rows, 1) if $rows <= T::ROWS => tile::<T, $rows, 1>(by, a, offsets, last, b, fresh, out),)*
                    $(($rows, 2) if $rows <= T::ROWS && T::VECTORS == 2 => {
                        tile::<T, $rows, 2>(by, a, offsets, last, b, fresh, out);
                    })*
                    _ => unreachable!("at most as many rows and vectors as fit"),
                }
            };
        }
        tiles!(1 2 3 4 5 6 7 8 9 10 11 12 13 14);
        from = to;
    }
}

/// Sums one tile in registers.
#[inline(always)]
fn tile<T: Steps, const ROWS: usize, const VECTORS: usize>(
    by: T,
    a: &[T::Line],
    offsets: &[usize],
    last: usize,
    b: &[T::Line],
    fresh: bool,
    out: &mut [Line],
) {
    // Arrays of known sizes, so that sums stay in registers.
    let out: &mut [[Line; VECTORS]; ROWS] =
        out.as_chunks_mut().0.try_into().expect("as many results as rows and vectors");
    let mut sums = [[by.zero(); VECTORS]; ROWS];
    if !fresh {
        for (sums, out) in sums.iter_mut().zip(&*out) {
            for (sum, line) in sums.iter_mut().zip(out) {
                *sum = by.load(line);
            }
        }
    }
    let (last_offset, offsets) = offsets.split_last().expect("at least one line");
    let (lines, last_line) = b.split_at(offsets.len() * STEPS * VECTORS);
    for (&offset, b) in offsets.iter().zip(lines.chunks_exact(STEPS * VECTORS)) {
        let a: &[T::Line; ROWS] = a[offset..offset + ROWS].try_into().expect("as many lines as rows");
        for k in 0..STEPS {
            by.add(a, k, b, &mut sums);
        }
    }
    let a: &[T::Line; ROWS] = a[*last_offset..last_offset + ROWS].try_into().expect("as many lines as rows");
    for k in 0..last.min(STEPS) {
        by.add(a, k, last_line, &mut sums);
    }
    for (sums, out) in sums.iter().zip(out) {
        for (sum, line) in sums.iter().zip(out) {
            by.store(*sum, line);
        }
    }
}

/// Products of f32 with the vectors of a level. A step is a number of a row.
#[derive(Debug, Clone, Copy)]
pub(crate) struct F32<S>(pub(crate) S);

impl<S: Simd> Products for F32<S> {
    type Line = Line;

    #[inline(always)]
    fn group(self) -> usize {
        S::VECTORS * LANES
    }

    #[inline(always)]
    fn product(
        self,
        a: &[Line],
        rows: usize,
        offsets: &[usize],
        last: usize,
        b: &[Line],
        vectors: usize,
        fresh: bool,
        out: &mut [Line],
    ) {
        sum(self, a, rows, offsets, last, b, vectors, fresh, out);
    }
}

impl<S: Simd> Steps for F32<S> {
    type Line = Line;
    type V = S::V;

    const ROWS: usize = S::ROWS;
    const VECTORS: usize = S::VECTORS;

    #[inline(always)]
    fn zero(self) -> S::V {
        self.0.splat(0.0)
    }

    #[inline(always)]
    fn load(self, line: &Line) -> S::V {
        self.0.load(&line.0)
    }

    #[inline(always)]
    fn store(self, v: S::V, line: &mut Line) {
        self.0.store(v, &mut line.0);
    }

    #[inline(always)]
    fn add<const ROWS: usize, const VECTORS: usize>(
        self,
        a: &[Line; ROWS],
        k: usize,
        b: &[Line],
        sums: &mut [[S::V; VECTORS]; ROWS],
    ) {
        let s = self.0;
        let b: &[Line; VECTORS] = b[k * VECTORS..][..VECTORS].try_into().expect("as many columns as vectors");
        let b: [S::V; VECTORS] = std::array::from_fn(|v| s.load(&b[v].0));
        for (sums, a) in sums.iter_mut().zip(a) {
            let a = s.splat(a.0[k]);
            for (sum, b) in sums.iter_mut().zip(b) {
                *sum = s.mul_add(a, b, *sum);
            }
        }
    }
}
