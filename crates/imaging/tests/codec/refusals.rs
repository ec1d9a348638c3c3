//! Files that are cut off, damaged, lying about themselves, or no pictures at all.

use std::error::Error;

use imaging::decode::{DecodeError, decode_rows, probe};
use imaging::encode::{Compression, EncodeOptions};
use imaging::picture::{Color, Format, Limits, Sample};

use crate::kinds::{interlaced, jpeg};
use crate::several::animated_webp;
use crate::support::{Tiff, decode_bytes, encoded, exif, file, icc, noise, smooth};

/// A small file of every kind, with metadata.
fn samples() -> Vec<(&'static str, Vec<u8>)> {
    let options = |format, color, sample, compression| EncodeOptions {
        icc: Some(icc(b"RGB ")[..200].to_vec()),
        exif: Some(exif(1, true)),
        compression,
        ..EncodeOptions::new(format, color, sample)
    };
    let make = |options: EncodeOptions| {
        let pixels = smooth(23, 19, options.color, options.sample);
        encoded(&options, 23, 19, &pixels)
    };
    let rgb = smooth(50, 40, Color::Rgb, Sample::U8);
    vec![
        ("png", make(options(Format::Png, Color::Rgba, Sample::U8, Compression::Fast))),
        ("png, 16 bits, stored", make(options(Format::Png, Color::Grey, Sample::U16, Compression::None))),
        ("png, interlaced", interlaced().0),
        ("jpeg", make(options(Format::Jpeg, Color::Rgb, Sample::U8, Compression::Fast))),
        ("jpeg, progressive", jpeg(jpeg_encoder::ColorType::Rgb, true, &rgb)),
        ("tiff", make(options(Format::Tiff, Color::Rgb, Sample::U8, Compression::Fast))),
        ("tiff, float, stored", make(options(Format::Tiff, Color::Rgba, Sample::F32, Compression::None))),
        ("webp", make(options(Format::Webp, Color::Rgba, Sample::U8, Compression::Fast))),
        ("webp, one frame", animated_webp(23, 19, &smooth(23, 19, Color::Rgba, Sample::U8))),
    ]
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    for (name, bytes) in samples() {
        assert!(decode_bytes(&bytes).is_ok(), "{name}");
        for length in 0..bytes.len() {
            let refused = decode_bytes(&bytes[..length]);
            assert!(refused.is_err(), "{name} of {} bytes cut to {length}", bytes.len());
            assert!(refused.unwrap_err().is_the_pictures_fault(), "{name} cut to {length}");
        }
    }
}

#[test]
fn a_cut_file_is_called_truncated_before_its_rows_are_decoded() {
    for (name, bytes) in samples() {
        let cut = file(&bytes[..bytes.len() - 1]);
        let refused = probe(cut.path(), &Limits::default()).unwrap_err();
        assert!(matches!(refused, DecodeError::Truncated { .. }), "{name}: {refused:?}");
    }
}

#[test]
fn a_damaged_byte_never_stops_the_program() {
    for (name, bytes) in samples() {
        let mut damaged = bytes.clone();
        for i in 0..bytes.len() {
            for flip in [0xff, 0x01] {
                damaged[i] = bytes[i] ^ flip;
                // Sizes blown up by the damage are refused by a low limit instead of being allocated.
                let limits = Limits { max_pixels: 1 << 16, max_whole_picture_bytes: 1 << 20, ..Limits::default() };
                if let Err(error) = decode_rows(file(&damaged).path(), &limits, &mut |_| Ok(())) {
                    assert!(error.is_the_pictures_fault(), "{name}, byte {i}: {error:?}");
                }
            }
            damaged[i] = bytes[i];
        }
    }
}

#[test]
fn the_content_tells_the_format_and_not_the_name() {
    let options = EncodeOptions::new(Format::Jpeg, Color::Rgb, Sample::U8);
    let bytes = encoded(&options, 20, 10, &smooth(20, 10, Color::Rgb, Sample::U8));
    let named = tempfile::Builder::new().suffix(".png").tempfile().unwrap();
    std::fs::write(named.path(), bytes).unwrap();
    assert_eq!(probe(named.path(), &Limits::default()).unwrap().format, Format::Jpeg);
}

#[test]
fn what_is_no_picture_is_said_to_be_none() {
    let check = |bytes: &[u8], said: &str, convertible: bool| {
        let refused = decode_bytes(bytes).unwrap_err();
        let message = format!("the file is {said}, not a PNG, JPEG, TIFF or WebP picture");
        let way_out = ": make it one of these first, for instance with `magick in out.png`";
        assert_eq!(refused.to_string(), message + if convertible { way_out } else { "" });
    };
    check(b"", "empty", false);
    check(b"hello", "of an unknown kind", false);
    check(&[0; 4096], "of an unknown kind", false);
    check(b"GIF89a...", "a GIF", true);
    check(b"BM......", "a BMP", true);
    check(b"%PDF-1.7", "a PDF", true);
    check(b"\0\0\0\x1cftypavif", "an AVIF picture", true);
    check(b"\0\0\0\x1cftypheic", "a HEIF picture", true);
    assert!(matches!(decode_bytes(b"\x89PNG\r\n\x1a\nnonsense nonsense"), Err(DecodeError::Malformed { .. })));
    let missing = probe(std::path::Path::new("/nowhere/at-all.png"), &Limits::default()).unwrap_err();
    assert!(matches!(&missing, DecodeError::Open { .. }) && !missing.is_the_pictures_fault());
}

