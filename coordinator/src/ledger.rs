//! The decisions: what each job's tasks are doing, and what must happen next.
//!
//! [`Ledger::apply`] takes one event and returns effects. It cannot wait or fail and does no I/O, so all of it is
//! tested as data. The ledger is no store of facts: results and job records lie in the store, and a new coordinator
//! builds its ledger from those (see `resume.rs`).
//!
//! Tasks are known to the broker only while they are *in flight*: at most `dispatch_window` of them per queue, taken
//! from the jobs in turn. Work that two jobs want is in flight once.

mod ready;

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use domain::{
    job::{Job, JobId, JobKind, JobOutput, JobState, Priority, Timestamp},
    plan::{Plan, plan},
    region::Region,
    schedule::Dependants,
    task::{Context, Pace, Part, Place, ResultKey, SegsNode},
    tiles::Tiling,
};
use proto::farm::{Order, Outcome, Report, Worker};
use serde::{Deserialize, Serialize};

use ready::{Ready, Turn};

/// The smallest tile side to which a job is planned anew when devices run out of memory, in pixels; the reference's.
const MIN_TILE_SIDE: u32 = 128;

/// How many events of a job are kept for watchers that come late.
const EVENTS_KEPT: usize = 4096;

/// How often a task is published anew that was delivered too often without a worker ever having spoken of it.
const MOST_UNTRIED: u32 = 3;

/// How often the store is listed anew because one task's needs vanished, before the job fails.
const MOST_RELISTS: u32 = 3;

/// How many of them are kept once the job has ended.
const ENDED_EVENTS_KEPT: usize = 256;

/// How many failures of a job are kept: the first ones tell the story.
const FAILURES_KEPT: usize = 20;

/// Numbers by which the ledger decides.
#[derive(Debug, Clone)]
pub struct Rules {
    /// The most tasks of one queue that are with the broker at once.
    pub dispatch_window: usize,
    /// How long a task in flight may give no sign of life before it is published again.
    pub stuck_task: Duration,
}

/// Something that happened.
#[derive(Debug, Clone)]
pub enum Event {
    /// A job was accepted, taken up again after a restart, or is to be retried.
    Admitted {
        /// The job, whose record is in the store.
        job: Box<Job>,
        /// Its plan.
        plan: Arc<Plan>,
        /// Tasks whose results are in the store.
        found: Vec<u32>,
        /// Outputs of the assembling tasks among these.
        outputs: Vec<(u32, JobOutput)>,
    },
    /// A job that ended before a restart was read from the store.
    Remembered {
        /// The job.
        job: Box<Job>,
        /// How it ended.
        ending: Ending,
    },
    /// A worker reported.
    Reported(Report),
    /// A worker gave a sign of life.
    Beat(Worker),
    /// A task was delivered too often: its workers died, or kept failing.
    Parked {
        /// The order, as it was published.
        order: Box<Order>,
        /// How often it was tried.
        attempts: u32,
    },
    /// A picture is finished.
    Assembled {
        /// The job.
        job: JobId,
        /// The assembling task's index.
        task: u32,
        /// Its result key: an index alone means nothing once the job is planned anew.
        key: ResultKey,
        /// The picture.
        output: JobOutput,
    },
    /// A picture could not be put together.
    NotAssembled {
        /// The job.
        job: JobId,
        /// The assembling task's index.
        task: u32,
        /// Its result key.
        key: ResultKey,
        /// Why.
        message: String,
        /// Tasks whose results turned out to be missing: they are rendered again. None: the job fails.
        missing: Vec<ResultKey>,
    },
    /// The store was listed anew, as [`Effect::Relist`] asked.
    Relisted {
        /// The job.
        job: JobId,
        /// The number of the listing.
        listing: u64,
        /// Tasks whose results are in the store.
        found: Vec<u32>,
        /// Outputs of the assembling tasks among these.
        outputs: Vec<(u32, JobOutput)>,
    },
    /// The store could not be listed, and no waiting helps.
    NotRelisted {
        /// The job.
        job: JobId,
        /// The number of the listing.
        listing: u64,
        /// Why.
        message: String,
    },
    /// A user cancels a job.
    Cancelled(JobId),
    /// Time passes.
    Tick {
        /// Ready messages on each queue that has tasks in flight.
        depths: HashMap<Lane, u64>,
    },
}

/// Something that must be done.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Put orders on a queue.
    Publish {
        /// Which queue.
        lane: Lane,
        /// The orders.
        orders: Vec<TracedOrder>,
    },
    /// Tell the workers that orders are void.
    Revoke {
        /// Which.
        keys: Vec<ResultKey>,
        /// Up to this dispatch number.
        up_to_dispatch: u64,
    },
    /// Put a picture together.
    Assemble {
        /// The job, as planned now.
        job: Box<Job>,
        /// The plan.
        plan: Arc<Plan>,
        /// The assembling task.
        task: u32,
    },
    /// Find out which of a job's results are in the store: some have vanished.
    Relist {
        /// The job, as planned now.
        job: Box<Job>,
        /// The plan.
        plan: Arc<Plan>,
        /// The number of the listing.
        listing: u64,
    },
    /// Stop putting together pictures of this job.
    Abandon(JobId),
    /// Store the job's record anew, because its tiling changed.
    StoreJob(Box<Job>),
    /// Store how the job ended.
    StoreEnding(JobId, Ending),
}

/// An order, with the `traceparent` of its job.
pub type TracedOrder = (Order, Option<String>);

/// A queue of tasks: who may take them, how long they take, and how urgent they are.
pub type Lane = (Place, Pace, Priority);

/// How a job ended. Stored with the job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ending {
    /// A terminal state.
    pub state: JobState,
    /// When.
    pub finished: Timestamp,
    /// Its pictures, when it succeeded.
    #[serde(default)]
    pub outputs: Vec<JobOutput>,
    /// Why it failed.
    #[serde(default)]
    pub failures: Vec<Failure>,
    /// Things worth knowing.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// Tasks in all, done and found.
    #[serde(default)]
    pub counts: (u64, u64, u64),
}

