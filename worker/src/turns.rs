//! Who renders next: among the tasks in hand that wait for the device, the most urgent; of these, one whose networks are loaded
//! before one whose networks are not; with it, where batches are asked for, what goes together with it.
//!
//! All of these tasks are this worker's to render, whatever their order: nobody else could begin them. And none is passed over
//! more than a few times.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use domain::{digest::Digest, job::Priority, task::ComputeClass};
use tokio::{sync::oneshot, task::spawn_blocking};
use tracing::{Span, info, info_span};

use crate::{
    engine::{Engine, RenderError, Watch, Work, panic_message},
    speeds::Speeds,
};

/// How often a task lets others go first that came later, however urgent they are.
const MOST_PASSES: u32 = 16;

/// The device, and the tasks that wait for it.
pub struct Turns {
    engine: Arc<dyn Engine>,
    speeds: Arc<Speeds>,
    /// The most tasks that are rendered as a batch.
    batch: usize,
    state: Mutex<State>,
}

struct State {
    /// Threads that may render beside those that do.
    free: usize,
    /// In the order in which they came.
    waiting: Vec<Waiting>,
}

/// A task for the device.
pub struct Candidate {
    /// How urgent it is.
    pub priority: Priority,
    /// As what it is rendered.
    pub class: ComputeClass,
    /// What it is.
    pub work: Work,
    /// Who follows.
    pub watch: Arc<Watch>,
}

/// A task that waits.
struct Waiting {
    candidate: Candidate,
    /// How often one that came later went first.
    passes: u32,
    parent: Span,
    begun: oneshot::Sender<()>,
    done: Answer,
}

/// Where the end of a task is told.
type Answer = oneshot::Sender<Result<Rendered, RenderError>>;

/// What became of a task.
#[derive(Debug)]
pub struct Rendered {
    /// Its result as it is stored, little-endian.
    pub pixels: Bytes,
    /// How long it took; of a batch, each task's part of that.
    pub elapsed: Duration,
    /// How much of that time the device had for it.
    pub device_time: Duration,
}

/// A place in the line. Dropping it gives the place up, as long as rendering has not begun.
pub struct Ticket {
    /// Comes when rendering begins.
    pub begun: oneshot::Receiver<()>,
    /// Comes when it is over.
    pub done: oneshot::Receiver<Result<Rendered, RenderError>>,
}

impl Turns {
    /// A line for `slots` threads of `engine`, which renders up to `batch` tasks as one. Device time is counted by `speeds`.
    pub fn new(engine: Arc<dyn Engine>, speeds: Arc<Speeds>, slots: usize, batch: usize) -> Arc<Self> {
        Arc::new(Self { engine, speeds, batch, state: Mutex::new(State { free: slots, waiting: Vec::new() }) })
    }

    /// Puts a task in line.
    pub fn enter(self: &Arc<Self>, candidate: Candidate) -> Ticket {
        let ((begun, has_begun), (done, is_done)) = (oneshot::channel(), oneshot::channel());
        self.state().waiting.push(Waiting { candidate, passes: 0, parent: Span::current(), begun, done });
        self.begin();
        Ticket { begun: has_begun, done: is_done }
    }

    /// Renders what is next, as long as there is a thread for it.
    fn begin(self: &Arc<Self>) {
        loop {
            let group = {
                let mut state = self.state();
                state.waiting.retain(|waiting| !waiting.begun.is_closed());
                if state.free == 0 || state.waiting.is_empty() {
                    return;
                }
                state.free -= 1;
                self.take(&mut state.waiting)
            };
            let turns = self.clone();
            tokio::spawn(async move {
                turns.render(group).await;
                turns.state().free += 1;
                turns.begin();
            });
        }
    }

    /// Takes what is next out of `waiting`, of which there is some.
    fn take(&self, waiting: &mut Vec<Waiting>) -> Vec<Waiting> {
        // What is loaded matters only where there is a choice.
        let loaded = if waiting.len() > 1 { self.engine.device().models.into_iter().collect() } else { HashSet::new() };
        let first = next(waiting.iter().map(|waiting| (&waiting.candidate, waiting.passes)), &loaded);
        let mut taken = vec![first];
        let with = &waiting[first].candidate;
        let goes_along = |&index: &usize| index != first && goes_with(with, &waiting[index].candidate);
        taken.extend((0..waiting.len()).filter(goes_along).take(self.batch - 1));
        let last = taken.iter().copied().max().unwrap_or(first);
        let (mut group, mut left) = (Vec::with_capacity(taken.len()), Vec::with_capacity(waiting.len()));
        for (index, mut one) in waiting.drain(..).enumerate() {
            if taken.contains(&index) {
                group.push(one);
            } else {
                one.passes += u32::from(index < last);
                left.push(one);
            }
        }
        *waiting = left;
        group
    }

