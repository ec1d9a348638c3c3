//! `tessera segs-detail`, `segs-upscale` and `latent-upscale`: what each asks for, as the document of a job.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use domain::{
    nodes::{FullSamplerSchedule, PkHook},
    picture::Format,
    sampling::SchedulerFunc,
    segs::Select,
};
use proto::v1;
use serde_json::{Map, Value, json};
use service::{config::Config, report::with_hint};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use crate::{
    cli::{
        flags::{InpaintFlags, PipeFlags, RedrawFlags, RedrawSamplerFlags, SegsFlags, TilingFlags},
        redraw::{LatentUpscale, SegsDetail, SegsUpscale},
        values::{GuideSizeFor, Masks, SamplerChange, StepMode, TileSide, Which},
    },
    client::Farm,
    command::{plan, run, submit},
    document::Document,
    embedded,
    exit::{Failure, Outcome},
    naming,
    pictures::Found,
    progress::Progress,
    segs_file::{Writing, without_nulls},
    transfer, wire_json,
};

/// A job, and where what it makes goes.
struct Errand {
    /// What it is made from, as messages call it.
    name: String,
    /// The document of the job.
    document: Document,
    /// The file of the picture or the latent.
    output: Option<PathBuf>,
    /// The folder of the redrawn segments.
    segs_output: Option<PathBuf>,
}

/// Runs `tessera segs-detail`.
pub async fn segs_detail(args: SegsDetail, config: Config, context: service::Context) -> Outcome {
    let named = match args.no_paste {
        true => None,
        false => Some(output(&args.picture, args.output.as_deref(), &args.redraw, "detail")?),
    };
    let format = named.as_ref().and_then(|(_, format)| *format);
    let document = document(&args.redraw, "segs_detail", detail_job(&args, format)?)?;
    let (name, segs_output) = (args.picture.display().to_string(), args.segs_output);
    let errand = Errand { name, document, output: named.map(|(output, _)| output), segs_output };
    redraw(errand, &args.redraw, &config, context.shutdown).await
}

/// Runs `tessera segs-upscale`.
pub async fn segs_upscale(args: SegsUpscale, config: Config, context: service::Context) -> Outcome {
    let suffix = format!("{}x", args.rescale_factor);
    let (output, format) = output(&args.picture, args.output.as_deref(), &args.redraw, &suffix)?;
    let document = document(&args.redraw, "segs_upscale", upscale_job(&args, format)?)?;
    let name = args.picture.display().to_string();
    let errand = Errand { name, document, output: Some(output), segs_output: None };
    redraw(errand, &args.redraw, &config, context.shutdown).await
}

/// Runs `tessera latent-upscale`.
pub async fn latent_upscale(args: LatentUpscale, config: Config, context: service::Context) -> Outcome {
    let suffix = format!("{}x", args.upscale_factor);
    let (output, format) = match args.latent_output {
        true => (latent_output(&args.source, args.output.as_deref(), &suffix), None),
        false if is_latent(&args.source) => {
            // A latent has no format of its own that a picture could be written in.
            let picture = args.source.with_extension("png");
            output(&picture, args.output.as_deref(), &args.redraw, &suffix)?
        }
        false => output(&args.source, args.output.as_deref(), &args.redraw, &suffix)?,
    };
    let document = document(&args.redraw, "latent_upscale", latent_job(&args, format)?)?;
    let name = args.source.display().to_string();
    let errand = Errand { name, document, output: Some(output), segs_output: None };
    redraw(errand, &args.redraw, &config, context.shutdown).await
}

/// The file that a picture's result goes to, and its format.
fn output(
    picture: &Path,
    output: Option<&Path>,
    redraw: &RedrawFlags,
    suffix: &str,
) -> anyhow::Result<(PathBuf, Option<Format>)> {
    let below = picture.file_name().with_context(|| format!("`{}` is no file", picture.display()))?.into();
    let found = [Found { path: picture.to_owned(), below, in_folder: false }];
    let errand = naming::errands(&found, output, redraw.render.format, suffix)?.pop();
    let errand = errand.context("a picture has a result")?;
    Ok((errand.output, errand.format))
}

/// The file that a latent goes to.
fn latent_output(source: &Path, output: Option<&Path>, suffix: &str) -> PathBuf {
    let stem = source.file_stem().unwrap_or_default().to_string_lossy();
    match output {
        Some(output) if naming::is_folder(output) => output.join(format!("{stem}.latent")),
        Some(output) => output.to_owned(),
        None => source.with_file_name(format!("{stem}@{suffix}.latent")),
    }
}

/// Whether a file is a latent, by its name.
fn is_latent(path: &Path) -> bool {
    let extension = path.extension().unwrap_or_default();
    ["latent", "safetensors"].iter().any(|latent| extension.eq_ignore_ascii_case(latent))
}

/// Runs the job, or shows its plan.
async fn redraw(errand: Errand, args: &RedrawFlags, config: &Config, stopped: CancellationToken) -> Outcome {
    let span = tracing::info_span!("submit", picture = errand.name);
    let work = async |farm: &Farm| made(errand, args, farm, &stopped).await;
    embedded::on_farm(config, args.job.workers, work).instrument(span).await
}

