//! `tessera upscale`: pictures in, larger pictures out.

use anyhow::{Context as _, bail};
use domain::resize::{Resize, Target};
use futures::{StreamExt as _, stream};
use proto::{convert::resize_to_wire, v1};
use serde_json::json;
use service::{config::Config, report};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;
use weights::builtin::BUILTIN;

use crate::{
    cli::{Upscale, values::TileSide},
    client::Farm,
    command::{models, run},
    embedded,
    exit::{Failure, Outcome},
    naming::{self, Errand},
    pictures::{Gathered, gather},
    progress::Progress,
    transfer, wire_json,
};

/// Pictures under way at once: enough that workers have tiles while results are put together and fetched.
const PICTURES_AT_ONCE: usize = 4;

/// What became of one picture; the worst is the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fate {
    /// Its result was there, and is not to be written over.
    Skipped,
    /// Its result is there.
    Done,
    /// The farm could not be asked, or refused.
    Refused,
    /// Its job failed or was cancelled.
    Failed,
}

/// Runs the command on the farm that the configuration names, or on one embedded in this process.
pub async fn run(args: Upscale, config: Config, context: service::Context) -> Outcome {
    let gathered = gather(&args.pictures, args.output.as_deref())?;
    let stopped = context.shutdown;
    embedded::on_farm(&config, args.job.workers, async |farm| upscale(&args, gathered, farm, &stopped).await).await
}

async fn upscale(args: &Upscale, gathered: Gathered, farm: &Farm, stopped: &CancellationToken) -> Outcome {
    let model = match &args.model {
        Some(model) => Some(models::resolve(farm, model).await?),
        None => None, // the farm's choice
    };
    let suffix = suffix(args.target(), model.as_ref());
    let errands = naming::errands(&gathered.pictures, args.output.as_deref(), args.render.format, &suffix)?;
    let progress = Progress::new(args.job.json);
    for error in &gathered.unreadable {
        progress.say(report::text(error).trim_end());
    }
    if gathered.left_out > 0 {
        progress.say(&format!(
            "left out {}",
            count(gathered.left_out, "file that is no picture", "files that are no pictures")
        ));
    }
    let digest = model.map(|model| model.digest).unwrap_or_default();
    let one = |errand: Errand| {
        let picture = Picture { args, farm, model: &digest, progress: &progress, stopped, errand };
        let span = tracing::info_span!("submit", picture = picture.name());
        async move {
            match picture.upscale().await {
                Ok(fate) => fate,
                Err(error) => {
                    run::tell(picture.progress, &picture.name(), &error);
                    Fate::Refused
                }
            }
        }
        .instrument(span)
    };
    let mut fates: Vec<Fate> = stream::iter(errands).map(one).buffer_unordered(PICTURES_AT_ONCE).collect().await;
    let skipped = fates.iter().filter(|fate| **fate == Fate::Skipped).count();
    if skipped > 0 && gathered.pictures.iter().any(|found| found.in_folder) {
        let pictures = count(skipped, "picture", "pictures");
        progress.say(&format!("skipped {pictures} whose result exists; --force writes over it"));
    }
    fates.extend(gathered.unreadable.iter().map(|_| Fate::Refused));
    let undone = fates.iter().filter(|fate| **fate > Fate::Done).count();
    if undone > 0 && fates.len() > 1 {
        progress.say(&format!("{undone} of {} pictures have no result", fates.len()));
    }
    match fates.into_iter().max() {
        None | Some(Fate::Skipped | Fate::Done) => Ok(()),
        Some(Fate::Refused) => Err(Failure::Refused),
        Some(Fate::Failed) => Err(Failure::Job),
    }
}

/// How results beside their pictures are told apart from them: by what was asked for.
fn suffix(target: Option<Target>, model: Option<&v1::Model>) -> String {
    match target {
        Some(Target::Factor(factor)) => format!("{factor}x"),
        Some(Target::Width(width)) => format!("{width}w"),
        Some(Target::Height(height)) => format!("{height}h"),
        None => {
            let default = BUILTIN.first().map_or(1, |builtin| builtin.scale);
            format!("{}x", model.map_or(default, |model| model.scale))
        }
    }
}

