use domain::{
    digest::Digest,
    job::{Artifact, Model, Output, OutputFormat, Picture, Precision, Reproducibility, Upscale},
    nodes::{Rendering, SegsUpscale, SegsUpscaler, TiledModel},
    picture::{Color, Format, Sample},
    pipe::{BasicPipe, Checkpoint, Conditioning, Family, MaskRef, Weights},
    region::{Corners, Region, Size},
    segs::{Placed, Prompts, Seg},
    task::ComputeClass,
    touched::Touched,
};
use proto::farm::WorkerTask;

use super::*;

/// A ledger whose clock is a number, and the effects it gives as text.
struct Desk {
    ledger: Ledger,
    now: u64,
}

impl Desk {
    fn new(dispatch_window: usize) -> Self {
        let rules = Rules { dispatch_window, stuck_task: Duration::from_secs(60) };
        Self { ledger: Ledger::new(rules, Timestamp(1)), now: 1000 }
    }

    fn tell(&mut self, event: Event) -> String {
        self.now += 1;
        let effects = self.ledger.apply(event, Timestamp(self.now));
        effects.iter().map(show).collect::<Vec<_>>().join("; ")
    }

    fn admit(&mut self, job: Job, found: &[u32]) -> String {
        let plan = Arc::new(plan(&job).expect("it can be planned"));
        self.tell(Event::Admitted { job: Box::new(job), plan, found: found.to_vec(), outputs: Vec::new() })
    }

    fn report(&mut self, job: &str, task: usize, outcome: Outcome) -> String {
        let key = self.key(job, task);
        let report = Report { key, worker: "w".to_owned(), attempt: 1, job: job.parse().unwrap(), outcome };
        self.tell(Event::Reported(report))
    }

    fn done(&mut self, job: &str, task: usize) -> String {
        self.report(job, task, Outcome::Done { found: false, elapsed: Duration::ZERO })
    }

    fn key(&self, job: &str, task: usize) -> ResultKey {
        let entry = self.ledger.job(&job.parse().unwrap()).expect("the job is known");
        // An ended job has no plan any more, but planning it again gives the same.
        let plan = plan(&entry.job).unwrap();
        plan.key_of(&plan.tasks()[task])
    }

    fn relisted(&mut self, job: &str, listing: u64, found: &[u32]) -> String {
        self.tell(Event::Relisted { job: job.parse().unwrap(), listing, found: found.to_vec(), outputs: vec![] })
    }

    /// Reports that results that a task needs have vanished.
    fn misses(&mut self, job: &str, task: usize, needs: &[usize]) -> String {
        let keys = needs.iter().map(|need| self.key(job, *need)).collect();
        self.report(job, task, Outcome::Missing { keys })
    }

    /// Tasks in all, and those done.
    fn progress(&self, job: &str) -> (u64, u64) {
        let progress = self.ledger.job(&job.parse().unwrap()).expect("the job is known").progress();
        (progress.total, progress.done)
    }

    /// Why the job failed.
    fn why(&self, job: &str) -> &str {
        &self.ledger.job(&job.parse().unwrap()).expect("the job is known").failures[0].message
    }

    fn state(&self, job: &str) -> &'static str {
        self.ledger.job(&job.parse().unwrap()).map_or("unknown", |entry| entry.state.name())
    }

    fn assembled(&mut self, job: &str, task: usize) -> String {
        let key = self.key(job, task);
        let artifact = Artifact { key: "artifacts/x".to_owned(), digest: Digest::of(b"x"), size_bytes: 1 };
        let output = JobOutput {
            name: "p".to_owned(),
            artifact,
            format: OutputFormat::Picture(Format::Png),
            size: Size::new(1, 1),
        };
        self.tell(Event::Assembled { job: job.parse().unwrap(), task: task as u32, key, output })
    }
}

/// A worker says that it has this task in hand.
pub fn beat(key: ResultKey) -> Event {
    Event::Beat(Worker {
        id: "w".to_owned(),
        classes: vec!["cpu.x.f32".parse().unwrap()],
        device: String::new(),
        memory_bytes: 0,
        memory_free_bytes: 0,
        tasks: vec![WorkerTask { key, description: String::new(), fraction: 0.5 }],
        models: vec![],
        tasks_done: 0,
        started: Timestamp(0),
        draining: false,
        version: String::new(),
        speeds: Vec::new(),
    })
}

