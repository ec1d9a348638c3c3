//! Writing pictures: rows in the native layout go in from the top, a file comes out.
//!
//! PNG and TIFF are written as the rows come, with a few mebibytes of memory whatever the size. JPEG and WebP hold the
//! whole picture until [`Encoder::finish`]. [`EncodeOptions::check`] refuses what a format cannot hold, and is meant
//! to be asked before a job spends work on pixels that cannot be written.

mod jpeg;
mod output;
mod png;
mod tiff;
mod webp;

use std::error::Error;
use std::fs::File;
use std::io;

use output::Output;

use domain::region::Size;

use crate::metadata;
use crate::picture::{Color, Format, Limits, Sample, TooLarge};

/// How hard to compress without loss. JPEG and WebP do not ask.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// Not at all: TIFF strips as they are, PNG in stored blocks.
    None,
    /// Fast, at some cost in size.
    #[default]
    Fast,
    /// Small, at several times the cost in time.
    Small,
}

/// What to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodeOptions {
    /// The file format.
    pub format: Format,
    /// The channels of the rows, and of the picture as far as the format has them: WebP stores grey as RGB.
    pub color: Color,
    /// The samples of the rows and of the picture.
    pub sample: Sample,
    /// The ICC profile; left out where it does not describe `color`.
    pub icc: Option<Vec<u8>>,
    /// The EXIF block, without `Exif\0\0` before it. The size that it tells is corrected, the rest is carried over.
    pub exif: Option<Vec<u8>>,
    /// The quality of a JPEG, 1 to 100. Default: 95. From 90 up, colour is stored at full resolution.
    pub jpeg_quality: u8,
    /// How hard to compress. Default: fast.
    pub compression: Compression,
}

/// Why a picture could not be written.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// The picture has no pixels.
    #[error("a picture of {width}x{height} has no pixels to write")]
    Empty {
        /// The width.
        width: u32,
        /// The height.
        height: u32,
    },
    /// The format's own bound on the size.
    #[error("a {format} picture has at most {max_side} pixels a side, but this one is {width}x{height}")]
    TooLong {
        /// The format.
        format: Format,
        /// Its bound.
        max_side: u32,
        /// The width.
        width: u32,
        /// The height.
        height: u32,
    },
    /// The format cannot be transparent.
    #[error("{format} cannot hold {color}: drop the alpha channel or write PNG, TIFF or WebP")]
    Alpha {
        /// The format.
        format: Format,
        /// The channels asked for.
        color: Color,
    },
    /// The format has no such samples.
    #[error("{format} cannot hold {sample} samples")]
    Sample {
        /// The format.
        format: Format,
        /// The samples asked for.
        sample: Sample,
    },
    /// A quality outside 1 to 100.
    #[error("the JPEG quality is {0}, but must be 1 to 100")]
    Quality(u8),
    /// More metadata than the format has room for.
    #[error("the {what} has {bytes} bytes, but {format} has room for {most}")]
    Metadata {
        /// The format.
        format: Format,
        /// Which metadata.
        what: &'static str,
        /// Its length.
        bytes: usize,
        /// The most it may be.
        most: usize,
    },
    /// The picture is over a configured limit.
    #[error("the picture is too large to write as {format}")]
    TooLarge {
        /// The format.
        format: Format,
        /// Which limit.
        source: TooLarge,
    },
    /// Rows of the wrong length.
    #[error("{found} bytes are no whole number of rows of {row_bytes} bytes")]
    RowLength {
        /// The bytes of a row.
        row_bytes: usize,
        /// The bytes given.
        found: usize,
    },
    /// More or fewer rows than the picture has.
    #[error("the picture has {expected} rows, but {found} were written")]
    RowCount {
        /// The height.
        expected: u32,
        /// The rows given.
        found: u64,
    },
    /// The file could not be written.
    #[error("cannot write the {format} file")]
    Write {
        /// The format.
        format: Format,
        /// Why; a full disk, for one.
        source: io::Error,
    },
    /// The codec refused.
    #[error("cannot encode the {format} picture")]
    Codec {
        /// The format.
        format: Format,
        /// Why.
        source: Box<dyn Error + Send + Sync>,
    },
}

impl EncodeOptions {
    /// Options with the default quality and compression, without metadata.
    pub fn new(format: Format, color: Color, sample: Sample) -> Self {
        Self { format, color, sample, icc: None, exif: None, jpeg_quality: 95, compression: Compression::default() }
    }

    /// Refuses a picture that could not be written, before work is spent on it.
    pub fn check(&self, width: u32, height: u32, limits: &Limits) -> Result<(), EncodeError> {
        let &Self { format, color, sample, .. } = self;
        check_encodable(format, width, height, color, sample, limits)?;
        if !(1..=100).contains(&self.jpeg_quality) {
            return Err(EncodeError::Quality(self.jpeg_quality));
        }
        let room = |what, bytes: &Option<Vec<u8>>, most: usize| match bytes.as_ref().map_or(0, Vec::len) {
            bytes if bytes > most => Err(EncodeError::Metadata { format, what, bytes, most }),
            _ => Ok(()),
        };
        let (icc, exif) = match format {
            // A JPEG segment has 16 bits of length, and a profile at most 255 segments of it.
            Format::Jpeg => (255 * 65_519, 65_527),
            Format::Png | Format::Tiff | Format::Webp => (1 << 24, 1 << 24),
        };
        room("ICC profile", &self.icc, icc)?;
        room("EXIF block", &self.exif, exif)
    }
}