/// `1 picture`, `2 pictures`.
fn count(number: usize, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

/// One picture on its way.
struct Picture<'a> {
    args: &'a Upscale,
    farm: &'a Farm,
    /// The digest of a model; empty: the farm's choice.
    model: &'a str,
    progress: &'a Progress,
    stopped: &'a CancellationToken,
    errand: Errand,
}

impl Picture<'_> {
    fn name(&self) -> String {
        self.errand.input.display().to_string()
    }

    async fn upscale(&self) -> anyhow::Result<Fate> {
        let (name, output) = (self.name(), self.errand.output.display().to_string());
        if !self.args.job.force && self.errand.output.exists() {
            if !self.errand.in_folder {
                self.progress.say(&format!("{name}: skipped, because `{output}` exists; --force writes over it"));
            }
            if let Progress::Json = self.progress {
                self.progress.give("", &json!({ "name": name, "output": output, "skipped": true }));
            }
            return Ok(Fate::Skipped);
        }
        let digest = tokio::select! {
            digest = transfer::upload(self.farm, &self.errand.input) => digest?,
            () = self.stopped.cancelled() => return Ok(Fate::Failed),
        };
        let request = request(self.args, self.model, &self.errand, digest);
        let cannot = || format!("cannot upscale `{name}`");
        let ended = run::to_its_end(self.farm, &name, request, self.progress, self.stopped).await;
        let Some(job) = ended.with_context(cannot)? else { return Ok(Fate::Failed) };
        let made = job.outputs.first().context("the job succeeded without a result")?;
        let artifact = made.artifact.as_ref().context("the result has no artifact")?;
        transfer::download(self.farm, artifact, &self.errand.output).await?;
        let Some(v1::job::Kind::Upscale(upscale)) = &job.kind else { bail!("the job is no upscaling") };
        let upscale = wire_json::show("ResolvedUpscale", upscale);
        let value = json!({
            "name": name,
            "job": job.id,
            "output": output,
            "upscale_model": upscale["upscale_model"],
            "tile_side": upscale["tile_side"],
            "tile_overlap": upscale["tile_overlap"],
            "precision": upscale["precision"],
            "compute_class": upscale["compute_class"],
            "result": wire_json::show("JobOutput", made),
        });
        self.progress.give(&output, &value);
        Ok(Fate::Done)
    }
}

fn request(args: &Upscale, model: &str, errand: &Errand, digest: String) -> v1::CreateJobRequest {
    let (side, auto) = match args.tiling.tile {
        TileSide::Pixels(side) => (side, false),
        TileSide::Auto => (0, true),
    };
    let name = errand.input.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let upscale = v1::UpscaleJob {
        pictures: vec![v1::PictureSource { name, source: Some(v1::picture_source::Source::Digest(digest)) }],
        upscale_model: model.to_owned(),
        tile: Some(v1::TileOptions { side, overlap: Some(args.tiling.overlap), auto }),
        precision: v1::Precision::from(args.precision).into(),
        reproducibility: v1::Reproducibility::from(args.render.reproducibility).into(),
        compute_class: args.render.class.clone().unwrap_or_default(),
        output: Some(v1::OutputOptions {
            format: errand.format.map(|format| format.name().to_owned()).unwrap_or_default(),
            bits: args.render.bits.unwrap_or(0),
            quality: args.render.quality,
        }),
        resize: args.target().map(|target| resize_to_wire(Resize { target, method: args.method.unwrap_or_default() })),
    };
    v1::CreateJobRequest {
        labels: args.job.labels.iter().cloned().collect(),
        priority: v1::Priority::from(args.job.priority).into(),
        kind: Some(v1::create_job_request::Kind::Upscale(upscale)),
        ..Default::default()
    }
}
