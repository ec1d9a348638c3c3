//! The jobs that redraw pictures, as submitted: checked field by field, and not yet resolved.
//!
//! What is left out has its default. Ranges that the wire and the domain share are the domain's to check, once a job is
//! resolved; here is refused what is no value at all.

use domain::{
    job::{Output, Precision, Reproducibility},
    nodes::{
        FullSamplerSchedule, GuideSizeFor, PkHook, Rendering, ResamplingMethod, SegsDetailer, SegsPaste, SegsUpscaler,
        StepMode,
    },
    resize::ResizeMethod,
    sampling::KSampler,
    segs::Override,
    task::ComputeClass,
};

use super::{
    InvalidField, PictureRequest, TilingRequest, class_from_wire, known, output_from_wire,
    pipe::{PipeRequest, sampler},
    precision_from_wire, reproducibility_from_wire, required,
    segs::{SegsRequest, overrides},
    tiling_from_wire,
};
use crate::v1;

/// The reference's factor of an iterative upscale.
const UPSCALE_FACTOR: f64 = 1.5;
/// Its steps.
const STEPS: u32 = 3;
/// The side of the tiles of a tiled VAE, in pixels.
const TILE_SIZE: u32 = 512;

/// How a job is rendered, as submitted.
#[derive(Debug, Clone, PartialEq)]
pub struct RenderRequest {
    /// How exactly.
    pub precision: Precision,
    /// Which devices may share the work.
    pub reproducibility: Reproducibility,
    /// The class asked for, if any.
    pub class: Option<ComputeClass>,
    /// How pictures are written.
    pub output: Output,
    /// Does what the reference does also where it is a mistake.
    pub reference_quirks: bool,
}

/// A `SEGSDetailer` job as submitted.
#[derive(Debug, Clone, PartialEq)]
pub struct SegsDetailRequest {
    /// The picture.
    pub picture: PictureRequest,
    /// What is redrawn.
    pub segs: SegsRequest,
    /// Prompts and seeds of some segments.
    pub overrides: Vec<Override>,
    /// What they are redrawn with.
    pub basic_pipe: PipeRequest,
    /// What takes the last steps.
    pub refiner_basic_pipe: Option<PipeRequest>,
    /// How.
    pub detailer: SegsDetailer,
    /// Also pastes them.
    pub paste: Option<SegsPaste>,
    /// By whom.
    pub render: RenderRequest,
}

/// A `SEGSUpscalerPipe` job as submitted.
#[derive(Debug, Clone, PartialEq)]
pub struct SegsUpscaleRequest {
    /// The picture.
    pub picture: PictureRequest,
    /// What is redrawn.
    pub segs: SegsRequest,
    /// Prompts and seeds of some segments.
    pub overrides: Vec<Override>,
    /// What they are redrawn with.
    pub basic_pipe: PipeRequest,
    /// How.
    pub upscaler: SegsUpscaler,
    /// Name or digest of a network that enlarges the picture first.
    pub upscale_model: Option<String>,
    /// How the picture is cut for it.
    pub tiling: TilingRequest,
    /// By whom.
    pub render: RenderRequest,
}

/// What an iterative upscale begins with, as submitted.
#[derive(Debug, Clone, PartialEq)]
pub enum LatentSourceRequest {
    /// A picture.
    Picture(PictureRequest),
    /// A latent as ComfyUI saves one.
    Latent(PictureRequest),
}

/// An iterative latent upscale as submitted.
#[derive(Debug, Clone, PartialEq)]
pub struct LatentUpscaleRequest {
    /// What is enlarged.
    pub source: LatentSourceRequest,
    /// How many times as large it becomes.
    pub upscale_factor: f64,
    /// In how many steps.
    pub steps: u32,
    /// How they grow.
    pub step_mode: StepMode,
    /// How pixels are resized.
    pub scale_method: ResizeMethod,
    /// Name or digest of the VAE; `None`: that of the base sampler's pipe.
    pub vae: Option<String>,
    /// Encodes and decodes in tiles.
    pub use_tiled_vae: bool,
    /// The side of those tiles in pixels.
    pub tile_size: u32,
    /// Name or digest of a network that enlarges the pixels first.
    pub upscale_model: Option<String>,
    /// What redraws.
    pub samplers: SamplersRequest,
    /// Decodes the last latent to a picture.
    pub decode: bool,
    /// By whom.
    pub render: RenderRequest,
}

