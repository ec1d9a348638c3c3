//! Segments that cover a picture like tiles: `MakeTileSEGS` (reference: pixels.md, section 8.3).

use std::str::FromStr;

use domain::region::{Corners, Size};

use super::{
    Seg, Segs,
    from_mask::{MaskToSegs, fill},
    make_crop_region,
};
use crate::{frames::PixelError, mask::Mask};

/// How masks with irregular edges are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IrregularMaskMode {
    /// One drawing of 128 pixels a side for all tiles.
    ReuseFast,
    /// One drawing of 512 pixels a side for all tiles.
    ReuseQuality,
    /// A drawing per tile, of 512 pixels a side in spite of the name.
    AllRandomFast,
    /// A drawing of 512 pixels a side per tile.
    AllRandomQuality,
}

impl IrregularMaskMode {
    /// Side of a drawing in pixels.
    fn quality(self) -> u32 {
        if self == Self::ReuseFast { 128 } else { 512 }
    }

    fn reuses(self) -> bool {
        matches!(self, Self::ReuseFast | Self::ReuseQuality)
    }
}

impl FromStr for IrregularMaskMode {
    type Err = PixelError;

    fn from_str(name: &str) -> Result<Self, PixelError> {
        Ok(match name {
            "Reuse fast" => Self::ReuseFast,
            "Reuse quality" => Self::ReuseQuality,
            "All random fast" => Self::AllRandomFast,
            "All random quality" => Self::AllRandomQuality,
            _ => {
                let want = "Reuse fast, Reuse quality, All random fast or All random quality";
                return Err(PixelError::Unknown { what: "irregular mask mode", name: name.to_owned(), want });
            }
        })
    }
}

/// The node's parameters.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MakeTileSegs {
    /// Side of a tile.
    pub bbox_size: i64,
    /// How many times as large as its tile a crop region is.
    pub crop_factor: f64,
    /// What neighbouring tiles share at least.
    pub min_overlap: i64,
    /// Grows or shrinks the filters' masks.
    pub filter_segs_dilation: i64,
    /// 0 for tiles with straight edges, up to 1.
    pub mask_irregularity: f64,
    /// How irregular masks are drawn.
    pub irregular_mask_mode: IrregularMaskMode,
}

/// The part of a drawing's side, in pixels, that an irregularity roughens.
fn roughness(quality: u32, irregularity: f64) -> i64 {
    ((f64::from(quality) * irregularity / 4.0) as i64).max(6)
}

