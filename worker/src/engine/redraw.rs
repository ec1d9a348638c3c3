//! Segments and latents through diffusion models (reference: detailers.md, sections 4, 6 and 8).
//!
//! [`redraw`] and [`latent_step`] are what a task comes to once its networks are loaded; a test with networks of its own calls the
//! same.

use std::{cell::Cell, time::Instant};

use domain::{
    digest::Digest,
    region::Size,
    sampling::{KSampler, SchedulerFunc},
    segs::Prompts,
    task::{LatentPart, LatentRun, LatentTask, LatentWork as Work, Redraw as Context, SegTask, SegsNode},
};
use imaging::{
    flows::{Diffusion, Redrawing, TwoSamplersMasks, upscale_with_model_then_scale},
    frames::{Frames, PixelError},
    mask::Mask,
    resample::{self, ScaleMethod},
    tiled::upscale_with_model,
};
use models::{
    diffusion::{
        batch::Seat,
        detail::{Extent, Levels},
        generate::Pixels,
        guidance::DifferentialDiffusion,
        model::LoadError,
        preview::rgb,
        redraw::{Canvas, LatentValues, Pipe, Redraw, RedrawError, memory_bytes},
        samplers::{self, Step},
        schedule::{self, ScheduleError},
        text::error::TextError,
        vae::Vae,
    },
    error::ModelError,
    processor::Precision,
    upscale::Upscaler,
    watch::{Share, Watch as Follow},
};
use weights::{
    checkpoint::CheckpointError,
    detect::diffusion::{Family, memory::Engine},
};

use super::{
    LatentInput, LatentWork, RedrawWork, RenderError, Verdict, Watch,
    device::DeviceEngine,
    pipe::{Crop, mask_pixels, pixels},
    preview::Preview,
};

