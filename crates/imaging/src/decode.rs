//! Reading pictures: rows in the native layout, from the top, with memory bounded by the configured limits.
//!
//! The content tells the format, the file's name is not asked. Everything that can be refused is refused from the
//! headers: a file that ends too early, a size over the limits, a kind of picture that is not read. PNG and TIFF are
//! read a few rows at a time. JPEG, WebP, interlaced PNG and pictures that the EXIF orientation turns are held whole,
//! up to [`Limits::max_whole_picture_bytes`].
//!
//! A picture a file: animations and files of several pages are refused. Profiles stay with the pixels they describe,
//! which are left as they are; only the inks of CMYK are converted, by their profile, to sRGB.

mod inks;
mod jpeg;
mod png;
mod profiles;
mod tiff;
mod turn;
mod webp;

use std::error::Error;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek};
use std::path::{Path, PathBuf};

use crate::metadata;
use crate::picture::{Color, Format, Limits, PictureInfo, Rows, Sample, TooLarge};

/// What the taker of rows may fail with.
pub type SinkError = Box<dyn Error + Send + Sync>;

/// Why a file could not be read as a picture.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// The file cannot be opened.
    #[error("cannot open picture `{}`", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file system failed while the file was read.
    #[error("cannot read the picture")]
    Read(#[source] io::Error),
    /// The content is none of the known formats.
    #[error(
        "the file is {seen}, not a PNG, JPEG, TIFF or WebP picture{}",
        if *.convertible { ": make it one of these first, for instance with `magick in out.png`" } else { "" }
    )]
    NotAPicture {
        /// What it looks like instead.
        seen: &'static str,
        /// Whether that can be made into a picture of a known format.
        convertible: bool,
    },
    /// The file ends before the picture does.
    #[error("the {format} file is truncated: it ends before {missing}")]
    Truncated {
        /// The format it begins as.
        format: Format,
        /// What should have come.
        missing: &'static str,
    },
    /// The content breaks the rules of its format.
    #[error("the {format} file is damaged")]
    Malformed {
        /// The format it begins as.
        format: Format,
        /// Which rule.
        source: SinkError,
    },
    /// The picture has no pixels.
    #[error("the {format} picture has no pixels: it is {width}x{height}")]
    Empty {
        /// The format.
        format: Format,
        /// The width in the header.
        width: u32,
        /// The height in the header.
        height: u32,
    },
    /// The file is sound, but of a kind that is not read.
    #[error(
        "this kind of {format} is not supported: {what}; make it an ordinary PNG first, for instance with `magick in -colorspace sRGB out.png`"
    )]
    Unsupported {
        /// The format.
        format: Format,
        /// What is not supported.
        what: String,
    },
    /// The file holds several pictures, of which none is *the* picture.
    #[error(
        "the {format} file holds {count} {parts}, and must hold one: split it first, for instance with `{way_out}`"
    )]
    Several {
        /// The format.
        format: Format,
        /// How many.
        count: u64,
        /// What they are: pages or frames.
        parts: &'static str,
        /// A command that makes a file of each.
        way_out: &'static str,
    },
    /// The picture is of inks, and how they look cannot be told.
    #[error(
        "the CMYK profile of the {format} file cannot be used: convert the picture to RGB first, for instance with `magick in.jpg -colorspace sRGB out.png`"
    )]
    Profile {
        /// The format.
        format: Format,
        /// Why.
        source: SinkError,
    },
    /// The picture is over a limit.
    #[error("the picture is too large")]
    TooLarge(#[from] TooLarge),
    /// A float sample is NaN or infinite.
    #[error("channel {channel} of pixel ({x}, {y}) is {value}, which is no colour")]
    NotFinite {
        /// The column, in the file's own orientation.
        x: u32,
        /// The row, in the file's own orientation.
        y: u32,
        /// The channel, from 0.
        channel: usize,
        /// The sample.
        value: f32,
    },
    /// The taker of the rows failed.
    #[error("the decoded rows could not be taken")]
    Sink(#[source] SinkError),
}

impl DecodeError {
    /// Whether the picture is at fault, so that reading the same bytes again fails again.
    pub fn is_the_pictures_fault(&self) -> bool {
        match self {
            Self::Open { .. } | Self::Read(_) | Self::Sink(_) => false,
            Self::NotAPicture { .. }
            | Self::Truncated { .. }
            | Self::Malformed { .. }
            | Self::Empty { .. }
            | Self::Unsupported { .. }
            | Self::Several { .. }
            | Self::Profile { .. }
            | Self::TooLarge(_)
            | Self::NotFinite { .. } => true,
        }
    }
}

/// Reads what the headers of a picture say, and refuses what cannot be decoded within `limits`.
///
/// Takes no memory for pixels. A file that passes can still turn out damaged when its pixels are decoded.
pub fn probe(path: &Path, limits: &Limits) -> Result<PictureInfo, DecodeError> {
    Ok(open(path, limits)?.0.into_info())
}

/// Decodes a picture from the top, a few rows at a time, and returns what [`probe`] returns.
///
/// The rows are in the orientation in which the picture is to be seen, and every row comes exactly once; an error of
/// `sink` ends the decoding and comes back as [`DecodeError::Sink`]. Float samples are clamped to 0..1.
/// Nothing that was given to `sink` is of use if an error is returned.
pub fn decode_rows(
    path: &Path,
    limits: &Limits,
    sink: &mut dyn FnMut(Rows<'_>) -> Result<(), SinkError>,
) -> Result<PictureInfo, DecodeError> {
    let (header, source) = open(path, limits)?;
    let mut checked = |rows: Rows<'_>| sink(rows).map_err(DecodeError::Sink);
    if header.orientation == 1 {
        source.rows(&header, &mut checked)?;
    } else {
        let mut whole = Vec::with_capacity(header.whole_bytes() as usize);
        source.rows(&header, &mut |rows| {
            whole.extend_from_slice(rows.bytes);
            Ok(())
        })?;
        turn::rows(&header, &whole, &mut checked)?;
    }
    Ok(header.into_info())
}

/// Takes rows inside this module.
type Emit<'a> = &'a mut dyn FnMut(Rows<'_>) -> Result<(), DecodeError>;

/// The picture as the file holds it, before it is turned.
#[derive(Debug)]
struct Header {
    format: Format,
    width: u32,
    height: u32,
    color: Color,
    sample: Sample,
    icc: Option<Vec<u8>>,
    exif: Option<Vec<u8>>,
    orientation: u8,
}

impl Header {
    fn pixel_bytes(&self) -> usize {
        self.color.channels() * self.sample.bytes()
    }

    fn row_bytes(&self) -> usize {
        self.width as usize * self.pixel_bytes()
    }

    fn whole_bytes(&self) -> u64 {
        self.row_bytes() as u64 * u64::from(self.height)
    }

    /// How many rows to hand over at a time: about a mebibyte.
    fn rows_at_a_time(&self) -> u32 {
        let rows = (1 << 20) / self.row_bytes();
        u32::try_from(rows).unwrap_or(u32::MAX).clamp(1, self.height)
    }

    fn into_info(self) -> PictureInfo {
        let turned = self.orientation > 4;
        let (width, height) = if turned { (self.height, self.width) } else { (self.width, self.height) };
        let mut exif = self.exif;
        if let Some(exif) = &mut exif {
            metadata::reset_orientation(exif);
        }
        PictureInfo {
            format: self.format,
            width,
            height,
            color: self.color,
            sample: self.sample,
            icc: self.icc.filter(|icc| metadata::icc_describes(icc, self.color)),
            exif,
            orientation: self.orientation,
        }
    }

    /// Hands over a picture that was decoded whole.
    fn emit_whole(&self, pixels: &[u8], emit: Emit<'_>) -> Result<(), DecodeError> {
        let group = self.rows_at_a_time();
        for (y, bytes) in (0..).step_by(group as usize).zip(pixels.chunks(group as usize * self.row_bytes())) {
            emit(Rows { y, count: group.min(self.height - y), bytes })?;
        }
        Ok(())
    }
}

/// A file whose headers are read.
enum Source {
    Png(Box<png::Source>),
    Jpeg(Box<jpeg::Source>),
    Tiff(Box<tiff::Source>),
    Webp(Box<webp::Source>),
}

impl Source {
    fn rows(self, header: &Header, emit: Emit<'_>) -> Result<(), DecodeError> {
        match self {
            Self::Png(source) => source.rows(header, emit),
            Self::Jpeg(source) => source.rows(header, emit),
            Self::Tiff(source) => source.rows(header, emit),
            Self::Webp(source) => source.rows(header, emit),
        }
    }
}

fn open(path: &Path, limits: &Limits) -> Result<(Header, Source), DecodeError> {
    let file = File::open(path).map_err(|source| DecodeError::Open { path: path.to_owned(), source })?;
    let mut reader = BufReader::with_capacity(1 << 16, file);
    let mut start = Vec::new();
    reader.by_ref().take(16).read_to_end(&mut start).map_err(DecodeError::Read)?;
    reader.rewind().map_err(DecodeError::Read)?;
    let (header, source) = match sniff(&start)? {
        Format::Png => png::open(reader, limits).map(|(header, source)| (header, Source::Png(Box::new(source))))?,
        Format::Jpeg => jpeg::open(reader, limits).map(|(header, source)| (header, Source::Jpeg(Box::new(source))))?,
        Format::Tiff => tiff::open(reader, limits).map(|(header, source)| (header, Source::Tiff(Box::new(source))))?,
        Format::Webp => webp::open(reader, limits).map(|(header, source)| (header, Source::Webp(Box::new(source))))?,
    };
    if header.orientation != 1 {
        limits.check_whole("the size in bytes of the picture, which must be turned,", header.whole_bytes())?;
    }
    Ok((header, source))
}

/// Tells the format from the first bytes of a file.
fn sniff(start: &[u8]) -> Result<Format, DecodeError> {
    if start.starts_with(b"\x89PNG\r\n\x1a\n") {
        return Ok(Format::Png);
    }
    if start.starts_with(b"\xff\xd8\xff") {
        return Ok(Format::Jpeg);
    }
    if [b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"].iter().any(|magic| start.starts_with(&magic[..])) {
        return Ok(Format::Tiff);
    }
    if start.starts_with(b"RIFF") && start.get(8..12) == Some(b"WEBP") {
        return Ok(Format::Webp);
    }
    let seen = match start {
        [] => return Err(DecodeError::NotAPicture { seen: "empty", convertible: false }),
        [b'G', b'I', b'F', b'8', ..] => "a GIF",
        [b'B', b'M', ..] => "a BMP",
        [b'8', b'B', b'P', b'S', ..] => "a Photoshop document",
        [0x76, 0x2f, 0x31, 0x01, ..] => "an OpenEXR picture",
        [b'%', b'P', b'D', b'F', ..] => "a PDF",
        [0xff, 0x0a, ..] | [0, 0, 0, 0x0c, b'J', b'X', b'L', b' ', ..] => "a JPEG XL picture",
        [_, _, _, _, b'f', b't', b'y', b'p', b'a', b'v', b'i', b'f' | b's', ..] => "an AVIF picture",
        [_, _, _, _, b'f', b't', b'y', b'p', b'h' | b'm', ..] => "a HEIF picture",
        _ => return Err(DecodeError::NotAPicture { seen: "of an unknown kind", convertible: false }),
    };
    Err(DecodeError::NotAPicture { seen, convertible: true })
}

/// Refuses pictures without pixels and pictures over the limits.
fn check_size(format: Format, width: u32, height: u32, limits: &Limits) -> Result<(), DecodeError> {
    if width == 0 || height == 0 {
        return Err(DecodeError::Empty { format, width, height });
    }
    Ok(limits.check_size(width, height)?)
}

/// Says whether a failed read means that the file is too short or that it could not be read.
fn read_failed(format: Format, missing: &'static str, error: io::Error) -> DecodeError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => DecodeError::Truncated { format, missing },
        // Libraries wrap what they find in the data as these two kinds.
        io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput | io::ErrorKind::Other => malformed(format, error),
        _ => DecodeError::Read(error),
    }
}

fn malformed(format: Format, source: impl Into<SinkError>) -> DecodeError {
    DecodeError::Malformed { format, source: source.into() }
}
