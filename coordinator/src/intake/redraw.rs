//! The jobs that redraw pictures: what was submitted becomes a resolved job.
//!
//! Models come first, since they are quickly looked up; then the picture, then what lies on it. A job that no worker has
//! room for, or whose result could not be written, is refused before work is spent on it.

use domain::{
    check::Invalid,
    job::{JobKind, Picture, Precision},
    nodes::{
        LatentSource, LatentUpscale, PipedSampler, Rendering, Samplers, SegsDetail, SegsUpscale, TiledModel,
        TwoSamplers,
    },
    pipe::PixelsRef,
    region::Size,
    task::ComputeClass,
};
use imaging::encode::check_encodable;
use proto::convert::{
    PictureRequest, TilingRequest,
    redraw::{
        LatentSourceRequest, LatentUpscaleRequest, PipedRequest, RenderRequest, SamplersRequest, SegsDetailRequest,
        SegsUpscaleRequest,
    },
};
use weights::checkpoint::Checkpoint;

use super::{
    Intake,
    pipe::{Network, Takes},
    segs::{Ground, Laid},
};
use crate::{
    auto_tile,
    desk::now,
    refusal::{Refusal, chain},
};

/// A resolved job, and things worth knowing about it.
pub(super) type Resolved = (JobKind, Vec<String>);

/// SD 1.x latents as old files hold them are this many times too large.
const OLD_LATENT_SCALE: f64 = 0.18215;

impl Intake {
    /// Resolves a `SEGSDetailer` job.
    pub(super) async fn segs_detail(&self, request: SegsDetailRequest) -> Result<Resolved, Refusal> {
        let at = "segs_detail";
        let pipe = self.pipe(&format!("{at}.basic_pipe"), request.basic_pipe, Takes::All).await?;
        let mut weights_bytes = pipe.weights_bytes;
        let refiner_basic_pipe = match request.refiner_basic_pipe {
            None => None,
            Some(refiner) => {
                let refiner = self.pipe(&format!("{at}.refiner_basic_pipe"), refiner, Takes::NoVae).await?;
                weights_bytes += refiner.weights_bytes;
                Some(refiner.basic_pipe)
            }
        };
        let rendering = self.rendering(at, request.render).await?;
        let picture = self.job_picture(&format!("{at}.picture"), request.picture).await?;
        let ground = Ground {
            found_in: picture.size,
            laid_on: picture.size,
            family: pipe.basic_pipe.checkpoint.family,
            feather: request.paste.map_or(0, |paste| paste.feather),
            reference_quirks: rendering.reference_quirks,
        };
        let laid = self.segs(&format!("{at}.segs"), request.segs, ground).await?;
        weights_bytes += laid.weights_bytes;
        let submitted = Laid::as_submitted(laid.are_given());
        let job = SegsDetail {
            picture,
            segs: laid.segs,
            overrides: request.overrides,
            basic_pipe: pipe.basic_pipe,
            refiner_basic_pipe,
            detailer: request.detailer,
            paste: request.paste,
            rendering,
        };
        let warnings = laid.warnings.into_iter().chain(job.check().map_err(submitted)?);
        let warnings = warnings.map(|warning| warning.to_string()).collect();
        self.check_room(&job.rendering.class, |has_bytes| job.check_room(weights_bytes, has_bytes).map_err(submitted))?;
        if job.paste.is_some() {
            self.check_redrawn(at, &job.rendering, &job.picture, job.picture.size)?;
        }
        Ok((JobKind::SegsDetail(Box::new(job)), warnings))
    }

    /// Resolves a `SEGSUpscalerPipe` job.
    pub(super) async fn segs_upscale(&self, request: SegsUpscaleRequest) -> Result<Resolved, Refusal> {
        let at = "segs_upscale";
        let pipe = self.pipe(&format!("{at}.basic_pipe"), request.basic_pipe, Takes::All).await?;
        let network = match &request.upscale_model {
            Some(name) => Some(self.network(&format!("{at}.upscale_model"), name).await?),
            None => None,
        };
        let rendering = self.rendering(at, request.render).await?;
        let upscale_model = network.map(|network| self.tiled(network, request.tiling, &rendering));
        let picture = self.job_picture(&format!("{at}.picture"), request.picture).await?;
        if let Some(TiledModel { model, .. }) = &upscale_model {
            self.check_enlarged(&format!("{at}.upscale_model"), &picture, model.scale)?;
        }
        let mut job = SegsUpscale {
            picture,
            segs: Vec::new(),
            overrides: request.overrides,
            basic_pipe: pipe.basic_pipe,
            upscale_model,
            upscaler: request.upscaler,
            rendering,
        };
        let size = job.size()?;
        self.check_result(&format!("{at}.rescale_factor"), size)?;
        let ground = Ground {
            found_in: job.picture.size,
            laid_on: size,
            family: job.basic_pipe.checkpoint.family,
            feather: job.upscaler.feather,
            reference_quirks: job.rendering.reference_quirks,
        };
        let laid = self.segs(&format!("{at}.segs"), request.segs, ground).await?;
        let weights_bytes = pipe.weights_bytes + laid.weights_bytes;
        let submitted = Laid::as_submitted(laid.are_given());
        job.segs = laid.segs;
        let warnings = laid.warnings.into_iter().chain(job.check().map_err(submitted)?);
        let warnings = warnings.map(|warning| warning.to_string()).collect();
        self.check_room(&job.rendering.class, |has_bytes| job.check_room(weights_bytes, has_bytes).map_err(submitted))?;
        self.check_redrawn(at, &job.rendering, &job.picture, size)?;
        Ok((JobKind::SegsUpscale(Box::new(job)), warnings))
    }

