//! Plain Rust, which the compiler makes the best of.

use std::array::from_fn;

use half::{bf16, f16};

use super::{LANES, Simd};

/// What every processor has.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Portable;

/// Whether to multiply and add in one step. Not on x86-64, where that would be a call of a library, a hundred times slower.
const FUSED: bool = cfg!(not(target_arch = "x86_64"));

impl Simd for Portable {
    type V = [f32; LANES];

    const ROWS: usize = 4;
    const VECTORS: usize = 1;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        [x; LANES]
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Self::V {
        *from
    }

    #[inline(always)]
    fn store(self, v: Self::V, to: &mut [f32; LANES]) {
        *to = v;
    }

    #[inline(always)]
    fn load_f16(self, from: &[f16; LANES]) -> Self::V {
        from.map(f16::to_f32)
    }

    #[inline(always)]
    fn load_bf16(self, from: &[bf16; LANES]) -> Self::V {
        from.map(bf16::to_f32)
    }

    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        from_fn(|i| a[i] + b[i])
    }

    #[inline(always)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        from_fn(|i| a[i] - b[i])
    }

    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        from_fn(|i| a[i] * b[i])
    }

    #[inline(always)]
    fn div(self, a: Self::V, b: Self::V) -> Self::V {
        from_fn(|i| a[i] / b[i])
    }

    #[inline(always)]
    fn max(self, a: Self::V, b: Self::V) -> Self::V {
        from_fn(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }

    #[inline(always)]
    fn min(self, a: Self::V, b: Self::V) -> Self::V {
        from_fn(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }

    #[inline(always)]
    fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        from_fn(|i| if FUSED { a[i].mul_add(b[i], c[i]) } else { a[i] * b[i] + c[i] })
    }

    #[inline(always)]
    fn neg_mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        from_fn(|i| if FUSED { (-a[i]).mul_add(b[i], c[i]) } else { c[i] - a[i] * b[i] })
    }

    #[inline(always)]
    fn select_nonneg(self, x: Self::V, a: Self::V, b: Self::V) -> Self::V {
        from_fn(|i| if x[i] >= 0.0 { a[i] } else { b[i] })
    }

    #[inline(always)]
    fn round(self, a: Self::V) -> Self::V {
        // Beyond 2^23 every number is whole. Adding and taking away that much leaves no digits behind the point.
        const WHOLE: f32 = 8_388_608.0;
        from_fn(|i| if a[i].abs() < WHOLE { ((a[i].abs() + WHOLE) - WHOLE).copysign(a[i]) } else { a[i] })
    }

    #[inline(always)]
    fn exp2_whole(self, n: Self::V) -> Self::V {
        from_fn(|i| f32::from_bits(((n[i] as i32 + 127) as u32) << 23))
    }

    #[inline(always)]
    fn store_bf16(self, v: Self::V, to: &mut [bf16; LANES]) {
        *to = from_fn(|i| {
            let bits = v[i].to_bits();
            let rounded = (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16;
            bf16::from_bits(if v[i].is_nan() { 0x7fc0 } else { rounded })
        });
    }
}
