//! At which sizes segments are worked on (reference: detailers.md, sections 4 and 6).
//!
//! Everything is float64 in the order given: several sizes sit on the edge of a whole number.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::region::{Corners, Region, Size};

/// Pixels a side of a latent position.
pub const LATENT_PIXELS: u32 = 8;

/// The box about a thing that was found, `(x1, y1, x2, y2)`: the second corner is exclusive. Some finders give fractions.
///
/// In JSON it is `[x1, y1, x2, y2]`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(from = "[f64; 4]", into = "[f64; 4]")]
pub struct Bbox {
    /// Its left edge.
    pub x1: f64,
    /// Its upper edge.
    pub y1: f64,
    /// Its right edge.
    pub x2: f64,
    /// Its lower edge.
    pub y2: f64,
}

impl Bbox {
    /// From left to right; negative where the corners are inside out.
    pub fn width(&self) -> f64 {
        self.x2 - self.x1
    }

    /// From top to bottom; negative where the corners are inside out.
    pub fn height(&self) -> f64 {
        self.y2 - self.y1
    }
}

impl From<[f64; 4]> for Bbox {
    fn from([x1, y1, x2, y2]: [f64; 4]) -> Self {
        Self { x1, y1, x2, y2 }
    }
}

impl From<Bbox> for [f64; 4] {
    fn from(Bbox { x1, y1, x2, y2 }: Bbox) -> Self {
        [x1, y1, x2, y2]
    }
}

impl From<Corners> for Bbox {
    fn from(Corners { x1, y1, x2, y2 }: Corners) -> Self {
        Self { x1: x1 as f64, y1: y1 as f64, x2: x2 as f64, y2: y2 as f64 }
    }
}

impl fmt::Display for Bbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "({}, {}, {}, {})", self.x1, self.y1, self.x2, self.y2)
    }
}

/// A box that no enlargement can be measured by.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[error("the bbox {bbox} of a segment has no width or no height")]
pub struct EmptyBox {
    /// The box.
    pub bbox: Bbox,
}

/// How large a segment is redrawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DetailSize {
    /// What the shorter side is enlarged to.
    pub guide_size: f64,
    /// Whether the shorter side is that of the bounding box, not that of the crop.
    pub guide_size_for_bbox: bool,
    /// What the longer side of the crop may become.
    pub max_size: f64,
    /// Redraws segments that are large enough already, too.
    pub force_inpaint: bool,
}

impl DetailSize {
    /// The size that a crop is redrawn at, or `None` where the segment keeps its pixels.
    ///
    /// The side that the enlargement is measured by must be above 0; such a segment is refused. A crop that would
    /// shrink is redrawn at its own size, however far beyond `max_size` that is.
    pub fn of(&self, crop: Size, bbox: Bbox) -> Result<Option<Size>, EmptyBox> {
        let (width, height) = (bbox.width(), bbox.height());
        if !self.force_inpaint && width >= self.guide_size && height >= self.guide_size {
            return Ok(None);
        }
        let shortest =
            if self.guide_size_for_bbox { width.min(height) } else { f64::from(crop.width.min(crop.height)) };
        if shortest <= 0.0 {
            return Err(EmptyBox { bbox });
        }
        let mut factor = self.guide_size / shortest;
        let scaled =
            |factor: f64| Size::new((f64::from(crop.width) * factor) as u32, (f64::from(crop.height) * factor) as u32);
        let mut size = scaled(factor);
        let longest = f64::from(size.width.max(size.height));
        if longest > self.max_size {
            factor *= self.max_size / longest;
            size = scaled(factor);
        }
        if factor <= 1.0 || size.pixels() == 0 {
            return Ok(self.force_inpaint.then_some(crop));
        }
        Ok(Some(size))
    }
}