/// Why something was not redrawn.
#[derive(Debug, thiserror::Error)]
pub enum DetailError {
    /// Something that the task names was not brought to this machine.
    #[error("{} was not fetched", digest.short())]
    NotFetched {
        /// What.
        digest: Digest,
    },
    /// The weights cannot be read.
    #[error("weights {} cannot be read", model.short())]
    Weights {
        /// The weights.
        model: Digest,
        /// Why.
        source: CheckpointError,
    },
    /// The files of a pipe make up no model.
    #[error("the pipe's files make up no model")]
    Load(#[from] LoadError),
    /// A control net cannot be loaded.
    #[error("control net {} cannot be loaded", model.short())]
    ControlNet {
        /// Its weights.
        model: Digest,
        /// Why.
        source: ModelError,
    },
    /// The model lacks a part.
    #[error("the pipe's checkpoint has no {part}")]
    Lacks {
        /// The part.
        part: &'static str,
    },
    /// A prompt cannot be encoded.
    #[error("a prompt cannot be encoded")]
    Text(#[from] TextError),
    /// A sampler, a scheduler or the steps are none.
    #[error(transparent)]
    Schedule(#[from] ScheduleError),
    /// The pixels cannot be prepared.
    #[error("the pixels cannot be prepared")]
    Pixels(#[from] PixelError),
    /// The networks failed.
    #[error(transparent)]
    Redraw(#[from] RedrawError),
    /// The device, or the network that enlarges pixels, failed.
    #[error(transparent)]
    Render(Box<RenderError>),
}

impl From<RenderError> for DetailError {
    fn from(error: RenderError) -> Self {
        Self::Render(error.into())
    }
}

impl DetailError {
    /// The failure of a network, if it is one.
    fn model_error(&self) -> Option<&ModelError> {
        match self {
            Self::Redraw(error) => error.model_error(),
            Self::Text(TextError::Model(error)) | Self::ControlNet { source: error, .. } => Some(error),
            Self::Load(LoadError::Part { source, .. }) => Some(source),
            _ => None,
        }
    }

    /// Whether numbers of 16 bits were too short.
    fn is_overflow(&self) -> bool {
        matches!(self, Self::Redraw(error) if error.is_overflow())
    }

    /// What becomes of the task.
    pub fn verdict(&self) -> Verdict {
        match (self, self.model_error()) {
            (Self::Render(error), _) => error.verdict(),
            (_, Some(ModelError::Interrupted)) => Verdict::Cancelled,
            (_, Some(ModelError::OutOfMemory(_))) => Verdict::Replan,
            (_, Some(ModelError::Device(_))) => Verdict::Retry,
            // This machine's disk, or its cache, which made room for others.
            (_, Some(ModelError::Checkpoint(CheckpointError::Io(_))))
            | (Self::Weights { source: CheckpointError::Io(_), .. } | Self::NotFetched { .. }, _) => Verdict::Retry,
            _ => Verdict::Fail,
        }
    }
}

/// Where the noise levels of a sampler come from.
///
/// # Errors
/// If there is no such scheduler.
pub fn levels(sampler: &KSampler) -> Result<Levels, ScheduleError> {
    Ok(match &sampler.scheduler_func {
        None => Levels::Scheduler(schedule::scheduler(&sampler.scheduler)?),
        Some(SchedulerFunc::Gits { denoise, .. }) => Levels::Gits { denoise: *denoise },
        Some(SchedulerFunc::List { sigmas }) => Levels::Given(sigmas.iter().map(|&sigma| sigma as f32).collect()),
    })
}

/// What redraws as `sampler` says, with `base` alone and all of the latent.
///
/// # Errors
/// If there is no such sampler or scheduler.
pub fn redraw_with<'a>(base: &'a Pipe, sampler: &KSampler) -> Result<Redraw<'a>, ScheduleError> {
    let KSampler { steps, cfg, denoise, .. } = *sampler;
    Ok(Redraw {
        base,
        refiner: None,
        controls: &[],
        sampler: samplers::sampler(&sampler.sampler_name)?,
        levels: levels(sampler)?,
        extent: Extent { steps: steps as usize, denoise, sigma_factor: 1.0 },
        cfg,
        differential: None,
        inpaint_model: false,
        seat: None,
    })
}

/// Redraws a crop; gives its new pixels, and the pictures that control nets saw.
///
/// # Errors
/// If crop and mask do not fit the networks, a prediction is no number, `watch` says to stop, or the device fails.
pub fn redraw(
    redrawing: &Redrawing<'_>,
    redraw: &Redraw<'_>,
    crop: &Frames,
    watch: &dyn Follow,
    preview: &mut dyn FnMut(&Step<'_>),
) -> Result<(Frames, Vec<Frames>), DetailError> {
    let cycles = redrawing.cycle as f64;
    let mut networks = Networks { redraw, watch, cycles, done: 0.0, preview, control_pictures: Vec::new() };
    let redrawn = redrawing.run(crop, &mut networks)?;
    let seen = networks.control_pictures.into_iter().map(frames).collect::<Result<_, _>>()?;
    Ok((redrawn, seen))
}

/// Frames of plain pixels.
fn frames(pixels: Pixels) -> Result<Frames, PixelError> {
    Frames::new(pixels.frames, Size::new(pixels.width as u32, pixels.height as u32), 3, pixels.values)
}

/// A [`Redraw`] as flows of pixels call it.
struct Networks<'a> {
    redraw: &'a Redraw<'a>,
    watch: &'a dyn Follow,
    /// How many times it is sampled.
    cycles: f64,
    /// How many times it was.
    done: f64,
    preview: &'a mut dyn FnMut(&Step<'_>),
    control_pictures: Vec<Pixels>,
}

/// Of all the work, what encoding and decoding are reckoned to take.
const ENCODING: f64 = 0.05;
const DECODING: f64 = 0.1;

impl Diffusion for Networks<'_> {
    type Latent = Canvas;
    type Error = DetailError;

    fn encode(&mut self, crop: &Frames, noise_mask: Option<&Mask>) -> Result<Canvas, DetailError> {
        let watch = Share { watch: self.watch, from: 0.0, part: ENCODING };
        let mut canvas = self.redraw.encode(&pixels(crop), noise_mask.map(mask_pixels).as_ref(), &watch)?;
        self.control_pictures.append(&mut canvas.control_pictures);
        Ok(canvas)
    }

    fn sample(&mut self, canvas: Canvas, seed: u64) -> Result<Canvas, DetailError> {
        let each = (1.0 - ENCODING - DECODING) / self.cycles;
        let watch = Share { watch: self.watch, from: ENCODING + self.done * each, part: each };
        self.done += 1.0;
        Ok(self.redraw.sample(canvas, seed, &watch, self.preview)?)
    }

    fn decode(&mut self, canvas: &Canvas) -> Result<Frames, DetailError> {
        if let Some(seat) = self.redraw.seat {
            seat.leave(); // there are no more calls to wait for
        }
        let watch = Share { watch: self.watch, from: 1.0 - DECODING, part: DECODING };
        Ok(frames(self.redraw.decode(canvas, &watch)?)?)
    }
}

/// What a step of an iterative latent upscale has besides its latent.
pub struct LatentStep<'a> {
    /// The size in pixels to which it enlarges.
    pub to: Size,
    /// How pixels are resized.
    pub scale_method: ScaleMethod,
    /// The VAE.
    pub vae: &'a Vae,
    /// The side of the tiles in which it works, in pixels; `None`: whole.
    pub tile_size: Option<usize>,
    /// Enlarges pixels, where there is such a network.
    pub upscale: Option<&'a mut Upscale<'a>>,
    /// What redraws, one after the other, with its seed and where.
    pub runs: &'a [(Redraw<'a>, u64, LatentPart)],
    /// Where the runs that have a mask redraw.
    pub mask: Option<&'a Mask>,
    /// Does what the reference does also where it is a mistake.
    pub reference_quirks: bool,
}

