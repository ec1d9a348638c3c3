//! `tessera jobs`: what the farm has to do, and how far it is.

use std::path::Path;

use anyhow::Context as _;
use domain::{
    picture::Format,
    resize::{Resize, Target},
};
use proto::{
    convert::precision_from_wire,
    v1::{self, JobState},
};
use serde_json::json;
use service::config::Config;

use crate::{
    cli::values::{Masks, State},
    client::{Farm, call},
    exit::{Failure, Outcome},
    naming, output,
    progress::{self, Progress, span},
    segs_file::Writing,
    transfer, watch, wire_json,
};

/// Jobs per page.
const PAGE: u32 = 200;

/// Lists jobs, the newest first, `limit` of them at most.
pub async fn list(states: &[State], limit: usize, json: bool, config: Config) -> Outcome {
    let farm = Farm::configured(&config).await?;
    let states: Vec<i32> = states.iter().map(|state| wire_state(*state).into()).collect();
    let mut jobs = Vec::new();
    let mut page_token = String::new();
    loop {
        let wanted = u32::try_from(limit - jobs.len()).unwrap_or(PAGE).min(PAGE);
        if wanted == 0 {
            break;
        }
        let answer = call("ListJobs", || {
            let request =
                v1::ListJobsRequest { page_size: wanted, page_token: page_token.clone(), states: states.clone() };
            let mut jobs = farm.jobs.clone();
            async move { jobs.list_jobs(request).await }
        })
        .await?;
        jobs.extend(answer.jobs);
        if answer.next_page_token.is_empty() {
            break;
        }
        page_token = answer.next_page_token;
    }
    if json {
        output::json(&jobs.iter().map(|job| wire_json::show("Job", job)).collect());
        return Ok(());
    }
    let rows: Vec<_> = jobs.iter().map(row).collect();
    output::table(["JOB", "STATE", "TASKS", "CREATED", "PICTURES", "LABELS"], &rows);
    Ok(())
}

fn wire_state(state: State) -> JobState {
    match state {
        State::Queued => JobState::Queued,
        State::Running => JobState::Running,
        State::Succeeded => JobState::Succeeded,
        State::Failed => JobState::Failed,
        State::Cancelled => JobState::Cancelled,
    }
}

fn row(job: &v1::Job) -> [String; 6] {
    let progress = job.progress.unwrap_or_default();
    let pictures = match &job.kind {
        Some(v1::job::Kind::Upscale(upscale)) => upscale.pictures.as_slice(),
        Some(v1::job::Kind::SegsDetail(job) | v1::job::Kind::SegsUpscale(job) | v1::job::Kind::LatentUpscale(job)) => {
            job.picture.as_slice()
        }
        None => &[],
    };
    let pictures = match pictures {
        [] => String::new(),
        [one] => one.name.clone(),
        [first, others @ ..] => format!("{} and {} more", first.name, others.len()),
    };
    [
        job.id.clone(),
        watch::word(job.state()).to_owned(),
        format!("{}/{}", progress.tasks_done, progress.tasks_total),
        moment(job.created_at.as_ref()),
        pictures,
        labels(job),
    ]
}

fn labels(job: &v1::Job) -> String {
    let mut labels: Vec<_> = job.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    labels.sort();
    labels.join(" ")
}

/// A moment in UTC, to the second.
pub fn moment(time: Option<&prost_types::Timestamp>) -> String {
    let time = time.and_then(|time| jiff::Timestamp::from_second(time.seconds).ok());
    time.map(|time| time.to_string()).unwrap_or_default()
}

/// Shows a job.
pub async fn get(id: &str, json: bool, config: Config) -> Outcome {
    let job = Farm::configured(&config).await?.job(id).await?;
    show(&job, json);
    Ok(())
}

/// Cancels a job, and shows it.
pub async fn cancel(id: &str, json: bool, config: Config) -> Outcome {
    let job = Farm::configured(&config).await?.cancel(id).await?;
    show(&job, json);
    Ok(())
}

