//! Sampling: from latents and prompts to latents, by KSampler, by the Impact Pack, and from words and pictures to pictures.

use std::sync::Arc;

use anyhow::{Context as _, anyhow, bail};
use candle_core::{Device, Tensor as DeviceTensor};
use models::{
    diffusion::{
        conditioning::{Area, Concat, Conditioning, ConditioningMask, Control},
        controlnet::ControlNet,
        detail::{self, Extent, Levels, Recovery, RecoveryMode, Refiner},
        guidance::{DifferentialDiffusion, Prompts},
        model::Model,
        samplers::{SampleError, Sampler, Step, sampler},
        sampling::{self, KSampler, Latent, Noise, Part, Task},
        schedule::scheduler,
        text::{Encoded, Options},
        unet::Inputs,
        vae::Inpaint,
    },
    error::ModelError,
    watch::Unwatched,
};
use serde_json::Value;

use super::{
    models::{backend, checkpoint_named, model, model_named},
    networks::{from_device, permuted, to_device},
};
use crate::goldens::{
    Answer, Failure, Got,
    cases::{Case, Tensor, Tensors},
};

impl From<SampleError> for Failure {
    fn from(error: SampleError) -> Self {
        Self::Refused(format!("{:#}", anyhow!(error)))
    }
}

fn input(case: &Case, tensors: &Tensors, name: &str) -> Result<DeviceTensor, Failure> {
    to_device(case.input(tensors, name)?)
}

/// The prompt of inputs `NAME` and `NAME_pooled`.
fn conditioning(case: &Case, tensors: &Tensors, name: &str) -> Result<Conditioning, Failure> {
    let pooled = format!("{name}_pooled");
    let pooled = case.has_input(&pooled).then(|| input(case, tensors, &pooled)).transpose()?;
    Ok(Conditioning::new(input(case, tensors, name)?, pooled))
}

/// The prompts of both sides of a case.
fn sides(case: &Case, tensors: &Tensors) -> Result<[[Conditioning; 1]; 2], Failure> {
    Ok([[conditioning(case, tensors, "positive")?], [conditioning(case, tensors, "negative")?]])
}

fn latent(case: &Case, tensors: &Tensors) -> Result<Latent, Failure> {
    Ok(Latent {
        samples: input(case, tensors, "latent")?,
        noise_mask: case.has_input("noise_mask").then(|| input(case, tensors, "noise_mask")).transpose()?,
        batch_index: case.param_if_any("batch_index")?,
    })
}

fn encode(model: &Model, text: &str) -> Result<Encoded, Failure> {
    let text_encoder = model.text.as_ref().context("the model has no text encoder")?;
    Ok(text_encoder.encode(text, &Options::default())?)
}

fn prompt(encoded: &Encoded) -> Conditioning {
    Conditioning::new(encoded.cond.clone(), Some(encoded.pooled.clone()))
}

fn task<'a>(
    case: &Case,
    model: &'a Model,
    positive: &'a [Conditioning],
    negative: &'a [Conditioning],
) -> Result<Task<'a>, Failure> {
    Ok(Task {
        network: model.network(),
        prompts: Prompts { positive, negative, cfg: case.param("cfg")? },
        sampler: sampler_of(case, "sampler")?,
        seed: case.param("seed")?,
        differential: None,
        watch: &Unwatched,
    })
}

fn sampler_of(case: &Case, param: &str) -> Result<&'static Sampler, Failure> {
    Ok(sampler(&case.param::<String>(param)?)?)
}

fn ksampler_of(case: &Case, denoise: f64) -> Result<KSampler, Failure> {
    Ok(KSampler { scheduler: scheduler(&case.param::<String>("scheduler")?)?, steps: case.param("steps")?, denoise })
}

/// Keeps what previews see.
fn keep(got: &mut Vec<(String, Vec<f32>)>) -> impl FnMut(&Step<'_>) {
    let mut index = 0;
    move |step| {
        got.push((format!("x.{index}"), step.x.to_vec()));
        got.push((format!("denoised.{index}"), step.denoised.to_vec()));
        index += 1;
    }
}

