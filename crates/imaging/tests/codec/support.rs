//! Pictures, files and EXIF blocks made for the tests.

use std::io::Write;
use std::path::Path;

use imaging::decode::{self, DecodeError};
use imaging::encode::{EncodeOptions, Encoder};
use imaging::picture::{Color, Format, Limits, PictureInfo, Sample};
use tempfile::NamedTempFile;

/// Pixels in the native layout: smooth, so that a JPEG keeps them, and different in every channel.
pub fn smooth(width: u32, height: u32, color: Color, sample: Sample) -> Vec<u8> {
    pixels(width, height, color, sample, |x, y, c| {
        let (x, y) = (f64::from(x) / f64::from(width), f64::from(y) / f64::from(height));
        (0.2 * c as f64 + 0.5 * x + 0.3 * y) % 1.0
    })
}

/// Pixels in the native layout that no two neighbours share.
pub fn noise(width: u32, height: u32, color: Color, sample: Sample) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    pixels(width, height, color, sample, |_, _, _| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1u64 << 53) as f64
    })
}

fn pixels(
    width: u32,
    height: u32,
    color: Color,
    sample: Sample,
    mut value: impl FnMut(u32, u32, usize) -> f64,
) -> Vec<u8> {
    let mut bytes = Vec::new();
    for y in 0..height {
        for x in 0..width {
            for c in 0..color.channels() {
                let value = value(x, y, c);
                match sample {
                    Sample::U8 => bytes.push((value * 255.0) as u8),
                    Sample::U16 => bytes.extend(((value * 65535.0) as u16).to_le_bytes()),
                    Sample::F32 => bytes.extend((value as f32).to_le_bytes()),
                }
            }
        }
    }
    bytes
}

pub fn encode(options: &EncodeOptions, width: u32, height: u32, pixels: &[u8]) -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    let handle = file.reopen().unwrap();
    let mut encoder = Encoder::new(handle, width, height, options.clone(), &Limits::default()).unwrap();
    let row = pixels.len() / height as usize;
    for rows in pixels.chunks(row * 3) {
        encoder.write_rows(rows).unwrap();
    }
    encoder.finish().unwrap();
    file
}

pub fn encoded(options: &EncodeOptions, width: u32, height: u32, pixels: &[u8]) -> Vec<u8> {
    std::fs::read(encode(options, width, height, pixels).path()).unwrap()
}

/// Decodes a file, checking that its rows come once, in order, and are as many as it says.
pub fn decode(path: &Path, limits: &Limits) -> Result<(PictureInfo, Vec<u8>), DecodeError> {
    let mut pixels = Vec::new();
    let mut next = 0;
    let info = decode::decode_rows(path, limits, &mut |rows| {
        assert_eq!(rows.y, next);
        assert!(rows.count > 0);
        assert_eq!(rows.bytes.len() % rows.count as usize, 0);
        next += rows.count;
        pixels.extend_from_slice(rows.bytes);
        Ok(())
    })?;
    assert_eq!(next, info.height);
    assert_eq!(pixels.len(), info.row_bytes() * info.height as usize);
    assert_eq!(info, decode::probe(path, limits).unwrap());
    Ok((info, pixels))
}

pub fn decode_bytes(bytes: &[u8]) -> Result<(PictureInfo, Vec<u8>), DecodeError> {
    decode(file(bytes).path(), &Limits::default())
}

pub fn file(bytes: &[u8]) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    file
}

/// Every format with every layout that it can hold.
pub fn holdable() -> Vec<(Format, Color, Sample)> {
    let samples = [Sample::U8, Sample::U16, Sample::F32];
    let all = Format::ALL.into_iter().flat_map(|format| Color::ALL.map(|color| (format, color)));
    let all = all.flat_map(|(format, color)| samples.map(|sample| (format, color, sample)));
    all.filter(|&(format, color, sample)| {
        imaging::encode::check_encodable(format, 9, 9, color, sample, &Limits::default()).is_ok()
    })
    .collect()
}

/// An ICC profile as far as anybody looks into it: its header, and a body.
pub fn icc(space: &[u8; 4]) -> Vec<u8> {
    let mut profile: Vec<u8> = (0..3000u32).map(|i| (i * i % 251) as u8).collect();
    profile[16..20].copy_from_slice(space);
    profile[36..40].copy_from_slice(b"acsp");
    profile
}

