//! The samples that the resampler of [`bytes8`](super::bytes8) weighs: bytes as in the reference, and finer ones.

use std::fmt::Debug;

use crate::bytes::{from_u8, from_u16, to_u8, to_u16};

/// Bits behind the point of a weight: what a byte and a sum of weights near 1 leave of 32 bits.
pub(super) const PRECISION: u32 = 32 - 8 - 2;

/// A kind of sample, and its arithmetic. Weights are integers of 22 bits behind the point for all of them.
///
/// Bytes are the reference's. 16-bit and float samples extend it by the same rules, so that a picture of more than
/// eight bits keeps them.
pub trait Level: Copy + Debug + Send + 'static {
    /// What weighted samples are added up in.
    type Sum: Copy;

    /// Half a level: what a sum begins with, so that it is rounded in the end.
    const HALF: Self::Sum;

    /// A sum and one more weighted sample.
    fn plus(sum: Self::Sum, sample: Self, weight: i32) -> Self::Sum;

    /// The sample of a sum, cut to the range of samples.
    fn of_sum(sum: Self::Sum) -> Self;

    /// A colour times its alpha.
    fn premultiplied(self, alpha: Self) -> Self;

    /// A colour divided by its alpha; unchanged where alpha is nothing or all.
    fn unpremultiplied(self, alpha: Self) -> Self;

    /// The level of a sample from 0 to 1.
    fn quantise(sample: f32) -> Self;

    /// The sample from 0 to 1 of a level.
    fn dequantise(self) -> f32;
}

impl Level for u8 {
    type Sum = i32;

    const HALF: i32 = 1 << (PRECISION - 1);

    #[inline]
    fn plus(sum: i32, sample: Self, weight: i32) -> i32 {
        sum + i32::from(sample) * weight
    }

    #[inline]
    fn of_sum(sum: i32) -> Self {
        (sum >> PRECISION).clamp(0, 255) as Self
    }

    #[inline]
    fn premultiplied(self, alpha: Self) -> Self {
        let product = u32::from(self) * u32::from(alpha) + 128;
        (((product >> 8) + product) >> 8) as Self
    }

    #[inline]
    fn unpremultiplied(self, alpha: Self) -> Self {
        match alpha {
            0 | Self::MAX => self,
            _ => (255 * u32::from(self) / u32::from(alpha)).min(255) as Self,
        }
    }

    #[inline]
    fn quantise(sample: f32) -> Self {
        to_u8(sample)
    }

    #[inline]
    fn dequantise(self) -> f32 {
        from_u8(self)
    }
}

impl Level for u16 {
    type Sum = i64;

    const HALF: i64 = 1 << (PRECISION - 1);

    #[inline]
    fn plus(sum: i64, sample: Self, weight: i32) -> i64 {
        sum + i64::from(sample) * i64::from(weight)
    }

    #[inline]
    fn of_sum(sum: i64) -> Self {
        (sum >> PRECISION).clamp(0, i64::from(Self::MAX)) as Self
    }

    #[inline]
    fn premultiplied(self, alpha: Self) -> Self {
        let product = u32::from(self) * u32::from(alpha) + (1 << 15);
        (((product >> 16) + product) >> 16) as Self
    }

    #[inline]
    fn unpremultiplied(self, alpha: Self) -> Self {
        match alpha {
            0 | Self::MAX => self,
            _ => (u32::from(Self::MAX) * u32::from(self) / u32::from(alpha)).min(u32::from(Self::MAX)) as Self,
        }
    }

    #[inline]
    fn quantise(sample: f32) -> Self {
        to_u16(sample)
    }

    #[inline]
    fn dequantise(self) -> f32 {
        from_u16(self)
    }
}

impl Level for f32 {
    type Sum = f64;

    const HALF: f64 = 0.0; // nothing is rounded to a level

    #[inline]
    fn plus(sum: f64, sample: Self, weight: i32) -> f64 {
        sum + f64::from(sample) * f64::from(weight)
    }

    #[inline]
    fn of_sum(sum: f64) -> Self {
        (sum / f64::from(1u32 << PRECISION)).clamp(0.0, 1.0) as Self
    }

    #[inline]
    fn premultiplied(self, alpha: Self) -> Self {
        self * alpha
    }

    #[inline]
    fn unpremultiplied(self, alpha: Self) -> Self {
        if alpha == 0.0 || alpha == 1.0 { self } else { (self / alpha).min(1.0) }
    }

    #[inline]
    fn quantise(sample: f32) -> Self {
        sample.clamp(0.0, 1.0)
    }

    #[inline]
    fn dequantise(self) -> f32 {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_floats_are_multiplied_by_alpha_as_bytes_are() {
        for (color, alpha) in (0..=255u8).flat_map(|color| [1u8, 2, 77, 128, 254].map(|alpha| (color, alpha))) {
            let product = f64::from(color) / 255.0 * f64::from(alpha) / 255.0;
            let (words, floats) = ((u16::from(color) * 257, u16::from(alpha) * 257), (from_u8(color), from_u8(alpha)));
            assert!((f64::from(from_u8(color.premultiplied(alpha))) - product).abs() <= 0.51 / 255.0);
            assert!((f64::from(from_u16(words.0.premultiplied(words.1))) - product).abs() <= 0.51 / 65_535.0);
            assert!((f64::from(floats.0.premultiplied(floats.1)) - product).abs() < 1e-6);
        }
        assert_eq!(u16::MAX.premultiplied(u16::MAX), u16::MAX);
        assert_eq!(30_000u16.premultiplied(32_768).unpremultiplied(32_768), 29_999); // cut, as bytes are
        assert_eq!(60_000u16.unpremultiplied(30_000), u16::MAX);
        assert_eq!((7u16.unpremultiplied(0), 7u16.unpremultiplied(u16::MAX)), (7, 7));
    }
}