/// Refuses a size, channels or samples that `format` cannot hold, or cannot be written within `limits`.
pub fn check_encodable(
    format: Format,
    width: u32,
    height: u32,
    color: Color,
    sample: Sample,
    limits: &Limits,
) -> Result<(), EncodeError> {
    let bounds = format.limits();
    if width == 0 || height == 0 {
        return Err(EncodeError::Empty { width, height });
    }
    if width.max(height) > bounds.max_side {
        return Err(EncodeError::TooLong { format, max_side: bounds.max_side, width, height });
    }
    if color.has_alpha() && !bounds.alpha {
        return Err(EncodeError::Alpha { format, color });
    }
    if !bounds.samples.contains(&sample) {
        return Err(EncodeError::Sample { format, sample });
    }
    if bounds.whole_picture {
        let bytes = u64::from(width) * u64::from(height) * (color.channels() * sample.bytes()) as u64;
        limits
            .check_whole("the size in bytes of the picture, which this format holds whole,", bytes)
            .map_err(|source| EncodeError::TooLarge { format, source })?;
    }
    Ok(())
}

/// The PNG file of a small 8-bit RGB picture, made in memory.
///
/// # Errors
/// If it has no pixels, or `rgb` is not as many samples as its size says.
pub fn small_png(rgb: &[u8], size: Size) -> Result<Vec<u8>, EncodeError> {
    png::in_memory(rgb, size)
}

/// A picture file in the making.
///
/// An encoder that is dropped before [`Self::finish`] leaves a file that is no picture.
#[derive(Debug)]
pub struct Encoder {
    format: Format,
    codec: Codec,
    output: Output,
    row_bytes: usize,
    height: u32,
    rows: u64,
}

/// What a codec needs to know.
#[derive(Debug)]
struct Job {
    width: u32,
    height: u32,
    options: EncodeOptions,
}

impl Encoder {
    /// Begins a picture in `file`, which is empty and is written from its start.
    ///
    /// Checks what [`EncodeOptions::check`] checks.
    pub fn new(
        file: File,
        width: u32,
        height: u32,
        mut options: EncodeOptions,
        limits: &Limits,
    ) -> Result<Self, EncodeError> {
        options.check(width, height, limits)?;
        // WebP has no grey: it is written as RGB, which a profile for grey does not describe.
        let grey_as_rgb = options.format == Format::Webp && options.color.is_grey();
        let stored = if grey_as_rgb { Color::Rgb } else { options.color };
        options.icc = options.icc.filter(|icc| metadata::icc_describes(icc, stored));
        if let Some(exif) = &mut options.exif {
            metadata::set_dimensions(exif, width, height);
        }
        let format = options.format;
        let row_bytes = width as usize * options.color.channels() * options.sample.bytes();
        let output = Output::new(file);
        let job = Job { width, height, options };
        let codec = Codec::new(output.clone(), job)?;
        Ok(Self { format, codec, output, row_bytes, height, rows: 0 })
    }

    /// Writes the next rows; any whole number of them.
    pub fn write_rows(&mut self, rows: &[u8]) -> Result<(), EncodeError> {
        if !rows.len().is_multiple_of(self.row_bytes) {
            return Err(EncodeError::RowLength { row_bytes: self.row_bytes, found: rows.len() });
        }
        self.rows += (rows.len() / self.row_bytes) as u64;
        if self.rows > u64::from(self.height) {
            return Err(EncodeError::RowCount { expected: self.height, found: self.rows });
        }
        self.codec.write_rows(rows)
    }

    /// Writes what is left, and gives the file back with everything in it.
    pub fn finish(self) -> Result<File, EncodeError> {
        let Self { format, codec, output, height, rows, .. } = self;
        if rows != u64::from(height) {
            return Err(EncodeError::RowCount { expected: height, found: rows });
        }
        codec.finish()?;
        output.finish().map_err(|source| EncodeError::Write { format, source })
    }
}

#[derive(Debug)]
enum Codec {
    Png(Box<png::Codec>),
    Jpeg(jpeg::Codec),
    Tiff(Box<tiff::Codec>),
    Webp(webp::Codec),
}

impl Codec {
    fn new(output: Output, job: Job) -> Result<Self, EncodeError> {
        Ok(match job.options.format {
            Format::Png => Self::Png(Box::new(png::Codec::new(output, job)?)),
            Format::Jpeg => Self::Jpeg(jpeg::Codec::new(output, job)),
            Format::Tiff => Self::Tiff(Box::new(tiff::Codec::new(output, job)?)),
            Format::Webp => Self::Webp(webp::Codec::new(output, job)),
        })
    }

    fn write_rows(&mut self, rows: &[u8]) -> Result<(), EncodeError> {
        match self {
            Self::Png(codec) => codec.write_rows(rows),
            Self::Jpeg(codec) => codec.write_rows(rows),
            Self::Tiff(codec) => codec.write_rows(rows),
            Self::Webp(codec) => codec.write_rows(rows),
        }
    }

    fn finish(self) -> Result<(), EncodeError> {
        match self {
            Self::Png(codec) => codec.finish(),
            Self::Jpeg(codec) => codec.finish(),
            Self::Tiff(codec) => codec.finish(),
            Self::Webp(codec) => codec.finish(),
        }
    }
}
