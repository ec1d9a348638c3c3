//! Sixteen numbers at a time, whatever the processor's registers hold.
//!
//! Kernels are written once, over [`Simd`]. Its vectors have sixteen lanes at every level (one register with AVX-512, two
//! with AVX2, an array elsewhere), so a sum that runs in lanes adds the same numbers in the same order everywhere: AVX2 and
//! AVX-512 give the same bytes. [`dispatch`] compiles a kernel for a level and is the only way to one of its tokens, so a
//! function that holds a token may use its instructions.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

use half::{bf16, f16};

use crate::level::Level;
pub(crate) use portable::Portable;

/// Numbers in a vector, and channels in a block of f32.
pub(crate) const LANES: usize = 16;

/// The instructions of one level. A value of such a type is a promise that the processor has them.
pub(crate) trait Simd: Copy + Send + Sync + 'static {
    /// Sixteen f32.
    type V: Copy;

    /// Rows, and vectors in each, of a product that is summed in registers (see [`crate::product`]).
    const ROWS: usize;
    /// See [`Self::ROWS`].
    const VECTORS: usize;

    fn splat(self, x: f32) -> Self::V;
    fn load(self, from: &[f32; LANES]) -> Self::V;
    fn store(self, v: Self::V, to: &mut [f32; LANES]);
    /// Widens numbers that are not NaN.
    fn load_f16(self, from: &[f16; LANES]) -> Self::V;
    /// Widens numbers.
    fn load_bf16(self, from: &[bf16; LANES]) -> Self::V;
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// The greater of both; `b` where either is NaN.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// The lesser of both; `b` where either is NaN.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// a * b + c, rounded once where the processor can.
    fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// c - a * b, rounded as [`Self::mul_add`].
    fn neg_mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// Where `x >= 0`: `a`; elsewhere, and where x is NaN: `b`.
    fn select_nonneg(self, x: Self::V, a: Self::V, b: Self::V) -> Self::V;
    /// The nearest whole number, ties to even, for magnitudes below 2^31.
    fn round(self, a: Self::V) -> Self::V;
    /// 2^n of whole numbers n from -126 to 127.
    fn exp2_whole(self, n: Self::V) -> Self::V;
    /// Rounds to bf16, to nearest, ties to even; NaN stays NaN. Numbers too small for a normal bf16 may become zero.
    fn store_bf16(self, v: Self::V, to: &mut [bf16; LANES]);

    /// Asks the processor to bring the cache line in which a value begins closer, if it can.
    #[inline(always)]
    fn prefetch<T>(self, _value: &T) {}

    /// The lanes as an array.
    #[inline(always)]
    fn array(self, v: Self::V) -> [f32; LANES] {
        let mut lanes = [0.0; LANES];
        self.store(v, &mut lanes);
        lanes
    }

    /// The sum of all lanes, halves added to halves.
    #[inline(always)]
    fn sum(self, v: Self::V) -> f32 {
        let mut lanes = self.array(v);
        let mut width = LANES / 2;
        while width > 0 {
            for i in 0..width {
                lanes[i] += lanes[i + width];
            }
            width /= 2;
        }
        lanes[0]
    }

    /// The first `from.len()` lanes, at most 16, from a slice; the others are `fill`.
    #[inline(always)]
    fn load_part(self, from: &[f32], fill: f32) -> Self::V {
        let mut lanes = [fill; LANES];
        lanes[..from.len()].copy_from_slice(from);
        self.load(&lanes)
    }

    /// Stores the first `to.len()` lanes, at most 16.
    #[inline(always)]
    fn store_part(self, v: Self::V, to: &mut [f32]) {
        to.copy_from_slice(&self.array(v)[..to.len()]);
    }
}

/// A kernel: a function of a level's instructions. Its `run` must be `#[inline(always)]`, and so all that it calls with its
/// token, or it is not compiled for the level.
pub(crate) trait Kernel {
    type Output;
    fn run<S: Simd>(self, s: S) -> Self::Output;
}