async fn made(errand: Errand, args: &RedrawFlags, farm: &Farm, stopped: &CancellationToken) -> Outcome {
    let Errand { name, document, output, segs_output } = errand;
    let (force, progress) = (args.job.force, Progress::new(args.job.json));
    let cannot = || format!("cannot redraw `{name}`");
    if args.plan {
        let request = submit::upload(farm, document).await.with_context(cannot)?;
        let asked = v1::PlanJobRequest {
            job: Some(v1::plan_job_request::Job::Request(request)),
            ..v1::PlanJobRequest::default()
        };
        plan::show(&farm.plan(asked).await.with_context(cannot)?, args.job.json);
        return Ok(());
    }
    let exists = output.as_ref().filter(|output| !force && output.exists());
    if let Some(output) = exists {
        let output = output.display().to_string();
        progress.say(&format!("{name}: skipped, because `{output}` exists; --force writes over it"));
        if args.job.json {
            progress.give("", &json!({ "name": name, "output": output, "skipped": true }));
        }
        return Ok(());
    }
    // Before anything is rendered: a document that may not be written over is refused.
    let writing = segs_output.map(|folder| Writing::to(&folder, Masks::Png, force)).transpose()?;
    let request = tokio::select! {
        request = submit::upload(farm, document) => request.with_context(cannot)?,
        () = stopped.cancelled() => return Err(Failure::Job),
    };
    let Some(job) = run::to_its_end(farm, &name, request, &progress, stopped).await.with_context(cannot)? else {
        return Err(Failure::Job);
    };
    if let Some(output) = output {
        let made = result(&job, |format| format != "segs")?;
        transfer::download(farm, artifact(made)?, &output).await?;
        give(&progress, &name, &job, made, &output);
    }
    if let Some(writing) = writing {
        let made = result(&job, |format| format == "segs")?;
        let path = writing.download(farm, artifact(made)?).await?;
        give(&progress, &name, &job, made, path);
    }
    Ok(())
}

fn result(job: &v1::Job, is_wanted: impl Fn(&str) -> bool) -> anyhow::Result<&v1::JobOutput> {
    job.outputs.iter().find(|made| is_wanted(&made.format)).context("the job succeeded without the result")
}

fn artifact(made: &v1::JobOutput) -> anyhow::Result<&v1::Artifact> {
    made.artifact.as_ref().context("the result has no artifact")
}

fn give(progress: &Progress, name: &str, job: &v1::Job, made: &v1::JobOutput, output: &Path) {
    let output = output.display().to_string();
    let (kind, message) = match &job.kind {
        Some(v1::job::Kind::SegsDetail(redraw)) => ("segs_detail", redraw),
        Some(v1::job::Kind::SegsUpscale(redraw)) => ("segs_upscale", redraw),
        Some(v1::job::Kind::LatentUpscale(redraw)) => ("latent_upscale", redraw),
        Some(v1::job::Kind::Upscale(_)) | None => ("", &v1::ResolvedRedraw::default()),
    };
    let value = json!({
        "name": name,
        "job": job.id,
        "output": output,
        kind: wire_json::show("ResolvedRedraw", message),
        "result": wire_json::show("JobOutput", made),
    });
    progress.give(&output, &value);
}

/// The document of a job of `kind`.
fn document(args: &RedrawFlags, kind: &str, job: Value) -> anyhow::Result<Document> {
    let labels: Map<String, Value> = args.job.labels.iter().map(|(key, value)| (key.clone(), json!(value))).collect();
    let priority = v1::Priority::from(args.job.priority).as_str_name();
    Document::new(json!({ "labels": labels, "priority": priority, kind: job }), Path::new(""))
}

fn detail_job(args: &SegsDetail, format: Option<Format>) -> anyhow::Result<Value> {
    let SegsDetail { pipe, refiner_checkpoint, refiner_vae, refiner_positive, refiner_negative, .. } = args;
    let refiner = refiner_checkpoint.as_deref().map(|checkpoint| {
        Ok::<_, anyhow::Error>(without_nulls(json!({
            "checkpoint": model(checkpoint)?,
            "vae": refiner_vae.as_deref().map(model).transpose()?,
            "positive": prompt(refiner_positive.as_ref().unwrap_or(&pipe.positive)),
            "negative": prompt(refiner_negative.as_ref().unwrap_or(&pipe.negative)),
        })))
    });
    let paste = (!args.no_paste).then(|| json!({ "feather": args.feather.feather, "alpha": args.alpha }));
    let InpaintFlags { inpaint_model, noise_mask_feather } = args.inpaint;
    Ok(without_nulls(json!({
        "picture": picture(&args.picture)?,
        "segs": segs(&args.segs)?,
        "overrides": overrides(&args.segs),
        "basic_pipe": basic_pipe(pipe)?,
        "refiner_basic_pipe": refiner.transpose()?,
        "guide_size": args.guide_size,
        "guide_size_for_crop_region": args.guide_size_for == GuideSizeFor::CropRegion,
        "max_size": args.max_size,
        "sampler": sampler(&args.sampler),
        "noise_mask": args.noise_mask,
        "force_inpaint": args.force_inpaint,
        "refiner_ratio": args.refiner_ratio,
        "batch_size": args.batch_size,
        "cycle": args.cycle,
        "inpaint_model": inpaint_model,
        "noise_mask_feather": noise_mask_feather,
        "paste": paste,
        "render": render(&args.redraw, format),
    })))
}

