//! Sizes and regions of pixels.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Width and height in pixels, shown as `WxH`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Size {
    /// Pixels from left to right.
    pub width: u32,
    /// Pixels from top to bottom.
    pub height: u32,
}

impl Size {
    /// A size of `width` x `height` pixels.
    pub const fn new(width: u32, height: u32) -> Self {
        Self { width, height }
    }

    /// Pixels in all.
    pub const fn pixels(&self) -> u64 {
        self.width as u64 * self.height as u64
    }

    /// Both sides times `scale`, or `None` when a side no longer fits 32 bits.
    pub fn scaled(&self, scale: u32) -> Option<Self> {
        Some(Self { width: self.width.checked_mul(scale)?, height: self.height.checked_mul(scale)? })
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.width, self.height)
    }
}

/// A rectangle of pixels, shown as `WxH+X+Y`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Region {
    /// The leftmost column.
    pub x: u32,
    /// The topmost row.
    pub y: u32,
    /// Columns.
    pub width: u32,
    /// Rows.
    pub height: u32,
}

impl Region {
    /// The region of `width` x `height` pixels whose top left pixel is at (`x`, `y`).
    pub const fn new(x: u32, y: u32, width: u32, height: u32) -> Self {
        Self { x, y, width, height }
    }

    /// Its size.
    pub const fn size(&self) -> Size {
        Size { width: self.width, height: self.height }
    }

    /// The column after the last. Saturates, so that hostile input cannot wrap around.
    pub const fn right(&self) -> u32 {
        self.x.saturating_add(self.width)
    }

    /// The row after the last. Saturates like [`Region::right`].
    pub const fn bottom(&self) -> u32 {
        self.y.saturating_add(self.height)
    }

    /// Whether it has pixels and all of them lie within a picture of `size`.
    pub const fn is_within(&self, size: Size) -> bool {
        self.width > 0
            && self.height > 0
            && self.x as u64 + self.width as u64 <= size.width as u64
            && self.y as u64 + self.height as u64 <= size.height as u64
    }
}

impl fmt::Display for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}+{}+{}", self.width, self.height, self.x, self.y)
    }
}

/// A text that is not a region.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a region: WxH+X+Y is wanted, such as 512x512+480+0")]
pub struct NotARegion(String);

impl FromStr for Region {
    type Err = NotARegion;

    fn from_str(text: &str) -> Result<Self, NotARegion> {
        let parse = || {
            let (width, rest) = text.split_once('x')?;
            let (height, rest) = rest.split_once('+')?;
            let (x, y) = rest.split_once('+')?;
            let number = |part: &str| part.bytes().all(|c| c.is_ascii_digit()).then(|| part.parse().ok())?;
            Some(Self { x: number(x)?, y: number(y)?, width: number(width)?, height: number(height)? })
        };
        parse().ok_or_else(|| NotARegion(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_region_is_read_as_it_is_shown() {
        let region = Region::new(480, 0, 512, 7);
        assert_eq!(region.to_string(), "512x7+480+0");
        assert_eq!(region.to_string().parse(), Ok(region));
        for wrong in ["", "1x1", "1x1+0", "x+ +", "1x1+0+-1", "1x1+0+99999999999"] {
            assert!(wrong.parse::<Region>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_region_that_hangs_over_or_is_empty_is_not_within() {
        let picture = Size::new(10, 10);
        assert!(Region::new(0, 0, 10, 10).is_within(picture));
        assert!(!Region::new(1, 0, 10, 10).is_within(picture));
        assert!(!Region::new(0, 0, 0, 10).is_within(picture));
        assert!(!Region::new(u32::MAX, 0, u32::MAX, 1).is_within(picture));
    }
}
