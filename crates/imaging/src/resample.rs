//! Resizing (reference: pixels.md, section 6): which sizes are meant, and whole pictures through the resamplers.
//!
//! [`float`] and [`bytes8`] hold the two kernels, both usable in windows of rows; [`rows`] runs either over a picture
//! that comes row by row, [`window`] makes a part of a picture.

pub mod bytes8;
pub mod float;
pub mod level;
pub mod rows;
pub mod window;

use std::str::FromStr;

use domain::{
    region::{Corners, Size},
    resize::ResizeMethod,
};

use crate::{
    bytes::{dequantise, quantise},
    frames::{Frames, PixelError},
};
use bytes8::{ByteResizer, Filter};
use float::{FloatResizer, Interpolation};

/// A way to scale a picture, by the names of the reference's `scale_method`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScaleMethod {
    /// In floating point.
    Float(Interpolation),
    /// `lanczos`: through bytes and the 8-bit resampler.
    Lanczos,
}

impl From<ResizeMethod> for ScaleMethod {
    fn from(method: ResizeMethod) -> Self {
        match method {
            ResizeMethod::NearestExact => Self::Float(Interpolation::NearestExact),
            ResizeMethod::Bilinear => Self::Float(Interpolation::Bilinear),
            ResizeMethod::Area => Self::Float(Interpolation::Area),
            ResizeMethod::Bicubic => Self::Float(Interpolation::Bicubic),
            ResizeMethod::Lanczos => Self::Lanczos,
        }
    }
}

impl FromStr for ScaleMethod {
    type Err = PixelError;

    fn from_str(name: &str) -> Result<Self, PixelError> {
        Ok(match name {
            "nearest-exact" => Self::Float(Interpolation::NearestExact),
            "bilinear" => Self::Float(Interpolation::Bilinear),
            "bicubic" => Self::Float(Interpolation::Bicubic),
            "area" => Self::Float(Interpolation::Area),
            "bislerp" => Self::Float(Interpolation::Bislerp),
            "lanczos" => Self::Lanczos,
            _ => {
                let want = "nearest-exact, bilinear, bicubic, area, bislerp or lanczos";
                return Err(PixelError::Unknown { what: "scale method", name: name.to_owned(), want });
            }
        })
    }
}

/// What becomes of a picture whose sides have another ratio than the target's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Crop {
    /// It is stretched.
    Disabled,
    /// The longer side is cut at both ends first.
    Center,
}

/// Scales every frame to `to`.
pub fn common_upscale(frames: &Frames, to: Size, method: ScaleMethod, crop: Crop) -> Result<Frames, PixelError> {
    let cropped = match crop {
        Crop::Disabled => None,
        Crop::Center => Some(frames.crop(&centre(frames.size(), to)?)),
    };
    let frames = cropped.as_ref().unwrap_or(frames);
    match method {
        ScaleMethod::Float(interpolation) => resize_float(frames, to, interpolation),
        ScaleMethod::Lanczos => resize_bytes(frames, to, Filter::Lanczos),
    }
}

/// The middle of a picture of size `from` that has the ratio of `to`.
fn centre(from: Size, to: Size) -> Result<Corners, PixelError> {
    let (width, height) = (f64::from(from.width), f64::from(from.height));
    let old = width / height;
    let new = f64::from(to.width) / f64::from(to.height);
    let x = if old > new { ((width - width * (new / old)) / 2.0).round_ties_even() as i64 } else { 0 };
    let y = if old < new { ((height - height * (old / new)) / 2.0).round_ties_even() as i64 } else { 0 };
    let region = Corners::new(x, y, i64::from(from.width) - x, i64::from(from.height) - y);
    Ok(region.size().map(|_| region)?)
}

/// Resizes every frame in floating point.
pub fn resize_float(frames: &Frames, to: Size, interpolation: Interpolation) -> Result<Frames, PixelError> {
    let resizer = FloatResizer::new(interpolation, frames.size(), to, frames.channels)?;
    let data = (0..frames.frames).flat_map(|index| resizer.picture(frames.frame(index))).collect();
    Frames::new(frames.frames, to, frames.channels, data)
}

/// Resizes every frame through bytes, which are cut from the samples even where the size stays.
pub fn resize_bytes(frames: &Frames, to: Size, filter: Filter) -> Result<Frames, PixelError> {
    if !matches!(frames.channels, 3 | 4) {
        return Err(PixelError::Channels { operation: "8-bit resampling", want: "3 or 4", got: frames.channels });
    }
    let resizer = ByteResizer::new(filter, frames.size(), to, frames.channels)?;
    let frame = |index| dequantise(&resizer.picture(&quantise(frames.frame(index))));
    let data = (0..frames.frames).flat_map(frame).collect();
    Frames::new(frames.frames, to, frames.channels, data)
}

/// The resize of the SEGS nodes: 8-bit Lanczos for 3 or 4 channels, float bilinear for one.
pub fn tensor_resize(frames: &Frames, to: Size) -> Result<Frames, PixelError> {
    match frames.channels {
        1 => resize_float(frames, to, Interpolation::Bilinear),
        3 | 4 => resize_bytes(frames, to, Filter::Lanczos),
        got => Err(PixelError::Channels { operation: "tensor_resize", want: "1, 3 or 4", got }),
    }
}

/// The size that `ImageScale` makes of a picture: a side given as 0 follows the other, both 0 keep the size.
pub fn image_scale_size(from: Size, width: u32, height: u32) -> Size {
    let follow = |side: u32, other: u32, from_other: u32| {
        let length = f64::from(side) * f64::from(other) / f64::from(from_other);
        (length.round_ties_even() as u32).max(1)
    };
    match (width, height) {
        (0, 0) => from,
        (0, _) => Size::new(follow(from.width, height, from.height), height),
        (_, 0) => Size::new(width, follow(from.height, width, from.width)),
        _ => Size::new(width, height),
    }
}

/// The size that `ImageScaleBy` makes of a picture. A size without pixels is refused.
pub fn image_scale_by_size(from: Size, scale_by: f64) -> Result<Size, PixelError> {
    let side = |length: u32| (f64::from(length) * scale_by).round_ties_even() as u32;
    let size = Size::new(side(from.width), side(from.height));
    if size.pixels() == 0 { Err(PixelError::Empty { operation: "ImageScaleBy", size }) } else { Ok(size) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_channel_cannot_be_resized_by_lanczos() {
        let grey = Frames::new(1, Size::new(2, 2), 1, vec![0.5; 4]).unwrap();
        let refused = common_upscale(&grey, Size::new(4, 4), ScaleMethod::Lanczos, Crop::Disabled).unwrap_err();
        assert_eq!(refused.to_string(), "8-bit resampling takes 3 or 4 channels, not 1");
        assert_eq!(tensor_resize(&grey, Size::new(4, 4)).unwrap().data, vec![0.5; 16]);
    }

    #[test]
    fn a_crop_that_leaves_nothing_is_refused() {
        let thin = Frames::new(1, Size::new(1, 50), 3, vec![0.5; 150]).unwrap();
        let wide = Size::new(1000, 1);
        let bilinear = ScaleMethod::Float(Interpolation::Bilinear);
        assert!(common_upscale(&thin, wide, bilinear, Crop::Disabled).is_ok());
        assert!(matches!(common_upscale(&thin, wide, bilinear, Crop::Center), Err(PixelError::EmptyRegion { .. })));
    }
}