/// The samplers of a step, as submitted.
#[derive(Debug, Clone, PartialEq)]
pub enum SamplersRequest {
    /// One, over the whole latent.
    One(Box<PipedRequest>),
    /// Two, divided by a mask.
    Two(Box<TwoSamplersRequest>),
}

/// The samplers of `TwoSamplersForMaskUpscalerProvider`, as submitted.
#[derive(Debug, Clone, PartialEq)]
pub struct TwoSamplersRequest {
    /// Redraws what the mask does not hold.
    pub base_sampler: PipedRequest,
    /// Redraws what it holds.
    pub mask_sampler: PipedRequest,
    /// Redraws everything, at the steps of `full_sample_schedule`.
    pub full_sampler: Option<PipedRequest>,
    /// When that is.
    pub full_sample_schedule: FullSamplerSchedule,
    /// The mask.
    pub mask: PictureRequest,
}

/// A sampler with its pipe, as submitted.
#[derive(Debug, Clone, PartialEq)]
pub struct PipedRequest {
    /// How.
    pub sampler: KSampler,
    /// With what.
    pub basic_pipe: PipeRequest,
    /// What changes from step to step.
    pub hooks: Vec<PkHook>,
}

impl RenderRequest {
    fn read(at: &str, render: Option<v1::RenderOptions>) -> Result<Self, InvalidField> {
        let wire = render.unwrap_or_default();
        let path = |field: &str| format!("{at}.{field}");
        Ok(Self {
            precision: precision_from_wire(&path("precision"), wire.precision)?.unwrap_or(Rendering::PRECISION),
            reproducibility: reproducibility_from_wire(&path("reproducibility"), wire.reproducibility)?,
            class: class_from_wire(&path("compute_class"), &wire.compute_class)?,
            output: output_from_wire(&path("output"), wire.output.unwrap_or_default())?,
            reference_quirks: wire.reference_quirks,
        })
    }
}

impl TryFrom<v1::SegsDetailJob> for SegsDetailRequest {
    type Error = InvalidField;

    fn try_from(job: v1::SegsDetailJob) -> Result<Self, InvalidField> {
        let at = "segs_detail";
        let default = SegsDetailer::default();
        let detailer = SegsDetailer {
            guide_size: job.guide_size.unwrap_or(default.guide_size),
            guide_size_for: match job.guide_size_for_crop_region {
                true => GuideSizeFor::CropRegion,
                false => GuideSizeFor::Bbox,
            },
            max_size: job.max_size.unwrap_or(default.max_size),
            sampler: sampler(&format!("{at}.sampler"), job.sampler)?,
            noise_mask: job.noise_mask.unwrap_or(default.noise_mask),
            force_inpaint: job.force_inpaint.unwrap_or(default.force_inpaint),
            refiner_ratio: job.refiner_ratio.unwrap_or(default.refiner_ratio),
            batch_size: or(job.batch_size, default.batch_size),
            cycle: or(job.cycle, default.cycle),
            inpaint_model: job.inpaint_model,
            noise_mask_feather: job.noise_mask_feather.unwrap_or(default.noise_mask_feather),
        };
        let refiner = |pipe| PipeRequest::read(&format!("{at}.refiner_basic_pipe"), pipe);
        Ok(Self {
            picture: picture(at, job.picture)?,
            segs: SegsRequest::read(&format!("{at}.segs"), job.segs)?,
            overrides: overrides(&format!("{at}.overrides"), job.overrides)?,
            basic_pipe: pipe(at, job.basic_pipe)?,
            refiner_basic_pipe: job.refiner_basic_pipe.map(refiner).transpose()?,
            detailer,
            paste: job.paste.map(|wire| paste(&format!("{at}.paste"), &wire)).transpose()?,
            render: RenderRequest::read(&format!("{at}.render"), job.render)?,
        })
    }
}

