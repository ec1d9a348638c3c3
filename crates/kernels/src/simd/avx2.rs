//! AVX2, FMA and F16C: a vector is two registers.

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::{Kernel, LANES, Simd};

/// The processor has AVX2, FMA and F16C. Only [`run`] makes one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx2(());

/// Compiles and runs `kernel` for this level.
///
/// # Safety
/// The processor has these features.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Avx2(()))
}

/// Calls intrinsics that touch no memory but the array given to them.
macro_rules! op {
    ($call:expr) => {
        // SAFETY: the token says that the processor has the instruction, and the array is sixteen numbers long.
        unsafe { $call }
    };
}

type V = [__m256; 2];

#[inline(always)]
fn each(a: V, f: impl Fn(__m256) -> __m256) -> V {
    [f(a[0]), f(a[1])]
}

#[inline(always)]
fn both(a: V, b: V, f: impl Fn(__m256, __m256) -> __m256) -> V {
    [f(a[0], b[0]), f(a[1], b[1])]
}

impl Simd for Avx2 {
    type V = V;

    const ROWS: usize = 6;
    const VECTORS: usize = 1;

    #[inline(always)]
    fn splat(self, x: f32) -> V {
        [op!(_mm256_set1_ps(x)); 2]
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> V {
        op!([_mm256_loadu_ps(from.as_ptr()), _mm256_loadu_ps(from.as_ptr().add(8))])
    }

    #[inline(always)]
    fn store(self, v: V, to: &mut [f32; LANES]) {
        op!({
            _mm256_storeu_ps(to.as_mut_ptr(), v[0]);
            _mm256_storeu_ps(to.as_mut_ptr().add(8), v[1]);
        })
    }

    #[inline(always)]
    fn load_f16(self, from: &[f16; LANES]) -> V {
        op!({
            let halves = from.as_ptr().cast::<__m128i>();
            [_mm256_cvtph_ps(_mm_loadu_si128(halves)), _mm256_cvtph_ps(_mm_loadu_si128(halves.add(1)))]
        })
    }

    #[inline(always)]
    fn load_bf16(self, from: &[bf16; LANES]) -> V {
        op!({
            let halves = from.as_ptr().cast::<__m128i>();
            [_mm_loadu_si128(halves), _mm_loadu_si128(halves.add(1))]
                .map(|half| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(half))))
        })
    }

    #[inline(always)]
    fn prefetch<T>(self, value: &T) {
        // SAFETY: every x86-64 has the instruction, which never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(std::ptr::from_ref(value).cast()) }
    }

    #[inline(always)]
    fn add(self, a: V, b: V) -> V {
        both(a, b, |a, b| op!(_mm256_add_ps(a, b)))
    }

    #[inline(always)]
    fn sub(self, a: V, b: V) -> V {
        both(a, b, |a, b| op!(_mm256_sub_ps(a, b)))
    }

    #[inline(always)]
    fn mul(self, a: V, b: V) -> V {
        both(a, b, |a, b| op!(_mm256_mul_ps(a, b)))
    }

    #[inline(always)]
    fn div(self, a: V, b: V) -> V {
        both(a, b, |a, b| op!(_mm256_div_ps(a, b)))
    }

    #[inline(always)]
    fn max(self, a: V, b: V) -> V {
        both(a, b, |a, b| op!(_mm256_max_ps(a, b)))
    }

    #[inline(always)]
    fn min(self, a: V, b: V) -> V {
        both(a, b, |a, b| op!(_mm256_min_ps(a, b)))
    }

    #[inline(always)]
    fn mul_add(self, a: V, b: V, c: V) -> V {
        op!([_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])])
    }

    #[inline(always)]
    fn neg_mul_add(self, a: V, b: V, c: V) -> V {
        op!([_mm256_fnmadd_ps(a[0], b[0], c[0]), _mm256_fnmadd_ps(a[1], b[1], c[1])])
    }

    #[inline(always)]
    fn select_nonneg(self, x: V, a: V, b: V) -> V {
        let half = |i: usize| op!(_mm256_blendv_ps(b[i], a[i], _mm256_cmp_ps::<_CMP_GE_OQ>(x[i], _mm256_setzero_ps())));
        [half(0), half(1)]
    }

    #[inline(always)]
    fn round(self, a: V) -> V {
        each(a, |a| op!(_mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a)))
    }

    #[inline(always)]
    fn exp2_whole(self, n: V) -> V {
        each(n, |n| {
            op!({
                let exponent = _mm256_add_epi32(_mm256_cvttps_epi32(n), _mm256_set1_epi32(127));
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent))
            })
        })
    }

    #[inline(always)]
    fn store_bf16(self, v: V, to: &mut [bf16; LANES]) {
        let upper = |v: __m256| {
            op!({
                let bits = _mm256_castps_si256(v);
                let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
                let rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
                let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(v, v));
                _mm256_blendv_epi8(_mm256_srli_epi32::<16>(rounded), _mm256_set1_epi32(0x7fc0), nan)
            })
        };
        op!({
            // Packing works within halves of a register; the permutation puts the quarters in order.
            let packed = _mm256_packus_epi32(upper(v[0]), upper(v[1]));
            _mm256_storeu_si256(to.as_mut_ptr().cast(), _mm256_permute4x64_epi64::<0b11_01_10_00>(packed));
        })
    }
}
