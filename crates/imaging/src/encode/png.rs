//! PNG, row by row.

use std::borrow::Cow;
use std::io::Write;

use domain::region::Size;
use png::{BitDepth, ColorType, EncodingError, Info, StreamWriter};

use super::{Compression, EncodeError, Job, Output};
use crate::picture::{Color, Format, Sample};

/// The length of an IDAT chunk, and so the memory that one takes.
const CHUNK_BYTES: usize = 1 << 18;

pub(super) struct Codec {
    writer: StreamWriter<'static, Output>,
    sample: Sample,
}

impl Codec {
    pub(super) fn new(output: Output, job: Job) -> Result<Self, EncodeError> {
        let Job { width, height, options } = job;
        let mut info = Info::with_size(width, height);
        info.color_type = match options.color {
            Color::Grey => ColorType::Grayscale,
            Color::GreyAlpha => ColorType::GrayscaleAlpha,
            Color::Rgb => ColorType::Rgb,
            Color::Rgba => ColorType::Rgba,
        };
        info.bit_depth = if options.sample == Sample::U16 { BitDepth::Sixteen } else { BitDepth::Eight };
        info.icc_profile = options.icc.map(Cow::Owned);
        info.exif_metadata = options.exif.map(Cow::Owned);
        let mut encoder = png::Encoder::with_info(output, info).map_err(failed)?;
        encoder.set_compression(match options.compression {
            Compression::None => png::Compression::NoCompression,
            Compression::Fast => png::Compression::Fast,
            Compression::Small => png::Compression::High,
        });
        let header = encoder.write_header().map_err(failed)?;
        let writer = header.into_stream_writer_with_size(CHUNK_BYTES).map_err(failed)?;
        Ok(Self { writer, sample: options.sample })
    }

    pub(super) fn write_rows(&mut self, rows: &[u8]) -> Result<(), EncodeError> {
        let written = if self.sample == Sample::U16 {
            let mut words = Vec::with_capacity(CHUNK_BYTES.min(rows.len()));
            rows.chunks(CHUNK_BYTES).try_for_each(|part| {
                words.clear();
                words.extend(part.as_chunks::<2>().0.iter().flat_map(|&[low, high]| [high, low]));
                self.writer.write_all(&words)
            })
        } else {
            self.writer.write_all(rows)
        };
        written.map_err(|source| EncodeError::Write { format: Format::Png, source })
    }

    pub(super) fn finish(self) -> Result<(), EncodeError> {
        self.writer.finish().map_err(failed)
    }
}

impl std::fmt::Debug for Codec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Codec").field("sample", &self.sample).finish_non_exhaustive()
    }
}

pub(super) fn in_memory(rgb: &[u8], size: Size) -> Result<Vec<u8>, EncodeError> {
    let Size { width, height } = size;
    if width == 0 || height == 0 {
        return Err(EncodeError::Empty { width, height });
    }
    let mut info = Info::with_size(width, height);
    (info.color_type, info.bit_depth) = (ColorType::Rgb, BitDepth::Eight);
    let mut file = Vec::new();
    let mut writer = png::Encoder::with_info(&mut file, info).and_then(png::Encoder::write_header).map_err(failed)?;
    writer.write_image_data(rgb).and_then(|()| writer.finish()).map_err(failed)?;
    Ok(file)
}

fn failed(error: EncodingError) -> EncodeError {
    let format = Format::Png;
    match error {
        EncodingError::IoError(source) => EncodeError::Write { format, source },
        error => EncodeError::Codec { format, source: error.into() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_picture_is_read_back_as_it_was_and_one_of_another_size_is_refused() {
        let rgb: Vec<u8> = (0..5 * 3 * 3).map(|i| i * 5).collect();
        let file = in_memory(&rgb, Size::new(5, 3)).unwrap();
        let mut reader = png::Decoder::new(std::io::Cursor::new(file)).read_info().unwrap();
        let mut read = vec![0; rgb.len()];
        let info = reader.next_frame(&mut read).unwrap();
        assert_eq!((info.width, info.height, info.color_type, read), (5, 3, ColorType::Rgb, rgb.clone()));
        for size in [Size::new(5, 4), Size::new(4, 3), Size::new(0, 3)] {
            assert!(in_memory(&rgb, size).is_err(), "{size}");
        }
    }
}