/// Why a task failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The task's index in the plan.
    pub task: u64,
    /// What it was to render.
    pub description: String,
    /// The error with its causes.
    pub message: String,
    /// The try that failed last, counted from 1; 0 when nobody tried.
    pub attempt: u32,
    /// The worker that reported it, or nothing.
    pub worker: String,
}

/// What watchers are told.
#[derive(Debug, Clone, PartialEq)]
pub enum Notice {
    /// The job's state changed.
    StateChanged,
    /// A result is in the store.
    TaskFinished {
        /// Index in the plan.
        task: u32,
        /// What.
        description: String,
        /// Who rendered it; empty when it was the coordinator, or found at the start.
        worker: String,
        /// Which try.
        attempt: u32,
        /// Whether it was there already.
        found: bool,
        /// How long it was rendered.
        elapsed: Duration,
    },
    /// A try failed.
    TaskFailed {
        /// Which and why.
        failure: Failure,
        /// Whether it will be tried again.
        will_retry: bool,
    },
    /// The job was planned anew with smaller tiles.
    Replanned {
        /// The side before, in pixels.
        old_side: u32,
        /// The side now, in pixels.
        new_side: u32,
    },
    /// A worker tells how far a task is.
    TaskProgressed {
        /// Index in the plan.
        task: u32,
        /// Who renders it.
        worker: String,
        /// From 0 to 1.
        fraction: f32,
    },
}

/// A notice with its place in the job's history.
#[derive(Debug, Clone, PartialEq)]
pub struct Numbered {
    /// Grows with every notice of a job, across restarts too.
    pub sequence: u64,
    /// When.
    pub time: Timestamp,
    /// How far the job was after it.
    pub progress: Progress,
    /// What.
    pub notice: Notice,
}

/// How far a job is.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Progress {
    /// Tasks in all.
    pub total: u64,
    /// Tasks whose results are in the store.
    pub done: u64,
    /// Of these, those that nobody rendered for this job.
    pub found: u64,
    /// Tasks in a worker's hands.
    pub running: u64,
    /// Tasks that failed for good.
    pub failed: u64,
    /// Tasks rendered per second over the last while; 0 when unknown.
    pub per_second: f64,
}

impl Progress {
    /// How long the rest takes at the present speed.
    pub fn remaining(&self) -> Option<Duration> {
        let left = self.total.saturating_sub(self.done + self.failed) as f64;
        (self.per_second > 0.0).then(|| Duration::try_from_secs_f64(left / self.per_second).ok())?
    }
}

/// Where a task stands within its job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TaskState {
    /// Needs results that are not there yet.
    Waiting,
    /// Can be rendered, and is not with the broker.
    Ready,
    /// With the broker or a worker, or being assembled.
    InFlight,
    /// Its result is in the store, or nobody needs it any more.
    Done,
    /// Failed for good.
    Failed,
}

/// A job in the ledger.
#[derive(Debug)]
pub struct Entry {
    /// The job.
    pub job: Job,
    /// Where it stands.
    pub state: JobState,
    /// When it ended.
    pub finished: Option<Timestamp>,
    /// Why it failed.
    pub failures: Vec<Failure>,
    /// Things worth knowing.
    pub warnings: Vec<String>,
    outputs: BTreeMap<u32, JobOutput>,
    progress: Progress,
    work: Option<Work>,
    notices: VecDeque<Numbered>,
    sequence: u64,
    /// (when, tasks rendered so far), one entry a second, for the speed.
    pace: VecDeque<(Timestamp, u64)>,
}

/// What is only needed while a job runs.
#[derive(Debug)]
struct Work {
    plan: Arc<Plan>,
    states: Vec<TaskState>,
    /// Tasks that may be ready, by place: each is looked at once, so entries that are no longer ready are skipped.
    ready: BTreeMap<(Place, Pace), Ready>,
    /// Which of them goes first.
    turn: Turn,
    /// How many results tasks that wait still lack.
    lacking: HashMap<u32, u32>,
    /// Who waits for a task.
    dependants: Dependants,
    /// How often tasks came back because their needs had vanished.
    relists: HashMap<u32, u32>,
    /// The listing that is under way, if one is.
    relisting: Option<Relisting>,
}

/// A listing of the store that is under way, and what happened since it began.
#[derive(Debug)]
struct Relisting {
    listing: u64,
    /// Results that are known to be gone: the listing may have passed them before.
    missing: HashSet<ResultKey>,
    /// Tasks that were done meanwhile: the listing may have passed them before, too.
    done: HashSet<u32>,
}

impl Entry {
    /// How far the job is.
    pub fn progress(&self) -> Progress {
        self.progress
    }

    /// Its finished pictures, in the order of the job's pictures.
    pub fn outputs(&self) -> impl Iterator<Item = &JobOutput> {
        self.outputs.values()
    }

    /// The notices after `sequence`, or `None` when some of them are no longer at hand.
    pub fn notices_after(&self, sequence: u64) -> Option<impl Iterator<Item = &Numbered>> {
        let known =
            sequence == self.sequence || self.notices.front().is_some_and(|first| first.sequence <= sequence + 1);
        known.then(|| self.notices.iter().filter(move |notice| notice.sequence > sequence))
    }

