//! Products of bf16 numbers, two at a time and summed in f32, with the instruction `vdpbf16ps` of AVX-512.
//!
//! Weights are packed `[line of 32 numbers][vector][pair of numbers][output][2]`: 1 KiB for each vector of 16 outputs, which is
//! also the layout of a tile of AMX.

use std::{arch::x86_64::*, marker::PhantomData};

use crate::{
    amx::{Hardware, TileProducts, Tiles},
    level::Level,
    line::{HalfLine, Line},
    operand::ProductKernel,
    product::{self, Products, Steps},
    simd::{self, Kernel, LANES, Simd},
};

/// Pairs in a line.
const PAIRS: usize = 16;

/// The processor has AVX-512 F, BW, DQ, VL and BF16. Only [`dispatch`] makes one. A step is a pair of numbers of a row.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bf16(());

/// Products in tile registers; the other instructions are those of [`Bf16`].
#[derive(Debug)]
struct Tiled<T>(Bf16, TileProducts<T>);

/// Runs `kernel` with products of bf16: in tile registers at [`Level::Amx`].
///
/// # Panics
/// If this processor lacks them, or `level` does.
pub(crate) fn dispatch<K: ProductKernel>(level: Level, kernel: K) -> K::Output {
    assert!(level >= Level::Avx512Bf16 && level.is_available(), "the processor, or {level}, lacks products of bf16");
    match level {
        Level::Amx => simd::dispatch(level, WithToken(OnTiles::<K, Hardware>(kernel, PhantomData))),
        _ => simd::dispatch(level, WithToken(kernel)),
    }
}

/// A kernel that is run with [`Bf16`].
struct WithToken<K>(K);

impl<K: ProductKernel> Kernel for WithToken<K> {
    type Output = K::Output;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> K::Output {
        // SAFETY: [`dispatch`], which alone makes this, has checked that the processor has the instructions.
        unsafe { run(s, self.0) }
    }
}

/// A kernel that is run with [`Tiled`].
struct OnTiles<K, T>(K, PhantomData<fn() -> T>);

impl<K: ProductKernel, T: Tiles> ProductKernel for OnTiles<K, T> {
    type Output = K::Output;

    #[inline(always)]
    fn run<S: Simd, P: Products>(self, s: S, _: P) -> K::Output {
        self.0.run(s, Tiled::<T>(Bf16(()), TileProducts::new()))
    }
}

/// Compiles and runs `kernel` for bf16.
///
/// # Safety
/// The processor has these features.
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn run<S: Simd, K: ProductKernel>(s: S, kernel: K) -> K::Output {
    kernel.run(s, Bf16(()))
}

impl Bf16 {
    /// Sixteen pairs.
    #[inline(always)]
    fn pairs(self, line: &HalfLine) -> __m512bh {
        // SAFETY: as above, and a line is 64 bytes; any 64 bytes are pairs of bf16.
        unsafe { std::mem::transmute(_mm512_loadu_si512(line.0.as_ptr().cast())) }
    }

    /// Pair `k` of a line, sixteen times.
    #[inline(always)]
    fn splat(self, line: &HalfLine, k: usize) -> __m512bh {
        assert!(k < PAIRS);
        // SAFETY: as above; pair k lies within the line and is aligned to its four bytes, since the line is to 64.
        unsafe { std::mem::transmute(_mm512_set1_epi32(line.0.as_ptr().cast::<i32>().add(k).read())) }
    }

    /// Adds the products of both numbers of each pair to `sum`.
    #[inline(always)]
    fn dot(self, sum: __m512, a: __m512bh, b: __m512bh) -> __m512 {
        // SAFETY: the token says that the processor has the instruction.
        unsafe { _mm512_dpbf16_ps(sum, a, b) }
    }

    /// Rounds numbers, and puts those of one lane side by side.
    #[inline(always)]
    fn pair(self, first: &[f32; LANES], second: &[f32; LANES], to: &mut HalfLine) {
        const ORDER: [u16; 2 * LANES] = {
            let mut order = [0; 2 * LANES];
            let mut lane = 0;
            while lane < LANES {
                order[2 * lane] = lane as u16;
                order[2 * lane + 1] = (LANES + lane) as u16;
                lane += 1;
            }
            order
        };
        // SAFETY: the token says that the processor has the instructions; all arrays and the line are 64 bytes.
        unsafe {
            let rounded: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(
                _mm512_loadu_ps(second.as_ptr()),
                _mm512_loadu_ps(first.as_ptr()),
            ));
            let order = _mm512_loadu_si512(ORDER.as_ptr().cast());
            _mm512_storeu_si512(to.0.as_mut_ptr().cast(), _mm512_permutexvar_epi16(order, rounded));
        }
    }
}

