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
    for format in [Format::Jpeg, Format::Webp] {
        let options = EncodeOptions { exif: Some(exif(6, true)), ..EncodeOptions::new(format, Color::Rgb, Sample::U8) };
        let (info, _) = decode(encode(&options, 40, 30, &[99; 40 * 30 * 3]).path(), &Limits::default()).unwrap();
        assert_eq!((info.width, info.height, info.orientation), (30, 40, 6));
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
