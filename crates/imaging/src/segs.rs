//! SEGS: the things found in a picture, and the geometry of their crops (reference: pixels.md, section 8).
//!
//! [`from_mask`] finds segments in masks, [`tiles`] makes segments that cover a picture. Where the reference is odd and
//! its results are relied on, it is followed, and the comment says so.

pub mod from_mask;
pub mod tiles;

use std::ops::Range;

use domain::{
    region::{Corners, Region, Size},
    segs::scaled_region,
};

use crate::{
    bytes::{self, from_u8, to_u8},
    frames::{Frames, PixelError},
    mask::Mask,
    resample::tensor_resize,
};

/// One thing found in a picture. Field names are Impact Pack's own.
#[derive(Debug, Clone, PartialEq)]
pub struct Seg {
    /// Pixels that stand for the crop of the picture, or `None` to cut them when they are needed.
    pub cropped_image: Option<Frames>,
    /// What belongs to the thing, as large as `crop_region`.
    pub cropped_mask: Mask,
    /// How sure the finder was, 0..1.
    pub confidence: f64,
    /// The surroundings that are worked on, in pixels of the picture.
    pub crop_region: Corners,
    /// The thing itself, in pixels of the picture.
    pub bbox: Corners,
    /// What it is.
    pub label: String,
}

impl Seg {
    /// The pixels to work on: the segment's own image, or its crop of `picture`.
    pub fn pixels(&self, picture: &Frames) -> Frames {
        self.cropped_image.clone().unwrap_or_else(|| picture.crop(&self.crop_region))
    }
}

/// The things found in a picture of size `header`.
#[derive(Debug, Clone, PartialEq)]
pub struct Segs {
    /// Size of the picture they were found in; 0x0 if there are none.
    pub header: Size,
    /// The segments in the order in which they are worked on and pasted.
    pub segs: Vec<Seg>,
}

/// Fits a stretch of `size` from `start` on into `0..limit`: what hangs over an edge is moved, not cut.
pub fn normalize_region(limit: i64, start: i64, size: f64) -> (i64, i64) {
    let limit_real = limit as f64;
    if start < 0 {
        (0, limit_real.min(size) as i64)
    } else if start as f64 + size > limit_real {
        ((limit_real - size).max(0.0) as i64, limit)
    } else {
        (start, limit_real.min(start as f64 + size) as i64)
    }
}

/// The crop region of a `bbox`: `crop_factor` times as large about the same centre, at least `crop_min_size` a side,
/// and moved into the picture.
pub fn make_crop_region(picture: Size, bbox: &Corners, crop_factor: f64, crop_min_size: Option<f64>) -> Corners {
    let axis = |limit: u32, from: i64, length: i64| {
        let length = length as f64;
        let size = (length * crop_factor).max(crop_min_size.unwrap_or(f64::NEG_INFINITY));
        let centre = from as f64 + length / 2.0;
        normalize_region(i64::from(limit), (centre - size / 2.0) as i64, size)
    };
    let (x1, x2) = axis(picture.width, bbox.x1, bbox.width());
    let (y1, y2) = axis(picture.height, bbox.y1, bbox.height());
    Corners { x1, y1, x2, y2 }
}

impl Segs {
    /// The segments for a picture of size `to`; where regions come to lie, [`domain::segs::scaled`] says.
    ///
    /// A region may come out empty, which is refused.
    pub fn scale_match(&self, to: Size, reference_quirks: bool) -> Result<Self, PixelError> {
        if self.header == to || self.header.pixels() == 0 {
            return Ok(self.clone());
        }
        let corners = |region: &Corners| scaled_region(*region, self.header, to, reference_quirks);
        let seg = |seg: &Seg| {
            let crop_region = corners(&seg.crop_region);
            let size = crop_region.size()?;
            Ok::<_, PixelError>(Seg {
                cropped_image: seg.cropped_image.as_ref().map(|image| tensor_resize(image, size)).transpose()?,
                cropped_mask: seg.cropped_mask.resize(size)?,
                confidence: seg.confidence,
                crop_region,
                bbox: corners(&seg.bbox),
                label: seg.label.clone(),
            })
        };
        Ok(Self { header: to, segs: self.segs.iter().map(seg).collect::<Result<_, _>>()? })
    }

    /// All masks in one mask of the picture's size, as [`CombinedMask`] joins them.
    pub fn combined_mask(&self) -> Result<Mask, PixelError> {
        let mut combined = CombinedMask::new(self.header);
        for seg in &self.segs {
            combined.add(&seg.crop_region, &seg.cropped_mask)?;
        }
        combined.finish()
    }

    /// Each mask in a mask of the picture's size, one frame per segment, cut to bytes.
    pub fn mask_list(&self) -> Result<Mask, PixelError> {
        let len = self.header.pixels() as usize;
        let mut data = vec![0; len * self.segs.len()];
        for (index, seg) in self.segs.iter().enumerate() {
            place(self.header, &seg.crop_region, &seg.cropped_mask, |at, byte| data[index * len + at] = byte)?;
        }
        Mask::new(self.segs.len(), self.header, bytes::dequantise(&data))
    }

