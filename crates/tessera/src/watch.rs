//! Following a job to its end.

use std::{cell::Cell, ops::ControlFlow};

use anyhow::Context as _;
use proto::v1::{self, JobState, job_event::Event};
use tonic::{Response, Status, Streaming};

use crate::client::{Farm, call, is_passing, refused};

/// Whether nothing more will happen to a job in this state.
pub fn is_over(state: JobState) -> bool {
    match state {
        JobState::Succeeded | JobState::Failed | JobState::Cancelled => true,
        JobState::Queued | JobState::Running | JobState::Unspecified => false,
    }
}

/// The word for a state.
pub fn word(state: JobState) -> &'static str {
    match state {
        JobState::Unspecified => "unknown",
        JobState::Queued => "queued",
        JobState::Running => "running",
        JobState::Succeeded => "succeeded",
        JobState::Failed => "failed",
        JobState::Cancelled => "cancelled",
    }
}

/// Follows the job `id` until it ends, tells `see` each event, and returns the job as it ended.
///
/// A coordinator that goes away is waited for, and no event is told twice.
pub async fn follow(farm: &Farm, id: &str, mut see: impl FnMut(&v1::JobEvent)) -> anyhow::Result<v1::Job> {
    let seen = Cell::new(0);
    let open = || {
        let (mut jobs, job_id, after_sequence) = (farm.jobs.clone(), id.to_owned(), seen.get());
        async move { jobs.watch_job(v1::WatchJobRequest { job_id, after_sequence }).await }
    };
    let take = |answer: v1::WatchJobResponse| {
        let event = answer.event.context("the server sent no event")?;
        seen.set(event.sequence.max(seen.get()));
        see(&event);
        Ok(ControlFlow::Continue(()))
    };
    Ok(until_over(farm, id, "WatchJob", open, take).await?.expect("nothing but the job's end is enough"))
}

/// Shows `see` what the job `id` looks like, or `tasks` of it if there are any, until it ends or `see` has seen enough;
/// returns the job if it ended. A coordinator that goes away is waited for.
pub async fn previews(
    farm: &Farm,
    id: &str,
    tasks: &[u64],
    see: impl FnMut(v1::WatchPreviewsResponse) -> anyhow::Result<ControlFlow<()>>,
) -> anyhow::Result<Option<v1::Job>> {
    let open = || {
        let (mut jobs, job_id, tasks) = (farm.jobs.clone(), id.to_owned(), tasks.to_owned());
        async move { jobs.watch_previews(v1::WatchPreviewsRequest { job_id, tasks }).await }
    };
    until_over(farm, id, "WatchPreviews", open, see).await
}

/// Hands what the streams of the call `name` bring to `take` until the job `id` ends, which is returned, or `take` has
/// enough.
async fn until_over<M, F>(
    farm: &Farm,
    id: &str,
    name: &'static str,
    open: impl Fn() -> F,
    mut take: impl FnMut(M) -> anyhow::Result<ControlFlow<()>>,
) -> anyhow::Result<Option<v1::Job>>
where
    F: Future<Output = Result<Response<Streaming<M>>, Status>>,
{
    loop {
        let mut stream = call(name, &open).await?;
        loop {
            match stream.message().await {
                Ok(Some(message)) => {
                    if take(message)?.is_break() {
                        return Ok(None);
                    }
                }
                Ok(None) => {
                    let job = farm.job(id).await?;
                    if is_over(job.state()) {
                        return Ok(Some(job));
                    }
                    break; // the stream ended before the job did: the coordinator is leaving
                }
                Err(status) if is_passing(&status) => {
                    tracing::warn!(job.id = id, error = status.message(), "lost sight of the job, looking again");
                    break;
                }
                Err(status) => return Err(refused(&status)),
            }
        }
        // A coordinator that says farewell at once is given time to be replaced.
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    }
}

/// The lines that say why a job did not succeed, and what else is worth knowing.
pub fn afterwords(job: &v1::Job) -> Vec<String> {
    let mut lines: Vec<String> = job.warnings.iter().map(|warning| format!("warning: {warning}")).collect();
    for failure in &job.failures {
        let worker = if failure.worker.is_empty() { String::new() } else { format!(" on {}", failure.worker) };
        lines.push(format!(
            "  cause: {} failed{worker}, attempt {}: {}",
            failure.description, failure.attempt, failure.message
        ));
    }
    lines
}

/// What an event says in a few words, if it says more than how far the job is.
pub fn words(event: &v1::JobEvent) -> Option<String> {
    match event.event.as_ref()? {
        Event::TaskFailed(failed) => {
            let failure = failed.failure.clone().unwrap_or_default();
            let next = if failed.will_retry { "it will be tried again" } else { "for good" };
            Some(format!("{} failed, {next}: {}", failure.description, failure.message))
        }
        Event::Replanned(replanned) => Some(format!(
            "a device ran out of memory: tiles of {} pixels become tiles of {}",
            replanned.old_tile_side, replanned.new_tile_side
        )),
        Event::Snapshot(_) | Event::TaskFinished(_) | Event::TaskProgressed(_) => None,
    }
}