/// A network that enlarges pictures.
pub type Upscale<'a> = dyn FnMut(&Frames) -> Result<Frames, DetailError> + 'a;

/// One step of an iterative latent upscale: shows the latent, enlarges the pixels, encodes them, and redraws.
///
/// # Errors
/// If latent and mask do not fit the networks, a prediction is no number, `watch` says to stop, or the device fails.
pub fn latent_step(
    step: LatentStep<'_>,
    latent: &LatentValues,
    watch: &dyn Follow,
    preview: &mut dyn FnMut(&Step<'_>),
) -> Result<LatentValues, DetailError> {
    let LatentStep { to, scale_method, vae, tile_size, upscale, runs, mask, reference_quirks } = step;
    let share = |from, part| Share { watch, from, part };
    let shown = frames(latent.decode(vae, tile_size, &share(0.0, 0.15))?)?;
    let enlarged = match upscale {
        Some(upscale) => upscale_with_model_then_scale(&shown, to, scale_method, upscale)?,
        None => resample::common_upscale(&shown, to, scale_method, resample::Crop::Disabled)?,
    };
    let mut latent = LatentValues::encode(vae, &pixels(&enlarged), tile_size, &share(0.25, 0.05))?;
    let masks = mask.map(|mask| {
        let to = Size::new(latent.width as u32, latent.height as u32);
        TwoSamplersMasks::new(mask, to, reference_quirks)
    });
    let masks = masks.transpose()?;
    let part = 0.7 / runs.len().max(1) as f64;
    for (index, (redraw, seed, whole)) in runs.iter().enumerate() {
        let noise_mask = masks.as_ref().and_then(|masks| match whole {
            LatentPart::Whole => None,
            LatentPart::NotMasked => Some(mask_pixels(&masks.base)),
            LatentPart::Masked => Some(mask_pixels(&masks.masked)),
        });
        let canvas = redraw.canvas(&latent, noise_mask.as_ref())?;
        let watch = share(0.3 + index as f64 * part, part);
        latent = redraw.sample(canvas, *seed, &watch, preview)?.values()?;
    }
    Ok(latent)
}

/// Enlarges a picture as `ImageUpscaleWithModel` does, in tiles of the reference's size.
///
/// # Errors
/// If the network or the device fails, or `watch` says to stop.
pub fn upscale_picture(upscaler: &Upscaler, picture: &Frames, watch: &dyn Follow) -> Result<Frames, DetailError> {
    let scale = f64::from(upscaler.facts().scale);
    let render = |tile: Frames| -> Result<Frames, DetailError> {
        let keep_on = |_| watch.goes_on(0.2);
        let values = upscaler.run_pixels(&tile.data, tile.height, tile.width, &keep_on)?;
        let size = tile
            .size()
            .scaled(upscaler.facts().scale)
            .ok_or(PixelError::Empty { operation: "upscaling by a model", size: tile.size() })?;
        Ok(Frames::new(1, size, 3, values)?)
    };
    // The tile's size is part of what is promised: a device that has no room for it must leave the task to another.
    Ok(upscale_with_model(picture, scale, render, |_| false)?.frames)
}

impl DeviceEngine {
    pub(super) fn redraw(
        &self,
        precision: Precision,
        work: &RedrawWork,
        watch: &Watch,
        seat: Option<Seat>,
    ) -> Result<Vec<f32>, RenderError> {
        let (size, seat) = (work.seg.size, Cell::new(seat));
        self.in_f32_if_need_be(precision, size, |precision| self.redraw_as(precision, work, watch, seat.take()))
    }

    pub(super) fn latent(
        &self,
        precision: Precision,
        work: &LatentWork,
        watch: &Watch,
    ) -> Result<Vec<f32>, RenderError> {
        let size = work.link.pixels();
        self.in_f32_if_need_be(precision, size, |precision| self.latent_as(precision, work, watch))
    }

    /// Does something once more with numbers of 32 bits where those of `precision` were too short. That follows from the task, so
    /// that whoever does it comes to the same.
    fn in_f32_if_need_be(
        &self,
        precision: Precision,
        size: Size,
        work: impl Fn(Precision) -> Result<Vec<f32>, DetailError>,
    ) -> Result<Vec<f32>, RenderError> {
        let done = match work(precision) {
            Err(error) if error.is_overflow() && precision != Precision::Exact => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "numbers of 16 bits were too short: doing a task again in f32");
                work(Precision::Exact)
            }
            done => done,
        };
        let values = done.map_err(|error| match error {
            DetailError::Render(error) => *error,
            source if source.verdict() == Verdict::Cancelled => RenderError::Interrupted,
            source => RenderError::Detail { size, source },
        })?;
        match values.iter().all(|value| value.is_finite()) {
            true => Ok(values),
            false => Err(RenderError::NotFinite { size }),
        }
    }

    fn redraw_as(
        &self,
        precision: Precision,
        work: &RedrawWork,
        watch: &Watch,
        seat: Option<Seat>,
    ) -> Result<Vec<f32>, DetailError> {
        let RedrawWork { context, seg, crop, mask, inputs } = work;
        let follow = |done: f64| watch.tell(done as f32);
        let part =
            Crop { region: seg.region, picture: context.base.size(), reference_quirks: context.reference_quirks };
        let part = match context.node {
            SegsNode::Detailer => Some(part),
            SegsNode::Upscaler => None, // Q9
        };
        let base = self.pipe(precision, &context.basic_pipe, &seg.prompts, part, inputs, &follow)?;
        let refiner = match &context.refiner {
            Some(refiner) => {
                let pipe = self.pipe(precision, &refiner.basic_pipe, &Prompts::default(), None, inputs, &follow)?;
                Some((pipe, refiner.ratio))
            }
            None => None,
        };
        let nets = [&context.basic_pipe.control_nets[..], &seg.control_nets[..]].concat();
        let controls = self.controls(precision, &nets, &context.basic_pipe, inputs)?;
        let size = (seg.size.height as usize, seg.size.width as usize);
        let nets = controls.iter().map(|control| &*control.net);
        let needs_bytes = memory_bytes(&base.model, nets, size, true, None);
        let (_room, seat) = self.take_room_beside(seat, seg.size, needs_bytes, watch)?;
        let redraw = Redraw {
            refiner: refiner.as_ref().map(|(pipe, ratio)| (pipe, *ratio)),
            controls: &controls,
            // Whether there is a mask or not: without one it changes nothing.
            differential: (context.noise_mask_feather > 0).then(DifferentialDiffusion::default),
            inpaint_model: context.inpaint_model,
            seat: seat.as_ref(),
            ..redraw_with(&base, &context.sampler)?
        };
        let redrawing = redrawing(context, seg, mask.as_ref());
        let vae = base.model.vae.as_deref().ok_or(DetailError::Lacks { part: "VAE" })?;
        let latent = latent_size(vae, seg.size);
        let mut preview = |step: &Step<'_>| show(watch, base.model.family, latent, step);
        let (redrawn, seen) = self::redraw(&redrawing, &redraw, crop, &follow, &mut preview)?;
        let kept = match context.node {
            SegsNode::Detailer => &seen[context.basic_pipe.control_nets.len()..],
            SegsNode::Upscaler => &[],
        };
        let mut values = redrawn.data;
        kept.iter().for_each(|picture| values.extend_from_slice(&picture.data));
        Ok(values)
    }

    fn latent_as(&self, precision: Precision, work: &LatentWork, watch: &Watch) -> Result<Vec<f32>, DetailError> {
        let LatentWork { context, link, from, mask, inputs } = work;
        let LatentTask { size, work, .. } = link;
        let follow = |done: f64| watch.tell(done as f32);
        let tile_size = context.tile_size.map(|tile| tile as usize);
        // The reference goes in tiles between the steps, but not at the ends.
        let at_ends = tile_size.filter(|_| !context.reference_quirks);
        let vae = self.vae(precision, context.vae, inputs)?;
        let engine = self.processor.backend(precision).engine();
        let latent = || match from {
            LatentInput::Latent(values) => Ok(LatentValues {
                batch: 1,
                channels: 4,
                height: size.height as usize,
                width: size.width as usize,
                values: values.clone(),
            }),
            LatentInput::Picture(_) => Err(DetailError::Lacks { part: "latent to begin with" }),
        };
        match work {
            Work::Encode => {
                let LatentInput::Picture(picture) = from else {
                    return Err(DetailError::Lacks { part: "picture to begin with" });
                };
                let (height, width) = (picture.height, picture.width);
                let needs_bytes = vae.layout().encode_bytes(engine, 1, height, width);
                let _room = self.take_room(picture.size(), needs_bytes, watch)?;
                Ok(LatentValues::encode(&vae, &pixels(picture), at_ends, &follow)?.values)
            }
            Work::Decode => {
                let _room = self.take_room(link.pixels(), decode_bytes(&vae, engine, *size, at_ends), watch)?;
                Ok(latent()?.decode(&vae, at_ends, &follow)?.values)
            }
            Work::Step { to, runs, .. } => {
                let prepare = |run: &LatentRun| {
                    let prompts = Prompts::default();
                    let pipe = self.pipe(precision, &run.basic_pipe, &prompts, None, inputs, &follow)?;
                    let controls = self.controls(precision, &run.basic_pipe.control_nets, &run.basic_pipe, inputs)?;
                    Ok::<_, DetailError>((pipe, controls))
                };
                let prepared = runs.iter().map(prepare).collect::<Result<Vec<_>, _>>()?;
                let ready = runs.iter().zip(&prepared).map(|(run, (pipe, controls))| {
                    let redraw = Redraw { controls, ..redraw_with(pipe, &run.sampler)? };
                    Ok::<_, ScheduleError>((redraw, run.sampler.seed, run.part))
                });
                let ready = ready.collect::<Result<Vec<_>, _>>()?;
                let sides = (to.height as usize, to.width as usize);
                let largest = prepared.iter().map(|(pipe, controls)| {
                    let nets = controls.iter().map(|control| &*control.net);
                    memory_bytes(&pipe.model, nets, sides, true, tile_size)
                });
                let needs_bytes = largest.max().unwrap_or(0).max(decode_bytes(&vae, engine, *size, tile_size));
                let _room = self.take_room(*to, needs_bytes, watch)?;
                let upscaler = context.upscale_model.map(|model| {
                    let weights = inputs.files.get(&model).ok_or(DetailError::NotFetched { digest: model })?;
                    Ok::<_, DetailError>(self.upscaler(model, precision, weights)?)
                });
                let upscaler = upscaler.transpose()?;
                let mut upscale =
                    upscaler.map(|upscaler| move |picture: &Frames| upscale_picture(&upscaler, picture, &follow));
                let step = LatentStep {
                    to: *to,
                    scale_method: context.scale_method.into(),
                    vae: &vae,
                    tile_size,
                    upscale: upscale.as_mut().map(|upscale| upscale as &mut Upscale<'_>),
                    runs: &ready,
                    mask: mask.as_ref(),
                    reference_quirks: context.reference_quirks,
                };
                // Whatever their pipes are, all runs work on the same latent.
                let family = prepared.first().map(|(pipe, _)| pipe.model.family);
                let size = latent_size(&vae, *to);
                let mut preview = |step: &Step<'_>| {
                    if let Some(family) = family {
                        show(watch, family, size, step);
                    }
                };
                Ok(latent_step(step, &latent()?, &follow, &mut preview)?.values)
            }
        }
    }
}

