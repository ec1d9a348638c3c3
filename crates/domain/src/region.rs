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

    /// The pixels that it shares with `other`, or `None` where there are none.
    pub fn intersection(&self, other: &Self) -> Option<Self> {
        let (x, y) = (self.x.max(other.x), self.y.max(other.y));
        let (right, bottom) = (self.right().min(other.right()), self.bottom().min(other.bottom()));
        (x < right && y < bottom).then(|| Self::new(x, y, right - x, bottom - y))
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

/// A region by its corners, as SEGS hold it, shown as `(x1, y1, x2, y2)`: the second corner is exclusive.
///
/// Unlike a [`Region`] it may be empty, inside out, or reach beyond the picture. In JSON it is `[x1, y1, x2, y2]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(from = "[i64; 4]", into = "[i64; 4]")]
pub struct Corners {
    /// The first column.
    pub x1: i64,
    /// The first row.
    pub y1: i64,
    /// The column after the last.
    pub x2: i64,
    /// The row after the last.
    pub y2: i64,
}

/// A region without pixels where pixels are needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the region {region} of a segment is empty")]
pub struct EmptyRegion {
    /// The region.
    pub region: Corners,
}

impl Corners {
    /// The region between two corners.
    pub const fn new(x1: i64, y1: i64, x2: i64, y2: i64) -> Self {
        Self { x1, y1, x2, y2 }
    }

    /// Columns, negative where the corners are inside out. Saturates, so that hostile input cannot wrap around.
    pub const fn width(&self) -> i64 {
        self.x2.saturating_sub(self.x1)
    }

    /// Rows, negative where the corners are inside out. Saturates like [`Corners::width`].
    pub const fn height(&self) -> i64 {
        self.y2.saturating_sub(self.y1)
    }

    /// Width and height, or the refusal of a region without pixels.
    pub fn size(&self) -> Result<Size, EmptyRegion> {
        match (u32::try_from(self.width()), u32::try_from(self.height())) {
            (Ok(width @ 1..), Ok(height @ 1..)) => Ok(Size { width, height }),
            _ => Err(EmptyRegion { region: *self }),
        }
    }

    /// The part that lies within a picture of `size`, which may be nothing.
    pub fn within(&self, size: Size) -> Region {
        let clip = |from: i64, to: i64, limit: u32| {
            let from = from.clamp(0, i64::from(limit));
            (from as u32, (to.clamp(from, i64::from(limit)) - from) as u32)
        };
        let (x, width) = clip(self.x1, self.x2, size.width);
        let (y, height) = clip(self.y1, self.y2, size.height);
        Region { x, y, width, height }
    }
}

impl From<[i64; 4]> for Corners {
    fn from([x1, y1, x2, y2]: [i64; 4]) -> Self {
        Self { x1, y1, x2, y2 }
    }
}

impl From<Corners> for [i64; 4] {
    fn from(Corners { x1, y1, x2, y2 }: Corners) -> Self {
        [x1, y1, x2, y2]
    }
}

impl From<Region> for Corners {
    fn from(region: Region) -> Self {
        let Region { x, y, width, height } = region;
        Self::new(x.into(), y.into(), i64::from(x) + i64::from(width), i64::from(y) + i64::from(height))
    }
}

impl fmt::Display for Corners {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "({}, {}, {}, {})", self.x1, self.y1, self.x2, self.y2)
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

    #[test]
    fn corners_are_cut_to_the_picture() {
        let picture = Size::new(10, 8);
        assert_eq!(Corners::new(-3, 2, 4, 99).within(picture), Region::new(0, 2, 4, 6));
        assert_eq!(Corners::new(5, 5, 2, 9).within(picture).size().pixels(), 0);
        assert_eq!(Corners::from(Region::new(1, 2, 3, 4)), Corners::new(1, 2, 4, 6));
        assert!(Corners::new(i64::MIN, 0, i64::MAX, 1).size().is_err());
        assert_eq!(serde_json::to_string(&Corners::new(-1, 0, 2, 3)).unwrap(), "[-1,0,2,3]");
    }

    #[test]
    fn regions_that_only_meet_share_no_pixel() {
        let region = Region::new(2, 2, 4, 4);
        assert_eq!(region.intersection(&Region::new(5, 0, 9, 3)), Some(Region::new(5, 2, 1, 1)));
        assert_eq!(region.intersection(&Region::new(6, 2, 4, 4)), None);
    }
}
