//! The SEGS nodes of the `pixels` form, with a stand-in where the diffusion would be.

use anyhow::Context;
use domain::{
    nodes::FullSamplerSchedule,
    region::{Corners, Size},
    working::{DetailSize, multiples_of_8},
};
use imaging::{
    flows::{
        Diffusion, SegsDetailer, SegsDetailerAnimated, SegsUpscaler, TwoSamplersMasks, UpscaleModel,
        upscale_with_model_then_scale as upscale_then_scale,
    },
    frames::{Frames, PixelError},
    mask::Mask,
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Answer, Failure, Got,
    cases::{Case, Tensor, Tensors},
    networks::Probe,
    pixels::{frames_tensor, to_frames, to_size},
    segs::{mask_tensor, put_segs, read_row, segs_param, to_mask},
};

/// Stands for the diffusion: keeps pixels as latents, cut to multiples of 8, and samples by `1 - x`.
#[derive(Default)]
struct StandIn {
    calls: Vec<Value>,
    noise_masks: Vec<Mask>,
}

impl Diffusion for StandIn {
    type Latent = (Frames, Option<Mask>);
    type Error = Failure;

    fn encode(&mut self, pixels: &Frames, noise_mask: Option<&Mask>) -> Result<Self::Latent, Failure> {
        Ok((pixels.crop(&multiples_of_8(pixels.size()).into()), noise_mask.cloned()))
    }

    fn sample(&mut self, (latent, noise_mask): Self::Latent, seed: u64) -> Result<Self::Latent, Failure> {
        self.calls.push(json!({
            "seed": seed,
            "size_hw": [latent.height, latent.width],
            "batch": latent.frames,
            "has_mask": noise_mask.is_some(),
        }));
        self.noise_masks.extend(noise_mask.clone());
        Ok((latent.map(|x| 1.0 - x), noise_mask))
    }

    fn decode(&mut self, (latent, _): &Self::Latent) -> Result<Frames, Failure> {
        Ok(latent.clone())
    }
}

impl StandIn {
    /// Adds what the sampler was called with.
    fn put(&self, mut got: Got) -> Got {
        for (i, mask) in self.noise_masks.iter().enumerate() {
            got.tensors.insert(format!("noise_mask{i}"), mask_tensor(mask));
        }
        got.value("sampler_calls", self.calls.clone())
    }
}

/// The model that a case enlarges pictures with, if it has one.
fn upscale_model(case: &Case) -> anyhow::Result<Option<Probe>> {
    let scale: Option<Value> = case.param_if_any("upscale_model")?;
    scale.map(|model| Ok(Probe::new(model["scale"].as_f64().context("a model has no scale")?))).transpose()
}

fn segs_upscaler(case: &Case, whole: bool) -> anyhow::Result<SegsUpscaler> {
    Ok(SegsUpscaler {
        rescale_factor: case.param("rescale_factor")?,
        supersample: case.param("supersample")?,
        feather: if whole { case.param("feather")? } else { 0 },
        noise_mask_feather: if whole { case.param("noise_mask_feather")? } else { 0 },
        seed: if whole { case.param("seed")? } else { 0 },
        reference_quirks: true,
    })
}

