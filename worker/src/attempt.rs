//! One delivery, from the queue to its end: look up, fetch, render, put, report, acknowledge.
//!
//! The order of the last three is the heart of the farm. The result is in the store before anybody hears of it, and the
//! report is safe with the broker before the order is acknowledged. A worker that dies in between costs time, never a
//! tile.

use std::{sync::Arc, time::Duration};

use broker::{Broker, BrokerError, Delivery, Message};
use bytes::Bytes;
use domain::{
    job::Priority,
    task::{
        ComputeClass, Context, DECODE_REVISION, LATENT_REVISION, LatentFrom, Part, Place, REDRAW_REVISION, ResultKey,
        UPSCALE_REVISION,
    },
};
use proto::farm::{Names, Order, Outcome, Report, class_for};
use service::telemetry;
use store::{Key, Store, StoreError};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, info, info_span, warn};

use crate::{
    board::{Board, Held},
    engine::{Engine, Stop, Verdict, Watch, Work, list},
    fetch::{FetchError, Fetcher, store_verdict},
    metrics::Metrics,
    patience::{Pauses, persist},
    speeds::Speeds,
    turns::{Candidate, Rendered, Ticket, Turns},
};

/// Everything that the attempts of one worker share.
pub struct Bench {
    /// The worker's id.
    pub worker: String,
    /// What renders.
    pub engine: Arc<dyn Engine>,
    /// Where results go.
    pub store: Arc<dyn Store>,
    /// Where reports go.
    pub broker: Arc<dyn Broker>,
    /// The farm's queues.
    pub names: Names,
    /// What is in hand.
    pub board: Arc<Board>,
    /// What brings the inputs.
    pub fetcher: Fetcher,
    /// Attempts per task, from 1.
    pub delivery_limit: u32,
    /// How long to wait after a failure.
    pub pauses: Pauses,
    /// Where tasks wait for the device.
    pub turns: Arc<Turns>,
    /// Cancelled when nothing new is begun.
    pub shutdown: CancellationToken,
    /// Cancelled when what was begun is dropped.
    pub leaving: CancellationToken,
    /// The instruments.
    pub metrics: Metrics,
    /// How fast the device is.
    pub speeds: Arc<Speeds>,
}

/// A result that is in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stored {
    /// Whether it was there already.
    found: bool,
    /// How long it was rendered.
    elapsed: Duration,
}

/// Why a task came to no result.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Setback {
    /// It is not for this worker.
    Misplaced(String),
    /// It can never be done.
    Failed(String),
    /// It did not succeed this time.
    Retrying(String),
    /// There is no room for it at the moment.
    Crowded(String),
    /// The device is too small for it.
    OutOfMemory(String),
    /// Results that it needs are gone, and must be made again first.
    Lost { keys: Vec<ResultKey>, message: String },
    /// Nobody wants it any more.
    Revoked,
    /// The worker leaves.
    Leaving,
}

/// What becomes of the delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Settlement {
    Ack,
    Retry,
    GiveBack,
    DeadLetter,
}

/// What the coordinator hears of an attempt, and what becomes of the delivery then: the one table of both.
fn conclusion(ended: Result<Stored, Setback>, is_last: bool) -> (Option<Outcome>, Settlement) {
    match ended {
        Ok(Stored { found, elapsed }) => (Some(Outcome::Done { found, elapsed }), Settlement::Ack),
        Err(Setback::Failed(message)) => (Some(Outcome::Failed { message }), Settlement::Ack),
        Err(Setback::OutOfMemory(message)) => (Some(Outcome::OutOfMemory { message }), Settlement::Ack),
        Err(Setback::Crowded(message)) if is_last => (Some(Outcome::OutOfMemory { message }), Settlement::Ack),
        Err(Setback::Crowded(message) | Setback::Retrying(message)) => {
            (Some(Outcome::Retrying { message }), Settlement::Retry)
        }
        Err(Setback::Lost { keys, .. }) => (Some(Outcome::Missing { keys }), Settlement::Ack),
        Err(Setback::Revoked) => (None, Settlement::Ack),
        Err(Setback::Leaving) => (None, Settlement::GiveBack),
        Err(Setback::Misplaced(_)) => (None, Settlement::DeadLetter),
    }
}