    /// The sequence number of the last notice.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    fn new(job: Job, now: Timestamp) -> Self {
        // Sequence numbers start above any that an earlier coordinator gave out: a notice takes longer than a
        // microsecond to make.
        let sequence = now.0 * 1000;
        Self {
            state: JobState::Queued,
            finished: None,
            failures: Vec::new(),
            warnings: job.warnings.clone(),
            job,
            outputs: BTreeMap::new(),
            progress: Progress::default(),
            work: None,
            notices: VecDeque::new(),
            sequence,
            pace: VecDeque::new(),
        }
    }

    fn note(&mut self, now: Timestamp, notice: Notice) {
        self.sequence += 1;
        if self.notices.len() == EVENTS_KEPT {
            self.notices.pop_front();
        }
        let progress = self.progress;
        self.notices.push_back(Numbered { sequence: self.sequence, time: now, progress, notice });
    }

    fn set_state(&mut self, now: Timestamp, state: JobState) {
        if self.state != state {
            self.state = state;
            self.note(now, Notice::StateChanged);
        }
    }

    fn fail_task(&mut self, failure: Failure) {
        if self.failures.len() < FAILURES_KEPT {
            self.failures.push(failure);
        }
    }

    fn ending(&self, now: Timestamp) -> Ending {
        Ending {
            state: self.state,
            finished: self.finished.unwrap_or(now),
            outputs: self.outputs.values().cloned().collect(),
            failures: self.failures.clone(),
            warnings: self.warnings.clone(),
            counts: (self.progress.total, self.progress.done, self.progress.found),
        }
    }

    /// What task `index` is, in words.
    fn describe(&self, index: u32) -> String {
        let Some(task) = self.work.as_ref().and_then(|work| work.plan.tasks().get(index as usize).map(|t| (work, t)))
        else {
            return format!("task {index}");
        };
        let (work, task) = task;
        let context = work.plan.context_of(task);
        let picture = self.job.kind.picture_name(context.picture);
        format!("{} {} of {picture}", context.context.operation(), task.part.region())
    }
}

/// A task of a job that a worker has in hand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InHand {
    /// Its result key, which tasks of other jobs may share.
    pub key: ResultKey,
    /// Its index in the job's plan.
    pub task: u64,
    /// What it is, in words.
    pub description: String,
    /// The pixels that it is about.
    pub region: Region,
}

/// A task that the broker or a worker has.
#[derive(Debug)]
struct Flight {
    /// Who wants it: jobs and the task's index in each.
    claims: Vec<(JobId, u32)>,
    lane: Lane,
    dispatch: u64,
    /// When it was published, or when a worker last spoke of it.
    heard: Timestamp,
    /// Whether a worker has spoken of it.
    started: bool,
    /// How often it came back dead without a worker ever having spoken of it.
    untried: u32,
}

/// Every job that the coordinator knows.
#[derive(Debug)]
pub struct Ledger {
    rules: Rules,
    jobs: HashMap<JobId, Entry>,
    flights: HashMap<ResultKey, Flight>,
    /// Jobs that may have ready tasks, by queue, in turn.
    lanes: BTreeMap<Lane, VecDeque<JobId>>,
    in_flight: HashMap<Lane, usize>,
    next_dispatch: u64,
    next_listing: u64,
}

impl Ledger {
    /// An empty ledger. `now` seeds the dispatch numbers, so that they grow across restarts.
    pub fn new(rules: Rules, now: Timestamp) -> Self {
        Self {
            rules,
            jobs: HashMap::new(),
            flights: HashMap::new(),
            lanes: BTreeMap::new(),
            in_flight: HashMap::new(),
            next_dispatch: now.0 << 20,
            next_listing: 0,
        }
    }

    /// The job `id`.
    pub fn job(&self, id: &JobId) -> Option<&Entry> {
        self.jobs.get(id)
    }

    /// All jobs, in no order.
    pub fn jobs(&self) -> impl Iterator<Item = &Entry> {
        self.jobs.values()
    }

    /// Jobs that have not ended.
    pub fn active(&self) -> usize {
        self.jobs.values().filter(|entry| !entry.state.is_terminal()).count()
    }

    /// The queues that have tasks in flight.
    pub fn busy_lanes(&self) -> Vec<Lane> {
        self.in_flight.iter().filter(|(_, count)| **count > 0).map(|(lane, _)| lane.clone()).collect()
    }

    /// Whether the work of this key is in flight.
    pub fn is_in_flight(&self, key: &ResultKey) -> bool {
        self.flights.contains_key(key)
    }

    /// The tasks of job `id` that workers have in hand, as far as they have said; `None` once it has ended.
    pub fn in_hand(&self, id: &JobId) -> Option<Vec<InHand>> {
        let entry = self.jobs.get(id).filter(|entry| !entry.state.is_terminal())?;
        let started = self.flights.iter().filter(|(_, flight)| flight.started);
        let claims = started.flat_map(|(key, flight)| flight.claims.iter().map(move |(job, task)| (*key, job, *task)));
        let in_hand = claims.filter(|(_, job, _)| *job == id).filter_map(|(key, _, task)| {
            let region = entry.planned(task)?.1.region();
            Some(InHand { key, task: task.into(), description: entry.describe(task), region })
        });
        Some(in_hand.collect())
    }

    /// Applies one event, and says what the world must now do. The same events give the same effects.
    pub fn apply(&mut self, event: Event, now: Timestamp) -> Vec<Effect> {
        let mut effects = Vec::new();
        match event {
            Event::Admitted { job, plan, found, outputs } => self.admit(*job, plan, &found, outputs, now, &mut effects),
            Event::Remembered { job, ending } => self.remember(*job, ending),
            Event::Reported(report) => self.report(report, now, &mut effects),
            Event::Beat(worker) => self.beat(&worker, now),
            Event::Parked { order, attempts } => self.park(&order, attempts, now, &mut effects),
            Event::Assembled { job, task, key, output } => self.assembled(&job, task, key, output, now, &mut effects),
            Event::NotAssembled { job, task, key, message, missing } => {
                self.not_assembled(&job, task, key, &message, &missing, now, &mut effects);
            }
            Event::Relisted { job, listing, found, outputs } => {
                self.relisted(&job, listing, &found, outputs, now, &mut effects);
            }
            Event::NotRelisted { job, listing, message } => {
                self.not_relisted(&job, listing, &message, now, &mut effects);
            }
            Event::Cancelled(job) => self.end(&job, JobState::Cancelled, now, &mut effects),
            Event::Tick { depths } => self.tick(&depths, now, &mut effects),
        }
        self.dispatch(now, &mut effects);
        effects
    }