/// Runs KSampler as a case says, over the noise levels that it gives, if it does.
fn sampled(case: &Case, tensors: &Tensors, task: &Task<'_>, latent: &Latent) -> Answer {
    let settings = ksampler_of(case, case.param("denoise")?)?;
    let sigmas = match case.has_input("sigmas") {
        true => case.input(tensors, "sigmas")?.data.clone(),
        false => settings.sigmas(task)?,
    };
    let (start, last): (Option<usize>, Option<usize>) =
        (case.param_if_any("start_step")?, case.param_if_any("last_step")?);
    let is_partial = start.is_some() || last.is_some();
    let part = Part {
        start_at_step: start.unwrap_or(0),
        end_at_step: last.unwrap_or(usize::MAX - 1),
        return_with_leftover_noise: !case.param_if_any("force_full_denoise")?.unwrap_or(false),
    };
    let noise = if case.param_if_any("disable_noise")?.unwrap_or(false) { Noise::None } else { Noise::Seed };
    let sigmas = if is_partial { part.of(sigmas) } else { Some(sigmas) };
    let mut seen = Vec::new();
    let samples = match sigmas {
        Some(sigmas) => sampling::run(task, &sigmas, None, noise, latent, &mut keep(&mut seen))?.samples,
        None => latent.samples.clone(),
    };
    let mut got = Got::default().tensor("samples", from_device(&samples)?);
    for (name, numbers) in seen {
        got = got.tensor(name, Tensor::floats(latent.samples.dims(), numbers));
    }
    Ok(got)
}

pub fn ksampler(case: &Case, tensors: &Tensors) -> Answer {
    let model = model(case)?;
    let [positive, negative] = sides(case, tensors)?;
    sampled(case, tensors, &task(case, &model, &positive, &negative)?, &latent(case, tensors)?)
}

pub fn ksampler_differential(case: &Case, tensors: &Tensors) -> Answer {
    let model = model(case)?;
    let [positive, negative] = sides(case, tensors)?;
    let strength = case.param("differential_strength")?;
    let differential = Some(DifferentialDiffusion { strength, ..DifferentialDiffusion::default() });
    let task = Task { differential, ..task(case, &model, &positive, &negative)? };
    sampled(case, tensors, &task, &latent(case, tensors)?)
}

pub fn ksampler_conditioning(case: &Case, tensors: &Tensors) -> Answer {
    let model = model(case)?;
    let listed: Vec<Value> = case.param("positive")?;
    let one = |(i, properties): (usize, &Value)| -> Result<Conditioning, Failure> {
        let name = if case.has_input("positive") { "positive".to_owned() } else { format!("positive{i}") };
        let mut conditioning = conditioning(case, tensors, &name)?;
        let number = |key: &str, usual: f64| properties[key].as_f64().unwrap_or(usual);
        conditioning.area = area(&properties["area"])?;
        conditioning.strength = number("strength", 1.0);
        (conditioning.start_percent, conditioning.end_percent) =
            (number("start_percent", 0.0), number("end_percent", 1.0));
        let mask = format!("positive{i}_mask");
        if case.has_input(&mask) {
            conditioning.mask = Some(ConditioningMask {
                mask: input(case, tensors, &mask)?,
                strength: number("mask_strength", 1.0),
                set_area_to_bounds: properties["set_area_to_bounds"].as_bool().unwrap_or(false),
            });
        }
        Ok(conditioning)
    };
    let positive = listed.iter().enumerate().map(one).collect::<Result<Vec<_>, _>>()?;
    let negative = [conditioning(case, tensors, "negative")?];
    sampled(case, tensors, &task(case, &model, &positive, &negative)?, &latent(case, tensors)?)
}

/// An area as cases write it: height, width, y and x, in cells, or in shares with `percentage` before them.
fn area(value: &Value) -> anyhow::Result<Option<Area>> {
    let Some(list) = value.as_array() else { return Ok(None) };
    let numbers: Vec<f64> = list.iter().filter_map(Value::as_f64).collect();
    let &[height, width, y, x] = numbers.as_slice() else { bail!("an area {value}") };
    Ok(Some(match list.len() {
        5 => Area::Percentage { height, width, y, x },
        _ => Area::Cells { height: height as usize, width: width as usize, y: y as usize, x: x as usize },
    }))
}