/// The middle of a picture whose sides are multiples of 8, which is what a VAE encodes.
pub fn multiples_of_8(size: Size) -> Region {
    let axis = |length: u32| (length % LATENT_PIXELS / 2, length / LATENT_PIXELS * LATENT_PIXELS);
    let ((x, width), (y, height)) = (axis(size.width), axis(size.height));
    Region { x, y, width, height }
}

/// The size of the latent of a picture; 0 where a side is shorter than 8 pixels.
pub fn latent_size(picture: Size) -> Size {
    Size::new(picture.width / LATENT_PIXELS, picture.height / LATENT_PIXELS)
}

/// The size at which `SEGSUpscalerPipe` redraws a crop: a little larger where a side is no multiple of 8, so that the VAE
/// does not cut too much.
///
/// The new sides need not be multiples of 8 either. A crop without pixels stays as it is.
pub fn to_at_least_8(crop: Size) -> Size {
    let whole = crop.width.is_multiple_of(LATENT_PIXELS) && crop.height.is_multiple_of(LATENT_PIXELS);
    if whole || crop.pixels() == 0 {
        return crop;
    }
    let factor = 8.0 / f64::from(crop.width.min(crop.height)) + 1.0;
    let side = |length: u32| (f64::from(length) * factor) as u32;
    Size::new(side(crop.width), side(crop.height))
}

/// The size that `SEGSUpscalerPipe` makes of a picture, or `None` where a side would be 0 or not fit 32 bits.
pub fn rescaled(picture: Size, rescale_factor: f64) -> Option<Size> {
    let side = |length: u32| {
        let side = (f64::from(length) * rescale_factor).trunc();
        (1.0..=f64::from(u32::MAX)).contains(&side).then_some(side as u32)
    };
    Some(Size::new(side(picture.width)?, side(picture.height)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: DetailSize =
        DetailSize { guide_size: 64.0, guide_size_for_bbox: true, max_size: 128.0, force_inpaint: false };

    fn bbox(width: i64, height: i64) -> Bbox {
        Corners::new(3, 3, 3 + width, 3 + height).into()
    }

    #[test]
    fn a_large_segment_keeps_its_pixels_unless_forced() {
        let crop = Size::new(200, 150);
        assert_eq!(SIZE.of(crop, bbox(80, 64)), Ok(None));
        assert_eq!(DetailSize { force_inpaint: true, ..SIZE }.of(crop, bbox(80, 64)), Ok(Some(crop)));
    }

    #[test]
    fn the_longer_side_is_capped() {
        assert_eq!(SIZE.of(Size::new(60, 20), bbox(32, 16)), Ok(Some(Size::new(128, 42))));
    }

    #[test]
    fn a_box_without_pixels_is_refused() {
        assert!(SIZE.of(Size::new(10, 10), bbox(0, 6)).is_err());
        assert!(SIZE.of(Size::new(10, 10), bbox(-4, 6)).is_err());
        let by_crop = DetailSize { guide_size_for_bbox: false, ..SIZE };
        assert_eq!(by_crop.of(Size::new(32, 40), bbox(0, 6)), Ok(Some(Size::new(64, 80))), "nobody asks for the box");
    }

    #[test]
    fn the_vae_cuts_evenly() {
        assert_eq!(multiples_of_8(Size::new(21, 16)), Region::new(2, 0, 16, 16));
        assert_eq!(latent_size(Size::new(21, 16)), Size::new(2, 2));
    }

    #[test]
    fn a_crop_that_the_vae_would_cut_is_enlarged() {
        assert_eq!(to_at_least_8(Size::new(64, 48)), Size::new(64, 48));
        assert_eq!(to_at_least_8(Size::new(50, 36)), Size::new(61, 44));
    }

    #[test]
    fn a_rescaled_side_is_cut_off_and_never_nothing() {
        assert_eq!(rescaled(Size::new(33, 47), 1.37), Some(Size::new(45, 64)));
        assert_eq!(rescaled(Size::new(33, 1), 0.75), None);
        assert_eq!(rescaled(Size::new(u32::MAX, 9), 1.5), None);
    }
}