fn show(effect: &Effect) -> String {
    match effect {
        Effect::Publish { orders, .. } => {
            let orders: Vec<_> = orders.iter().map(|(order, _)| format!("{}/{}", order.job, order.task)).collect();
            format!("publish {}", orders.join(" "))
        }
        Effect::Revoke { keys, .. } => format!("revoke {}", keys.len()),
        Effect::Assemble { job, task, .. } => format!("assemble {}/{task}", job.id),
        Effect::Abandon(job) => format!("abandon {job}"),
        Effect::Relist { job, .. } => format!("relist {}", job.id),
        Effect::StoreJob(job) => {
            let side = tiling_of(&mut job.clone()).expect("only tiles are planned anew").side;
            format!("store {} with tiles of {side}", job.id)
        }
        Effect::StoreEnding(job, ending) => format!("{job} {}", ending.state.name()),
    }
}

/// A job for one picture of `width` x 100 pixels, cut into tiles of 256 that overlap by 32.
pub(crate) fn job(id: &str, width: u32) -> Job {
    let picture = Picture {
        name: "p.png".to_owned(),
        digest: Digest::of(b"picture"),
        size: Size::new(width, 100),
        color: Color::Rgb,
        sample: Sample::U8,
        format: Format::Png,
    };
    let model = Model { digest: Digest::of(b"m"), name: "m".to_owned(), architecture: "Compact".to_owned(), scale: 2 };
    Job {
        id: id.parse().unwrap(),
        request_id: String::new(),
        created: Timestamp(0),
        labels: BTreeMap::new(),
        priority: Priority::Normal,
        deadline: None,
        traceparent: None,
        warnings: Vec::new(),
        kind: JobKind::Upscale(Upscale {
            pictures: vec![picture],
            upscale_model: model,
            tiling: Tiling { side: 256, overlap: 32 },
            precision: Precision::Exact,
            reproducibility: Reproducibility::SameClass,
            class: "cpu.x.f32".parse().unwrap(),
            output: Output::default(),
            resize: None,
        }),
    }
}

fn with_format(mut job: Job, format: Format) -> Job {
    let JobKind::Upscale(upscale) = &mut job.kind else { unreachable!() };
    upscale.output.format = Some(format);
    job
}

#[test]
fn tiles_are_published_then_the_picture_is_assembled_then_the_job_is_done() {
    let mut desk = Desk::new(100);
    assert_eq!(desk.admit(job("a", 400), &[]), "publish a/0 a/1");
    assert_eq!(desk.state("a"), "queued");
    assert_eq!(desk.done("a", 0), "");
    assert_eq!(desk.state("a"), "running");
    assert_eq!(desk.done("a", 1), "assemble a/2");
    assert_eq!(desk.done("a", 1), "", "a report that comes twice changes nothing");
    assert_eq!(desk.assembled("a", 2), "a succeeded");
    assert_eq!(desk.state("a"), "succeeded");
}

#[test]
fn only_what_is_missing_is_published() {
    let mut desk = Desk::new(100);
    assert_eq!(desk.admit(job("a", 600), &[0, 2]), "publish a/1");
    assert_eq!(desk.done("a", 1), "assemble a/3");
    assert_eq!(desk.admit(job("b", 600), &[0, 1, 2]), "assemble b/3");
    assert_eq!(desk.admit(job("c", 600), &[3]), "c succeeded", "what only a finished task needs is not needed");
}

#[test]
fn a_window_keeps_the_queue_short_and_jobs_take_turns() {
    let mut desk = Desk::new(2);
    assert_eq!(desk.admit(job("a", 1000), &[]), "publish a/0 a/1");
    let mut other = job("b", 1000);
    let JobKind::Upscale(upscale) = &mut other.kind else { unreachable!() };
    upscale.pictures[0].digest = Digest::of(b"another");
    assert_eq!(desk.admit(other, &[]), "");
    assert_eq!(desk.done("a", 0), "publish a/2");
    assert_eq!(desk.done("a", 1), "publish b/0");
    assert_eq!(desk.done("b", 0), "publish a/3");
}