fn upscale_job(args: &SegsUpscale, format: Option<Format>) -> anyhow::Result<Value> {
    let InpaintFlags { inpaint_model, noise_mask_feather } = args.inpaint;
    Ok(without_nulls(json!({
        "picture": picture(&args.picture)?,
        "segs": segs(&args.segs)?,
        "overrides": overrides(&args.segs),
        "basic_pipe": basic_pipe(&args.pipe)?,
        "rescale_factor": args.rescale_factor,
        "resampling_method": args.resampling_method,
        "supersample": args.supersample,
        "rounding_modulus": args.rounding_modulus,
        "sampler": sampler(&args.sampler),
        "feather": args.feather.feather,
        "inpaint_model": inpaint_model,
        "noise_mask_feather": noise_mask_feather,
        "upscale_model": args.upscale_model.as_deref().map(model).transpose()?,
        "tile": args.upscale_model.is_some().then(|| tile(&args.tiling)),
        "render": render(&args.redraw, format),
    })))
}

fn latent_job(args: &LatentUpscale, format: Option<Format>) -> anyhow::Result<Value> {
    let two = args.mask.is_some();
    let full = two && args.full_sample_schedule != FullSamplerSchedule::None;
    for (which, _) in &args.hooks {
        let (flag, there) = match which {
            Which::Base => continue,
            Which::Mask => ("--mask", two),
            Which::Full => ("--full-sample-schedule", full),
        };
        if !there {
            bail!("--hook names a sampler that is not there without {flag}");
        }
    }
    let none = SamplerChange::default();
    let pipe = basic_pipe(&args.pipe)?;
    let piped = |which: Which, change: &Option<SamplerChange>, positive: &Option<String>, negative: &Option<String>| {
        let mut pipe = pipe.clone();
        let texts = [("positive", positive, &args.pipe.positive), ("negative", negative, &args.pipe.negative)];
        texts.into_iter().for_each(|(name, own, base)| pipe[name] = prompt(own.as_ref().unwrap_or(base)));
        json!({
            "sampler": changed(sampler(&args.sampler), change.as_ref().unwrap_or(&none)),
            "basic_pipe": pipe,
            "hooks": args.hooks.iter().filter(|(of, _)| *of == which).map(|(_, hook)| hooked(*hook)).collect::<Vec<_>>(),
        })
    };
    let source = if is_latent(&args.source) { "latent" } else { "picture" };
    Ok(without_nulls(json!({
        source: picture(&args.source)?,
        "upscale_factor": args.upscale_factor,
        "steps": args.upscale_steps,
        "step_mode": match args.step_mode {
            StepMode::Simple => v1::StepMode::Simple,
            StepMode::Geometric => v1::StepMode::Geometric,
        }
        .as_str_name(),
        "scale_method": args.scale_method,
        "vae": args.pipe.vae.as_deref().map(model).transpose()?,
        "use_tiled_vae": args.use_tiled_vae,
        "tile_size": args.tile_size,
        "upscale_model": args.upscale_model.as_deref().map(model).transpose()?,
        "base_sampler": piped(Which::Base, &None, &None, &None),
        "mask_sampler": two.then(|| piped(Which::Mask, &args.mask_sampler, &args.mask_positive, &args.mask_negative)),
        "full_sampler": full.then(|| piped(Which::Full, &args.full_sampler, &args.full_positive, &args.full_negative)),
        "full_sample_schedule": two.then(|| args.full_sample_schedule.to_string()),
        "mask": args.mask.as_deref().map(picture).transpose()?,
        "latent_output": args.latent_output,
        "render": render(&args.redraw, format),
    })))
}

/// A local file, as the document of a job names it.
fn local(path: &Path) -> anyhow::Result<Value> {
    let path = path.to_str().with_context(|| format!("the name of `{}` is no UTF-8", path.display()))?;
    Ok(json!({ "path": path }))
}

/// A picture, a mask or a latent.
fn picture(path: &Path) -> anyhow::Result<Value> {
    match path.is_file() {
        true => local(path),
        false => bail!("there is no file `{}`", path.display()),
    }
}

/// A model: a file, or what a model of the farm is called.
fn model(path: &Path) -> anyhow::Result<Value> {
    if path.is_file() {
        return local(path);
    }
    let name = path.to_str().with_context(|| format!("the name of `{}` is no UTF-8", path.display()))?;
    if name.contains(std::path::is_separator) {
        let error = anyhow::anyhow!("there is no file `{name}`");
        return Err(with_hint(
            error,
            "a model of the farm is named without folders; `tessera models list` shows which there are",
        ));
    }
    Ok(json!(name))
}

/// A prompt that holds everywhere.
fn prompt(text: &str) -> Value {
    json!([{ "text": text }])
}

