//! Redrawing a crop or a latent: plain pixels on both sides, sampling as the detailers do in between.
//!
//! A [`Redraw`] says with what and how; [`Redraw::encode`] makes a [`Canvas`] of pixels, [`Redraw::sample`] redraws it, and
//! [`Redraw::decode`] shows it. What pixels become before and after is the caller's (reference: detailers.md, sections 3 and 4).

use std::sync::Arc;

use candle_core::{Device, Tensor};
use weights::detect::diffusion::Purpose;

use super::{
    batch::Seat,
    conditioning::{Concat, Conditioning, Control},
    controlnet::ControlNet,
    detail::{self, Extent, Levels, Refiner},
    generate::Pixels,
    guidance::{DifferentialDiffusion, Network, Prompts},
    model::Model,
    samplers::{SampleError, Sampler, Step},
    sampling::{Latent, Task},
    vae::{Tiling, Vae},
};
use crate::{
    error::{ModelError, Result as ModelResult},
    watch::{Share, Watch},
};

/// How much neighbouring tiles of a tiled VAE overlap, in pixels.
const VAE_OVERLAP: usize = 64;

/// The networks and encoded prompts that something is redrawn with (the reference's BASIC_PIPE).
#[derive(Debug, Clone)]
pub struct Pipe {
    /// The networks.
    pub model: Arc<Model>,
    /// What is wanted.
    pub positive: Vec<Conditioning>,
    /// What is not wanted.
    pub negative: Vec<Conditioning>,
}

