//! Segments that cover a picture like tiles: `MakeTileSEGS` (reference: pixels.md, section 8.3).

use std::str::FromStr;

use domain::region::{Corners, Region, Size};

use super::{
    Seg, Segs,
    from_mask::{MaskToSegs, fill},
    make_crop_region, rows,
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
    /// The segments of [`MakeTileSegs::plan`] all at once, for small pictures.
    pub fn run(
        &self,
        size: Size,
        filter_in: Option<&Segs>,
        filter_out: Option<&Segs>,
        draw: impl FnMut(u32, f64) -> Mask,
    ) -> Result<Segs, PixelError> {
        let combined = |segs: Option<&Segs>| segs.map(Segs::combined_mask).transpose();
        let tiles = self.plan(size, combined(filter_in)?, combined(filter_out)?, draw)?;
        Ok(Segs { header: size, segs: tiles.collect::<Result<_, _>>()? })
    }

    /// Plans how a picture of `size` is covered, leaving out what the mask `filter_out` holds and keeping to what
    /// `filter_in` holds: the [combined](super::CombinedMask) masks of SEGS.
    ///
    /// `draw` makes the irregular masks: one of the side given, with edges as rough as the irregularity given, such as
    /// [`Drawing::draw`]. A minimal overlap that the picture's size leaves no room for is refused.
    pub fn plan<D: FnMut(u32, f64) -> Mask>(
        &self,
        size: Size,
        filter_in: Option<Mask>,
        filter_out: Option<Mask>,
        mut draw: D,
    ) -> Result<TileSegs<D>, PixelError> {
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
        let mut area = Some(Region::new(0, 0, size.width, size.height).into());
        let mut kept = None;
        if let Some(mask) = self.filter(size, filter_in)? {
            area = MaskToSegs::combined_region(&mask);
            keep(&mut kept, &mask, |included| included != 0.0);
        }
        if let Some(mask) = self.filter(size, filter_out)? {
            keep(&mut kept, &mask, |excluded| excluded == 0.0);
        }
        let mut tiles = TileSegs {
            size,
            crop_factor: self.crop_factor,
            columns: Axis::default(),
            rows: Axis::default(),
            edges: Edges::Straight,
            kept,
            next: 0,
            most: 0,
        };
        let Some(area) = area else { return Ok(tiles) };
        let bbox_size = bbox_size.min(area.width()).min(area.height());
        tiles.columns = Axis::new(area.x1, area.width(), bbox_size, min_overlap, size.width)?;
        tiles.rows = Axis::new(area.y1, area.height(), bbox_size, min_overlap, size.height)?;
        if irregular {
            let irregularity = self.mask_irregularity;
            tiles.edges = if self.irregular_mask_mode.reuses() {
                let side = Corners::new(0, 0, bbox_size, bbox_size).size()?;
                Edges::Reused(draw(quality, irregularity).resize(side)?)
            } else {
                Edges::Drawn { draw, quality, irregularity }
            };
        }
        tiles.most = match tiles.kept {
            None => tiles.tiles(),
            Some(_) => (0..tiles.tiles()).filter(|&index| tiles.is_kept(&tiles.regions(index))).count() as u64,
        };
        Ok(tiles)
    }

    /// The mask of a filter, as large as the picture and dilated.
    fn filter(&self, size: Size, mask: Option<Mask>) -> Result<Option<Mask>, PixelError> {
        let Some(mask) = mask else { return Ok(None) };
        let mask = if mask.size() == size { mask } else { mask.resize(size)? };
        Ok(Some(mask.dilate(self.filter_segs_dilation)))
    }
}

/// Leaves out of the pixels that are `kept`, at first all, those at which `mask` does not let them be.
fn keep(kept: &mut Option<Vec<bool>>, mask: &Mask, lets: impl Fn(f32) -> bool) {
    let kept = kept.get_or_insert_with(|| vec![true; mask.data.len()]);
    kept.iter_mut().zip(&mask.data).for_each(|(kept, &value)| *kept &= lets(value));
}

/// The tiles of an axis of the picture.
#[derive(Debug, Clone, Copy, Default)]
struct Axis {
    /// Where the first begins.
    from: i64,
    /// How far they are apart.
    step: i64,
    /// How many there are.
    count: u64,
    /// Their side.
    bbox_size: i64,
    /// The picture's side.
    limit: i64,
}

impl Axis {
    /// Covers `length` pixels from `from` on of a side of `limit`; an overlap may leave no tile at all.
    fn new(from: i64, length: i64, bbox_size: i64, min_overlap: f64, limit: u32) -> Result<Self, PixelError> {
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
        let (step, count) = (bbox_size - overlap, u64::try_from(count).unwrap_or(0));
        Ok(Self { from, step, count, bbox_size, limit: limit.into() })
    }

    /// Where tile `index` begins and ends; one that ends in the last two lines of the picture is moved to its edge.
    fn tile(&self, index: u64) -> (i64, i64) {
        let at = self.from + index as i64 * self.step;
        if at + self.bbox_size < self.limit - 1 {
            (at, at + self.bbox_size)
        } else {
            (self.limit - self.bbox_size, self.limit)
        }
    }
}

