//! Who renders next: among the tasks in hand that wait for the device, the most urgent; of these, one whose networks are loaded
//! before one whose networks are not; with it, where batches are asked for, what goes together with it.
//!
//! All of these tasks are this worker's to render, whatever their order: nobody else could have begun them. And none is
//! overtaken by more than a few.

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

/// How far behind the oldest task in its order of publication one may be that goes before it.
const MOST_OVERTAKEN: u64 = 16;

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
    waiting: Vec<Waiting>,
}

/// A task for the device.
pub struct Wish {
    /// How urgent it is.
    pub priority: Priority,
    /// Its order's number: the smaller, the older.
    pub dispatch: u64,
    /// As what it is rendered.
    pub class: ComputeClass,
    /// What it is.
    pub work: Work,
    /// Who follows.
    pub watch: Arc<Watch>,
}

/// A task that waits, or is rendered.
struct Waiting {
    wish: Wish,
    parent: Span,
    begun: oneshot::Sender<()>,
    done: oneshot::Sender<Result<Rendered, RenderError>>,
}

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
    pub fn enter(self: &Arc<Self>, wish: Wish) -> Ticket {
        let ((begun, has_begun), (done, is_done)) = (oneshot::channel(), oneshot::channel());
        self.state().waiting.push(Waiting { wish, parent: Span::current(), begun, done });
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
                let group = self.take(&mut state.waiting);
                state.free -= 1;
                group
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
        let next = next(waiting.iter().map(|waiting| &waiting.wish), &loaded);
        let first = waiting.remove(next);
        let mut group = vec![first];
        waiting.sort_by_key(|waiting| waiting.wish.dispatch);
        let mut at = 0;
        while group.len() < self.batch && at < waiting.len() {
            if goes_with(&group[0].wish, &waiting[at].wish) {
                group.push(waiting.remove(at));
            } else {
                at += 1;
            }
        }
        group
    }

    /// Renders a group of tasks on a thread of its own, and answers each.
    async fn render(&self, group: Vec<Waiting>) {
        let count = group.len() as u32;
        let (mut answers, mut spans, mut tasks) = (Vec::new(), Vec::new(), Vec::new());
        for Waiting { wish, parent, begun, done } in group {
            let Wish { class, work, watch, .. } = wish;
            let _ = begun.send(()); // whoever gave the place up at this moment leaves the task to the watch
            spans.push(info_span!(parent: &parent, "render", batch.size = count));
            answers.push(done);
            tasks.push((class, work, watch));
        }
        if count > 1 {
            info!(task.count = count, "rendering tasks as a batch");
        }
        let (engine, speeds) = (self.engine.clone(), self.speeds.clone());
        let rendering = spawn_blocking(move || {
            let _span = spans[0].enter();
            let (start, stay) = (Instant::now(), speeds.begin());
            let rendered = render(&*engine, &tasks);
            let [elapsed, device_time] = [start.elapsed(), stay.device_time()].map(|time| time / count);
            let each = rendered.into_iter().map(|pixels| Ok(Rendered { pixels: pixels?, elapsed, device_time }));
            each.collect::<Vec<_>>()
        });
        let rendered = match rendering.await {
            Ok(rendered) => rendered,
            Err(died) => {
                let message = match died.try_into_panic() {
                    Ok(panic) => panic_message(&*panic),
                    Err(cancelled) => cancelled.to_string(),
                };
                answers.iter().map(|_| Err(RenderError::Panicked { message: message.clone() })).collect()
            }
        };
        for (answer, rendered) in answers.into_iter().zip(rendered) {
            let _ = answer.send(rendered); // whoever waited for it may have gone
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The index of the wish whose turn it is, of at least one.
fn next<'a>(wishes: impl Iterator<Item = &'a Wish> + Clone, loaded: &HashSet<Digest>) -> usize {
    let urgent = wishes.clone().map(|wish| wish.priority).max().expect("somebody waits");
    let equals = wishes.enumerate().filter(|(_, wish)| wish.priority == urgent);
    let oldest = equals.clone().map(|(_, wish)| wish.dispatch).min().expect("somebody is as urgent as that");
    let near = equals.filter(|(_, wish)| wish.dispatch - oldest <= MOST_OVERTAKEN);
    let missing = |work: &Work| work.models().filter(|model| !loaded.contains(model)).count();
    let best = near.min_by_key(|(_, wish)| (missing(&wish.work), wish.dispatch));
    best.expect("the oldest is near itself").0
}

/// Whether two tasks can be a batch.
fn goes_with(a: &Wish, b: &Wish) -> bool {
    a.priority == b.priority && a.class == b.class && a.work.goes_with(&b.work)
}

/// Renders tasks that go together, of at least one: their results as they are stored.
fn render(engine: &dyn Engine, tasks: &[(ComputeClass, Work, Arc<Watch>)]) -> Vec<Result<Bytes, RenderError>> {
    let class = &tasks[0].0;
    let rendered = match tasks {
        [(_, work, watch)] => vec![engine.render(class, work, watch)],
        _ => engine.render_batch(class, &tasks.iter().map(|(_, work, watch)| (work, &**watch)).collect::<Vec<_>>()),
    };
    let finish = |(samples, (_, work, watch)): (Result<Vec<f32>, _>, &(_, Work, Arc<Watch>))| {
        let (samples, expected) = (samples?, work.output_values());
        if samples.len() != expected {
            return Err(RenderError::WrongLength { expected, found: samples.len() });
        }
        watch.tell(1.0);
        Ok(imaging::bytes::to_le(&samples).into())
    };
    rendered.into_iter().zip(tasks).map(finish).collect()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use domain::region::Region;

    use super::*;
    use crate::engine::UpscaleWork;

    fn wish(priority: Priority, dispatch: u64, model: &str) -> Wish {
        let (region, model) = (Region::new(0, 0, 1, 1), Digest::of(model.as_bytes()));
        let work = UpscaleWork { region, rgb: vec![0.0; 3], scale: 1, model, weights: PathBuf::new() };
        let class = "cpu.scripted.f32".parse().unwrap();
        Wish { priority, dispatch, class, work: Work::Upscale(work), watch: Arc::default() }
    }

    /// The order in which tasks are rendered, each written as its priority, its number and its model, while the models `loaded` are.
    fn check(waiting: &str, loaded: &str, expected: &str) {
        let loaded = loaded.chars().map(|model| Digest::of(model.to_string().as_bytes())).collect();
        let mut waiting: Vec<&str> = waiting.split(' ').collect();
        let mut order = Vec::new();
        while !waiting.is_empty() {
            let parse = |word: &&str| {
                let priority = match &word[..1] {
                    "h" => Priority::High,
                    "n" => Priority::Normal,
                    _ => Priority::Low,
                };
                let (number, model) = word[1..].split_at(word.len() - 2); // a letter, digits, a letter
                wish(priority, number.parse().unwrap(), model)
            };
            let wishes: Vec<Wish> = waiting.iter().map(parse).collect();
            order.push(waiting.remove(next(wishes.iter(), &loaded)));
        }
        assert_eq!(order.join(" "), expected);
    }

    #[test]
    fn urgent_tasks_come_first_then_those_whose_networks_are_loaded_then_the_older() {
        check("n2a n1b h9c n3b", "", "h9c n1b n2a n3b");
        check("n1b n2a n3b n4a", "a", "n2a n4a n1b n3b");
        check("l1a n5b h7b n6a", "a", "h7b n6a n5b l1a");
        check("n1c n2b n3a", "ab", "n2b n3a n1c");
    }

    #[test]
    fn nobody_is_overtaken_by_more_than_a_few() {
        check("n1b n16a n17a n18a n40a", "a", "n16a n17a n1b n18a n40a");
    }
}
