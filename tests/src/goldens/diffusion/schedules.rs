//! Noise levels.

use anyhow::bail;
use models::diffusion::{
    samplers,
    schedule::{self, Ltxv, ModelSampling, Prediction, ScheduleError, tables},
};

use crate::goldens::{
    Answer, Failure, Got,
    cases::{Case, Tensor, Tensors},
};

impl From<ScheduleError> for Failure {
    fn from(error: ScheduleError) -> Self {
        Self::Refused(error.to_string())
    }
}

/// The noise levels of the case's model.
fn model(case: &Case) -> anyhow::Result<ModelSampling> {
    Ok(match case.get("model").as_str() {
        Some("sd1" | "sdxl") => ModelSampling::discrete(Prediction::Epsilon, false),
        Some("sdxl_zsnr") => ModelSampling::discrete(Prediction::Velocity, true),
        other => bail!("there is no table for the model {other:?}"),
    })
}

fn levels(sigmas: Vec<f32>) -> Answer {
    Ok(Got::default().tensor("sigmas", Tensor::floats(&[sigmas.len()], sigmas)))
}

pub fn model_sampling(case: &Case, tensors: &Tensors) -> Answer {
    let model = model(case)?;
    let row = |numbers: Vec<f32>| Tensor::floats(&[numbers.len()], numbers);
    let percents: Vec<f64> = case.param("percent")?;
    let of_timesteps = case.input(tensors, "timesteps")?.data.iter().map(|&t| model.sigma(t)).collect();
    let of_sigmas = case.input(tensors, "sigma_values")?.data.iter().map(|&sigma| model.timestep(sigma)).collect();
    let of_percents = percents.into_iter().map(|percent| model.percent_to_sigma(percent) as f32).collect();
    Ok(Got::default()
        .tensor("sigmas", row(model.sigmas().to_vec()))
        .tensor("log_sigmas", row(model.log_sigmas().to_vec()))
        .tensor("sigma_of_timestep", row(of_timesteps))
        .tensor("timestep_of_sigma", row(of_sigmas))
        .tensor("percent_to_sigma", row(of_percents)))
}

pub fn ksampler_sigmas(case: &Case, _: &Tensors) -> Answer {
    let scheduler = schedule::scheduler(&case.param::<String>("scheduler")?)?;
    let sampler = samplers::sampler(&case.param::<String>("sampler")?)?;
    let (steps, denoise) = (case.param("steps")?, case.param("denoise")?);
    levels(schedule::for_run(&model(case)?, scheduler, steps, denoise, sampler.drops_penultimate)?)
}

pub fn impact_sigmas(case: &Case, _: &Tensors) -> Answer {
    let scheduler = schedule::scheduler(&case.param::<String>("scheduler")?)?;
    let sampler = samplers::sampler(&case.param::<String>("sampler")?)?;
    levels(schedule::whole(&model(case)?, scheduler, case.param("steps")?, sampler.drops_penultimate)?)
}

pub fn optimal_steps_sigmas(case: &Case, _: &Tensors) -> Answer {
    let table = match case.param::<String>("model_type")?.as_str() {
        "FLUX" => &tables::OSS_FLUX[..],
        "Wan" => &tables::OSS_WAN,
        "Chroma" => &tables::OSS_CHROMA,
        other => return Err(anyhow::anyhow!("there is no table for {other}").into()),
    };
    levels(schedule::optimal_steps(table, case.param("steps")?, case.param("denoise")?)?)
}

pub fn ltxv_sigmas(case: &Case, _: &Tensors) -> Answer {
    let terminal = case.param::<bool>("stretch")?.then(|| case.param("terminal")).transpose()?;
    let (max_shift, base_shift) = (case.param("max_shift")?, case.param("base_shift")?);
    let parameters = Ltxv { max_shift, base_shift, terminal, tokens: case.param("tokens")? };
    levels(schedule::ltxv(case.param("steps")?, &parameters))
}
