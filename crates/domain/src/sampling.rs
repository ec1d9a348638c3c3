//! The parameters of a sampler, by the reference's names, and how many evaluations they come to (detailers.md, section 3).
//!
//! The samplers themselves are the workers'. Here are their names, so that a wrong one is refused when a job is submitted.

use serde::{Deserialize, Serialize};

use crate::check::{Invalid, Wrong, in_range, known_name};

/// A sampler, and how often it evaluates the network per step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampler {
    /// The reference's name.
    pub name: &'static str,
    /// Evaluations a step, the most where steps differ.
    pub evaluations: u32,
}

const fn once(name: &'static str) -> Sampler {
    Sampler { name, evaluations: 1 }
}

const fn twice(name: &'static str) -> Sampler {
    Sampler { name, evaluations: 2 }
}

/// Every sampler that workers have.
pub const SAMPLERS: &[Sampler] = &[
    once("euler"),
    once("euler_cfg_pp"),
    once("euler_ancestral"),
    once("euler_ancestral_cfg_pp"),
    twice("heun"),
    Sampler { name: "heunpp2", evaluations: 3 },
    twice("dpm_2"),
    twice("dpm_2_ancestral"),
    once("lms"),
    once("dpm_fast"),
    Sampler { name: "dpm_adaptive", evaluations: 3 }, // chooses its own steps
    twice("dpmpp_2s_ancestral"),
    twice("dpmpp_2s_ancestral_cfg_pp"),
    twice("dpmpp_sde"),
    twice("dpmpp_sde_gpu"),
    once("dpmpp_2m"),
    once("dpmpp_2m_cfg_pp"),
    once("dpmpp_2m_sde"),
    once("dpmpp_2m_sde_gpu"),
    once("dpmpp_2m_sde_heun"),
    once("dpmpp_2m_sde_heun_gpu"),
    once("dpmpp_3m_sde"),
    once("dpmpp_3m_sde_gpu"),
    once("ddpm"),
    once("lcm"),
    once("ipndm"),
    once("ipndm_v"),
    once("deis"),
    once("res_multistep"),
    once("res_multistep_cfg_pp"),
    once("res_multistep_ancestral"),
    once("res_multistep_ancestral_cfg_pp"),
    once("gradient_estimation"),
    once("gradient_estimation_cfg_pp"),
    once("er_sde"),
    twice("seeds_2"),
    Sampler { name: "seeds_3", evaluations: 3 },
    once("sa_solver"),
    twice("sa_solver_pece"),
    once("ddim"),
    once("uni_pc"),
    once("uni_pc_bh2"),
];

/// Every scheduler that workers have.
pub const SCHEDULERS: &[&str] = &[
    "simple",
    "sgm_uniform",
    "karras",
    "exponential",
    "ddim_uniform",
    "beta",
    "normal",
    "linear_quadratic",
    "kl_optimal",
    "AYS SDXL",
    "AYS SD1",
    "AYS SVD",
    "GITS[coeff=1.2]",
    "LTXV[default]",
    "OSS FLUX",
    "OSS Wan",
    "OSS Chroma",
];

/// The most steps that a schedule is computed for.
pub const MOST_ADVANCED: u64 = 100_000;

/// How one sampling run goes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KSampler {
    /// The seed of the initial noise.
    pub seed: u64,
    /// Steps, 1 to 10000.
    pub steps: u32,
    /// How much the positive prompt is preferred, 0 to 100; at 1 the negative is not evaluated.
    pub cfg: f64,
    /// One of [`SAMPLERS`].
    pub sampler_name: String,
    /// One of [`SCHEDULERS`]; with a scheduler function it is not asked for.
    pub scheduler: String,
    /// How much is redrawn, 0.0001 to 1.
    pub denoise: f64,
    /// What replaces the scheduler.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheduler_func: Option<SchedulerFunc>,
}

impl Default for KSampler {
    fn default() -> Self {
        Self {
            seed: 0,
            steps: 20,
            cfg: 8.0,
            sampler_name: "euler".to_owned(),
            scheduler: "normal".to_owned(),
            denoise: 0.5,
            scheduler_func: None,
        }
    }
}

/// A scheduler function, as data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum SchedulerFunc {
    /// The GITS table.
    Gits {
        /// Which of its tables: 1.2, the only one that workers have.
        coeff: f64,
        /// How much of it is used, 0 to 1.
        denoise: f64,
    },
    /// Always these levels, from the highest.
    List {
        /// The noise levels.
        sigmas: Vec<f64>,
    },
}

impl KSampler {
    /// The steps of the whole schedule, of which the last [`KSampler::steps`] are done.
    pub fn advanced(&self) -> f64 {
        (f64::from(self.steps) / self.denoise).floor()
    }

