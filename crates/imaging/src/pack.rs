//! The way back from the three channels of a network to those of the picture, and from floats to its samples.

use crate::{
    bytes::{are_bytes, quantise, to_u8, to_u16},
    picture::{Color, Sample},
};

/// The grey of a colour, by ITU-R BT.601: 0.299 of red, 0.587 of green and 0.114 of blue.
///
/// A network sees grey three times and may answer with three channels that differ, by a cast that it learnt; this
/// weighs them as they are seen, where their mean would weigh blue as much as green. Equal channels come back exactly.
#[inline]
pub fn luma([red, green, blue]: [f32; 3]) -> f32 {
    green + 0.299 * (red - green) + 0.114 * (blue - green)
}

/// The samples of a mask as grey: of 8 bits where these hold its values, else of 16.
pub fn pack_mask(values: &[f32]) -> (Sample, Vec<u8>) {
    match are_bytes(values) {
        true => (Sample::U8, quantise(values)),
        false => (Sample::U16, values.iter().flat_map(|&value| to_u16(value).to_le_bytes()).collect()),
    }
}

/// The samples of colours, and of alpha where there is one, in the native layout.
///
/// `rgb` is `[y][x][3]` and `alpha` `[y][x]`, both 0 to 1; what lies outside is cut. 8-bit colours are truncated as in
/// the reference; 16-bit colours and all alpha, which it does not have, are rounded to the nearest.
///
/// # Panics
/// When `alpha` is not given for exactly the pixels of a colour that has it, and for no other.
pub fn pack(rgb: &[f32], alpha: Option<&[f32]>, color: Color, sample: Sample) -> Vec<u8> {
    let (pixels, rest) = rgb.as_chunks::<3>();
    assert!(rest.is_empty(), "whole pixels are packed");
    let expected = color.has_alpha().then_some(pixels.len());
    assert_eq!(alpha.map(<[f32]>::len), expected, "{color} is packed with as many samples of alpha");
    let mut out = Vec::with_capacity(pixels.len() * color.channels() * sample.bytes());
    let mut push = |value: f32, rounded: bool| match sample {
        Sample::U8 if rounded => out.push((255.0 * value).round() as u8),
        Sample::U8 => out.push(to_u8(value)),
        Sample::U16 => out.extend(to_u16(value).to_le_bytes()),
        Sample::F32 => out.extend(value.clamp(0.0, 1.0).to_le_bytes()),
    };
    for (index, &pixel) in pixels.iter().enumerate() {
        if color.is_grey() {
            push(luma(pixel), false);
        } else {
            pixel.into_iter().for_each(|value| push(value, false));
        }
        if let Some(alpha) = alpha {
            push(alpha[index], true);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bytes::{from_u8, from_u16};

    #[test]
    fn every_grey_comes_back() {
        for k in 0..=u8::MAX {
            assert_eq!(pack(&[from_u8(k); 3], None, Color::Grey, Sample::U8), [k]);
        }
        for k in 0..=u16::MAX {
            assert_eq!(pack(&[from_u16(k); 3], None, Color::Grey, Sample::U16), k.to_le_bytes());
        }
    }

    #[test]
    fn a_cast_of_colour_is_weighed_as_it_is_seen() {
        assert!((luma([1.0, 0.0, 0.0]) - 0.299).abs() < 1e-6);
        assert!((luma([0.0, 1.0, 0.0]) - 0.587).abs() < 1e-6);
        assert!((luma([0.0, 0.0, 1.0]) - 0.114).abs() < 1e-6);
    }

    #[test]
    fn colour_bytes_are_truncated_and_alpha_is_rounded() {
        let (rgb, alpha) = ([0.5, 0.999, 7.0], [0.5]);
        assert_eq!(pack(&rgb, Some(&alpha), Color::Rgba, Sample::U8), [127, 254, 255, 128]);
        let words = [32_768u16, 65_469, 65_535, 32_768].map(u16::to_le_bytes).concat();
        assert_eq!(pack(&rgb, Some(&alpha), Color::Rgba, Sample::U16), words);
        assert_eq!(
            pack(&[-1.0, 0.5, 7.0], None, Color::Rgb, Sample::F32),
            [0.0f32, 0.5, 1.0].map(f32::to_le_bytes).concat()
        );
        assert_eq!(pack(&[0.25; 3], Some(&[2.0]), Color::GreyAlpha, Sample::U8), [63, 255]);
    }
}
