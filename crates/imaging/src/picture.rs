//! What is known of a picture before its pixels are: format, size, layout of the samples, and the limits it must keep.
//!
//! One layout is used everywhere between reading and writing, the *native layout*: rows from top to bottom, pixels
//! from left to right, channels interleaved, samples little-endian.

pub use domain::picture::{Color, Format, FormatLimits, Sample};

/// What is known of a picture file from its headers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PictureInfo {
    /// The format, told by the content; the file's name is not asked.
    pub format: Format,
    /// The width in pixels, after the EXIF orientation is applied.
    pub width: u32,
    /// The height in pixels, after the EXIF orientation is applied.
    pub height: u32,
    /// The channels as decoded: palettes are looked up, CMYK is converted.
    pub color: Color,
    /// The samples as decoded: 1, 2 and 4 bits are widened to 8.
    pub sample: Sample,
    /// The ICC profile, if there is one and it describes `color`; sRGB for what was CMYK. Where a PNG says in another
    /// way that its colours are not sRGB, a profile that says the same.
    pub icc: Option<Vec<u8>>,
    /// The EXIF block (a TIFF structure, without `Exif\0\0` before it), its orientation already set back to 1.
    pub exif: Option<Vec<u8>>,
    /// The EXIF orientation, 1 to 8, that the file asked for.
    pub orientation: u8,
}

impl PictureInfo {
    /// The bytes of one pixel in the native layout.
    pub const fn pixel_bytes(&self) -> usize {
        self.color.channels() * self.sample.bytes()
    }

    /// The bytes of one row in the native layout.
    pub const fn row_bytes(&self) -> usize {
        self.width as usize * self.pixel_bytes()
    }
}

/// Some whole rows of a picture, in the native layout.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// The first row, counted from the top.
    pub y: u32,
    /// How many rows; at least one.
    pub count: u32,
    /// Their samples: `count` times the bytes of a row.
    pub bytes: &'a [u8],
}

/// How large a picture may be. Checked against the header, before a pixel is decoded or memory is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The widest picture, in pixels. Default: 1,048,576.
    pub max_width: u32,
    /// The highest picture, in pixels. Default: 1,048,576.
    pub max_height: u32,
    /// The most pixels of a picture. Default: 268,435,456, which is 16,384 x 16,384.
    pub max_pixels: u64,
    /// The most decoded bytes of a picture that cannot be read or written row by row: JPEG, WebP, interlaced PNG,
    /// TIFF of one strip, and every picture that must be turned. Default: 1 GiB.
    ///
    /// A codec may need the same again while it works.
    pub max_whole_picture_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_width: 1 << 20, max_height: 1 << 20, max_pixels: 1 << 28, max_whole_picture_bytes: 1 << 30 }
    }
}

/// A picture over a configured limit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} is {value}, more than the limit of {limit} (configuration key `{key}`)")]
pub struct TooLarge {
    /// What was measured, with its unit.
    pub what: &'static str,
    /// What it measured.
    pub value: u64,
    /// The most it may.
    pub limit: u64,
    /// The configuration key that raises the limit.
    pub key: &'static str,
}

impl Limits {
    /// Checks the size of a picture.
    pub fn check_size(&self, width: u32, height: u32) -> Result<(), TooLarge> {
        let pixels = u64::from(width) * u64::from(height);
        within("the number of pixels", pixels, self.max_pixels, "limits.max_pixels")?;
        within("the width in pixels", width.into(), self.max_width.into(), "limits.max_side")?;
        within("the height in pixels", height.into(), self.max_height.into(), "limits.max_side")
    }

    /// Checks the bytes of a picture, or of the part of one, that must be held in memory as a whole.
    pub fn check_whole(&self, what: &'static str, bytes: u64) -> Result<(), TooLarge> {
        within(what, bytes, self.max_whole_picture_bytes, "limits.max_whole_picture_bytes")
    }
}

fn within(what: &'static str, value: u64, limit: u64, key: &'static str) -> Result<(), TooLarge> {
    if value > limit {
        return Err(TooLarge { what, value, limit, key });
    }
    Ok(())
}