    fn admit(
        &mut self,
        job: Job,
        plan: Arc<Plan>,
        found: &[u32],
        outputs: Vec<(u32, JobOutput)>,
        now: Timestamp,
        effects: &mut Vec<Effect>,
    ) {
        let id = job.id.clone();
        if self.jobs.get(&id).is_some_and(|entry| !entry.state.is_terminal()) {
            return; // it runs already: the same request came twice
        }
        let mut entry = Entry::new(job, now);
        if let Some(old) = self.jobs.remove(&id) {
            // A retry: watchers go on with the same history.
            (entry.notices, entry.sequence) = (old.notices, old.sequence);
            entry.note(now, Notice::StateChanged);
        }
        entry.outputs = outputs.into_iter().collect();
        entry.start(plan, found);
        for task in entry.ready_assemblies() {
            effects.push(entry.assemble(task));
            entry.set_state(now, JobState::Running);
        }
        if entry.progress.found > 0 {
            entry.note(now, Notice::StateChanged);
        }
        self.jobs.insert(id.clone(), entry);
        self.enqueue(&id);
        self.finish_if_done(&id, now, effects);
    }

    fn remember(&mut self, job: Job, ending: Ending) {
        let mut entry = Entry::new(job, ending.finished);
        entry.state = ending.state;
        entry.finished = Some(ending.finished);
        entry.failures = ending.failures;
        entry.warnings = ending.warnings;
        entry.outputs = (0..).zip(ending.outputs).collect();
        let (total, done, found) = ending.counts;
        entry.progress = Progress { total, done, found, ..Progress::default() };
        self.jobs.entry(entry.job.id.clone()).or_insert(entry);
    }

    /// Puts the job in the turn of the queues that its tasks go to.
    fn enqueue(&mut self, id: &JobId) {
        let Some(entry) = self.jobs.get(id) else { return };
        for lane in entry.lanes() {
            let turn = self.lanes.entry(lane).or_default();
            if !turn.contains(id) {
                turn.push_back(id.clone());
            }
        }
    }

    /// Fills the queues' windows from the jobs in turn.
    fn dispatch(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        let lanes: Vec<Lane> = self.lanes.keys().cloned().collect();
        for lane in lanes {
            let mut turn = self.lanes.remove(&lane).unwrap_or_default();
            let mut orders = Vec::new();
            while self.in_flight.get(&lane).copied().unwrap_or(0) < self.rules.dispatch_window {
                let Some(id) = turn.pop_front() else { break };
                let Some(entry) = self.jobs.get_mut(&id) else { continue };
                let Some((task, key, order)) = entry.next_ready((lane.0.clone(), lane.1), self.next_dispatch) else {
                    continue; // nothing left for this queue: the job leaves the turn
                };
                turn.push_back(id.clone());
                if let Some(flight) = self.flights.get_mut(&key) {
                    // Another job's task is the same work.
                    flight.claims.push((id, task));
                    if flight.started {
                        entry.progress.running += 1;
                        entry.set_state(now, JobState::Running);
                    } else if lane.2 > flight.lane.2 {
                        // It is more urgent now: the older order will find the result.
                        if let Some(count) = self.in_flight.get_mut(&flight.lane) {
                            *count -= 1;
                        }
                        *self.in_flight.entry(lane.clone()).or_default() += 1;
                        (flight.lane, flight.dispatch, flight.heard) = (lane.clone(), order.dispatch, now);
                        self.next_dispatch += 1;
                        orders.push((order, entry.job.traceparent.clone()));
                    }
                    continue;
                }
                let flight = Flight {
                    claims: vec![(id, task)],
                    lane: lane.clone(),
                    dispatch: order.dispatch,
                    heard: now,
                    started: false,
                    untried: 0,
                };
                self.flights.insert(key, flight);
                *self.in_flight.entry(lane.clone()).or_default() += 1;
                self.next_dispatch += 1;
                orders.push((order, entry.job.traceparent.clone()));
            }
            if !turn.is_empty() {
                self.lanes.insert(lane.clone(), turn);
            }
            if !orders.is_empty() {
                effects.push(Effect::Publish { lane, orders });
            }
        }
    }

    /// Takes a task out of flight; returns who wanted it.
    fn land(&mut self, key: &ResultKey) -> Vec<(JobId, u32)> {
        let Some(flight) = self.flights.remove(key) else { return Vec::new() };
        if let Some(count) = self.in_flight.get_mut(&flight.lane) {
            *count -= 1;
        }
        if flight.started {
            for (id, _) in &flight.claims {
                if let Some(entry) = self.jobs.get_mut(id) {
                    entry.progress.running = entry.progress.running.saturating_sub(1);
                }
            }
        }
        flight.claims
    }

    fn report(&mut self, report: Report, now: Timestamp, effects: &mut Vec<Effect>) {
        let Report { key, worker, attempt, outcome, .. } = report;
        match outcome {
            Outcome::Done { found, elapsed } => {
                // A report about work that is not in flight is old news: the result will be found when its turn comes.
                for (id, task) in self.land(&key) {
                    let Some(entry) = self.jobs.get_mut(&id) else { continue };
                    entry.set_state(now, JobState::Running);
                    entry.done(task, found);
                    let description = entry.describe(task);
                    let worker = worker.clone();
                    entry.note(now, Notice::TaskFinished { task, description, worker, attempt, found, elapsed });
                    effects.extend(entry.ready_assemblies().into_iter().map(|task| entry.assemble(task)));
                    self.enqueue(&id);
                    self.finish_if_done(&id, now, effects);
                }
            }
            Outcome::Retrying { message } => {
                let claims = self.flights.get(&key).map(|flight| flight.claims.clone()).unwrap_or_default();
                for (id, task) in claims {
                    let Some(entry) = self.jobs.get_mut(&id) else { continue };
                    let failure = Failure {
                        task: task.into(),
                        description: entry.describe(task),
                        message: message.clone(),
                        attempt,
                        worker: worker.clone(),
                    };
                    entry.note(now, Notice::TaskFailed { failure, will_retry: true });
                }
            }
            Outcome::Failed { message } => {
                for (id, task) in self.land(&key) {
                    self.fail(&id, task, &message, attempt, &worker, now, effects);
                }
            }
            Outcome::OutOfMemory { message } => {
                let mut claims = self.land(&key);
                // A job can hold the same work twice, with another job's claim between, and is planned anew once.
                claims.sort();
                claims.dedup_by(|a, b| a.0 == b.0);
                for (id, task) in claims {
                    let Some(entry) = self.jobs.get(&id) else { continue };
                    match entry.smaller_tiles(task) {
                        Some(tiling) => self.replan(&id, tiling, now, effects),
                        None => {
                            let message = format!("{message}; {}", entry.way_out(task));
                            self.fail(&id, task, &message, attempt, &worker, now, effects);
                        }
                    }
                }
            }
            Outcome::Missing { keys } => {
                for (id, task) in self.land(&key) {
                    self.relist(&id, task, &keys, &worker, now, effects);
                }
            }
        }
    }

