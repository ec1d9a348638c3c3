//! The SEGS nodes from end to end, but for the diffusion in their middle (reference: pixels.md, section 10).
//!
//! What a node does to pixels before and after sampling is here; the [`Diffusion`] is the caller's. So the same code
//! serves a worker with a network and a test with a stand-in.

use domain::{
    region::Size,
    working::{DetailSize, rescaled, to_at_least_8},
};

use crate::{
    bytes::{dequantise, quantise},
    frames::{Frames, PixelError},
    mask::{JOINED_THRESHOLD, Mask},
    paste::tensor_paste,
    resample::{
        Crop, ScaleMethod,
        bytes8::{ByteResizer, Filter},
        common_upscale, tensor_resize,
    },
    segs::{Seg, Segs},
};

/// A network that redraws pixels. A stack of frames goes through it in one call.
pub trait Diffusion {
    /// Pixels as the network keeps them between steps, with what of them may change.
    type Latent;
    /// Why it failed.
    type Error: From<PixelError>;
    /// Pixels to latents, of which `noise_mask`, of any size, says how much may change. Cuts the pixels to multiples of 8,
    /// see [`domain::working::multiples_of_8`].
    fn encode(&mut self, pixels: &Frames, noise_mask: Option<&Mask>) -> Result<Self::Latent, Self::Error>;
    /// Redraws.
    fn sample(&mut self, latent: Self::Latent, seed: u64) -> Result<Self::Latent, Self::Error>;
    /// Latents to pixels.
    fn decode(&mut self, latent: &Self::Latent) -> Result<Frames, Self::Error>;
}

/// How one crop is redrawn: the unit of work of the nodes below, and of a worker.
#[derive(Debug, Clone, Copy)]
pub struct Redrawing<'a> {
    /// The size at which it is redrawn.
    pub size: Size,
    /// Cuts pixels to bytes before and after, also where their size does not change.
    pub is_quantised: bool,
    /// What is redrawn, of any size; `None`: all of it.
    pub mask: Option<&'a Mask>,
    /// Softens the edges of what is redrawn.
    pub noise_mask_feather: i64,
    /// How many times it is redrawn from its own result, each time with the next seed.
    pub cycle: usize,
    /// The seed of the first time.
    pub seed: u64,
}

impl Redrawing<'_> {
    /// Redraws `crop`. The result is as large as it was.
    pub fn run<D: Diffusion>(&self, crop: &Frames, diffusion: &mut D) -> Result<Frames, D::Error> {
        let resized = |pixels: Frames, size: Size| {
            if pixels.size() == size && !self.is_quantised { Ok(pixels) } else { tensor_resize(&pixels, size) }
        };
        let noise_mask = self.mask.map(|mask| mask.feather(self.noise_mask_feather));
        let mut latent = diffusion.encode(&resized(crop.clone(), self.size)?, noise_mask.as_ref())?;
        for cycle in 0..self.cycle {
            latent = diffusion.sample(latent, seed_plus(self.seed, cycle)?)?;
        }
        Ok(resized(diffusion.decode(&latent)?, crop.size())?)
    }
}

/// One segment in work.
#[derive(Debug, Clone, Copy)]
pub struct Unit<'a> {
    /// Its place in the list.
    pub index: usize,
    /// The segment, as it lies on the picture.
    pub seg: &'a Seg,
    /// Its pixels.
    pub crop: &'a Frames,
    /// How they are redrawn.
    pub redrawing: Redrawing<'a>,
}

fn one_frame(operation: &'static str, picture: &Frames) -> Result<(), PixelError> {
    match picture.frames {
        1 => Ok(()),
        got => Err(PixelError::Frames { operation, want: 1, got }),
    }
}

fn seed_plus(seed: u64, step: usize) -> Result<u64, PixelError> {
    let step = step as u64;
    seed.checked_add(step).ok_or(PixelError::SeedOverflow { seed, step })
}

/// Parameters of `SEGSUpscalerPipe` that concern pixels.
///
/// `resampling_method` and `rounding_modulus` are not among them: the node offers them, and they change nothing.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SegsUpscaler {
    /// How many times as large the picture becomes.
    pub rescale_factor: f64,
    /// Resizes to 8 times the target first.
    pub supersample: bool,
    /// Softens the edges of what is pasted.
    pub feather: i64,
    /// Softens the edges of what is redrawn.
    pub noise_mask_feather: i64,
    /// Seed of the first segment; each further one adds 1, skipped ones too.
    pub seed: u64,
    /// Does what the reference does also where it is a mistake.
    pub reference_quirks: bool,
}