impl MakeTileSegs {
    /// Covers a picture of `size`, leaving out what `filter_out` holds and keeping to what `filter_in` holds.
    ///
    /// `draw` makes the irregular masks: one of the side given, with edges as rough as the irregularity given, such as
    /// [`Drawing::draw`]. A minimal overlap that the picture's size leaves no room for is refused.
    pub fn run(
        &self,
        size: Size,
        filter_in: Option<&Segs>,
        filter_out: Option<&Segs>,
        mut draw: impl FnMut(u32, f64) -> Mask,
    ) -> Result<Segs, PixelError> {
        let (mut bbox_size, mut min_overlap) = (self.bbox_size, self.min_overlap as f64);
        if bbox_size as f64 <= 2.0 * min_overlap {
            min_overlap = bbox_size as f64 / 2.0;
        }
        let irregular = self.mask_irregularity > 0.0;
        let quality = self.irregular_mask_mode.quality();
        if irregular {
            let rough = roughness(quality, self.mask_irregularity);
            min_overlap += rough as f64;
            bbox_size += 2 * rough;
        }
        let filter = |segs: Option<&Segs>| {
            segs.map(|segs| Ok::<_, PixelError>(segs.combined_mask()?.resize(size)?.dilate(self.filter_segs_dilation)))
                .transpose()
        };
        let (excluded, included) = (filter(filter_out)?, filter(filter_in)?);

        let area = match &included {
            None => Corners::new(0, 0, i64::from(size.width), i64::from(size.height)),
            Some(mask) => match area_of(mask) {
                Some(area) => area,
                None => return Ok(Segs { header: size, segs: Vec::new() }),
            },
        };
        if bbox_size > area.width() || bbox_size > area.height() {
            bbox_size = bbox_size.min(area.width()).min(area.height());
        }
        let (columns, step_x) = grid(area.width(), bbox_size, min_overlap)?;
        let (rows, step_y) = grid(area.height(), bbox_size, min_overlap)?;
        let reused = (irregular && self.irregular_mask_mode.reuses()).then(|| draw(quality, self.mask_irregularity));

        let mut segs = Vec::new();
        for row in 0..rows {
            let (y1, y2) = snapped(area.y1 + row * step_y, bbox_size, size.height);
            for column in 0..columns {
                let (x1, x2) = snapped(area.x1 + column * step_x, bbox_size, size.width);
                let bbox = Corners { x1, y1, x2, y2 };
                let crop_region = make_crop_region(size, &bbox, self.crop_factor, None);
                let mut mask = Mask::zeros(crop_region.size()?);
                let Corners { x1: left, y1: top, .. } = crop_region;
                let inner = Corners::new(x1 - left, y1 - top, x2 - left, y2 - top);
                if irregular {
                    let drawn = match &reused {
                        Some(drawn) => drawn.clone(),
                        None => draw(512, self.mask_irregularity),
                    };
                    place_irregular(&mut mask, &inner, &drawn)?;
                } else {
                    fill(&mut mask, &inner);
                }
                clear_where(&mut mask, excluded.as_ref(), &crop_region, |x| x != 0.0);
                clear_where(&mut mask, included.as_ref(), &crop_region, |x| x == 0.0);
                if !mask.is_zero() {
                    let (cropped_image, label) = (None, String::new());
                    segs.push(Seg { cropped_image, cropped_mask: mask, confidence: 1.0, crop_region, bbox, label });
                }
            }
        }
        Ok(Segs { header: size, segs })
    }
}

/// The crop region of all that an inclusion mask holds: like a combined segment, without its last row and column.
fn area_of(mask: &Mask) -> Option<Corners> {
    let combined = MaskToSegs {
        combined: true,
        crop_factor: 1.0,
        bbox_fill: false,
        drop_size: 1,
        contour_fill: false,
        crop_min_size: None,
    };
    combined.run(mask).segs.first().map(|seg| seg.crop_region)
}

/// How many tiles an axis of `length` takes, and how far they are apart.
fn grid(length: i64, bbox_size: i64, min_overlap: f64) -> Result<(i64, i64), PixelError> {
    let step = bbox_size as f64 - min_overlap;
    if step == 0.0 {
        return Err(PixelError::NoStep { min_overlap, bbox_size });
    }
    let mut count = (length as f64 / step).ceil() as i64;
    let slack = |count: i64| bbox_size * count - length;
    if slack(count) < 0 {
        count += 1;
    }
    let overlap = if count == 1 { 0 } else { (slack(count) as f64 / (count - 1) as f64) as i64 };
    if overlap == bbox_size {
        count = 1;
    }
    Ok((count, bbox_size - overlap))
}

/// A tile from `at` on; one that ends in the last two lines of the picture is moved to its edge.
fn snapped(at: i64, bbox_size: i64, limit: u32) -> (i64, i64) {
    let limit = i64::from(limit);
    if at + bbox_size < limit - 1 { (at, at + bbox_size) } else { (limit - bbox_size, limit) }
}

/// Sets the mask to 0 wherever the part of `filter` over the crop region holds a value that `clears`.
fn clear_where(mask: &mut Mask, filter: Option<&Mask>, crop_region: &Corners, clears: impl Fn(f32) -> bool) {
    if let Some(filter) = filter {
        let filter = filter.crop(crop_region);
        mask.data.iter_mut().zip(&filter.data).filter(|(_, f)| clears(**f)).for_each(|(x, _)| *x = 0.0);
    }
}

