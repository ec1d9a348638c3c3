//! The schedulers: each a function from a number of steps to noise levels, highest first and 0 at the end.

use super::{MOST_STEPS, ModelSampling, ScheduleError, beta, exp, linspace, tables};

/// A way to choose the noise levels of a run.
#[derive(Debug)]
pub struct Scheduler {
    /// The reference's name.
    pub name: &'static str,
    /// The fewest steps that it can be asked for.
    least: usize,
    levels: fn(&ModelSampling, usize) -> Vec<f32>,
}

/// Every scheduler, in the reference's order. The last four are of flow models and of no use with the networks here.
pub const SCHEDULERS: &[Scheduler] = &[
    Scheduler { name: "simple", least: 1, levels: simple },
    Scheduler { name: "sgm_uniform", least: 1, levels: sgm_uniform },
    Scheduler { name: "karras", least: 1, levels: karras },
    Scheduler { name: "exponential", least: 1, levels: exponential },
    Scheduler { name: "ddim_uniform", least: 1, levels: ddim_uniform },
    Scheduler { name: "beta", least: 1, levels: beta_quantiles },
    Scheduler { name: "normal", least: 1, levels: normal },
    Scheduler { name: "linear_quadratic", least: 1, levels: linear_quadratic },
    Scheduler { name: "kl_optimal", least: 2, levels: kl_optimal }, // one step divides 0 by 0
    Scheduler { name: "AYS SDXL", least: 1, levels: |_, n| tabled(&tables::AYS_SDXL, n) },
    Scheduler { name: "AYS SD1", least: 1, levels: |_, n| tabled(&tables::AYS_SD1, n) },
    Scheduler { name: "AYS SVD", least: 1, levels: |_, n| tabled(&tables::AYS_SVD, n) },
    Scheduler { name: "GITS[coeff=1.2]", least: 1, levels: gits },
    Scheduler { name: "LTXV[default]", least: 1, levels: |_, _| ltxv(20, &Ltxv::default()) },
    Scheduler { name: "OSS FLUX", least: 1, levels: |_, n| tabled(&tables::OSS_FLUX, n) },
    Scheduler { name: "OSS Wan", least: 1, levels: |_, n| tabled(&tables::OSS_WAN, n) },
    Scheduler { name: "OSS Chroma", least: 1, levels: |_, n| tabled(&tables::OSS_CHROMA, n) },
];

/// Finds the scheduler of a name.
pub fn scheduler(name: &str) -> Result<&'static Scheduler, ScheduleError> {
    SCHEDULERS.iter().find(|scheduler| scheduler.name == name).ok_or_else(|| ScheduleError::UnknownName {
        kind: "scheduler",
        name: name.to_owned(),
        known: SCHEDULERS.iter().map(|scheduler| scheduler.name).collect(),
    })
}

impl Scheduler {
    /// The noise levels of `steps` steps, highest first and 0 at the end.
    ///
    /// There are `steps + 1` of them, but `ddim_uniform` may give more, `beta` fewer, and `LTXV[default]` always gives 21.
    pub fn sigmas(&self, model: &ModelSampling, steps: usize) -> Result<Vec<f32>, ScheduleError> {
        if !(self.least..=MOST_STEPS).contains(&steps) {
            return Err(ScheduleError::Steps { scheduler: self.name, least: self.least, most: MOST_STEPS, steps });
        }
        Ok((self.levels)(model, steps))
    }
}

fn with_zero(levels: impl Iterator<Item = f32>) -> Vec<f32> {
    levels.chain([0.0]).collect()
}

/// Timesteps with equal distances, from the first to the last.
fn normal(model: &ModelSampling, steps: usize) -> Vec<f32> {
    let (first, last) = (model.timestep(model.sigma_max()), model.timestep(model.sigma_min()));
    with_zero(linspace(first, last, steps).into_iter().map(|t| model.sigma(t)))
}

/// Timesteps with equal distances, of which the last would be 0.
fn sgm_uniform(model: &ModelSampling, steps: usize) -> Vec<f32> {
    let (first, last) = (model.timestep(model.sigma_max()), model.timestep(model.sigma_min()));
    with_zero(linspace(first, last, steps + 1).into_iter().take(steps).map(|t| model.sigma(t)))
}

