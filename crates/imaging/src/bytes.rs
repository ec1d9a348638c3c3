//! Numbers to bytes and back (reference: pixels.md, section 1).
//!
//! A byte is *truncated*, never rounded: that is how the reference saves pictures and feeds its 8-bit resampler, and
//! `k / 255` comes back as `k` all the same. 16-bit samples have no such history and are rounded to the nearest.

/// The byte of a sample: 255 times it, cut to 0..=255, fraction dropped. NaN gives 0.
#[inline]
pub fn to_u8(sample: f32) -> u8 {
    (255.0 * sample) as u8 // `as` drops the fraction, saturates, and maps NaN to 0
}

/// The 16-bit value nearest to 65,535 times a sample, cut to 0..=65,535. NaN gives 0.
#[inline]
pub fn to_u16(sample: f32) -> u16 {
    (65_535.0 * sample + 0.5) as u16
}

/// The sample of a byte.
#[inline]
pub fn from_u8(byte: u8) -> f32 {
    f32::from(byte) / 255.0
}

/// The sample of a 16-bit value.
#[inline]
pub fn from_u16(value: u16) -> f32 {
    f32::from(value) / 65_535.0
}

/// The bytes of many samples, as [`to_u8`] gives them.
pub fn quantise(samples: &[f32]) -> Vec<u8> {
    samples.iter().map(|&sample| to_u8(sample)).collect()
}

/// The samples of many bytes.
pub fn dequantise(bytes: &[u8]) -> Vec<f32> {
    bytes.iter().map(|&byte| from_u8(byte)).collect()
}

/// Whether every sample is a byte's, `k / 255`.
pub fn are_bytes(samples: &[f32]) -> bool {
    samples.iter().all(|&sample| from_u8(to_u8(sample)) == sample)
}

/// The `f32` samples that lie in the store as little-endian bytes; what is left over of a last one is dropped.
pub fn from_le(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|&sample| f32::from_le_bytes(sample)).collect()
}

/// The little-endian bytes of `f32` samples, as they lie in the store.
pub fn to_le(samples: &[f32]) -> Vec<u8> {
    samples.iter().flat_map(|sample| sample.to_le_bytes()).collect()
}

/// Joins the bytes of `samples` to `into` by bitwise OR, which is how masks are united: not the maximum.
///
/// # Panics
/// When the lengths differ.
pub fn or_into(into: &mut [u8], samples: &[f32]) {
    assert_eq!(into.len(), samples.len(), "masks to be joined have one size");
    into.iter_mut().zip(samples).for_each(|(byte, &sample)| *byte |= to_u8(sample));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_truncated_and_words_are_rounded() {
        assert_eq!([0.5, 0.999, -1.0, 2.0, f32::NAN, f32::INFINITY].map(to_u8), [127, 254, 0, 255, 0, 255]);
        assert_eq!([0.5, 0.499_99, -1.0, 2.0, f32::NAN].map(to_u16), [32_768, 32_767, 0, 65_535, 0]);
    }

    #[test]
    fn every_byte_and_word_comes_back() {
        assert!((0..=u8::MAX).all(|byte| to_u8(from_u8(byte)) == byte));
        assert!((0..=u16::MAX).all(|value| to_u16(from_u16(value)) == value));
    }

    #[test]
    fn masks_are_joined_bit_by_bit() {
        let mut joined = quantise(&[0.5, 0.5]);
        or_into(&mut joined, &[0.25, 0.6]);
        assert_eq!(joined, [127, 255]);
    }
}
