//! The life of a worker: it takes tasks until it is told to stop, hears what is taken back and what somebody wants to
//! see, and says that it is alive.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use anyhow::Context as _;
use broker::{Broker, BrokerError, Consumer, Delivery, Listener, Message};
use domain::{
    job::{Priority, Timestamp},
    task::{ComputeClass, Pace, Place},
};
use futures::{
    FutureExt as _,
    future::select_all,
    stream::{self, BoxStream, StreamExt as _},
};
use imaging::encode::small_png;
use proto::{
    convert::InvalidField,
    farm::{self, Beat, Names, Revocation, Wish, Worker, places_of},
};
use service::{
    Backoff,
    config::{self, Config},
    report::{Hinted as _, with_hint},
    retry,
};
use store::{Store, StoreError};
use tokio::{
    sync::Semaphore,
    task::{JoinError, JoinSet, spawn_blocking},
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::{
    attempt::Bench,
    board::{Board, Shown},
    engine::{DeviceFacts, Engine, device::DeviceEngine, list, preview::Preview},
    fetch::{DiskCache, Fetcher},
    metrics::Metrics,
    patience::{FIRST_PAUSE, Pauses},
    speeds::Speeds,
    topology::topology,
    turns::Turns,
};

/// How many tasks more than are rendered have their inputs brought, so that there is a choice of what is rendered next.
const AHEAD: usize = 2;
/// The shortest time between two signs of life, however many tasks begin and end.
const BEAT_PAUSE: Duration = Duration::from_millis(100);
/// How long what was interrupted may take to notice.
const INTERRUPT_TIME: Duration = Duration::from_secs(5);

/// The body of the process `tessera-worker`: opens the store and the broker that `config` names, and [`run`]s.
///
/// # Errors
/// As [`run`], or if the store or the broker lies in memory or does not answer in time.
pub async fn process(config: Config, context: service::Context) -> anyhow::Result<()> {
    config.require_shared().map_err(|error| {
        let hint = error.hint();
        with_hint(error, hint)
    })?;
    let hint = "`store` (TESSERA_STORE) says where it is; `tessera doctor` tries it";
    let store = store::open(&config.store).await.context("cannot open the store").hint(hint)?;
    let backoff = Backoff::until(config.start_timeout);
    let answer = retry("the store", backoff, StoreError::is_retryable, async || store.check().await).await;
    answer.with_context(|| format!("{} does not answer", store.describe())).hint(hint)?;
    let options = broker::Options {
        name: format!("worker {}", config.worker.id),
        patience: config.start_timeout.max(config.broker_patience),
        consumer_timeout: config.broker_consumer_timeout,
    };
    let broker = broker::open(config.broker.expose(), &options)
        .await
        .context("cannot open the broker")
        .hint("`broker` (TESSERA_BROKER) says where it is; `tessera doctor` tries it")?;
    let result = run(config.worker, store, broker.clone(), context).await;
    broker.close().await;
    result
}

/// Works on the device that `config` names until `context` says to stop.
///
/// # Errors
/// As [`run_with`], or if the device cannot be opened, or computes not at the level that `config` forces.
pub async fn run(
    config: config::Worker,
    store: Arc<dyn Store>,
    broker: Arc<dyn Broker>,
    context: service::Context,
) -> anyhow::Result<()> {
    let (device, cpu, memory_bytes) = (config.device, config.cpu.clone(), config.model_memory_bytes);
    let engine = spawn_blocking(move || DeviceEngine::open(device, cpu.as_deref(), memory_bytes)).await??;
    run_with(config, Arc::new(engine), store, broker, context).await
}

/// Works with `engine` until `context` says to stop. Then it takes nothing new, gives back what it has not begun to
/// render, finishes the rest if it can within the time of grace, and says farewell.
///
/// # Errors
/// If a queue was declared in another way, the model cache cannot be used, or the broker refuses this worker. A broker
/// or store that is merely away is waited for.
pub async fn run_with(
    config: config::Worker,
    engine: Arc<dyn Engine>,
    store: Arc<dyn Store>,
    broker: Arc<dyn Broker>,
    context: service::Context,
) -> anyhow::Result<()> {
    let names = Names::new(&config.farm)?;
    let classes = engine.classes();
    for queue in topology(&names, classes, config.delivery_limit) {
        broker.declare(&queue).await.with_context(|| format!("cannot declare queue `{}`", queue.name))?;
    }
    // Long tasks in hand for each slot: while a batch is rendered, the next one gathers, and may wait as long as all of them take.
    let long_each = if config.batch == 1 { 1 } else { config.batch.saturating_mul(2) };
    let longest = config.longest_task.saturating_mul(u32::try_from(long_each).unwrap_or(u32::MAX));
    if let Some(warning) = broker.delivery_warning(longest) {
        warn!(warning, "the longest task may be taken away from this worker");
    }
    // Before the first order: a revocation is heard once.
    let revocations = broker.listen(&names.revoked()).await.context("cannot listen to revocations")?;
    let wishes = broker.listen(&names.wishes()).await.context("cannot listen to wishes for previews")?;
    let long = config.slots.saturating_mul(long_each);
    let mut queues = Vec::new();
    for priority in Priority::ALL {
        let mut equals = Vec::new();
        for (place, pace) in
            places_of(classes).into_iter().flat_map(|place| Pace::ALL.map(|pace| (place.clone(), pace)))
        {
            let Some(queue) = names.tasks(&place, pace, priority) else { continue };
            // One short task more than there are slots is in hand, so that its inputs come while others are rendered. The
            // price is paid when this worker sits on a task that an idle one could begin: at the end of a job, or when
            // it waits behind more urgent ones. On the queues that everybody shares, that price is too high, and so it is
            // for long tasks, on whose results others may wait: unless they are to be rendered as batches, none waits here.
            let is_ahead = pace == Pace::Short && place != Place::AnyWorker;
            let prefetch = match pace {
                Pace::Short => config.slots + usize::from(is_ahead),
                Pace::Long => long,
            };
            let consumer = broker.consume(&queue, u16::try_from(prefetch).unwrap_or(u16::MAX)).await;
            equals.push(deliveries(consumer.with_context(|| format!("cannot take tasks from queue `{queue}`"))?));
        }
        queues.push((priority, equals));
    }
    let guesses = spawn_blocking({
        let engine = engine.clone();
        move || {
            let guess = |class: &ComputeClass| Some((class.clone(), engine.guess(class)?));
            engine.classes().iter().filter_map(guess).collect()
        }
    });
    let speeds = Arc::new(Speeds::new(guesses.await?));
    let classes = list(classes);
    let models = DiskCache::open(&config.model_cache, config.model_cache_bytes)?;
    let metrics = Metrics::new();
    let bench = Arc::new(Bench {
        worker: config.id,
        turns: Turns::new(engine.clone(), speeds.clone(), config.slots, config.batch),
        engine,
        broker,
        names,
        board: Arc::default(),
        fetcher: Fetcher::new(store.clone(), models, metrics.clone()),
        store,
        delivery_limit: config.delivery_limit,
        pauses: Pauses::new(FIRST_PAUSE),
        shutdown: context.shutdown.child_token(),
        leaving: CancellationToken::new(),
        metrics,
        speeds,
    });
    info!(worker.id = bench.worker, classes, slots = config.slots, "taking tasks");
    context.health.ready("worker");
    let teller = Teller { bench: bench.clone(), started: now() };
    let seats = long.saturating_add(AHEAD).min(Semaphore::MAX_PERMITS);
    let result = tokio::select! {
        result = work(&bench, queues, seats, config.grace) => result,
        error = hear(revocations, |body| hear_revocation(&bench.board, body)) => {
            Err(error).context("can no longer hear revocations")
        }
        error = hear(wishes, |body| hear_wish(&bench.board, body)) => {
            Err(error).context("can no longer hear wishes for previews")
        }
        never = show_previews(&bench) => match never {},
        never = teller.tell_every(config.beat_interval) => match never {},
    };
    context.health.not_ready("worker", "stopped");
    teller.tell(true).await;
    result
}

/// Takes tasks and deals with them, at most `seats` at a time, until the shutdown; then drains.
async fn work(
    bench: &Arc<Bench>,
    mut queues: Vec<(Priority, Vec<Deliveries>)>,
    seats: usize,
    grace: Duration,
) -> anyhow::Result<()> {
    let seats = Arc::new(Semaphore::new(seats));
    let mut attempts = JoinSet::new();
    let take = async {
        loop {
            let seat = seats.clone().acquire_owned().await.expect("the seats are never closed");
            let (priority, delivery) = match take(&mut queues).await {
                Ok(taken) => taken,
                Err(error) => break error,
            };
            let bench = bench.clone();
            attempts.spawn(async move {
                bench.serve(delivery, priority).await;
                drop(seat);
            });
            while let Some(ended) = attempts.try_join_next() {
                note(ended);
            }
        }
    };
    let lost = bench.shutdown.run_until_cancelled(take).await;
    bench.shutdown.cancel(); // also when it is the broker that ended it
    bench.board.drain();
    info!(task.count = attempts.len(), "finishing what is being rendered");
    if timeout(grace, all(&mut attempts)).await.is_err() {
        warn!(task.count = attempts.len(), ?grace, "giving back what did not finish in time");
        bench.leaving.cancel();
        if timeout(INTERRUPT_TIME, all(&mut attempts)).await.is_err() {
            warn!(task.count = attempts.len(), "leaving what does not stop");
        }
    }
    bench.leaving.cancel(); // whatever renders now, renders for nobody
    // Only now: a consumer takes with it what is still unsettled.
    drop(queues);
    match lost {
        Some(error) => Err(error).context("can no longer take tasks"),
        None => Ok(()),
    }
}

/// What comes from one queue, without end.
type Deliveries = BoxStream<'static, Result<Delivery, BrokerError>>;

/// What comes to `consumer`. Whoever stops waiting for it may go on later: a consumer that has lost its broker and begins
/// anew does not start over each time that another queue was faster.
fn deliveries(consumer: Box<dyn Consumer>) -> Deliveries {
    let next = |mut consumer: Box<dyn Consumer>| async move { Some((consumer.next().await, consumer)) };
    stream::unfold(consumer, next).boxed()
}

/// Waits for the next delivery, the most urgent first: `queues` come in that order, those of equal priority together.
/// These take turns at being asked first.
async fn take(queues: &mut [(Priority, Vec<Deliveries>)]) -> Result<(Priority, Delivery), BrokerError> {
    for (_, equals) in &mut *queues {
        equals.rotate_right(1);
    }
    let each = queues.iter_mut().flat_map(|(priority, equals)| equals.iter_mut().map(|queue| (*priority, queue)));
    let (taken, ..) = select_all(each.map(|(priority, queue)| queue.next().map(move |next| (priority, next)))).await;
    let (priority, delivery) = taken;
    Ok((priority, delivery.expect("a queue has no end")?))
}

async fn all(attempts: &mut JoinSet<()>) {
    while let Some(ended) = attempts.join_next().await {
        note(ended);
    }
}

/// Takes note of an attempt that is over; its delivery came back to the queue if it panicked.
fn note(ended: Result<(), JoinError>) {
    if let Err(error) = ended {
        error!(%error, "an attempt broke off");
    }
}

/// Hears what is said on a topic until that is no longer possible.
async fn hear(mut topic: Box<dyn Listener>, take: impl Fn(&[u8]) -> Result<(), InvalidField>) -> BrokerError {
    loop {
        let message = match topic.next().await {
            Ok(message) => message,
            Err(error) => return error,
        };
        if let Err(error) = take(&message.body) {
            warn!(message.id, %error, "heard something that is not ours");
        }
    }
}

fn hear_revocation(board: &Board, body: &[u8]) -> Result<(), InvalidField> {
    let revocation = Revocation::decode(body)?;
    let interrupted = board.revoke(&revocation);
    info!(task.count = revocation.keys.len(), interrupted, "heard a revocation");
    Ok(())
}

fn hear_wish(board: &Board, body: &[u8]) -> Result<(), InvalidField> {
    board.wish(&Wish::decode(body)?, Instant::now());
    Ok(())
}

/// Sends the previews that somebody looks at, as they come. Whatever this takes, nobody who renders waits for it.
async fn show_previews(bench: &Bench) -> Never {
    loop {
        bench.board.previewed().await;
        for (task, preview) in bench.board.take_previews(Instant::now()) {
            let Preview { step, steps, size, rgb } = preview;
            let png = spawn_blocking(move || small_png(&rgb, size)).await.map_err(anyhow::Error::from);
            let png = match png.and_then(|png| Ok(png?)) {
                Ok(png) => png.into(),
                Err(error) => {
                    warn!(error = format!("{error:#}"), "cannot write a preview");
                    continue;
                }
            };
            let (key, fraction, worker) = (task.key, task.fraction, bench.worker.clone());
            let preview = farm::Preview { key, worker, step, steps, fraction, png };
            let message = Message::new(bench.worker.clone(), preview.encode());
            if let Err(error) = bench.broker.broadcast(&bench.names.previews(), message).await {
                debug!(%error, "a preview was lost");
            }
        }
    }
}

/// Tells the farm how this worker stands.
struct Teller {
    bench: Arc<Bench>,
    started: Timestamp,
}

/// What never comes.
enum Never {}

impl Teller {
    /// Tells at once, then as often as `every` says, and whenever a task begins or ends.
    async fn tell_every(&self, every: Duration) -> Never {
        let mut ticks = interval(every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = self.bench.board.changed() => {}
            }
            self.tell(false).await;
            sleep(BEAT_PAUSE).await;
        }
    }

    async fn tell(&self, leaving: bool) {
        let beat = Beat { worker: self.worker(), leaving };
        let message = Message::new(self.bench.worker.clone(), beat.encode());
        if let Err(error) = self.bench.broker.broadcast(&self.bench.names.beats(), message).await {
            debug!(%error, "a sign of life was lost");
        }
    }

    fn worker(&self) -> Worker {
        let Shown { tasks, rendered, draining } = self.bench.board.show();
        let DeviceFacts { name, memory_bytes, memory_free_bytes, models } = self.bench.engine.device();
        Worker {
            id: self.bench.worker.clone(),
            classes: self.bench.engine.classes().to_vec(),
            device: name,
            memory_bytes,
            memory_free_bytes,
            tasks,
            models: models.iter().map(ToString::to_string).collect(),
            tasks_done: rendered,
            started: self.started,
            draining,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            speeds: self.bench.speeds.show(),
        }
    }
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    Timestamp(since.map_or(0, |since| since.as_millis() as u64))
}

