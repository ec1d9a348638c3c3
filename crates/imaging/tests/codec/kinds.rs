//! The kinds of file that other programs write and that the encoders here do not.

use imaging::decode::DecodeError;
use imaging::encode::{Compression, EncodeOptions};
use imaging::picture::{Color, Format, Limits, Sample};

use crate::support::{Tiff, decode, decode_bytes, encode, file, noise, smooth};

#[test]
fn a_png_palette_is_looked_up_and_its_transparency_kept() {
    let paletted = |trns: Option<&'static [u8]>| {
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, 5, 1);
        encoder.set_color(png::ColorType::Indexed);
        encoder.set_depth(png::BitDepth::Two);
        encoder.set_palette(vec![1, 2, 3, 4, 5, 6, 7, 8, 9]);
        if let Some(trns) = trns {
            encoder.set_trns(trns);
        }
        let mut writer = encoder.write_header().unwrap();
        writer.write_image_data(&[0b00_01_10_00, 0b01_000000]).unwrap();
        writer.finish().unwrap();
        decode_bytes(&bytes).unwrap()
    };
    let (info, pixels) = paletted(None);
    assert_eq!((info.color, info.sample), (Color::Rgb, Sample::U8));
    assert_eq!(pixels, [1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3, 4, 5, 6]);
    let (info, pixels) = paletted(Some(&[255, 100]));
    assert_eq!(info.color, Color::Rgba);
    assert_eq!(pixels, [1, 2, 3, 255, 4, 5, 6, 100, 7, 8, 9, 255, 1, 2, 3, 255, 4, 5, 6, 100]);
}

#[test]
fn a_png_of_few_bits_is_widened_to_eight() {
    for (depth, data, expected) in [
        (png::BitDepth::One, vec![0b0110_0000], [0, 255, 255]),
        (png::BitDepth::Two, vec![0b01_10_11_00], [85, 170, 255]),
        (png::BitDepth::Four, vec![0x1a, 0xf0], [17, 170, 255]),
    ] {
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, 3, 1);
        encoder.set_depth(depth);
        let mut writer = encoder.write_header().unwrap();
        writer.write_image_data(&data).unwrap();
        writer.finish().unwrap();
        assert_eq!(decode_bytes(&bytes).unwrap().1, expected);
    }
}

/// An interlaced 16-bit grey PNG of 3x3: the passes of such a small one are easily written by hand.
pub fn interlaced() -> (Vec<u8>, Vec<u16>) {
    let pixels: Vec<u16> = (0..9).map(|i| 1000 + 7 * i).collect();
    // PNG 8.2: pass 1 has (0,0); 2, 3 nothing; 4 has (2,0); 5 has row 2, even columns; 6 the odd columns; 7 the odd rows.
    let passes: [&[usize]; 6] = [&[0], &[2], &[6, 8], &[1], &[7], &[3, 4, 5]];
    let mut raw = Vec::new();
    for pass in passes {
        raw.push(0);
        raw.extend(pass.iter().flat_map(|&i| pixels[i].to_be_bytes()));
    }
    let (mut a, mut b) = (1u32, 0u32);
    for byte in &raw {
        a = (a + u32::from(*byte)) % 65521;
        b = (b + a) % 65521;
    }
    let length = raw.len() as u16;
    let mut zlib = vec![0x78, 0x01, 1];
    zlib.extend(length.to_le_bytes());
    zlib.extend((!length).to_le_bytes());
    zlib.extend(raw);
    zlib.extend(((b << 16) | a).to_be_bytes());

    let mut info = png::Info::with_size(3, 3);
    info.interlaced = true;
    info.bit_depth = png::BitDepth::Sixteen;
    info.color_type = png::ColorType::Grayscale;
    let mut bytes = Vec::new();
    let mut writer = png::Encoder::with_info(&mut bytes, info).unwrap().write_header().unwrap();
    writer.write_chunk(png::chunk::IDAT, &zlib).unwrap();
    writer.finish().unwrap();
    (bytes, pixels)
}

#[test]
fn an_interlaced_png_is_read_whole() {
    let (bytes, pixels) = interlaced();
    let (info, decoded) = decode_bytes(&bytes).unwrap();
    assert_eq!((info.color, info.sample), (Color::Grey, Sample::U16));
    assert_eq!(decoded, pixels.iter().flat_map(|k| k.to_le_bytes()).collect::<Vec<_>>());
    let limits = Limits { max_whole_picture_bytes: 17, ..Limits::default() };
    assert!(matches!(decode(file(&bytes).path(), &limits), Err(DecodeError::TooLarge(_))));
}

