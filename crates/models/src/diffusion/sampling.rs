//! Sampling a latent: KSampler and KSamplerAdvanced, and what every run has in common.
//!
//! [`run`] takes a latent down given noise levels. [`ksampler`] and [`ksampler_advanced`] choose the levels as the reference's nodes
//! of these names do; [`super::detail`] as the Impact Pack does.

use std::sync::atomic::{AtomicU64, Ordering};

use candle_core::{Device, Tensor};

use super::{
    guidance::{DifferentialDiffusion, Guidance, Masking, Network, Prompts, Setup, Shape, mask_on_latent},
    random::{initial_noise, noise_of_items},
    samplers::{self, SampleError, Sampler, Settings, Step},
    schedule::{self, ScheduleError, Scheduler},
};
use crate::{
    error::{ModelError, Result as ModelResult},
    watch::Watch,
};

/// Latents, and what of them is to change.
#[derive(Debug, Clone)]
pub struct Latent {
    /// [b, c, h, w], f32 on the CPU, as an autoencoder makes them: not scaled.
    pub samples: Tensor,
    /// How much each place may change, 0 to 1: [.., h, w], of any size; of several, the first are for the items of the batch.
    pub noise_mask: Option<Tensor>,
    /// Which items of a larger batch these are, if they are to have the noise that they would have there.
    pub batch_index: Option<Vec<usize>>,
}

impl Latent {
    /// Latents of which all may change.
    pub fn new(samples: Tensor) -> Self {
        Self { samples, noise_mask: None, batch_index: None }
    }
}

/// Who samples, what for, and who follows.
#[derive(Clone, Copy)]
pub struct Task<'a> {
    /// The network.
    pub network: Network<'a>,
    /// What the run is to show.
    pub prompts: Prompts<'a>,
    /// The sampler.
    pub sampler: &'static Sampler,
    /// From which all noise follows.
    pub seed: u64,
    /// Whether the noise mask is hard, and moves.
    pub differential: Option<DifferentialDiffusion>,
    /// Who may interrupt, between and within calls of the network.
    pub watch: &'a dyn Watch,
}

/// Where the noise comes from that a run begins with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Noise<'a> {
    /// From the seed.
    Seed,
    /// There is none: the latent has it already.
    None,
    /// These numbers, as many as the latent has.
    Given(&'a [f32]),
}

/// What a run gives, as an autoencoder takes it.
#[derive(Debug, Clone)]
pub struct Sampled {
    /// The latent at the last level, [b, c, h, w].
    pub samples: Tensor,
    /// The last prediction of the clean latent; none if there was no step.
    pub last_denoised: Option<Tensor>,
}

/// Takes a latent down `sigmas`, highest first, and shows each step to `preview` (latents there are scaled).
///
/// Without levels, or with 0 alone, the latent stays as it is and nothing is shown.
///
/// # Errors
/// If latent, mask and prompts do not fit the network, `task.watch` says to stop, a prediction is no number, or the device fails.
pub fn run(
    task: &Task<'_>,
    sigmas: &[f32],
    brownian_range: Option<(f32, f32)>,
    noise: Noise<'_>,
    latent: &Latent,
    preview: &mut dyn FnMut(&Step<'_>),
) -> Result<Sampled, SampleError> {
    let unchanged = || Sampled { samples: latent.samples.clone(), last_denoised: None };
    let (Some(&first), Some(&last)) = (sigmas.first(), sigmas.last()) else { return Ok(unchanged()) };
    if first == 0.0 {
        return Ok(unchanged());
    }
    let Network { sampling, latent_scale, unet, .. } = task.network;
    let shape = Shape::of(&latent.samples).map_err(SampleError::Model)?;
    if shape.count() == 0 || shape.c != unet.layout().out_channels {
        let (name, found) = ("latent", latent.samples.dims().to_vec());
        return Err(ModelError::Tensor { name, wanted: vec![0, unet.layout().out_channels, 0, 0], found }.into());
    }
    let scale = latent_scale as f32;
    let scaled: Vec<f32> = numbers(&latent.samples)?.iter().map(|x| x * scale).collect();
    let noise = match noise {
        Noise::Seed => seeded(task.seed, latent, shape),
        Noise::None => vec![0.0; shape.count()],
        Noise::Given(noise) if noise.len() == shape.count() => noise.to_vec(),
        Noise::Given(noise) => {
            return Err(SampleError::Size { latent: shape.count(), predicted: noise.len() });
        }
    };
    let noise_scale = sampling.noise_scale(first) as f32;
    let x = scaled.iter().zip(&noise).map(|(latent, noise)| noise * noise_scale + latent).collect();

    let noise_mask =
        latent.noise_mask.as_ref().map(|mask| mask_on_latent(mask, shape)).transpose().map_err(SampleError::Model)?;
    let masking = noise_mask.as_ref().map(|(n, mask)| {
        let cells = shape.h * shape.w;
        let of_item = |item: usize| mask[item % n * cells..][..cells].repeat(shape.c);
        Masking {
            mask: (0..shape.b).flat_map(of_item).collect(),
            latent: scaled.clone(),
            noise: match task.sampler.mask_seed_offset {
                0 => noise,
                offset => initial_noise(task.seed.wrapping_add(offset), shape.b, shape.count() / shape.b),
            },
            differential: task.differential,
            sigmas: (first, last),
        }
    });
    let setup = Setup { network: task.network, shape, latent: &scaled, noise_mask: noise_mask.as_ref() };
    let watch = Steps { watch: task.watch, done: AtomicU64::new(0) };
    let within = |_| task.watch.goes_on(f64::from_bits(watch.done.load(Ordering::Relaxed)));
    let mut guidance = Guidance::new(&setup, &task.prompts, masking, &within).map_err(SampleError::Model)?;
    let settings = Settings { model: sampling, sigmas, seed: task.seed, brownian_range, watch: &watch };
    let sampled = samplers::sample(task.sampler, &mut guidance, x, &settings, preview)?;

    let unscaled = |x: Vec<f32>| -> ModelResult<Tensor> {
        let x = x.into_iter().map(|x| x / scale).collect();
        Ok(Tensor::from_vec(x, (shape.b, shape.c, shape.h, shape.w), &Device::Cpu)?)
    };
    Ok(Sampled { samples: unscaled(sampled.latent)?, last_denoised: sampled.last_denoised.map(unscaled).transpose()? })
}

/// The noise that a run begins with.
fn seeded(seed: u64, latent: &Latent, shape: Shape) -> Vec<f32> {
    let each = shape.count() / shape.b;
    match &latent.batch_index {
        None => initial_noise(seed, shape.b, each),
        Some(index) => noise_of_items(seed, index, each),
    }
}

/// Remembers how far the run is, so that within a call of the network the same can be told.
struct Steps<'a> {
    watch: &'a dyn Watch,
    /// A fraction, as bits.
    done: AtomicU64,
}