#[test]
fn a_task_wanted_by_two_jobs_is_published_once_and_survives_the_cancelling_of_one() {
    let mut desk = Desk::new(100);
    assert_eq!(desk.admit(job("a", 400), &[]), "publish a/0 a/1");
    assert_eq!(desk.admit(with_format(job("b", 400), Format::Tiff), &[]), "");
    assert_eq!(desk.tell(Event::Cancelled("a".parse().unwrap())), "abandon a; a cancelled");
    assert_eq!(desk.done("b", 0), "");
    assert_eq!(desk.done("b", 1), "assemble b/2");
}

#[test]
fn cancelling_takes_back_what_nobody_else_wants() {
    let mut desk = Desk::new(100);
    desk.admit(job("a", 400), &[]);
    assert_eq!(desk.tell(Event::Cancelled("a".parse().unwrap())), "revoke 2; abandon a; a cancelled");
    assert_eq!(desk.tell(Event::Cancelled("a".parse().unwrap())), "", "once is enough");
    assert_eq!(desk.done("a", 0), "", "a report that comes late changes nothing");
    // Tried again, with what was found.
    assert_eq!(desk.admit(job("a", 400), &[0]), "publish a/1");
    assert_eq!(desk.state("a"), "queued");
}

#[test]
fn a_task_that_fails_fails_its_job_and_says_why() {
    let mut desk = Desk::new(100);
    desk.admit(job("a", 400), &[]);
    desk.report("a", 0, Outcome::Retrying { message: "once".to_owned() });
    assert_eq!(desk.state("a"), "queued");
    let effects = desk.report("a", 0, Outcome::Failed { message: "weights lack a tensor".to_owned() });
    assert_eq!(effects, "revoke 1; abandon a; a failed");
    let entry = desk.ledger.job(&"a".parse().unwrap()).unwrap();
    assert_eq!(entry.failures[0].description, "upscale 256x100+0+0 of p.png");
    assert_eq!(entry.failures[0].message, "weights lack a tensor");
}

#[test]
fn a_parked_task_fails_its_job_with_the_last_words_unless_it_was_ordered_anew() {
    let mut desk = Desk::new(100);
    let first = job("a", 400);
    let plan = Arc::new(plan(&first).unwrap());
    desk.now += 1;
    let admitted = Event::Admitted { job: Box::new(first), plan, found: vec![], outputs: vec![] };
    let effects = desk.ledger.apply(admitted, Timestamp(desk.now));
    let [Effect::Publish { orders, .. }] = &effects[..] else { panic!("{effects:?}") };
    let order = orders[0].0.clone();
    let stale = Order { dispatch: order.dispatch - 1, ..order.clone() };
    assert_eq!(desk.tell(Event::Parked { order: Box::new(stale), attempts: 3 }), "");
    desk.report("a", 0, Outcome::Retrying { message: "the device fell off the bus".to_owned() });
    let effects = desk.tell(Event::Parked { order: Box::new(order), attempts: 3 });
    assert_eq!(effects, "revoke 1; abandon a; a failed");
    let why = &desk.ledger.job(&"a".parse().unwrap()).unwrap().failures[0].message;
    assert!(why.contains("given up after 3 attempts") && why.contains("fell off the bus"), "{why}");
}

#[test]
fn a_task_that_died_untried_is_ordered_again_a_few_times() {
    let mut desk = Desk::new(100);
    desk.admit(job("a", 100), &[]);
    let order = |desk: &Desk| {
        let entry = desk.ledger.job(&"a".parse().unwrap()).unwrap();
        entry.order(0, desk.ledger.next_dispatch).unwrap()
    };
    for _ in 0..MOST_UNTRIED {
        let order = Box::new(order(&desk));
        assert_eq!(desk.tell(Event::Parked { order, attempts: 3 }), "publish a/0");
    }
    let order = Box::new(order(&desk));
    assert_eq!(desk.tell(Event::Parked { order, attempts: 3 }), "abandon a; a failed");
}