pub fn segs_upscaler_enlarge(case: &Case, tensors: &Tensors) -> Answer {
    let picture = to_frames(case.input(tensors, "image")?)?;
    let mut probe = upscale_model(case)?;
    let mut model = probe.as_mut().map(|probe| |picture: &Frames| probe.node(picture));
    let model = model.as_mut().map(|model| model as &mut UpscaleModel<'_, Failure>);
    let enlarged = segs_upscaler(case, false)?.enlarge(&picture, model)?;
    Ok(Got::default().tensor("image", frames_tensor(&enlarged)))
}

pub fn segs_upscaler_flow(case: &Case, tensors: &Tensors) -> Answer {
    let picture = to_frames(case.input(tensors, "image")?)?;
    let mut probe = upscale_model(case)?;
    let mut model = probe.as_mut().map(|probe| |picture: &Frames| probe.node(picture));
    let model = model.as_mut().map(|model| model as &mut UpscaleModel<'_, Failure>);
    let mut diffusion = StandIn::default();
    let out = segs_upscaler(case, true)?.run(&picture, &segs_param(case, tensors)?, model, &mut diffusion)?;
    Ok(diffusion.put(Got::default().tensor("image", frames_tensor(&out))))
}

fn detail_size(case: &Case, force_inpaint: bool) -> anyhow::Result<DetailSize> {
    Ok(DetailSize {
        guide_size: case.param("guide_size")?,
        guide_size_for_bbox: case.param("guide_size_for_bbox")?,
        max_size: case.param("max_size")?,
        force_inpaint,
    })
}

pub fn detailer_size_row(row: &Value) -> Result<Value, Failure> {
    #[derive(Deserialize)]
    struct Row {
        crop_wh: [u32; 2],
        bbox_wh: [i64; 2],
        guide_size: f64,
        guide_size_for_bbox: bool,
        max_size: f64,
        force_inpaint: bool,
    }
    let Row { crop_wh, bbox_wh, guide_size, guide_size_for_bbox, max_size, force_inpaint } = read_row(row)?;
    let size = DetailSize { guide_size, guide_size_for_bbox, max_size, force_inpaint };
    let bbox = Corners::new(0, 0, bbox_wh[0], bbox_wh[1]);
    let size = size.of(Size::new(crop_wh[0], crop_wh[1]), bbox.into()).map_err(PixelError::from)?;
    Ok(json!({"result_wh": size.map(|size| [size.width, size.height])}))
}

pub fn segs_detailer_flow(case: &Case, tensors: &Tensors) -> Answer {
    let picture = to_frames(case.input(tensors, "image")?)?;
    let node = SegsDetailer {
        size: detail_size(case, case.param("force_inpaint")?)?,
        noise_mask: case.param("noise_mask")?,
        noise_mask_feather: case.param("noise_mask_feather")?,
        batch_size: case.param("batch_size")?,
        cycle: case.param("cycle")?,
        seed: case.param("seed")?,
        reference_quirks: true,
    };
    let mut diffusion = StandIn::default();
    let segs = node.run(&picture, &segs_param(case, tensors)?, &mut diffusion)?;
    Ok(diffusion.put(put_segs(Got::default(), case, &segs)))
}

pub fn segs_detailer_animated_flow(case: &Case, tensors: &Tensors) -> Answer {
    let frames = to_frames(case.input(tensors, "image")?)?;
    let node = SegsDetailerAnimated {
        size: detail_size(case, true)?,
        noise_mask_feather: case.param("noise_mask_feather")?,
        seed: case.param("seed")?,
        reference_quirks: true,
    };
    let mut diffusion = StandIn::default();
    let segs = node.run(&frames, &segs_param(case, tensors)?, &mut diffusion)?;
    Ok(diffusion.put(put_segs(Got::default(), case, &segs)))
}

pub fn upscale_with_model_then_scale(case: &Case, tensors: &Tensors) -> Answer {
    let picture = to_frames(case.input(tensors, "image")?)?;
    let mut probe = upscale_model(case)?.context("the case has no model")?;
    let to = Size::new(case.param("width")?, case.param("height")?);
    let method = case.param::<String>("scale_method")?.parse()?;
    let mut calls = 0;
    let model = |picture: &Frames| {
        calls += 1;
        probe.node(picture)
    };
    let out = upscale_then_scale::<Failure>(&picture, to, method, model)?;
    Ok(Got::default().tensor("image", frames_tensor(&out)).value("model_calls", calls))
}

pub fn schedule_row(row: &Value) -> Result<Value, Failure> {
    #[derive(Deserialize)]
    struct Row {
        schedule: String,
        total_steps: u32,
    }
    let Row { schedule, total_steps } = read_row(row)?;
    let schedule: FullSamplerSchedule = schedule.parse().map_err(anyhow::Error::from)?;
    let steps: Vec<_> = (0..=total_steps).filter(|&step| schedule.is_full(step, total_steps)).collect();
    Ok(json!({"full_at_zero_based_steps": steps}))
}

pub fn two_samplers_masks(case: &Case, tensors: &Tensors) -> Answer {
    let mask = to_mask(case.input(tensors, "mask")?)?;
    let to = to_size(case.param("latent_hw")?);
    let masks = TwoSamplersMasks::new(&mask, to, true)?;
    let (height, width) = (to.height as usize, to.width as usize);
    // Attached: the layers of a single mask are channels, several masks are a batch. Used: the first, for 4 channels.
    let attached = |layers: &Mask| {
        let shape =
            if mask.frames == 1 { [1, layers.frames, height, width] } else { [layers.frames, 1, height, width] };
        Tensor::floats(&shape, layers.data.clone())
    };
    let effective = |layers: &Mask| Tensor::floats(&[1, 4, height, width], layers.frame(0).repeat(4));
    Ok(Got::default()
        .tensor("base_mask", attached(&masks.base))
        .tensor("mask_mask", attached(&masks.masked))
        .tensor("base_effective", effective(&masks.base))
        .tensor("mask_effective", effective(&masks.masked)))
}
