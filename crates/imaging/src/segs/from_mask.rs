//! Segments out of masks: `MaskToSEGS` and its variant for animations (reference: pixels.md, section 8.2).

use domain::region::{Corners, Region, Size};

use super::{Seg, Segs, make_crop_region};
use crate::{
    bytes::to_u8,
    frames::PixelError,
    mask::{JOINED_THRESHOLD, Mask},
};

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
        let segs = (0..mask.frames).flat_map(|index| self.find(mask.single(index)));
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
        Ok(Self { bbox_fill: false, ..*self }.run(&segs.combined_mask()?.binary(JOINED_THRESHOLD)))
    }

    /// Finds the segments of a mask of one frame: one of all that is not 0, or one per part, the one that begins lowest
    /// first.
    ///
    /// How many there are is known then; the mask of each is made when it is taken.
    pub fn find(&self, mask: Mask) -> MaskSegs {
        let parts = if self.combined {
            self.all_in_one(&mask).map(|bbox| Part { bbox, runs: Vec::new() }).into_iter().collect()
        } else {
            parts(&mask, |bbox| bbox.width() > self.drop_size && bbox.height() > self.drop_size)
        };
        MaskSegs { node: *self, mask, parts }
    }

    /// The box of all that is not 0, unless it is empty. It ends *at* the last row and column, which therefore fall
    /// outside.
    fn all_in_one(&self, mask: &Mask) -> Option<Corners> {
        let mut bbox: Option<Corners> = None;
        for (y, row) in (0..).zip(mask.frame(0).chunks_exact(mask.width.max(1))) {
            let is_set = |value: &f32| *value != 0.0;
            let (Some(first), Some(last)) = (row.iter().position(is_set), row.iter().rposition(is_set)) else {
                continue;
            };
            let (first, last) = (first as i64, last as i64);
            let above = bbox.unwrap_or(Corners::new(first, y, last, y));
            bbox = Some(Corners { x1: above.x1.min(first), x2: above.x2.max(last), y2: y, ..above });
        }
        bbox.filter(|bbox| self.crop_region(mask.size(), bbox).size().is_ok())
    }

    /// The crop region of all that an inclusion mask of tiles holds.
    pub(super) fn combined_region(mask: &Mask) -> Option<Corners> {
        let node = Self {
            combined: true,
            crop_factor: 1.0,
            bbox_fill: false,
            drop_size: 1,
            contour_fill: false,
            crop_min_size: None,
        };
        node.all_in_one(mask).map(|bbox| node.crop_region(mask.size(), &bbox))
    }

    fn crop_region(&self, picture: Size, bbox: &Corners) -> Corners {
        make_crop_region(picture, bbox, self.crop_factor, self.crop_min_size.filter(|_| !self.combined))
    }
}

/// The segments of one mask, to be taken one after the other: each one's own mask is made when it is taken.
#[derive(Debug)]
pub struct MaskSegs {
    node: MaskToSegs,
    mask: Mask,
    /// What the segments to come are made of, the next one last.
    parts: Vec<Part>,
}

impl Iterator for MaskSegs {
    type Item = Seg;

    fn next(&mut self) -> Option<Seg> {
        let part = self.parts.pop()?;
        let bbox = part.bbox;
        let crop_region = self.node.crop_region(self.mask.size(), &bbox);
        let cropped_mask =
            if self.node.combined { self.combined(&bbox, &crop_region) } else { self.part(&part, &crop_region) };
        Some(Seg { cropped_image: None, cropped_mask, confidence: 1.0, crop_region, bbox, label: "A".into() })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.parts.len(), Some(self.parts.len()))
    }
}

impl ExactSizeIterator for MaskSegs {}

impl MaskSegs {
    /// The mask of all that is not 0.
    fn combined(&self, bbox: &Corners, crop_region: &Corners) -> Mask {
        let mut cropped = self.mask.crop(crop_region);
        if self.node.bbox_fill {
            // In coordinates of the picture, although the mask is a crop of it.
            fill(&mut cropped, bbox);
        }
        cropped
    }

