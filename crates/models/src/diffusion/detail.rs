//! Sampling as the Impact Pack's detailers do it: parts of long schedules, a refiner, and a second sampler that repairs masked parts.
//!
//! What comes back of a run that leaves no noise is the last prediction that previews saw, not the last latent. Most samplers end
//! on it; `dpm_fast`, `dpm_adaptive`, `uni_pc`, `uni_pc_bh2` and `sa_solver_pece` do not.

use candle_core::Tensor;

use super::{
    guidance::{Shape, mask_on_latent},
    samplers::{SampleError, Sampler, Step, sampler},
    sampling::{self, Latent, Noise, Sampled, Task},
    schedule::{self, MOST_STEPS, ModelSampling, ScheduleError, Scheduler},
};

/// Where the noise levels of a detailer come from.
#[derive(Debug, Clone)]
pub enum Levels {
    /// A scheduler.
    Scheduler(&'static Scheduler),
    /// A scheduler function that always gives these (`scheduler_func`): highest first, not shortened for any sampler.
    Given(Vec<f32>),
    /// The GITS table, of which a `denoise` below 1 keeps the end (`GITSSchedulerFuncProvider`): not shortened for any sampler.
    Gits {
        /// How much is kept, 0 to 1.
        denoise: f64,
    },
}

impl Levels {
    /// The levels of `total` steps.
    ///
    /// # Errors
    /// If the scheduler does not go with so few or so many steps.
    pub fn of(&self, model: &ModelSampling, sampler: &Sampler, total: usize) -> Result<Vec<f32>, ScheduleError> {
        match self {
            Self::Scheduler(scheduler) => schedule::whole(model, scheduler, total, sampler.drops_penultimate),
            Self::Given(sigmas) => Ok(sigmas.clone()),
            Self::Gits { denoise } if *denoise <= 0.0 => Ok(Vec::new()),
            Self::Gits { denoise } => {
                let mut sigmas = schedule::whole(model, schedule::scheduler("GITS[coeff=1.2]")?, total, false)?;
                let kept = (total as f64 * denoise.min(1.0)).round_ties_even() as usize;
                Ok(sigmas.split_off(sigmas.len().saturating_sub(kept + 1)))
            }
        }
    }
}

/// The schedule of a run that goes a share of the way, and the part of it that is gone: all `total` steps but the first
/// `start_at_step`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Way {
    /// Steps of the whole schedule.
    pub total: usize,
    /// The first step that is taken.
    pub start_at_step: usize,
}

impl Way {
    /// The way of `steps` steps at a `denoise` of above 0 and up to 1.
    ///
    /// # Errors
    /// If there is no step, or `denoise` is no number, not above 0, or so small that the schedule would be too long.
    pub fn new(steps: usize, denoise: f64) -> Result<Self, ScheduleError> {
        let total = (steps as f64 / denoise).floor();
        let fits = denoise > 0.0 && total >= steps as f64 && total <= MOST_STEPS as f64;
        match fits && steps > 0 {
            true => Ok(Self { total: total as usize, start_at_step: total as usize - steps }),
            false => Err(ScheduleError::Denoise { denoise, steps }),
        }
    }
}

/// One run over a part of a schedule.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Part<'a> {
    /// Whether, and which, noise is put over the latent first.
    pub noise: Noise<'a>,
    /// Steps of the whole schedule.
    pub total: usize,
    /// The first step; `None` is the first of all.
    pub start_at_step: Option<usize>,
    /// The step before which the run ends; `None` is behind the last.
    pub end_at_step: Option<usize>,
    /// Whether noise is left for another run to go on with.
    pub return_with_leftover_noise: bool,
    /// A factor of all levels of the part.
    pub sigma_ratio: f64,
}

/// The samplers whose noise spans the whole schedule, also where a part of it is gone.
const SPANS_ALL: [&str; 6] =
    ["dpmpp_sde", "dpmpp_sde_gpu", "dpmpp_2m_sde", "dpmpp_2m_sde_gpu", "dpmpp_3m_sde", "dpmpp_3m_sde_gpu"];

/// Takes a latent over a part of a schedule (`separated_sample`). A part without steps leaves the latent as it is.
///
/// # Errors
/// If the scheduler does not go with the steps, and as [`sampling::run`].
pub fn separated(
    task: &Task<'_>,
    levels: &Levels,
    part: Part<'_>,
    latent: &Latent,
    preview: &mut dyn FnMut(&Step<'_>),
) -> Result<Tensor, SampleError> {
    let mut all = levels.of(task.network.sampling, task.sampler, part.total)?;
    let mut end = all.len();
    if let Some(last) = part.end_at_step.filter(|last| last + 1 < all.len()) {
        end = last + 1;
        if !part.return_with_leftover_noise {
            all[last] = 0.0; // this reaches the whole schedule, whose smallest level it may have been
        }
    }
    let ratio = part.sigma_ratio as f32;
    let sigmas: Vec<f32> = match part.start_at_step {
        Some(start) if start + 1 >= end => return Ok(latent.samples.clone()),
        Some(start) => all[start..end].iter().map(|sigma| sigma * ratio).collect(),
        None => all[..end].to_vec(),
    };
    let brownian_range = SPANS_ALL.contains(&task.sampler.name).then(|| {
        let positive = all.iter().copied().filter(|sigma| *sigma > 0.0);
        (positive.fold(f32::INFINITY, f32::min), all.iter().copied().fold(0.0, f32::max))
    });
    let Sampled { samples, last_denoised } = sampling::run(task, &sigmas, brownian_range, part.noise, latent, preview)?;
    Ok(match last_denoised {
        Some(denoised) if !part.return_with_leftover_noise => denoised,
        _ => samples,
    })
}

/// Who goes on where the base leaves off: another network with prompts of its own. Its sampler, seed and watch are those of the base.
#[derive(Clone, Copy)]
pub struct Refiner<'a> {
    /// The run of the refiner.
    pub task: &'a Task<'a>,
    /// The share of the steps that it takes, 0 to 1.
    pub ratio: f64,
}