#[test]
fn a_job_that_names_the_same_picture_twice_ends() {
    let mut desk = Desk::new(100);
    let mut twice = job("a", 100);
    let JobKind::Upscale(upscale) = &mut twice.kind else { unreachable!() };
    upscale.pictures.push(upscale.pictures[0].clone());
    assert_eq!(desk.admit(twice, &[]), "publish a/0");
    assert_eq!(desk.done("a", 0), "assemble a/1; assemble a/3");
    assert_eq!(desk.assembled("a", 3), "");
    assert_eq!(desk.assembled("a", 1), "a succeeded");
}

#[test]
fn a_more_urgent_job_pulls_shared_work_ahead() {
    let mut desk = Desk::new(100);
    assert_eq!(desk.admit(job("a", 100), &[]), "publish a/0");
    let urgent = Job { priority: Priority::High, ..with_format(job("b", 100), Format::Tiff) };
    assert_eq!(desk.admit(urgent, &[]), "publish b/0");
    assert_eq!(desk.done("b", 0), "assemble a/1; assemble b/1");
}

#[test]
fn out_of_memory_halves_the_tiles_of_the_whole_job_and_records_it() {
    let mut desk = Desk::new(100);
    desk.admit(job("a", 400), &[]);
    desk.done("a", 0);
    let effects = desk.report("a", 1, Outcome::OutOfMemory { message: "no memory".to_owned() });
    assert_eq!(effects, "abandon a; store a with tiles of 128; publish a/0 a/1 a/2 a/3");
    assert_eq!(desk.ledger.job(&"a".parse().unwrap()).unwrap().warnings.len(), 1);
    let effects = desk.report("a", 1, Outcome::OutOfMemory { message: "no memory".to_owned() });
    assert_eq!(effects, "revoke 3; abandon a; a failed", "128 is the smallest");
}

#[test]
fn out_of_memory_halves_the_tiles_once_though_jobs_hold_the_work_twice() {
    let twice = |id| {
        let mut job = job(id, 400);
        let JobKind::Upscale(upscale) = &mut job.kind else { unreachable!() };
        upscale.tiling = Tiling { side: 512, overlap: 32 };
        upscale.pictures.push(upscale.pictures[0].clone());
        job
    };
    let mut desk = Desk::new(100);
    desk.admit(twice("a"), &[]);
    desk.admit(twice("b"), &[]);
    let key = desk.key("a", 0);
    let flight = desk.ledger.flights.get_mut(&key).expect("the work is in flight");
    flight.claims = [("a", 0), ("b", 0), ("a", 2), ("b", 2)].map(|(id, task)| (id.parse().unwrap(), task)).into();
    desk.report("a", 0, Outcome::OutOfMemory { message: "no memory".to_owned() });
    for id in ["a", "b"] {
        let JobKind::Upscale(upscale) = &desk.ledger.job(&id.parse().unwrap()).unwrap().job.kind else {
            unreachable!()
        };
        assert_eq!(upscale.tiling.side, 256, "{id}");
    }
}

#[test]
fn results_that_vanished_are_rendered_again() {
    let mut desk = Desk::new(100);
    desk.admit(job("a", 400), &[0]);
    assert_eq!(desk.done("a", 1), "assemble a/2");
    let (key, lost) = (desk.key("a", 2), desk.key("a", 0));
    let event =
        |missing| Event::NotAssembled { job: "a".parse().unwrap(), task: 2, key, message: "gone".to_owned(), missing };
    assert_eq!(desk.tell(event(vec![lost])), "relist a");
    assert_eq!(desk.relisted("a", 0, &[1]), "publish a/0");
    assert_eq!(desk.progress("a"), (3, 1));
    assert_eq!(desk.done("a", 0), "assemble a/2");
    assert_eq!(desk.tell(event(vec![])), "abandon a; a failed", "nothing to render again: it cannot be helped");
}

#[test]
fn a_task_that_nobody_speaks_of_is_published_again() {
    let mut desk = Desk::new(100);
    desk.admit(job("a", 400), &[]);
    let lane: Lane = (Place::Class("cpu.x.f32".parse::<ComputeClass>().unwrap()), Pace::Short, Priority::Normal);
    let tick = |depth| Event::Tick { depths: HashMap::from([(lane.clone(), depth)]) };
    desk.now += 61_000;
    assert_eq!(desk.tell(tick(2)), "", "it still waits on its queue");
    desk.tell(beat(desk.key("a", 0)));
    assert_eq!(desk.state("a"), "running");
    assert_eq!(desk.tell(tick(0)), "publish a/1", "task 0 is in a worker's hands");
    desk.now += 61_000;
    assert_eq!(desk.tell(tick(5)), "publish a/0", "its worker fell silent");
}

