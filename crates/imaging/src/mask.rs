//! Masks (reference: pixels.md, section 7): blur, growth, resizing, thresholds and the joining of masks.

use domain::region::{Corners, Region, Size};

use crate::{
    bytes,
    frames::{Frames, PixelError, crop_rows},
    resample::float::{FloatResizer, Interpolation},
};

/// The blur of every feather, however wide: with so large a sigma a small kernel is nearly a box.
pub const FEATHER_SIGMA: f64 = 10.0;
/// The threshold above which a joined mask counts.
pub const JOINED_THRESHOLD: f32 = 0.1;

/// One mask, or one per frame: `[frames, height, width]`, 0..1. A mask without frames of its own has one.
#[derive(Debug, Clone, PartialEq)]
pub struct Mask {
    /// Masks.
    pub frames: usize,
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
    /// The values, `frames * height * width` of them.
    pub data: Vec<f32>,
}

impl Mask {
    /// Takes values as `frames` masks of `size`.
    pub fn new(frames: usize, size: Size, data: Vec<f32>) -> Result<Self, PixelError> {
        let (height, width) = (size.height as usize, size.width as usize);
        if frames * height * width != data.len() {
            return Err(PixelError::Length { got: data.len(), frames, size, channels: 1 });
        }
        Ok(Self { frames, height, width, data })
    }

    /// One mask of `size` that is 0 everywhere.
    pub fn zeros(size: Size) -> Self {
        let (height, width) = (size.height as usize, size.width as usize);
        Self { frames: 1, height, width, data: vec![0.0; height * width] }
    }

    /// One mask out of bytes, `k / 255`.
    pub fn from_bytes(size: Size, bytes: &[u8]) -> Result<Self, PixelError> {
        Self::new(1, size, bytes::dequantise(bytes))
    }

    /// Width and height.
    pub fn size(&self) -> Size {
        Size::new(self.width as u32, self.height as u32)
    }

    /// Values of one mask.
    pub fn frame_len(&self) -> usize {
        self.height * self.width
    }

    /// The values of mask `index`.
    pub fn frame(&self, index: usize) -> &[f32] {
        &self.data[index * self.frame_len()..][..self.frame_len()]
    }

    /// Mask `index` on its own.
    pub fn single(&self, index: usize) -> Self {
        Self { frames: 1, data: self.frame(index).to_vec(), ..*self }
    }

    /// Row `y` of mask 0.
    pub(crate) fn row_mut(&mut self, y: usize) -> &mut [f32] {
        &mut self.data[y * self.width..][..self.width]
    }

    /// Whether there is nothing in it: no value but 0.
    pub fn is_zero(&self) -> bool {
        self.data.iter().all(|&x| x == 0.0)
    }

    /// Every value through `f`.
    pub fn map(mut self, f: impl Fn(f32) -> f32) -> Self {
        self.data.iter_mut().for_each(|x| *x = f(*x));
        self
    }

    /// 1 where a value is above `threshold`, else 0.
    pub fn binary(self, threshold: f32) -> Self {
        self.map(|x| if x > threshold { 1.0 } else { 0.0 })
    }

    /// The part within `region`; what lies outside of the mask is left out.
    pub fn crop(&self, region: &Corners) -> Self {
        let cut = region.within(self.size());
        let data = crop_rows(&self.data, self.height, self.width, 1, cut);
        Self { frames: self.frames, height: cut.height as usize, width: cut.width as usize, data }
    }

    /// The largest value of each pixel over all frames.
    pub fn maximum(&self) -> Self {
        let mut out = self.single(0);
        for index in 1..self.frames {
            out.data.iter_mut().zip(self.frame(index)).for_each(|(x, &y)| *x = x.max(y));
        }
        out
    }

    /// All frames as one: their bytes joined by OR, then 1 where the result is above 0.1.
    pub fn joined(&self) -> Self {
        let mut bytes = vec![0; self.frame_len()];
        (0..self.frames).for_each(|index| bytes::or_into(&mut bytes, self.frame(index)));
        Self { frames: 1, data: bytes::dequantise(&bytes), ..*self }.binary(JOINED_THRESHOLD)
    }