/// The edges of tiles.
enum Edges<D> {
    Straight,
    /// One drawing for all tiles, as large as they are.
    Reused(Mask),
    /// A drawing per tile, also for those that filters leave out: the others do not depend on them.
    Drawn {
        draw: D,
        quality: u32,
        irregularity: f64,
    },
}

/// The tiles of a picture as segments, row by row, to be taken one after the other.
///
/// It holds no masks of segments: each is made when it is taken. What it holds is one drawing, and where there are
/// filters a byte for each pixel of the picture.
pub struct TileSegs<D> {
    size: Size,
    crop_factor: f64,
    columns: Axis,
    rows: Axis,
    edges: Edges<D>,
    /// The pixels that the filters keep, where there are filters.
    kept: Option<Vec<bool>>,
    /// The next tile.
    next: u64,
    most: u64,
}

impl<D: FnMut(u32, f64) -> Mask> Iterator for TileSegs<D> {
    type Item = Result<Seg, PixelError>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.next < self.tiles() {
            self.next += 1;
            if let Some(seg) = self.seg(self.next - 1).transpose() {
                return Some(seg);
            }
        }
        None
    }
}

impl<D: FnMut(u32, f64) -> Mask> TileSegs<D> {
    /// How many segments there are: as many as there are tiles of which the filters keep something. Irregular ones may
    /// be fewer, as what is kept may lie beyond their edges.
    pub fn most(&self) -> u64 {
        self.most
    }

    /// The size that no segment's mask is larger than.
    pub fn largest(&self) -> Size {
        let side = |axis: &Axis| (axis.bbox_size as f64 * self.crop_factor).ceil().min(axis.limit as f64) as u32;
        Size::new(side(&self.columns), side(&self.rows))
    }

    /// How many drawings the segments take: one for each tile, also for those that filters leave out, or none.
    pub fn drawings(&self) -> u64 {
        match self.edges {
            Edges::Straight | Edges::Reused(_) => 0,
            Edges::Drawn { .. } => self.tiles(),
        }
    }

    /// How many tiles the picture is covered with, before filters.
    fn tiles(&self) -> u64 {
        self.columns.count * self.rows.count
    }

    /// Tile `index`, and the crop region around it.
    fn regions(&self, index: u64) -> (Corners, Corners) {
        let (x1, x2) = self.columns.tile(index % self.columns.count);
        let (y1, y2) = self.rows.tile(index / self.columns.count);
        let bbox = Corners { x1, y1, x2, y2 };
        (bbox, make_crop_region(self.size, &bbox, self.crop_factor, None))
    }

    /// Whether the filters keep a pixel of a tile.
    fn is_kept(&self, (bbox, crop_region): &(Corners, Corners)) -> bool {
        let Some(kept) = &self.kept else { return true };
        let Some(shared) = bbox.within(self.size).intersection(&crop_region.within(self.size)) else { return false };
        rows(shared, self.size).any(|row| kept[row].contains(&true))
    }

    /// The segment of tile `index`, if anything is left of it.
    fn seg(&mut self, index: u64) -> Result<Option<Seg>, PixelError> {
        let regions = self.regions(index);
        let drawn = match &mut self.edges {
            Edges::Straight | Edges::Reused(_) => None,
            Edges::Drawn { draw, quality, irregularity } => Some(draw(*quality, *irregularity)),
        };
        if !self.is_kept(&regions) {
            return Ok(None);
        }
        let (bbox, crop_region) = regions;
        let mut mask = Mask::zeros(crop_region.size()?);
        let Corners { x1: left, y1: top, .. } = crop_region;
        let inner = Corners::new(bbox.x1 - left, bbox.y1 - top, bbox.x2 - left, bbox.y2 - top);
        match (&self.edges, drawn) {
            (Edges::Reused(drawn), _) => place_irregular(&mut mask, &inner, drawn),
            (_, Some(drawn)) => place_irregular(&mut mask, &inner, &drawn.resize(inner.size()?)?),
            (_, None) => fill(&mut mask, &inner),
        }
        if let Some(kept) = &self.kept {
            let kept = rows(crop_region.within(self.size), self.size).flat_map(|row| &kept[row]);
            mask.data.iter_mut().zip(kept).filter(|(_, kept)| !**kept).for_each(|(value, _)| *value = 0.0);
        }
        let (cropped_image, label) = (None, String::new());
        let seg = Seg { cropped_image, cropped_mask: mask, confidence: 1.0, crop_region, bbox, label };
        Ok(Some(seg).filter(|seg| !seg.cropped_mask.is_zero()))
    }
}