/// The start of a file that says it has `width` x `height` pixels, and holds next to none of them.
fn claiming(format: Format, width: u32, height: u32) -> Vec<u8> {
    match format {
        Format::Png => {
            let mut bytes = encoded(&EncodeOptions::new(format, Color::Rgb, Sample::U8), 8, 8, &[0; 192]);
            bytes[16..20].copy_from_slice(&width.to_be_bytes());
            bytes[20..24].copy_from_slice(&height.to_be_bytes());
            bytes
        }
        Format::Jpeg => {
            let mut bytes = encoded(&EncodeOptions::new(format, Color::Rgb, Sample::U8), 8, 8, &[0; 192]);
            let frame = bytes.windows(2).position(|pair| pair == [0xff, 0xc0]).unwrap();
            bytes[frame + 5..frame + 7].copy_from_slice(&(height as u16).to_be_bytes());
            bytes[frame + 7..frame + 9].copy_from_slice(&(width as u16).to_be_bytes());
            bytes
        }
        Format::Tiff => Tiff {
            fields: vec![(256, 4, vec![width]), (257, 4, vec![height]), (258, 3, vec![8]), (262, 3, vec![1])],
            chunks: vec![vec![0; 9]],
            ..Tiff::default()
        }
        .bytes(),
        Format::Webp => {
            let mut bytes = encoded(&EncodeOptions::new(format, Color::Rgb, Sample::U8), 8, 8, &[0; 192]);
            let header = u32::from_le_bytes(bytes[21..25].try_into().unwrap()) & !0x0fff_ffff;
            let header = header | ((width - 1) & 0x3fff) | (((height - 1) & 0x3fff) << 14);
            bytes[21..25].copy_from_slice(&header.to_le_bytes());
            bytes
        }
    }
}

#[test]
fn a_decompression_bomb_is_refused_by_its_header() {
    for format in Format::ALL {
        let side = format.limits().max_side.min(60_000);
        let limits = Limits { max_pixels: 200_000_000, ..Limits::default() };
        let refused = probe(file(&claiming(format, side, side)).path(), &limits).unwrap_err();
        assert!(matches!(refused, DecodeError::TooLarge(_)), "{format}: {refused:?}");
        assert_eq!(
            refused.source().unwrap().to_string(),
            format!(
                "the number of pixels is {}, more than the limit of 200000000 (configuration key `limits.max_pixels`)",
                u64::from(side) * u64::from(side)
            )
        );
        let narrow = Limits { max_width: 99, ..Limits::default() };
        let refused = probe(file(&claiming(format, 100, 4)).path(), &narrow).unwrap_err();
        assert!(refused.source().unwrap().to_string().contains("`limits.max_side`"), "{format}: {refused:?}");
    }
}

#[test]
fn the_default_limits_stop_two_gigabytes_of_pixels() {
    // RGB and grey of that size; a PNG of it is 2 MB.
    for (width, height) in [(26_755, 26_755), (46_341, 46_341)] {
        let refused = probe(file(&claiming(Format::Png, width, height)).path(), &Limits::default());
        assert!(matches!(refused, Err(DecodeError::TooLarge(_))));
    }
}

#[test]
fn pictures_held_whole_are_refused_when_they_are_too_large_for_it() {
    let limits = Limits { max_whole_picture_bytes: 3 * 1000 * 1000 - 1, ..Limits::default() };
    for format in [Format::Jpeg, Format::Webp, Format::Tiff] {
        let mut bytes = claiming(format, 1000, 3000);
        if format == Format::Tiff {
            // One strip that does end inside the file.
            bytes.extend(vec![0; 64]);
        }
        let refused = probe(file(&bytes).path(), &limits).unwrap_err();
        assert!(matches!(&refused, DecodeError::TooLarge(too) if too.key == "limits.max_whole_picture_bytes"));
    }
}

#[test]
fn a_picture_without_pixels_is_refused_as_such() {
    for (format, width, height) in
        [(Format::Png, 0, 0), (Format::Png, 7, 0), (Format::Tiff, 0, 0), (Format::Tiff, 0, 5), (Format::Jpeg, 0, 0)]
    {
        let refused = decode_bytes(&claiming(format, width, height)).unwrap_err();
        assert!(
            matches!(refused, DecodeError::Empty { format: f, width: w, height: h } if (f, w, h) == (format, width, height)),
            "{format}: {refused:?}"
        );
    }
    let lossy = b"RIFF\x1a\0\0\0WEBPVP8 \x0e\0\0\0\x10\0\0\x9d\x01\x2a\0\0\0\0\0\0\0\0\0\0";
    assert!(matches!(decode_bytes(lossy), Err(DecodeError::Empty { format: Format::Webp, .. })));
}

#[test]
fn an_error_of_the_taker_ends_the_decoding() {
    let options = EncodeOptions::new(Format::Png, Color::Rgb, Sample::U8);
    let bytes = encoded(&options, 600, 1200, &noise(600, 1200, Color::Rgb, Sample::U8));
    let mut calls = 0;
    let refused = decode_rows(file(&bytes).path(), &Limits::default(), &mut |_| {
        calls += 1;
        Err("the store is full".into())
    });
    assert!(matches!(&refused, Err(DecodeError::Sink(source)) if source.to_string() == "the store is full"));
    assert!(!refused.unwrap_err().is_the_pictures_fault());
    assert_eq!(calls, 1);
}