/// Runs again what failed, and shows the job.
pub async fn retry(id: &str, json: bool, config: Config) -> Outcome {
    let farm = Farm::configured(&config).await?;
    let answer = call("RetryJob", || {
        let (mut jobs, job_id) = (farm.jobs.clone(), id.to_owned());
        async move { jobs.retry_job(v1::RetryJobRequest { job_id }).await }
    });
    show(&answer.await?.job.context("the server sent no job")?, json);
    Ok(())
}

/// Follows a job to its end.
pub async fn watch(id: &str, json: bool, config: Config) -> Outcome {
    follow(&Farm::configured(&config).await?, id, json).await
}

/// Follows a job of `farm` to its end, showing its progress; a job that does not succeed is a failure.
pub async fn follow(farm: &Farm, id: &str, json: bool) -> Outcome {
    let progress = Progress::new(json);
    let mut shown = progress.job(id, id);
    let job = watch::follow(farm, id, |event| shown.see(event)).await?;
    drop(shown);
    if !json {
        for line in watch::afterwords(&job) {
            eprintln!("{line}");
        }
        output::line(&format!("{} {}", job.id, watch::word(job.state())));
    }
    if job.state() == JobState::Succeeded { Ok(()) } else { Err(Failure::Job) }
}

/// Downloads the results of a finished job into `folder`.
pub async fn fetch(id: &str, folder: &Path, force: bool, json: bool, config: Config) -> Outcome {
    let farm = Farm::configured(&config).await?;
    let job = farm.job(id).await?;
    if job.state() != JobState::Succeeded {
        eprintln!("job {} is {} and has no results", job.id, watch::word(job.state()));
        return Err(Failure::Job);
    }
    let mut taken = std::collections::BTreeSet::new();
    for made in &job.outputs {
        let path = folder.join(file_name(made, &mut taken));
        let artifact = made.artifact.as_ref().context("a result has no artifact")?;
        let skipped = !force && path.exists();
        if skipped {
            eprintln!("skipped, because `{}` exists; --force writes over it", path.display());
        } else if made.format == "segs" {
            Writing::to(&path, Masks::Png, force)?.download(&farm, artifact).await?;
        } else {
            transfer::download(&farm, artifact, &path).await?;
        }
        if json {
            let result = wire_json::show("JobOutput", made);
            output::json_line(&json!({ "output": path.display().to_string(), "skipped": skipped, "result": result }));
        } else if !skipped {
            output::line(&path.display().to_string());
        }
    }
    Ok(())
}

/// What a result is called: the last part of its picture's name, with its own extension, and a number if it is taken.
fn file_name(made: &v1::JobOutput, taken: &mut std::collections::BTreeSet<String>) -> String {
    let name = made.name.rsplit(['/', '\\']).next().unwrap_or_default().trim_start_matches('.');
    let (stem, own) = name.rsplit_once('.').unwrap_or((name, ""));
    let stem = if stem.is_empty() { "result" } else { stem };
    let format = made.format.parse::<Format>().ok();
    let extension = match (format, made.format.as_str()) {
        (Some(format), _) if Format::from_extension(own) != Some(format) => naming::extension(format),
        (None, "segs") => "segs.json",
        (None, "latent") => "latent",
        _ => own,
    };
    let mut name = format!("{stem}.{extension}");
    let mut number = 2;
    while !taken.insert(name.clone()) {
        name = format!("{stem}-{number}.{extension}");
        number += 1;
    }
    name
}

/// `to 1.5x by lanczos`.
fn resizing(resize: Resize) -> String {
    let target = match resize.target {
        Target::Factor(factor) => format!("{factor}x"),
        Target::Width(width) => format!("a width of {width}"),
        Target::Height(height) => format!("a height of {height}"),
    };
    format!("to {target} by {}", resize.method.name())
}