impl Watch for Steps<'_> {
    fn goes_on(&self, done: f64) -> bool {
        self.done.store(done.to_bits(), Ordering::Relaxed);
        self.watch.goes_on(done)
    }
}

pub(super) fn numbers(x: &Tensor) -> ModelResult<Vec<f32>> {
    Ok(x.flatten_all()?.to_vec1::<f32>()?)
}

/// The parameters of KSampler that choose its noise levels.
#[derive(Debug, Clone, Copy)]
pub struct KSampler {
    /// The scheduler.
    pub scheduler: &'static Scheduler,
    /// Steps, from 1 on.
    pub steps: usize,
    /// How much of the way from noise to picture is gone, 0 to 1.
    pub denoise: f64,
}

impl KSampler {
    /// The noise levels, highest first.
    ///
    /// # Errors
    /// If `steps` are 0 or too many, or `denoise` is no number.
    pub fn sigmas(&self, task: &Task<'_>) -> Result<Vec<f32>, ScheduleError> {
        let Self { scheduler, steps, denoise } = *self;
        if denoise.is_nan() {
            return Err(ScheduleError::Denoise { denoise, steps });
        }
        schedule::for_run(task.network.sampling, scheduler, steps, denoise, task.sampler.drops_penultimate)
    }
}

/// What part of a schedule is gone (KSamplerAdvanced).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// The step that is the first; beyond the last one, the latent stays as it is.
    pub start_at_step: usize,
    /// The step before which the run ends.
    pub end_at_step: usize,
    /// Whether noise is left for another run to go on with.
    pub return_with_leftover_noise: bool,
}

impl Part {
    /// Cuts a schedule; `None` if there is nothing to do.
    pub fn of(self, mut sigmas: Vec<f32>) -> Option<Vec<f32>> {
        if self.end_at_step + 1 < sigmas.len() {
            sigmas.truncate(self.end_at_step + 1);
            if !self.return_with_leftover_noise {
                sigmas[self.end_at_step] = 0.0;
            }
        }
        (self.start_at_step + 1 < sigmas.len()).then(|| sigmas.split_off(self.start_at_step))
    }
}

/// Samples a latent as the reference's KSampler does.
///
/// # Errors
/// As [`KSampler::sigmas`] and [`run`].
pub fn ksampler(
    task: &Task<'_>,
    settings: KSampler,
    latent: &Latent,
    preview: &mut dyn FnMut(&Step<'_>),
) -> Result<Tensor, SampleError> {
    Ok(run(task, &settings.sigmas(task)?, None, Noise::Seed, latent, preview)?.samples)
}

/// Samples a latent over a part of a schedule as the reference's KSamplerAdvanced does, of which `denoise` is 1.
///
/// # Errors
/// As [`KSampler::sigmas`] and [`run`].
pub fn ksampler_advanced(
    task: &Task<'_>,
    settings: KSampler,
    part: Part,
    noise: Noise<'_>,
    latent: &Latent,
    preview: &mut dyn FnMut(&Step<'_>),
) -> Result<Tensor, SampleError> {
    match part.of(settings.sigmas(task)?) {
        Some(sigmas) => Ok(run(task, &sigmas, None, noise, latent, preview)?.samples),
        None => Ok(latent.samples.clone()),
    }
}
