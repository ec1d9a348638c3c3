//! What a picture file is: format, colour and sample type, and how they may be combined.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::region::Size;

/// A picture file format that Tessera reads and writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// PNG, lossless, 8 or 16 bits.
    Png,
    /// JPEG, lossy, 8 bits, no alpha.
    Jpeg,
    /// TIFF (BigTIFF where it must be), lossless, 8 or 16 bits or floating point.
    Tiff,
    /// WebP; written without loss, 8 bits.
    Webp,
}

impl Format {
    /// Every format, in the order in which help texts list them.
    pub const ALL: [Self; 4] = [Self::Png, Self::Jpeg, Self::Tiff, Self::Webp];

    /// The lower-case name, which is also the usual file extension but for `jpeg`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Png => "png",
            Self::Jpeg => "jpeg",
            Self::Tiff => "tiff",
            Self::Webp => "webp",
        }
    }

    /// The media type.
    pub const fn media_type(self) -> &'static str {
        match self {
            Self::Png => "image/png",
            Self::Jpeg => "image/jpeg",
            Self::Tiff => "image/tiff",
            Self::Webp => "image/webp",
        }
    }

    /// The largest side in pixels that a file of this format can have.
    pub const fn max_side(self) -> u32 {
        match self {
            Self::Png => i32::MAX as u32,
            Self::Jpeg => 65_535,
            Self::Tiff => u32::MAX,
            Self::Webp => 16_383,
        }
    }

    /// The format that a file name's extension asks for.
    pub fn from_extension(extension: &str) -> Option<Self> {
        match extension.to_ascii_lowercase().as_str() {
            "png" => Some(Self::Png),
            "jpg" | "jpeg" => Some(Self::Jpeg),
            "tif" | "tiff" => Some(Self::Tiff),
            "webp" => Some(Self::Webp),
            _ => None,
        }
    }

    /// Whether a picture of `size`, `color` and `sample` can be written in this format; the error says why not.
    pub fn check(self, size: Size, color: Color, sample: Sample) -> Result<(), NotEncodable> {
        let refuse = |why| Err(NotEncodable { format: self, size, why });
        match self {
            _ if size.pixels() == 0 => refuse("a picture needs at least one pixel"),
            _ if size.width.max(size.height) > self.max_side() => refuse("a side is longer than the format allows"),
            Self::Jpeg if color.has_alpha() => refuse("the format has no alpha channel"),
            Self::Jpeg | Self::Webp if sample != Sample::U8 => refuse("the format has 8 bits per sample only"),
            Self::Png if sample == Sample::F32 => refuse("the format has no floating point samples"),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A format name that is none of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a format: png, jpeg, tiff or webp is wanted")]
pub struct NotAFormat(String);

impl FromStr for Format {
    type Err = NotAFormat;

    fn from_str(text: &str) -> Result<Self, NotAFormat> {
        Self::from_extension(text).ok_or_else(|| NotAFormat(text.to_owned()))
    }
}

/// Why a picture cannot be written in a format.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a {size} picture cannot be written as {format}: {why}")]
pub struct NotEncodable {
    /// The format asked for.
    pub format: Format,
    /// The picture's size.
    pub size: Size,
    /// What stands in the way.
    pub why: &'static str,
}

/// Which channels a picture has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Color {
    /// One channel.
    Grey,
    /// One channel and alpha.
    GreyAlpha,
    /// Red, green and blue.
    Rgb,
    /// Red, green, blue and alpha, not premultiplied.
    Rgba,
}

impl Color {
    /// Channels, alpha included.
    pub const fn channels(self) -> usize {
        match self {
            Self::Grey => 1,
            Self::GreyAlpha => 2,
            Self::Rgb => 3,
            Self::Rgba => 4,
        }
    }

    /// Whether the last channel is alpha.
    pub const fn has_alpha(self) -> bool {
        matches!(self, Self::GreyAlpha | Self::Rgba)
    }

    /// Whether there is a single colour channel.
    pub const fn is_grey(self) -> bool {
        matches!(self, Self::Grey | Self::GreyAlpha)
    }

    /// The same without alpha.
    pub const fn without_alpha(self) -> Self {
        match self {
            Self::Grey | Self::GreyAlpha => Self::Grey,
            Self::Rgb | Self::Rgba => Self::Rgb,
        }
    }
}

/// How one sample is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sample {
    /// 8 bits, 255 is white.
    U8,
    /// 16 bits, 65,535 is white.
    U16,
    /// 32-bit floating point, 1.0 is white.
    F32,
}

impl Sample {
    /// Bytes per sample.
    pub const fn bytes(self) -> usize {
        match self {
            Self::U8 => 1,
            Self::U16 => 2,
            Self::F32 => 4,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_format_refuses_what_it_cannot_hold() {
        let check = |format: Format, width, color, sample| format.check(Size::new(width, 1), color, sample).is_ok();
        assert!(check(Format::Png, 100_000, Color::Rgba, Sample::U16));
        assert!(check(Format::Tiff, 100_000, Color::Rgba, Sample::F32));
        assert!(!check(Format::Png, 1, Color::Rgb, Sample::F32));
        assert!(!check(Format::Jpeg, 65_536, Color::Rgb, Sample::U8));
        assert!(!check(Format::Jpeg, 1, Color::Rgba, Sample::U8));
        assert!(!check(Format::Webp, 16_384, Color::Rgb, Sample::U8));
        assert!(!check(Format::Webp, 1, Color::Rgb, Sample::U16));
        assert!(!check(Format::Png, 0, Color::Rgb, Sample::U8));
    }
}
