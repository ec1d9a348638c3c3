//! Consumers and listeners that begin anew on a fresh channel whenever theirs ends.

use std::fmt::{self, Debug};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions, BasicRejectOptions, QueueBindOptions,
    QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Acker, Channel, Consumer as Stream};

use crate::error::{BrokerError, Result};
use crate::queue::{Consumer, Delivery, Listener, Message, Outcome, Settle};
use crate::rabbitmq::link::{Link, Topology};
use crate::rabbitmq::{declare_topic, wire};

/// How long sending a word over a connection may take before the connection counts as lost.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(10);
/// How many messages of a topic the broker keeps for a slow listener before it drops the oldest.
const TOPIC_BACKLOG: i32 = 4096;
/// How many messages of a topic are on their way to a listener at a time.
const TOPIC_PREFETCH: u16 = 256;

/// What lasts from one recovery to the next. Dropping it closes the channel, and the broker takes back what is
/// unsettled.
pub(super) struct Session {
    stream: Stream,
    /// Whether the deliveries of this session may still be settled.
    alive: Arc<AtomicBool>,
    _channel: Channel,
}

impl Session {
    async fn begin(channel: Channel, queue: &str, prefetch: u16) -> lapin::Result<Self> {
        channel.basic_qos(prefetch, BasicQosOptions::default()).await?;
        let stream = channel
            .basic_consume(queue.into(), "".into(), BasicConsumeOptions::default(), FieldTable::default())
            .await?;
        Ok(Self { stream, alive: Arc::new(AtomicBool::new(true)), _channel: channel })
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.alive.store(false, Ordering::Release);
    }
}

/// Waits for the next delivery; `None` when the session has ended, which is logged here.
async fn next(link: &Link, session: &mut Session, about: &str) -> Result<Option<lapin::message::Delivery>> {
    let came = tokio::select! {
        biased;
        closed = link.until_closed() => return Err(closed),
        came = session.stream.next() => came,
    };
    match came {
        Some(Ok(delivery)) => return Ok(Some(delivery)),
        Some(Err(error)) => tracing::warn!(queue = about, %error, "lost the channel to the broker, beginning anew"),
        None => tracing::warn!(queue = about, "the broker ended the consumer, beginning anew"),
    }
    Ok(None)
}

/// Takes messages from a queue.
pub(super) struct RabbitConsumer {
    link: Arc<Link>,
    topology: Arc<Topology>,
    queue: String,
    prefetch: u16,
    session: Option<Session>,
}

impl RabbitConsumer {
    pub(super) fn new(link: Arc<Link>, topology: Arc<Topology>, queue: &str, prefetch: u16) -> Self {
        Self { link, topology, queue: queue.to_owned(), prefetch, session: None }
    }

    /// Begins a session if there is none, for as long as that takes.
    pub(super) async fn begin(&mut self) -> Result<&mut Session> {
        let session = match self.session.take() {
            Some(session) => session,
            None => {
                let spec = self.topology.queue(&self.queue);
                let (spec, queue, prefetch) = (spec.as_ref(), self.queue.as_str(), self.prefetch);
                let begin = |channel: Channel| async move {
                    if let Some(spec) = spec {
                        wire::declare(&channel, spec).await?;
                    }
                    Session::begin(channel, queue, prefetch).await
                };
                self.link.retrying(queue, begin).await?
            }
        };
        Ok(self.session.insert(session))
    }
}

#[async_trait]
impl Consumer for RabbitConsumer {
    async fn next(&mut self) -> Result<Delivery> {
        loop {
            let (link, queue) = (self.link.clone(), self.queue.clone());
            let session = self.begin().await?;
            let Some(delivery) = next(&link, session, &queue).await? else {
                self.session = None;
                continue;
            };
            let message = wire::message(&delivery.properties, delivery.data);
            let hold = Hold { id: message.id.clone(), acker: delivery.acker, alive: session.alive.clone() };
            return Ok(Delivery::new(message, wire::attempt(&delivery.properties), Box::new(hold)));
        }
    }
}

impl Debug for RabbitConsumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RabbitConsumer").field("queue", &self.queue).finish_non_exhaustive()
    }
}

/// One unsettled delivery.
struct Hold {
    id: String,
    acker: Acker,
    alive: Arc<AtomicBool>,
}

impl Hold {
    /// Sends the word; false if it could not be sent.
    async fn send(&self, outcome: Outcome) -> bool {
        if !self.alive.load(Ordering::Acquire) {
            return false;
        }
        let word = async {
            match outcome {
                Outcome::Done => self.acker.ack(BasicAckOptions::default()).await,
                Outcome::Retry => self.acker.reject(BasicRejectOptions { requeue: true }).await,
                Outcome::GiveBack => {
                    let options = BasicNackOptions { multiple: false, requeue: true };
                    self.acker.nack(options).await
                }
                Outcome::DeadLetter => self.acker.reject(BasicRejectOptions { requeue: false }).await,
            }
        };
        matches!(tokio::time::timeout(SETTLE_TIMEOUT, word).await, Ok(Ok(true)))
    }
}

#[async_trait]
impl Settle for Hold {
    async fn settle(self: Box<Self>, outcome: Outcome) -> Result<()> {
        if self.send(outcome).await {
            return Ok(());
        }
        Err(BrokerError::Stale { id: self.id })
    }

    fn abandon(self: Box<Self>) {
        // Without a runtime the connection is ending too, and that gives the message back as well.
        if self.alive.load(Ordering::Acquire)
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(async move { self.send(Outcome::Retry).await });
        }
    }
}

/// Hears the messages of a topic.
pub(super) struct RabbitListener {
    link: Arc<Link>,
    topic: String,
    session: Option<Session>,
}

impl RabbitListener {
    pub(super) fn new(link: Arc<Link>, topic: &str) -> Self {
        Self { link, topic: topic.to_owned(), session: None }
    }

    /// Begins a session if there is none, for as long as that takes.
    pub(super) async fn begin(&mut self) -> Result<&mut Session> {
        let session = match self.session.take() {
            Some(session) => session,
            None => {
                let topic = self.topic.as_str();
                let begin = |channel: Channel| async move {
                    declare_topic(&channel, topic).await?;
                    let own = QueueDeclareOptions { exclusive: true, auto_delete: true, ..Default::default() };
                    let mut arguments = FieldTable::default();
                    arguments.insert("x-max-length".into(), AMQPValue::LongInt(TOPIC_BACKLOG));
                    let queue = channel.queue_declare("".into(), own, arguments).await?.name().clone();
                    let bind = QueueBindOptions::default();
                    channel.queue_bind(queue.clone(), topic.into(), "".into(), bind, FieldTable::default()).await?;
                    Session::begin(channel, queue.as_str(), TOPIC_PREFETCH).await
                };
                self.link.retrying(topic, begin).await?
            }
        };
        Ok(self.session.insert(session))
    }
}

#[async_trait]
impl Listener for RabbitListener {
    async fn next(&mut self) -> Result<Message> {
        loop {
            let (link, topic) = (self.link.clone(), self.topic.clone());
            let session = self.begin().await?;
            let Some(delivery) = next(&link, session, &topic).await? else {
                self.session = None;
                continue;
            };
            let message = wire::message(&delivery.properties, delivery.data);
            // Makes room for another one; if the connection is lost meanwhile, the next call notices.
            tokio::spawn(async move { delivery.acker.ack(BasicAckOptions::default()).await });
            return Ok(message);
        }
    }
}

impl Debug for RabbitListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RabbitListener").field("topic", &self.topic).finish_non_exhaustive()
    }
}
