//! Pictures of inks become sRGB, and say so.

use std::error::Error;

use imaging::decode::{DecodeError, decode_rows, probe};
use imaging::picture::{Color, Format, Limits, PictureInfo, Sample};
use jpeg_encoder::ColorType;

use crate::kinds::tiff;
use crate::support::{decode, decode_bytes, file};

const PROFILE: &[u8] = include_bytes!("../data/inks.icc");
const JPEG: &[u8] = include_bytes!("../data/inks.jpg");

/// Inks, and the sRGB that LittleCMS makes of them by the profile.
fn colours() -> Vec<([u8; 4], [u8; 3])> {
    let line = |line: &str| {
        let numbers: Vec<u8> = line.split(' ').map(|number| number.parse().unwrap()).collect();
        (numbers[..4].try_into().unwrap(), numbers[4..].try_into().unwrap())
    };
    include_str!("../data/inks.txt").lines().map(line).collect()
}

/// A JPEG without loss worth speaking of, of one colour a square of 16 pixels.
fn jpeg(kind: ColorType, icc: Option<&[u8]>, inks: &[[u8; 4]]) -> Vec<u8> {
    let pixels: Vec<u8> = (0..16).flat_map(|_| inks.iter().flat_map(|ink| ink.repeat(16))).collect();
    let mut bytes = Vec::new();
    let mut encoder = jpeg_encoder::Encoder::new(&mut bytes, 100);
    encoder.set_sampling_factor(jpeg_encoder::SamplingFactor::F_1_1);
    if let Some(icc) = icc {
        encoder.add_icc_profile(icc).unwrap();
    }
    encoder.encode(&pixels, 16 * inks.len() as u16, 16, kind).unwrap();
    bytes
}

/// The colours in the middle of the squares of a picture.
fn squares(info: &PictureInfo, pixels: &[u8]) -> Vec<[u8; 3]> {
    let at = |x: u32, y: u32| pixels[(y * info.width + x) as usize * 3..][..3].try_into().unwrap();
    let tops = (8..info.height).step_by(16);
    tops.flat_map(|y| (8..info.width).step_by(16).map(move |x| (x, y))).map(|(x, y)| at(x, y)).collect()
}

#[track_caller]
fn assert_close(got: &[[u8; 3]], expected: &[[u8; 3]], most: u8) {
    assert_eq!(got.len(), expected.len());
    for (i, (a, b)) in got.iter().zip(expected).enumerate() {
        let worst = a.iter().zip(b).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
        assert!(worst <= most, "square {i} is {a:?}, not {b:?}");
    }
}

/// That the pixels are RGB and tagged as sRGB, the same way every time.
#[track_caller]
fn assert_srgb(info: &PictureInfo) {
    assert_eq!((info.color, info.sample), (Color::Rgb, Sample::U8));
    let icc = info.icc.as_deref().unwrap();
    let profile = moxcms::ColorProfile::new_from_slice(icc).unwrap();
    assert!(profile.is_matrix_shaper() && icc.windows(4).any(|name| name == b"s\0R\0") && icc[24..26] == [7, 230]);
}

#[test]
fn inks_look_as_their_profile_says_in_a_jpeg_of_another_program() {
    let (info, pixels) = decode_bytes(JPEG).unwrap();
    assert_srgb(&info);
    let expected: Vec<_> = colours().into_iter().map(|(_, rgb)| rgb).collect();
    assert_close(&squares(&info, &pixels), &expected, 4);
}

#[test]
fn luminance_and_differences_of_inks_are_the_same_picture() {
    let (inks, expected): (Vec<_>, Vec<_>) = colours().into_iter().unzip();
    for kind in [ColorType::Cmyk, ColorType::CmykAsYcck] {
        let (info, pixels) = decode_bytes(&jpeg(kind, Some(PROFILE), &inks)).unwrap();
        assert_srgb(&info);
        assert_close(&squares(&info, &pixels), &expected, 4);
    }
}

