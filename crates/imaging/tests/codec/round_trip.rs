use imaging::encode::{Compression, EncodeError, EncodeOptions, Encoder};
use imaging::pack::pack;
use imaging::picture::{Color, Format, Limits, PictureInfo, Sample};
use imaging::raster::{BandWriter, RasterInfo, Window};

use crate::support::{decode, encode, holdable, noise, smooth};

const SIZES: [(u32, u32); 5] = [(1, 1), (1, 40), (40, 1), (17, 23), (600, 700)];

#[test]
fn every_format_keeps_every_layout_that_it_holds() {
    for (format, color, sample) in holdable() {
        for (width, height) in SIZES {
            let lossy = format == Format::Jpeg;
            let pixels = if lossy { smooth } else { noise }(width, height, color, sample);
            let file = encode(&EncodeOptions::new(format, color, sample), width, height, &pixels);
            let (info, decoded) = decode(file.path(), &Limits::default()).unwrap();

            let case = format!("{format} {color} {sample} {width}x{height}");
            assert_eq!((info.format, info.width, info.height, info.sample), (format, width, height, sample), "{case}");
            if format == Format::Webp {
                assert_eq!(info.color, Color::Rgb.with_alpha(color.has_alpha()), "{case}");
                assert!(decoded == as_rgb(&pixels, color), "{case}");
            } else if lossy {
                assert_eq!(info.color, color, "{case}");
                let worst = pixels.iter().zip(&decoded).map(|(a, b)| a.abs_diff(*b)).max();
                // The gradient wraps from white to black, and rings a little there.
                assert!(mean_difference(&pixels, &decoded) < 2.0, "{case}: worst {worst:?}");
            } else {
                assert_eq!(info.color, color, "{case}");
                assert!(decoded == pixels, "{case}");
            }
        }
    }
}

#[test]
fn a_panorama_goes_in_and_comes_out() {
    let (width, height) = (30_000, 16);
    for (format, color, sample) in holdable().into_iter().filter(|&(format, ..)| width <= format.limits().max_side) {
        let pixels = smooth(width, height, color, sample);
        let file = encode(&EncodeOptions::new(format, color, sample), width, height, &pixels);
        let (info, decoded) = decode(file.path(), &Limits::default()).unwrap();
        assert_eq!((info.width, info.height, info.color), (width, height, color));
        if format == Format::Jpeg {
            assert!(mean_difference(&pixels, &decoded) < 2.0);
        } else {
            assert!(decoded == pixels, "{format} {color} {sample}");
        }
    }
}

/// Decoded, cut from its raster as a network sees it, and packed again.
fn through_a_raster(path: &std::path::Path) -> (PictureInfo, Vec<u8>) {
    let (info, pixels) = decode(path, &Limits::default()).unwrap();
    let raster = RasterInfo::of(&info);
    let mut bands = Vec::new();
    let pushed: Result<(), ()> = BandWriter::new(raster).push(&pixels, |band| {
        bands.push(band.bytes);
        Ok(())
    });
    pushed.unwrap();
    let window = Window { x: 0, y: 0, width: info.width, height: info.height };
    let ranges = raster.band_ranges(window).into_iter();
    let parts: Vec<&[u8]> =
        ranges.map(|part| &bands[part.band as usize][part.start as usize..part.end as usize]).collect();
    let cut = raster.cut(window, &parts).unwrap();
    let packed = pack(&cut.rgb, cut.alpha.as_deref(), info.color, info.sample);
    (info, packed)
}

#[test]
fn every_sample_survives_the_way_through_a_raster() {
    // Every 16-bit value: one that passed through 8 bits would lose most of them.
    let words: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    for (format, color, sample) in holdable().into_iter().filter(|&(format, ..)| format != Format::Jpeg) {
        let pixel = color.channels() * sample.bytes();
        let mut pixels = if sample == Sample::U16 { words.clone() } else { noise(256, 128, color, sample) };
        pixels.truncate(pixels.len() / (256 * pixel) * (256 * pixel));
        if color.has_alpha() {
            // What is fully transparent may change its colour.
            pixels.chunks_exact_mut(pixel).for_each(|pixel_bytes| pixel_bytes[pixel - sample.bytes()] |= 1);
        }
        let height = pixels.len() / (256 * pixel);
        let file = encode(&EncodeOptions::new(format, color, sample), 256, height as u32, &pixels);
        let (info, packed) = through_a_raster(file.path());
        let expected = if format == Format::Webp { as_rgb(&pixels, color) } else { pixels };
        assert_eq!(info.sample, sample);
        assert!(packed == expected, "{format} {color} {sample}");
    }
}

#[test]
fn a_single_pixel_goes_through_a_raster() {
    for (format, color, sample) in holdable() {
        for (width, height) in [(1, 1), (1, 300), (300, 1)] {
            let pixels = smooth(width, height, color, sample);
            let file = encode(&EncodeOptions::new(format, color, sample), width, height, &pixels);
            let (info, packed) = through_a_raster(file.path());
            assert_eq!((info.width, info.height), (width, height));
            assert_eq!(packed.len(), info.row_bytes() * height as usize);
        }
    }
}