    fn park(&mut self, order: &Order, attempts: u32, now: Timestamp, effects: &mut Vec<Effect>) {
        let key = order.result_key();
        // A newer order for the same work is still out: this one does not count.
        let Some(flight) = self.flights.get_mut(&key).filter(|flight| flight.dispatch <= order.dispatch) else {
            return;
        };
        let told = |(id, task): &(JobId, u32)| self.jobs.get(id).is_some_and(|entry| entry.last_words(*task).is_some());
        if !flight.started && flight.untried < MOST_UNTRIED && !flight.claims.iter().any(told) {
            // Brokers count deliveries, not tries: connections that were cut, or workers that left, used them up.
            flight.untried += 1;
            effects.extend(self.publish_again(&[key], now));
            return;
        }
        let message = format!("given up after {attempts} attempts: each worker that took it failed or died");
        for (id, task) in self.land(&key) {
            // The tries before said why, if a worker lived to tell.
            let told = self.jobs.get(&id).and_then(|entry| entry.last_words(task));
            let (message, worker) = match told {
                Some((why, worker)) => (format!("{message}; the last said: {why}"), worker),
                None => (message.clone(), String::new()),
            };
            self.fail(&id, task, &message, attempts, &worker, now, effects);
        }
    }

    /// Fails a task, and with it its job.
    #[allow(clippy::too_many_arguments)] // what is told of a failure, and nothing else
    fn fail(
        &mut self,
        id: &JobId,
        task: u32,
        message: &str,
        attempt: u32,
        worker: &str,
        now: Timestamp,
        effects: &mut Vec<Effect>,
    ) {
        let Some(entry) = self.jobs.get_mut(id) else { return };
        let Some(work) = &mut entry.work else { return };
        work.states[task as usize] = TaskState::Failed;
        entry.progress.failed += 1;
        let failure = Failure {
            task: task.into(),
            description: entry.describe(task),
            message: message.to_owned(),
            attempt,
            worker: worker.to_owned(),
        };
        entry.fail_task(failure.clone());
        entry.note(now, Notice::TaskFailed { failure, will_retry: false });
        self.end(id, JobState::Failed, now, effects);
    }

    /// Ends a job: its tasks are taken back unless another job wants them too.
    fn end(&mut self, id: &JobId, state: JobState, now: Timestamp, effects: &mut Vec<Effect>) {
        if self.jobs.get(id).is_none_or(|entry| entry.state.is_terminal()) {
            return;
        }
        self.recall(id, effects);
        let Some(entry) = self.jobs.get_mut(id) else { return };
        entry.work = None;
        entry.pace.clear();
        let many = entry.notices.len().saturating_sub(ENDED_EVENTS_KEPT);
        entry.notices.drain(..many);
        entry.notices.shrink_to_fit();
        entry.finished = Some(now);
        entry.progress.running = 0;
        entry.set_state(now, state);
        if state != JobState::Succeeded {
            effects.push(Effect::Abandon(id.clone()));
        }
        effects.push(Effect::StoreEnding(id.clone(), entry.ending(now)));
        for turn in self.lanes.values_mut() {
            turn.retain(|other| other != id);
        }
    }

    /// Takes back the tasks in flight that only this job wants.
    fn recall(&mut self, id: &JobId, effects: &mut Vec<Effect>) {
        let mut keys = Vec::new();
        let mut up_to_dispatch = 0;
        for (key, flight) in &mut self.flights {
            let before = flight.claims.len();
            flight.claims.retain(|(job, _)| job != id);
            if before > 0 && flight.claims.is_empty() {
                up_to_dispatch = up_to_dispatch.max(flight.dispatch);
                keys.push(*key);
            }
        }
        keys.sort();
        for key in &keys {
            self.land(key);
        }
        if !keys.is_empty() {
            effects.push(Effect::Revoke { keys, up_to_dispatch });
        }
    }

    fn replan(&mut self, id: &JobId, tiling: Tiling, now: Timestamp, effects: &mut Vec<Effect>) {
        self.recall(id, effects);
        let Some(entry) = self.jobs.get_mut(id) else { return };
        let Some(old) = tiling_of(&mut entry.job) else { return }; // `smaller_tiles` has none for others
        let old_side = std::mem::replace(old, tiling).side;
        let warning = format!(
            "a device ran out of memory: tiles of {old_side} pixels became tiles of {} pixels, which can change pixels",
            tiling.side
        );
        match plan(&entry.job) {
            Ok(plan) => {
                entry.warnings.push(warning.clone());
                entry.job.warnings.push(warning);
                entry.outputs.clear();
                entry.start(Arc::new(plan), &[]);
                entry.note(now, Notice::Replanned { old_side, new_side: tiling.side });
                effects.push(Effect::Abandon(id.clone()));
                effects.push(Effect::StoreJob(Box::new(entry.job.clone())));
                self.enqueue(id);
            }
            Err(error) => {
                let failure = Failure {
                    task: 0,
                    description: "plan".to_owned(),
                    message: format!("{warning}; but then the job cannot be planned: {error}"),
                    attempt: 0,
                    worker: String::new(),
                };
                entry.fail_task(failure);
                self.end(id, JobState::Failed, now, effects);
            }
        }
    }