/// Why something was not redrawn.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RedrawError {
    /// The model lacks a part.
    #[error("the model has no {part}")]
    Lacks {
        /// The part.
        part: &'static str,
    },
    /// The latent could not be sampled.
    #[error(transparent)]
    Sample(#[from] SampleError),
    /// A network cannot be run, or whoever watched asked to stop.
    #[error(transparent)]
    Model(#[from] ModelError),
}

impl RedrawError {
    /// The failure of a network, if it is one.
    pub fn model_error(&self) -> Option<&ModelError> {
        match self {
            Self::Model(error) | Self::Sample(SampleError::Model(error)) => Some(error),
            Self::Sample(_) | Self::Lacks { .. } => None,
        }
    }

    /// Whether numbers of 16 bits were too short for what was computed, so that those of 32 may do.
    pub fn is_overflow(&self) -> bool {
        matches!(self, Self::Sample(SampleError::NotFinite { .. }))
    }
}

/// What functions of this module return.
pub type Result<T, E = RedrawError> = std::result::Result<T, E>;

/// A control net and the picture that it sees.
#[derive(Debug, Clone)]
pub struct ControlPart {
    /// The network.
    pub net: Arc<ControlNet>,
    /// The picture; `None`: the pixels that are redrawn.
    pub image: Option<Pixels>,
    /// A factor of what it says; 0 changes nothing.
    pub strength: f64,
    /// The share of the timesteps at which it begins, 0 to 1.
    pub start_percent: f64,
    /// The share of the timesteps at which it ends, 0 to 1.
    pub end_percent: f64,
    /// Whether negative prompts have it too. Else they share what positive ones have, unless they have controls of their own.
    pub is_advanced: bool,
}

impl ControlPart {
    /// Adds it to the prompts of both sides; gives the picture that it sees of `pixels`.
    fn apply(
        &self,
        pixels: &Pixels,
        positive: &mut [Conditioning],
        negative: &mut [Conditioning],
    ) -> ModelResult<Pixels> {
        let picture = self.image.as_ref().unwrap_or(pixels);
        if self.strength != 0.0 {
            let control = Control {
                net: self.net.clone(),
                hint: picture.picture("control picture")?,
                strength: self.strength,
                start_percent: self.start_percent,
                end_percent: self.end_percent,
            };
            let sides = [Some(positive), self.is_advanced.then_some(negative)];
            for conditioning in sides.into_iter().flatten().flatten() {
                conditioning.controls.push(control.clone());
                conditioning.control_apply_to_uncond = !self.is_advanced;
            }
        }
        Ok(picture.clone())
    }
}

/// With what, and how, pixels are redrawn.
#[derive(Debug, Clone)]
pub struct Redraw<'a> {
    /// What redraws.
    pub base: &'a Pipe,
    /// What takes the last steps, and its share of them, 0 to 1. Its VAE is not used, and controls are not its.
    pub refiner: Option<(&'a Pipe, f64)>,
    /// What steers the base, in the order in which it is applied.
    pub controls: &'a [ControlPart],
    /// The sampler.
    pub sampler: &'static Sampler,
    /// Where the noise levels come from.
    pub levels: Levels,
    /// How far it goes.
    pub extent: Extent,
    /// How far predictions are moved from what is not wanted to what is wanted, and beyond.
    pub cfg: f64,
    /// Whether the base's noise mask is hard, and moves.
    pub differential: Option<DifferentialDiffusion>,
    /// Hides from an inpainting network what is redrawn.
    pub inpaint_model: bool,
    /// Where the calls of other runs go along, if they do.
    pub seat: Option<&'a Seat>,
}

/// A latent in work, with the prompts that it is redrawn by.
#[derive(Debug, Clone)]
pub struct Canvas {
    latent: Latent,
    positive: Vec<Conditioning>,
    negative: Vec<Conditioning>,
    /// The pictures that control nets see, in their order, those of strength 0 too.
    pub control_pictures: Vec<Pixels>,
}

impl Redraw<'_> {
    /// Makes a latent of pixels, of which `noise_mask`, of any size, says what may change. Pixels are cut, around their middle, to
    /// multiples of 8.
    ///
    /// # Errors
    /// If pixels and mask do not fit the networks, `watch` says to stop, or the device fails.
    pub fn encode(&self, pixels: &Pixels, noise_mask: Option<&Pixels>, watch: &dyn Watch) -> Result<Canvas> {
        let vae = vae_of(&self.base.model)?;
        let (mut positive, mut negative) = (self.base.positive.clone(), self.base.negative.clone());
        let apply = |control: &ControlPart| control.apply(pixels, &mut positive, &mut negative);
        let control_pictures = self.controls.iter().map(apply).collect::<ModelResult<_>>()?;
        let picture = maps(pixels)?;
        let mask = noise_mask.map(mask_tensor).transpose()?;
        let latent = match mask.filter(|_| self.inpaint_model) {
            Some(mask) if self.base.model.purpose == Purpose::Inpaint => {
                let (latent, concat) = hidden_from_inpaint_model(vae, &picture, &mask, watch)?;
                for conditioning in positive.iter_mut().chain(&mut negative) {
                    conditioning.concat = Some(concat.clone());
                }
                latent
            }
            Some(mask) => {
                // The network has no use for what is hidden, but its mask has gone the same way.
                let (picture, mask) = vae.crop_with_mask(&picture, &mask)?;
                let mask = mask.squeeze(1).map_err(ModelError::from)?;
                Latent { noise_mask: Some(mask), ..Latent::new(vae.encode(&picture, watch)?) }
            }
            None => {
                let noise_mask = noise_mask.map(mask_tensor).transpose()?;
                Latent { noise_mask, ..Latent::new(vae.encode(&vae.crop(&picture)?, watch)?) }
            }
        };
        Ok(Canvas { latent, positive, negative, control_pictures })
    }

    /// Takes a latent that exists already, of which `noise_mask`, of any size, says what may change. Controls without a picture
    /// of their own are left out: there are no pixels for them to see.
    ///
    /// # Errors
    /// If the device fails.
    pub fn canvas(&self, latent: &LatentValues, noise_mask: Option<&Pixels>) -> Result<Canvas> {
        let (mut positive, mut negative) = (self.base.positive.clone(), self.base.negative.clone());
        for control in self.controls {
            if let Some(image) = &control.image {
                control.apply(image, &mut positive, &mut negative)?;
            }
        }
        let noise_mask = noise_mask.map(mask_tensor).transpose()?;
        let latent = Latent { noise_mask, ..Latent::new(latent.tensor()?) };
        Ok(Canvas { latent, positive, negative, control_pictures: Vec::new() })
    }

    /// Redraws, and shows each step to `preview` (latents there are scaled).
    ///
    /// # Errors
    /// If the latent does not fit the networks, a prediction is no number, `watch` says to stop, or the device fails.
    pub fn sample(
        &self,
        canvas: Canvas,
        seed: u64,
        watch: &dyn Watch,
        preview: &mut dyn FnMut(&Step<'_>),
    ) -> Result<Canvas> {
        let share = self.refiner.map_or(0.0, |(_, ratio)| ratio);
        let watches = [(0.0, 1.0 - share), (1.0 - share, share)].map(|(from, part)| Share { watch, from, part });
        let task = Task {
            network: Network { seat: self.seat, ..self.base.model.network() },
            prompts: Prompts { positive: &canvas.positive, negative: &canvas.negative, cfg: self.cfg },
            sampler: self.sampler,
            seed,
            differential: self.differential,
            watch: &watches[0],
        };
        let refine = self.refiner.map(|(pipe, ratio)| {
            let prompts = Prompts { positive: &pipe.positive, negative: &pipe.negative, cfg: self.cfg };
            let network = Network { seat: self.seat, ..pipe.model.network() };
            (Task { network, prompts, differential: None, watch: &watches[1], ..task }, ratio)
        });
        let refiner = refine.as_ref().map(|(task, ratio)| Refiner { task, ratio: *ratio });
        let samples = detail::detail(&task, &self.levels, self.extent, refiner, &canvas.latent, preview)?;
        Ok(Canvas { latent: Latent { samples, ..canvas.latent }, ..canvas })
    }

    /// Shows what is in the latent.
    ///
    /// # Errors
    /// If `watch` says to stop, or the device fails.
    pub fn decode(&self, canvas: &Canvas, watch: &dyn Watch) -> Result<Pixels> {
        Ok(Pixels::of(&vae_of(&self.base.model)?.decode(&canvas.latent.samples, watch)?)?)
    }
}

impl Canvas {
    /// The latent as plain numbers.
    ///
    /// # Errors
    /// If the device fails.
    pub fn values(&self) -> Result<LatentValues> {
        Ok(LatentValues::of(&self.latent.samples)?)
    }
}

/// Latents of one size as plain numbers.
#[derive(Debug, Clone, PartialEq)]
pub struct LatentValues {
    /// How many there are.
    pub batch: usize,
    /// Channels.
    pub channels: usize,
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
    /// Values as an autoencoder makes them, [batch, channels, height, width].
    pub values: Vec<f32>,
}

impl LatentValues {
    fn of(latent: &Tensor) -> ModelResult<Self> {
        let (batch, channels, height, width) = latent.dims4()?;
        let values = latent.to_device(&Device::Cpu)?.flatten_all()?.to_vec1()?;
        Ok(Self { batch, channels, height, width, values })
    }

    fn tensor(&self) -> ModelResult<Tensor> {
        let (wanted, found) = (vec![self.batch, self.channels, self.height, self.width], vec![self.values.len()]);
        if self.values.is_empty() || self.values.len() != wanted.iter().product::<usize>() {
            return Err(ModelError::Tensor { name: "latent", wanted, found });
        }
        Ok(Tensor::from_vec(self.values.clone(), wanted, &Device::Cpu)?)
    }

    /// Encodes a picture, cut around its middle to multiples of 8; in tiles of `tile_size` pixels, if there are to be such.
    ///
    /// # Errors
    /// If the picture or the tiles do not fit the network, `watch` says to stop, or the device fails.
    pub fn encode(vae: &Vae, picture: &Pixels, tile_size: Option<usize>, watch: &dyn Watch) -> ModelResult<Self> {
        let picture = vae.crop(&maps(picture)?)?;
        Self::of(&match tile_size {
            Some(tile) => vae.encode_tiled(&picture, Tiling::of_encode_node(tile, VAE_OVERLAP), watch)?,
            None => vae.encode(&picture, watch)?,
        })
    }

    /// Decodes the latent; in tiles of `tile_size` pixels, if there are to be such.
    ///
    /// # Errors
    /// If the latent or the tiles do not fit the network, `watch` says to stop, or the device fails.
    pub fn decode(&self, vae: &Vae, tile_size: Option<usize>, watch: &dyn Watch) -> ModelResult<Pixels> {
        let latent = self.tensor()?;
        Pixels::of(&match tile_size {
            Some(tile) => {
                let tiling = Tiling::of_decode_node(tile, VAE_OVERLAP, vae.layout().scale());
                vae.decode_tiled(&latent, tiling, watch)?
            }
            None => vae.decode(&latent, watch)?,
        })
    }
}

fn vae_of(model: &Model) -> Result<&Vae> {
    model.vae.as_deref().ok_or(RedrawError::Lacks { part: "VAE" })
}

/// Pictures as networks take them, [n, 3, h, w].
pub(super) fn maps(picture: &Pixels) -> ModelResult<Tensor> {
    Ok(picture.picture("picture")?.permute((0, 3, 1, 2))?.contiguous()?)
}

/// The latent of pictures, [n, 3, h, w], that an inpainting network is to redraw where a mask, [n, h, w], is, and what it sees of them.
pub(super) fn hidden_from_inpaint_model(
    vae: &Vae,
    pictures: &Tensor,
    mask: &Tensor,
    watch: &dyn Watch,
) -> ModelResult<(Latent, Concat)> {
    let inpaint = vae.encode_for_inpaint_model(pictures, mask, watch)?;
    let mask = inpaint.concat_mask.squeeze(1)?;
    let concat = Concat { latent_image: inpaint.concat_latent_image, mask: mask.clone() };
    Ok((Latent { noise_mask: Some(mask), ..Latent::new(inpaint.latents) }, concat))
}

/// Masks, [n, h, w].
pub(super) fn mask_tensor(mask: &Pixels) -> ModelResult<Tensor> {
    mask.tensor("mask", &[mask.frames, mask.height, mask.width])
}

/// The bytes that the largest call for a picture of `height` x `width` pixels takes beside the weights: of the network with both
/// sides of guidance as one batch and with `controls`, of the decoder, and of the encoder where `encodes` says so; the latter two in
/// tiles of `vae_tile` pixels, if there are to be such.
pub fn memory_bytes<'a>(
    model: &Model,
    controls: impl IntoIterator<Item = &'a ControlNet>,
    (height, width): (usize, usize),
    encodes: bool,
    vae_tile: Option<usize>,
) -> u64 {
    /// Prompts are one chunk each, or so.
    const TOKENS: usize = 77;
    let engine = model.backend.engine();
    let scale = model.vae.as_ref().map_or(8, |vae| vae.layout().scale());
    let (h, w) = (height / scale, width / scale);
    let said: u64 = controls.into_iter().map(|net| net.layout().call_bytes(engine, 2, h, w, TOKENS)).sum();
    let unet = model.unet.layout().call_bytes(engine, 2, h, w, TOKENS).saturating_add(said);
    let Some(vae) = &model.vae else { return unet };
    let picture = (h * w * scale * scale * vae.layout().in_channels * size_of::<f32>()) as u64;
    let (cells_h, cells_w, kept) = match vae_tile {
        None => (h, w, 0),
        // A tile of any pass has as many numbers as one of the last.
        Some(tile) => (h.min(tile / scale), w.min(tile / scale), 2 * picture),
    };
    let decode = kept + vae.layout().decode_bytes(engine, 1, cells_h, cells_w);
    let encode =
        if encodes { kept + vae.layout().encode_bytes(engine, 1, cells_h * scale, cells_w * scale) } else { 0 };
    unet.max(decode).max(encode)
}