    /// Every segment's mask with each byte joined to that of `mask`, a mask of the whole picture, by `join`.
    fn bitwise(&self, mask: &Mask, join: fn(u8, u8) -> u8) -> Result<Self, PixelError> {
        let mut out = self.clone();
        for seg in &mut out.segs {
            let other = mask.crop(&seg.crop_region);
            let (want, got) = (seg.cropped_mask.size(), other.size());
            if want != got {
                return Err(PixelError::SizeMismatch { operation: "a mask over segments", want, got });
            }
            for values in seg.cropped_mask.data.chunks_exact_mut(other.frame_len().max(1)) {
                let pairs = values.iter_mut().zip(other.frame(0));
                pairs.for_each(|(a, &b)| *a = from_u8(join(to_u8(*a), to_u8(b))));
            }
        }
        Ok(out)
    }

    /// Keeps of every segment what `mask` holds too: bitwise AND of the bytes.
    pub fn bitwise_and_mask(&self, mask: &Mask) -> Result<Self, PixelError> {
        self.bitwise(mask, |a, b| a & b)
    }

    /// Takes `mask` away from every segment: saturating subtraction of the bytes.
    pub fn bitwise_subtract_mask(&self, mask: &Mask) -> Result<Self, PixelError> {
        self.bitwise(mask, u8::saturating_sub)
    }

    /// Grows or shrinks every mask within its crop region.
    pub fn dilate(&self, dilation: i64) -> Self {
        let mut out = self.clone();
        out.segs.iter_mut().for_each(|seg| seg.cropped_mask = seg.cropped_mask.dilate(dilation));
        out
    }
}

/// The masks of segments in one mask of the picture's size: their bytes joined by OR, over 255.
///
/// They come one after the other, so that no more than one is held beside it.
#[derive(Debug)]
pub struct CombinedMask {
    size: Size,
    bytes: Vec<u8>,
}

impl CombinedMask {
    /// That of no segment of a picture of `size`.
    pub fn new(size: Size) -> Self {
        Self { size, bytes: vec![0; size.pixels() as usize] }
    }

    /// Adds the mask of a segment, as large as what of `crop_region` lies within the picture.
    pub fn add(&mut self, crop_region: &Corners, cropped_mask: &Mask) -> Result<(), PixelError> {
        place(self.size, crop_region, cropped_mask, |at, byte| self.bytes[at] |= byte)
    }

    /// Adds a mask that is 1 everywhere.
    pub fn add_full(&mut self, crop_region: &Corners) {
        let region = crop_region.within(self.size);
        for row in rows(region, self.size) {
            self.bytes[row].fill(u8::MAX);
        }
    }

    /// The mask.
    pub fn finish(self) -> Result<Mask, PixelError> {
        Mask::from_bytes(self.size, &self.bytes)
    }
}

/// Calls `put` with the position in the `picture` and the byte of every value of a segment's mask.
fn place(picture: Size, crop_region: &Corners, mask: &Mask, mut put: impl FnMut(usize, u8)) -> Result<(), PixelError> {
    if mask.frames != 1 {
        return Err(PixelError::Frames { operation: "joining masks", want: 1, got: mask.frames });
    }
    let (want, region) = (mask.size(), crop_region.within(picture));
    if want != region.size() {
        return Err(PixelError::SizeMismatch { operation: "a segment's mask", want, got: region.size() });
    }
    let places = rows(region, picture).flatten();
    places.zip(&mask.data).for_each(|(at, &value)| put(at, to_u8(value)));
    Ok(())
}

/// Where the rows of a region lie among the pixels of a picture.
fn rows(region: Region, picture: Size) -> impl Iterator<Item = Range<usize>> {
    let row = move |y: u32| y as usize * picture.width as usize + region.x as usize;
    (region.y..region.bottom()).map(move |y| row(y)..row(y) + region.width as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seg(crop_region: Corners, value: f32) -> Seg {
        let size = crop_region.size().unwrap();
        Seg {
            cropped_image: None,
            cropped_mask: Mask::zeros(size).map(|_| value),
            confidence: 1.0,
            crop_region,
            bbox: crop_region,
            label: "A".into(),
        }
    }

    #[test]
    fn a_region_that_hangs_over_is_moved() {
        assert_eq!(normalize_region(100, -5, 20.5), (0, 20));
        assert_eq!(normalize_region(100, 95, 20.5), (79, 100));
        assert_eq!(normalize_region(10, 4, 99.0), (0, 10));
        assert_eq!(normalize_region(100, 7, 20.5), (7, 27));
    }

    #[test]
    fn a_region_that_scaling_turns_inside_out_is_refused() {
        let segs = Segs { header: Size::new(100, 100), segs: vec![seg(Corners::new(50, 0, 60, 10), 1.0)] };
        let refused = segs.scale_match(Size::new(200, 50), true).unwrap_err();
        assert_eq!(refused.to_string(), "the region (100, 0, 30, 5) of a segment is empty");
    }

    #[test]
    fn masks_are_united_by_bits() {
        let segs = [seg(Corners::new(0, 0, 2, 1), 0.5), seg(Corners::new(1, 0, 3, 1), 0.6)];
        let segs = Segs { header: Size::new(3, 1), segs: segs.into() };
        assert_eq!(segs.combined_mask().unwrap().data, [127, 255, 153].map(from_u8));
        let mut combined = CombinedMask::new(segs.header);
        combined.add(&segs.segs[0].crop_region, &segs.segs[0].cropped_mask).unwrap();
        combined.add_full(&segs.segs[1].crop_region);
        assert_eq!(combined.finish().unwrap().data, [127, 255, 255].map(from_u8));
        assert_eq!(segs.mask_list().unwrap().data, [127, 127, 0, 0, 153, 153].map(from_u8));
    }
}