impl Setback {
    fn of(verdict: Verdict, error: impl Into<anyhow::Error>, watch: &Watch) -> Self {
        let message = format!("{:#}", error.into());
        match verdict {
            Verdict::Fail => Self::Failed(message),
            Verdict::Retry => Self::Retrying(message),
            Verdict::RetryOrReplan => Self::Crowded(message),
            Verdict::Replan => Self::OutOfMemory(message),
            Verdict::Lost(key) => Self::Lost { keys: vec![key], message },
            Verdict::Cancelled => match watch.stop() {
                Some(stop) => stop.into(),
                None => Self::Retrying(message), // it stopped without being asked to
            },
        }
    }

    /// The word for it in metrics.
    fn name(&self) -> &'static str {
        match self {
            Self::Misplaced(_) => "misplaced",
            Self::Failed(_) => "failed",
            Self::Retrying(_) => "retrying",
            Self::Crowded(_) => "crowded",
            Self::OutOfMemory(_) => "out_of_memory",
            Self::Lost { .. } => "lost",
            Self::Revoked => "revoked",
            Self::Leaving => "given_back",
        }
    }
}

impl From<Stop> for Setback {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::Revoked => Self::Revoked,
            Stop::Leaving => Self::Leaving,
        }
    }
}

impl Bench {
    /// Deals with `delivery`, of a queue of `priority`, and settles it.
    pub async fn serve(&self, delivery: Delivery, priority: Priority) {
        let order = match Order::decode(&delivery.message.body) {
            Ok(order) => order,
            Err(error) => {
                warn!(message.id = delivery.message.id, %error, "dead-lettered a message that is not ours");
                self.metrics.ended("foreign");
                return settle(delivery, Settlement::DeadLetter).await;
            }
        };
        let span = info_span!(
            "task",
            job.id = %order.job,
            task = order.task,
            result.key = %order.result_key(),
            attempt = delivery.attempt,
            worker.id = self.worker,
        );
        let headers = &delivery.message.headers;
        telemetry::set_parent(&span, headers.iter().map(|(name, value)| (name.as_str(), value.as_str())));
        self.serve_order(&order, delivery, priority).instrument(span).await;
    }

    async fn serve_order(&self, order: &Order, delivery: Delivery, priority: Priority) {
        let attempt = delivery.attempt;
        let Some(held) = self.board.take(order, &self.leaving) else {
            debug!("dropped a revoked order");
            self.metrics.ended(Setback::Revoked.name());
            return settle(delivery, Settlement::Ack).await;
        };
        let ended = self.attempt(order, &held, priority).await;
        self.note(&ended);
        let is_last = attempt >= self.delivery_limit;
        let (outcome, mut settlement) = conclusion(ended, is_last);
        if let Some(outcome) = outcome
            && !self.report(order, attempt, outcome).await
        {
            // Without a report the order must stay with the broker, or the task would be lost.
            return settle(delivery, Settlement::GiveBack).await;
        }
        if settlement == Settlement::Retry {
            // What failed here a moment ago would fail again at once.
            let pause = self.pauses.failed(attempt);
            if !is_last && let Err(stopped) = self.unless_stopped(&held.watch, sleep(pause)).await {
                settlement = conclusion(Err(stopped), is_last).1;
            }
        }
        drop(held);
        settle(delivery, settlement).await;
    }

