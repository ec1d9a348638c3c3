//! Samplers: from a noised latent down the noise levels to a clean one.
//!
//! A sampler is a function of a latent and a run, which knows the noise levels, predicts the clean latent by a [`Denoiser`]
//! and draws noise. A new one is such a function and its row in [`SAMPLERS`]. [`sample`] runs one.
//!
//! Latents are plain numbers here, a whole batch in row-major order: they are small beside what the network makes of them, and
//! so each device gives the network the same ones. What is summed for a number is summed in float64 and rounded once.
//! Only where the reference's rounding decides what comes out are scalars float32.
//!
//! Written like the formulas: x is the latent, D the prediction, U the one of the negative prompt alone, d the slope dx/dσ,
//! λ = −ln σ, h a step of λ, N a draw of noise.

mod arithmetic;
mod dpm_solver;
mod dpmpp;
mod euler;
mod exponential;
mod multistep;
mod sa_solver;
mod uni_pc;

use arithmetic::all_finite;

use super::random::{Generator, brownian::BrownianTree};
use super::schedule::{ModelSampling, ScheduleError};
use crate::error::ModelError;
use crate::watch::Watch;

/// What is added to the seed of the initial noise for the noise inside of samplers.
///
/// The reference's version adds nothing, so that the first draw is the initial noise again; later versions add 1 on a CPU.
const NOISE_SEED_OFFSET: u64 = 0;

/// Why sampling stopped.
#[derive(Debug, thiserror::Error)]
pub enum SampleError {
    /// The network could not be run, or whoever watched asked to stop.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// There are no noise levels to go down.
    #[error(transparent)]
    Schedule(#[from] ScheduleError),
    /// A recovery needs to know what was to change.
    #[error("a recovery sampler needs a latent with a noise mask")]
    NoMask,
    /// The prediction, or what the last step made of it, is infinite or no number.
    #[error("the latent of step {step} of {steps}, at sigma {sigma}, holds a value that is infinite or no number")]
    NotFinite {
        /// The step, from 1.
        step: usize,
        /// How many there are.
        steps: usize,
        /// The noise level.
        sigma: f32,
    },
    /// The latent and a prediction of it differ in size.
    #[error("the latent has {latent} numbers, but its prediction {predicted}")]
    Size {
        /// The numbers of the latent.
        latent: usize,
        /// The numbers of the prediction.
        predicted: usize,
    },
    /// The noise levels are no way down.
    #[error("noise levels must be positive and must not rise, and only the last may be 0, but level {at} is {found}")]
    Levels {
        /// Which level it is, from 0.
        at: usize,
        /// The level.
        found: f32,
    },
}

/// What samplers return.
pub type Result<T, E = SampleError> = std::result::Result<T, E>;

/// Someone who predicts clean latents: a network with its prompts, guidance and masks.
pub trait Denoiser {
    /// Predicts the clean latent of `x`, a batch that is noised at level `sigma`. The result has as many numbers.
    fn denoise(&mut self, x: &[f32], sigma: f32) -> Result<Vec<f32>, ModelError>;

    /// As [`Self::denoise`], and what the negative prompt alone predicts, before guidance and masks. It is evaluated even where
    /// guidance has no use for it.
    fn denoise_both(&mut self, x: &[f32], sigma: f32) -> Result<Both, ModelError>;
}

/// Two predictions of a clean latent.
#[derive(Debug, Clone, PartialEq)]
pub struct Both {
    /// With guidance and masks.
    pub denoised: Vec<f32>,
    /// Of the negative prompt alone.
    pub negative: Vec<f32>,
}

/// Where the noise inside of a sampler comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoiseSource {
    /// One draw after another from a generator.
    Sequence,
    /// A Brownian path over the noise levels.
    Brownian,
}

/// A sampler and what a run of it needs to know.
#[derive(Debug)]
pub struct Sampler {
    /// The reference's name.
    pub name: &'static str,
    /// Where its noise comes from, if it draws any.
    pub noise: NoiseSource,
    /// Whether its schedule leaves out the lowest level above 0.
    pub drops_penultimate: bool,
    /// What is added to the seed, wrapping, for the noise that masks are blended with.
    pub mask_seed_offset: u64,
    run: Function,
}