/// Runs `kernel` with the f32 instructions of `level`.
///
/// # Panics
/// If this processor lacks them.
pub(crate) fn dispatch<K: Kernel>(level: Level, kernel: K) -> K::Output {
    assert!(level.is_available(), "the processor lacks {level}");
    match level {
        Level::Portable => kernel.run(Portable),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the level is available.
        Level::Avx2 => unsafe { avx2::run(kernel) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the level is available.
        Level::Avx512 | Level::Avx512Bf16 | Level::Amx => unsafe { avx512::run(kernel) },
        #[cfg(not(target_arch = "x86_64"))]
        _ => unreachable!("not available, and that is checked above"),
    }
}

/// The sixteen numbers from `at` on.
#[inline(always)]
pub(crate) fn lanes(of: &[f32], at: usize) -> &[f32; LANES] {
    of[at..at + LANES].try_into().expect("sixteen numbers")
}

/// The sixteen numbers from `at` on.
#[inline(always)]
pub(crate) fn lanes_mut(of: &mut [f32], at: usize) -> &mut [f32; LANES] {
    (&mut of[at..at + LANES]).try_into().expect("sixteen numbers")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every operation on numbers that are awkward, as bytes.
    struct Everything;

    impl Kernel for Everything {
        type Output = Vec<u32>;

        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> Vec<u32> {
            let numbers: [f32; LANES] = std::array::from_fn(|i| (i as f32 - 7.3) * 1.7f32.powi(i as i32 - 5));
            let others: [f32; LANES] = std::array::from_fn(|i| (i as f32 + 0.5) / 3.0);
            let (a, b) = (s.load(&numbers), s.load(&others));
            let whole = s.round(a);
            let few = s.max(s.min(whole, s.splat(100.0)), s.splat(-100.0));
            let results = [
                s.add(a, b),
                s.sub(a, b),
                s.mul(a, b),
                s.div(a, b),
                s.max(a, b),
                s.min(a, b),
                s.select_nonneg(a, b, a),
                whole,
                s.exp2_whole(few),
                s.splat(s.sum(a)),
                s.load_part(&numbers[..5], 2.0),
            ];
            results.into_iter().flat_map(|v| s.array(v)).map(f32::to_bits).collect()
        }
    }

    /// What is rounded once or twice, by level.
    struct Fused;

    impl Kernel for Fused {
        type Output = [f32; 2];

        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> [f32; 2] {
            let (a, c) = (s.splat(1.0 + 2f32.powi(-12)), s.splat(-1.0));
            [s.array(s.mul_add(a, a, c))[3], s.array(s.neg_mul_add(a, a, c))[9]]
        }
    }

    #[test]
    fn every_level_computes_the_same_numbers() {
        let plain = dispatch(Level::Portable, Everything);
        for level in Level::available() {
            assert_eq!(dispatch(level, Everything), plain, "{level}");
        }
    }

    #[test]
    fn vector_levels_round_a_product_and_sum_once() {
        let once = 2f32.powi(-11) + 2f32.powi(-24);
        for level in Level::available().filter(|level| *level > Level::Portable) {
            assert_eq!(dispatch(level, Fused), [once, -2.0 - once], "{level}");
        }
    }

    #[test]
    fn bf16_is_rounded_to_the_nearest() {
        struct Round(f32);
        impl Kernel for Round {
            type Output = bf16;
            #[inline(always)]
            fn run<S: Simd>(self, s: S) -> bf16 {
                let mut halves = [bf16::ZERO; LANES];
                s.store_bf16(s.splat(self.0), &mut halves);
                halves[11]
            }
        }
        for level in Level::available() {
            for x in [0.0, -0.0, 1.0, 1.003_906_3, 1.011_718_8, -2.71, 65504.0, 1e-20, 3e38, f32::INFINITY, f32::MAX] {
                assert_eq!(dispatch(level, Round(x)).to_bits(), bf16::from_f32(x).to_bits(), "{level} {x}");
            }
            assert!(dispatch(level, Round(f32::NAN)).is_nan(), "{level}");
        }
    }
}