/// A network for whole pictures, as `ImageUpscaleWithModel` runs it.
pub type UpscaleModel<'a, E> = dyn FnMut(&Frames) -> Result<Frames, E> + 'a;

impl SegsUpscaler {
    /// The size that a picture of size `from` becomes; one without pixels is refused.
    pub fn size(&self, from: Size) -> Result<Size, PixelError> {
        rescaled(from, self.rescale_factor).ok_or(PixelError::Empty { operation: "SEGSUpscaler", size: from })
    }

    /// Enlarges the picture: by the model, if there is one, and then by 8-bit bicubic to the exact size.
    pub fn enlarge<E: From<PixelError>>(
        &self,
        picture: &Frames,
        model: Option<&mut UpscaleModel<'_, E>>,
    ) -> Result<Frames, E> {
        one_frame("SEGSUpscaler", picture)?;
        if picture.channels != 3 {
            return Err(PixelError::Channels { operation: "SEGSUpscaler", want: "3", got: picture.channels }.into());
        }
        let target = self.size(picture.size())?;
        let upscaled = model.map(|model| model(picture)).transpose()?;
        let source = upscaled.as_ref().unwrap_or(picture);
        let (mut bytes, mut size) = (quantise(&source.data), source.size());
        let mut resize = |to: Size| {
            bytes = ByteResizer::new(Filter::Bicubic, size, to, 3)?.picture(&bytes);
            size = to;
            Ok::<_, PixelError>(())
        };
        if self.supersample {
            resize(target.scaled(8).ok_or(PixelError::Empty { operation: "supersampling", size: target })?)?;
        }
        resize(target)?;
        Ok(Frames::new(1, target, 3, dequantise(&bytes))?)
    }

    /// Enlarges the picture and redraws every segment in it, each on top of the ones before.
    pub fn run<D: Diffusion>(
        &self,
        picture: &Frames,
        segs: &Segs,
        model: Option<&mut UpscaleModel<'_, D::Error>>,
        diffusion: &mut D,
    ) -> Result<Frames, D::Error> {
        self.run_each(picture, segs, model, |Unit { redrawing, crop, .. }| redrawing.run(crop, diffusion))
    }

    /// Does what [`Self::run`] does, with whatever redraws a segment.
    pub fn run_each<E: From<PixelError>>(
        &self,
        picture: &Frames,
        segs: &Segs,
        model: Option<&mut UpscaleModel<'_, E>>,
        mut redraw: impl FnMut(Unit<'_>) -> Result<Frames, E>,
    ) -> Result<Frames, E> {
        let mut picture = self.enlarge(picture, model)?;
        let segs = segs.scale_match(picture.size(), self.reference_quirks)?;
        for (index, seg) in segs.segs.iter().enumerate() {
            if seg.cropped_mask.is_zero() {
                continue;
            }
            let crop = &picture.crop(&seg.crop_region);
            let redrawing = Redrawing {
                size: to_at_least_8(crop.size()),
                is_quantised: false,
                mask: Some(&seg.cropped_mask),
                noise_mask_feather: self.noise_mask_feather,
                cycle: 1,
                seed: seed_plus(self.seed, index)?,
            };
            let patch = redraw(Unit { index, seg, crop, redrawing })?;
            let mask = seg.cropped_mask.feather(self.feather);
            tensor_paste(&mut picture, &patch, (seg.crop_region.x1, seg.crop_region.y1), &mask)?;
        }
        Ok(picture)
    }
}

/// Parameters of `SEGSDetailer` that concern pixels.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SegsDetailer {
    /// How large segments are redrawn.
    pub size: DetailSize,
    /// Redraws only what the segment's mask holds.
    pub noise_mask: bool,
    /// Softens the edges of what is redrawn.
    pub noise_mask_feather: i64,
    /// How many times all segments are redrawn, each time from the original and with the next seed.
    pub batch_size: usize,
    /// How many times a segment is redrawn from its own result.
    pub cycle: usize,
    /// The seed; the first round adds 1.
    pub seed: u64,
    /// Does what the reference does also where it is a mistake.
    pub reference_quirks: bool,
}

