//! `tessera sample`: a picture of words, from a checkpoint on this machine, without a farm.

use std::{
    io::IsTerminal as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow};
use coordinator::run::picture_limits;
use domain::region::Size;
use imaging::{
    encode::EncodeOptions,
    frames::Frames,
    mask::Mask,
    pack::pack,
    picture::{Color, Format, Limits, Sample as Numbers},
};
use indicatif::{ProgressBar, ProgressStyle};
use models::{
    diffusion::{
        controlnet::ControlNet,
        generate::{ControlPicture, GenerateError, Made, Pixels, Request, Stage, Start, generate},
        lora::LoraFile,
        model::{self, LoadError, ModelFiles},
        text::embedding::Folder,
    },
    ops::Backend,
    processor,
    watch::Watch,
};
use serde_json::json;
use service::{
    config::{Config, units::show_bytes},
    report::{Hinted as _, with_hint},
};
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;
use worker::engine::device::open_processor;

use crate::{
    cli::{
        Sample,
        values::{ControlNet as Net, Lora, Precision},
    },
    command::models::refuse_existing,
    exit::{Failure, Outcome},
    local, output, progress,
};

/// Runs the command on this machine.
pub async fn run(args: Sample, config: Config, context: service::Context) -> Outcome {
    let stopped = context.shutdown;
    let json = args.json;
    let output = args.output.display().to_string();
    let sampled = spawn_blocking(move || sample(&args, &config, stopped)).await?;
    let Some((made, value)) = sampled? else {
        eprintln!("stopped; nothing was written");
        return Err(Failure::Job);
    };
    for note in &made.notes {
        eprintln!("note: {note}");
    }
    match json {
        true => output::json_line(&value),
        false => output::line(&output),
    }
    Ok(())
}

/// Makes the picture and writes it; none if it was stopped.
fn sample(
    args: &Sample,
    config: &Config,
    stopped: CancellationToken,
) -> anyhow::Result<Option<(Made, serde_json::Value)>> {
    refuse_existing(&args.output, args.force)?;
    let limits = picture_limits(&config.coordinator.limits);
    let format = format_of(&args.output)?;
    let (files, request) = (files(args)?, request(args, &limits)?);
    let backend = backend(args, config)?;
    let started = Instant::now();
    let mut shown = Shown::new();
    let made = match generate(&files, &backend, &request, &Stop(stopped), &mut |stage| shown.see(stage)) {
        Err(error) if error.is_interruption() => return Ok(None),
        made => {
            drop(shown);
            made.map_err(explained)?
        }
    };
    let seconds = started.elapsed().as_secs_f64();
    let Pixels { height, width, values, .. } = &made.picture;
    let size = Size::new(u32::try_from(*width)?, u32::try_from(*height)?);
    let options = EncodeOptions::new(format, Color::Rgb, Numbers::U8);
    local::write(&pack(values, None, Color::Rgb, Numbers::U8), size, options, &args.output, &limits)
        .with_context(|| format!("cannot write `{}`", args.output.display()))?;
    let value = json!({
        "output": args.output.display().to_string(),
        "width": made.picture.width,
        "height": made.picture.height,
        "family": made.family,
        "dtype": made.dtype,
        "sampler_name": request.sampler_name,
        "scheduler": request.scheduler,
        "steps": request.steps,
        "cfg": request.cfg,
        "denoise": request.denoise,
        "seed": request.seed,
        "memory_bytes": made.memory_bytes,
        "seconds": seconds,
        "notes": made.notes,
    });
    Ok(Some((made, value)))
}

/// Stops between the parts of a network.
struct Stop(CancellationToken);

impl Watch for Stop {
    fn goes_on(&self, _done: f64) -> bool {
        !self.0.is_cancelled()
    }
}

/// Says what to do about an error.
fn explained(error: GenerateError) -> anyhow::Error {
    let hint = match &error {
        GenerateError::Lacks { part: "VAE" } => Some("name one with --vae"),
        GenerateError::Lacks { .. } => Some("name one with --clip"),
        GenerateError::Load(LoadError::Lora(_)) => {
            Some("`tessera models inspect FILE` says what a LoRA was trained on")
        }
        GenerateError::Load(_) | GenerateError::Control { .. } | GenerateError::ControlFamily { .. } => {
            Some("`tessera models inspect FILE` says what a file holds")
        }
        GenerateError::Model(models::error::ModelError::OutOfMemory(_)) => {
            Some("ask for a smaller picture, or for --vae-tile 512")
        }
        GenerateError::MaskSize { .. } => Some("resize the mask to the picture first"),
        _ => None,
    };
    let error = anyhow::Error::new(error);
    match hint {
        Some(hint) => with_hint(error, hint),
        None => error,
    }
}

fn backend(args: &Sample, config: &Config) -> anyhow::Result<Backend> {
    let processor = open_processor(config.worker.device, config.worker.cpu.as_deref())
        .hint("`tessera doctor` says what there is")?;
    Ok(processor.backend(match args.precision {
        Precision::Exact => processor::Precision::Exact,
        Precision::Fast => processor::Precision::Fast,
    }))
}

fn open(path: &Path) -> anyhow::Result<model::File> {
    let name = path.display().to_string();
    let checkpoint = weights::diffusers::open(path).with_context(|| format!("cannot read `{name}`"))?;
    Ok(model::File::new(name, checkpoint))
}

