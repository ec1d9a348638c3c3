use imaging::encode::EncodeOptions;
use imaging::metadata;
use imaging::picture::{Color, Format, Limits, Sample};

use crate::support::{Tiff, decode, decode_bytes, encode, exif, exif_text, icc, noise};

/// The picture `abc` over `def`, as each orientation shows it.
const TURNED: [&str; 8] = ["abc/def", "cba/fed", "fed/cba", "def/abc", "ad/be/cf", "da/eb/fc", "fc/eb/da", "cf/be/ad"];

fn text(width: u32, pixels: &[u8]) -> String {
    let rows: Vec<_> = pixels.chunks(width as usize).map(String::from_utf8_lossy).collect();
    rows.join("/")
}

#[test]
fn the_exif_orientation_is_applied_and_then_forgotten() {
    for (orientation, shown) in (1..).zip(TURNED) {
        for big_endian in [false, true] {
            let options = EncodeOptions {
                exif: Some(exif(orientation, big_endian)),
                ..EncodeOptions::new(Format::Png, Color::Grey, Sample::U8)
            };
            let file = encode(&options, 3, 2, b"abcdef");
            let (info, pixels) = decode(file.path(), &Limits::default()).unwrap();
            assert_eq!(text(info.width, &pixels), shown);
            assert_eq!(u16::from(info.orientation), orientation);
            assert_eq!(metadata::orientation(&info.exif.unwrap()), 1);
        }
    }
}

#[test]
fn a_tiff_says_its_orientation_itself() {
    for (orientation, shown) in (1..).zip(TURNED) {
        let fields = vec![(256, 3, vec![3]), (257, 3, vec![2]), (258, 3, vec![8]), (262, 3, vec![1])];
        let turned = [(274, 3, vec![orientation])];
        let file = Tiff {
            fields: fields.into_iter().chain(turned).collect(),
            chunks: vec![b"abcdef".to_vec()],
            ..Tiff::default()
        };
        let (info, pixels) = decode_bytes(&file.bytes()).unwrap();
        assert_eq!(text(info.width, &pixels), shown);
        assert_eq!(u32::from(info.orientation), orientation);
    }
}

#[test]
fn jpeg_and_webp_are_turned_too() {
    // Each letter of the picture is a square of 16 pixels, which a JPEG keeps.
    let letters: Vec<u8> = ["abc", "def"]
        .iter()
        .flat_map(|row| (0..16).flat_map(|_| row.bytes().flat_map(|letter| [20 * (letter - b'a') + 60; 16])))
        .collect();
    for format in [Format::Jpeg, Format::Webp] {
        for (orientation, shown) in (1..).zip(TURNED) {
            let options = EncodeOptions {
                exif: Some(exif(orientation, true)),
                ..EncodeOptions::new(format, Color::Grey, Sample::U8)
            };
            let (info, pixels) = decode(encode(&options, 48, 32, &letters).path(), &Limits::default()).unwrap();
            let (row, pixel) = (info.row_bytes(), info.pixel_bytes());
            let letter = |x: u32, y: u32| (pixels[y as usize * row + x as usize * pixel] - 50) / 20 + b'a';
            let centres = |side: u32| (8..side).step_by(16);
            let seen: Vec<u8> =
                centres(info.height).flat_map(|y| centres(info.width).map(move |x| letter(x, y))).collect();
            assert_eq!(text(info.width / 16, &seen), shown, "{format}, orientation {orientation}");
            assert_eq!(metadata::orientation(&info.exif.unwrap()), 1);
        }
    }
}

#[test]
fn a_turned_picture_is_not_turned_again() {
    let options =
        EncodeOptions { exif: Some(exif(6, false)), ..EncodeOptions::new(Format::Png, Color::Rgb, Sample::U8) };
    let pixels = noise(7, 5, Color::Rgb, Sample::U8);
    let (info, turned) = decode(encode(&options, 7, 5, &pixels).path(), &Limits::default()).unwrap();
    for format in [Format::Png, Format::Tiff, Format::Webp] {
        let again = EncodeOptions { exif: info.exif.clone(), ..EncodeOptions::new(format, Color::Rgb, Sample::U8) };
        let (info, pixels) = decode(encode(&again, 5, 7, &turned).path(), &Limits::default()).unwrap();
        assert_eq!((info.width, info.height, info.orientation), (5, 7, 1));
        assert!(pixels == turned, "{format}");
    }
}

#[test]
fn large_pictures_are_turned_in_groups_without_a_seam() {
    let (width, height) = (900u32, 700u32);
    let pixels = noise(width, height, Color::Rgb, Sample::U16);
    let options =
        EncodeOptions { exif: Some(exif(6, false)), ..EncodeOptions::new(Format::Png, Color::Rgb, Sample::U16) };
    let (info, turned) = decode(encode(&options, width, height, &pixels).path(), &Limits::default()).unwrap();
    assert_eq!((info.width, info.height), (height, width));
    let pixel = |pixels: &[u8], width: u32, x: u32, y: u32| -> Vec<u8> {
        let at = (y * width + x) as usize * 6;
        pixels[at..at + 6].to_vec()
    };
    for y in 0..width {
        for x in 0..height {
            assert_eq!(pixel(&turned, height, x, y), pixel(&pixels, width, y, height - 1 - x));
        }
    }
}