#[test]
fn what_is_in_hand_is_what_workers_speak_of_for_every_job_that_wants_it() {
    let mut desk = Desk::new(100);
    desk.admit(segs_job("a", &CHAIN, None), &[]);
    desk.admit(segs_job("b", &CHAIN[..2], None), &[]);
    let in_hand = |desk: &Desk, job: &str| {
        let in_hand = desk.ledger.in_hand(&job.parse().unwrap())?;
        let show = |task: InHand| format!("{} {} at {}", task.task, task.description, task.region);
        Some(in_hand.into_iter().map(show).collect::<Vec<_>>().join(", "))
    };
    assert_eq!(in_hand(&desk, "a").unwrap(), "", "nobody has spoken of it");
    let key = desk.key("a", 0);
    desk.tell(beat(key));
    for job in ["a", "b"] {
        assert_eq!(in_hand(&desk, job).unwrap(), "0 redraw 64x64+0+0 of p.png at 64x64+0+0");
    }
    assert!(desk.ledger.in_hand(&"a".parse().unwrap()).unwrap().iter().all(|task| task.key == key));
    desk.done("a", 0);
    assert_eq!(in_hand(&desk, "b").unwrap(), "");
    desk.tell(Event::Cancelled("b".parse().unwrap()));
    assert_eq!((in_hand(&desk, "b"), in_hand(&desk, "c")), (None, None), "one has ended, the other never was");
}

#[test]
fn a_deadline_ends_a_job() {
    let mut desk = Desk::new(100);
    let late = Job { deadline: Some(Timestamp(5_000)), ..job("a", 400) };
    desk.admit(late, &[]);
    assert_eq!(desk.tell(Event::Tick { depths: HashMap::new() }), "");
    desk.now = 5_001;
    assert_eq!(desk.tell(Event::Tick { depths: HashMap::new() }), "revoke 2; abandon a; a failed");
}

#[test]
fn a_watcher_gets_what_it_missed_or_is_told_that_it_is_gone() {
    let mut desk = Desk::new(100);
    desk.admit(job("a", 400), &[]);
    let start = desk.ledger.job(&"a".parse().unwrap()).unwrap().sequence();
    desk.done("a", 0);
    desk.done("a", 1);
    let entry = desk.ledger.job(&"a".parse().unwrap()).unwrap();
    assert_eq!(entry.notices_after(start).unwrap().count(), 3, "a change of state and two tiles");
    assert_eq!(entry.notices_after(entry.sequence()).unwrap().count(), 0);
    assert!(entry.notices_after(start - 5).is_none());
}