fn as_rgb(pixels: &[u8], color: Color) -> Vec<u8> {
    match color {
        Color::Grey => pixels.iter().flat_map(|&k| [k; 3]).collect(),
        Color::GreyAlpha => pixels.chunks_exact(2).flat_map(|p| [p[0], p[0], p[0], p[1]]).collect(),
        Color::Rgb | Color::Rgba => pixels.to_vec(),
    }
}

fn mean_difference(a: &[u8], b: &[u8]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| f64::from(a.abs_diff(*b))).sum::<f64>() / a.len() as f64
}

#[test]
fn every_compression_keeps_the_pixels() {
    for format in [Format::Png, Format::Tiff] {
        for sample in [Sample::U8, Sample::U16] {
            let pixels = smooth(300, 200, Color::Rgba, sample);
            let sizes = [Compression::None, Compression::Fast, Compression::Small].map(|compression| {
                let options = EncodeOptions { compression, ..EncodeOptions::new(format, Color::Rgba, sample) };
                let file = encode(&options, 300, 200, &pixels);
                assert!(decode(file.path(), &Limits::default()).unwrap().1 == pixels);
                file.as_file().metadata().unwrap().len()
            });
            assert!(sizes[0] > pixels.len() as u64 && sizes[0] > sizes[1] && sizes[1] > sizes[2], "{sizes:?}");
        }
    }
}

#[test]
fn a_format_refuses_what_it_cannot_hold_before_anything_is_written() {
    let limits = Limits::default();
    let check = |format, width, height, color, sample, message: &str| {
        let refused = EncodeOptions::new(format, color, sample).check(width, height, &limits).unwrap_err();
        assert_eq!(refused.to_string(), message);
    };
    use {Color::*, Format::*, Sample::*};
    check(Jpeg, 9, 9, Rgba, U8, "JPEG cannot hold RGB with alpha: drop the alpha channel or write PNG, TIFF or WebP");
    check(Jpeg, 9, 9, Rgb, U16, "JPEG cannot hold 16-bit samples");
    check(Webp, 9, 9, Rgb, F32, "WebP cannot hold float samples");
    check(Png, 9, 9, Rgb, F32, "PNG cannot hold float samples");
    check(Webp, 16384, 9, Rgb, U8, "a WebP picture has at most 16383 pixels a side, but this one is 16384x9");
    check(Jpeg, 9, 65536, Rgb, U8, "a JPEG picture has at most 65535 pixels a side, but this one is 9x65536");
    check(Png, 0, 9, Rgb, U8, "a picture of 0x9 has no pixels to write");
    check(Jpeg, 40_000, 40_000, Rgb, U8, "the picture is too large to write as JPEG");
    EncodeOptions::new(Png, Rgb, U8).check(1_000_000, 1_000_000, &limits).unwrap();

    let options = EncodeOptions { exif: Some(vec![0; 65_528]), ..EncodeOptions::new(Jpeg, Rgb, U8) };
    assert_eq!(
        options.check(9, 9, &limits).unwrap_err().to_string(),
        "the EXIF block has 65528 bytes, but JPEG has room for 65527"
    );
    let options = EncodeOptions { jpeg_quality: 0, ..EncodeOptions::new(Jpeg, Rgb, U8) };
    assert!(matches!(options.check(9, 9, &limits), Err(EncodeError::Quality(0))));
}

#[test]
fn rows_that_do_not_fit_the_picture_are_refused() {
    for format in Format::ALL {
        let begin = || {
            let options = EncodeOptions::new(format, Color::Rgb, Sample::U8);
            Encoder::new(tempfile::tempfile().unwrap(), 4, 3, options, &Limits::default()).unwrap()
        };
        assert!(matches!(begin().write_rows(&[0; 13]), Err(EncodeError::RowLength { row_bytes: 12, found: 13 })));
        assert!(matches!(begin().write_rows(&[0; 48]), Err(EncodeError::RowCount { expected: 3, found: 4 })));
        let mut short = begin();
        short.write_rows(&[0; 24]).unwrap();
        assert!(matches!(short.finish(), Err(EncodeError::RowCount { expected: 3, found: 2 })));
    }
}

#[test]
fn a_full_disk_is_told_and_not_swallowed() {
    let Ok(full) = std::fs::OpenOptions::new().read(true).write(true).open("/dev/full") else {
        eprintln!("skipped: this system has no /dev/full");
        return;
    };
    let pixels = noise(64, 64, Color::Rgb, Sample::U8);
    for format in Format::ALL {
        let options = EncodeOptions::new(format, Color::Rgb, Sample::U8);
        let written = Encoder::new(full.try_clone().unwrap(), 64, 64, options, &Limits::default())
            .and_then(|mut encoder| encoder.write_rows(&pixels).map(|()| encoder))
            .and_then(Encoder::finish);
        let error = written.unwrap_err();
        assert!(
            matches!(&error, EncodeError::Write { source, .. } if source.kind() == std::io::ErrorKind::StorageFull),
            "{format}: {error:?}"
        );
    }
}