#[test]
fn an_exif_block_behind_the_pixels_of_a_png_still_turns_them() {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, 3, 2);
    encoder.set_color(png::ColorType::Grayscale);
    let mut writer = encoder.write_header().unwrap();
    writer.write_image_data(b"abcdef").unwrap();
    writer.write_chunk(png::chunk::eXIf, &exif(8, true)).unwrap();
    writer.finish().unwrap();
    let (info, pixels) = decode_bytes(&bytes).unwrap();
    assert_eq!(text(info.width, &pixels), "cf/be/ad");
}

#[test]
fn a_picture_that_cannot_be_turned_in_memory_is_refused_with_the_key_to_change() {
    let options =
        EncodeOptions { exif: Some(exif(3, true)), ..EncodeOptions::new(Format::Png, Color::Rgb, Sample::U8) };
    let file = encode(&options, 40, 30, &[0; 3600]);
    let limits = Limits { max_whole_picture_bytes: 3599, ..Limits::default() };
    let refused = decode(file.path(), &limits).unwrap_err();
    assert_eq!(
        std::error::Error::source(&refused).unwrap().to_string(),
        "the size in bytes of the picture, which must be turned, is 3600, more than the limit of 3599 \
         (configuration key `limits.max_whole_picture_bytes`)"
    );
    decode(file.path(), &Limits { max_whole_picture_bytes: 3600, ..limits }).unwrap();
}

#[test]
fn profile_and_exif_travel_through_every_format() {
    for format in Format::ALL {
        for big_endian in [false, true] {
            let options = EncodeOptions {
                icc: Some(icc(b"RGB ")),
                exif: Some(exif(1, big_endian)),
                ..EncodeOptions::new(format, Color::Rgb, Sample::U8)
            };
            let file = encode(&options, 70, 5, &noise(70, 5, Color::Rgb, Sample::U8));
            let (info, _) = decode(file.path(), &Limits::default()).unwrap();
            assert!(info.icc == options.icc, "{format}");
            let said = exif_text(&info.exif.unwrap());
            let expected = "GPSLatitudeRef: N\nGPSLatitude: 54 deg 47 min 0 sec\nMake: \"Tessera\"\n\
                            ExposureTime: 1/250\nPixelXDimension: 70\nPixelYDimension: 5\n";
            assert_eq!(said.replace("Orientation: row 0 at top and column 0 at left\n", ""), expected, "{format}");
        }
    }
}

#[test]
fn the_size_in_an_exif_block_grows_past_sixteen_bits() {
    for big_endian in [false, true] {
        let mut block = exif(6, big_endian);
        let length = block.len();
        metadata::set_dimensions(&mut block, 100_000, 700);
        metadata::reset_orientation(&mut block);
        assert_eq!(block.len(), length);
        let said = exif_text(&block);
        assert!(said.contains("PixelXDimension: 100000\nPixelYDimension: 700\n"), "{said}");
        assert_eq!(metadata::orientation(&block), 1);
    }
}

#[test]
fn broken_exif_blocks_are_left_alone() {
    let block = exif(6, true);
    for length in 0..block.len() {
        let mut cut = block[..length].to_vec();
        metadata::reset_orientation(&mut cut);
        metadata::set_dimensions(&mut cut, 7, 7);
        assert!(matches!(metadata::orientation(&cut), 1));
    }
    for i in 0..block.len() {
        let mut flipped = block.clone();
        flipped[i] ^= 0xff;
        metadata::reset_orientation(&mut flipped);
        metadata::set_dimensions(&mut flipped, 7, 7);
        assert_eq!(flipped.len(), block.len());
    }
}

#[test]
fn a_profile_of_another_colour_space_is_not_carried() {
    for format in Format::ALL {
        for (space, color, kept) in
            [(b"CMYK", Color::Rgb, false), (b"GRAY", Color::Rgb, false), (b"RGB ", Color::Rgb, true)]
        {
            let options = EncodeOptions { icc: Some(icc(space)), ..EncodeOptions::new(format, color, Sample::U8) };
            let file = encode(&options, 5, 5, &noise(5, 5, color, Sample::U8));
            assert_eq!(decode(file.path(), &Limits::default()).unwrap().0.icc.is_some(), kept, "{format}");
        }
    }
}

#[test]
fn wide_colours_keep_their_pixels_and_their_profile() {
    use moxcms::ColorProfile;
    for profile in [ColorProfile::new_display_p3(), ColorProfile::new_adobe_rgb()] {
        let profile = profile.encode().unwrap();
        for format in Format::ALL {
            for sample in
                [Sample::U8, Sample::U16].into_iter().filter(|sample| format.limits().samples.contains(sample))
            {
                let options =
                    EncodeOptions { icc: Some(profile.clone()), ..EncodeOptions::new(format, Color::Rgb, sample) };
                let plain = EncodeOptions { icc: None, ..options.clone() };
                let pixels = noise(40, 30, Color::Rgb, sample);
                let (info, tagged) = decode(encode(&options, 40, 30, &pixels).path(), &Limits::default()).unwrap();
                assert!(info.icc.as_ref() == Some(&profile), "{format}");
                let (info, untagged) = decode(encode(&plain, 40, 30, &pixels).path(), &Limits::default()).unwrap();
                assert!(info.icc.is_none() && tagged == untagged, "{format}");
            }
        }
    }
}

