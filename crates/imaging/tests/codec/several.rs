//! Files of several pictures are refused, with the number of them and the way out.

use imaging::decode::{DecodeError, probe};
use imaging::encode::EncodeOptions;
use imaging::picture::{Color, Format, Limits, Sample};

use crate::kinds::tiff;
use crate::support::{Tiff, decode_bytes, encoded, file, noise};

#[track_caller]
fn check(bytes: &[u8], message: &str) {
    let refused = probe(file(bytes).path(), &Limits::default()).unwrap_err();
    assert!(matches!(refused, DecodeError::Several { .. }), "{refused:?}");
    assert!(refused.is_the_pictures_fault());
    assert_eq!(refused.to_string(), message);
}

#[test]
fn animations_and_files_of_pages_are_refused_with_their_number() {
    check(
        include_bytes!("../data/frames.png"),
        "the PNG file holds 3 frames, and must hold one: split it first, for instance with \
         `ffmpeg -i animation.png frame-%04d.png`",
    );
    check(
        include_bytes!("../data/frames.webp"),
        "the WebP file holds 3 frames, and must hold one: split it first, for instance with \
         `magick animation.webp -coalesce frame-%04d.png`",
    );
    check(
        include_bytes!("../data/pages.tif"),
        "the TIFF file holds 3 pages, and must hold one: split it first, for instance with \
         `magick pages.tif page-%04d.tif`",
    );
}

/// An animated WebP of one frame of `width` x `height` RGB pixels with alpha.
pub fn animated_webp(width: u32, height: u32, pixels: &[u8]) -> Vec<u8> {
    let still = encoded(&EncodeOptions::new(Format::Webp, Color::Rgba, Sample::U8), width, height, pixels);
    let lossless = still.windows(4).position(|name| name == b"VP8L").unwrap();
    let chunk = |name: &[u8], body: &[u8]| {
        let padding = &[0][..body.len() % 2];
        [name, &(body.len() as u32).to_le_bytes(), body, padding].concat()
    };
    // WebP container: animation and alpha; a size less 1; a black canvas without end; one frame, shown for 100 ms.
    let size = [width, height].map(|side| [(side - 1) as u8, 0, 0]).concat();
    let header = chunk(b"VP8X", &[&[0x12, 0, 0, 0][..], &size].concat());
    let frame = [&[0; 6][..], &size, &[100, 0, 0, 2], &still[lossless..]].concat();
    chunk(b"RIFF", &[&b"WEBP"[..], &header, &chunk(b"ANIM", &[0; 6]), &chunk(b"ANMF", &frame)].concat())
}

#[test]
fn an_animation_of_one_frame_is_a_picture() {
    let pixels = noise(9, 7, Color::Rgba, Sample::U8);
    let mut png = Vec::new();
    let mut encoder = png::Encoder::new(&mut png, 9, 7);
    encoder.set_color(png::ColorType::Rgba);
    encoder.set_animated(1, 0).unwrap();
    let mut writer = encoder.write_header().unwrap();
    writer.write_image_data(&pixels).unwrap();
    writer.finish().unwrap();
    assert!(decode_bytes(&png).unwrap().1 == pixels);

    assert!(decode_bytes(&animated_webp(9, 7, &pixels)).unwrap().1 == pixels);
}

/// A TIFF whose directories follow one another.
fn chained(pages: &[Tiff]) -> Vec<u8> {
    let mut out = pages[0].bytes();
    let mut link = out.len() - 4;
    for page in &pages[1..] {
        // Only the directory is moved: its offsets still lead to the first page's pixels.
        let bytes = page.bytes();
        let directory = u32::from_le_bytes(bytes[4..8].try_into().unwrap()) as usize;
        let at = out.len() as u32;
        out.extend(&bytes[directory..]);
        out[link..link + 4].copy_from_slice(&at.to_le_bytes());
        link = out.len() - 4;
    }
    out
}

#[test]
fn smaller_copies_and_masks_beside_a_page_are_no_pages() {
    let page = |kind: Option<(u16, u32)>| {
        let mut page = tiff(1, &[8], vec![vec![7; 15]]);
        page.fields.extend(kind.map(|(tag, kind)| (tag, 4, vec![kind])));
        page
    };
    let (copy, mask, older) = (page(Some((254, 1))), page(Some((254, 4))), page(Some((255, 2))));
    assert_eq!(decode_bytes(&chained(&[page(None), copy, mask, older])).unwrap().1, [7; 15]);
    let refused = decode_bytes(&chained(&[page(None), page(Some((254, 2)))])).unwrap_err();
    assert!(matches!(refused, DecodeError::Several { count: 2, .. }), "{refused:?}");
}

#[test]
fn directories_in_a_circle_are_damage() {
    let mut bytes = tiff(1, &[8], vec![vec![7; 15]]).bytes();
    let (first, link) = (bytes[4..8].to_vec(), bytes.len() - 4);
    bytes[link..].copy_from_slice(&first);
    let refused = decode_bytes(&bytes).unwrap_err();
    assert!(matches!(refused, DecodeError::Malformed { .. }), "{refused:?}");
}