impl SegsDetailer {
    /// Redraws every segment, `batch_size` times over, and gives them with their new images. The picture stays.
    pub fn run<D: Diffusion>(&self, picture: &Frames, segs: &Segs, diffusion: &mut D) -> Result<Segs, D::Error> {
        self.run_each(picture, segs, |Unit { redrawing, crop, .. }| redrawing.run(crop, diffusion))
    }

    /// Does what [`Self::run`] does, with whatever redraws a segment.
    pub fn run_each<E: From<PixelError>>(
        &self,
        picture: &Frames,
        segs: &Segs,
        mut redraw: impl FnMut(Unit<'_>) -> Result<Frames, E>,
    ) -> Result<Segs, E> {
        one_frame("SEGSDetailer", picture)?;
        let segs = segs.scale_match(picture.size(), self.reference_quirks)?;
        let mut out = Segs { header: segs.header, segs: Vec::with_capacity(segs.segs.len() * self.batch_size) };
        for round in 1..=self.batch_size {
            for (index, seg) in segs.segs.iter().enumerate() {
                if seg.cropped_mask.is_zero() {
                    out.segs.push(seg.clone());
                    continue;
                }
                let crop = seg.pixels(picture);
                let redrawn = match self.size.of(crop.size(), seg.bbox.into()).map_err(PixelError::from)? {
                    None => crop,
                    Some(size) => {
                        let redrawing = Redrawing {
                            size,
                            is_quantised: true,
                            mask: self.noise_mask.then_some(&seg.cropped_mask),
                            noise_mask_feather: self.noise_mask_feather,
                            cycle: self.cycle,
                            seed: seed_plus(self.seed, round)?,
                        };
                        redraw(Unit { index, seg, crop: &crop, redrawing })?
                    }
                };
                out.segs.push(Seg { cropped_image: Some(redrawn), ..seg.clone() });
            }
        }
        Ok(out)
    }
}

/// Parameters of `SEGSDetailerForAnimateDiff` that concern pixels.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SegsDetailerAnimated {
    /// How large segments are redrawn; nothing is ever skipped, so inpainting is forced.
    pub size: DetailSize,
    /// Softens the edges of what is redrawn.
    pub noise_mask_feather: i64,
    /// The seed, the same for every segment.
    pub seed: u64,
    /// Does what the reference does also where it is a mistake.
    pub reference_quirks: bool,
}

impl SegsDetailerAnimated {
    /// Redraws every segment in all frames at once, and gives the segments with their new images.
    ///
    /// A segment that brings pixels of its own must bring them for every frame. (The reference would take all of them
    /// again for each frame.)
    pub fn run<D: Diffusion>(&self, frames: &Frames, segs: &Segs, diffusion: &mut D) -> Result<Segs, D::Error> {
        let size = DetailSize { force_inpaint: true, ..self.size };
        let mut segs = segs.scale_match(frames.size(), self.reference_quirks)?;
        for seg in &mut segs.segs {
            let pixels = seg.pixels(frames);
            if pixels.frames != frames.frames {
                let operation = "a segment's own image in an animation";
                return Err(PixelError::Frames { operation, want: frames.frames, got: pixels.frames }.into());
            }
            let to = size.of(pixels.size(), seg.bbox.into()).map_err(PixelError::from)?.unwrap_or(pixels.size());
            let noise_mask = animated_noise_mask(&seg.cropped_mask, self.noise_mask_feather, to, frames.frames)?;
            let latent = diffusion.encode(&tensor_resize(&pixels, to)?, Some(&noise_mask))?;
            let latent = diffusion.sample(latent, self.seed)?;
            seg.cropped_image = Some(tensor_resize(&diffusion.decode(&latent)?, pixels.size())?);
        }
        Ok(segs)
    }
}

/// The noise mask of an animation: softened at the crop's size, then resized, one per mask frame.
///
/// Several masks that are not one per frame are joined into one that all frames share. The first of them is lost,
/// because the reference turns it into bytes without the factor of 255.
fn animated_noise_mask(mask: &Mask, feather: i64, to: Size, frames: usize) -> Result<Mask, PixelError> {
    let mut mask = mask.feather(feather).resize(to)?;
    if mask.frames == 1 || mask.frames == frames {
        return Ok(mask);
    }
    let first = mask.frame_len();
    mask.data[..first].iter_mut().for_each(|x| *x = x.trunc() / 255.0);
    let mut joined = vec![0; first];
    (0..mask.frames).for_each(|index| crate::bytes::or_into(&mut joined, mask.frame(index)));
    let joined = Mask::from_bytes(to, &joined)?.binary(JOINED_THRESHOLD);
    Mask::new(frames, to, joined.data.repeat(frames))
}

