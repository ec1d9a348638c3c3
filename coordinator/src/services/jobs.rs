//! The service `Jobs`.

use std::{
    hash::{DefaultHasher, Hash as _, Hasher as _},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use domain::job::{JobId, JobKind, JobState, Timestamp};
use futures::Stream;
use proto::{
    convert::{
        InvalidField, job_to_wire, millis_to_wire, output_to_wire, state_from_wire, state_to_wire, timestamp_to_wire,
    },
    v1::{self, jobs_server::Jobs},
};
use service::telemetry;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use tracing::{Instrument as _, info_span};

use super::follow;
use crate::{
    desk::{Desk, now},
    forecast::{self, MOST_DRAWN, WORKERS, forecast},
    intake::{Intake, Planned, job_id},
    ledger::{Entry, Event, Failure, Notice, Numbered, Progress},
    metrics::Metrics,
    previews::Previews,
    records::Records,
    refusal::Refusal,
};

/// The shortest time between two looks of a watcher at the ledger.
const WATCH_PAUSE: Duration = Duration::from_millis(50);

/// The most events sent after one look.
const EVENTS_AT_ONCE: usize = 1024;

/// Renders pictures.
#[derive(Debug, Clone)]
pub struct JobsService {
    /// Who decides.
    pub desk: Arc<Desk>,
    /// Who checks.
    pub intake: Arc<Intake>,
    /// Who shows them while they are rendered.
    pub previews: Previews,
    /// Where jobs are kept.
    pub records: Records,
    /// The farm's name.
    pub farm: String,
    /// Jobs that may wait or run at once.
    pub max_active_jobs: usize,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// When streams end.
    pub shutdown: CancellationToken,
    /// One call at a time begins or retries a job.
    pub turns: Turns,
}

/// Locks by job. There are fewer locks than jobs, so that two jobs may now and then wait for each other.
#[derive(Debug, Clone)]
pub struct Turns(Arc<[Arc<tokio::sync::Mutex<()>>]>);

impl Default for Turns {
    fn default() -> Self {
        Self((0..1024).map(|_| Arc::default()).collect())
    }
}

impl Turns {
    /// Waits until nobody else begins or retries the job.
    async fn of(&self, id: &JobId) -> tokio::sync::OwnedMutexGuard<()> {
        let mut hasher = DefaultHasher::new();
        id.hash(&mut hasher);
        let index = hasher.finish() as usize % self.0.len();
        self.0[index].clone().lock_owned().await
    }
}

impl JobsService {
    /// Creates a job. Goes on when the caller hangs up: half a job would be none.
    async fn create(self, request: v1::CreateJobRequest, traceparent: Option<String>) -> Result<v1::Job, Refusal> {
        let id = job_id(&self.farm, &request.request_id);
        let creating = async move {
            let _turn = self.turns.of(&id).await;
            match self.shown(&id) {
                Some(job) => Ok(job),
                None => self.accept(id, request, traceparent).await,
            }
        };
        tokio::spawn(creating.in_current_span())
            .await
            .unwrap_or_else(|error| Err(Refusal::Internal { what: "intake stopped".to_owned(), source: error.into() }))
    }

    async fn accept(
        &self,
        id: JobId,
        request: v1::CreateJobRequest,
        traceparent: Option<String>,
    ) -> Result<v1::Job, Refusal> {
        let active = self.desk.read(|ledger| ledger.active());
        if active >= self.max_active_jobs {
            let why = format!("{active} jobs wait or run, and `max_active_jobs` allows no more");
            return Err(Refusal::Exhausted { why });
        }
        let job = self.intake.resolve(id.clone(), request, traceparent).await?;
        let Planned { job, plan, found, outputs } = self.intake.plan(job).instrument(info_span!("plan")).await?;
        self.records.put_job(&job).await?;
        let (tasks, found_count) = (plan.tasks().len(), found.len());
        tracing::info!(job.id = %job.id, task.count = tasks, task.found = found_count, "planned job");
        self.metrics.created();
        self.desk.apply(Event::Admitted { job: Box::new(job), plan, found, outputs });
        self.shown(&id).ok_or_else(|| gone(&id))
    }

    /// Plans a job without running it.
    async fn plan(&self, request: v1::PlanJobRequest) -> Result<v1::PlanJobResponse, Refusal> {
        let v1::PlanJobRequest { job, workers, dot } = request;
        if let Some(wrong) = workers.iter().find(|workers| !(1..=1_000_000).contains(*workers)) {
            return Err(Refusal::field("workers", format!("holds {wrong}, and 1 to 1000000 is wanted")));
        }
        let workers = if workers.is_empty() { WORKERS.to_vec() } else { workers };
        let job = match job {
            Some(v1::plan_job_request::Job::JobId(id)) => {
                let id = self.parse(&id)?;
                self.records.job(&id).await?.ok_or_else(|| gone(&id))?
            }
            Some(v1::plan_job_request::Job::Request(request)) => {
                self.intake.resolve(job_id(&self.farm, &request.request_id), request, None).await?
            }
            None => return Err(Refusal::field("job", "is missing: name a job, or describe one")),
        };
        let planned = self.intake.plan(job).await?;
        let tasks = planned.plan.tasks().len();
        if dot && tasks > MOST_DRAWN {
            let why = format!("asks for a graph of {tasks} tasks, and {MOST_DRAWN} is the most that is drawn");
            return Err(Refusal::field("dot", why));
        }
        let crew = self.intake.roster.crew(forecast::place(&planned.plan), now());
        let forecast = tokio::task::spawn_blocking(move || forecast(&planned, &crew, &workers, dot));
        forecast
            .await
            .map_err(|error| Refusal::Internal { what: "the planner stopped".to_owned(), source: error.into() })
    }

    fn shown(&self, id: &JobId) -> Option<v1::Job> {
        self.desk.read(|ledger| ledger.job(id).map(show))
    }

    fn parse(&self, id: &str) -> Result<JobId, Refusal> {
        let id: JobId = id.parse().map_err(InvalidField::at("job_id"))?;
        match self.desk.read(|ledger| ledger.job(&id).is_some()) {
            true => Ok(id),
            false => Err(gone(&id)),
        }
    }

    async fn retry(&self, id: &JobId) -> Result<v1::Job, Refusal> {
        let _turn = self.turns.of(id).await;
        let state = self.desk.read(|ledger| ledger.job(id).map(|entry| entry.state)).ok_or_else(|| gone(id))?;
        match state {
            JobState::Queued | JobState::Running => {}
            JobState::Succeeded => {
                return Err(Refusal::Precondition {
                    why: format!("job {id} succeeded: there is nothing to run again"),
                });
            }
            JobState::Failed | JobState::Cancelled => {
                // Until its ending is stored, a job that ended a moment ago must not be run again: the ending would
                // come after it.
                if !self.desk.settled().await {
                    return Err(leaving());
                }
                let job = self.records.job(id).await?.ok_or_else(|| gone(id))?;
                if job.deadline.is_some_and(|deadline| deadline <= now()) {
                    let why = format!("the deadline of job {id} has passed: submit it again with another");
                    return Err(Refusal::Precondition { why });
                }
                self.intake.restore(&job).await?;
                let Planned { job, plan, found, outputs } = self.intake.plan(job).await?;
                self.records.delete_ending(id).await?;
                tracing::info!(job.id = %id, task.count = plan.tasks().len(), task.found = found.len(), "runs again");
                self.desk.apply(Event::Admitted { job: Box::new(job), plan, found, outputs });
            }
        }
        self.shown(id).ok_or_else(|| gone(id))
    }
}

fn leaving() -> Refusal {
    Refusal::Unavailable { what: "the coordinator", source: "it is shutting down; try again".into() }
}

fn gone(id: &JobId) -> Refusal {
    Refusal::NotFound { field: "job_id".to_owned(), what: format!("job {id}") }
}

#[tonic::async_trait]
impl Jobs for JobsService {
    async fn create_job(
        &self,
        request: Request<v1::CreateJobRequest>,
    ) -> Result<Response<v1::CreateJobResponse>, Status> {
        let span = info_span!("create_job");
        follow(&span, request.metadata());
        let traceparent = telemetry::traceparent_of(&span);
        let job = self.clone().create(request.into_inner(), traceparent).instrument(span).await?;
        Ok(Response::new(v1::CreateJobResponse { job: Some(job) }))
    }

    async fn get_job(&self, request: Request<v1::GetJobRequest>) -> Result<Response<v1::GetJobResponse>, Status> {
        let id = self.parse(&request.into_inner().job_id)?;
        Ok(Response::new(v1::GetJobResponse { job: self.shown(&id) }))
    }

    async fn list_jobs(&self, request: Request<v1::ListJobsRequest>) -> Result<Response<v1::ListJobsResponse>, Status> {
        let v1::ListJobsRequest { page_size, page_token, states } = request.into_inner();
        let states = states.into_iter().map(|state| state_from_wire("states", state));
        let states: Vec<JobState> = states.collect::<Result<_, _>>().map_err(Refusal::from)?;
        let after = match page_token.as_str() {
            "" => None,
            token => Some(parse_token(token)?),
        };
        let size = if page_size == 0 { 50 } else { page_size.min(1000) as usize };
        let (jobs, next) = self.desk.read(|ledger| {
            let wanted = |entry: &&Entry| states.is_empty() || states.contains(&entry.state);
            let mut entries: Vec<&Entry> = ledger.jobs().filter(wanted).collect();
            // The newest first; the id settles ties, so that pages neither overlap nor skip.
            let place = |entry: &Entry| (std::cmp::Reverse(entry.job.created), entry.job.id.clone());
            entries.sort_by_cached_key(|entry| place(entry));
            let start = after.map_or(0, |(created, id)| {
                let after = (std::cmp::Reverse(created), id);
                entries.partition_point(|entry| place(entry) <= after)
            });
            let page: Vec<_> = entries.iter().skip(start).take(size).copied().collect();
            let more = start + page.len() < entries.len();
            let next = page.last().filter(|_| more).map(|entry| format!("{}.{}", entry.job.created.0, entry.job.id));
            let brief = |entry: &&Entry| v1::Job { outputs: Vec::new(), failures: Vec::new(), ..show(entry) };
            (page.iter().map(brief).collect(), next.unwrap_or_default())
        });
        Ok(Response::new(v1::ListJobsResponse { jobs, next_page_token: next }))
    }

    type WatchJobStream = Pin<Box<dyn Stream<Item = Result<v1::WatchJobResponse, Status>> + Send>>;

    async fn watch_job(&self, request: Request<v1::WatchJobRequest>) -> Result<Response<Self::WatchJobStream>, Status> {
        let v1::WatchJobRequest { job_id, after_sequence } = request.into_inner();
        let id = self.parse(&job_id)?;
        let (sender, receiver) = tokio::sync::mpsc::channel(EVENTS_AT_ONCE);
        let (desk, shutdown) = (self.desk.clone(), self.shutdown.clone());
        tokio::spawn(async move {
            let mut changes = desk.changes();
            let mut seen = after_sequence;
            loop {
                let (events, over) = desk.read(|ledger| events_after(ledger.job(&id), seen));
                for event in events {
                    seen = event.sequence;
                    if sender.send(Ok(v1::WatchJobResponse { event: Some(event) })).await.is_err() {
                        return; // nobody listens any more
                    }
                }
                if over {
                    return;
                }
                tokio::select! {
                    changed = changes.changed() => if changed.is_err() { return },
                    () = sender.closed() => return,
                    () = shutdown.cancelled() => {
                        let leaving = Status::unavailable("the coordinator is shutting down; watch again");
                        let _ = sender.send(Err(leaving)).await;
                        return;
                    }
                }
                tokio::time::sleep(WATCH_PAUSE).await;
            }
        });
        Ok(Response::new(Box::pin(tokio_stream::wrappers::ReceiverStream::new(receiver))))
    }

    type WatchPreviewsStream = Pin<Box<dyn Stream<Item = Result<v1::WatchPreviewsResponse, Status>> + Send>>;

    async fn watch_previews(
        &self,
        request: Request<v1::WatchPreviewsRequest>,
    ) -> Result<Response<Self::WatchPreviewsStream>, Status> {
        let v1::WatchPreviewsRequest { job_id, tasks } = request.into_inner();
        let id = self.parse(&job_id)?;
        self.desk.read(|ledger| ledger.job(&id).map_or(Ok(()), |entry| can_be_seen(entry, &tasks)))?;
        let receiver = self.previews.clone().watch(id, tasks.into_iter().collect()).await?;
        Ok(Response::new(Box::pin(tokio_stream::wrappers::ReceiverStream::new(receiver))))
    }

    async fn cancel_job(
        &self,
        request: Request<v1::CancelJobRequest>,
    ) -> Result<Response<v1::CancelJobResponse>, Status> {
        let id = self.parse(&request.into_inner().job_id)?;
        self.desk.apply(Event::Cancelled(id.clone()));
        if !self.desk.settled().await {
            return Err(leaving().into());
        }
        Ok(Response::new(v1::CancelJobResponse { job: self.shown(&id) }))
    }

    async fn plan_job(&self, request: Request<v1::PlanJobRequest>) -> Result<Response<v1::PlanJobResponse>, Status> {
        Ok(Response::new(self.plan(request.into_inner()).await?))
    }

    async fn retry_job(&self, request: Request<v1::RetryJobRequest>) -> Result<Response<v1::RetryJobResponse>, Status> {
        let id = self.parse(&request.into_inner().job_id)?;
        let job = self.retry(&id).await?;
        Ok(Response::new(v1::RetryJobResponse { job: Some(job) }))
    }
}

/// Refuses to show what cannot be seen before it is done, and `tasks` that there are not.
fn can_be_seen(entry: &Entry, tasks: &[u64]) -> Result<(), Refusal> {
    let (id, total) = (&entry.job.id, entry.progress().total);
    match &entry.job.kind {
        JobKind::SegsDetail(_) | JobKind::SegsUpscale(_) | JobKind::LatentUpscale(_) => {}
        JobKind::Upscale(_) => {
            let why = format!(
                "job {id} enlarges pictures in tiles, of which nothing can be seen before they are done: WatchJob \
                 tells how far it is"
            );
            return Err(Refusal::Precondition { why });
        }
    }
    match tasks.iter().find(|task| **task >= total) {
        None => Ok(()),
        Some(task) => {
            Err(Refusal::field("tasks", format!("holds {task}, and job {id} has {total} tasks, counted from 0")))
        }
    }
}

fn parse_token(token: &str) -> Result<(Timestamp, JobId), Refusal> {
    let parsed = token.split_once('.').and_then(|(created, id)| Some((created.parse().ok()?, id.parse().ok()?)));
    let (created, id) = parsed.ok_or_else(|| Refusal::field("page_token", "is not one of ours"))?;
    Ok((Timestamp(created), id))
}

/// The events of a job after `seen`, and whether these are the last. Begins with a snapshot for a new watcher, and for
/// one whose next events are no longer at hand.
fn events_after(entry: Option<&Entry>, seen: u64) -> (Vec<v1::JobEvent>, bool) {
    let Some(entry) = entry else { return (Vec::new(), true) };
    let over = entry.state.is_terminal();
    let mut events = Vec::new();
    match entry.notices_after(seen).filter(|_| seen != 0) {
        Some(notices) => events.extend(notices.take(EVENTS_AT_ONCE).map(|notice| show_event(entry, notice))),
        None => events.push(snapshot(entry)),
    }
    let reached = events.last().map_or(seen, |event| event.sequence);
    (events, over && reached >= entry.sequence())
}

fn snapshot(entry: &Entry) -> v1::JobEvent {
    v1::JobEvent {
        sequence: entry.sequence(),
        time: Some(timestamp_to_wire(now())),
        progress: Some(show_progress(&entry.progress())),
        event: Some(v1::job_event::Event::Snapshot(show(entry))),
    }
}

fn show_event(entry: &Entry, numbered: &Numbered) -> v1::JobEvent {
    use v1::job_event::Event as Wire;
    let event = match &numbered.notice {
        Notice::StateChanged => Wire::Snapshot(show(entry)),
        Notice::TaskFinished { task, description, worker, attempt, found, elapsed } => {
            Wire::TaskFinished(v1::TaskFinished {
                task: u64::from(*task),
                description: description.clone(),
                worker: worker.clone(),
                attempt: *attempt,
                found: *found,
                elapsed: Some(millis_to_wire(elapsed.as_millis() as u64)),
            })
        }
        Notice::TaskFailed { failure, will_retry } => {
            Wire::TaskFailed(v1::TaskFailed { failure: Some(show_failure(failure)), will_retry: *will_retry })
        }
        Notice::Replanned { old_side, new_side } => {
            Wire::Replanned(v1::JobReplanned { old_tile_side: *old_side, new_tile_side: *new_side })
        }
        Notice::TaskProgressed { task, worker, fraction } => Wire::TaskProgressed(v1::TaskProgressed {
            task: u64::from(*task),
            worker: worker.clone(),
            fraction: *fraction,
        }),
    };
    v1::JobEvent {
        sequence: numbered.sequence,
        time: Some(timestamp_to_wire(numbered.time)),
        progress: Some(show_progress(&numbered.progress)),
        event: Some(event),
    }
}

fn show(entry: &Entry) -> v1::Job {
    v1::Job {
        state: state_to_wire(entry.state).into(),
        finished_at: entry.finished.map(timestamp_to_wire),
        progress: Some(show_progress(&entry.progress())),
        failures: entry.failures.iter().map(show_failure).collect(),
        outputs: entry.outputs().map(output_to_wire).collect(),
        warnings: entry.warnings.clone(),
        ..job_to_wire(&entry.job)
    }
}

fn show_failure(failure: &Failure) -> v1::TaskFailure {
    v1::TaskFailure {
        task: failure.task,
        description: failure.description.clone(),
        message: failure.message.clone(),
        attempt: failure.attempt,
        worker: failure.worker.clone(),
    }
}

fn show_progress(progress: &Progress) -> v1::JobProgress {
    v1::JobProgress {
        tasks_total: progress.total,
        tasks_done: progress.done,
        tasks_found: progress.found,
        tasks_running: progress.running,
        tasks_failed: progress.failed,
        remaining: progress.remaining().map(|left| millis_to_wire(left.as_millis() as u64)),
        tasks_per_second: progress.per_second,
    }
}
