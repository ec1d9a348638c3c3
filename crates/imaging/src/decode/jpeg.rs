//! JPEG: the whole file and the whole picture in memory, as the decoder wants them.
//!
//! A file that ends early is refused. One that lost data in its middle and still has its end marker need not be: the
//! format does not say how long the data is, so such a picture can come out grey from some point on.

use std::fs::File;
use std::io::{BufReader, Read};

use zune_core::bytestream::ZCursor;
use zune_core::colorspace::ColorSpace;
use zune_core::options::DecoderOptions;
use zune_jpeg::JpegDecoder;
use zune_jpeg::errors::DecodeErrors;

use super::inks::{Inks, Stored};
use super::{DecodeError, Emit, Header, check_size, malformed, profiles};
use crate::metadata;
use crate::picture::{Color, Format, Limits, Rows, Sample};

const FORMAT: Format = Format::Jpeg;

pub(super) struct Source {
    decoder: JpegDecoder<ZCursor<Vec<u8>>>,
    /// How four components become colour.
    inks: Option<(Stored, Inks)>,
}

pub(super) fn open(mut file: BufReader<File>, limits: &Limits) -> Result<(Header, Source), DecodeError> {
    let length = file.get_ref().metadata().map_err(DecodeError::Read)?.len();
    limits.check_whole("the size in bytes of the JPEG file", length)?;
    let mut bytes = Vec::with_capacity(length as usize);
    file.read_to_end(&mut bytes).map_err(DecodeError::Read)?;

    let scan = scan(&bytes)?;
    check_size(FORMAT, scan.width, scan.height, limits)?;

    // Strict, for otherwise rows that cannot be decoded come out grey and nothing is said.
    let options = DecoderOptions::default()
        .set_strict_mode(true)
        .set_max_width(usize::from(u16::MAX))
        .set_max_height(usize::from(u16::MAX))
        .jpeg_set_out_colorspace(ColorSpace::RGB);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    decoder.decode_headers().map_err(|error| failed((scan.width, scan.height), error))?;
    let color_space = decoder.input_colorspace().unwrap_or(ColorSpace::Unknown);
    let grey = color_space == ColorSpace::Luma;
    let stored = match color_space {
        ColorSpace::YCCK => Some(Stored::Ycck),
        ColorSpace::CMYK if scan.adobe => Some(Stored::Light),
        ColorSpace::CMYK => Some(Stored::Ink),
        _ => None,
    };
    if grey || stored.is_some() {
        decoder.set_options(options.jpeg_set_out_colorspace(color_space));
    }
    let mut icc = decoder.icc_profile();
    let inks = match stored {
        Some(stored) => {
            let inks = Inks::new(icc.as_deref());
            let inks = inks.map_err(|source| DecodeError::Profile { format: FORMAT, source })?;
            icc = Some(profiles::srgb());
            Some((stored, inks))
        }
        None => None,
    };
    let exif = decoder.exif().map(|exif| metadata::strip_exif_prefix(exif).to_vec());
    let header = Header {
        format: FORMAT,
        width: scan.width,
        height: scan.height,
        color: if grey { Color::Grey } else { Color::Rgb },
        sample: Sample::U8,
        icc,
        orientation: exif.as_deref().map_or(1, metadata::orientation),
        exif,
    };
    let source = Source { decoder, inks };
    limits.check_whole("the size in bytes of the decoded JPEG", source.whole_bytes(&header))?;
    Ok((header, source))
}

impl Source {
    pub(super) fn rows(mut self, header: &Header, emit: Emit<'_>) -> Result<(), DecodeError> {
        let mut whole = vec![0; self.whole_bytes(header) as usize];
        self.decoder.decode_into(&mut whole).map_err(|error| failed((header.width, header.height), error))?;
        drop(self.decoder);
        let Some((stored, inks)) = self.inks else { return header.emit_whole(&whole, emit) };
        let group = header.rows_at_a_time();
        for (y, four) in (0..).step_by(group as usize).zip(whole.chunks_mut(group as usize * header.width as usize * 4))
        {
            stored.to_ink(four);
            emit(Rows { y, count: group.min(header.height - y), bytes: &inks.rgb(four) })?;
        }
        Ok(())
    }

    /// The bytes of all components.
    fn whole_bytes(&self, header: &Header) -> u64 {
        if self.inks.is_some() { header.whole_bytes() / 3 * 4 } else { header.whole_bytes() }
    }
}

/// What the segments of a file say that has its end.
struct Scan {
    width: u32,
    height: u32,
    /// Whether Adobe's segment is there, with which inks are stored as the light that they leave.
    adobe: bool,
}

/// Steps over the segments to the end marker, because decoders make up the rows that a short file lacks.
fn scan(bytes: &[u8]) -> Result<Scan, DecodeError> {
    let truncated = || DecodeError::Truncated { format: FORMAT, missing: "its end marker" };
    let (mut size, mut adobe) = (None, false);
    let mut at = 2;
    loop {
        // ITU T.81, B.1.1.2: markers are 0xff and a code; fill bytes 0xff may come before, and entropy-coded data has
        // 0xff only before 0 and restart codes.
        let found = bytes.get(at..).unwrap_or_default().windows(2);
        let step = found.take_while(|pair| pair[0] != 0xff || matches!(pair[1], 0 | 1 | 0xd0..=0xd7 | 0xff)).count();
        at += step + 2;
        let code = *bytes.get(at - 1).ok_or_else(truncated)?;
        if code == 0xd9 {
            let (width, height) = size.ok_or_else(|| malformed(FORMAT, "the picture ends before its frame header"))?;
            return Ok(Scan { width, height, adobe });
        }
        let length = bytes.get(at..at + 2).ok_or_else(truncated)?;
        let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
        // A frame header: any SOF, but not DHT, JPG or DAC.
        if matches!(code, 0xc0..=0xcf) && !matches!(code, 0xc4 | 0xc8 | 0xcc) && size.is_none() {
            let &[height_high, height_low, width_high, width_low] = bytes.get(at + 3..at + 7).ok_or_else(truncated)?
            else {
                unreachable!("four bytes were taken")
            };
            let [width, height] = [[width_high, width_low], [height_high, height_low]].map(u16::from_be_bytes);
            size = Some((width.into(), height.into()));
        }
        adobe |= code == 0xee && bytes[at + 2..].starts_with(b"Adobe");
        at += length;
    }
}

fn failed((width, height): (u32, u32), error: DecodeErrors) -> DecodeError {
    match error {
        DecodeErrors::ZeroError => DecodeError::Empty { format: FORMAT, width, height },
        DecodeErrors::Unsupported(what) => DecodeError::Unsupported { format: FORMAT, what: format!("{what:?}") },
        error => malformed(FORMAT, error.to_string()),
    }
}
