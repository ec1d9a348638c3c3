//! WebP: the whole picture in memory, as the decoder wants it.

use std::fs::File;
use std::io::{BufReader, Read, Seek};

use image_webp::{DecodingError, WebPDecoder};

use super::{DecodeError, Emit, Header, check_size, malformed, read_failed};
use crate::metadata;
use crate::picture::{Color, Format, Limits, Sample};

const FORMAT: Format = Format::Webp;

/// The largest profile or EXIF block that is carried over.
const MAX_METADATA_BYTES: usize = 1 << 24;

pub(super) struct Source {
    decoder: WebPDecoder<BufReader<File>>,
}

pub(super) fn open(mut file: BufReader<File>, limits: &Limits) -> Result<(Header, Source), DecodeError> {
    check_length(&mut file)?;
    let mut decoder = WebPDecoder::new(file).map_err(|error| match error {
        // The only sizes that the headers of one picture can contradict are zero ones.
        DecodingError::InconsistentImageSizes => DecodeError::Empty { format: FORMAT, width: 0, height: 0 },
        error => failed(error),
    })?;
    let (width, height) = decoder.dimensions();
    check_size(FORMAT, width, height, limits)?;
    if decoder.num_frames() > 1 {
        let (count, way_out) = (decoder.num_frames().into(), "magick animation.webp -coalesce frame-%04d.png");
        return Err(DecodeError::Several { format: FORMAT, count, parts: "frames", way_out });
    }
    decoder.set_memory_limit(MAX_METADATA_BYTES);
    let exif = decoder.exif_metadata().map_err(failed)?.map(|exif| metadata::strip_exif_prefix(&exif).to_vec());
    let header = Header {
        format: FORMAT,
        width,
        height,
        color: if decoder.has_alpha() { Color::Rgba } else { Color::Rgb },
        sample: Sample::U8,
        icc: decoder.icc_profile().map_err(failed)?,
        orientation: exif.as_deref().map_or(1, metadata::orientation),
        exif,
    };
    limits.check_whole("the size in bytes of the decoded WebP", header.whole_bytes())?;
    decoder.set_memory_limit(limits.max_whole_picture_bytes as usize);
    Ok((header, Source { decoder }))
}

impl Source {
    pub(super) fn rows(mut self, header: &Header, emit: Emit<'_>) -> Result<(), DecodeError> {
        let mut whole = vec![0; header.whole_bytes() as usize];
        self.decoder.read_image(&mut whole).map_err(failed)?;
        drop(self);
        header.emit_whole(&whole, emit)
    }
}

/// Compares the length that the RIFF header tells with the file's, because a decoder may make up what is missing.
fn check_length(file: &mut BufReader<File>) -> Result<(), DecodeError> {
    let mut head = [0; 8];
    file.read_exact(&mut head).map_err(|error| read_failed(FORMAT, "the end of its header", error))?;
    let told = u64::from(u32::from_le_bytes([head[4], head[5], head[6], head[7]])) + 8;
    let length = file.get_ref().metadata().map_err(DecodeError::Read)?.len();
    if told > length {
        return Err(DecodeError::Truncated { format: FORMAT, missing: "the end that its header tells" });
    }
    file.rewind().map_err(DecodeError::Read)
}

fn failed(error: DecodingError) -> DecodeError {
    match error {
        DecodingError::IoError(error) => read_failed(FORMAT, "its last row", error),
        DecodingError::UnsupportedFeature(what) => DecodeError::Unsupported { format: FORMAT, what },
        error => malformed(FORMAT, error),
    }
}