    /// Logs and counts how an attempt ended.
    fn note(&self, ended: &Result<Stored, Setback>) {
        match ended {
            Ok(Stored { found: true, .. }) => {
                debug!("found the result");
                self.metrics.ended("found");
            }
            Ok(Stored { elapsed, .. }) => {
                let elapsed_ms = elapsed.as_millis() as u64;
                info!(elapsed_ms, "rendered a task");
                self.board.count_rendered();
                self.pauses.succeeded();
                self.metrics.ended("rendered");
                self.metrics.rendered_in(*elapsed);
            }
            Err(setback) => {
                match setback {
                    Setback::Misplaced(error) => warn!(error, "dead-lettered a task that is not for this worker"),
                    Setback::Failed(error) => warn!(error, "a task failed"),
                    Setback::Retrying(error) => warn!(error, "a task did not succeed and is tried again"),
                    Setback::Crowded(error) => warn!(error, "no room for a task at the moment"),
                    Setback::OutOfMemory(error) => warn!(error, "the device ran out of memory"),
                    Setback::Lost { message, .. } => warn!(error = message, "a task must wait for what it needs"),
                    Setback::Revoked => info!("dropped a revoked task"),
                    Setback::Leaving => info!("gave a task back"),
                }
                self.metrics.ended(setback.name());
            }
        }
    }

    /// Brings the result of `order` into the store, if it is not there.
    async fn attempt(&self, order: &Order, held: &Held, priority: Priority) -> Result<Stored, Setback> {
        let class = self.class_for(order)?.clone();
        let watch = &held.watch;
        let result = Key::new(order.result_key().path()).expect("digests make a key");
        if self.unless_stopped(watch, self.is_stored(&result, order)).await?? {
            return Ok(Stored { found: true, elapsed: Duration::ZERO });
        }
        let fetch = self.fetch(order, watch).instrument(info_span!("fetch"));
        let work = self.unless_stopped(watch, fetch).await??;
        let Ticket { begun, done } =
            self.turns.enter(Candidate { priority, class: class.clone(), work, watch: watch.clone() });
        // Until its turn comes it can be dropped; from then on the engine hears when to stop.
        self.unless_stopped(watch, begun).await?.expect("every place in line has its turn");
        let rendered = done.await.expect("whatever has begun is answered");
        let Rendered { pixels, elapsed, device_time } =
            rendered.map_err(|error| Setback::of(error.verdict(), error, watch))?;
        self.speeds.note(&class, &order.context, &order.part, device_time);
        // A revocation that comes this late saves nothing, and the result may be of use to another job.
        self.unless_leaving(self.put(&result, pixels).instrument(info_span!("put"))).await??;
        Ok(Stored { found: false, elapsed })
    }

    /// The class in which `order` is rendered: the one that it was planned for, or the exact one where any may do it.
    /// Refuses what this worker cannot render as the result key promises.
    fn class_for(&self, order: &Order) -> Result<&ComputeClass, Setback> {
        let not_ours = || Setback::Misplaced("the task is the coordinator's own".to_owned());
        let (wanted, own, precision, place) = match &order.context {
            Context::Upscale { revision, decode, precision, place, .. } => {
                ([*revision, *decode], [UPSCALE_REVISION, DECODE_REVISION], precision, place)
            }
            Context::Redraw(redraw) => {
                let wanted = [redraw.revision, redraw.base.decode];
                (wanted, [REDRAW_REVISION, DECODE_REVISION], &redraw.precision, &redraw.place)
            }
            Context::Latent(steps) => {
                let decode = match &order.part {
                    Part::Latent(link) => match &link.from {
                        LatentFrom::Picture(base) => base.decode,
                        LatentFrom::Given(_) | LatentFrom::Result(_) => DECODE_REVISION,
                    },
                    Part::Region(_) | Part::Seg(_) => DECODE_REVISION,
                };
                ([steps.revision, decode], [LATENT_REVISION, DECODE_REVISION], &steps.precision, &steps.place)
            }
            Context::Assemble { .. } | Context::Paste(_) | Context::Encode { .. } | Context::Deliver { .. } => {
                return Err(not_ours());
            }
        };
        let classes = self.engine.classes();
        let class = class_for(classes, place).ok_or_else(|| match place {
            Place::Coordinator => not_ours(),
            Place::Class(place) => {
                let found = list(classes);
                Setback::Misplaced(format!("the task is for class {place}, this worker is of {found}"))
            }
            Place::AnyWorker => {
                Setback::Retrying(format!("the task is to be exact, this worker is of {}", list(classes)))
            }
        })?;
        if !class.offers(*precision) {
            return Err(Setback::Retrying(format!("class {class} is not exact enough for the task")));
        }
        // During an update of the farm, another worker may have it.
        if wanted != own {
            let operation = order.context.operation();
            return Err(Setback::Retrying(format!(
                "the task is for revision {} of {operation} and {} of decode, this worker has {} and {}",
                wanted[0], wanted[1], own[0], own[1]
            )));
        }
        Ok(class)
    }

