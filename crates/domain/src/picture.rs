//! What a picture file is: format, colour and sample type, and how they may be combined.

use serde::{Deserialize, Serialize};

use crate::region::Size;

/// The file formats that are read and written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// PNG, 8 or 16 bits.
    Png,
    /// JPEG, 8 bits, without alpha.
    Jpeg,
    /// TIFF and BigTIFF, 8 or 16 bits or 32-bit float.
    Tiff,
    /// WebP, 8 bits; written without loss.
    Webp,
}

/// What a format can hold at all, whatever the configuration allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FormatLimits {
    /// The longest side, in pixels.
    pub max_side: u32,
    /// Whether pixels may be transparent.
    pub alpha: bool,
    /// The kinds of sample it can hold.
    pub samples: &'static [Sample],
    /// Whether its encoder holds the whole picture in memory instead of a few rows.
    pub whole_picture: bool,
}

impl Format {
    /// Every format.
    pub const ALL: [Self; 4] = [Self::Png, Self::Jpeg, Self::Tiff, Self::Webp];

    /// What this format can hold.
    pub const fn limits(self) -> FormatLimits {
        match self {
            Self::Png => FormatLimits {
                max_side: i32::MAX as u32,
                alpha: true,
                samples: &[Sample::U8, Sample::U16],
                whole_picture: false,
            },
            Self::Jpeg => FormatLimits { max_side: 65_535, alpha: false, samples: &[Sample::U8], whole_picture: true },
            Self::Tiff => FormatLimits {
                max_side: u32::MAX,
                alpha: true,
                samples: &[Sample::U8, Sample::U16, Sample::F32],
                whole_picture: false,
            },
            Self::Webp => FormatLimits { max_side: 16_383, alpha: true, samples: &[Sample::U8], whole_picture: true },
        }
    }

    /// The lower-case name, as configuration and the contract write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Png => "png",
            Self::Jpeg => "jpeg",
            Self::Tiff => "tiff",
            Self::Webp => "webp",
        }
    }

    /// Whether a picture of `size`, `color` and `sample` can be written in this format; the error says why not.
    pub fn check(self, size: Size, color: Color, sample: Sample) -> Result<(), NotEncodable> {
        let limits = self.limits();
        let refuse = |why| Err(NotEncodable { format: self, size, why });
        if size.pixels() == 0 {
            refuse("a picture needs at least one pixel")
        } else if size.width.max(size.height) > limits.max_side {
            refuse("a side is longer than the format allows")
        } else if color.has_alpha() && !limits.alpha {
            refuse("the format has no alpha channel")
        } else if !limits.samples.contains(&sample) {
            refuse("the format has no such samples")
        } else {
            Ok(())
        }
    }

    /// The usual file name extension, without the dot.
    pub const fn extension(self) -> &'static str {
        match self {
            Self::Png => "png",
            Self::Jpeg => "jpg",
            Self::Tiff => "tif",
            Self::Webp => "webp",
        }
    }

    /// The media type, as HTTP names it.
    pub const fn media_type(self) -> &'static str {
        match self {
            Self::Png => "image/png",
            Self::Jpeg => "image/jpeg",
            Self::Tiff => "image/tiff",
            Self::Webp => "image/webp",
        }
    }

    /// The format that a file name extension (any case, without the dot) asks for.
    pub fn from_extension(extension: &str) -> Option<Self> {
        match extension.to_ascii_lowercase().as_str() {
            "png" => Some(Self::Png),
            "jpg" | "jpeg" | "jpe" | "jfif" => Some(Self::Jpeg),
            "tif" | "tiff" | "btf" | "tf8" => Some(Self::Tiff),
            "webp" => Some(Self::Webp),
            _ => None,
        }
    }
}

/// A format name that is none of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a format: png, jpeg, tiff or webp is wanted")]
pub struct NotAFormat(String);

impl std::str::FromStr for Format {
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

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Png => "PNG",
            Self::Jpeg => "JPEG",
            Self::Tiff => "TIFF",
            Self::Webp => "WebP",
        })
    }
}

/// The channels of a pixel, in the order in which they are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Color {
    /// Grey.
    Grey,
    /// Grey, then alpha that is not multiplied in.
    GreyAlpha,
    /// Red, green, blue.
    Rgb,
    /// Red, green, blue, then alpha that is not multiplied in.
    Rgba,
}

impl Color {
    /// Every layout of channels.
    pub const ALL: [Self; 4] = [Self::Grey, Self::GreyAlpha, Self::Rgb, Self::Rgba];

    /// How many channels a pixel has, alpha included: 1 to 4.
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

    /// Whether the colour is one channel of grey.
    pub const fn is_grey(self) -> bool {
        matches!(self, Self::Grey | Self::GreyAlpha)
    }

    /// The same colour with or without alpha.
    pub const fn with_alpha(self, alpha: bool) -> Self {
        match (self.is_grey(), alpha) {
            (true, false) => Self::Grey,
            (true, true) => Self::GreyAlpha,
            (false, false) => Self::Rgb,
            (false, true) => Self::Rgba,
        }
    }
}

impl std::fmt::Display for Color {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Grey => "grey",
            Self::GreyAlpha => "grey with alpha",
            Self::Rgb => "RGB",
            Self::Rgba => "RGB with alpha",
        })
    }
}

/// How one sample is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sample {
    /// 8 bits, 0 to 255.
    U8,
    /// 16 bits, 0 to 65535.
    U16,
    /// 32-bit float, 0 to 1.
    F32,
}

impl Sample {
    /// The size of one sample: 1, 2 or 4.
    pub const fn bytes(self) -> usize {
        match self {
            Self::U8 => 1,
            Self::U16 => 2,
            Self::F32 => 4,
        }
    }
}

impl std::fmt::Display for Sample {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::U8 => "8-bit",
            Self::U16 => "16-bit",
            Self::F32 => "float",
        })
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