/// Puts a drawing into the `inner` part of a mask. Where that touches the mask's edge, an eighth of it is set in full.
fn place_irregular(mask: &mut Mask, inner: &Corners, drawn: &Mask) -> Result<(), PixelError> {
    let drawn = drawn.resize(inner.size()?)?;
    for (y, row) in (inner.y1..).zip(drawn.data.chunks_exact(drawn.width)) {
        mask.row_mut(y as usize)[inner.x1 as usize..inner.x2 as usize].copy_from_slice(row);
    }
    let (across, down) = (inner.width() / 8, inner.height() / 8);
    let touching = [
        (inner.x1 == 0, Corners { x2: inner.x1 + across, ..*inner }),
        (inner.y1 == 0, Corners { y2: inner.y1 + down, ..*inner }),
        (inner.x2 == mask.width as i64, Corners { x1: inner.x2 - across, ..*inner }),
        (inner.y2 == mask.height as i64, Corners { y1: inner.y2 - down, ..*inner }),
    ];
    touching.iter().filter(|(touches, _)| *touches).for_each(|(_, edge)| fill(mask, edge));
    Ok(())
}

/// Draws masks with irregular edges out of a seed. The reference draws without one; only the kind of shape is alike.
#[derive(Debug, Clone)]
pub struct Drawing {
    state: u64,
}

impl Drawing {
    /// The drawings of `seed`.
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// The next number: Steele, Lea and Flood's SplitMix64.
    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.state ^ (self.state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A square of `side` pixels, set but for a rough edge: discs along the sides of an inset rectangle.
    pub fn draw(&mut self, side: u32, irregularity: f64) -> Mask {
        let rough = roughness(side, irregularity);
        let length = i64::from(side);
        let (low, high) = (rough.min(length / 2), (length - rough).max(length / 2));
        let mut mask = Mask::zeros(Size::new(side, side));
        fill(&mut mask, &Corners::new(low, low, high, high));
        for (from, to) in [((low, low), (1, 0)), ((high, low), (0, 1)), ((low, high), (1, 0)), ((low, low), (0, 1))] {
            let mut walked = 0;
            while walked < high - low {
                let radius = 5 + (self.next() % (rough - 5) as u64) as i64;
                disc(&mut mask, from.0 + to.0 * walked, from.1 + to.1 * walked, radius);
                walked += radius;
            }
        }
        mask
    }
}

/// Sets a filled disc.
fn disc(mask: &mut Mask, x: i64, y: i64, radius: i64) {
    for dy in -radius..=radius {
        let half = ((radius * radius - dy * dy) as f64).sqrt() as i64;
        fill(mask, &Corners::new(x - half, y + dy, x + half + 1, y + dy + 1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: MakeTileSegs = MakeTileSegs {
        bbox_size: 64,
        crop_factor: 1.0,
        min_overlap: 0,
        filter_segs_dilation: 0,
        mask_irregularity: 0.0,
        irregular_mask_mode: IrregularMaskMode::ReuseFast,
    };

    #[test]
    fn an_overlap_as_large_as_the_tile_is_refused() {
        let node = MakeTileSegs { bbox_size: 128, min_overlap: 60, ..NODE };
        let drawing = |side, irregularity| Drawing::new(1).draw(side, irregularity);
        let refused = node.run(Size::new(60, 60), None, None, drawing).unwrap_err();
        assert_eq!(refused.to_string(), "an overlap of 60 pixels leaves no step between tiles of 60 pixels");
    }

    #[test]
    fn drawings_follow_their_seed_and_fill_the_middle() {
        let draw = |seed| Drawing::new(seed).draw(128, 0.5);
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
        assert!(draw(7).crop(&Corners::new(16, 16, 112, 112)).data.iter().all(|&x| x == 1.0));
        assert!(draw(7).data.contains(&0.0));
    }

    #[test]
    fn an_irregular_tile_is_whole_at_the_pictures_edge() {
        let node = MakeTileSegs { mask_irregularity: 0.4, ..NODE };
        let mut drawing = Drawing::new(3);
        let segs = node.run(Size::new(100, 100), None, None, |side, rough| drawing.draw(side, rough)).unwrap();
        let first = &segs.segs[0];
        assert_eq!((first.crop_region.x1, first.crop_region.y1), (0, 0));
        assert!(first.cropped_mask.crop(&Corners::new(0, 0, 8, 64)).data.iter().all(|&x| x == 1.0));
    }
}