/// A sampler takes a noised latent down the levels of a run.
type Function = fn(&mut Run<'_>, Vec<f32>) -> Result<Vec<f32>>;

impl Sampler {
    const fn new(name: &'static str, run: Function) -> Self {
        Self { name, noise: NoiseSource::Sequence, drops_penultimate: false, mask_seed_offset: 0, run }
    }

    const fn brownian(name: &'static str, run: Function) -> Self {
        Self { noise: NoiseSource::Brownian, ..Self::new(name, run) }
    }

    const fn without_penultimate(name: &'static str, run: Function) -> Self {
        Self { drops_penultimate: true, ..Self::new(name, run) }
    }
}

/// Every sampler, in the reference's order.
pub const SAMPLERS: &[Sampler] = &[
    Sampler::new("euler", euler::euler),
    Sampler::new("euler_cfg_pp", euler::euler_cfg_pp),
    Sampler::new("euler_ancestral", euler::euler_ancestral),
    Sampler::new("euler_ancestral_cfg_pp", euler::euler_ancestral_cfg_pp),
    Sampler::new("heun", euler::heun),
    Sampler::new("heunpp2", euler::heunpp2),
    Sampler::without_penultimate("dpm_2", euler::dpm_2),
    Sampler::without_penultimate("dpm_2_ancestral", euler::dpm_2_ancestral),
    Sampler::new("lms", multistep::lms),
    Sampler::new("dpm_fast", dpm_solver::dpm_fast),
    Sampler::new("dpm_adaptive", dpm_solver::dpm_adaptive),
    Sampler::new("dpmpp_2s_ancestral", dpmpp::dpmpp_2s_ancestral),
    Sampler::new("dpmpp_2s_ancestral_cfg_pp", dpmpp::dpmpp_2s_ancestral_cfg_pp),
    Sampler::brownian("dpmpp_sde", dpmpp::dpmpp_sde),
    Sampler::brownian("dpmpp_sde_gpu", dpmpp::dpmpp_sde),
    Sampler::new("dpmpp_2m", dpmpp::dpmpp_2m),
    Sampler::new("dpmpp_2m_cfg_pp", dpmpp::dpmpp_2m_cfg_pp),
    Sampler::brownian("dpmpp_2m_sde", dpmpp::dpmpp_2m_sde),
    Sampler::brownian("dpmpp_2m_sde_gpu", dpmpp::dpmpp_2m_sde),
    Sampler::brownian("dpmpp_2m_sde_heun", dpmpp::dpmpp_2m_sde_heun),
    Sampler::brownian("dpmpp_2m_sde_heun_gpu", dpmpp::dpmpp_2m_sde_heun),
    Sampler::brownian("dpmpp_3m_sde", dpmpp::dpmpp_3m_sde),
    Sampler::brownian("dpmpp_3m_sde_gpu", dpmpp::dpmpp_3m_sde),
    Sampler::new("ddpm", euler::ddpm),
    Sampler::new("lcm", euler::lcm),
    Sampler::new("ipndm", multistep::ipndm),
    Sampler::new("ipndm_v", multistep::ipndm_v),
    Sampler::new("deis", multistep::deis),
    Sampler::new("res_multistep", exponential::res_multistep),
    Sampler::new("res_multistep_cfg_pp", exponential::res_multistep_cfg_pp),
    Sampler::new("res_multistep_ancestral", exponential::res_multistep_ancestral),
    Sampler::new("res_multistep_ancestral_cfg_pp", exponential::res_multistep_ancestral_cfg_pp),
    Sampler::new("gradient_estimation", multistep::gradient_estimation),
    Sampler::new("gradient_estimation_cfg_pp", multistep::gradient_estimation_cfg_pp),
    Sampler::new("er_sde", exponential::er_sde),
    Sampler::new("seeds_2", exponential::seeds_2),
    Sampler::new("seeds_3", exponential::seeds_3),
    Sampler::new("sa_solver", sa_solver::sa_solver),
    Sampler::new("sa_solver_pece", sa_solver::sa_solver_pece),
    Sampler { mask_seed_offset: 1, ..Sampler::new("ddim", euler::euler) },
    Sampler::without_penultimate("uni_pc", uni_pc::uni_pc),
    Sampler::without_penultimate("uni_pc_bh2", uni_pc::uni_pc_bh2),
];

/// Finds the sampler of a name.
pub fn sampler(name: &str) -> Result<&'static Sampler, ScheduleError> {
    SAMPLERS.iter().find(|sampler| sampler.name == name).ok_or_else(|| ScheduleError::UnknownName {
        kind: "sampler",
        name: name.to_owned(),
        known: SAMPLERS.iter().map(|sampler| sampler.name).collect(),
    })
}

