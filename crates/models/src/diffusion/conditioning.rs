//! What a run is conditioned with: encoded prompts, and where, when and how strongly each of them counts.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use weights::detect::diffusion::{REFINER_SIZES, SDXL_SIZES};

use super::{
    controlnet::ControlNet,
    generate::Pixels,
    redraw::mask_tensor,
    text::{
        error::TextError,
        size::{AESTHETIC_NEGATIVE, AESTHETIC_POSITIVE, RefinerSize, SdxlSize},
    },
    unet::Unet,
};
use crate::error::{ModelError, Result};

/// One encoded prompt of a side, positive or negative. A side is a list of them (the reference's CONDITIONING).
#[derive(Debug, Clone)]
pub struct Conditioning {
    /// A vector for each token, [1 or b, tokens, context_dim], f32 on the CPU.
    pub cond: Tensor,
    /// A vector for the prompt as a whole, [1 or b, c], f32 on the CPU, where the model takes one.
    pub pooled: Option<Tensor>,
    /// What SDXL is told beside the text. What is missing follows from the latent.
    pub told: Told,
    /// The part of the latent that it is for.
    pub area: Option<Area>,
    /// How much it counts at each place.
    pub mask: Option<ConditioningMask>,
    /// How much it counts against the others of its side.
    pub strength: f64,
    /// The share of the timesteps at which it begins, 0 to 1.
    pub start_percent: f64,
    /// The share of the timesteps at which it ends, 0 to 1.
    pub end_percent: f64,
    /// Networks that steer the run by a picture. What they give is added up.
    pub controls: Vec<Control>,
    /// Whether a negative prompt without controls of its own shares these (the older ControlNetApply).
    pub control_apply_to_uncond: bool,
    /// What an inpainting network sees of the picture.
    pub concat: Option<Concat>,
}

impl Conditioning {
    /// A prompt that counts everywhere and all the time.
    pub fn new(cond: Tensor, pooled: Option<Tensor>) -> Self {
        Self {
            cond,
            pooled,
            told: Told::default(),
            area: None,
            mask: None,
            strength: 1.0,
            start_percent: 0.0,
            end_percent: 1.0,
            controls: Vec::new(),
            control_apply_to_uncond: false,
            concat: None,
        }
    }

    /// This prompt where a mask holds, more or less (`ConditioningSetMask`).
    ///
    /// # Errors
    /// If the mask has no pixels.
    pub fn with_mask(self, mask: &Pixels, strength: f64, set_area_to_bounds: bool) -> Result<Self> {
        let mask = ConditioningMask { mask: mask_tensor(mask)?, strength, set_area_to_bounds };
        Ok(Self { mask: Some(mask), ..self })
    }

    /// The mean of this and another prompt (`ConditioningAverage`): `strength` of this one, the rest of `from`, of which only
    /// text and pooled output count. `from` is cut or lengthened with zeros to the tokens of this one.
    ///
    /// # Errors
    /// If the two are of different models.
    pub fn average(&self, from: &Self, strength: f64) -> Result<Self> {
        let tokens = self.cond.dim(1)?;
        let found = from.cond.dim(1)?;
        let fitting = match found.checked_sub(tokens) {
            Some(_) => from.cond.narrow(1, 0, tokens)?,
            None => from.cond.pad_with_zeros(1, 0, tokens - found)?,
        };
        let mean =
            |to: &Tensor, from: &Tensor| -> Result<Tensor> { Ok(((to * strength)? + (from * (1.0 - strength))?)?) };
        let pooled = match (&self.pooled, &from.pooled) {
            (Some(to), Some(from)) => Some(mean(to, from)?),
            (to, from) => to.clone().or_else(|| from.clone()),
        };
        Ok(Self { cond: mean(&self.cond, &fitting)?, pooled, ..self.clone() })
    }

    /// This prompt with the tokens of `from` behind its own (`ConditioningConcat`).
    ///
    /// # Errors
    /// If the two are of different models.
    pub fn concat_tokens(&self, from: &Self) -> Result<Self> {
        Ok(Self { cond: Tensor::cat(&[&self.cond, &from.cond], 1)?, ..self.clone() })
    }

    /// This prompt with zeros for all its numbers (`ConditioningZeroOut`).
    ///
    /// # Errors
    /// If there is no memory.
    pub fn zeroed(&self) -> Result<Self> {
        let pooled = self.pooled.as_ref().map(Tensor::zeros_like).transpose()?;
        Ok(Self { cond: self.cond.zeros_like()?, pooled, ..self.clone() })
    }
}