/// Enlarges by a model until the *width* reaches that of `to`, or once if the model does not enlarge, then scales to
/// the exact size. A picture that is wide enough does not see the model.
pub fn upscale_with_model_then_scale<E: From<PixelError>>(
    picture: &Frames,
    to: Size,
    method: ScaleMethod,
    mut model: impl FnMut(&Frames) -> Result<Frames, E>,
) -> Result<Frames, E> {
    let mut current = None;
    loop {
        let from = current.as_ref().unwrap_or(picture);
        if from.width >= to.width as usize {
            return Ok(common_upscale(from, to, method, Crop::Disabled)?);
        }
        let upscaled = model(from)?;
        if upscaled.width <= from.width {
            return Ok(common_upscale(&upscaled, to, method, Crop::Disabled)?);
        }
        current = Some(upscaled);
    }
}

/// The masks of the two masked samplers, at the latent's size: `[batch, channels, height, width]` as attached.
#[derive(Debug, Clone, PartialEq)]
pub struct TwoSamplersMasks {
    /// Of the sampler for the rest: 1 where the mask is not exactly 1, else 0.
    pub base: Mask,
    /// Of the sampler for the masked part.
    pub masked: Mask,
}

impl TwoSamplersMasks {
    /// Resizes the mask for a latent of size `to`, corners aligned.
    ///
    /// A mask is resized frame by frame. With `reference_quirks` a single one is distorted as the reference does it: every
    /// row becomes a layer of its own that varies along the latent's height only, and of these samplers use the first (Q14).
    pub fn new(mask: &Mask, to: Size, reference_quirks: bool) -> Result<Self, PixelError> {
        if to.pixels() == 0 || mask.data.is_empty() {
            return Err(PixelError::Empty { operation: "the masks of two samplers", size: to });
        }
        let masked = if mask.frames > 1 || !reference_quirks {
            let frames = (0..mask.frames).flat_map(|index| aligned(mask.frame(index), mask.size(), to));
            Mask::new(mask.frames, to, frames.collect())?
        } else {
            let column = Size::new(1, mask.width as u32);
            let layers = mask.data.chunks_exact(mask.width).flat_map(|row| aligned(row, column, to));
            Mask::new(mask.height, to, layers.collect())?
        };
        let base = masked.clone().map(|x| if x == 1.0 { 0.0 } else { 1.0 });
        Ok(Self { base, masked })
    }
}

/// Resizes by bilinear with the corners of both sizes on one another.
///
/// The weights of a pixel are products, each rounded, and what they weigh is added up in order with one rounding each: so the
/// middle of a plateau of ones is here and there not exactly 1, and just there the reference's base sampler redraws it too.
fn aligned(values: &[f32], from: Size, to: Size) -> Vec<f32> {
    let axis = |i: u32, from: u32, to: u32| {
        let ratio = if to > 1 { (from - 1) as f32 / (to - 1) as f32 } else { 0.0 };
        let position = ratio * i as f32;
        let first = (position as usize).min(from as usize - 1);
        let part = position - first as f32;
        [(first, 1.0 - part), ((first + 1).min(from as usize - 1), part)]
    };
    let mut out = Vec::with_capacity(to.pixels() as usize);
    for y in 0..to.height {
        let rows = axis(y, from.height, to.height);
        for x in 0..to.width {
            let columns = axis(x, from.width, to.width);
            let corners = rows.iter().flat_map(|row| columns.iter().map(move |column| (row, column)));
            out.push(corners.fold(0.0_f32, |sum, ((y, down), (x, across))| {
                let value = values[y * from.width as usize + x];
                (f64::from(sum) + f64::from(down * across) * f64::from(value)) as f32
            }));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_that_overflows_is_refused() {
        assert_eq!(seed_plus(u64::MAX, 1), Err(PixelError::SeedOverflow { seed: u64::MAX, step: 1 }));
    }
}