    /// The mask of one part.
    fn part(&self, Part { bbox, runs }: &Part, crop_region: &Corners) -> Mask {
        let crop = crop_region.within(self.mask.size());
        let mut cropped = Mask::zeros(crop.size());
        for Run { y, from, to } in runs {
            // Rounding may leave an edge of the part outside of its crop.
            let run = Region::new(*from, *y, to - from, 1);
            let Some(Region { x, y, width, .. }) = run.intersection(&crop) else { continue };
            let own = &mut cropped.row_mut((y - crop.y) as usize)[(x - crop.x) as usize..][..width as usize];
            let values = &self.mask.data[y as usize * self.mask.width + x as usize..][..width as usize];
            for (own, value) in own.iter_mut().zip(values) {
                *own = if self.node.contour_fill { 1.0 } else { value.clamp(0.0, 1.0) };
            }
        }
        if self.node.bbox_fill {
            let Corners { x1, y1, .. } = *crop_region;
            fill(&mut cropped, &Corners::new(bbox.x1 - x1, bbox.y1 - y1, bbox.x2 - x1, bbox.y2 - y1));
        }
        cropped
    }
}

/// Sets `region`, in coordinates of the mask, to 1.
pub(super) fn fill(mask: &mut Mask, region: &Corners) {
    let region = region.within(mask.size());
    for y in region.y..region.bottom() {
        mask.row_mut(y as usize)[region.x as usize..region.right() as usize].fill(1.0);
    }
}

/// A connected part of a mask, with its holes and whatever lies in them.
///
/// Parts hang together by sides and corners, the background around them by sides only. So a part with its holes is one
/// connected area of all that the background cannot reach from beyond the border.
#[derive(Debug)]
struct Part {
    /// Its tight box.
    bbox: Corners,
    /// Its pixels, in reading order.
    runs: Vec<Run>,
}

/// Columns `from..to` of row `y`.
#[derive(Debug, Clone, Copy)]
struct Run {
    y: u32,
    from: u32,
    to: u32,
}

/// The parts of a mask whose boxes are kept, in reading order of their first pixels.
///
/// Rows are read once and what follows goes by their runs, so that a part costs its outline, and one that is not kept its box.
fn parts(mask: &Mask, is_kept: impl Fn(&Corners) -> bool) -> Vec<Part> {
    let runs = filled(mask);
    let mut joined = Joined::by_touch(&runs, 0, 1);
    let mut boxes: Vec<Corners> = Vec::new();
    let mut numbers: Vec<usize> = Vec::with_capacity(runs.len()); // of the box that a run belongs to
    for (index, run) in runs.iter().enumerate() {
        let first = joined.first(index);
        if first == index {
            numbers.push(boxes.len());
            boxes.push(Region::new(run.from, run.y, run.to - run.from, 1).into());
        } else {
            numbers.push(numbers[first]);
        }
        let bbox = &mut boxes[numbers[index]];
        bbox.x1 = bbox.x1.min(run.from.into());
        bbox.x2 = bbox.x2.max(run.to.into());
        bbox.y2 = i64::from(run.y) + 1;
    }
    let mut parts: Vec<Part> = Vec::new();
    let mut place = |bbox: Corners| {
        is_kept(&bbox).then(|| {
            parts.push(Part { bbox, runs: Vec::new() });
            parts.len() - 1
        })
    };
    let places: Vec<Option<usize>> = boxes.into_iter().map(&mut place).collect();
    for (run, number) in runs.into_iter().zip(numbers) {
        if let Some(place) = places[number] {
            parts[place].runs.push(run);
        }
    }
    parts
}

/// The runs of all that the background cannot reach from beyond the border.
fn filled(mask: &Mask) -> Vec<Run> {
    let Size { width, height } = mask.size();
    let is_set = |value: &f32| to_u8(*value) > 0; // values under 1/255 are background
    let mut background = Vec::new();
    for (y, row) in (0..height).zip(mask.frame(0).chunks_exact(mask.width.max(1))) {
        let mut x = 0;
        for alike in row.chunk_by(|a, b| is_set(a) == is_set(b)) {
            let (from, to) = (x, x + alike.len() as u32);
            if !is_set(&alike[0]) {
                background.push(Run { y, from, to });
            }
            x = to;
        }
    }
    let mut joined = Joined::by_touch(&background, 1, 0);
    for (index, run) in background.iter().enumerate() {
        if run.y == 0 || run.y == height - 1 || run.from == 0 || run.to == width {
            joined.join(0, index + 1);
        }
    }
    let mut outside =
        (1..).zip(&background).filter(|(index, _)| joined.first(*index) == 0).map(|(_, run)| run).peekable();
    let mut filled = Vec::new();
    for y in 0..height {
        let mut from = 0;
        let mut push = |from, to| {
            if from < to {
                filled.push(Run { y, from, to })
            }
        };
        while let Some(run) = outside.next_if(|run| run.y == y) {
            push(from, run.from);
            from = run.to;
        }
        push(from, width);
    }
    filled
}

