//! Effects out: publishes tasks, takes them back, writes records, and has pictures put together.

use std::{collections::HashMap, sync::Arc, time::Duration};

use broker::{Broker, BrokerError, Message, QueueSpec};
use domain::job::{Job, JobId};
use proto::farm::{Names, Revocation};
use service::telemetry;
use store::StoreError;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{Instrument as _, info_span};

use crate::{
    assemble::{AssembleError, Assembler},
    desk::{Desk, Errand},
    intake::Intake,
    ledger::{Effect, Event, Lane, TracedOrder},
    metrics::Metrics,
    records::Records,
    refusal::{Refusal, chain},
};

/// How long dispatch waits before it tries something again that the store or the broker refused.
const PAUSE: Duration = Duration::from_secs(1);

/// The longest such wait.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

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
    /// Looks up results.
    pub intake: Arc<Intake>,
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
    ///
    /// # Errors
    /// When the broker refuses for good: a queue was declared in another way, say.
    pub async fn run(self, mut errands: mpsc::UnboundedReceiver<Errand>) -> Result<(), BrokerError> {
        let mut declared: Vec<String> = Vec::new();
        let mut abandon: HashMap<JobId, CancellationToken> = HashMap::new();
        let mut waiting = Vec::new();
        loop {
            let errand = tokio::select! {
                errand = errands.recv() => errand,
                () = self.shutdown.cancelled() => return Ok(()),
            };
            let Some(errand) = errand else { return Ok(()) };
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
                            self.publish(&lane, orders, &mut declared).await?;
                        }
                    }
                    self.perform(effect, &mut abandon).await;
                }
            }
            for (lane, orders) in orders {
                self.publish(&lane, orders, &mut declared).await?;
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
            Effect::Relist { job, plan, listing } => {
                let span = info_span!("relist", job.id = %job.id);
                telemetry::set_parent(&span, trace_header(job.traceparent.as_deref()));
                self.assemblies.spawn(self.relist(job, plan, listing).instrument(span));
            }
            Effect::Abandon(job) => {
                if let Some(token) = abandon.remove(&job) {
                    token.cancel();
                }
            }
            Effect::StoreJob(job) => {
                self.until_stored("store the job", || self.records.put_job(&job)).await;
            }
            Effect::StoreEnding(job, ending) => {
                abandon.remove(&job);
                tracing::info!(job.id = %job, job.state = ending.state.name(), "job ended");
                self.metrics.ended(ending.state);
                self.until_stored("store how the job ended", || self.records.put_ending(&job, &ending)).await;
            }
        }
    }

    /// Publishes orders of one queue, and keeps at it until the broker has them: publishing twice does no harm.
    async fn publish(
        &self,
        lane: &Lane,
        orders: Vec<TracedOrder>,
        declared: &mut Vec<String>,
    ) -> Result<(), BrokerError> {
        let Some(queue) = self.names.tasks(&lane.0, lane.1, lane.2) else { return Ok(()) };
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
            self.until_done("declare a queue", BrokerError::is_transient, || self.broker.declare(&spec)).await?;
            declared.push(queue.clone());
        }
        let publish = || self.broker.publish_many(&queue, messages.clone());
        self.until_done("publish tasks", BrokerError::is_transient, publish).await?;
        self.metrics.published(messages.len());
        Ok(())
    }

    /// Tries until a record is stored. A store that is full or forbids it may do better once somebody looked at it.
    async fn until_stored<F>(&self, what: &str, attempt: impl FnMut() -> F)
    where
        F: Future<Output = Result<(), StoreError>>,
    {
        let _ = self.until_done(what, |_| true, attempt).await;
    }

    /// Tries until it succeeds, fails for good, or the process is shut down.
    async fn until_done<F, E>(
        &self,
        what: &str,
        is_passing: impl Fn(&E) -> bool,
        mut attempt: impl FnMut() -> F,
    ) -> Result<(), E>
    where
        F: Future<Output = Result<(), E>>,
        E: std::error::Error,
    {
        loop {
            let tried = tokio::select! {
                tried = attempt() => tried,
                () = self.shutdown.cancelled() => return Ok(()),
            };
            match tried {
                Err(error) if is_passing(&error) => {
                    tracing::warn!(error = chain(&error), "could not {what}; trying again");
                }
                result => return result,
            }
            tokio::select! {
                () = tokio::time::sleep(PAUSE) => {}
                () = self.shutdown.cancelled() => return Ok(()),
            }
        }
    }

    /// Looks up which of a job's results are in the store and tells the desk; runs beside everything else.
    fn relist(&self, job: Box<Job>, plan: Arc<domain::plan::Plan>, listing: u64) -> impl Future<Output = ()> + use<> {
        let (intake, desk, shutdown) = (self.intake.clone(), self.desk.clone(), self.shutdown.clone());
        async move {
            tracing::warn!("results vanished from the store; looking which are there");
            let mut pause = PAUSE;
            loop {
                let listed = tokio::select! {
                    listed = intake.found(&job, &plan) => listed,
                    () = shutdown.cancelled() => return,
                };
                let job = job.id.clone();
                match listed {
                    Ok((found, outputs)) => return desk.apply(Event::Relisted { job, listing, found, outputs }),
                    Err(error @ (Refusal::Unavailable { .. } | Refusal::Exhausted { .. })) => {
                        tracing::warn!(error = chain(&error), "could not list results; trying again");
                    }
                    Err(error) => {
                        return desk.apply(Event::NotRelisted { job, listing, message: chain(&error) });
                    }
                }
                tokio::select! {
                    () = tokio::time::sleep(pause) => pause = (pause * 2).min(LONGEST_PAUSE),
                    () = shutdown.cancelled() => return,
                }
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
            let mut pause = PAUSE;
            let result = loop {
                let result = tokio::select! {
                    result = assembler.assemble(&job, &plan, assembling, &cancelled) => result,
                    () = shutdown.cancelled() => return,
                };
                match result {
                    // Whatever the store's outage lasts, what is rendered stays rendered.
                    Err(error) if error.is_retryable() => {
                        tracing::warn!(error = chain(&error), "could not assemble; trying again");
                    }
                    result => break result,
                }
                tokio::select! {
                    () = tokio::time::sleep(pause) => pause = (pause * 2).min(LONGEST_PAUSE),
                    () = cancelled.cancelled() => return,
                    () = shutdown.cancelled() => return,
                }
            };
            let job = job.id;
            match result {
                Ok(output) => {
                    metrics.assembled(started.elapsed());
                    tracing::info!(size_bytes = output.artifact.size_bytes, "assembled picture");
                    desk.apply(Event::Assembled { job, task, key, output });
                }
                Err(AssembleError::Cancelled) => {}
                Err(error) => {
                    let message = chain(&error);
                    tracing::warn!(error = message, "could not assemble");
                    let missing = if let AssembleError::Missing(keys) = error { keys } else { Vec::new() };
                    desk.apply(Event::NotAssembled { job, task, key, message, missing });
                }
            }
        }
    }
}

/// The header that carries a job's trace.
fn trace_header(traceparent: Option<&str>) -> impl Iterator<Item = (&str, &str)> {
    traceparent.map(|parent| ("traceparent", parent)).into_iter()
}
