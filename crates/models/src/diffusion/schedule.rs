//! Noise levels: what a network was trained on, and which levels a run passes through.
//!
//! [`ModelSampling`] turns noise levels into the timesteps of a network and its output into the denoised latent.
//! [`SCHEDULERS`] lists the ways to choose the levels of a run, by the reference's names; [`for_run`] shortens them as its
//! KSampler does.
//!
//! Levels are float32 and computed in the reference's order of rounding, because the noise of the SDE samplers depends on their
//! last bits.

mod beta;
mod schedulers;
pub mod tables;

pub use schedulers::{Ltxv, SCHEDULERS, Scheduler, ltxv, optimal_steps, scheduler};

/// The timesteps that a network was trained on.
const TIMESTEPS: usize = 1000;

/// The most steps that a schedule has. Reached by a tiny denoise alone, of which nothing is to be expected.
pub const MOST_STEPS: usize = 100_000;

/// Why there is no schedule.
#[derive(Debug, thiserror::Error, Clone, PartialEq)]
pub enum ScheduleError {
    /// The reference has no scheduler or sampler of this name.
    #[error("unknown {kind} `{name}`; known are {}", .known.join(", "))]
    UnknownName {
        /// What was asked for: `scheduler`, `sampler`.
        kind: &'static str,
        /// By this name.
        name: String,
        /// The names that there are.
        known: Vec<&'static str>,
    },
    /// The scheduler does not go with so few or so many steps.
    #[error("{scheduler} takes {least} to {most} steps, but {steps} are asked for")]
    Steps {
        /// The scheduler.
        scheduler: &'static str,
        /// The fewest steps.
        least: usize,
        /// The most steps.
        most: usize,
        /// The steps asked for.
        steps: usize,
    },
    /// The denoise is no number, or so small that the whole schedule is too long.
    #[error("denoise {denoise} with {steps} steps asks for a schedule of more than {MOST_STEPS} steps")]
    Denoise {
        /// The denoise asked for.
        denoise: f64,
        /// The steps asked for.
        steps: usize,
    },
    /// A range of noise levels is empty or holds none.
    #[error("noise levels go from a positive one up, not from {sigma_min} to {sigma_max}")]
    Range {
        /// The lowest level asked for.
        sigma_min: f32,
        /// The highest level asked for.
        sigma_max: f32,
    },
}

/// What a network predicts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prediction {
    /// The noise.
    Epsilon,
    /// The velocity: noise and latent turned into each other (Salimans and Ho 2022).
    Velocity,
}

/// How a network sees noise levels.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelSampling {
    prediction: Prediction,
    /// The levels of the timesteps, lowest first.
    sigmas: Vec<f32>,
    /// Their logarithms.
    log_sigmas: Vec<f32>,
    /// Whether any level is a timestep of its own, instead of the nearest of the table.
    is_continuous: bool,
}

impl ModelSampling {
    /// The table of SD 1.x, SD 2.x, SDXL and its refiner; with `zero_terminal_snr` shifted so that the last level is nearly noise
    /// alone (Lin et al. 2023).
    pub fn discrete(prediction: Prediction, zero_terminal_snr: bool) -> Self {
        /// The share of the signal that is left at the end of a shifted table.
        const TERMINAL: f64 = 4.897_345_189_085_343_5e-8;
        let (first, last) = (0.00085f64.sqrt(), 0.012f64.sqrt());
        let mut product = 1.0; // what is left of the signal's variance
        let left = |i| {
            let beta: f64 = first + i as f64 / (TIMESTEPS - 1) as f64 * (last - first);
            product *= 1.0 - beta * beta;
            product
        };
        let mut left: Vec<f64> = (0..TIMESTEPS).map(left).collect();
        if zero_terminal_snr {
            let (first, last) = (left[0].sqrt(), left[TIMESTEPS - 1].sqrt());
            left.iter_mut().for_each(|left| *left = ((left.sqrt() - last) * first / (first - last)).powi(2));
            left[TIMESTEPS - 1] = TERMINAL;
        }
        let sigmas = left.into_iter().map(|left| ((1.0 - left) / left).sqrt());
        let (sigmas, log_sigmas) = sigmas.map(|sigma| (sigma as f32, libm::log(sigma) as f32)).unzip();
        Self { prediction, sigmas, log_sigmas, is_continuous: false }
    }

    /// Levels without steps between two, as those of checkpoints marked `edm_vpred` (Karras et al. 2022).
    pub fn continuous(prediction: Prediction, sigma_min: f32, sigma_max: f32) -> Result<Self, ScheduleError> {
        if !(sigma_min > 0.0 && sigma_min < sigma_max && sigma_max.is_finite()) {
            return Err(ScheduleError::Range { sigma_min, sigma_max });
        }
        let log_sigmas = linspace(ln(sigma_min), ln(sigma_max), TIMESTEPS);
        let sigmas = log_sigmas.iter().map(|&log| exp(log)).collect();
        Ok(Self { prediction, sigmas, log_sigmas, is_continuous: true })
    }

    /// What the network predicts.
    pub fn prediction(&self) -> Prediction {
        self.prediction
    }

    /// The levels of the timesteps, lowest first.
    pub fn sigmas(&self) -> &[f32] {
        &self.sigmas
    }

    /// The logarithms of [`Self::sigmas`].
    pub fn log_sigmas(&self) -> &[f32] {
        &self.log_sigmas
    }

    /// The lowest level.
    pub fn sigma_min(&self) -> f32 {
        self.sigmas[0]
    }

    /// The highest level.
    pub fn sigma_max(&self) -> f32 {
        self.sigmas[self.sigmas.len() - 1]
    }