fn controlled(case: &Case, tensors: &Tensors, is_simple: bool) -> Answer {
    let model = model(case)?;
    let listed: Vec<Value> = case.param("control")?;
    let one = |value: &Value| -> Result<Control, Failure> {
        let text = |key: &str| value[key].as_str().with_context(|| format!("a control lacks `{key}`"));
        Ok(Control {
            net: Arc::new(ControlNet::load(&checkpoint_named(case, text("model")?)?, &backend())?),
            hint: input(case, tensors, text("hint")?)?,
            strength: value["strength"].as_f64().context("a control lacks its strength")?,
            start_percent: value["start_percent"].as_f64().unwrap_or(0.0),
            end_percent: value["end_percent"].as_f64().unwrap_or(1.0),
        })
    };
    let controls = listed.iter().map(one).collect::<Result<Vec<_>, _>>()?;
    let positive = [Conditioning {
        controls: controls.clone(),
        control_apply_to_uncond: is_simple,
        ..conditioning(case, tensors, "positive")?
    }];
    let negative = conditioning(case, tensors, "negative")?;
    let negative = [if is_simple { negative } else { Conditioning { controls, ..negative } }];
    sampled(case, tensors, &task(case, &model, &positive, &negative)?, &latent(case, tensors)?)
}

pub fn ksampler_control(case: &Case, tensors: &Tensors) -> Answer {
    controlled(case, tensors, false)
}

pub fn ksampler_control_simple(case: &Case, tensors: &Tensors) -> Answer {
    controlled(case, tensors, true)
}

pub fn inpaint_model_conditioning(case: &Case, tensors: &Tensors) -> Answer {
    let model = model(case)?;
    let vae = model.vae.as_ref().context("the model has no VAE")?;
    let [positive, negative] =
        ["text", "negative"].map(|name| encode(&model, &case.param::<String>(name)?).map(|encoded| prompt(&encoded)));
    let pictures = permuted(&input(case, tensors, "pixels")?, [0, 3, 1, 2])?;
    let Inpaint { concat_latent_image, concat_mask, latents } =
        vae.encode_for_inpaint_model(&pictures, &input(case, tensors, "mask")?, &Unwatched)?;
    let concat = Concat { latent_image: concat_latent_image, mask: concat_mask };
    let with = |prompt: Conditioning| [Conditioning { concat: Some(concat.clone()), ..prompt }];
    let (positive, negative) = (with(positive?), with(negative?));
    let noise_mask = case.param::<bool>("noise_mask")?.then(|| concat.mask.clone());
    let latent = Latent { noise_mask, ..Latent::new(latents) };
    let mut got = sampled(case, tensors, &task(case, &model, &positive, &negative)?, &latent)?;
    got = got.tensor("latent", from_device(&latent.samples)?).tensor("concat_mask", from_device(&concat.mask)?);
    if let Some(mask) = &latent.noise_mask {
        got = got.tensor("noise_mask", from_device(mask)?);
    }
    Ok(got.tensor("concat_latent_image", from_device(&concat.latent_image)?))
}

pub fn img2img(case: &Case, tensors: &Tensors) -> Answer {
    let model = model(case)?;
    let vae = model.vae.as_ref().context("the model has no VAE")?;
    let [positive, negative] = ["text", "negative"].map(|name| encode(&model, &case.param::<String>(name)?));
    let (positive, negative) = (positive?, negative?);
    let pictures = vae.crop(&permuted(&input(case, tensors, "pixels")?, [0, 3, 1, 2])?)?;
    let latent = Latent::new(vae.encode(&pictures, &Unwatched)?);
    let prompts = ([prompt(&positive)], [prompt(&negative)]);
    let task = task(case, &model, &prompts.0, &prompts.1)?;
    let settings = ksampler_of(case, case.param("denoise")?)?;
    let samples = sampling::ksampler(&task, settings, &latent, &mut |_| ())?;
    let pixels = permuted(&vae.decode(&samples, &Unwatched)?, [0, 2, 3, 1])?;
    Ok(Got::default()
        .tensor("positive", from_device(&positive.cond)?)
        .tensor("positive_pooled", from_device(&positive.pooled)?)
        .tensor("negative", from_device(&negative.cond)?)
        .tensor("negative_pooled", from_device(&negative.pooled)?)
        .tensor("latent", from_device(&latent.samples)?)
        .tensor("samples", from_device(&samples)?)
        .tensor("pixels", from_device(&pixels)?))
}