    /// Resized by float bilinear.
    pub fn resize(&self, to: Size) -> Result<Self, PixelError> {
        let resizer = FloatResizer::new(Interpolation::Bilinear, self.size(), to, 1)?;
        let data = (0..self.frames).flat_map(|index| resizer.picture(self.frame(index))).collect();
        Self::new(self.frames, to, data)
    }

    /// Softens the edges over `feather` pixels to each side.
    pub fn feather(&self, feather: i64) -> Self {
        self.gaussian_blur(feather, FEATHER_SIGMA)
    }

    /// Blurs by a Gaussian of `2 * kernel_size + 1` taps, edges mirrored without repeating the edge pixel.
    ///
    /// Masks whose shorter side the kernel would cover get a smaller kernel, and the smallest none. 0 or less changes
    /// nothing.
    pub fn gaussian_blur(&self, kernel_size: i64, sigma: f64) -> Self {
        let shortest = self.height.min(self.width) as i64;
        let mut taps = kernel_size.saturating_mul(2).saturating_add(1);
        if shortest <= taps {
            taps = shortest / 2 + i64::from(shortest / 2 % 2 == 0);
        }
        if kernel_size <= 0 || taps < 3 {
            return self.clone();
        }
        let half = taps / 2;
        let weights: Vec<f32> = (-half..=half).map(|t| (-0.5 * (t as f32 / sigma as f32).powi(2)).exp()).collect();
        let sum = lane_sum(&weights);
        let kernel: Vec<f32> = weights.iter().map(|weight| weight / sum).collect();
        let data = (0..self.frames).flat_map(|i| blur(self.frame(i), self.height, self.width, &kernel)).collect();
        Self { data, ..*self }
    }

    /// Grows the mask by the maximum over a square of `dilation` a side, or shrinks it by the minimum if negative.
    ///
    /// What lies outside of the picture is ignored. A square of even side reaches one pixel further up and left.
    pub fn dilate(&self, dilation: i64) -> Self {
        let side = dilation.unsigned_abs() as usize;
        if side == 0 {
            return self.clone();
        }
        let pick = if dilation > 0 { f32::max } else { f32::min };
        let data = (0..self.frames).flat_map(|i| extreme(self.frame(i), self.height, self.width, side, pick)).collect();
        Self { data, ..*self }
    }

    /// As a picture of one channel.
    pub fn to_frames(&self) -> Frames {
        let Self { frames, height, width, .. } = *self;
        Frames { frames, height, width, channels: 1, data: self.data.clone() }
    }
}

/// Index `i`, which may lie before or behind `len` pixels by less than `len`, mirrored at the edge pixel.
fn mirror(i: isize, len: usize) -> usize {
    let last = len as isize - 1;
    (last - (last - i.abs()).abs()) as usize
}

/// Adds up in the order of the reference's vector unit: four sums of eight lanes, then the lanes, after what is left over.
fn lane_sum(values: &[f32]) -> f32 {
    let (vectors, rest) = values.as_chunks::<8>();
    let in_turn = vectors.len() / 4 * 4;
    let mut sums = [[0.0f32; 8]; 4];
    for (i, vector) in vectors.iter().enumerate() {
        let sum = &mut sums[if i < in_turn { i % 4 } else { 0 }];
        sum.iter_mut().zip(vector).for_each(|(sum, x)| *sum += x);
    }
    let lanes = (0..8).map(|lane| sums.iter().map(|sum| sum[lane]).fold(0.0, |a, b| a + b));
    lanes.fold(rest.iter().fold(0.0, |a, b| a + b), |a, b| a + b)
}

/// Convolves with the square of `kernel` by itself, tap by tap with one rounding each, as the reference's bits demand.
///
/// Rows and columns one after the other would be faster and equal to 2e-6. But what is pasted is cut to bytes, and noise
/// masks are compared with thresholds: there a last bit becomes a step. The product of two `f32` is exact in `f64`,
/// so that rounding the sum is a fused multiply-add, which not every processor has.
fn blur(mask: &[f32], height: usize, width: usize, kernel: &[f32]) -> Vec<f32> {
    let half = kernel.len() as isize / 2;
    let padded = |row: &[f32]| (-half..width as isize + half).map(|x| f64::from(row[mirror(x, width)])).collect();
    let rows: Vec<Vec<f64>> = mask.chunks_exact(width).map(padded).collect();
    let is_zero: Vec<bool> = mask.chunks_exact(width).map(|row| row.iter().all(|&x| x == 0.0)).collect();
    let mut out = vec![0.0f32; mask.len()];
    for (y, sums) in out.chunks_exact_mut(width).enumerate() {
        for (t, down) in (-half..).zip(kernel) {
            let from = mirror(y as isize + t, height);
            if is_zero[from] {
                continue;
            }
            for (dx, across) in kernel.iter().enumerate() {
                let weight = f64::from(down * across);
                let row = &rows[from][dx..][..width];
                sums.iter_mut().zip(row).for_each(|(sum, x)| *sum = (f64::from(*sum) + weight * x) as f32);
            }
        }
    }
    out
}