    /// Whether the result is in the store, whole.
    async fn is_stored(&self, result: &Key, order: &Order) -> Result<bool, Setback> {
        let meta = persist("store", StoreError::is_retryable, || self.store.head(result)).await;
        let meta = meta.map_err(store_setback)?;
        Ok(meta.is_some_and(|meta| meta.size_bytes == result_bytes(order)))
    }

    async fn fetch(&self, order: &Order, watch: &Watch) -> Result<Work, Setback> {
        let work = persist("store", FetchError::is_passing, || self.fetcher.fetch(order)).await;
        work.map_err(|error| Setback::of(error.verdict(), error, watch))
    }

    async fn put(&self, result: &Key, pixels: Bytes) -> Result<(), Setback> {
        self.metrics.put(pixels.len() as u64);
        let put = persist("store", StoreError::is_retryable, || self.store.put(result, pixels.clone())).await;
        put.map_err(store_setback)
    }

    /// Reports `outcome`, and says whether the broker has the report safely.
    async fn report(&self, order: &Order, attempt: u32, outcome: Outcome) -> bool {
        let span = info_span!("report");
        let (key, worker, job) = (order.result_key(), self.worker.clone(), order.job.clone());
        let mut message = Message::new(key.to_string(), Report { key, worker, attempt, job, outcome }.encode());
        message.headers = telemetry::inject(&span);
        let queue = self.names.reports();
        let publish = || self.broker.publish(&queue, message.clone());
        let published = persist("broker", BrokerError::is_transient, publish).instrument(span);
        match self.leaving.run_until_cancelled(published).await {
            Some(Ok(())) => true,
            Some(Err(error)) => {
                warn!(error = &error as &dyn std::error::Error, "cannot report; the task will be delivered again");
                false
            }
            None => false,
        }
    }

    /// Waits for `work` unless the task is stopped or the worker begins nothing new.
    async fn unless_stopped<T>(&self, watch: &Watch, work: impl Future<Output = T>) -> Result<T, Setback> {
        tokio::select! {
            biased;
            stop = watch.stopped() => Err(stop.into()),
            () = self.shutdown.cancelled() => Err(Setback::Leaving),
            done = work => Ok(done),
        }
    }

    /// Waits for `work` unless the worker leaves.
    async fn unless_leaving<T>(&self, work: impl Future<Output = T>) -> Result<T, Setback> {
        self.leaving.run_until_cancelled(work).await.ok_or(Setback::Leaving)
    }
}

/// How large the result of `order` is.
fn result_bytes(order: &Order) -> u64 {
    order.context.result_bytes(&order.part).unwrap_or(0) // none: no result of a worker's
}

fn store_setback(error: StoreError) -> Setback {
    Setback::of(store_verdict(&error), error, &Watch::default())
}

/// Settles a delivery. One that has gone stale was or will be delivered again, and nothing is lost.
async fn settle(delivery: Delivery, settlement: Settlement) {
    let settled = match settlement {
        Settlement::Ack => delivery.ack().await,
        Settlement::Retry => delivery.retry().await,
        Settlement::GiveBack => delivery.give_back().await,
        Settlement::DeadLetter => delivery.dead_letter().await,
    };
    if let Err(error) = settled {
        info!(%error, ?settlement, "could not settle a delivery");
    }
}