    fn assembled(
        &mut self,
        id: &JobId,
        task: u32,
        key: ResultKey,
        output: JobOutput,
        now: Timestamp,
        effects: &mut Vec<Effect>,
    ) {
        let Some(entry) = self.jobs.get_mut(id).filter(|entry| entry.is(task, &key)) else { return };
        entry.outputs.insert(task, output);
        entry.done(task, false);
        let description = entry.describe(task);
        let (worker, elapsed) = (String::new(), Duration::ZERO);
        entry.note(now, Notice::TaskFinished { task, description, worker, attempt: 1, found: false, elapsed });
        effects.extend(entry.ready_assemblies().into_iter().map(|task| entry.assemble(task)));
        self.enqueue(id);
        self.finish_if_done(id, now, effects);
    }

    #[allow(clippy::too_many_arguments)] // the event's fields, and what every event has
    fn not_assembled(
        &mut self,
        id: &JobId,
        task: u32,
        key: ResultKey,
        message: &str,
        missing: &[ResultKey],
        now: Timestamp,
        effects: &mut Vec<Effect>,
    ) {
        let Some(entry) = self.jobs.get_mut(id).filter(|entry| entry.is(task, &key)) else { return };
        entry.set_state(now, JobState::Running);
        if missing.is_empty() {
            self.fail(id, task, message, 1, "", now, effects);
        } else {
            self.relist(id, task, missing, "", now, effects);
        }
    }

    /// Has the store listed anew, because results in `missing` that `task` needs vanished. Until then it waits.
    fn relist(
        &mut self,
        id: &JobId,
        task: u32,
        missing: &[ResultKey],
        worker: &str,
        now: Timestamp,
        effects: &mut Vec<Effect>,
    ) {
        let Some(entry) = self.jobs.get_mut(id) else { return };
        let Some(work) = &mut entry.work else { return };
        work.states[task as usize] = TaskState::Waiting;
        let times = work.relists.entry(task).or_default();
        *times += 1;
        if *times > MOST_RELISTS {
            let message = format!(
                "results that it needs vanished from the store {times} times, the last being {}: see whether a rule of \
                 the store's removes them too early",
                missing.first().map_or_else(|| "unnamed".to_owned(), ToString::to_string)
            );
            self.fail(id, task, &message, MOST_RELISTS + 1, worker, now, effects);
            return;
        }
        if let Some(relisting) = &mut work.relisting {
            relisting.missing.extend(missing);
            return;
        }
        let listing = self.next_listing;
        self.next_listing += 1;
        work.relisting = Some(Relisting { listing, missing: missing.iter().copied().collect(), done: HashSet::new() });
        let (job, plan) = (Box::new(entry.job.clone()), work.plan.clone());
        effects.push(Effect::Relist { job, plan, listing });
    }

    fn relisted(
        &mut self,
        id: &JobId,
        listing: u64,
        found: &[u32],
        outputs: Vec<(u32, JobOutput)>,
        now: Timestamp,
        effects: &mut Vec<Effect>,
    ) {
        let Some(entry) = self.jobs.get_mut(id).filter(|entry| entry.is_relisting(listing)) else { return };
        entry.go_on(found, outputs);
        effects.extend(entry.ready_assemblies().into_iter().map(|task| entry.assemble(task)));
        entry.note(now, Notice::StateChanged); // watchers see that less is done than was
        self.enqueue(id);
        self.finish_if_done(id, now, effects);
    }

    fn not_relisted(&mut self, id: &JobId, listing: u64, message: &str, now: Timestamp, effects: &mut Vec<Effect>) {
        let Some(entry) = self.jobs.get_mut(id).filter(|entry| entry.is_relisting(listing)) else { return };
        entry.fail_task(Failure {
            task: 0,
            description: "relist".to_owned(),
            message: format!("results vanished from the store, and it cannot be told which: {message}"),
            attempt: 0,
            worker: String::new(),
        });
        self.end(id, JobState::Failed, now, effects);
    }

    fn finish_if_done(&mut self, id: &JobId, now: Timestamp, effects: &mut Vec<Effect>) {
        let is_done = |entry: &Entry| entry.work.is_some() && entry.progress.done == entry.progress.total;
        if self.jobs.get(id).is_some_and(is_done) {
            self.end(id, JobState::Succeeded, now, effects);
        }
    }

    fn beat(&mut self, worker: &Worker, now: Timestamp) {
        for task in &worker.tasks {
            let Some(flight) = self.flights.get_mut(&task.key) else { continue };
            flight.heard = now;
            let first = !std::mem::replace(&mut flight.started, true);
            for (id, index) in &flight.claims {
                let Some(entry) = self.jobs.get_mut(id) else { continue };
                if first {
                    entry.progress.running += 1;
                    entry.set_state(now, JobState::Running);
                }
                let notice =
                    Notice::TaskProgressed { task: *index, worker: worker.id.clone(), fraction: task.fraction };
                entry.note(now, notice);
            }
        }
    }

    fn tick(&mut self, depths: &HashMap<Lane, u64>, now: Timestamp, effects: &mut Vec<Effect>) {
        let late: Vec<JobId> = self
            .jobs
            .values()
            .filter(|entry| !entry.state.is_terminal() && entry.job.deadline.is_some_and(|deadline| deadline < now))
            .map(|entry| entry.job.id.clone())
            .collect();
        for id in late {
            if let Some(entry) = self.jobs.get_mut(&id) {
                let failure = Failure {
                    task: 0,
                    description: "deadline".to_owned(),
                    message: "the job's deadline passed before it was finished".to_owned(),
                    attempt: 0,
                    worker: String::new(),
                };
                entry.fail_task(failure);
            }
            self.end(&id, JobState::Failed, now, effects);
        }
        for entry in self.jobs.values_mut().filter(|entry| !entry.state.is_terminal()) {
            entry.keep_pace(now);
        }

        // A task that nobody speaks of, and that no longer waits on its queue either, is published again.
        let patience = self.rules.stuck_task.as_millis() as u64;
        let mut stuck: Vec<_> = self
            .flights
            .iter()
            .filter(|(_, flight)| now.millis_since(flight.heard) > patience)
            .filter(|(_, flight)| flight.started || depths.get(&flight.lane) == Some(&0))
            .map(|(key, _)| *key)
            .collect();
        stuck.sort();
        effects.extend(self.publish_again(&stuck, now));
    }