/// The extreme value over a square of `side`, rows then columns.
fn extreme(mask: &[f32], height: usize, width: usize, side: usize, pick: fn(f32, f32) -> f32) -> Vec<f32> {
    let window = |at: usize, len: usize| at.saturating_sub(side / 2)..(at + side - side / 2).min(len);
    let mut across = Vec::with_capacity(mask.len());
    for row in mask.chunks_exact(width) {
        across.extend((0..width).map(|x| row[window(x, width)].iter().copied().fold(row[x], pick)));
    }
    let mut out = across.clone();
    for (y, row) in out.chunks_exact_mut(width).enumerate() {
        for from in window(y, height) {
            let other = &across[from * width..][..width];
            row.iter_mut().zip(other).for_each(|(x, &y)| *x = pick(*x, y));
        }
    }
    out
}

/// The part of a conditioning mask that belongs to the crop region of a segment.
///
/// With `reference_quirks` columns are scaled by the ratio of the heights and rows by that of the widths, as the reference does
/// (Q2): it matters only where mask and picture differ in shape. The region may be empty.
pub fn condition_mask_region(crop_region: &Corners, picture: Size, mask: Size, reference_quirks: bool) -> Region {
    let by_height = f64::from(mask.height) / f64::from(picture.height);
    let by_width = f64::from(mask.width) / f64::from(picture.width);
    let (by_height, by_width) = if reference_quirks { (by_width, by_height) } else { (by_height, by_width) };
    let scale = |at: i64, ratio: f64| (at as f64 * ratio).round_ties_even() as i64;
    Corners {
        x1: scale(crop_region.x1, by_width),
        y1: scale(crop_region.y1, by_height),
        x2: scale(crop_region.x2, by_width),
        y2: scale(crop_region.y2, by_height),
    }
    .within(mask)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dot(size: u32, x: usize, y: usize) -> Mask {
        let mut mask = Mask::zeros(Size::new(size, size));
        mask.row_mut(y)[x] = 1.0;
        mask
    }

    #[test]
    fn an_even_square_grows_a_dot_down_and_right() {
        let grown = dot(5, 2, 2).dilate(2);
        let set: Vec<_> = (0..25).filter(|&i| grown.data[i] == 1.0).map(|i| (i % 5, i / 5)).collect();
        assert_eq!(set, [(2, 2), (3, 2), (2, 3), (3, 3)]);
    }

    #[test]
    fn erosion_does_not_eat_from_the_border() {
        let full = Mask::new(2, Size::new(4, 3), vec![0.7; 24]).unwrap();
        assert_eq!(full.dilate(-3), full);
        assert!(dot(5, 2, 2).dilate(-3).is_zero());
    }

    #[test]
    fn a_blur_keeps_the_sum_and_spares_tiny_masks() {
        let blurred = dot(21, 10, 10).gaussian_blur(3, 10.0);
        assert!((blurred.data.iter().sum::<f32>() - 1.0).abs() < 1e-5);
        assert_eq!(blurred.data.iter().filter(|&&x| x > 0.0).count(), 49);
        assert_eq!(dot(4, 1, 1).feather(5), dot(4, 1, 1).gaussian_blur(1, 10.0));
        assert_eq!(dot(2, 1, 1).feather(5), dot(2, 1, 1));
        assert_eq!(dot(21, 1, 1).feather(0), dot(21, 1, 1));
    }

    #[test]
    fn mirroring_does_not_repeat_the_edge() {
        assert_eq!([-2, -1, 0, 1, 2, 3, 4].map(|i| mirror(i, 3)), [2, 1, 0, 1, 2, 1, 0]);
    }
}