/// `SEGSUpscalerPipe` of a picture of 512x64 with a segment in each of `columns`: left, width. Every segment changes all
/// pixels of its crop, so that those that meet depend on each other.
pub(crate) fn segs_job(id: &str, columns: &[(u32, u32)], upscale_model: Option<u32>) -> Job {
    let seg = |&(left, width): &(u32, u32)| {
        let region = Region::new(left, 0, width, 64);
        let size = region.size();
        Placed {
            seg: Seg {
                bbox: Corners::from(region).into(),
                crop_region: region.into(),
                label: String::new(),
                confidence: 1.0,
                cropped_mask: MaskRef { digest: Digest::of(b"mask"), size },
                cropped_image: None,
                prompts: Prompts::default(),
                control_nets: Vec::new(),
            },
            is_empty: false,
            touched: Touched::of(region, &vec![1.0; size.pixels() as usize]),
        }
    };
    let plain = job(id, 512);
    let JobKind::Upscale(Upscale { pictures, upscale_model: model, .. }) = &plain.kind else { unreachable!() };
    let picture = Picture { size: Size::new(512, 64), ..pictures[0].clone() };
    let tiled = |side| TiledModel {
        model: Model { scale: 1, ..model.clone() },
        tiling: Tiling { side, overlap: 0 },
        precision: Precision::Exact,
    };
    let weights = Weights { digest: Digest::of(b"sd"), name: "sd".to_owned() };
    let kind = SegsUpscale {
        picture,
        segs: columns.iter().map(seg).collect(),
        overrides: Vec::new(),
        basic_pipe: BasicPipe {
            checkpoint: Checkpoint { weights, family: Family::Sd1, in_channels: 4 },
            vae: None,
            loras: Vec::new(),
            embeddings: Vec::new(),
            stop_at_clip_layer: None,
            positive: vec![Conditioning::everywhere("")],
            negative: vec![Conditioning::everywhere("")],
            control_nets: Vec::new(),
        },
        upscale_model: upscale_model.map(tiled),
        upscaler: SegsUpscaler { rescale_factor: 1.0, supersample: false, ..SegsUpscaler::default() },
        rendering: Rendering {
            precision: Precision::Exact,
            reproducibility: Reproducibility::SameClass,
            class: "cpu.x.f32".parse().unwrap(),
            output: Output::default(),
            reference_quirks: false,
        },
    };
    Job { kind: JobKind::SegsUpscale(Box::new(kind)), ..plain }
}

/// Three segments, each over the one before.
pub const CHAIN: [(u32, u32); 3] = [(0, 64), (32, 64), (64, 64)];

#[test]
fn a_segment_is_published_when_those_below_it_are_done() {
    let mut desk = Desk::new(100);
    assert_eq!(desk.admit(segs_job("a", &CHAIN, None), &[]), "publish a/0");
    assert_eq!(desk.done("a", 0), "publish a/1");
    assert_eq!(desk.done("a", 1), "publish a/2");
    assert_eq!(desk.done("a", 2), "assemble a/3");
    assert_eq!(desk.assembled("a", 3), "a succeeded");
}

#[test]
fn the_task_with_the_longest_chain_behind_it_goes_first_and_of_equal_ones_the_first() {
    // 0 and 1 stand alone, 2 <- 3 <- 4 is a chain, 5 is as large as two of the others.
    let columns = [(400, 32), (440, 32), (0, 64), (32, 64), (64, 64), (200, 128)];
    let mut desk = Desk::new(1);
    assert_eq!(desk.admit(segs_job("a", &columns, None), &[]), "publish a/2");
    assert_eq!(desk.done("a", 2), "publish a/3", "what has 4 behind it and 5 cost the same: the first goes first");
    assert_eq!(desk.done("a", 3), "publish a/5");
    assert_eq!(desk.done("a", 5), "publish a/4");
    assert_eq!(desk.done("a", 4), "publish a/0");
    assert_eq!(desk.done("a", 0), "publish a/1");
    assert_eq!(desk.done("a", 1), "assemble a/6");
}

#[test]
fn a_segment_whose_needs_vanished_waits_until_they_are_made_again() {
    let mut desk = Desk::new(100);
    desk.admit(segs_job("a", &CHAIN, None), &[]);
    desk.done("a", 0);
    assert_eq!(desk.done("a", 1), "publish a/2");
    assert_eq!(desk.misses("a", 2, &[1]), "relist a");
    assert_eq!(desk.relisted("a", 7, &[0, 1]), "", "another listing does not count");
    // The store has nothing any more: what is lost is made again from the bottom.
    assert_eq!(desk.relisted("a", 0, &[]), "publish a/0");
    assert_eq!(desk.progress("a"), (4, 0));
    assert_eq!(desk.done("a", 0), "publish a/1");
    assert_eq!(desk.done("a", 1), "publish a/2");
    assert_eq!(desk.done("a", 2), "assemble a/3");
    assert_eq!(desk.assembled("a", 3), "a succeeded");
}