/// What a run depends on besides the latent and the denoiser.
#[derive(Clone, Copy)]
pub struct Settings<'a> {
    /// How the network sees noise levels.
    pub model: &'a ModelSampling,
    /// The noise levels, falling; the last is 0 but for a run that leaves noise.
    pub sigmas: &'a [f32],
    /// The seed of the initial noise, from which the noise inside of samplers follows.
    pub seed: u64,
    /// The lowest and the highest level of the Brownian path, where they are not those of `sigmas` above 0.
    pub brownian_range: Option<(f32, f32)>,
    /// Who may interrupt before each call of the denoiser. The fraction it hears counts steps.
    pub watch: &'a dyn Watch,
}

/// A step of a run, as previews see it.
#[derive(Debug, Clone, Copy)]
pub struct Step<'a> {
    /// Which one it is, from 0.
    pub index: usize,
    /// How many there are, as far as that is known before: `dpm_adaptive` takes as many as it needs.
    pub steps: usize,
    /// The latent before the step; after it with `dpm_adaptive` and `uni_pc`, before the run with `ipndm`, `ipndm_v` and `deis`.
    pub x: &'a [f32],
    /// The prediction of the clean latent.
    pub denoised: &'a [f32],
}

/// What a run gives.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampled {
    /// The latent at the last noise level.
    pub latent: Vec<f32>,
    /// The last prediction that previews saw; none if there was no step.
    pub last_denoised: Option<Vec<f32>>,
}

/// Takes `x`, a batch of latents that is noised at the first level, down the levels; `preview` sees each step.
///
/// Without two levels there is no step and x stays as it is.
pub fn sample(
    sampler: &Sampler,
    denoiser: &mut dyn Denoiser,
    x: Vec<f32>,
    settings: &Settings<'_>,
    preview: &mut dyn FnMut(&Step<'_>),
) -> Result<Sampled> {
    let sigmas = settings.sigmas;
    for (at, &found) in sigmas.iter().enumerate() {
        let rises = at > 0 && found > sigmas[at - 1];
        let is_positive = found > 0.0 || (found == 0.0 && at > 0 && at + 1 == sigmas.len());
        if rises || !is_positive || !found.is_finite() {
            return Err(SampleError::Levels { at, found });
        }
    }
    if sigmas.len() < 2 {
        return Ok(Sampled { latent: x, last_denoised: None });
    }
    let mut run = Run {
        settings: *settings,
        denoiser,
        preview,
        noise: match sampler.noise {
            NoiseSource::Sequence => {
                Noise::Sequence(Box::new(Generator::new(settings.seed.wrapping_add(NOISE_SEED_OFFSET))), x.len())
            }
            NoiseSource::Brownian => {
                let lowest = sigmas.iter().rev().find(|&&sigma| sigma > 0.0).copied().unwrap_or(sigmas[0]);
                let (low, high) = settings.brownian_range.unwrap_or((lowest, sigmas[0]));
                Noise::Brownian(BrownianTree::new(settings.seed, low, high, x.len()))
            }
        },
        index: 0,
        done: 0.0,
        last_denoised: None,
    };
    let latent = (sampler.run)(&mut run, x)?;
    if !all_finite(&latent) {
        return Err(SampleError::NotFinite { step: run.steps(), steps: run.steps(), sigma: sigmas[sigmas.len() - 1] });
    }
    Ok(Sampled { latent, last_denoised: run.last_denoised })
}

/// The noise inside of a run.
enum Noise {
    /// A generator, and how many numbers a draw has.
    Sequence(Box<Generator>, usize),
    Brownian(BrownianTree),
}

/// A run of a sampler: its noise levels, and what it may ask for.
struct Run<'a> {
    settings: Settings<'a>,
    denoiser: &'a mut dyn Denoiser,
    preview: &'a mut dyn FnMut(&Step<'_>),
    noise: Noise,
    /// The step that we are at.
    index: usize,
    /// The fraction of the steps behind us.
    done: f64,
    last_denoised: Option<Vec<f32>>,
}