/// Whether a refiner of this ratio would be given a latent to which the base has added no noise.
pub fn leaves_refiner_without_noise(steps: usize, ratio: f64) -> bool {
    base_steps(steps, ratio) == 0
}

fn base_steps(steps: usize, ratio: f64) -> usize {
    (steps as f64 * (1.0 - ratio)).floor().max(0.0) as usize
}

/// How far a detailer goes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Extent {
    /// Steps, from 1 on.
    pub steps: usize,
    /// How much of the way from noise to picture is gone, above 0 to 1.
    pub denoise: f64,
    /// A factor of all noise levels; 1 for every node that a job may name.
    pub sigma_factor: f64,
}

/// The run of a detailer: base, and refiner if there is one (`ksampler_wrapper`).
///
/// # Errors
/// As [`Way::new`] and [`separated`].
pub fn detail(
    task: &Task<'_>,
    levels: &Levels,
    Extent { steps, denoise, sigma_factor }: Extent,
    refiner: Option<Refiner<'_>>,
    latent: &Latent,
    preview: &mut dyn FnMut(&Step<'_>),
) -> Result<Tensor, SampleError> {
    let way = Way::new(steps, denoise)?;
    let whole = Part {
        noise: Noise::Seed,
        total: way.total,
        start_at_step: Some(way.start_at_step),
        end_at_step: Some(way.total),
        return_with_leftover_noise: false,
        sigma_ratio: sigma_factor,
    };
    let Some(refiner) = refiner else { return separated(task, levels, whole, latent, preview) };
    let switch = way.start_at_step + base_steps(steps, refiner.ratio);
    let base = Part { end_at_step: Some(switch), return_with_leftover_noise: true, ..whole };
    let handed = composite(&separated(task, levels, base, latent, preview)?, latent)?;
    let latent = Latent { samples: handed, ..latent.clone() };
    let rest = Part { noise: Noise::None, start_at_step: Some(switch), end_at_step: Some(way.total + 1), ..whole };
    separated(refiner.task, levels, rest, &latent, preview)
}

/// What came of a latent where its noise mask says so, and the latent itself elsewhere.
fn composite(result: &Tensor, latent: &Latent) -> Result<Tensor, SampleError> {
    let Some(mask) = &latent.noise_mask else { return Ok(result.clone()) };
    let shape = Shape::of(result)?;
    let (n, mask) = mask_on_latent(mask, shape)?;
    let cells = shape.h * shape.w;
    let (new, old) = (sampling::numbers(result)?, sampling::numbers(&latent.samples)?);
    let blend = |(i, (new, old)): (usize, (&f32, &f32))| {
        let m = mask[i / (shape.c * cells) % n * cells + i % cells];
        new * m + old * (1.0 - m)
    };
    let blended: Vec<f32> = new.iter().zip(&old).enumerate().map(blend).collect();
    Ok(Tensor::from_vec(blended, result.dims(), result.device()).map_err(crate::error::ModelError::from)?)
}

/// How a second sampler repairs what an uneven mask does to samplers that look back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecoveryMode {
    /// It does not.
    Disable,
    /// The two samplers share the levels.
    RatioBetween,
    /// The second comes on top.
    RatioAdditional,
}

/// What the second sampler is, and its share of the levels.
#[derive(Debug, Clone, Copy)]
pub struct Recovery {
    /// Whether there is one.
    pub mode: RecoveryMode,
    /// Which; `None` is chosen by the first (`AUTO`).
    pub sampler: Option<&'static Sampler>,
    /// Its share, 0 to 1.
    pub sigma_ratio: f64,
}

/// Takes a latent over a part of a schedule, with a recovery where the sampler needs one (`KSamplerAdvancedWrapper`).
///
/// # Errors
/// As [`separated`], and if a recovery is wanted for a latent without a noise mask.
pub fn advanced(
    task: &Task<'_>,
    levels: &Levels,
    part: Part<'_>,
    recovery: Recovery,
    latent: &Latent,
    preview: &mut dyn FnMut(&Step<'_>),
) -> Result<Tensor, SampleError> {
    let name = task.sampler.name;
    let needs = name.starts_with("uni_pc") || SPANS_ALL.contains(&name);
    if recovery.mode == RecoveryMode::Disable || !needs {
        return separated(task, levels, part, latent, preview);
    }
    if latent.noise_mask.is_none() {
        return Err(SampleError::NoMask);
    }
    let first_ratio = match recovery.mode {
        RecoveryMode::RatioBetween => 1.0 - recovery.sigma_ratio,
        RecoveryMode::RatioAdditional | RecoveryMode::Disable => 1.0,
    };
    let mut latent = latent.clone();
    if first_ratio > 0.0 {
        let first = Part { sigma_ratio: first_ratio * part.sigma_ratio, ..part };
        let result = separated(task, levels, first, &latent, preview)?;
        latent.samples = composite(&result, &latent)?;
    }
    let second = match recovery.sampler {
        Some(sampler) => sampler,
        None if name.starts_with("uni_pc") || name.starts_with("dpmpp_sde") => sampler("dpm_fast")?,
        None => sampler("dpmpp_2m")?,
    };
    let repair = Part { sigma_ratio: recovery.sigma_ratio * part.sigma_ratio, ..part };
    separated(&Task { sampler: second, ..*task }, levels, repair, &latent, preview)
}