fn show(job: &v1::Job, json: bool) {
    if json {
        return output::json(&wire_json::show("Job", job));
    }
    let progress = job.progress.unwrap_or_default();
    let mut lines = vec![
        ("job", job.id.clone()),
        ("state", watch::word(job.state()).to_owned()),
        (
            progress::unit(job),
            format!(
                "{}/{} done, {} found, {} running, {} failed",
                progress.tasks_done,
                progress.tasks_total,
                progress.tasks_found,
                progress.tasks_running,
                progress.tasks_failed
            ),
        ),
        ("created", moment(job.created_at.as_ref())),
    ];
    if job.finished_at.is_some() {
        lines.push(("finished", moment(job.finished_at.as_ref())));
    }
    if job.deadline.is_some() {
        lines.push(("deadline", moment(job.deadline.as_ref())));
    }
    if let Some(remaining) = &progress.remaining {
        lines.push(("left", span(u64::try_from(remaining.seconds).unwrap_or(0))));
    }
    if !job.labels.is_empty() {
        lines.push(("labels", labels(job)));
    }
    if let Some(v1::job::Kind::Upscale(upscale)) = &job.kind {
        let pictures = upscale.pictures.iter();
        lines.extend(
            pictures.map(|picture| ("picture", format!("{} {}x{}", picture.name, picture.width, picture.height))),
        );
        lines.push(("model", format!("{} ({}x)", upscale.upscale_model, upscale.scale)));
        if let Some(Ok(resize)) = upscale.resize.map(Resize::try_from) {
            lines.push(("resize", resizing(resize)));
        }
        lines.push(("tile", format!("{} pixels, overlap {}", upscale.tile_side, upscale.tile_overlap)));
        if let Ok(Some(precision)) = precision_from_wire("precision", upscale.precision) {
            lines.push(("precision", precision.name().to_owned()));
        }
        lines.push(("class", upscale.compute_class.clone()));
    }
    if let Some(v1::job::Kind::SegsDetail(job) | v1::job::Kind::SegsUpscale(job) | v1::job::Kind::LatentUpscale(job)) =
        &job.kind
    {
        if let Some(picture) = &job.picture {
            lines.push(("picture", format!("{} {}x{}", picture.name, picture.width, picture.height)));
        }
        lines.push(("model", format!("{} ({})", job.checkpoint, job.family)));
        if job.segs > 0 {
            lines.push(("segments", job.segs.to_string()));
        }
        lines.push(("size", format!("{}x{}", job.width, job.height)));
        if let Ok(Some(precision)) = precision_from_wire("precision", job.precision) {
            lines.push(("precision", precision.name().to_owned()));
        }
        lines.push(("class", job.compute_class.clone()));
    }
    for made in &job.outputs {
        let digest = made.artifact.as_ref().map(|artifact| artifact.digest.as_str()).unwrap_or_default();
        lines.push(("result", format!("{} {}x{} {} {digest}", made.name, made.width, made.height, made.format)));
    }
    if !job.trace_id.is_empty() {
        lines.push(("trace", job.trace_id.clone()));
    }
    for (name, value) in lines {
        output::line(&format!("{name:9} {value}"));
    }
    for line in watch::afterwords(job) {
        output::line(&line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_never_leaves_its_folder_and_never_meets_another() {
        let mut taken = std::collections::BTreeSet::new();
        let mut name = |name: &str, format: &str| {
            let made = v1::JobOutput { name: name.to_owned(), format: format.to_owned(), ..Default::default() };
            file_name(&made, &mut taken)
        };
        assert_eq!(name("a/b.jpg", "png"), "b.png");
        assert_eq!(name("b.png", "png"), "b-2.png");
        assert_eq!(name("c.JPEG", "jpeg"), "c.JPEG");
        assert_eq!(name("../..", "png"), "result.png");
        assert_eq!(name("picture 1", "tiff"), "picture 1.tif");
        assert_eq!(name("faces.jpg", "segs"), "faces.segs.json");
        assert_eq!(name("faces.jpg", "latent"), "faces.latent");
    }

    #[test]
    fn moments_are_shown_in_utc() {
        let time = prost_types::Timestamp { seconds: 1_795_255_200, nanos: 5 };
        assert_eq!(moment(Some(&time)), "2026-11-21T10:00:00Z");
        assert_eq!(moment(None), "");
    }
}