impl<'a> Run<'a> {
    /// How many steps there are: one less than levels.
    fn steps(&self) -> usize {
        self.sigmas().len() - 1
    }

    fn sigmas(&self) -> &'a [f32] {
        self.settings.sigmas
    }

    fn sigma(&self, i: usize) -> f64 {
        f64::from(self.sigmas()[i])
    }

    /// The levels at which step i begins and ends.
    fn pair(&self, i: usize) -> (f64, f64) {
        (self.sigma(i), self.sigma(i + 1))
    }

    /// D at the level of step i, which previews see.
    fn predict(&mut self, i: usize, x: &[f32]) -> Result<Vec<f32>> {
        self.predict_showing(i, x, x)
    }

    /// D at the level of step i, which previews see beside the latent `shown`.
    fn predict_showing(&mut self, i: usize, x: &[f32], shown: &[f32]) -> Result<Vec<f32>> {
        self.arrive(i, i as f64 / self.steps() as f64);
        let denoised = self.denoise(x, self.sigmas()[i])?;
        self.show(shown, &denoised);
        Ok(denoised)
    }

    /// D and U at the level of step i, which previews see.
    fn predict_both(&mut self, i: usize, x: &[f32]) -> Result<(Vec<f32>, Vec<f32>)> {
        self.arrive(i, i as f64 / self.steps() as f64);
        let (denoised, negative) = self.denoise_both(x, self.sigmas()[i])?;
        self.show(x, &denoised);
        Ok((denoised, negative))
    }

    /// Says that the run is at step `index`, with a fraction of its work behind it.
    fn arrive(&mut self, index: usize, done: f64) {
        (self.index, self.done) = (index, done);
    }

    /// Shows the step that the run is at.
    fn show(&mut self, x: &[f32], denoised: &[f32]) {
        let steps = self.steps();
        (self.preview)(&Step { index: self.index, steps, x, denoised });
        self.last_denoised = Some(denoised.to_vec());
    }

    /// D at a level.
    fn denoise(&mut self, x: &[f32], sigma: f32) -> Result<Vec<f32>> {
        self.go_on()?;
        let denoised = self.denoiser.denoise(x, sigma)?;
        self.check(x, &denoised, sigma)?;
        Ok(denoised)
    }

    /// D and U at a level.
    fn denoise_both(&mut self, x: &[f32], sigma: f32) -> Result<(Vec<f32>, Vec<f32>)> {
        self.go_on()?;
        let Both { denoised, negative } = self.denoiser.denoise_both(x, sigma)?;
        self.check(x, &denoised, sigma)?;
        self.check(x, &negative, sigma)?;
        Ok((denoised, negative))
    }

    fn go_on(&self) -> Result<()> {
        match self.settings.watch.goes_on(self.done.min(1.0)) {
            true => Ok(()),
            false => Err(ModelError::Interrupted.into()),
        }
    }

    fn check(&self, x: &[f32], predicted: &[f32], sigma: f32) -> Result<()> {
        if predicted.len() != x.len() {
            return Err(SampleError::Size { latent: x.len(), predicted: predicted.len() });
        }
        if !all_finite(predicted) {
            return Err(SampleError::NotFinite { step: self.index + 1, steps: self.steps(), sigma });
        }
        Ok(())
    }

    /// N of a step from one level to another.
    fn noise(&mut self, from: f32, to: f32) -> Vec<f32> {
        match &mut self.noise {
            Noise::Sequence(generator, count) => generator.normals(*count),
            Noise::Brownian(tree) => tree.noise(from, to),
        }
    }

    /// N of step i.
    fn noise_of(&mut self, i: usize) -> Vec<f32> {
        self.noise(self.sigmas()[i], self.sigmas()[i + 1])
    }
}
