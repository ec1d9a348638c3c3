//! PNG, row by row. Interlaced pictures are held whole.

use std::fs::File;
use std::io::{BufReader, Read, Seek};

use png::{ColorType, Decoder, DecodingError, Reader, Transformations};

use super::{DecodeError, Emit, Header, check_size, malformed, profiles, read_failed};
use crate::metadata;
use crate::picture::{Color, Format, Limits, Rows, Sample};

const FORMAT: Format = Format::Png;

/// The largest EXIF block that is carried over.
const MAX_EXIF_BYTES: u32 = 1 << 24;

pub(super) struct Source {
    reader: Reader<BufReader<File>>,
}

pub(super) fn open(mut file: BufReader<File>, limits: &Limits) -> Result<(Header, Source), DecodeError> {
    let exif = walk(&mut file, limits)?;
    file.rewind().map_err(DecodeError::Read)?;

    let mut decoder = Decoder::new(file);
    decoder.set_ignore_text_chunk(true);
    decoder.set_transformations(Transformations::EXPAND);
    let reader = decoder.read_info().map_err(failed)?;
    let info = reader.info();
    if let Some(count) = info.animation_control.map(|control| control.num_frames).filter(|&count| count > 1) {
        let way_out = "ffmpeg -i animation.png frame-%04d.png";
        return Err(DecodeError::Several { format: FORMAT, count: count.into(), parts: "frames", way_out });
    }
    let (color, depth) = reader.output_color_type();
    let told = info.icc_profile.as_deref().map(<[u8]>::to_vec);
    let grey = matches!(color, ColorType::Grayscale | ColorType::GrayscaleAlpha);
    let header = Header {
        format: FORMAT,
        width: info.width,
        height: info.height,
        color: match color {
            ColorType::Grayscale => Color::Grey,
            ColorType::GrayscaleAlpha => Color::GreyAlpha,
            ColorType::Rgb | ColorType::Indexed => Color::Rgb,
            ColorType::Rgba => Color::Rgba,
        },
        sample: if depth == png::BitDepth::Sixteen { Sample::U16 } else { Sample::U8 },
        icc: told.or_else(|| profiles::of_png(info, grey)),
        orientation: exif.as_deref().map_or(1, metadata::orientation),
        exif,
    };
    if info.interlaced {
        limits.check_whole("the size in bytes of the picture, which is interlaced,", header.whole_bytes())?;
    }
    Ok((header, Source { reader }))
}

impl Source {
    pub(super) fn rows(mut self, header: &Header, emit: Emit<'_>) -> Result<(), DecodeError> {
        if self.reader.info().interlaced {
            let mut whole = vec![0; header.whole_bytes() as usize];
            self.reader.next_frame(&mut whole).map_err(failed)?;
            to_little_endian(&mut whole, header.sample);
            return header.emit_whole(&whole, emit);
        }
        let group = header.rows_at_a_time();
        let mut bytes = vec![0; group as usize * header.row_bytes()];
        for y in (0..header.height).step_by(group as usize) {
            let count = group.min(header.height - y);
            let rows = &mut bytes[..count as usize * header.row_bytes()];
            for row in rows.chunks_exact_mut(header.row_bytes()) {
                self.reader.read_row(row).map_err(failed)?;
            }
            to_little_endian(rows, header.sample);
            emit(Rows { y, count, bytes: rows })?;
        }
        // What is left is the checksum.
        self.reader.next_row().map_err(failed)?;
        Ok(())
    }
}

/// Steps over the chunks to the last one, checks the size in the first, and returns the EXIF block.
///
/// The block may stand behind the pixels, but says how to turn them. And a file that stops early is found here, before
/// its rows are decoded and stored.
fn walk(file: &mut BufReader<File>, limits: &Limits) -> Result<Option<Vec<u8>>, DecodeError> {
    let cut_in = |missing| move |error| read_failed(FORMAT, missing, error);
    let end = file.get_ref().metadata().map_err(DecodeError::Read)?.len();
    let mut exif = None;
    let mut at = 8;
    file.seek_relative(8).map_err(DecodeError::Read)?;
    loop {
        let mut head = [0; 8];
        file.read_exact(&mut head).map_err(cut_in("its last chunk"))?;
        let [length, kind] = [&head[..4], &head[4..]].map(|part| <[u8; 4]>::try_from(part).expect("four bytes"));
        let length = u32::from_be_bytes(length);
        if at == 8 && (kind != *b"IHDR" || length != 13) {
            return Err(malformed(FORMAT, "the first chunk is not the header"));
        }
        at += 12 + u64::from(length);
        if at > end {
            return Err(DecodeError::Truncated { format: FORMAT, missing: "the end of a chunk" });
        }
        let mut left = i64::from(length) + 4;
        match &kind {
            b"IHDR" => {
                let mut size = [0; 8];
                file.read_exact(&mut size).map_err(cut_in("the end of its header"))?;
                let [width, height] =
                    [&size[..4], &size[4..]].map(|part| u32::from_be_bytes(part.try_into().expect("four bytes")));
                check_size(FORMAT, width, height, limits)?;
                left -= 8;
            }
            b"eXIf" if length <= MAX_EXIF_BYTES && exif.is_none() => {
                let mut block = vec![0; length as usize];
                file.read_exact(&mut block).map_err(cut_in("the end of its metadata"))?;
                exif = Some(metadata::strip_exif_prefix(&block).to_vec());
                left -= i64::from(length);
            }
            b"IEND" => return Ok(exif),
            _ => {}
        }
        file.seek_relative(left).map_err(DecodeError::Read)?;
    }
}

fn to_little_endian(samples: &mut [u8], sample: Sample) {
    if sample == Sample::U16 {
        samples.as_chunks_mut::<2>().0.iter_mut().for_each(|word| word.reverse());
    }
}

fn failed(error: DecodingError) -> DecodeError {
    match error {
        DecodingError::IoError(error) => read_failed(FORMAT, "its last row", error),
        error => malformed(FORMAT, error),
    }
}