/// A JPEG of 50x40.
pub fn jpeg(color: jpeg_encoder::ColorType, progressive: bool, pixels: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = jpeg_encoder::Encoder::new(&mut bytes, 95);
    encoder.set_progressive(progressive);
    encoder.encode(pixels, 50, 40, color).unwrap();
    bytes
}

#[test]
fn a_progressive_jpeg_is_the_same_picture() {
    let pixels = smooth(50, 40, Color::Rgb, Sample::U8);
    let [plain, progressive] = [false, true]
        .map(|progressive| decode_bytes(&jpeg(jpeg_encoder::ColorType::Rgb, progressive, &pixels)).unwrap().1);
    assert!(plain == progressive);
}

/// A TIFF of 5x3 in one strip unless told otherwise.
pub fn tiff(photometric: u32, bits: &[u32], chunks: Vec<Vec<u8>>) -> Tiff {
    let fields = vec![
        (256, 3, vec![5]),
        (257, 3, vec![3]),
        (258, 3, bits.to_vec()),
        (262, 3, vec![photometric]),
        (277, 3, vec![bits.len() as u32]),
    ];
    Tiff { fields, chunks, ..Tiff::default() }
}

#[test]
fn a_tiff_of_few_bits_is_widened_and_white_is_zero_understood() {
    let rows = vec![0b1010_1000, 0b1111_1000, 0];
    let black = decode_bytes(&tiff(1, &[1], vec![rows.clone()]).bytes()).unwrap().1;
    assert_eq!(black, [255, 0, 255, 0, 255, 255, 255, 255, 255, 255, 0, 0, 0, 0, 0]);
    let white = decode_bytes(&tiff(0, &[1], vec![rows]).bytes()).unwrap().1;
    assert_eq!(white, black.iter().map(|k| 255 - k).collect::<Vec<_>>());
    let nibbles = vec![0x01, 0x2f, 0x80, 0, 0, 0, 0, 0, 0];
    assert_eq!(decode_bytes(&tiff(1, &[4], vec![nibbles]).bytes()).unwrap().1[..5], [0, 17, 34, 255, 136]);
}

#[test]
fn a_big_endian_tiff_is_read() {
    let samples: Vec<u16> = (0..15).map(|i| 1000 * i + 3).collect();
    let chunk = samples.iter().flat_map(|k| k.to_be_bytes()).collect();
    let file = Tiff { big_endian: true, ..tiff(1, &[16], vec![chunk]) };
    let expected: Vec<u8> = samples.iter().flat_map(|k| k.to_le_bytes()).collect();
    assert_eq!(decode_bytes(&file.bytes()).unwrap().1, expected);
}

#[test]
fn a_tiff_in_tiles_is_put_together() {
    let (width, height) = (41u32, 37u32);
    for color in [Color::Rgb, Color::Grey] {
        let channels = color.channels();
        let pixels = noise(width, height, color, Sample::U8);
        let mut chunks = Vec::new();
        for (top, left) in [0, 16, 32].into_iter().flat_map(|top| [0, 16, 32].map(|left| (top, left))) {
            let mut tile = vec![77; 16 * 16 * channels];
            for y in top..height.min(top + 16) {
                for x in left..width.min(left + 16) {
                    let (from, to) = ((y * width + x) as usize, ((y - top) * 16 + x - left) as usize);
                    tile[to * channels..][..channels].copy_from_slice(&pixels[from * channels..][..channels]);
                }
            }
            chunks.push(tile);
        }
        let photometric = if color == Color::Rgb { 2 } else { 1 };
        let mut file = Tiff { tiled: true, ..tiff(photometric, &vec![8; channels], chunks) };
        file.fields[0].2 = vec![width];
        file.fields[1].2 = vec![height];
        file.fields.extend([(322, 3, vec![16]), (323, 3, vec![16])]);
        assert!(decode_bytes(&file.bytes()).unwrap().1 == pixels);
    }
}

#[test]
fn a_tiff_in_planes_is_interleaved() {
    let planes: Vec<Vec<u8>> = (0..3).map(|c| (0..15).map(|i| 20 * i + c).collect()).collect();
    // Two rows a strip, so two strips a plane.
    let chunks = planes.iter().flat_map(|plane| [plane[..10].to_vec(), plane[10..].to_vec()]).collect();
    let mut file = tiff(2, &[8, 8, 8], chunks);
    file.fields.extend([(278, 3, vec![2]), (284, 3, vec![2])]);
    let expected: Vec<u8> = (0..15).flat_map(|i| [20 * i, 20 * i + 1, 20 * i + 2]).collect();
    assert_eq!(decode_bytes(&file.bytes()).unwrap().1, expected);
}

