//! `tessera upscale`: pictures in, larger pictures out.

use anyhow::{Context as _, anyhow, bail};
use domain::resize::{Resize, Target};
use futures::{StreamExt as _, stream};
use proto::{
    convert::resize_to_wire,
    v1::{self, JobState},
};
use serde_json::json;
use service::{config::Config, report};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;
use weights::builtin::BUILTIN;

use crate::{
    cli::{Precision, Priority, Reproducibility, TileSide, Upscale},
    client::Farm,
    command::models,
    embedded::{self, Embedded},
    exit::{Failure, Outcome},
    naming::{self, Errand},
    pictures::{Gathered, gather},
    progress::Progress,
    transfer, watch, wire_json,
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
    if let Some(server) = &config.client.server {
        return upscale(&args, gathered, &Farm::connect(server).await?, &stopped).await;
    }
    let mut embedded = Embedded::start(&config, args.workers).await?;
    let server = embedded.server();
    let outcome = tokio::select! {
        outcome = async { upscale(&args, gathered, &embedded::connect(&server).await?, &stopped).await } => outcome,
        error = embedded.failed() => Err(error.into()),
    };
    let ended = embedded.stop().await;
    outcome.and(ended.map_err(Failure::from))
}

async fn upscale(args: &Upscale, gathered: Gathered, farm: &Farm, stopped: &CancellationToken) -> Outcome {
    let model = match &args.model {
        Some(model) => Some(models::resolve(farm, model).await?),
        None => None, // the farm's choice
    };
    let suffix = suffix(args.target(), model.as_ref());
    let errands = naming::errands(&gathered.pictures, args.output.as_deref(), args.format, &suffix)?;
    let progress = Progress::new(args.json);
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
                    picture.tell(&error);
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

    /// Says on stderr why there is no result, and on stdout too where a program listens.
    fn tell(&self, error: &anyhow::Error) {
        self.progress.say(report::text(error).trim_end());
        if let Progress::Json = self.progress {
            let error = report::causes(error).join(": ");
            self.progress.give("", &json!({ "name": self.name(), "error": error }));
        }
    }

    async fn upscale(&self) -> anyhow::Result<Fate> {
        let (name, output) = (self.name(), self.errand.output.display().to_string());
        if !self.args.force && self.errand.output.exists() {
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
        let job = self.farm.create(request).await.with_context(|| format!("cannot upscale `{name}`"))?;
        let mut shown = self.progress.job(&name, &job.id);
        let followed = tokio::select! {
            job = watch::follow(self.farm, &job.id, |event| shown.see(event)) => Some(job?),
            () = self.stopped.cancelled() => None,
        };
        drop(shown);
        let Some(job) = followed else {
            self.farm.cancel(&job.id).await?;
            self.progress.say(&format!("{name}: cancelled; the same command goes on with what is rendered already"));
            return Ok(Fate::Failed);
        };
        for line in watch::afterwords(&job) {
            self.progress.say(&format!("{name}: {}", line.trim_start()));
        }
        if job.state() != JobState::Succeeded {
            let error =
                anyhow!("job {} {}", job.id, watch::word(job.state())).context(format!("no result for `{name}`"));
            self.tell(&error);
            return Ok(Fate::Failed);
        }
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
    let (side, auto) = match args.tile {
        TileSide::Pixels(side) => (side, false),
        TileSide::Auto => (0, true),
    };
    let name = errand.input.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let upscale = v1::UpscaleJob {
        pictures: vec![v1::PictureSource { name, source: Some(v1::picture_source::Source::Digest(digest)) }],
        upscale_model: model.to_owned(),
        tile: Some(v1::TileOptions { side, overlap: Some(args.overlap), auto }),
        precision: match args.precision {
            Precision::Exact => v1::Precision::Exact,
            Precision::Fast => v1::Precision::Fast,
        }
        .into(),
        reproducibility: match args.reproducibility {
            Reproducibility::SameClass => v1::Reproducibility::SameClass,
            Reproducibility::Mixed => v1::Reproducibility::Mixed,
        }
        .into(),
        compute_class: args.class.clone().unwrap_or_default(),
        output: Some(v1::OutputOptions {
            format: errand.format.map(|format| format.name().to_owned()).unwrap_or_default(),
            bits: args.bits.unwrap_or(0),
            quality: args.quality,
        }),
        resize: args.target().map(|target| resize_to_wire(Resize { target, method: args.method.unwrap_or_default() })),
    };
    v1::CreateJobRequest {
        labels: args.labels.iter().cloned().collect(),
        priority: match args.priority {
            Priority::Low => v1::Priority::Low,
            Priority::Normal => v1::Priority::Normal,
            Priority::High => v1::Priority::High,
        }
        .into(),
        kind: Some(v1::create_job_request::Kind::Upscale(upscale)),
        ..Default::default()
    }
}