/// Runs KSampler by the words of a case, which come back encoded.
pub fn from_text(case: &Case, tensors: &Tensors, model: &Model) -> Result<(Encoded, Got), Failure> {
    let [positive, negative] = ["text", "negative"].map(|name| encode(model, &case.param::<String>(name)?));
    let positive = positive?;
    let prompts = ([prompt(&positive)], [prompt(&negative?)]);
    let got = sampled(case, tensors, &task(case, model, &prompts.0, &prompts.1)?, &latent(case, tensors)?)?;
    Ok((positive, got))
}

/// Base and refiner of a case, with the prompts of both.
struct Two {
    models: [Model; 2],
    positive: [[Conditioning; 1]; 2],
    negative: [[Conditioning; 1]; 2],
}

impl Two {
    fn load(case: &Case) -> Result<Self, Failure> {
        let names: [String; 2] = case.param("models")?;
        let [base, refiner] = [model_named(case, &names[0])?, model_named(case, &names[1])?];
        let both = |param: &str| -> Result<[[Conditioning; 1]; 2], Failure> {
            let text: String = case.param(param)?;
            Ok([[prompt(&encode(&base, &text)?)], [prompt(&encode(&refiner, &text)?)]])
        };
        let (positive, negative) = (both("text")?, both("negative")?);
        Ok(Self { models: [base, refiner], positive, negative })
    }

    fn tasks(&self, case: &Case) -> Result<[Task<'_>; 2], Failure> {
        let of = |i: usize| task(case, &self.models[i], &self.positive[i], &self.negative[i]);
        Ok([of(0)?, of(1)?])
    }
}

pub fn refiner_handover(case: &Case, tensors: &Tensors) -> Answer {
    let two = Two::load(case)?;
    let [base, refiner] = two.tasks(case)?;
    let (settings, switch) = (ksampler_of(case, 1.0)?, case.param::<usize>("switch_at")?);
    let first = Part { start_at_step: 0, end_at_step: switch, return_with_leftover_noise: true };
    let rest = Part { start_at_step: switch, end_at_step: settings.steps, return_with_leftover_noise: false };
    let handed =
        sampling::ksampler_advanced(&base, settings, first, Noise::Seed, &latent(case, tensors)?, &mut |_| ())?;
    let next = Latent::new(handed.clone());
    let samples = sampling::ksampler_advanced(&refiner, settings, rest, Noise::None, &next, &mut |_| ())?;
    Ok(Got::default().tensor("handed_over", from_device(&handed)?).tensor("samples", from_device(&samples)?))
}

/// The noise levels of a case of the Impact Pack: those that it gives, or those of its scheduler.
fn levels(case: &Case, tensors: &Tensors) -> Result<Levels, Failure> {
    Ok(match case.has_input("total_sigmas") {
        true => Levels::Given(case.input(tensors, "total_sigmas")?.data.clone()),
        false => Levels::Scheduler(scheduler(&case.param::<String>("scheduler")?)?),
    })
}

fn samples(samples: &DeviceTensor) -> Answer {
    Ok(Got::default().tensor("samples", from_device(samples)?))
}

fn extent(case: &Case) -> anyhow::Result<Extent> {
    let sigma_factor = case.param_if_any("sigma_factor")?.unwrap_or(1.0);
    Ok(Extent { steps: case.param("steps")?, denoise: case.param("denoise")?, sigma_factor })
}

pub fn impact_ksampler_wrapper(case: &Case, tensors: &Tensors) -> Answer {
    let model = model(case)?;
    let [positive, negative] = sides(case, tensors)?;
    let task = task(case, &model, &positive, &negative)?;
    let levels = levels(case, tensors)?;
    // A masked latent with a feathered mask would bring differential diffusion; here the mask is soft.
    samples(&detail::detail(&task, &levels, extent(case)?, None, &latent(case, tensors)?, &mut |_| ())?)
}