#[test]
fn inks_without_a_profile_are_multiplied() {
    let inks: Vec<[u8; 4]> = colours().into_iter().map(|(inks, _)| inks).collect();
    let plain = |[c, m, y, k]: [u8; 4]| [c, m, y].map(|ink| ((255 - ink) as u32 * (255 - k) as u32 / 255) as u8);
    let expected: Vec<_> = inks.iter().map(|&inks| plain(inks)).collect();
    for kind in [ColorType::Cmyk, ColorType::CmykAsYcck] {
        // A profile of another kind of colour says nothing of inks.
        for icc in [None, Some(&moxcms::ColorProfile::new_display_p3().encode().unwrap()[..])] {
            let (info, pixels) = decode_bytes(&jpeg(kind, icc, &inks)).unwrap();
            assert_srgb(&info);
            assert_close(&squares(&info, &pixels), &expected, 3);
        }
    }
}

#[test]
fn inks_that_adobe_did_not_write_are_not_inverted() {
    let inks = [[255, 0, 0, 0], [0, 40, 255, 0], [0, 0, 0, 128]];
    let mut bytes = jpeg(ColorType::Cmyk, None, &inks.map(|ink| ink.map(|k| 255 - k)));
    let adobe = bytes.windows(7).position(|bytes| bytes == b"\xff\xee\0\x0eAdo").unwrap();
    bytes.drain(adobe..adobe + 16);
    let (info, pixels) = decode_bytes(&bytes).unwrap();
    assert_close(&squares(&info, &pixels), &[[0, 255, 255], [255, 215, 0], [127, 127, 127]], 3);
}

#[test]
fn a_tiff_of_inks_is_read_by_the_same_rules() {
    let (inks, expected): (Vec<_>, Vec<_>) = colours().into_iter().unzip();
    let words = |bytes: &[u8]| bytes.iter().map(|&byte| byte.into()).collect();
    for icc in [true, false] {
        let mut picture = tiff(5, &[8; 4], vec![inks[..15].concat()]);
        if icc {
            picture.fields.push((34675, 7, words(PROFILE)));
        }
        let (info, pixels) = decode_bytes(&picture.bytes()).unwrap();
        assert_srgb(&info);
        let plain = inks[..15]
            .iter()
            .map(|&[c, m, y, k]| [c, m, y].map(|ink| ((255 - ink) as u32 * (255 - k) as u32 / 255) as u8));
        let expected = if icc { expected[..15].to_vec() } else { plain.collect() };
        assert_close(pixels.as_chunks().0, &expected, 3);
    }
    let planes: Vec<Vec<u8>> = (0..4).map(|c| inks[..15].iter().map(|ink| ink[c]).collect()).collect();
    let mut picture = tiff(5, &[8; 4], planes);
    picture.fields.extend([(284, 3, vec![2]), (34675, 7, words(PROFILE))]);
    assert_close(decode_bytes(&picture.bytes()).unwrap().1.as_chunks().0, &expected[..15], 3);
}

#[test]
fn a_profile_of_inks_that_cannot_be_used_is_no_reason_to_guess() {
    let broken = [&PROFILE[..132], &[0xff; 300]].concat();
    let refused = decode_bytes(&jpeg(ColorType::Cmyk, Some(&broken), &[[0; 4]])).unwrap_err();
    assert!(matches!(&refused, DecodeError::Profile { format: Format::Jpeg, .. }), "{refused:?}");
    assert!(refused.to_string().contains("convert the picture to RGB first") && refused.source().is_some());
}

#[test]
fn the_memory_of_all_four_inks_counts() {
    let bytes = jpeg(ColorType::Cmyk, None, &[[0; 4]]);
    let limits = |max_whole_picture_bytes| Limits { max_whole_picture_bytes, ..Limits::default() };
    let needed = bytes.len().max(16 * 16 * 4) as u64;
    assert!(decode(file(&bytes).path(), &limits(needed)).is_ok());
    assert!(matches!(probe(file(&bytes).path(), &limits(16 * 16 * 4 - 1)), Err(DecodeError::TooLarge(_))));
}

#[test]
fn damage_in_a_picture_of_inks_never_stops_the_program() {
    // Every byte of the headers, the profile's too, and some of what follows.
    for i in (0..400).chain((400..JPEG.len()).step_by(61)) {
        let mut damaged = JPEG.to_vec();
        damaged[i] ^= 0xff;
        if let Err(error) = decode_rows(file(&damaged).path(), &Limits::default(), &mut |_| Ok(())) {
            assert!(error.is_the_pictures_fault(), "byte {i}: {error:?}");
        }
    }
}