/// Which runs hang together: each refers to an earlier one, or to itself if it is the first.
struct Joined {
    earlier: Vec<u32>,
}

impl Joined {
    /// Joins those of neighbouring rows that share a column, or with `reach` 1 a corner. The first run has number
    /// `from`; those before it are free.
    fn by_touch(runs: &[Run], from: usize, reach: u32) -> Self {
        let mut joined = Self { earlier: (0..(from + runs.len()) as u32).collect() };
        let mut above = 0;
        for (index, run) in runs.iter().enumerate() {
            while runs[above].y + 1 < run.y || runs[above].y < run.y && runs[above].to + reach <= run.from {
                above += 1;
            }
            let touching = runs[above..index].iter().take_while(|it| it.y < run.y && it.from < run.to + reach);
            for other in above..above + touching.count() {
                joined.join(from + other, from + index);
            }
        }
        joined
    }

    /// The first that hangs together with a run.
    fn first(&mut self, mut index: usize) -> usize {
        while self.earlier[index] as usize != index {
            self.earlier[index] = self.earlier[self.earlier[index] as usize]; // half the way, for whoever asks next
            index = self.earlier[index] as usize;
        }
        index
    }

    fn join(&mut self, a: usize, b: usize) {
        let (a, b) = (self.first(a), self.first(b));
        self.earlier[a.max(b)] = a.min(b) as u32;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

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

    /// The pixels of each part, found pixel by pixel and slowly.
    fn plain_parts(mask: &Mask) -> Vec<Vec<usize>> {
        let (width, height) = (mask.width, mask.height);
        let apart = |a: usize, b: usize| ((a % width).abs_diff(b % width), (a / width).abs_diff(b / width));
        let grown = |start: Vec<usize>, over: &dyn Fn(usize) -> bool, touch: &dyn Fn((usize, usize)) -> bool| {
            let mut all = start;
            let mut done = 0;
            while done < all.len() {
                let from = all[done];
                let next = (0..mask.data.len()).filter(|&at| over(at) && touch(apart(from, at)) && !all.contains(&at));
                let next: Vec<_> = next.collect();
                all.extend(next);
                done += 1;
            }
            all.sort_unstable();
            all
        };
        let is_free = |at: usize| to_u8(mask.data[at]) == 0;
        let is_border = |at: usize| [0, width - 1].contains(&(at % width)) || [0, height - 1].contains(&(at / width));
        let border = (0..mask.data.len()).filter(|&at| is_border(at) && is_free(at)).collect();
        let outside = grown(border, &is_free, &|(across, down)| across + down == 1);
        let mut parts: Vec<Vec<usize>> = Vec::new();
        for at in 0..mask.data.len() {
            if !outside.contains(&at) && !parts.iter().flatten().any(|&other| other == at) {
                let is_inside = |at: usize| !outside.contains(&at);
                parts.push(grown(vec![at], &is_inside, &|(across, down)| across <= 1 && down <= 1));
            }
        }
        parts
    }

    proptest! {
        #[test]
        fn the_parts_are_those_found_pixel_by_pixel(
            (width, height, data) in (1..12u32, 1..12u32).prop_flat_map(|(width, height)| {
                let value = prop_oneof![Just(0.0f32), Just(0.003), Just(0.5), Just(1.0)];
                (Just(width), Just(height), prop::collection::vec(value, (width * height) as usize))
            }),
            contour_fill: bool,
            crop_factor in prop_oneof![Just(1.0), Just(1.1), Just(3.0)],
        ) {
            let mask = Mask::new(1, Size::new(width, height), data).unwrap();
            let segs = MaskToSegs { drop_size: 0, contour_fill, crop_factor, ..PLAIN }.find(mask.clone());
            let parts = plain_parts(&mask);
            prop_assert_eq!(segs.len(), parts.len());
            for (seg, part) in segs.zip(parts.iter().rev()) {
                let mut own = Mask::zeros(mask.size());
                part.iter().for_each(|&at| own.data[at] = if contour_fill { 1.0 } else { mask.data[at] });
                prop_assert_eq!(seg.cropped_mask, own.crop(&seg.crop_region));
                let (x, y) = (|at: &usize| (at % mask.width) as i64, |at: &usize| (at / mask.width) as i64);
                let bbox = Corners::new(
                    part.iter().map(x).min().unwrap(),
                    part.iter().map(y).min().unwrap(),
                    part.iter().map(x).max().unwrap() + 1,
                    part.iter().map(y).max().unwrap() + 1,
                );
                prop_assert_eq!(seg.bbox, bbox);
            }
        }
    }
}
