//! Pipes: what pictures are redrawn with, and how sampling goes.

use domain::{
    pipe::{Area, Conditioning},
    sampling::{KSampler, SchedulerFunc},
};

use super::{InvalidField, PictureRequest, required};
use crate::v1;

/// How much a part counts when nobody says: in full.
const STRENGTH: f64 = 1.0;
/// The reference's GITS table.
const GITS_COEFF: f64 = 1.2;
/// How much of the GITS table is used when nobody says: all of it.
const GITS_DENOISE: f64 = 1.0;
/// Where a ControlNet stops when nobody says: at the end of the schedule.
const END_PERCENT: f64 = 1.0;

/// A pipe as submitted: models by name or digest, masks and pictures by their places.
#[derive(Debug, Clone, PartialEq)]
pub struct PipeRequest {
    /// Name or digest of the checkpoint.
    pub checkpoint: String,
    /// Name or digest of a VAE instead of the checkpoint's own.
    pub vae: Option<String>,
    /// LoRAs, in the order in which they are laid on.
    pub loras: Vec<LoraRequest>,
    /// Names or digests of embeddings.
    pub embeddings: Vec<String>,
    /// The layer at which text encoders stop; `None`: the family's own.
    pub stop_at_clip_layer: Option<i32>,
    /// What is wanted; at least one.
    pub positive: Vec<ConditioningRequest>,
    /// What is not wanted; at least one.
    pub negative: Vec<ConditioningRequest>,
    /// ControlNets over the whole picture.
    pub control_nets: Vec<ControlNetRequest>,
}

/// A LoRA as submitted.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraRequest {
    /// Name or digest of the file.
    pub lora: String,
    /// How much of it goes into the UNet.
    pub strength_model: f64,
    /// How much of it goes into the text encoders.
    pub strength_clip: f64,
}

/// A prompt as submitted.
#[derive(Debug, Clone, PartialEq)]
pub struct ConditioningRequest {
    /// The prompt.
    pub text: String,
    /// How much it counts among the prompts.
    pub strength: f64,
    /// Where it holds, more or less.
    pub mask: Option<ConditioningMaskRequest>,
    /// The rectangle that it is evaluated in.
    pub area: Option<Area>,
}

/// Where a prompt holds, as submitted.
#[derive(Debug, Clone, PartialEq)]
pub struct ConditioningMaskRequest {
    /// The mask of the whole picture.
    pub mask: PictureRequest,
    /// How much it counts.
    pub strength: f64,
    /// Evaluates the prompt in the mask's bounding box only.
    pub set_area_to_bounds: bool,
}

/// A ControlNet as submitted.
#[derive(Debug, Clone, PartialEq)]
pub struct ControlNetRequest {
    /// Name or digest of the file.
    pub control_net: String,
    /// How much it steers.
    pub strength: f64,
    /// From which part of the schedule on.
    pub start_percent: f64,
    /// To which part of the schedule.
    pub end_percent: f64,
    /// Steers the negative prompt with a control of its own.
    pub advanced: bool,
    /// The control picture, of the whole picture; `None`: the picture that is redrawn.
    pub image: Option<PictureRequest>,
}

impl PipeRequest {
    /// Reads the pipe at `at`.
    pub(super) fn read(at: &str, pipe: v1::BasicPipe) -> Result<Self, InvalidField> {
        let lora = |(i, lora): (usize, v1::Lora)| {
            let strength_model = lora.strength_model.unwrap_or(STRENGTH);
            Ok(LoraRequest {
                lora: named(format!("{at}.loras[{i}].lora"), lora.lora)?,
                strength_model,
                strength_clip: lora.strength_clip.unwrap_or(strength_model),
            })
        };
        let embedding = |(i, name): (usize, String)| named(format!("{at}.embeddings[{i}]"), name);
        Ok(Self {
            checkpoint: named(format!("{at}.checkpoint"), pipe.checkpoint)?,
            vae: Some(pipe.vae).filter(|vae| !vae.is_empty()),
            loras: pipe.loras.into_iter().enumerate().map(lora).collect::<Result<_, InvalidField>>()?,
            embeddings: pipe.embeddings.into_iter().enumerate().map(embedding).collect::<Result<_, InvalidField>>()?,
            stop_at_clip_layer: Some(pipe.stop_at_clip_layer).filter(|layer| *layer != 0),
            positive: prompts(&format!("{at}.positive"), pipe.positive)?,
            negative: prompts(&format!("{at}.negative"), pipe.negative)?,
            control_nets: control_nets(at, pipe.control_nets)?,
        })
    }
}