fn basic_pipe(args: &PipeFlags) -> anyhow::Result<Value> {
    let (nets, images) = (args.controlnets.len(), args.control_images.len());
    if images != 0 && images != nets {
        bail!("{nets} --controlnet and {images} --control-image: each network needs its picture, or none has one");
    }
    let loras = args.loras.iter().map(|lora| {
        Ok(json!({
            "lora": model(&lora.lora)?,
            "strength_model": lora.strength_model,
            "strength_clip": lora.strength_clip,
        }))
    });
    let controls = args.controlnets.iter().enumerate().map(|(i, net)| {
        Ok(without_nulls(json!({
            "control_net": model(&net.control_net)?,
            "strength": net.strength,
            "start_percent": net.start_percent,
            "end_percent": net.end_percent,
            "advanced": args.control_advanced,
            "image": args.control_images.get(i).map(|image| picture(image)).transpose()?,
        })))
    });
    Ok(without_nulls(json!({
        "checkpoint": model(&args.checkpoint)?,
        "vae": args.vae.as_deref().map(model).transpose()?,
        "loras": loras.collect::<anyhow::Result<Vec<_>>>()?,
        "embeddings": args.embeddings.iter().map(|path| model(path)).collect::<anyhow::Result<Vec<_>>>()?,
        "stop_at_clip_layer": args.stop_at_clip_layer,
        "positive": prompt(&args.positive),
        "negative": prompt(&args.negative),
        "control_nets": controls.collect::<anyhow::Result<Vec<_>>>()?,
    })))
}

fn sampler(args: &RedrawSamplerFlags) -> Value {
    let func = args.scheduler_func.as_ref().map(|func| match func {
        SchedulerFunc::Gits { coeff, denoise } => json!({ "gits": { "coeff": coeff, "denoise": denoise } }),
        SchedulerFunc::List { sigmas } => json!({ "list": { "sigmas": sigmas } }),
    });
    without_nulls(json!({
        "seed": args.sampler.seed,
        "steps": args.sampler.steps,
        "cfg": args.sampler.cfg,
        "sampler_name": args.sampler.sampler_name,
        "scheduler": args.sampler.scheduler,
        "denoise": args.denoise,
        "scheduler_func": func,
    }))
}

/// A sampler with what is different about it. One with a scheduler of its own has no scheduler function.
fn changed(mut sampler: Value, change: &SamplerChange) -> Value {
    let SamplerChange { seed, steps, cfg, sampler_name, scheduler, denoise } = change;
    if scheduler.is_some() {
        sampler["scheduler_func"] = Value::Null;
    }
    let changes = json!({
        "seed": seed,
        "steps": steps,
        "cfg": cfg,
        "sampler_name": sampler_name,
        "scheduler": scheduler,
        "denoise": denoise,
    });
    let changes = changes.as_object().into_iter().flatten().filter(|(_, value)| !value.is_null());
    changes.for_each(|(name, value)| sampler[name] = value.clone());
    without_nulls(sampler)
}

fn hooked(hook: PkHook) -> Value {
    match hook {
        PkHook::Cfg { target } => json!({ "cfg": target }),
        PkHook::Denoise { target } => json!({ "denoise": target }),
        PkHook::Steps { target } => json!({ "steps": target }),
    }
}

fn segs(args: &SegsFlags) -> anyhow::Result<Value> {
    let crop_factor = args.crop.crop_factor;
    let read = |path: &PathBuf| Ok::<_, anyhow::Error>(json!({ "document": local(path)?["path"] }));
    if let Some(path) = &args.segs {
        return read(path);
    }
    if let Some(mask) = &args.mask {
        return Ok(json!({ "mask": {
            "mask": picture(mask)?,
            "combined": args.parts.combined,
            "crop_factor": crop_factor,
            "bbox_fill": args.parts.bbox_fill,
            "drop_size": args.parts.drop_size,
            "contour_fill": args.parts.contour_fill,
        } }));
    }
    let tiles = &args.tiles;
    Ok(json!({ "tiles": without_nulls(json!({
        "bbox_size": tiles.bbox_size,
        "crop_factor": crop_factor,
        "min_overlap": tiles.min_overlap,
        "filter_segs_dilation": tiles.filter_segs_dilation,
        "mask_irregularity": tiles.mask_irregularity,
        "irregular_mask_mode": tiles.irregular_mask_mode,
        "seed": tiles.irregular_mask_seed,
        "filter_in_segs": tiles.filter_in_segs.as_ref().map(read).transpose()?,
        "filter_out_segs": tiles.filter_out_segs.as_ref().map(read).transpose()?,
    })) }))
}

fn overrides(args: &SegsFlags) -> Value {
    let change = |select: &Select, field: &str, value: Value| {
        let (by, selected) = match select {
            Select::Label(label) => ("label", json!(label)),
            Select::Index(index) => ("index", json!(index)),
        };
        json!({ by: selected, field: value })
    };
    let texts = |changes: &[(Select, String)], field: &str| {
        changes.iter().map(|(select, text)| change(select, field, json!(text))).collect::<Vec<_>>()
    };
    let mut all = texts(&args.prompts_for, "positive");
    all.extend(texts(&args.negatives_for, "negative"));
    all.extend(args.reseeded.iter().map(|(select, seed)| change(select, "seed", json!(seed))));
    json!(all)
}

