//! Effects out: publishes tasks, takes them back, writes records, and has pictures put together.

use std::{collections::HashMap, sync::Arc, time::Duration};

use broker::{Broker, Message, QueueSpec};
use domain::job::{Job, JobId};
use proto::farm::{Names, Revocation};
use service::telemetry;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{Instrument as _, info_span};

use crate::{
    assemble::{AssembleError, Assembler},
    desk::{Desk, Errand},
    ledger::{Effect, Event, Lane, TracedOrder},
    metrics::Metrics,
    records::Records,
    refusal::chain,
};

/// How long dispatch waits before it tries something again that the store or the broker refused.
const PAUSE: Duration = Duration::from_secs(1);

/// How often a picture is tried again when the store fails in the middle of it.
const ASSEMBLE_ATTEMPTS: u32 = 20;

/// Does what the ledger decides, in order.
#[derive(Debug)]
pub struct Dispatch {
    /// Where tasks go.
    pub broker: Arc<dyn Broker>,
    /// The queues' names.
    pub names: Names,
    /// Deliveries until a task is dead-lettered.
    pub delivery_limit: u32,
    /// Where job records go.
    pub records: Records,
    /// Puts pictures together.
    pub assembler: Assembler,
    /// Where events go.
    pub desk: Arc<Desk>,
    /// Pictures put together at once.
    pub slots: Arc<Semaphore>,
    /// Pictures under work.
    pub assemblies: TaskTracker,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// When to stop.
    pub shutdown: CancellationToken,
}

impl Dispatch {
    /// Does errands until the desk is gone or the process is shut down.
    pub async fn run(self, mut errands: mpsc::UnboundedReceiver<Errand>) {
        let mut declared: Vec<String> = Vec::new();
        let mut abandon: HashMap<JobId, CancellationToken> = HashMap::new();
        let mut waiting = Vec::new();
        loop {
            let errand = tokio::select! {
                errand = errands.recv() => errand,
                () = self.shutdown.cancelled() => return,
            };
            let Some(errand) = errand else { return };
            // What came meanwhile goes along: orders for one queue then travel together.
            let mut batch = vec![errand];
            while let Ok(errand) = errands.try_recv() {
                batch.push(errand);
            }
            let mut orders: Vec<(Lane, Vec<TracedOrder>)> = Vec::new();
            for errand in batch {
                let effects = match errand {
                    Errand::Effects(effects) => effects,
                    Errand::Settle(done) => {
                        waiting.push(done);
                        continue;
                    }
                };
                for effect in effects {
                    if let Effect::Publish { lane, orders: more } = effect {
                        match orders.iter_mut().find(|(other, _)| *other == lane) {
                            Some((_, orders)) => orders.extend(more),
                            None => orders.push((lane, more)),
                        }
                        continue;
                    }
                    if matches!(effect, Effect::Revoke { .. }) {
                        // Nothing is taken back before it was given out.
                        for (lane, orders) in orders.drain(..) {
                            self.publish(&lane, orders, &mut declared).await;
                        }
                    }
                    self.perform(effect, &mut abandon).await;
                }
            }
            for (lane, orders) in orders {
                self.publish(&lane, orders, &mut declared).await;
            }
            for done in waiting.drain(..) {
                let _ = done.send(()); // whoever waited may have gone
            }
        }
    }

    async fn perform(&self, effect: Effect, abandon: &mut HashMap<JobId, CancellationToken>) {
        match effect {
            Effect::Publish { .. } => {} // gathered by the caller
            Effect::Revoke { keys, up_to_dispatch } => {
                let body = Revocation { keys, up_to_dispatch }.encode();
                // Lost revocations cost work, never results.
                if let Err(error) = self.broker.broadcast(&self.names.revoked(), Message::new("revocation", body)).await
                {
                    tracing::warn!(error = chain(&error), "could not take tasks back");
                }
            }
            Effect::Assemble { job, plan, task } => {
                abandon.retain(|_, token| !token.is_cancelled());
                let cancelled = abandon.entry(job.id.clone()).or_default().clone();
                let span = info_span!("assemble", job.id = %job.id, task);
                telemetry::set_parent(&span, trace_header(job.traceparent.as_deref()));
                let assembly = self.assemble(job, plan, task, cancelled).instrument(span);
                self.assemblies.spawn(assembly);
            }
            Effect::Abandon(job) => {
                if let Some(token) = abandon.remove(&job) {
                    token.cancel();
                }
            }
            Effect::StoreJob(job) => {
                self.until_done("store the job", || self.records.put_job(&job)).await;
            }
            Effect::StoreEnding(job, ending) => {
                abandon.remove(&job);
                tracing::info!(job.id = %job, job.state = ending.state.name(), "job ended");
                self.metrics.ended(ending.state);
                self.until_done("store how the job ended", || self.records.put_ending(&job, &ending)).await;
            }
        }
    }