/// Levels of the table with equal distances, from the last.
fn simple(model: &ModelSampling, steps: usize) -> Vec<f32> {
    let table = model.sigmas();
    let stride = table.len() as f64 / steps as f64;
    with_zero((0..steps).map(|i| table[table.len() - 1 - (i as f64 * stride) as usize]))
}

/// Levels of the table with equal whole distances, from the second.
fn ddim_uniform(model: &ModelSampling, steps: usize) -> Vec<f32> {
    let table = model.sigmas();
    let stride = (table.len() / steps).max(1);
    let mut levels: Vec<f32> = [0.0].into_iter().chain(table[1..].iter().step_by(stride).copied()).collect();
    levels.reverse();
    levels
}

/// Equal distances of the seventh root (Karras et al. 2022).
fn karras(model: &ModelSampling, steps: usize) -> Vec<f32> {
    const RHO: f64 = 7.0;
    let (highest, lowest) = (f64::from(model.sigma_max()), f64::from(model.sigma_min()));
    let (highest, lowest) = (libm::pow(highest, 1.0 / RHO), libm::pow(lowest, 1.0 / RHO));
    let level = |u: f32| libm::pow(f64::from(highest as f32 + u * (lowest - highest) as f32), RHO) as f32;
    with_zero(linspace(0.0, 1.0, steps).into_iter().map(level))
}

/// Equal distances of the logarithm.
fn exponential(model: &ModelSampling, steps: usize) -> Vec<f32> {
    let (highest, lowest) = (f64::from(model.sigma_max()), f64::from(model.sigma_min()));
    let logs = linspace(libm::log(highest) as f32, libm::log(lowest) as f32, steps);
    with_zero(logs.into_iter().map(exp))
}

/// Timesteps that crowd at both ends, as a beta distribution with shapes 0.6 does (Lee et al. 2024).
fn beta_quantiles(model: &ModelSampling, steps: usize) -> Vec<f32> {
    let last = (model.sigmas().len() - 1) as f64;
    let timestep = |i: usize| {
        let share = 1.0 - i as f64 / steps as f64;
        (last * beta::symmetric_quantile(share, 0.6)).round_ties_even() as usize
    };
    let mut timesteps: Vec<usize> = (0..steps).map(timestep).collect();
    timesteps.dedup();
    with_zero(timesteps.into_iter().map(|t| model.sigmas()[t]))
}

/// Half of the steps at a small slope, the others along a parabola (Genmo's Mochi).
fn linear_quadratic(model: &ModelSampling, steps: usize) -> Vec<f32> {
    /// Where the slope ends.
    const THRESHOLD: f64 = 0.025;
    if steps == 1 {
        return vec![model.sigma_max(), 0.0];
    }
    let (n, half) = (steps as f64, (steps / 2) as f64);
    let rest = half - THRESHOLD * n;
    let quadratic = rest / (half * (n - half) * (n - half));
    let linear = THRESHOLD / half - 2.0 * rest / ((n - half) * (n - half));
    let offset = quadratic * half * half;
    let done = |i: usize| match i as f64 {
        i if i < half => i * THRESHOLD / half,
        i => quadratic * i * i + linear * i + offset,
    };
    with_zero((0..steps).map(|i| (1.0 - done(i)) as f32 * model.sigma_max()))
}

/// Equal distances of the angle whose tangent is the level (Sabour et al. 2024).
fn kl_optimal(model: &ModelSampling, steps: usize) -> Vec<f32> {
    let angle = |sigma: f32| libm::atan(f64::from(sigma)) as f32;
    let (lowest, highest) = (angle(model.sigma_min()), angle(model.sigma_max()));
    let level = |i: usize| {
        let u = i as f32 / (steps - 1) as f32;
        libm::tan(f64::from(u * lowest + (1.0 - u) * highest)) as f32
    };
    with_zero((0..steps).map(level))
}