fn tile(args: &TilingFlags) -> Value {
    match args.tile {
        TileSide::Pixels(side) => json!({ "side": side, "overlap": args.overlap }),
        TileSide::Auto => json!({ "auto": true, "overlap": args.overlap }),
    }
}

fn render(args: &RedrawFlags, format: Option<Format>) -> Value {
    without_nulls(json!({
        "precision": v1::Precision::from(args.precision).as_str_name(),
        "reproducibility": v1::Reproducibility::from(args.render.reproducibility).as_str_name(),
        "compute_class": args.render.class,
        "output": without_nulls(json!({
            "format": format.map(Format::name),
            "bits": args.render.bits,
            "quality": args.render.quality,
        })),
        "reference_quirks": args.reference_quirks,
    }))
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use proto::v1::create_job_request::Kind;

    use super::*;
    use crate::cli::{Cli, Command};

    /// A folder with the files that commands name.
    struct Here(tempfile::TempDir);

    impl Here {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            for name in ["photo.jpg", "mask.png", "edges.png", "sd15.safetensors", "canny.pth", "start.latent"] {
                std::fs::write(folder.path().join(name), "").unwrap();
            }
            let segs = r#"{ "format": "tessera.segs/1", "segs": [{ "crop_region": [0, 0, 8, 8], "label": "face" }] }"#;
            std::fs::write(folder.path().join("faces.json"), segs).unwrap();
            Self(folder)
        }

        /// The command line, in which `@` is the folder and `~` a space that parts no words.
        fn parse(&self, line: &str) -> Result<Command, String> {
            let folder = format!("{}/", self.0.path().display());
            let words = line.split_whitespace().map(|word| word.replace('@', &folder).replace('~', " "));
            let words = std::iter::once("tessera".to_owned()).chain(words);
            Cli::try_parse_from(words).map(|cli| cli.command).map_err(|error| error.to_string())
        }

        /// What the command asks for, its files standing for themselves.
        fn request(&self, line: &str) -> v1::CreateJobRequest {
            let png = Some(Format::Png);
            let document = match &self.parse(line).unwrap() {
                Command::SegsDetail(args) => document(&args.redraw, "segs_detail", detail_job(args, png).unwrap()),
                Command::SegsUpscale(args) => document(&args.redraw, "segs_upscale", upscale_job(args, png).unwrap()),
                Command::LatentUpscale(args) => {
                    document(&args.redraw, "latent_upscale", latent_job(args, png).unwrap())
                }
                other => panic!("{other:?}"),
            };
            let mut document = document.unwrap();
            for file in document.files().unwrap() {
                document.replace(&file, file.path.file_name().unwrap().to_string_lossy().into_owned()).unwrap();
            }
            document.request().unwrap()
        }

        fn detail(&self, line: &str) -> v1::SegsDetailJob {
            match self.request(line).kind {
                Some(Kind::SegsDetail(job)) => job,
                other => panic!("{other:?}"),
            }
        }

        fn upscale(&self, line: &str) -> v1::SegsUpscaleJob {
            match self.request(line).kind {
                Some(Kind::SegsUpscale(job)) => job,
                other => panic!("{other:?}"),
            }
        }

        fn latent(&self, line: &str) -> v1::LatentUpscaleJob {
            match self.request(line).kind {
                Some(Kind::LatentUpscale(job)) => job,
                other => panic!("{other:?}"),
            }
        }
    }

    fn digest(name: &str) -> Option<v1::PictureSource> {
        let source = Some(v1::picture_source::Source::Digest(name.to_owned()));
        Some(v1::PictureSource { name: name.to_owned(), source })
    }

    fn prompts(texts: &[v1::Conditioning]) -> Vec<&str> {
        texts.iter().map(|prompt| prompt.text.as_str()).collect()
    }

    const DETAIL: &str = "segs-detail @photo.jpg --mask @mask.png --checkpoint @sd15.safetensors";

    #[test]
    fn what_is_left_out_has_the_references_defaults() {
        let here = Here::new();
        let job = here.detail(DETAIL);
        assert_eq!(job.picture, digest("photo.jpg"));
        let Some(v1::segs_source::Source::Mask(mask)) = job.segs.unwrap().source else { panic!("no mask") };
        assert_eq!(
            (mask.mask, mask.combined, mask.crop_factor, mask.drop_size),
            (digest("mask.png"), false, Some(3.0), Some(10))
        );
        let pipe = job.basic_pipe.unwrap();
        assert_eq!((pipe.checkpoint.as_str(), pipe.vae.as_str(), pipe.stop_at_clip_layer), ("sd15.safetensors", "", 0));
        assert_eq!((prompts(&pipe.positive), prompts(&pipe.negative)), (vec![""], vec![""]));
        assert_eq!((job.guide_size, job.guide_size_for_crop_region, job.max_size), (Some(512.0), false, Some(768.0)));
        let sampler = job.sampler.unwrap();
        assert_eq!((sampler.seed, sampler.steps, sampler.cfg, sampler.denoise), (0, 20, Some(8.0), Some(0.5)));
        assert_eq!(
            (sampler.sampler_name.as_str(), sampler.scheduler.as_str(), sampler.scheduler_func),
            ("euler", "normal", None)
        );
        assert_eq!((job.noise_mask, job.force_inpaint, job.refiner_ratio), (Some(true), Some(true), Some(0.2)));
        assert_eq!((job.batch_size, job.cycle, job.inpaint_model, job.noise_mask_feather), (1, 1, false, Some(20)));
        assert_eq!(job.paste, Some(v1::SegsPaste { feather: Some(5), alpha: Some(255) }));
        assert_eq!((job.refiner_basic_pipe, job.overrides.len()), (None, 0));
        let render = job.render.unwrap();
        assert_eq!(
            (render.precision(), render.reproducibility()),
            (v1::Precision::Exact, v1::Reproducibility::SameClass)
        );
        assert_eq!((render.compute_class.as_str(), render.reference_quirks), ("", false));
        assert_eq!(render.output, Some(v1::OutputOptions { format: "png".to_owned(), bits: 0, quality: 95 }));

        let job = here.upscale("segs-upscale @photo.jpg --grid --checkpoint sd15");
        let Some(v1::segs_source::Source::Tiles(tiles)) = job.segs.unwrap().source else { panic!("no tiles") };
        assert_eq!((tiles.bbox_size, tiles.crop_factor, tiles.min_overlap), (512, Some(3.0), Some(5)));
        assert_eq!((tiles.filter_segs_dilation, tiles.irregular_mask_mode.as_str()), (Some(20), "Reuse fast"));
        assert_eq!((job.rescale_factor, job.resampling_method.as_str(), job.supersample), (Some(2.0), "", Some(true)));
        assert_eq!((job.rounding_modulus, job.feather, job.upscale_model.as_str(), job.tile), (8, Some(5), "", None));
        assert_eq!(job.basic_pipe.unwrap().checkpoint, "sd15");

        let job = here.latent("latent-upscale @photo.jpg --checkpoint sd15");
        assert_eq!(job.source, digest("photo.jpg").map(v1::latent_upscale_job::Source::Picture));
        assert_eq!((job.upscale_factor, job.steps, job.step_mode()), (Some(1.5), 3, v1::StepMode::Simple));
        assert_eq!((job.scale_method.as_str(), job.use_tiled_vae, job.tile_size), ("nearest-exact", false, 512));
        assert_eq!(
            (job.mask, job.mask_sampler, job.full_sampler, job.full_sample_schedule.as_str()),
            (None, None, None, "")
        );
        assert!(job.base_sampler.unwrap().hooks.is_empty());
    }

    #[test]
    fn every_flag_of_segs_detail_reaches_the_job() {
        let here = Here::new();
        let line = format!(
            "{DETAIL} --crop-factor 1.5 --combined --bbox-fill --contour-fill --drop-size 3 --vae v --lora ink:0.8:0.5 \
             --embedding bad --stop-at-clip-layer -2 --positive a~face --negative blur --controlnet @canny.pth:0.5:0.1:0.9 \
             --control-image @edges.png --control-advanced --refiner-checkpoint refiner --refiner-positive fine \
             --refiner-ratio 0.3 --guide-size 256 --guide-size-for crop_region --max-size 512 --seed 18446744073709551615 \
             --steps 5 --cfg 1.5 --sampler-name heun --scheduler karras --denoise 0.25 --scheduler-func gits:1.3 \
             --noise-mask false --force-inpaint false --batch-size 2 --cycle 3 --inpaint-model --noise-mask-feather 7 \
             --feather 9 --alpha 200 --prompt-for face=a~smile --prompt-for 1=door --negative-for face=teeth --reseed 2=7 \
             --precision fast --bits 16 --reproducibility mixed --class cpu/candle/f32 --reference-quirks --priority high \
             --label a=b"
        );
        let request = here.request(&line);
        assert_eq!((request.priority(), request.labels["a"].as_str()), (v1::Priority::High, "b"));
        let job = here.detail(&line);
        let Some(v1::segs_source::Source::Mask(mask)) = job.segs.unwrap().source else { panic!("no mask") };
        assert!(mask.combined && mask.bbox_fill && mask.contour_fill);
        assert_eq!((mask.crop_factor, mask.drop_size), (Some(1.5), Some(3)));
        let pipe = job.basic_pipe.unwrap();
        assert_eq!((pipe.vae.as_str(), pipe.embeddings, pipe.stop_at_clip_layer), ("v", vec!["bad".to_owned()], -2));
        let lora = v1::Lora { lora: "ink".to_owned(), strength_model: Some(0.8), strength_clip: Some(0.5) };
        assert_eq!(pipe.loras, [lora]);
        assert_eq!((prompts(&pipe.positive), prompts(&pipe.negative)), (vec!["a face"], vec!["blur"]));
        let net = v1::ControlNet {
            control_net: "canny.pth".to_owned(),
            strength: Some(0.5),
            start_percent: 0.1,
            end_percent: Some(0.9),
            advanced: true,
            image: digest("edges.png"),
        };
        assert_eq!(pipe.control_nets, [net]);
        let refiner = job.refiner_basic_pipe.unwrap();
        assert_eq!((refiner.checkpoint.as_str(), prompts(&refiner.positive)), ("refiner", vec!["fine"]));
        assert_eq!((prompts(&refiner.negative), job.refiner_ratio), (vec!["blur"], Some(0.3)));
        assert_eq!((job.guide_size, job.guide_size_for_crop_region, job.max_size), (Some(256.0), true, Some(512.0)));
        let gits = v1::GitsSchedule { coeff: Some(1.3), denoise: Some(1.0) };
        let sampler = v1::Sampler {
            seed: u64::MAX,
            steps: 5,
            cfg: Some(1.5),
            sampler_name: "heun".to_owned(),
            scheduler: "karras".to_owned(),
            denoise: Some(0.25),
            scheduler_func: Some(v1::SchedulerFunction { kind: Some(v1::scheduler_function::Kind::Gits(gits)) }),
        };
        assert_eq!(job.sampler, Some(sampler));
        assert_eq!((job.noise_mask, job.force_inpaint, job.batch_size, job.cycle), (Some(false), Some(false), 2, 3));
        assert_eq!((job.inpaint_model, job.noise_mask_feather), (true, Some(7)));
        assert_eq!(job.paste, Some(v1::SegsPaste { feather: Some(9), alpha: Some(200) }));
        let label = |label: &str| Some(v1::seg_override::Select::Label(label.to_owned()));
        let index = |index| Some(v1::seg_override::Select::Index(index));
        let text = |text: &str| Some(text.to_owned());
        let want = [
            v1::SegOverride { select: label("face"), positive: text("a smile"), ..Default::default() },
            v1::SegOverride { select: index(1), positive: text("door"), ..Default::default() },
            v1::SegOverride { select: label("face"), negative: text("teeth"), ..Default::default() },
            v1::SegOverride { select: index(2), seed: Some(7), ..Default::default() },
        ];
        assert_eq!(job.overrides, want);
        let render = job.render.unwrap();
        assert_eq!((render.precision(), render.reproducibility()), (v1::Precision::Fast, v1::Reproducibility::Mixed));
        assert_eq!((render.compute_class.as_str(), render.reference_quirks), ("cpu/candle/f32", true));
        assert_eq!(render.output.unwrap().bits, 16);
    }

    #[test]
    fn every_flag_of_the_upscalers_reaches_the_job() {
        let here = Here::new();
        let job = here.upscale(
            "segs-upscale @photo.jpg --segs @faces.json --checkpoint sd15 --rescale-factor 3 --resampling-method lanczos \
             --supersample false --rounding-modulus 64 --upscale-model 4x --tile auto --overlap 8",
        );
        let Some(v1::segs_source::Source::Segs(segs)) = job.segs.unwrap().source else { panic!("no segs") };
        assert_eq!(
            (segs.segs[0].label.as_str(), segs.segs[0].crop_region.as_slice()),
            ("face", [0, 0, 8, 8].as_slice())
        );
        assert_eq!((job.rescale_factor, job.resampling_method.as_str()), (Some(3.0), "lanczos"));
        assert_eq!((job.supersample, job.rounding_modulus, job.upscale_model.as_str()), (Some(false), 64, "4x"));
        assert_eq!(job.tile, Some(v1::TileOptions { side: 0, overlap: Some(8), auto: true }));

        let job = here.upscale(
            "segs-upscale @photo.jpg --grid --checkpoint sd15 --bbox-size 128 --min-overlap 9 --filter-in-segs @faces.json \
             --filter-segs-dilation -3 --mask-irregularity 0.5 --irregular-mask-mode Reuse~quality --irregular-mask-seed 4",
        );
        let Some(v1::segs_source::Source::Tiles(tiles)) = job.segs.unwrap().source else { panic!("no tiles") };
        assert_eq!((tiles.bbox_size, tiles.min_overlap, tiles.filter_segs_dilation), (128, Some(9), Some(-3)));
        assert_eq!((tiles.irregular_mask_mode.as_str(), tiles.seed), ("Reuse quality", 4));
        assert_eq!((tiles.filter_in_segs.unwrap().segs.len(), tiles.filter_out_segs), (1, None));

        let job = here.latent(
            "latent-upscale @start.latent --checkpoint sd15 --vae v --upscale-factor 2 --upscale-steps 4 --step-mode geometric \
             --scale-method area --use-tiled-vae --tile-size 256 --upscale-model 2x --denoise 0.4 --positive house \
             --scheduler-func 14,1,0 --mask @mask.png --mask-sampler seed=5,denoise=0.2,scheduler=karras --mask-positive door \
             --full-sample-schedule interleave1+last1 --full-sampler steps=3 --full-negative blur \
             --hook base.denoise=0.3 --hook mask.cfg=2 --hook base.steps=5 --latent-output",
        );
        assert_eq!(job.source, digest("start.latent").map(v1::latent_upscale_job::Source::Latent));
        assert_eq!((job.upscale_factor, job.steps, job.step_mode()), (Some(2.0), 4, v1::StepMode::Geometric));
        assert_eq!((job.scale_method.as_str(), job.use_tiled_vae, job.tile_size), ("area", true, 256));
        assert_eq!((job.upscale_model.as_str(), job.vae.as_str(), job.latent_output), ("2x", "v", true));
        assert_eq!((job.mask, job.full_sample_schedule.as_str()), (digest("mask.png"), "interleave1+last1"));
        let (base, mask, full) = (job.base_sampler.unwrap(), job.mask_sampler.unwrap(), job.full_sampler.unwrap());
        let hook = |target| v1::PkHook { target: Some(target) };
        let base_hooks = [hook(v1::pk_hook::Target::Denoise(0.3)), hook(v1::pk_hook::Target::Steps(5))];
        assert_eq!((base.hooks.as_slice(), full.hooks.len()), (base_hooks.as_slice(), 0));
        assert_eq!(mask.hooks, [hook(v1::pk_hook::Target::Cfg(2.0))]);
        let numbers = |piped: &v1::PipedSampler| {
            let sampler = piped.sampler.clone().unwrap();
            (sampler.seed, sampler.steps, sampler.denoise, sampler.scheduler, sampler.scheduler_func.is_some())
        };
        assert_eq!(numbers(&base), (0, 20, Some(0.4), "normal".to_owned(), true));
        assert_eq!(numbers(&mask), (5, 20, Some(0.2), "karras".to_owned(), false));
        assert_eq!(numbers(&full), (0, 3, Some(0.4), "normal".to_owned(), true));
        let (mask, full) = (mask.basic_pipe.unwrap(), full.basic_pipe.unwrap());
        assert_eq!((prompts(&mask.positive), prompts(&mask.negative)), (vec!["door"], vec![""]));
        assert_eq!((prompts(&full.positive), prompts(&full.negative)), (vec!["house"], vec!["blur"]));
        assert_eq!((mask.checkpoint.as_str(), full.vae.as_str()), ("sd15", "v"));
    }

    #[test]
    fn flags_that_mean_nothing_together_are_refused() {
        let here = Here::new();
        let refused = |line: &str, flag: &str| {
            let error = here.parse(line).unwrap_err();
            assert!(error.contains(flag), "{error}");
        };
        let detail = "segs-detail @photo.jpg --checkpoint sd15";
        refused(detail, "--grid");
        refused(&format!("{detail} --grid --mask @mask.png"), "--mask");
        refused("segs-detail @photo.jpg --grid", "--checkpoint");
        refused(&format!("{detail} --grid --combined"), "--combined");
        refused(&format!("{detail} --segs @faces.json --combined"), "--combined");
        refused(&format!("{detail} --segs @faces.json --min-overlap 5"), "--min-overlap");
        refused(&format!("{detail} --mask @mask.png --bbox-size 64"), "--bbox-size");
        refused(&format!("{detail} --segs @faces.json --crop-factor 2"), "--crop-factor");
        refused(&format!("{detail} --grid --control-image @edges.png"), "--controlnet");
        refused(&format!("{detail} --grid --refiner-ratio 0.5"), "--refiner-checkpoint");
        refused(&format!("{detail} --grid --no-paste"), "--segs-output");
        refused(&format!("{detail} --grid --no-paste --segs-output out -o a.png"), "--output");
        refused(&format!("{detail} --grid --reseed face=x"), "--reseed");
        refused(&format!("{detail} --grid --noise-mask maybe"), "--noise-mask");
        let latent = "latent-upscale @photo.jpg --checkpoint sd15";
        refused(&format!("{latent} --mask-sampler seed=1"), "--mask");
        refused(&format!("{latent} --mask @mask.png --full-sampler seed=1"), "--full-sample-schedule");
        refused(&format!("{latent} --mask @mask.png --full-sample-schedule last3"), "interleave1");

        let error = |line: &str| match here.parse(line).unwrap() {
            Command::SegsDetail(args) => detail_job(&args, None).unwrap_err().to_string(),
            Command::LatentUpscale(args) => latent_job(&args, None).unwrap_err().to_string(),
            other => panic!("{other:?}"),
        };
        assert!(error(&format!("{detail} --mask @none.png")).contains("there is no file"));
        assert!(error("segs-detail @photo.jpg --grid --checkpoint @none.safetensors").contains("there is no file"));
        let two = format!("{detail} --grid --controlnet a --controlnet b --control-image @edges.png");
        assert_eq!(
            error(&two),
            "2 --controlnet and 1 --control-image: each network needs its picture, or none has one"
        );
        let hook = format!("{latent} --hook mask.cfg=1");
        assert_eq!(error(&hook), "--hook names a sampler that is not there without --mask");
    }

    #[test]
    fn a_latent_is_told_by_its_name_and_has_its_own_extension() {
        assert!(is_latent(Path::new("a/b.latent")) && is_latent(Path::new("b.SAFETENSORS")));
        assert!(!is_latent(Path::new("b.png")));
        let check = |output: Option<&str>, want: &str| {
            assert_eq!(latent_output(Path::new("x/a.png"), output.map(Path::new), "1.5x"), Path::new(want));
        };
        check(None, "x/a@1.5x.latent");
        check(Some("out/"), "out/a.latent");
        check(Some("b.latent"), "b.latent");
    }
}