/// Puts a drawing as large as a tile into the `inner` part of a mask. Where that touches the mask's edge, an eighth of it
/// is set in full.
fn place_irregular(mask: &mut Mask, inner: &Corners, drawn: &Mask) {
    // Where a crop is hardly larger than its tile, rounding may leave the tile's last line outside.
    let placed = inner.within(mask.size());
    for (y, row) in (placed.y..placed.bottom()).zip(drawn.data.chunks_exact(drawn.width)) {
        mask.row_mut(y as usize)[placed.x as usize..placed.right() as usize]
            .copy_from_slice(&row[..placed.width as usize]);
    }
    let (across, down) = (inner.width() / 8, inner.height() / 8);
    let touching = [
        (inner.x1 == 0, Corners { x2: inner.x1 + across, ..*inner }),
        (inner.y1 == 0, Corners { y2: inner.y1 + down, ..*inner }),
        (inner.x2 == mask.width as i64, Corners { x1: inner.x2 - across, ..*inner }),
        (inner.y2 == mask.height as i64, Corners { y1: inner.y2 - down, ..*inner }),
    ];
    touching.iter().filter(|(touches, _)| *touches).for_each(|(_, edge)| fill(mask, edge));
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
    use crate::segs::CombinedMask;

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

    fn ones(side: u32, _: f64) -> Mask {
        Mask::zeros(Size::new(side, side)).map(|_| 1.0)
    }

    #[test]
    fn a_mask_is_made_when_its_segment_is_taken() {
        let irregular_mask_mode = IrregularMaskMode::AllRandomQuality;
        let node =
            MakeTileSegs { bbox_size: 768, crop_factor: 1.5, mask_irregularity: 0.1, irregular_mask_mode, ..NODE };
        let made = std::cell::Cell::new(0);
        let draw = |side, irregularity| {
            made.set(made.get() + 1);
            ones(side, irregularity)
        };
        let mut tiles = node.plan(Size::new(20_000, 20_000), None, None, draw).unwrap();
        assert_eq!((tiles.most(), tiles.largest(), made.get()), (26 * 26, Size::new(1188, 1188), 0));
        for taken in 1..=3 {
            let seg = tiles.next().unwrap().unwrap();
            assert_eq!((seg.bbox.width(), made.get()), (792, taken));
        }
        let straight = MakeTileSegs { mask_irregularity: 0.0, ..node };
        let segs = straight.plan(Size::new(20_000, 20_000), None, None, ones).unwrap();
        assert_eq!(segs.most(), 27 * 27);
    }

    #[test]
    fn filters_keep_what_they_say_and_are_counted_beforehand() {
        let size = Size::new(256, 128);
        let mut held = CombinedMask::new(size);
        held.add_full(&Corners::new(100, 0, 193, 65));
        let held = held.finish().unwrap();
        let check = |filter_in: Option<&Mask>, filter_out: Option<&Mask>, want: &str| {
            let tiles = NODE.plan(size, filter_in.cloned(), filter_out.cloned(), ones).unwrap();
            let most = tiles.most();
            let pixels = |seg: &Seg| seg.cropped_mask.data.iter().sum::<f32>();
            let segs: Vec<_> = tiles.map(Result::unwrap).map(|seg| format!("{} {}", seg.bbox, pixels(&seg))).collect();
            assert_eq!((segs.join(", ").as_str(), most), (want, segs.len() as u64));
        };
        check(Some(&held), None, "(100, 0, 164, 64) 4096, (128, 0, 192, 64) 4096");
        let all = "(0, 0, 64, 64) 4096, (64, 0, 128, 64) 2304, (192, 0, 256, 64) 4032, \
                   (0, 64, 64, 128) 4096, (64, 64, 128, 128) 4068, (128, 64, 192, 128) 4032, (192, 64, 256, 128) 4095";
        check(None, Some(&held), all);
        check(Some(&held), Some(&held), "");
        check(Some(&Mask::zeros(size)), None, "");
    }

    #[test]
    fn a_drawing_does_not_depend_on_what_is_left_out_before_it() {
        let irregular_mask_mode = IrregularMaskMode::AllRandomFast;
        let node = MakeTileSegs { mask_irregularity: 0.5, irregular_mask_mode, ..NODE };
        let size = Size::new(600, 100);
        let segs = |filter_out| {
            let mut drawing = Drawing::new(3);
            let tiles = node.plan(size, None, filter_out, move |side, rough| drawing.draw(side, rough));
            tiles.unwrap().map(Result::unwrap).collect::<Vec<_>>()
        };
        let mut held = CombinedMask::new(size);
        held.add_full(&Corners::new(0, 0, 300, 100));
        let (all, some) = (segs(None), segs(Some(held.finish().unwrap())));
        assert!(some.len() < all.len());
        assert_eq!(some.last(), all.last());
    }

    #[test]
    fn an_irregular_tile_that_its_crop_cuts_keeps_the_rest() {
        let node = MakeTileSegs { crop_factor: 1.01, mask_irregularity: 0.4, ..NODE };
        let segs = node.run(Size::new(300, 300), None, None, ones).unwrap();
        let cut =
            segs.segs.iter().find(|seg| seg.crop_region.x2 < seg.bbox.x2).expect("rounding leaves a line outside");
        assert_eq!(cut.cropped_mask.data.last(), Some(&1.0));
    }
}