    /// Resolves an iterative latent upscale.
    pub(super) async fn latent_upscale(&self, request: LatentUpscaleRequest) -> Result<Resolved, Refusal> {
        let at = "latent_upscale";
        let mut weights_bytes = 0;
        let named_vae = match &request.vae {
            Some(name) => Some(self.vae(&format!("{at}.vae"), name).await?),
            None => None,
        };
        weights_bytes += named_vae.as_ref().map_or(0, |(_, bytes)| *bytes);
        let takes = if named_vae.is_some() { Takes::NoVae } else { Takes::All };
        let base = match &request.samplers {
            SamplersRequest::One(sampler) => sampler.as_ref(),
            SamplersRequest::Two(two) => &two.base_sampler,
        };
        let path = format!("{at}.base_sampler.basic_pipe");
        let base_pipe = self.pipe(&path, base.basic_pipe.clone(), takes).await?;
        weights_bytes += base_pipe.weights_bytes;
        let vae = match named_vae.map(|(vae, _)| vae).or(base_pipe.vae) {
            Some(vae) => vae,
            None => {
                return Err(Refusal::field(format!("{at}.vae"), "is missing, and the base sampler's pipe has none"));
            }
        };
        let base_sampler =
            PipedSampler { sampler: base.sampler.clone(), basic_pipe: base_pipe.basic_pipe, hooks: base.hooks.clone() };
        let samplers = match request.samplers {
            SamplersRequest::One(_) => Samplers::One(Box::new(base_sampler)),
            SamplersRequest::Two(two) => {
                let mask_sampler =
                    self.piped(&format!("{at}.mask_sampler"), two.mask_sampler, &mut weights_bytes).await?;
                let full_sampler = match two.full_sampler {
                    None => None,
                    Some(full) => Some(self.piped(&format!("{at}.full_sampler"), full, &mut weights_bytes).await?),
                };
                let mask = self.mask(&format!("{at}.mask"), two.mask).await?;
                Samplers::Two(Box::new(TwoSamplers {
                    base_sampler,
                    mask_sampler,
                    full_sampler,
                    full_sample_schedule: two.full_sample_schedule,
                    mask: self.keep_mask(&mask).await?,
                }))
            }
        };
        let upscale_model = match &request.upscale_model {
            None => None,
            Some(name) => {
                let Network { model, size_bytes, .. } = self.network(&format!("{at}.upscale_model"), name).await?;
                weights_bytes += size_bytes;
                Some(model)
            }
        };
        let rendering = self.rendering(at, request.render).await?;
        let source = match request.source {
            LatentSourceRequest::Picture(picture) => {
                LatentSource::Picture(self.job_picture(&format!("{at}.picture"), picture).await?)
            }
            LatentSourceRequest::Latent(latent) => {
                LatentSource::Latent(self.latent(&format!("{at}.latent"), latent).await?)
            }
        };
        let job = LatentUpscale {
            source,
            upscale_factor: request.upscale_factor,
            steps: request.steps,
            step_mode: request.step_mode,
            scale_method: request.scale_method,
            vae,
            use_tiled_vae: request.use_tiled_vae,
            tile_size: request.tile_size,
            upscale_model,
            samplers,
            decode: request.decode,
            rendering,
        };
        let warnings = job.check()?.into_iter().map(|warning| warning.to_string()).collect();
        self.check_result(&format!("{at}.upscale_factor"), job.result())?;
        self.check_room(&job.rendering.class, |has_bytes| job.check_room(weights_bytes, has_bytes))?;
        if job.decode {
            self.check_redrawn(at, &job.rendering, &job.source.picture(), job.result())?;
        }
        Ok((JobKind::LatentUpscale(Box::new(job)), warnings))
    }

    /// Resolves the sampler at `at`, and adds what its tensors take.
    async fn piped(&self, at: &str, request: PipedRequest, weights_bytes: &mut u64) -> Result<PipedSampler, Refusal> {
        let PipedRequest { sampler, basic_pipe, hooks } = request;
        let pipe = self.pipe(&format!("{at}.basic_pipe"), basic_pipe, Takes::NoVae).await?;
        *weights_bytes += pipe.weights_bytes;
        Ok(PipedSampler { sampler, basic_pipe: pipe.basic_pipe, hooks })
    }

    async fn rendering(&self, at: &str, request: RenderRequest) -> Result<Rendering, Refusal> {
        let RenderRequest { precision, reproducibility, class, output, reference_quirks } = request;
        let class = self.class_for(&format!("{at}.render.compute_class"), class, precision).await?;
        Ok(Rendering { precision, reproducibility, class, output, reference_quirks })
    }