/// What SDXL and its refiner are told beside the text, in pixels; by the names of the reference's nodes.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[allow(missing_docs)] // the names are those of ComfyUI's nodes
pub struct Told {
    pub width: Option<f64>,
    pub height: Option<f64>,
    pub crop_w: Option<f64>,
    pub crop_h: Option<f64>,
    pub target_width: Option<f64>,
    pub target_height: Option<f64>,
    pub aesthetic_score: Option<f64>,
}

/// Which side of guidance a prompt stands on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// What is wanted.
    Positive,
    /// What is not wanted.
    Negative,
}

/// The part of a latent that a prompt is for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Area {
    /// In cells of the latent: `pixels / 8`.
    Cells {
        /// Its sides.
        height: usize,
        /// Its sides.
        width: usize,
        /// Where it begins.
        y: usize,
        /// Where it begins.
        x: usize,
    },
    /// In shares of the latent's sides, 0 to 1.
    Percentage {
        /// Its sides.
        height: f64,
        /// Its sides.
        width: f64,
        /// Where it begins.
        y: f64,
        /// Where it begins.
        x: f64,
    },
}

/// How much a prompt counts at each place.
#[derive(Debug, Clone)]
pub struct ConditioningMask {
    /// [n, h, w], f32 on the CPU, of any size: it is brought to that of the latent. Of several, the first are for the items of
    /// a batch.
    pub mask: Tensor,
    /// A factor of all of it (`mask_strength`).
    pub strength: f64,
    /// Whether the network sees no more of the latent than the mask needs (`set_area_to_bounds`).
    pub set_area_to_bounds: bool,
}

/// A ControlNet with the picture that it sees.
#[derive(Debug, Clone)]
pub struct Control {
    /// The network.
    pub net: Arc<ControlNet>,
    /// The picture, [b, h, w, 3], of values from 0 to 1, f32 on the CPU.
    pub hint: Tensor,
    /// A factor of what it gives.
    pub strength: f64,
    /// The share of the timesteps at which it begins, 0 to 1.
    pub start_percent: f64,
    /// The share of the timesteps at which it ends, 0 to 1.
    pub end_percent: f64,
}

/// What an inpainting network sees of the picture, beside the latent (`InpaintModelConditioning`).
#[derive(Debug, Clone)]
pub struct Concat {
    /// The latent of the picture without what is to be painted, [b, 4, h, w], not scaled.
    pub latent_image: Tensor,
    /// What is to be painted, [n, h, w], of any size.
    pub mask: Tensor,
}

/// What `unet` is told beside the text, [b, adm_in_channels], for a latent of `cells` (height, width); `None` if it takes nothing.
///
/// Whether a network is SDXL or its refiner follows from how many numbers it takes behind the pooled output.
pub(super) fn told(
    conditioning: &Conditioning,
    unet: &Unet,
    cells: (usize, usize),
    side: Side,
) -> Result<Option<Tensor>> {
    let Some(wanted) = unet.layout().adm_in_channels else { return Ok(None) };
    let refuse = |found: Vec<usize>| ModelError::Tensor {
        name: "pooled",
        wanted: vec![0, wanted.saturating_sub(SDXL_SIZES)],
        found,
    };
    let Some(pooled) = &conditioning.pooled else { return Err(refuse(Vec::new())) };
    let (_, c) = pooled.dims2().map_err(|_| refuse(pooled.dims().to_vec()))?;
    let Told { width, height, crop_w, crop_h, target_width, target_height, aesthetic_score } = conditioning.told;
    let (height, width) = (height.unwrap_or(8.0 * cells.0 as f64), width.unwrap_or(8.0 * cells.1 as f64));
    let (crop_h, crop_w) = (crop_h.unwrap_or(0.0), crop_w.unwrap_or(0.0));
    let y = match wanted.checked_sub(c) {
        Some(SDXL_SIZES) => {
            let (target_height, target_width) = (target_height.unwrap_or(height), target_width.unwrap_or(width));
            SdxlSize { height, width, crop_h, crop_w, target_height, target_width }.behind(pooled)
        }
        Some(REFINER_SIZES) => {
            let usual = if side == Side::Positive { AESTHETIC_POSITIVE } else { AESTHETIC_NEGATIVE };
            let aesthetic_score = aesthetic_score.unwrap_or(usual);
            RefinerSize { height, width, crop_h, crop_w, aesthetic_score }.behind(pooled)
        }
        _ => return Err(refuse(pooled.dims().to_vec())),
    };
    match y {
        Ok(y) => Ok(Some(y.to_device(&Device::Cpu)?)),
        Err(TextError::Model(error)) => Err(error),
        Err(_) => Err(refuse(pooled.dims().to_vec())),
    }
}