#[test]
fn alpha_that_is_multiplied_in_is_divided_out() {
    let pixel = [50, 100, 0, 100, 255, 9, 0, 255, 0, 0, 0, 0, 3, 2, 1, 5, 9, 9, 9, 4];
    let chunk = [pixel; 3].concat();
    let mut file = tiff(2, &[8, 8, 8, 8], vec![chunk]);
    file.fields.push((338, 3, vec![1]));
    let (info, pixels) = decode_bytes(&file.bytes()).unwrap();
    assert_eq!(info.color, Color::Rgba);
    let expected = [128, 255, 0, 100, 255, 9, 0, 255, 0, 0, 0, 0, 153, 102, 51, 5, 255, 255, 255, 4];
    assert_eq!(pixels[..20], expected);
}

#[test]
fn tiff_kinds_that_are_not_read_say_so() {
    let check = |file: Tiff, said: &str| {
        let refused = decode_bytes(&file.bytes()).unwrap_err();
        assert!(matches!(&refused, DecodeError::Unsupported { what, .. } if what.contains(said)), "{refused:?}");
    };
    let mut palette = tiff(3, &[8], vec![vec![0; 15]]);
    palette.fields.push((320, 3, vec![0; 768]));
    check(palette, "RGBPalette");
    check(tiff(5, &[16; 4], vec![vec![0; 120]]), "CMYK");
    let mut signed = tiff(1, &[16], vec![vec![0; 30]]);
    signed.fields.push((339, 3, vec![2]));
    check(signed, "I16");
    check(tiff(1, &[8], vec![vec![]]), "without data");
}

#[test]
fn a_bigtiff_and_every_compression_are_read() {
    use tiff::encoder::colortype::{Gray16, RGB8, RGBA32Float};
    use tiff::encoder::{Compression, TiffEncoder};
    let compressions = [
        Compression::Uncompressed,
        Compression::Lzw,
        Compression::Deflate(tiff::encoder::compression::DeflateLevel::Fast),
        Compression::Packbits,
    ];
    let (width, height) = (90, 200);
    for compression in compressions {
        let file = tempfile::NamedTempFile::new().unwrap();
        let start = || TiffEncoder::new_big(file.reopen().unwrap()).unwrap().with_compression(compression);

        let pixels = noise(width, height, Color::Rgb, Sample::U8);
        start().write_image::<RGB8>(width, height, &pixels).unwrap();
        assert!(std::fs::read(file.path()).unwrap().starts_with(b"II+\0"));
        assert!(decode(file.path(), &Limits::default()).unwrap().1 == pixels);

        let pixels = noise(width, height, Color::Grey, Sample::U16);
        let words: Vec<u16> = pixels.as_chunks::<2>().0.iter().map(|k| u16::from_le_bytes(*k)).collect();
        file.as_file().set_len(0).unwrap();
        start().write_image::<Gray16>(width, height, &words).unwrap();
        assert!(decode(file.path(), &Limits::default()).unwrap().1 == pixels);

        let pixels = noise(width, height, Color::Rgba, Sample::F32);
        let floats: Vec<f32> = pixels.as_chunks::<4>().0.iter().map(|k| f32::from_le_bytes(*k)).collect();
        file.as_file().set_len(0).unwrap();
        start().write_image::<RGBA32Float>(width, height, &floats).unwrap();
        assert!(decode(file.path(), &Limits::default()).unwrap().1 == pixels);
    }
}

#[test]
fn float_samples_are_clamped_and_must_be_numbers() {
    let encoded = |values: &[f32]| {
        let bytes: Vec<u8> = values.iter().flat_map(|k| k.to_le_bytes()).collect();
        let options = EncodeOptions {
            compression: Compression::None,
            ..EncodeOptions::new(Format::Tiff, Color::Rgb, Sample::F32)
        };
        decode(encode(&options, 2, 2, &bytes).path(), &Limits::default())
    };
    let mut values = [0.5f32, -1.0, 2.0, 0.0, 1.0, 0.25, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6];
    let clamped = encoded(&values).unwrap().1;
    assert_eq!(clamped[..12], [0.5f32, 0.0, 1.0].map(f32::to_le_bytes).concat());
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        values[10] = bad;
        let refused = encoded(&values).unwrap_err();
        assert!(matches!(refused, DecodeError::NotFinite { x: 1, y: 1, channel: 1, .. }), "{refused:?}");
    }
}