    /// The timestep that the network is told at a level: the nearest one of the table, by the logarithm.
    pub fn timestep(&self, sigma: f32) -> f32 {
        let log = ln(sigma);
        if self.is_continuous {
            return 0.25 * log;
        }
        let distance = |i: usize| (log - self.log_sigmas[i]).abs();
        let nearest = (0..self.log_sigmas.len()).reduce(|a, b| if distance(b) < distance(a) { b } else { a });
        nearest.expect("the table has timesteps") as f32
    }

    /// The level of a timestep, which may lie between two of the table.
    pub fn sigma(&self, timestep: f32) -> f32 {
        if self.is_continuous {
            return exp(timestep / 0.25);
        }
        let t = timestep.clamp(0.0, (TIMESTEPS - 1) as f32);
        let (below, above, share) = (t.floor() as usize, t.ceil() as usize, t - t.floor());
        exp((1.0 - share) * self.log_sigmas[below] + share * self.log_sigmas[above])
    }

    /// The level after a share of the timesteps, from 0 (above all levels) to 1 (below all).
    pub fn percent_to_sigma(&self, percent: f64) -> f64 {
        /// The reference's number for a level above all others.
        const ABOVE_ALL: f64 = 999_999_999.9;
        if percent <= 0.0 {
            return ABOVE_ALL;
        }
        if percent >= 1.0 {
            return 0.0;
        }
        let left = 1.0 - percent;
        if self.is_continuous {
            let (low, high) = (f64::from(self.sigma_min()), f64::from(self.sigma_max()));
            let (low, high) = (libm::log(low), libm::log(high));
            return libm::exp(low + (high - low) * left);
        }
        f64::from(self.sigma(((TIMESTEPS - 1) as f64 * left) as f32))
    }

    /// The factor of the noised latent that goes into the network.
    pub fn input_scale(&self, sigma: f32) -> f64 {
        let sigma = f64::from(sigma);
        1.0 / (sigma * sigma + 1.0).sqrt()
    }

    /// The factors of the noised latent and of the network's output whose sum is the denoised latent.
    pub fn denoised_factors(&self, sigma: f32) -> (f64, f64) {
        let sigma = f64::from(sigma);
        match self.prediction {
            Prediction::Epsilon => (1.0, -sigma),
            Prediction::Velocity => (1.0 / (sigma * sigma + 1.0), -sigma / (sigma * sigma + 1.0).sqrt()),
        }
    }

    /// The factor of the noise that is added to a latent before a run that begins at `sigma`.
    ///
    /// At the highest level (within 1e-5 of it) it makes up for what the latent adds to the variance.
    pub fn noise_scale(&self, sigma: f32) -> f64 {
        let (sigma, highest) = (f64::from(sigma), f64::from(self.sigma_max()));
        let is_highest = sigma > highest || (sigma - highest).abs() <= 1e-5 * sigma.max(highest);
        if is_highest { (1.0 + sigma * sigma).sqrt() } else { sigma }
    }
}

/// The levels of a KSampler run, highest first: the last `steps` steps of a schedule whose length `denoise` says.
///
/// The schedule is that of `⌊steps/denoise⌋` steps, or of `steps` where `denoise` is above 0.9999. It is empty where `denoise`
/// is 0 or less: the latent stays as it is. `drop_penultimate` asks for one step more and leaves out the lowest level above 0, for
/// the samplers that want it. A schedule may have more steps than asked for (`ddim_uniform`) or fewer (`beta`).
pub fn for_run(
    model: &ModelSampling,
    scheduler: &Scheduler,
    steps: usize,
    denoise: f64,
    drop_penultimate: bool,
) -> Result<Vec<f32>, ScheduleError> {
    if denoise <= 0.0 {
        return Ok(Vec::new());
    }
    if denoise > 0.9999 {
        return whole(model, scheduler, steps, drop_penultimate);
    }
    let all = (steps as f64 / denoise).floor();
    if all.is_nan() || all > MOST_STEPS as f64 {
        return Err(ScheduleError::Denoise { denoise, steps });
    }
    let mut sigmas = whole(model, scheduler, all as usize, drop_penultimate)?;
    Ok(sigmas.split_off(sigmas.len().saturating_sub(steps + 1)))
}

/// The levels of all steps, highest first, without the lowest above 0 if `drop_penultimate` says so.
pub fn whole(
    model: &ModelSampling,
    scheduler: &Scheduler,
    steps: usize,
    drop_penultimate: bool,
) -> Result<Vec<f32>, ScheduleError> {
    let mut sigmas = scheduler.sigmas(model, steps + usize::from(drop_penultimate))?;
    if drop_penultimate && sigmas.len() >= 2 {
        sigmas.remove(sigmas.len() - 2);
    }
    Ok(sigmas)
}

/// `count` numbers from `first` to `last`, rounded as PyTorch does: each end counts up to the middle.
fn linspace(first: f32, last: f32, count: usize) -> Vec<f32> {
    if count < 2 {
        return vec![first; count];
    }
    let step = (last - first) / (count - 1) as f32;
    let number = |i: usize| match i < count / 2 {
        true => step.mul_add(i as f32, first),
        false => (-step).mul_add((count - 1 - i) as f32, last),
    };
    (0..count).map(number).collect()
}

/// The natural logarithm, rounded once.
pub(super) fn ln(x: f32) -> f32 {
    libm::log(f64::from(x)) as f32
}

/// The exponential function, rounded once.
pub(super) fn exp(x: f32) -> f32 {
    libm::exp(f64::from(x)) as f32
}

/// The level whose logarithm lies in the middle of those of two levels.
pub(super) fn between(a: f32, b: f32) -> f32 {
    exp((ln(a) + ln(b)) / 2.0)
}