    /// Renders a group of tasks on a thread of its own, and answers each as soon as it is done.
    async fn render(&self, group: Vec<Waiting>) {
        let (mut answers, mut parents, mut tasks) = (Vec::new(), Vec::new(), Vec::new());
        for Waiting { candidate: Candidate { class, work, watch, .. }, parent, begun, done, .. } in group {
            if begun.send(()).is_err() {
                continue; // it gave up its place at this moment
            }
            answers.push(Mutex::new(Some(done)));
            parents.push(parent);
            tasks.push((class, work, watch));
        }
        let count = tasks.len() as u32;
        if count == 0 {
            return;
        }
        if count > 1 {
            info!(task.count = count, "rendering tasks as a batch");
        }
        let spans: Vec<Span> =
            parents.iter().map(|parent| info_span!(parent: parent, "render", batch.size = count)).collect();
        let answers = Arc::new(answers);
        let (engine, speeds, told) = (self.engine.clone(), self.speeds.clone(), answers.clone());
        let rendering = spawn_blocking(move || {
            let _span = spans[0].enter();
            let (start, stay) = (Instant::now(), speeds.begin());
            render(&*engine, &tasks, &|index, pixels| {
                let [elapsed, device_time] = [start.elapsed(), stay.device_time()].map(|time| time / count);
                answer(&told[index], pixels.map(|pixels| Rendered { pixels, elapsed, device_time }));
            });
        });
        if let Err(died) = rendering.await {
            let message = match died.try_into_panic() {
                Ok(panic) => panic_message(&*panic),
                Err(cancelled) => cancelled.to_string(),
            };
            for each in &*answers {
                answer(each, Err(RenderError::Panicked { message: message.clone() }));
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tells the end of a task, unless it was told before.
fn answer(to: &Mutex<Option<Answer>>, rendered: Result<Rendered, RenderError>) {
    if let Some(answer) = to.lock().unwrap_or_else(PoisonError::into_inner).take() {
        let _ = answer.send(rendered); // whoever waited for it may have gone
    }
}

/// The index of the candidate whose turn it is, of at least one; each comes with its passes, in the order in which they came.
fn next<'a>(waiting: impl Iterator<Item = (&'a Candidate, u32)> + Clone, loaded: &HashSet<Digest>) -> usize {
    if let Some(patient) = waiting.clone().position(|(_, passes)| passes >= MOST_PASSES) {
        return patient;
    }
    let urgent = waiting.clone().map(|(candidate, _)| candidate.priority).max().expect("somebody waits");
    let equals = waiting.enumerate().filter(|(_, (candidate, _))| candidate.priority == urgent);
    let missing = |work: &Work| work.models().filter(|model| !loaded.contains(model)).count();
    let best = equals.min_by_key(|(index, (candidate, _))| (missing(&candidate.work), *index));
    best.expect("somebody is as urgent as that").0
}

/// Whether two tasks can be a batch.
fn goes_with(a: &Candidate, b: &Candidate) -> bool {
    a.priority == b.priority && a.class == b.class && a.work.goes_with(&b.work)
}

/// Renders tasks that go together, of at least one, and tells `done` of each: its index, and its result as it is stored.
fn render(
    engine: &dyn Engine,
    tasks: &[(ComputeClass, Work, Arc<Watch>)],
    done: &(dyn Fn(usize, Result<Bytes, RenderError>) + Sync),
) {
    let finish = |index: usize, samples: Result<Vec<f32>, RenderError>| {
        let (_, work, watch) = &tasks[index];
        let expected = work.output_values();
        done(
            index,
            match samples {
                Ok(samples) if samples.len() == expected => {
                    watch.tell(1.0);
                    Ok(imaging::bytes::to_le(&samples).into())
                }
                Ok(samples) => Err(RenderError::WrongLength { expected, found: samples.len() }),
                Err(error) => Err(error),
            },
        );
    };
    match tasks {
        [(class, work, watch)] if watch.tell(0.0) => finish(0, engine.render(class, work, watch)),
        [_] => finish(0, Err(RenderError::Interrupted)),
        _ => {
            let each: Vec<_> = tasks.iter().map(|(_, work, watch)| (work, &**watch)).collect();
            engine.render_batch(&tasks[0].0, &each, &finish);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use domain::{
        job::Precision,
        pipe::{BasicPipe, Checkpoint, Family, Weights},
        region::{Region, Size},
        sampling::KSampler,
        segs::Prompts,
        task::{Base, DECODE_REVISION, Place, REDRAW_REVISION, Redraw, SegTask, SegsNode},
    };
    use imaging::frames::Frames;
    use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

    use super::*;
    use crate::engine::{DeviceFacts, Done, RedrawWork, UpscaleWork};

    fn class() -> ComputeClass {
        "cpu.scripted.f32".parse().unwrap()
    }

    fn candidate(priority: Priority, work: Work) -> Candidate {
        Candidate { priority, class: class(), work, watch: Arc::default() }
    }

    fn tile(model: &str) -> Work {
        let (region, model) = (Region::new(0, 0, 1, 1), Digest::of(model.as_bytes()));
        Work::Upscale(UpscaleWork { region, rgb: vec![0.0; 3], scale: 1, model, weights: PathBuf::new() })
    }

    /// The order in which tasks are rendered, each written as its priority and its model, while the models `loaded` are.
    fn check(waiting: &str, loaded: &str, expected: &str) {
        let loaded = loaded.chars().map(|model| Digest::of(model.to_string().as_bytes())).collect();
        let mut waiting: Vec<(&str, u32)> = waiting.split(' ').map(|word| (word, 0)).collect();
        let mut order = Vec::new();
        while !waiting.is_empty() {
            let parse = |(word, passes): &(&str, u32)| {
                let priority = match &word[..1] {
                    "h" => Priority::High,
                    "n" => Priority::Normal,
                    _ => Priority::Low,
                };
                (candidate(priority, tile(&word[1..2])), *passes)
            };
            let candidates: Vec<_> = waiting.iter().map(parse).collect();
            let next = next(candidates.iter().map(|(candidate, passes)| (candidate, *passes)), &loaded);
            waiting[..next].iter_mut().for_each(|(_, passes)| *passes += 1);
            order.push(waiting.remove(next).0);
        }
        assert_eq!(order.join(" "), expected);
    }

    #[test]
    fn urgent_tasks_come_first_then_those_whose_networks_are_loaded_then_who_came_first() {
        check("nb1 na2 hc9", "", "hc9 nb1 na2");
        check("nb1 na2 nb3 na4", "a", "na2 na4 nb1 nb3");
        check("la1 nb5 hb7 na6", "a", "hb7 na6 nb5 la1");
        check("nc1 nb2 na3", "ab", "nb2 na3 nc1");
    }

    #[test]
    fn nobody_is_passed_over_more_than_a_few_times() {
        let others = ["na"; MOST_PASSES as usize].join(" ");
        check(&format!("nb {others} na na"), "a", &format!("{others} nb na na"));
        check(&format!("la {} hb", others.replace("na", "hb")), "", &format!("{} la hb", others.replace("na", "hb")));
    }

    /// A segment of a row of pixels that begins at column `x`, of which the pipe's checkpoint is called `model`.
    fn seg(x: u32, size: Size, model: &str) -> Work {
        let weights = Weights { digest: Digest::of(model.as_bytes()), name: String::new() };
        let context = Redraw {
            revision: REDRAW_REVISION,
            base: Base {
                picture: Digest::of(b"picture"),
                decode: DECODE_REVISION,
                size: Size::new(99, 1),
                enlarged: None,
            },
            feather: 0,
            basic_pipe: BasicPipe {
                checkpoint: Checkpoint { weights, family: Family::Sd1, in_channels: 4 },
                vae: None,
                loras: Vec::new(),
                embeddings: Vec::new(),
                positive: Vec::new(),
                negative: Vec::new(),
                control_nets: Vec::new(),
                stop_at_clip_layer: None,
            },
            refiner: None,
            sampler: KSampler::default(),
            cycle: 1,
            noise_mask_feather: 0,
            inpaint_model: false,
            node: SegsNode::Detailer,
            reference_quirks: false,
            precision: Precision::Exact,
            place: Place::Class(class()),
        };
        let seg = SegTask {
            region: Region::new(x, 0, 1, 1),
            size,
            mask: None,
            pixels: None,
            prompts: Prompts::default(),
            control_nets: Vec::new(),
            seed: 0,
            below: Vec::new(),
        };
        let crop = Frames::new(1, Size::new(1, 1), 3, vec![0.0; 3]).unwrap();
        Work::Redraw(Box::new(RedrawWork { context, seg, crop, mask: None, inputs: Default::default() }))
    }

    /// An engine that says which columns it renders together, waits for a word, and does as the column says: 66 fails, 77
    /// panics, and every other is its own number.
    struct Columns {
        classes: Vec<ComputeClass>,
        begun: UnboundedSender<Vec<u32>>,
        go_on: Mutex<std::sync::mpsc::Receiver<()>>,
    }

    fn column(work: &Work) -> u32 {
        let Work::Redraw(work) = work else { unreachable!("only segments are rendered here") };
        work.seg.region.x
    }

    impl Engine for Columns {
        fn classes(&self) -> &[ComputeClass] {
            &self.classes
        }

        fn device(&self) -> DeviceFacts {
            DeviceFacts::default()
        }

        fn render(&self, class: &ComputeClass, work: &Work, watch: &Watch) -> Result<Vec<f32>, RenderError> {
            let result = Mutex::new(None);
            self.render_batch(class, &[(work, watch)], &|_, rendered| *result.lock().unwrap() = Some(rendered));
            result.into_inner().unwrap().unwrap()
        }

        fn render_batch(&self, _: &ComputeClass, tasks: &[(&Work, &Watch)], done: &Done<'_>) {
            self.begun.send(tasks.iter().map(|(work, _)| column(work)).collect()).unwrap();
            self.go_on.lock().unwrap().recv().unwrap();
            for (index, (work, watch)) in tasks.iter().enumerate() {
                done(
                    index,
                    match column(work) {
                        _ if watch.stop().is_some() => Err(RenderError::Interrupted),
                        66 => Ok(Vec::new()),
                        77 => panic!("the card is on fire"),
                        x => Ok(vec![x as f32; work.output_values()]),
                    },
                );
            }
        }
    }

    /// A line of one slot and batches of 3, what it begins, and the word to go on.
    fn line() -> (Arc<Turns>, UnboundedReceiver<Vec<u32>>, std::sync::mpsc::Sender<()>) {
        let ((begun, has_begun), (go_on, may_go_on)) = (unbounded_channel(), std::sync::mpsc::channel());
        let engine = Columns { classes: vec![class()], begun, go_on: Mutex::new(may_go_on) };
        (Turns::new(Arc::new(engine), Arc::default(), 1, 3), has_begun, go_on)
    }

    const SIZE: Size = Size::new(8, 8);

    #[tokio::test]
    async fn what_goes_together_is_rendered_together_while_it_waits() {
        let (turns, mut begun, go_on) = line();
        let enter = |x, size, model| turns.enter(candidate(Priority::Normal, seg(x, size, model)));
        let mut tickets = vec![enter(0, SIZE, "a")];
        assert_eq!(begun.recv().await, Some(vec![0]), "the first waits for nobody");
        let others = [
            (1, SIZE, "a"),
            (2, Size::new(8, 16), "a"),
            (3, SIZE, "b"),
            (4, SIZE, "a"),
            (5, SIZE, "a"),
            (6, SIZE, "a"),
            (7, SIZE, "b"),
        ];
        tickets.extend(others.map(|(x, size, model)| enter(x, size, model)));
        drop(tickets.remove(4)); // column 4: nobody wants it any more
        for group in [vec![1, 5, 6], vec![2], vec![3, 7]] {
            go_on.send(()).unwrap();
            assert_eq!(begun.recv().await, Some(group));
        }
        go_on.send(()).unwrap();
        for (ticket, x) in tickets.into_iter().zip([0.0_f32, 1.0, 2.0, 3.0, 5.0, 6.0, 7.0]) {
            let pixels = ticket.done.await.unwrap().unwrap().pixels;
            assert_eq!(pixels[..4], x.to_le_bytes());
        }
    }

    #[tokio::test]
    async fn each_of_a_batch_has_an_end_of_its_own() {
        let (turns, mut begun, go_on) = line();
        let enter = |x| turns.enter(candidate(Priority::Normal, seg(x, SIZE, "a")));
        let first = enter(0);
        begun.recv().await.unwrap();
        let revoked = candidate(Priority::Normal, seg(1, SIZE, "a"));
        let watch = revoked.watch.clone();
        let group = [turns.enter(revoked), enter(66), enter(3)];
        let panicked = [enter(4), enter(77), enter(5)];
        go_on.send(()).unwrap();
        assert_eq!(begun.recv().await, Some(vec![1, 66, 3]));
        watch.revoke();
        go_on.send(()).unwrap();
        assert_eq!(begun.recv().await, Some(vec![4, 77, 5]));
        go_on.send(()).unwrap();
        let mut told = Vec::new();
        for ticket in [first].into_iter().chain(group).chain(panicked) {
            told.push(match ticket.done.await.unwrap() {
                Ok(rendered) => rendered.pixels.len().to_string(),
                Err(error) => error.to_string(),
            });
        }
        let values = seg(0, SIZE, "a").output_values();
        let (size, short) =
            ((values * size_of::<f32>()).to_string(), format!("the result has 0 samples instead of {values}"));
        let fire = "the engine panicked: the card is on fire";
        let want = [&*size, "rendering was interrupted", &short, &size, &size, fire, fire];
        assert_eq!(told, want);
    }
}