#[test]
fn a_profile_of_grey_stays_with_grey() {
    for format in Format::ALL {
        let options = EncodeOptions { icc: Some(icc(b"GRAY")), ..EncodeOptions::new(format, Color::Grey, Sample::U8) };
        let file = encode(&options, 5, 5, &noise(5, 5, Color::Grey, Sample::U8));
        // WebP has no grey, and so no use for it.
        let in_the_file = std::fs::read(file.path()).unwrap().windows(4).any(|bytes| bytes == b"acsp");
        assert!(format != Format::Webp || !in_the_file);
        assert_eq!(
            decode(file.path(), &Limits::default()).unwrap().0.icc.is_some(),
            format != Format::Webp,
            "{format}"
        );
    }
}

/// The profile that a PNG of 1x1 comes with, whose header is followed by these chunks.
fn profile_beside(color: png::ColorType, chunks: &[(png::chunk::ChunkType, &[u8])]) -> Option<moxcms::ColorProfile> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, 1, 1);
    encoder.set_color(color);
    let mut writer = encoder.write_header().unwrap();
    chunks.iter().for_each(|(kind, data)| writer.write_chunk(*kind, data).unwrap());
    writer.write_image_data(&[1, 2, 3][..color.samples()]).unwrap();
    writer.finish().unwrap();
    let (info, pixels) = decode_bytes(&bytes).unwrap();
    assert_eq!(pixels, [1, 2, 3][..color.samples()]);
    assert_eq!(info.icc, decode_bytes(&bytes).unwrap().0.icc);
    info.icc.map(|icc| moxcms::ColorProfile::new_from_slice(&icc).unwrap())
}

#[test]
fn what_a_png_says_of_its_colours_beside_a_profile_becomes_one() {
    use png::{ColorType::*, chunk::*};
    let words = |numbers: &[u32]| numbers.iter().flat_map(|k| k.to_be_bytes()).collect::<Vec<u8>>();
    let adobe = words(&[31270, 32900, 64000, 33000, 21000, 71000, 15000, 6000]);
    let srgb = words(&[31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000]);
    let (of_srgb, linear) = (words(&[45455]), words(&[100_000]));

    let wide = profile_beside(Rgb, &[(gAMA, &of_srgb), (cHRM, &adobe)]).unwrap();
    let expected = moxcms::ColorProfile::new_adobe_rgb();
    for (got, want) in [(wide.green_colorant, expected.green_colorant), (wide.red_colorant, expected.red_colorant)] {
        let near = |a: f64, b: f64| (a - b).abs() < 2e-3;
        assert!(near(got.x, want.x) && near(got.y, want.y) && near(got.z, want.z), "{got:?}, not {want:?}");
    }
    let curve = |profile: moxcms::ColorProfile| match profile.green_trc.or(profile.gray_trc).unwrap() {
        moxcms::ToneReprCurve::Parametric(parameters) => parameters[0],
        moxcms::ToneReprCurve::Lut(table) => table.first().map_or(1.0, |&gamma| f32::from(gamma) / 256.0),
    };
    assert!((curve(profile_beside(Rgb, &[(gAMA, &linear)]).unwrap()) - 1.0).abs() < 1e-3);
    assert!((curve(profile_beside(Grayscale, &[(gAMA, &words(&[50_000]))]).unwrap()) - 2.0).abs() < 1e-2);
    let p3 = profile_beside(Rgb, &[(cICP, &[12, 13, 0, 1])]).unwrap().red_colorant;
    let expected = moxcms::ColorProfile::new_display_p3().red_colorant;
    assert!((p3.x - expected.x).abs() < 2e-3 && (p3.y - expected.y).abs() < 2e-3, "{p3:?}, not {expected:?}");
    assert!(profile_beside(Rgb, &[(cICP, &[9, 18, 0, 1])]).is_some());

    assert!(profile_beside(Rgb, &[]).is_none());
    assert!(profile_beside(Rgb, &[(gAMA, &of_srgb), (cHRM, &srgb)]).is_none());
    assert!(profile_beside(Rgb, &[(sRGB, &[0]), (gAMA, &linear)]).is_none());
    assert!(profile_beside(Rgb, &[(cICP, &[1, 13, 0, 1])]).is_none());
    assert!(profile_beside(Rgb, &[(cICP, &[2, 2, 0, 1])]).is_none(), "unspecified");
    assert!(profile_beside(Grayscale, &[(gAMA, &of_srgb)]).is_none());
    assert!(profile_beside(Rgb, &[(cHRM, &words(&[0; 8]))]).is_none(), "points that span nothing");
    assert!(profile_beside(Rgb, &[(gAMA, &words(&[0]))]).is_none());
}