#[cfg(test)]
mod tests {
    use broker::{MemoryBroker, QueueSpec};

    use super::*;

    #[tokio::test]
    async fn urgent_tasks_come_first_and_queues_of_equal_priority_take_turns() {
        let broker = MemoryBroker::new();
        let mut queues = Vec::new();
        for (priority, equals) in [(Priority::High, vec!["urgent"]), (Priority::Low, vec!["own", "shared"])] {
            let mut streams = Vec::new();
            for queue in equals {
                broker.declare(&QueueSpec::new(queue)).await.unwrap();
                broker.publish_many(queue, vec![Message::new(queue, ""), Message::new(queue, "")]).await.unwrap();
                streams.push(deliveries(broker.consume(queue, 1).await.unwrap()));
            }
            queues.push((priority, streams));
        }
        let mut taken = Vec::new();
        for _ in 0..6 {
            let (priority, delivery) = take(&mut queues).await.unwrap();
            assert_eq!(priority == Priority::High, delivery.message.id == "urgent");
            taken.push(delivery.message.id.clone());
            delivery.ack().await.unwrap();
        }
        assert_eq!(taken[..2], ["urgent", "urgent"]);
        let turns = [&taken[2..4], &taken[4..]].map(|two| two.contains(&"own".to_owned()) && two[0] != two[1]);
        assert_eq!(turns, [true, true], "{taken:?}");
    }
}