impl Steps for Bf16 {
    type Line = HalfLine;
    type V = __m512;

    const ROWS: usize = 14;
    const VECTORS: usize = 2;

    #[inline(always)]
    fn zero(self) -> __m512 {
        // SAFETY: the token says that the processor has the instruction.
        unsafe { _mm512_setzero_ps() }
    }

    #[inline(always)]
    fn load(self, line: &Line) -> __m512 {
        // SAFETY: as above, and a line is 64 bytes.
        unsafe { _mm512_loadu_ps(line.0.as_ptr()) }
    }

    #[inline(always)]
    fn store(self, v: __m512, line: &mut Line) {
        // SAFETY: as above, and a line is 64 bytes.
        unsafe { _mm512_storeu_ps(line.0.as_mut_ptr(), v) }
    }

    #[inline(always)]
    fn add<const ROWS: usize, const VECTORS: usize>(
        self,
        a: &[HalfLine; ROWS],
        k: usize,
        b: &[HalfLine],
        sums: &mut [[__m512; VECTORS]; ROWS],
    ) {
        let b: [__m512bh; VECTORS] = std::array::from_fn(|v| self.pairs(&b[v * PAIRS + k]));
        for (sums, a) in sums.iter_mut().zip(a) {
            let a = self.splat(a, k);
            for (sum, b) in sums.iter_mut().zip(b) {
                *sum = self.dot(*sum, a, b);
            }
        }
    }
}

impl Products for Bf16 {
    type Line = HalfLine;

    #[inline(always)]
    fn group(self) -> usize {
        Self::VECTORS * LANES
    }

    #[inline(always)]
    fn product(
        self,
        a: &[HalfLine],
        rows: usize,
        offsets: &[usize],
        last: usize,
        b: &[HalfLine],
        vectors: usize,
        fresh: bool,
        out: &mut [Line],
    ) {
        product::sum(self, a, rows, offsets, last.div_ceil(2), b, vectors, fresh, out);
    }

    #[inline(always)]
    fn set_columns<S: Simd>(
        self,
        s: S,
        lines: &mut [HalfLine],
        vectors: usize,
        k: usize,
        vector: usize,
        values: [S::V; 2],
    ) {
        let (line, k) = (k / (2 * PAIRS), k % (2 * PAIRS));
        let [first, second] = values.map(|v| s.array(v));
        self.pair(&first, &second, &mut lines[(line * vectors + vector) * PAIRS + k / 2]);
    }
}

impl<T> Clone for Tiled<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Tiled<T> {}

impl<T: Tiles> Products for Tiled<T> {
    type Line = HalfLine;

    #[inline(always)]
    fn group(self) -> usize {
        self.1.group()
    }

    #[inline(always)]
    fn product(
        self,
        a: &[HalfLine],
        rows: usize,
        offsets: &[usize],
        last: usize,
        b: &[HalfLine],
        vectors: usize,
        fresh: bool,
        out: &mut [Line],
    ) {
        self.1.product(a, rows, offsets, last, b, vectors, fresh, out);
    }

    #[inline(always)]
    fn set_columns<S: Simd>(
        self,
        s: S,
        lines: &mut [HalfLine],
        vectors: usize,
        k: usize,
        vector: usize,
        values: [S::V; 2],
    ) {
        self.0.set_columns(s, lines, vectors, k, vector, values);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::amx::emulated::Emulated;

    /// Runs `kernel` with emulated tile registers, if the processor has the other instructions of bf16.
    pub(crate) fn emulate<K: ProductKernel>(kernel: K) -> Option<K::Output> {
        if !Level::Avx512Bf16.is_available() {
            eprintln!("skipped: emulated tiles, since the rest needs avx512-bf16, which this processor lacks");
            return None;
        }
        Some(dispatch(Level::Avx512Bf16, OnTiles::<K, Emulated>(kernel, PhantomData)))
    }
}