fn or(number: u32, default: u32) -> u32 {
    if number == 0 { default } else { number }
}

fn picture(at: &str, picture: Option<v1::PictureSource>) -> Result<PictureRequest, InvalidField> {
    let path = format!("{at}.picture");
    PictureRequest::read(&path, "picture", required(&path, picture)?)
}

fn pipe(at: &str, pipe: Option<v1::BasicPipe>) -> Result<PipeRequest, InvalidField> {
    let path = format!("{at}.basic_pipe");
    PipeRequest::read(&path, required(&path, pipe)?)
}

fn paste(at: &str, paste: &v1::SegsPaste) -> Result<SegsPaste, InvalidField> {
    let default = SegsPaste::default();
    let alpha = paste.alpha.unwrap_or(default.alpha.into());
    let alpha = u8::try_from(alpha)
        .map_err(|_| InvalidField::new(format!("{at}.alpha"), format!("is {alpha}, and 0 to 255 is wanted")))?;
    Ok(SegsPaste { feather: paste.feather.unwrap_or(default.feather), alpha })
}

impl TryFrom<v1::SegsUpscaleJob> for SegsUpscaleRequest {
    type Error = InvalidField;

    fn try_from(job: v1::SegsUpscaleJob) -> Result<Self, InvalidField> {
        let at = "segs_upscale";
        let default = SegsUpscaler::default();
        let resampling_method = match job.resampling_method.as_str() {
            "" => None,
            name => Some(resampling_method(&format!("{at}.resampling_method"), name)?),
        };
        let upscaler = SegsUpscaler {
            rescale_factor: job.rescale_factor.unwrap_or(default.rescale_factor),
            resampling_method,
            supersample: job.supersample.unwrap_or(default.supersample),
            rounding_modulus: or(job.rounding_modulus, default.rounding_modulus),
            sampler: sampler(&format!("{at}.sampler"), job.sampler)?,
            feather: job.feather.unwrap_or(default.feather),
            inpaint_model: job.inpaint_model,
            noise_mask_feather: job.noise_mask_feather.unwrap_or(default.noise_mask_feather),
        };
        Ok(Self {
            picture: picture(at, job.picture)?,
            segs: SegsRequest::read(&format!("{at}.segs"), job.segs)?,
            overrides: overrides(&format!("{at}.overrides"), job.overrides)?,
            basic_pipe: pipe(at, job.basic_pipe)?,
            upscaler,
            upscale_model: Some(job.upscale_model).filter(|model| !model.is_empty()),
            tiling: tiling_from_wire(&format!("{at}.tile"), job.tile.unwrap_or_default())?,
            render: RenderRequest::read(&format!("{at}.render"), job.render)?,
        })
    }
}

fn resampling_method(path: &str, name: &str) -> Result<ResamplingMethod, InvalidField> {
    Ok(match name {
        "nearest" => ResamplingMethod::Nearest,
        "bilinear" => ResamplingMethod::Bilinear,
        "bicubic" => ResamplingMethod::Bicubic,
        "lanczos" => ResamplingMethod::Lanczos,
        _ => return Err(unknown(path, name, "nearest, bilinear, bicubic or lanczos")),
    })
}

fn unknown(path: &str, name: &str, wanted: &str) -> InvalidField {
    let name: String = name.chars().take(80).collect();
    InvalidField::new(path, format!("is `{name}`, and {wanted} is wanted"))
}

impl TryFrom<v1::LatentUpscaleJob> for LatentUpscaleRequest {
    type Error = InvalidField;