/// Tag, field type, values.
pub type Field = (u16, u16, Vec<u32>);

/// A TIFF structure written by hand: an EXIF block, or a picture of a kind that no encoder here writes.
#[derive(Default)]
pub struct Tiff {
    pub big_endian: bool,
    pub fields: Vec<Field>,
    /// Directories that a tag of the first one points to.
    pub directories: Vec<(u16, Vec<Field>)>,
    /// The pixels, in the order of the strips or tiles.
    pub chunks: Vec<Vec<u8>>,
    pub tiled: bool,
}

impl Tiff {
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = vec![0; 8];
        let mut fields = self.fields.clone();
        let (mut offsets, mut counts) = (Vec::new(), Vec::new());
        for chunk in &self.chunks {
            offsets.push(out.len() as u32);
            counts.push(chunk.len() as u32);
            out.extend(chunk);
        }
        if !self.chunks.is_empty() {
            let (offset_tag, count_tag) = if self.tiled { (324, 325) } else { (273, 279) };
            fields.extend([(offset_tag, 4, offsets), (count_tag, 4, counts)]);
        }
        for (tag, directory) in &self.directories {
            let at = self.directory(&mut out, directory);
            fields.push((*tag, 4, vec![at]));
        }
        let first = self.directory(&mut out, &fields);
        out[..4].copy_from_slice(if self.big_endian { b"MM\0*" } else { b"II*\0" });
        out[4..8].copy_from_slice(&self.u32(first));
        out
    }

    fn directory(&self, out: &mut Vec<u8>, fields: &[Field]) -> u32 {
        let mut fields = fields.to_vec();
        fields.sort_by_key(|field| field.0);
        let mut entries = Vec::new();
        for (tag, kind, values) in &fields {
            let bytes: Vec<u8> = match kind {
                1 | 2 | 7 => values.iter().map(|&v| v as u8).collect(),
                3 => values.iter().flat_map(|&v| self.u16(v as u16)).collect(),
                _ => values.iter().flat_map(|&v| self.u32(v)).collect(),
            };
            let count = if *kind == 5 { values.len() / 2 } else { values.len() };
            entries.extend(self.u16(*tag));
            entries.extend(self.u16(*kind));
            entries.extend(self.u32(count as u32));
            if bytes.len() > 4 {
                entries.extend(self.u32(out.len() as u32));
                out.extend(bytes);
            } else {
                entries.extend(bytes.iter().copied().chain([0; 4]).take(4));
            }
        }
        let at = out.len() as u32;
        out.extend(self.u16(fields.len() as u16));
        out.extend(entries);
        out.extend([0; 4]);
        at
    }

    fn u16(&self, value: u16) -> [u8; 2] {
        if self.big_endian { value.to_be_bytes() } else { value.to_le_bytes() }
    }

    fn u32(&self, value: u32) -> [u8; 4] {
        if self.big_endian { value.to_be_bytes() } else { value.to_le_bytes() }
    }
}

/// An EXIF block as a camera writes it.
pub fn exif(orientation: u16, big_endian: bool) -> Vec<u8> {
    let ascii = |text: &str| text.bytes().chain([0]).map(u32::from).collect();
    Tiff {
        big_endian,
        fields: vec![(0x010f, 2, ascii("Tessera")), (0x0112, 3, vec![orientation.into()])],
        directories: vec![
            (0x8769, vec![(0x829a, 5, vec![1, 250]), (0xa002, 3, vec![3]), (0xa003, 3, vec![2])]),
            (0x8825, vec![(0x0001, 2, ascii("N")), (0x0002, 5, vec![54, 1, 47, 1, 0, 1])]),
        ],
        ..Tiff::default()
    }
    .bytes()
}

/// What an EXIF block says, a line a field.
pub fn exif_text(block: &[u8]) -> String {
    let (mut fields, _) = exif::parse_exif(block).unwrap();
    fields.sort_by_key(|field| field.tag.number());
    fields.iter().map(|field| format!("{}: {}\n", field.tag, field.display_value())).collect()
}