    /// Orders work anew that is in flight but lost.
    fn publish_again(&mut self, keys: &[ResultKey], now: Timestamp) -> Vec<Effect> {
        let mut orders: BTreeMap<Lane, Vec<TracedOrder>> = BTreeMap::new();
        for key in keys {
            let Some(flight) = self.flights.get_mut(key) else { continue };
            let Some((id, task)) = flight.claims.first() else { continue };
            let Some(entry) = self.jobs.get(id) else { continue };
            let Some(order) = entry.order(*task, self.next_dispatch) else { continue };
            self.next_dispatch += 1;
            (flight.dispatch, flight.heard) = (order.dispatch, now);
            orders.entry(flight.lane.clone()).or_default().push((order, entry.job.traceparent.clone()));
            if std::mem::take(&mut flight.started) {
                for (id, _) in &flight.claims {
                    if let Some(entry) = self.jobs.get_mut(id) {
                        entry.progress.running = entry.progress.running.saturating_sub(1);
                    }
                }
            }
        }
        orders.into_iter().map(|(lane, orders)| Effect::Publish { lane, orders }).collect()
    }
}

/// The tiling of a job's super-resolution tiles, if it has any.
fn tiling_of(job: &mut Job) -> Option<&mut Tiling> {
    match &mut job.kind {
        JobKind::Upscale(upscale) => Some(&mut upscale.tiling),
        JobKind::SegsUpscale(upscale) => upscale.upscale_model.as_mut().map(|model| &mut model.tiling),
        JobKind::SegsDetail(_) | JobKind::LatentUpscale(_) => None,
    }
}

impl Work {
    /// Works out what every task waits for when the results of `is_found` are there; gives how many are done.
    ///
    /// What only finished tasks need is not needed at all. What is in flight stays so.
    fn settle(&mut self, is_found: &[bool], kind: &JobKind) -> u64 {
        let wanted = self.plan.wanted(|task| is_found[task as usize]);
        self.turn = Turn::of(&self.plan, &wanted, kind);
        self.ready.clear();
        self.lacking.clear();
        let mut done = 0;
        let plan = self.plan.clone();
        for (index, task) in (0..).zip(plan.tasks()) {
            let state = &mut self.states[index as usize];
            if is_found[index as usize] {
                *state = TaskState::Done;
                done += 1;
                continue;
            }
            if *state == TaskState::InFlight {
                continue;
            }
            if !wanted[index as usize] {
                *state = TaskState::Done;
                done += 1;
                continue;
            }
            match task.needs.iter().filter(|need| wanted[*need as usize]).count() as u32 {
                0 => self.be_ready(index),
                lacks => {
                    *state = TaskState::Waiting;
                    self.lacking.insert(index, lacks);
                }
            }
        }
        done
    }

    /// Makes a task ready, and puts it in the queue of its place.
    fn be_ready(&mut self, task: u32) {
        self.states[task as usize] = TaskState::Ready;
        let context = &self.plan.context_of(&self.plan.tasks()[task as usize]).context;
        let queue = (context.place().clone(), context.pace());
        match self.ready.get_mut(&queue) {
            Some(ready) => ready.push(task, &self.turn),
            None => {
                let mut ready = Ready::default();
                ready.push(task, &self.turn);
                self.ready.insert(queue, ready);
            }
        }
    }
}

impl Entry {
    /// Begins with `plan`, some of whose results are `found`.
    fn start(&mut self, plan: Arc<Plan>, found: &[u32]) {
        let tasks = plan.tasks().len();
        let mut is_found = vec![false; tasks];
        found.iter().for_each(|&task| is_found[task as usize] = true);
        let dependants = Dependants::of(&plan);
        let mut work = Work {
            plan,
            states: vec![TaskState::Done; tasks],
            ready: BTreeMap::new(),
            turn: Turn::default(),
            lacking: HashMap::new(),
            dependants,
            relists: HashMap::new(),
            relisting: None,
        };
        let done = work.settle(&is_found, &self.job.kind);
        self.progress = Progress { total: tasks as u64, done, found: done, ..Progress::default() };
        self.pace.clear();
        self.work = Some(work);
    }

    /// Goes on with what a new listing of the store `found`. What is in flight stays there.
    fn go_on(&mut self, found: &[u32], outputs: Vec<(u32, JobOutput)>) {
        let Some(work) = &mut self.work else { return };
        let Some(Relisting { missing, done, .. }) = work.relisting.take() else { return };
        let mut is_found = vec![false; work.states.len()];
        for &task in found {
            let key = work.plan.key_of(&work.plan.tasks()[task as usize]);
            is_found[task as usize] = !missing.contains(&key);
        }
        done.iter().for_each(|&task| is_found[task as usize] = true);
        self.progress.done = work.settle(&is_found, &self.job.kind);
        self.progress.found = self.progress.found.min(self.progress.done);
        self.pace.clear();
        let states = &work.states;
        self.outputs.extend(outputs);
        self.outputs.retain(|task, _| states[*task as usize] == TaskState::Done);
    }

    fn is_relisting(&self, listing: u64) -> bool {
        let relisting = self.work.as_ref().and_then(|work| work.relisting.as_ref());
        relisting.is_some_and(|relisting| relisting.listing == listing)
    }

    /// The context and the part of task `index`.
    fn planned(&self, index: u32) -> Option<(&Context, &Part)> {
        let plan = &self.work.as_ref()?.plan;
        let task = plan.tasks().get(index as usize)?;
        Some((&plan.context_of(task).context, &task.part))
    }