    fn try_from(job: v1::LatentUpscaleJob) -> Result<Self, InvalidField> {
        use v1::latent_upscale_job::Source;
        let at = "latent_upscale";
        let path = |field: &str| format!("{at}.{field}");
        let source = match required(&path("source"), job.source)? {
            Source::Picture(picture) => {
                LatentSourceRequest::Picture(PictureRequest::read(&path("picture"), "picture", picture)?)
            }
            Source::Latent(latent) => {
                LatentSourceRequest::Latent(PictureRequest::read(&path("latent"), "latent", latent)?)
            }
        };
        let step_mode = match known(&path("step_mode"), job.step_mode)? {
            v1::StepMode::Unspecified | v1::StepMode::Simple => StepMode::Simple,
            v1::StepMode::Geometric => StepMode::Geometric,
        };
        let scale_method = match job.scale_method.as_str() {
            "" | "nearest-exact" => ResizeMethod::NearestExact,
            "bilinear" => ResizeMethod::Bilinear,
            "area" => ResizeMethod::Area,
            "lanczos" => ResizeMethod::Lanczos,
            name => {
                return Err(unknown(&path("scale_method"), name, "nearest-exact, bilinear, area or lanczos"));
            }
        };
        let full_sample_schedule = match job.full_sample_schedule.as_str() {
            "" => FullSamplerSchedule::default(),
            name => name.parse().map_err(InvalidField::at(&path("full_sample_schedule")))?,
        };
        let full_sampler = job.full_sampler.map(|wire| piped(&path("full_sampler"), wire)).transpose()?;
        let base_sampler = piped(&path("base_sampler"), required(&path("base_sampler"), job.base_sampler)?)?;
        let samplers = match job.mask_sampler {
            Some(mask_sampler) => SamplersRequest::Two(Box::new(TwoSamplersRequest {
                base_sampler,
                mask_sampler: piped(&path("mask_sampler"), mask_sampler)?,
                full_sampler,
                full_sample_schedule,
                mask: PictureRequest::read(&path("mask"), "mask", required(&path("mask"), job.mask)?)?,
            })),
            None => {
                let alone = [
                    ("mask", job.mask.is_some()),
                    ("full_sampler", full_sampler.is_some()),
                    ("full_sample_schedule", full_sample_schedule != FullSamplerSchedule::None),
                ];
                if let Some((field, _)) = alone.into_iter().find(|(_, is_there)| *is_there) {
                    let why = "is of no use without `mask_sampler`: add one, or leave it out".to_owned();
                    return Err(InvalidField::new(path(field), why));
                }
                SamplersRequest::One(Box::new(base_sampler))
            }
        };
        Ok(Self {
            source,
            upscale_factor: job.upscale_factor.unwrap_or(UPSCALE_FACTOR),
            steps: or(job.steps, STEPS),
            step_mode,
            scale_method,
            vae: Some(job.vae).filter(|vae| !vae.is_empty()),
            use_tiled_vae: job.use_tiled_vae,
            tile_size: or(job.tile_size, TILE_SIZE),
            upscale_model: Some(job.upscale_model).filter(|model| !model.is_empty()),
            samplers,
            decode: !job.latent_output,
            render: RenderRequest::read(&path("render"), job.render)?,
        })
    }
}

fn piped(at: &str, wire: v1::PipedSampler) -> Result<PipedRequest, InvalidField> {
    let hook = |(i, hook): (usize, v1::PkHook)| {
        Ok(match required(&format!("{at}.hooks[{i}].target"), hook.target)? {
            v1::pk_hook::Target::Cfg(target) => PkHook::Cfg { target },
            v1::pk_hook::Target::Denoise(target) => PkHook::Denoise { target },
            v1::pk_hook::Target::Steps(target) => PkHook::Steps { target },
        })
    };
    Ok(PipedRequest {
        sampler: sampler(&format!("{at}.sampler"), wire.sampler)?,
        basic_pipe: pipe(at, wire.basic_pipe)?,
        hooks: wire.hooks.into_iter().enumerate().map(hook).collect::<Result<_, InvalidField>>()?,
    })
}

#[cfg(test)]
mod tests;