/// A row for each number of steps, and the last for more.
fn gits(_: &ModelSampling, steps: usize) -> Vec<f32> {
    let rows = &tables::GITS;
    match steps {
        1 => tabled_end(rows[rows.len() - 1], 1), // the reference takes the wrong row here
        _ => tabled(rows[(steps - 2).min(rows.len() - 1)], steps),
    }
}

/// The levels of a table, as many as there are steps by equal distances between the logarithms, and 0 at the end.
fn tabled(table: &[f64], steps: usize) -> Vec<f32> {
    tabled_end(&in_table(table, steps + 1), steps)
}

/// The last `steps` levels, and 0 in place of the lowest.
fn tabled_end(table: &[f64], steps: usize) -> Vec<f32> {
    let start = table.len() - 1 - steps;
    with_zero(table[start..table.len() - 1].iter().map(|&level| level as f32))
}

/// A table with `count` levels in place of its own.
fn in_table(table: &[f64], count: usize) -> Vec<f64> {
    if table.len() == count {
        return table.to_vec();
    }
    // As the reference does, from the lowest level up.
    let logs: Vec<f64> = table.iter().rev().map(|&level| libm::log(level)).collect();
    let last = logs.len() - 1;
    let place = |i: usize, last: usize| if i == last { 1.0 } else { i as f64 * (1.0 / last as f64) };
    let level = |i: usize| {
        let x = place(i, count - 1);
        let below = (0..last).rev().find(|&k| place(k, last) <= x).unwrap_or(0);
        let slope = (logs[below + 1] - logs[below]) / (place(below + 1, last) - place(below, last));
        let log = if x >= 1.0 { logs[last] } else { slope * (x - place(below, last)) + logs[below] };
        libm::exp(log)
    };
    (0..count).rev().map(level).collect()
}

/// The levels of optimal steps with a `denoise`: the last of a table of `steps` steps. Empty where `denoise` is 0 or less.
pub fn optimal_steps(table: &[f64], steps: usize, denoise: f64) -> Result<Vec<f32>, ScheduleError> {
    if !(1..=MOST_STEPS).contains(&steps) {
        return Err(ScheduleError::Steps { scheduler: "OSS", least: 1, most: MOST_STEPS, steps });
    }
    if denoise.is_nan() {
        return Err(ScheduleError::Denoise { denoise, steps });
    }
    if denoise <= 0.0 {
        return Ok(Vec::new());
    }
    let kept = (steps as f64 * denoise.min(1.0)).round_ties_even() as usize;
    Ok(tabled_end(&in_table(table, steps + 1), kept))
}

/// What the schedule of LTX-Video depends on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ltxv {
    /// The shift at 4096 tokens.
    pub max_shift: f64,
    /// The shift at 1024 tokens.
    pub base_shift: f64,
    /// The level that the last one above 0 is moved to, if it is moved.
    pub terminal: Option<f64>,
    /// The tokens of the latent.
    pub tokens: usize,
}

impl Default for Ltxv {
    fn default() -> Self {
        Self { max_shift: 2.05, base_shift: 0.95, terminal: Some(0.1), tokens: 4096 }
    }
}

/// The levels of LTX-Video, from 1 down to 0: even ones, shifted the more the larger the latent is.
pub fn ltxv(steps: usize, parameters: &Ltxv) -> Vec<f32> {
    let &Ltxv { max_shift, base_shift, terminal, tokens } = parameters;
    let slope = (max_shift - base_shift) / (4096.0 - 1024.0);
    let shift = libm::exp(tokens as f64 * slope + (base_shift - slope * 1024.0)) as f32;
    let shifted = |level: f32| if level == 0.0 { 0.0 } else { shift / (shift + (1.0 / level - 1.0)) };
    let mut levels: Vec<f32> = linspace(1.0, 0.0, steps + 1).into_iter().map(shifted).collect();
    let lowest = levels.iter().rev().find(|&&level| level != 0.0).copied();
    if let (Some(terminal), Some(lowest)) = (terminal, lowest)
        && lowest < 1.0
    {
        let scale = (1.0 - lowest) / (1.0 - terminal) as f32;
        levels.iter_mut().filter(|level| **level != 0.0).for_each(|level| *level = 1.0 - (1.0 - *level) / scale);
    }
    levels
}