/// The size of the latent that `vae` makes of so many pixels.
fn latent_size(vae: &Vae, pixels: Size) -> Size {
    let scale = vae.layout().scale() as u32;
    Size::new(pixels.width / scale, pixels.height / scale)
}

/// Shows a step to whoever looks at the task; `size` is that of its latent.
fn show(watch: &Watch, family: Family, size: Size, step: &Step<'_>) {
    watch.previews.show(Instant::now(), || {
        let rgb = rgb(family, step.denoised, size.width as usize, size.height as usize)?;
        Some(Preview { step: step.index as u32 + 1, steps: step.steps as u32, size, rgb })
    });
}

fn decode_bytes(vae: &Vae, engine: Engine, latent: Size, tile_size: Option<usize>) -> u64 {
    let side = |length: u32| tile_size.map_or(length as usize, |tile| (length as usize).min(tile / 8));
    vae.layout().decode_bytes(engine, 1, side(latent.height), side(latent.width))
}

/// How a segment's crop is redrawn.
pub fn redrawing<'a>(context: &Context, seg: &SegTask, mask: Option<&'a Mask>) -> Redrawing<'a> {
    Redrawing {
        size: seg.size,
        is_quantised: context.node == SegsNode::Detailer,
        mask,
        noise_mask_feather: context.noise_mask_feather.into(),
        cycle: context.cycle as usize,
        seed: seg.seed,
    }
}
