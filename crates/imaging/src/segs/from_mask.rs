//! Segments out of masks: `MaskToSEGS` and its variant for animations (reference: pixels.md, section 8.2).

use domain::region::{Corners, Size};

use super::{Seg, Segs, make_crop_region};
use crate::{bytes::to_u8, frames::PixelError, mask::Mask};

/// The node's parameters.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MaskToSegs {
    /// One segment of all that is not 0, instead of one per connected part.
    pub combined: bool,
    /// How many times as large as the part its crop region is.
    pub crop_factor: f64,
    /// Sets the whole of the bounding box in the mask.
    pub bbox_fill: bool,
    /// Parts that are not wider *and* taller than this are dropped.
    pub drop_size: i64,
    /// Gives the part filled and without greys, instead of the mask's own values.
    pub contour_fill: bool,
    /// The least side of a crop region, where the node offers one.
    pub crop_min_size: Option<f64>,
}

impl MaskToSegs {
    /// The segments of every mask in turn.
    pub fn run(&self, mask: &Mask) -> Segs {
        let segs = (0..mask.frames).flat_map(|index| {
            let mask = mask.single(index);
            if self.combined { self.all_in_one(&mask).into_iter().collect() } else { self.parts(&mask) }
        });
        Segs { header: mask.size(), segs: segs.collect() }
    }

    /// The segments of an animated mask.
    ///
    /// Several frames: the parts of their maximum, each with the frames' own values. One frame: the parts, joined, cut
    /// at 0.1 and taken apart again.
    pub fn run_animated(&self, mask: &Mask) -> Result<Segs, PixelError> {
        if mask.frames > 1 {
            let mut segs = Self { contour_fill: true, ..*self }.run(&mask.maximum());
            segs.segs.iter_mut().for_each(|seg| seg.cropped_mask = mask.crop(&seg.crop_region));
            return Ok(segs);
        }
        let segs = self.run(mask);
        if segs.segs.is_empty() {
            return Ok(segs);
        }
        Ok(Self { bbox_fill: false, ..*self }.run(&segs.mask_list()?.joined()))
    }

    /// One segment of all that is not 0. Its box ends *at* the last row and column, which therefore fall outside.
    fn all_in_one(&self, mask: &Mask) -> Option<Seg> {
        let set = |index: &usize| mask.data[*index] != 0.0;
        let positions = || (0..mask.data.len()).filter(set).map(|i| ((i % mask.width) as i64, (i / mask.width) as i64));
        let (x1, x2) = (positions().map(|p| p.0).min()?, positions().map(|p| p.0).max()?);
        let (y1, y2) = (positions().map(|p| p.1).min()?, positions().map(|p| p.1).max()?);
        let bbox = Corners { x1, y1, x2, y2 };
        let crop_region = make_crop_region(mask.size(), &bbox, self.crop_factor, None);
        crop_region.size().ok()?;
        let mut cropped_mask = mask.crop(&crop_region);
        if self.bbox_fill {
            // In coordinates of the picture, although the mask is a crop of it.
            fill(&mut cropped_mask, &bbox);
        }
        Some(seg(cropped_mask, crop_region, bbox))
    }

    /// One segment per part, the one that begins lowest first.
    fn parts(&self, mask: &Mask) -> Vec<Seg> {
        let parts = Parts::of(mask);
        let segs = parts.boxes.iter().enumerate().rev().filter_map(|(index, bbox)| {
            if bbox.width() <= self.drop_size || bbox.height() <= self.drop_size {
                return None;
            }
            let crop_region = make_crop_region(mask.size(), bbox, self.crop_factor, self.crop_min_size);
            let label = index as u32 + 1;
            let mut own = Mask::zeros(mask.size());
            for (at, value) in own.data.iter_mut().enumerate().filter(|(at, _)| parts.labels[*at] == label) {
                *value = if self.contour_fill { 1.0 } else { mask.data[at].clamp(0.0, 1.0) };
            }
            let mut cropped_mask = own.crop(&crop_region);
            if self.bbox_fill {
                let Corners { x1, y1, .. } = crop_region;
                fill(&mut cropped_mask, &Corners::new(bbox.x1 - x1, bbox.y1 - y1, bbox.x2 - x1, bbox.y2 - y1));
            }
            Some(seg(cropped_mask, crop_region, *bbox))
        });
        segs.collect()
    }
}

fn seg(cropped_mask: Mask, crop_region: Corners, bbox: Corners) -> Seg {
    Seg { cropped_image: None, cropped_mask, confidence: 1.0, crop_region, bbox, label: "A".into() }
}

/// Sets `region`, in coordinates of the mask, to 1.
pub(super) fn fill(mask: &mut Mask, region: &Corners) {
    let region = region.within(mask.size());
    for y in region.y..region.bottom() {
        mask.row_mut(y as usize)[region.x as usize..region.right() as usize].fill(1.0);
    }
}

/// The connected parts of a mask, each with its holes and whatever lies in them.
///
/// Parts hang together by sides and corners, the background around them by sides only. So a part with its holes is one
/// connected area of all that the background cannot reach from beyond the border.
struct Parts {
    /// 0 outside of all parts, else the number of the part, from 1 in reading order of their first pixels.
    labels: Vec<u32>,
    /// The tight box of each part.
    boxes: Vec<Corners>,
}

const OUTSIDE: u32 = u32::MAX;