#[test]
fn what_is_done_while_the_store_is_listed_counts_and_what_is_known_to_be_gone_does_not() {
    let mut desk = Desk::new(100);
    let columns = [(0, 64), (32, 64), (200, 64)];
    assert_eq!(desk.admit(segs_job("a", &columns, None), &[]), "publish a/0 a/2");
    assert_eq!(desk.done("a", 0), "publish a/1");
    assert_eq!(desk.misses("a", 1, &[0]), "relist a");
    assert_eq!(desk.done("a", 2), "");
    // The listing passed 0 before it vanished, and 2 before it came.
    assert_eq!(desk.relisted("a", 0, &[0]), "publish a/0");
    assert_eq!(desk.progress("a"), (4, 1));
    assert_eq!(desk.done("a", 0), "publish a/1");
    assert_eq!(desk.done("a", 1), "assemble a/3");
}

#[test]
fn what_is_in_flight_stays_there_while_the_store_is_listed() {
    let mut desk = Desk::new(100);
    let columns = [(0, 64), (32, 64), (200, 64)];
    desk.admit(segs_job("a", &columns, None), &[]);
    desk.done("a", 0);
    assert_eq!(desk.misses("a", 1, &[0]), "relist a");
    assert_eq!(desk.relisted("a", 0, &[]), "publish a/0", "2 is still with its worker");
    assert_eq!(desk.done("a", 2), "");
    assert_eq!(desk.done("a", 0), "publish a/1");
    assert_eq!(desk.done("a", 1), "assemble a/3");
}

#[test]
fn a_store_that_keeps_losing_results_fails_the_job() {
    let mut desk = Desk::new(100);
    desk.admit(segs_job("a", &CHAIN, None), &[]);
    desk.done("a", 0);
    for listing in 0..u64::from(MOST_RELISTS) {
        assert_eq!(desk.misses("a", 1, &[0]), "relist a");
        assert_eq!(desk.relisted("a", listing, &[]), "publish a/0");
        assert_eq!(desk.done("a", 0), "publish a/1");
    }
    assert_eq!(desk.misses("a", 1, &[0]), "abandon a; a failed");
    assert!(desk.why("a").starts_with("results that it needs vanished from the store 4 times"), "{}", desk.why("a"));
}

#[test]
fn a_store_that_cannot_be_listed_fails_the_job() {
    let mut desk = Desk::new(100);
    desk.admit(segs_job("a", &CHAIN, None), &[]);
    desk.done("a", 0);
    desk.misses("a", 1, &[0]);
    let event = Event::NotRelisted { job: "a".parse().unwrap(), listing: 0, message: "forbidden".to_owned() };
    assert_eq!(desk.tell(event), "abandon a; a failed");
    assert!(desk.why("a").ends_with("forbidden"), "{}", desk.why("a"));
}

#[test]
fn a_coordinator_that_dies_between_a_paste_and_the_next_crop_leaves_the_same_work() {
    let mut desk = Desk::new(100);
    desk.admit(segs_job("a", &CHAIN, None), &[]);
    assert_eq!(desk.done("a", 0), "publish a/1");
    // Another coordinator knows only what the store holds.
    let mut other = Desk::new(100);
    assert_eq!(other.admit(segs_job("a", &CHAIN, None), &[0]), "publish a/1");
    for desk in [&mut desk, &mut other] {
        assert_eq!(desk.done("a", 1), "publish a/2");
        assert_eq!(desk.done("a", 2), "assemble a/3");
        assert_eq!(desk.assembled("a", 3), "a succeeded");
    }
}

#[test]
fn out_of_memory_on_a_segment_says_its_size_and_the_way_out() {
    let mut desk = Desk::new(100);
    desk.admit(segs_job("a", &CHAIN, Some(256)), &[0, 1]);
    let effects = desk.report("a", 2, Outcome::OutOfMemory { message: "no memory".to_owned() });
    assert_eq!(effects, "abandon a; a failed");
    let why = desk.why("a");
    assert!(why.contains("redrawn at 64x64") && why.contains("a worker with more memory"), "{why}");
}

#[test]
fn out_of_memory_on_a_tile_under_segments_halves_the_tiles() {
    let mut desk = Desk::new(100);
    assert_eq!(desk.admit(segs_job("a", &CHAIN, Some(256)), &[]), "publish a/0 a/1");
    let effects = desk.report("a", 0, Outcome::OutOfMemory { message: "no memory".to_owned() });
    assert_eq!(effects, "revoke 1; abandon a; store a with tiles of 128; publish a/0 a/1 a/2 a/3");
}