fn impact_part(case: &Case) -> Result<detail::Part<'static>, Failure> {
    Ok(detail::Part {
        noise: if case.param("add_noise")? { Noise::Seed } else { Noise::None },
        total: case.param("steps")?,
        start_at_step: case.param_if_any("start_at_step")?,
        end_at_step: case.param_if_any("end_at_step")?,
        return_with_leftover_noise: case.param("return_with_leftover_noise")?,
        sigma_ratio: case.param_if_any("sigma_ratio")?.unwrap_or(1.0),
    })
}

pub fn impact_separated_sample(case: &Case, tensors: &Tensors) -> Answer {
    let model = model(case)?;
    let [positive, negative] = sides(case, tensors)?;
    let task = task(case, &model, &positive, &negative)?;
    let latent = latent(case, tensors)?;
    samples(&detail::separated(&task, &levels(case, tensors)?, impact_part(case)?, &latent, &mut |_| ())?)
}

pub fn impact_refiner(case: &Case, tensors: &Tensors) -> Answer {
    let two = Two::load(case)?;
    let [base, refiner] = two.tasks(case)?;
    let refiner = Refiner { task: &refiner, ratio: case.param("refiner_ratio")? };
    let levels = levels(case, tensors)?;
    samples(&detail::detail(&base, &levels, extent(case)?, Some(refiner), &latent(case, tensors)?, &mut |_| ())?)
}

pub fn impact_advanced_wrapper(case: &Case, tensors: &Tensors) -> Answer {
    let model = model(case)?;
    let [positive, negative] = sides(case, tensors)?;
    let task = task(case, &model, &positive, &negative)?;
    let recovery = Recovery {
        mode: match case.param::<String>("recovery_mode")?.as_str() {
            "DISABLE" => RecoveryMode::Disable,
            "ratio between" => RecoveryMode::RatioBetween,
            "ratio additional" => RecoveryMode::RatioAdditional,
            other => return Err(anyhow!("a recovery mode `{other}`").into()),
        },
        sampler: match case.param::<String>("recovery_sampler")?.as_str() {
            "AUTO" => None,
            _ => Some(sampler_of(case, "recovery_sampler")?),
        },
        sigma_ratio: case.param("recovery_sigma_ratio")?,
    };
    let latent = latent(case, tensors)?;
    samples(&detail::advanced(&task, &levels(case, tensors)?, impact_part(case)?, recovery, &latent, &mut |_| ())?)
}

pub fn apply_model(case: &Case, tensors: &Tensors) -> Answer {
    let model = model(case)?;
    let x = case.input(tensors, "x")?;
    let sigmas = &case.input(tensors, "sigma")?.data;
    let each = x.data.len() / x.shape[0];
    let scaled = |(i, x): (usize, &f32)| (f64::from(*x) * model.sampling.input_scale(sigmas[i / each])) as f32;
    let scaled =
        DeviceTensor::from_vec(x.data.iter().enumerate().map(scaled).collect(), x.shape.as_slice(), &Device::Cpu);
    let scaled = scaled.map_err(ModelError::from)?;
    let timesteps: Vec<f32> = sigmas.iter().map(|&sigma| model.sampling.timestep(sigma)).collect();
    let y = case.has_input("y").then(|| input(case, tensors, "y")).transpose()?;
    let context = input(case, tensors, "context")?;
    let inputs = Inputs { x: &scaled, timesteps: &timesteps, context: &context, y: y.as_ref() };
    let out = from_device(&model.unet.forward(inputs, None, &Unwatched)?)?;
    let denoised = x.data.iter().zip(&out.data).enumerate().map(|(i, (&x, &out))| {
        let (of_x, of_out) = model.sampling.denoised_factors(sigmas[i / each]);
        (of_x * f64::from(x) + of_out * f64::from(out)) as f32
    });
    Ok(Got::default().tensor("denoised", Tensor::floats(&x.shape, denoised.collect())))
}