    async fn job_picture(&self, field: &str, request: PictureRequest) -> Result<Picture, Refusal> {
        let PictureRequest { name, source } = request;
        self.picture(field, name, source).await
    }

    /// How a picture is cut for a network that enlarges it.
    fn tiled(&self, network: Network, tiling: TilingRequest, rendering: &Rendering) -> TiledModel {
        let Network { model, facts, .. } = network;
        let tiling = match tiling {
            TilingRequest::Fixed(tiling) => tiling,
            TilingRequest::Auto { overlap } => {
                auto_tile::tiling(&facts, self.roster.memory_of(&rendering.class, now()), overlap)
            }
        };
        let precision: Precision = rendering.precision;
        TiledModel { model, tiling, precision }
    }

    /// Refuses a picture that its network makes larger than pictures may be.
    fn check_enlarged(&self, field: &str, picture: &Picture, scale: u32) -> Result<(), Refusal> {
        // What does not even fit 32 bits is the planner's to refuse.
        let Some(enlarged) = picture.size.scaled(scale) else { return Ok(()) };
        self.limits
            .check_size(enlarged.width, enlarged.height)
            .map_err(|error| Refusal::field(field, format!("makes the picture {enlarged}: {error}")))
    }

    fn check_result(&self, field: &str, size: Size) -> Result<(), Refusal> {
        self.limits
            .check_size(size.width, size.height)
            .map_err(|error| Refusal::field(field, format!("makes the picture {size}: {error}")))
    }

    /// Refuses an output that could not be written: a picture of `size` like the submitted one, but without alpha.
    fn check_redrawn(&self, at: &str, rendering: &Rendering, picture: &Picture, size: Size) -> Result<(), Refusal> {
        let opaque = Picture { color: picture.color.with_alpha(false), ..picture.clone() };
        let (format, color, sample) = rendering.output.resolve(&opaque);
        check_encodable(format, size.width, size.height, color, sample, &self.limits)
            .map_err(|error| Refusal::field(format!("{at}.render.output.format"), chain(&error)))
    }

    /// Refuses what no worker that is there has room for. Where none says how much it has, nothing is refused.
    fn check_room(&self, class: &ComputeClass, check: impl FnOnce(u64) -> Result<(), Invalid>) -> Result<(), Refusal> {
        match self.roster.most_memory_of(class, now()) {
            Some(has_bytes) => Ok(check(has_bytes)?),
            None => Ok(()),
        }
    }

    /// Reads a latent as ComfyUI saves one, and keeps it as the results of links are kept.
    async fn latent(&self, field: &str, request: PictureRequest) -> Result<PixelsRef, Refusal> {
        let PictureRequest { name, source } = request;
        let (_, file) = self.file(field, source).await?;
        let limits = self.limits;
        let reading = tokio::task::spawn_blocking(move || {
            let checkpoint = Checkpoint::open(file.path()).map_err(|error| chain(&error))?;
            let size = latent_size(&checkpoint)?;
            let whole = size.scaled(8).ok_or_else(|| format!("is of {size} places, which is too large"))?;
            limits.check_size(whole.width, whole.height).map_err(|error| error.to_string())?;
            read_latent(&checkpoint).map(|values| (size, values))
        });
        let read = reading.await.map_err(|error| Refusal::Internal {
            what: format!("the reader of latent `{name}` stopped"),
            source: error.into(),
        })?;
        let (size, values) = read.map_err(|why| Refusal::field(field, format!("`{name}` is no latent: {why}")))?;
        Ok(PixelsRef { digest: self.keep(&values).await?, size })
    }
}

/// The tensor of a latent file.
const LATENT: &str = "latent_tensor";

/// The size of the latent that a file holds.
fn latent_size(checkpoint: &Checkpoint) -> Result<Size, String> {
    let Some(info) = checkpoint.tensors().get(LATENT) else {
        return Err(format!("it lacks `{LATENT}`"));
    };
    match info.shape[..] {
        [1, 4, height, width] if height > 0 && width > 0 => {
            let side = |length: usize| u32::try_from(length).map_err(|_| "it is too large".to_owned());
            Ok(Size::new(side(width)?, side(height)?))
        }
        _ => Err(format!("`{LATENT}` has shape {:?}, and [1, 4, height, width] is wanted", info.shape)),
    }
}

/// The latent that a file holds, as networks have it. Old files hold it as it is between steps.
fn read_latent(checkpoint: &Checkpoint) -> Result<Vec<f32>, String> {
    let mut values = checkpoint.read_f32(LATENT).map_err(|error| chain(&error))?;
    if !checkpoint.has("latent_format_version_0") {
        values.iter_mut().for_each(|value| *value *= (1.0 / OLD_LATENT_SCALE) as f32);
    }
    match values.iter().all(|value| value.is_finite()) {
        true => Ok(values),
        false => Err("it holds a value that is infinite or no number".to_owned()),
    }
}

#[cfg(test)]
mod tests;