    /// Publishes orders of one queue, and keeps at it until the broker has them: publishing twice does no harm.
    async fn publish(&self, lane: &Lane, orders: Vec<TracedOrder>, declared: &mut Vec<String>) {
        let Some(queue) = self.names.tasks(&lane.0, lane.1) else { return };
        // A batch can hold orders of several jobs, each with its own trace.
        let mut spans: HashMap<Option<String>, (tracing::Span, std::collections::BTreeMap<String, String>)> =
            HashMap::new();
        let mut messages = Vec::with_capacity(orders.len());
        for (order, traceparent) in &orders {
            let (_, headers) = spans.entry(traceparent.clone()).or_insert_with(|| {
                let span = info_span!("publish", job.id = %order.job, queue, messaging.system = "tessera");
                telemetry::set_parent(&span, trace_header(traceparent.as_deref()));
                let headers = telemetry::inject(&span);
                (span, headers)
            });
            let Some(body) = order.encode() else { continue };
            let mut message = Message::new(order.result_key().task.short(), body);
            message.headers = headers.clone();
            messages.push(message);
        }
        if !declared.contains(&queue) {
            let spec = QueueSpec::new(&queue).dead_letter_after(self.delivery_limit, self.names.dead());
            self.until_done("declare a queue", || self.broker.declare(&spec)).await;
            declared.push(queue.clone());
        }
        self.until_done("publish tasks", || self.broker.publish_many(&queue, messages.clone())).await;
        self.metrics.published(messages.len());
    }

    /// Tries until it succeeds, or the process is shut down.
    async fn until_done<F, E>(&self, what: &str, mut attempt: impl FnMut() -> F)
    where
        F: Future<Output = Result<(), E>>,
        E: std::error::Error,
    {
        loop {
            let tried = tokio::select! {
                tried = attempt() => tried,
                () = self.shutdown.cancelled() => return,
            };
            let Err(error) = tried else { return };
            tracing::warn!(error = chain(&error), "could not {what}; trying again");
            tokio::select! {
                () = tokio::time::sleep(PAUSE) => {}
                () = self.shutdown.cancelled() => return,
            }
        }
    }

    /// Puts one picture together and tells the desk; runs beside everything else.
    fn assemble(
        &self,
        job: Box<Job>,
        plan: Arc<domain::plan::Plan>,
        task: u32,
        cancelled: CancellationToken,
    ) -> impl Future<Output = ()> + use<> {
        let (assembler, desk, slots) = (self.assembler.clone(), self.desk.clone(), self.slots.clone());
        let (metrics, shutdown) = (self.metrics.clone(), self.shutdown.clone());
        async move {
            let Ok(_slot) = slots.acquire().await else { return };
            let started = std::time::Instant::now();
            let assembling = &plan.tasks()[task as usize];
            let key = plan.key_of(assembling);
            let mut attempt = 0;
            let result = loop {
                attempt += 1;
                let result = tokio::select! {
                    result = assembler.assemble(&job, &plan, assembling, &cancelled) => result,
                    () = shutdown.cancelled() => return,
                };
                match result {
                    Err(error) if error.is_retryable() && attempt < ASSEMBLE_ATTEMPTS => {
                        tracing::warn!(error = chain(&error), attempt, "could not assemble; trying again");
                        tokio::time::sleep(PAUSE).await;
                    }
                    result => break result,
                }
            };
            let job = job.id;
            match result {
                Ok(output) => {
                    metrics.assembled(started.elapsed());
                    tracing::info!(size_bytes = output.artifact.size_bytes, "assembled picture");
                    desk.apply(Event::Assembled { job, key, output });
                }
                Err(AssembleError::Cancelled) => {}
                Err(error) => {
                    let message = chain(&error);
                    tracing::warn!(error = message, "could not assemble");
                    let missing = if let AssembleError::Missing(keys) = error { keys } else { Vec::new() };
                    desk.apply(Event::NotAssembled { job, key, message, missing });
                }
            }
        }
    }
}

/// The header that carries a job's trace.
fn trace_header(traceparent: Option<&str>) -> impl Iterator<Item = (&str, &str)> {
    traceparent.map(|parent| ("traceparent", parent)).into_iter()
}