    /// Refuses parameters out of range; `at` is the path of the message that holds them.
    pub fn check(&self, at: &str) -> Result<(), Invalid> {
        in_range(format!("{at}.steps"), self.steps, 1, 10_000)?;
        in_range(format!("{at}.cfg"), self.cfg, 0.0, 100.0)?;
        in_range(format!("{at}.denoise"), self.denoise, 0.0001, 1.0)?;
        let names = SAMPLERS.iter().map(|sampler| sampler.name);
        known_name(format!("{at}.sampler_name"), "sampler", &self.sampler_name, names)?;
        let advanced = self.advanced();
        if advanced > MOST_ADVANCED as f64 {
            let Self { denoise, steps, .. } = *self;
            let least = (f64::from(steps) / MOST_ADVANCED as f64 * 1e4).ceil() / 1e4;
            let wrong = Wrong::Schedule { denoise, steps, advanced, most: MOST_ADVANCED, least };
            return Err(wrong.at(format!("{at}.denoise")));
        }
        match &self.scheduler_func {
            None => known_name(format!("{at}.scheduler"), "scheduler", &self.scheduler, SCHEDULERS.iter().copied()),
            Some(SchedulerFunc::Gits { coeff, denoise }) => {
                // Of the reference's tables, workers have this one.
                in_range(format!("{at}.scheduler_func.gits.coeff"), *coeff, 1.2, 1.2)?;
                in_range(format!("{at}.scheduler_func.gits.denoise"), *denoise, 0.0, 1.0)
            }
            Some(SchedulerFunc::List { sigmas }) => {
                let mut levels = (0..).zip(sigmas);
                levels.try_for_each(|(i, &sigma): (usize, _)| {
                    in_range(format!("{at}.scheduler_func.list.sigmas[{i}]"), sigma, 0.0, f64::MAX)
                })
            }
        }
    }

    /// Refuses a seed that does not fit 64 bits any more when `step` is added, the most that the job counts up.
    pub fn check_seed(&self, at: &str, step: u64) -> Result<(), Invalid> {
        match self.seed.checked_add(step) {
            Some(_) => Ok(()),
            None => Err(Wrong::SeedOverflow { seed: self.seed, step }.at(format!("{at}.seed"))),
        }
    }

    /// How often one run evaluates the network, the negative prompt counted by itself.
    ///
    /// An estimate: few schedulers give a level more or less than steps.
    pub fn evaluations(&self) -> u64 {
        let steps = match &self.scheduler_func {
            Some(SchedulerFunc::List { sigmas }) => sigmas.len().saturating_sub(1).min(self.steps as usize) as u64,
            _ => u64::from(self.steps),
        };
        let sampler = SAMPLERS.iter().find(|sampler| sampler.name == self.sampler_name);
        let sides = if self.cfg == 1.0 { 1 } else { 2 };
        steps * sides * sampler.map_or(1, |sampler| u64::from(sampler.evaluations))
    }

    /// How many steps are left for the base when a refiner takes its part.
    pub fn base_steps(&self, refiner_ratio: f64) -> u32 {
        (f64::from(self.steps) * (1.0 - refiner_ratio)).floor() as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(sampler: &KSampler) -> Result<(), String> {
        sampler.check("job").map_err(|invalid| invalid.field)
    }

    #[test]
    fn parameters_out_of_range_are_refused_with_their_field() {
        let good = KSampler::default();
        assert_eq!(field(&good), Ok(()));
        assert_eq!(field(&KSampler { steps: 0, ..good.clone() }), Err("job.steps".into()));
        assert_eq!(field(&KSampler { cfg: f64::NAN, ..good.clone() }), Err("job.cfg".into()));
        assert_eq!(field(&KSampler { denoise: 0.0, ..good.clone() }), Err("job.denoise".into()));
        assert_eq!(field(&KSampler { sampler_name: "oiler".into(), ..good.clone() }), Err("job.sampler_name".into()));
        let odd = KSampler { scheduler: "odd".into(), ..good.clone() };
        assert_eq!(field(&odd), Err("job.scheduler".into()));
        let gits = |coeff| Some(SchedulerFunc::Gits { coeff, denoise: 1.0 });
        assert_eq!(field(&KSampler { scheduler_func: gits(1.2), ..good.clone() }), Ok(()));
        let other = field(&KSampler { scheduler_func: gits(1.3), ..good.clone() });
        assert_eq!(other, Err("job.scheduler_func.gits.coeff".into()), "another table");
        let list = Some(SchedulerFunc::List { sigmas: vec![1.0, 0.0] });
        assert_eq!(field(&KSampler { scheduler_func: list, ..odd }), Ok(()), "nobody asks for the scheduler");
        let last = KSampler { seed: u64::MAX - 1, ..good };
        assert!(last.check_seed("job", 1).is_ok() && last.check_seed("job", 2).is_err());
    }

    #[test]
    fn a_schedule_that_nobody_can_compute_is_refused_with_the_denoise_that_fits() {
        let tiny = KSampler { denoise: 0.0001, ..KSampler::default() };
        let refused = tiny.check("job").unwrap_err();
        assert_eq!(refused.field, "job.denoise");
        let Wrong::Schedule { least, .. } = refused.wrong else { panic!("{refused}") };
        assert_eq!(field(&KSampler { denoise: least, ..tiny }), Ok(()));
    }

    #[test]
    fn steps_are_cut_as_floats_are() {
        let sampler = |steps, denoise| KSampler { steps, denoise, ..KSampler::default() };
        assert_eq!(sampler(3, 0.3).advanced(), 10.0);
        assert_eq!(sampler(20, 0.5).advanced(), 40.0);
        assert_eq!(sampler(10, 0.5).base_steps(0.9), 0, "1 - 0.9 is a little less than 0.1");
        assert_eq!(sampler(10, 0.5).base_steps(0.2), 8);
    }
}