fn files(args: &Sample) -> anyhow::Result<ModelFiles> {
    let lora = |Lora { lora, strength_model, strength_clip }: &Lora| -> anyhow::Result<_> {
        Ok(LoraFile { file: open(lora)?, strength_model: *strength_model, strength_clip: *strength_clip })
    };
    Ok(ModelFiles {
        checkpoint: Some(open(&args.checkpoint)?),
        unet: None,
        vae: args.vae.as_deref().map(open).transpose()?,
        clip: args.clip.iter().map(|path| open(path)).collect::<anyhow::Result<_>>()?,
        loras: args.loras.iter().map(lora).collect::<anyhow::Result<_>>()?,
        embeddings: args.embeddings.as_ref().map(Folder::new),
    })
}

fn request(args: &Sample, limits: &Limits) -> anyhow::Result<Request> {
    if args.controlnets.len() != args.control_images.len() {
        let (nets, pictures) = (args.controlnets.len(), args.control_images.len());
        return Err(anyhow!("{nets} --controlnet and {pictures} --control-image: each network needs its picture"));
    }
    let control = |(net, picture): (&Net, &PathBuf)| -> anyhow::Result<_> {
        Ok(ControlPicture {
            file: open(&net.control_net)?,
            is_averaged: ControlNet::is_averaged_by_name(&net.control_net),
            picture: read(picture, limits)?,
            strength: net.strength,
            start_percent: net.start_percent,
            end_percent: net.end_percent,
        })
    };
    let mask = |path: &PathBuf| -> anyhow::Result<_> {
        let Mask { height, width, data, .. } = local::read_mask(path, limits)?;
        Ok(Pixels { frames: 1, height, width, values: data })
    };
    Ok(Request {
        positive: args.prompt.clone(),
        negative: args.negative.clone(),
        stop_at_clip_layer: args.stop_at_clip_layer,
        start: match &args.init {
            Some(path) => Start::Picture(read(path, limits)?),
            None => Start::Noise { height: args.height, width: args.width },
        },
        mask: args.mask.as_ref().map(mask).transpose()?,
        controls: args.controlnets.iter().zip(&args.control_images).map(control).collect::<anyhow::Result<_>>()?,
        sampler_name: args.sampler.sampler_name.clone(),
        scheduler: args.sampler.scheduler.clone(),
        steps: args.sampler.steps as usize,
        cfg: args.sampler.cfg,
        denoise: args.denoise,
        seed: args.sampler.seed,
        vae_tile: args.vae_tile,
    })
}

fn read(path: &Path, limits: &Limits) -> anyhow::Result<Pixels> {
    let Frames { height, width, data, .. } = local::read(path, limits)?;
    Ok(Pixels { frames: 1, height, width, values: data })
}

fn format_of(path: &Path) -> anyhow::Result<Format> {
    let extension = path.extension().unwrap_or_default().to_string_lossy();
    Format::from_extension(&extension)
        .with_context(|| format!("`{}` has no extension of a picture", path.display()))
        .hint("name a .png, .jpg, .tiff or .webp file with --output")
}

/// Shows on stderr how far it is, and how long it will take.
struct Shown {
    bar: Option<ProgressBar>,
    /// When the first step began.
    began: Option<Instant>,
}

impl Shown {
    fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("[{bar:30}] {msg}").expect("the template is a fixed text");
            ProgressBar::new(1).with_style(style.progress_chars("=> "))
        });
        Self { bar, began: None }
    }

    fn see(&mut self, stage: Stage) {
        let words = match stage {
            Stage::Loading => "reading weights".to_owned(),
            Stage::Encoding { memory_bytes } => {
                format!("encoding; a call takes about {} beside the weights", show_bytes(memory_bytes))
            }
            Stage::Decoding => "decoding".to_owned(),
            Stage::Retrying => "numbers of 16 bits were too short: all again in f32".to_owned(),
            Stage::Sampling { done: 0, .. } => {
                self.began = Some(Instant::now());
                "sampling".to_owned()
            }
            Stage::Sampling { done, steps } => {
                if let Some(bar) = &self.bar {
                    bar.set_length(steps as u64);
                    bar.set_position(done as u64);
                }
                let elapsed = self.began.map_or(Duration::ZERO, |began| began.elapsed());
                sentence(done, steps, elapsed)
            }
        };
        match &self.bar {
            Some(bar) => bar.set_message(words),
            None => eprintln!("{words}"),
        }
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// `step 3 of 20, 41 s left`.
fn sentence(done: usize, steps: usize, elapsed: Duration) -> String {
    match steps.saturating_sub(done) {
        0 => format!("step {done} of {steps}"),
        left => {
            let seconds = elapsed.as_secs_f64() / done.max(1) as f64 * left as f64;
            format!("step {done} of {steps}, {} left", progress::span(seconds.round() as u64))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_says_how_long_the_others_will_take() {
        assert_eq!(sentence(3, 20, Duration::from_secs(6)), "step 3 of 20, 34 s left");
        assert_eq!(sentence(20, 20, Duration::from_secs(6)), "step 20 of 20");
        assert_eq!(sentence(21, 20, Duration::from_secs(6)), "step 21 of 20");
    }
}
