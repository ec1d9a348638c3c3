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
    simd::{LANES, Simd},
};

/// A way to sum products.
pub(crate) trait Products: Copy + Send + Sync {
    /// Neighbouring channels of a row.
    type Line: Copy + Send + Sync;

    /// Outputs that are best computed together, 16 or 32.
    fn group(self) -> usize;

    /// Adds up the products of `rows` rows with the weights of a group of `vectors` * 16 outputs, at most [`Self::group`].
    ///
    /// Row r takes the lines `a[offset + r]` for each of `offsets`; the weights of the i-th are the `16 * vectors` lines from
    /// `i * 16 * vectors` of `b`. Row r of the result is the lines from `r * vectors` of `out`; what they hold is added to,
    /// unless `fresh`.
    fn product(
        self,
        a: &[Self::Line],
        rows: usize,
        offsets: &[usize],
        b: &[Self::Line],
        vectors: usize,
        fresh: bool,
        out: &mut [Line],
    );
}

/// Products of f32 with the vectors of a level.
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
        b: &[Line],
        vectors: usize,
        fresh: bool,
        out: &mut [Line],
    ) {
        let mut from = 0;
        let blocks = rows.div_ceil(S::ROWS);
        for block in 0..blocks {
            let to = rows * (block + 1) / blocks; // as even as can be
            let (a, out) = (&a[from..], &mut out[from * vectors..to * vectors]);
            // One function for each number of rows, since registers cannot be counted at run time.
            macro_rules! tiles {
                ($($rows:literal)*) => {
                    match (to - from, vectors) {
                        $(($rows, 1) if $rows <= S::ROWS => tile::<S, $rows, 1>(self.0, a, offsets, b, fresh, out),)*
                        $(($rows, 2) if $rows <= S::ROWS && S::VECTORS == 2 => tile::<S, $rows, 2>(self.0, a, offsets, b, fresh, out),)*
                        _ => unreachable!("at most S::ROWS rows of one or two vectors"),
                    }
                };
            }
            tiles!(1 2 3 4 5 6 7 8 9 10 11 12 13 14);
            from = to;
        }
    }
}

/// Sums one tile of `ROWS` rows and `VECTORS` vectors of outputs in registers.
#[inline(always)]
fn tile<S: Simd, const ROWS: usize, const VECTORS: usize>(
    s: S,
    a: &[Line],
    offsets: &[usize],
    b: &[Line],
    fresh: bool,
    out: &mut [Line],
) {
    // Only loops of constant length touch the sums, or they would lie in memory instead of registers.
    let out = &mut out[..ROWS * VECTORS];
    let mut sums = [[s.splat(0.0); VECTORS]; ROWS];
    if !fresh {
        for row in 0..ROWS {
            for vector in 0..VECTORS {
                sums[row][vector] = s.load(&out[row * VECTORS + vector].0);
            }
        }
    }
    for (&offset, b) in offsets.iter().zip(b.chunks_exact(LANES * VECTORS)) {
        let a: &[Line; ROWS] = a[offset..offset + ROWS].try_into().expect("as many lines as rows");
        for (k, b) in b.chunks_exact(VECTORS).enumerate() {
            let b: [S::V; VECTORS] = std::array::from_fn(|v| s.load(&b[v].0));
            for row in 0..ROWS {
                let a = s.splat(a[row].0[k]);
                for vector in 0..VECTORS {
                    sums[row][vector] = s.mul_add(a, b[vector], sums[row][vector]);
                }
            }
        }
    }
    for row in 0..ROWS {
        for vector in 0..VECTORS {
            s.store(sums[row][vector], &mut out[row * VECTORS + vector].0);
        }
    }
}