/// The name of a model that must be there.
fn named(path: String, name: String) -> Result<String, InvalidField> {
    if name.is_empty() {
        return Err(InvalidField::new(path, "is missing: name a model of the farm, or give its digest".to_owned()));
    }
    Ok(name)
}

/// Reads the prompts at `at`; where there are none, one without words.
fn prompts(at: &str, prompts: Vec<v1::Conditioning>) -> Result<Vec<ConditioningRequest>, InvalidField> {
    let prompts = if prompts.is_empty() { vec![v1::Conditioning::default()] } else { prompts };
    let prompt = |(i, prompt): (usize, v1::Conditioning)| {
        let at = format!("{at}[{i}]");
        let mask = |mask: v1::ConditioningMask| {
            let path = format!("{at}.mask.mask");
            Ok::<_, InvalidField>(ConditioningMaskRequest {
                mask: PictureRequest::read(&path, "mask", required(&path, mask.mask)?)?,
                strength: mask.strength.unwrap_or(STRENGTH),
                set_area_to_bounds: mask.set_area_to_bounds,
            })
        };
        let Conditioning { text, strength, .. } = Conditioning::everywhere(prompt.text);
        Ok(ConditioningRequest {
            text,
            strength: prompt.strength.unwrap_or(strength),
            mask: prompt.mask.map(mask).transpose()?,
            area: prompt.area.map(|wire| area(&format!("{at}.area"), wire)).transpose()?,
        })
    };
    prompts.into_iter().enumerate().map(prompt).collect()
}

fn area(at: &str, area: v1::ConditioningArea) -> Result<Area, InvalidField> {
    let v1::ConditioningArea { percentage, width, height, x, y } = area;
    if percentage {
        return Ok(Area::Percentage { width, height, x, y });
    }
    let whole = |side: &str, value: f64| {
        if value.fract() == 0.0 && (0.0..=f64::from(u32::MAX)).contains(&value) {
            Ok(value as u32)
        } else {
            Err(InvalidField::new(
                format!("{at}.{side}"),
                format!("is {value}, and a whole number of pixels is wanted"),
            ))
        }
    };
    Ok(Area::Pixels {
        width: whole("width", width)?,
        height: whole("height", height)?,
        x: whole("x", x)?,
        y: whole("y", y)?,
    })
}

/// Reads the ControlNets of the message at `at`.
pub(super) fn control_nets(at: &str, nets: Vec<v1::ControlNet>) -> Result<Vec<ControlNetRequest>, InvalidField> {
    let net = |(i, net): (usize, v1::ControlNet)| {
        let at = format!("{at}.control_nets[{i}]");
        let image = |image| PictureRequest::read(&format!("{at}.image"), "control picture", image);
        Ok(ControlNetRequest {
            control_net: named(format!("{at}.control_net"), net.control_net)?,
            strength: net.strength.unwrap_or(STRENGTH),
            start_percent: net.start_percent,
            end_percent: net.end_percent.unwrap_or(END_PERCENT),
            advanced: net.advanced,
            image: net.image.map(image).transpose()?,
        })
    };
    nets.into_iter().enumerate().map(net).collect()
}

/// Reads the sampler at `at`; where there is none, the defaults.
pub(super) fn sampler(at: &str, sampler: Option<v1::Sampler>) -> Result<KSampler, InvalidField> {
    let default = KSampler::default();
    let Some(wire) = sampler else { return Ok(default) };
    let scheduler_func = wire.scheduler_func.map(|func| scheduler_func(&format!("{at}.scheduler_func"), func));
    let or = |name: String, default: String| if name.is_empty() { default } else { name };
    let sampler = KSampler {
        seed: wire.seed,
        steps: if wire.steps == 0 { default.steps } else { wire.steps },
        cfg: wire.cfg.unwrap_or(default.cfg),
        sampler_name: or(wire.sampler_name, default.sampler_name),
        scheduler: or(wire.scheduler, default.scheduler),
        denoise: wire.denoise.unwrap_or(default.denoise),
        scheduler_func: scheduler_func.transpose()?,
    };
    sampler.check(at)?;
    Ok(sampler)
}

fn scheduler_func(at: &str, func: v1::SchedulerFunction) -> Result<SchedulerFunc, InvalidField> {
    use v1::scheduler_function::Kind;
    Ok(match required(&format!("{at}.kind"), func.kind)? {
        Kind::Gits(v1::GitsSchedule { coeff, denoise }) => {
            SchedulerFunc::Gits { coeff: coeff.unwrap_or(GITS_COEFF), denoise: denoise.unwrap_or(GITS_DENOISE) }
        }
        Kind::List(v1::ListSchedule { sigmas }) => SchedulerFunc::List { sigmas },
    })
}
