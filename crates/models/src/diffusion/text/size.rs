//! What SDXL and its refiner are told of the picture's size (Podell et al. 2023, section 2.2).

use candle_core::{Device, Tensor};

use super::error::{Result, TextError};

/// The aesthetic score that the refiner is told with a positive prompt, unless another is wanted.
pub const AESTHETIC_POSITIVE: f64 = 6.0;
/// The aesthetic score that the refiner is told with a negative prompt, unless another is wanted.
pub const AESTHETIC_NEGATIVE: f64 = 2.5;

/// Numbers that each of them becomes: so many cosines and sines together.
const FEATURES: usize = 256;

/// The longest period of a sine, in units of the number over 2 pi.
const MAX_PERIOD: f64 = 10000.0;

/// What SDXL is told, in pixels.
#[derive(Debug, Clone, Copy, PartialEq)]
#[allow(missing_docs)] // the names are those of ComfyUI's nodes
pub struct SdxlSize {
    pub height: f64,
    pub width: f64,
    pub crop_h: f64,
    pub crop_w: f64,
    pub target_height: f64,
    pub target_width: f64,
}

impl SdxlSize {
    /// A picture of this size that is no part of a larger one.
    pub fn whole(height: f64, width: f64) -> Self {
        Self { height, width, crop_h: 0.0, crop_w: 0.0, target_height: height, target_width: width }
    }

    /// Puts it behind the pooled output, [b, c], to [b, c + 6*256].
    pub fn behind(&self, pooled: &Tensor) -> Result<Tensor> {
        let Self { height, width, crop_h, crop_w, target_height, target_width } = *self;
        behind(pooled, &[height, width, crop_h, crop_w, target_height, target_width])
    }
}

/// What the refiner is told: pixels, and how good the picture is.
#[derive(Debug, Clone, Copy, PartialEq)]
#[allow(missing_docs)] // the names are those of ComfyUI's nodes
pub struct RefinerSize {
    pub height: f64,
    pub width: f64,
    pub crop_h: f64,
    pub crop_w: f64,
    pub aesthetic_score: f64,
}

impl RefinerSize {
    /// A picture of this size that is no part of a larger one.
    pub fn whole(height: f64, width: f64, aesthetic_score: f64) -> Self {
        Self { height, width, crop_h: 0.0, crop_w: 0.0, aesthetic_score }
    }

    /// Puts it behind the pooled output, [b, c], to [b, c + 5*256].
    pub fn behind(&self, pooled: &Tensor) -> Result<Tensor> {
        let Self { height, width, crop_h, crop_w, aesthetic_score } = *self;
        behind(pooled, &[height, width, crop_h, crop_w, aesthetic_score])
    }
}

fn behind(pooled: &Tensor, numbers: &[f64]) -> Result<Tensor> {
    let &[b, _] = pooled.dims() else { return Err(TextError::Pooled { found: pooled.dims().to_vec() }) };
    let features: Vec<f32> = numbers.iter().flat_map(|&number| waves(number)).collect();
    let features = Tensor::from_vec(features, (1, numbers.len() * FEATURES), &Device::Cpu)?;
    let features = features.to_device(pooled.device())?.to_dtype(pooled.dtype())?;
    Ok(Tensor::cat(&[pooled, &features.broadcast_as((b, numbers.len() * FEATURES))?.contiguous()?], 1)?)
}

/// The cosines of a number, then its sines, slower and slower. The angles are f32, as in the reference.
fn waves(number: f64) -> Vec<f32> {
    let half = FEATURES / 2;
    let angle = |i: usize| {
        let exponent = -libm::log(MAX_PERIOD) as f32 * i as f32 / half as f32;
        f64::from(number as f32 * libm::exp(f64::from(exponent)) as f32)
    };
    let angles: Vec<f64> = (0..half).map(angle).collect();
    [libm::cos, libm::sin].iter().flat_map(|wave| angles.iter().map(|&angle| wave(angle) as f32)).collect()
}