    /// The tiling with which to try again when a device ran out of memory on a tile: half the side, down to
    /// [`MIN_TILE_SIDE`].
    fn smaller_tiles(&self, task: u32) -> Option<Tiling> {
        let (Context::Upscale { .. }, _) = self.planned(task)? else { return None };
        let Tiling { side, overlap } = match &self.job.kind {
            JobKind::Upscale(upscale) => upscale.tiling,
            JobKind::SegsUpscale(upscale) => upscale.upscale_model.as_ref()?.tiling,
            JobKind::SegsDetail(_) | JobKind::LatentUpscale(_) => return None,
        };
        let half = (side / 2).max(MIN_TILE_SIDE);
        (half < side && overlap < half).then_some(Tiling { side: half, overlap })
    }

    /// What a user can do about a task that took more memory than a device has, and that cannot be made smaller.
    fn way_out(&self, task: u32) -> String {
        match self.planned(task) {
            Some((Context::Redraw(redraw), Part::Seg(seg))) => {
                let way = match redraw.node {
                    SegsNode::Detailer => "a smaller guide_size or max_size",
                    SegsNode::Upscaler => "smaller segments or a smaller rescale_factor",
                };
                format!("the segment is redrawn at {}: {way}, or a worker with more memory, helps", seg.size)
            }
            Some((Context::Latent(_), Part::Latent(link))) => format!(
                "the latent is of {} pixels: use_tiled_vae, a smaller upscale_factor, or a worker with more memory, helps",
                link.pixels()
            ),
            _ => "tiles cannot become smaller than they are".to_owned(),
        }
    }

    /// The queues that this job has ready tasks for.
    fn lanes(&self) -> Vec<Lane> {
        let Some(work) = &self.work else { return Vec::new() };
        let ready = work.ready.iter().filter(|((place, _), ready)| *place != Place::Coordinator && !ready.is_empty());
        ready.map(|((place, pace), _)| (place.clone(), *pace, self.job.priority)).collect()
    }

    /// Tasks of the coordinator's own that have all they need and have not begun.
    fn ready_assemblies(&mut self) -> Vec<u32> {
        let Some(work) = &mut self.work else { return Vec::new() };
        let mut ready = work.ready.remove(&(Place::Coordinator, Pace::Short)).unwrap_or_default();
        std::iter::from_fn(|| ready.pop(&work.turn)).collect()
    }

    /// The effect that puts together the picture of `task`, which is ready.
    fn assemble(&mut self, task: u32) -> Effect {
        let work = self.work.as_mut().expect("only a running job has a ready task");
        work.states[task as usize] = TaskState::InFlight;
        Effect::Assemble { job: Box::new(self.job.clone()), plan: work.plan.clone(), task }
    }

    /// Takes the next task for `place`, with its result key and order.
    fn next_ready(&mut self, queue: (Place, Pace), dispatch: u64) -> Option<(u32, ResultKey, Order)> {
        let index = {
            let work = self.work.as_mut()?;
            let ready = work.ready.get_mut(&queue)?;
            loop {
                let index = ready.pop(&work.turn)?;
                if work.states[index as usize] == TaskState::Ready {
                    work.states[index as usize] = TaskState::InFlight;
                    break index;
                }
            }
        };
        let order = self.order(index, dispatch)?;
        let work = self.work.as_ref()?;
        Some((index, work.plan.key_of(&work.plan.tasks()[index as usize]), order))
    }

    /// The order for task `index`.
    fn order(&self, index: u32, dispatch: u64) -> Option<Order> {
        let plan = &self.work.as_ref()?.plan;
        let task = plan.tasks().get(index as usize)?;
        Some(Order {
            dispatch,
            job: self.job.id.clone(),
            task: index.into(),
            context: plan.context_of(task).context.clone(),
            part: task.part.clone(),
        })
    }

    /// Marks a task as done, and those that lacked nothing else as ready.
    fn done(&mut self, task: u32, found: bool) {
        let Some(work) = &mut self.work else { return };
        let state = &mut work.states[task as usize];
        if *state == TaskState::Done {
            return;
        }
        *state = TaskState::Done;
        if let Some(relisting) = &mut work.relisting {
            relisting.done.insert(task);
        }
        self.progress.done += 1;
        self.progress.found += u64::from(found);
        let mut ready = Vec::new();
        for dependant in work.dependants.on(task) {
            let Some(lacking) = work.lacking.get_mut(&dependant) else { continue };
            *lacking -= 1;
            if *lacking == 0 {
                work.lacking.remove(&dependant);
                ready.push(dependant);
            }
        }
        ready.into_iter().for_each(|dependant| work.be_ready(dependant));
    }

    /// Whether `task` is still the one with this result key, and not yet done.
    fn is(&self, task: u32, key: &ResultKey) -> bool {
        let Some(work) = &self.work else { return false };
        let planned = work.plan.tasks().get(task as usize);
        planned.is_some_and(|planned| work.plan.key_of(planned) == *key)
            && work.states[task as usize] == TaskState::InFlight
    }

    /// What a worker said of the last failed try of `task`, and who it was.
    fn last_words(&self, task: u32) -> Option<(String, String)> {
        self.notices.iter().rev().find_map(|numbered| match &numbered.notice {
            Notice::TaskFailed { failure, .. } if failure.task == u64::from(task) => {
                Some((failure.message.clone(), failure.worker.clone()))
            }
            _ => None,
        })
    }

    /// Works out the speed from the last half minute.
    fn keep_pace(&mut self, now: Timestamp) {
        let rendered = self.progress.done - self.progress.found.min(self.progress.done);
        if self.pace.back().is_none_or(|(last, _)| now.millis_since(*last) >= 1000) {
            self.pace.push_back((now, rendered));
        }
        while self.pace.len() > 31 {
            self.pace.pop_front();
        }
        if let Some((first, before)) = self.pace.front() {
            let millis = now.millis_since(*first);
            if millis > 0 {
                self.progress.per_second = rendered.saturating_sub(*before) as f64 * 1000.0 / millis as f64;
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