impl Parts {
    fn of(mask: &Mask) -> Self {
        let size = mask.size();
        let (width, height) = (mask.width, mask.height);
        let set = |at: usize| to_u8(mask.data[at]) > 0; // values under 1/255 are background
        let mut labels = vec![0; width * height];
        let border = (0..width * height).filter(|at| {
            matches!(at / width, 0) || at / width == height - 1 || matches!(at % width, 0) || at % width == width - 1
        });
        for at in border {
            if labels[at] == 0 && !set(at) {
                flood(size, at, &[(1, 0), (-1, 0), (0, 1), (0, -1)], |at| {
                    let free = labels[at] == 0 && !set(at);
                    if free {
                        labels[at] = OUTSIDE;
                    }
                    free
                });
            }
        }
        let mut boxes = Vec::new();
        for at in 0..labels.len() {
            if labels[at] != 0 {
                continue;
            }
            let label = boxes.len() as u32 + 1;
            let (x, y) = ((at % width) as i64, (at / width) as i64);
            let mut bbox = Corners::new(x, y, x + 1, y + 1);
            const AROUND: [(i64, i64); 8] = [(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)];
            flood(size, at, &AROUND, |at| {
                let free = labels[at] == 0;
                if free {
                    labels[at] = label;
                    let (x, y) = ((at % width) as i64, (at / width) as i64);
                    bbox.x1 = bbox.x1.min(x);
                    bbox.x2 = bbox.x2.max(x + 1);
                    bbox.y2 = bbox.y2.max(y + 1);
                }
                free
            });
            boxes.push(bbox);
        }
        labels.iter_mut().filter(|label| **label == OUTSIDE).for_each(|label| *label = 0);
        Self { labels, boxes }
    }
}

/// Walks from pixel `start` over all that `take` accepts and marks, by the given `moves`.
fn flood(size: Size, start: usize, moves: &[(i64, i64)], mut take: impl FnMut(usize) -> bool) {
    let (width, height) = (i64::from(size.width), i64::from(size.height));
    let mut open = Vec::new();
    if take(start) {
        open.push(start as i64);
    }
    while let Some(at) = open.pop() {
        for (dx, dy) in moves {
            let (x, y) = (at % width + dx, at / width + dy);
            if (0..width).contains(&x) && (0..height).contains(&y) && take((y * width + x) as usize) {
                open.push(y * width + x);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: MaskToSegs = MaskToSegs {
        combined: false,
        crop_factor: 1.0,
        bbox_fill: false,
        drop_size: 1,
        contour_fill: false,
        crop_min_size: None,
    };

    /// `#` is 1, `+` is 0.5, `.` is 0.
    fn mask(rows: &[&str]) -> Mask {
        let value = |c| if c == '#' { 1.0 } else { if c == '+' { 0.5 } else { 0.0 } };
        let data = rows.iter().flat_map(|row| row.chars().map(value)).collect();
        Mask::new(1, Size::new(rows[0].len() as u32, rows.len() as u32), data).unwrap()
    }

    #[track_caller]
    fn check(node: MaskToSegs, rows: &[&str], want: &[&str]) {
        let segs = node.run(&mask(rows));
        let shown = |x: &f32| if *x == 1.0 { '#' } else { if *x == 0.0 { '.' } else { '+' } };
        let got: Vec<String> = segs
            .segs
            .iter()
            .map(|seg| {
                let rows = seg.cropped_mask.data.chunks(seg.cropped_mask.width);
                let rows: Vec<String> = rows.map(|row| row.iter().map(shown).collect()).collect();
                format!("{} {}", seg.bbox, rows.join("/"))
            })
            .collect();
        assert_eq!(got, want);
    }

    #[test]
    fn parts_come_lowest_first_and_hang_together_by_corners() {
        check(PLAIN, &["##...", "##...", "..#..", "...##", "...##"], &["(0, 0, 5, 5) ##.../##.../..#../...##/...##"]);
        check(PLAIN, &["##..", "##..", "....", "..+#", "..##"], &["(2, 3, 4, 5) +#/##", "(0, 0, 2, 2) ##/##"]);
    }

    #[test]
    fn an_island_in_a_hole_is_part_of_the_ring() {
        let ring = ["#####", "#...#", "#.+.#", "#...#", "#####"];
        check(PLAIN, &ring, &["(0, 0, 5, 5) #####/#...#/#.+.#/#...#/#####"]);
        let filled = MaskToSegs { contour_fill: true, ..PLAIN };
        check(filled, &ring, &["(0, 0, 5, 5) #####/#####/#####/#####/#####"]);
    }

    #[test]
    fn lines_one_pixel_wide_are_dropped() {
        check(PLAIN, &["#####", ".....", ".....", "....#", "....#"], &[]);
    }

    #[test]
    fn the_combined_segment_loses_its_last_row_and_column() {
        let node = MaskToSegs { combined: true, ..PLAIN };
        check(node, &["....", ".##.", ".##.", "...."], &["(1, 1, 2, 2) #"]);
        check(node, &["....", ".#..", ".#.."], &[]);
    }

    #[test]
    fn a_box_can_be_filled() {
        let node = MaskToSegs { bbox_fill: true, crop_factor: 2.0, ..PLAIN };
        check(
            node,
            &["......", "......", "..#...", "..##..", "......", "......"],
            &["(2, 2, 4, 4) ..../.##./.##./...."],
        );
    }
}
