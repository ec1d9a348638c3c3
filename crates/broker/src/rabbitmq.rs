//! RabbitMQ 3.10 or newer, over AMQP 0-9-1.
//!
//! - A queue is a durable *quorum queue*, written with publisher confirms and the mandatory flag: a message that no
//!   queue takes comes back, and is an error. A delivery limit of n is RabbitMQ's `x-delivery-limit` of n - 1, which
//!   counts returns. Dead letters travel through the default exchange, *at least once*: a message that may not be
//!   lost while it is a task may not be lost as a poison task either. That asks for `x-overflow: reject-publish`,
//!   and keeps dead letters in their old queue while the dead-letter queue is missing; RabbitMQ looks for it again
//!   every three minutes, so declare it first.
//! - `consumer_timeout` is the server's setting: a queue cannot ask for its own before RabbitMQ 3.12, and AMQP does
//!   not tell it. So [`Broker::delivery_warning`] compares with what the operator says it is.
//! - A topic is a fanout exchange; each listener has an exclusive queue, bounded, that goes with its connection.
//! - Two connections: one talks, one hears. RabbitMQ stops reading from connections that publish when it is short of
//!   memory or disk, and then acknowledgements must still get through, or it never gets better.
//! - Recovery is a loop of our own around plain connections: [`link`] connects and declares, [`consumer`] and
//!   [`publisher`] begin anew on the channels they get from it. Heartbeats run on the caller's runtime, so nothing on
//!   it may block for long.

mod consumer;
mod link;
mod publisher;
mod wire;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use lapin::options::{BasicPublishOptions, ExchangeDeclareOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{Channel, ExchangeKind};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use crate::Options;
use crate::error::Result;
use crate::queue::{Broker, Consumer, Listener, Message, QueueSpec};
use consumer::{RabbitConsumer, RabbitListener};
use link::{Link, Pause, Topology};
use publisher::Publisher;
use wire::{Durability, name, properties};

/// How long the calls wait that are worth nothing late.
const MOMENT: Duration = Duration::from_secs(5);

/// One client of a RabbitMQ broker.
#[derive(Debug)]
pub struct RabbitBroker {
    /// The connection that publishes.
    talk: Arc<Link>,
    /// The connection that consumes and asks.
    hear: Arc<Link>,
    topology: Arc<Topology>,
    publisher: Publisher,
    /// The channel that broadcasts, once there is one.
    speaker: Mutex<Option<Speaker>>,
    options: Options,
    closed: CancellationToken,
}

#[derive(Debug)]
struct Speaker {
    channel: Channel,
    /// The topics whose exchange is known to exist.
    topics: BTreeSet<String>,
}

impl RabbitBroker {
    /// Connects to the broker at `address`; see [`open`](crate::open).
    ///
    /// # Errors
    /// As [`open`](crate::open).
    pub async fn connect(address: &str, options: &Options) -> Result<Self> {
        let uri = wire::uri(address)?;
        let closed = CancellationToken::new();
        let topology = Arc::new(Topology::default());
        let link = |purpose| {
            let name = format!("{} ({purpose})", options.name);
            Arc::new(Link::new(uri.clone(), name, topology.clone(), closed.clone()))
        };
        let (talk, hear) = (link("talks"), link("hears"));
        for link in [&talk, &hear] {
            link.patiently(options.patience, link.connection()).await?;
        }
        Ok(Self {
            publisher: Publisher::start(talk.clone(), options.patience),
            talk,
            hear,
            topology,
            speaker: Mutex::new(None),
            options: options.clone(),
            closed,
        })
    }

    /// Sends to the topic's exchange over the one channel that broadcasts, making it anew until that works.
    async fn speak(&self, topic: &str, message: &Message) -> Result<()> {
        let mut slot = self.speaker.lock().await;
        let mut pause = Pause::default();
        loop {
            let mut speaker = match slot.take().filter(|speaker| speaker.channel.status().connected()) {
                Some(speaker) => speaker,
                None => Speaker {
                    channel: self.talk.retrying(topic, |channel| async move { Ok(channel) }).await?,
                    topics: BTreeSet::new(),
                },
            };
            match speaker.send(topic, message).await {
                Ok(()) => {
                    *slot = Some(speaker);
                    return Ok(());
                }
                Err(error) => match self.talk.judge(topic, &error) {
                    Some(fatal) => return Err(fatal),
                    None => self.talk.wait(&mut pause).await?,
                },
            }
        }
    }
}

impl Speaker {
    async fn send(&mut self, topic: &str, message: &Message) -> lapin::Result<()> {
        if !self.topics.contains(topic) {
            declare_topic(&self.channel, topic).await?;
            self.topics.insert(topic.to_owned());
        }
        let (options, properties) = (BasicPublishOptions::default(), properties(message, Durability::Transient));
        self.channel.basic_publish(topic.into(), "".into(), options, &message.body, properties).await?;
        Ok(())
    }
}

/// Makes sure that the topic's exchange exists.
async fn declare_topic(channel: &Channel, topic: &str) -> lapin::Result<()> {
    let options = ExchangeDeclareOptions { durable: true, ..Default::default() };
    channel.exchange_declare(topic.into(), ExchangeKind::Fanout, options, FieldTable::default()).await
}

#[async_trait]
impl Broker for RabbitBroker {
    async fn declare(&self, queue: &QueueSpec) -> Result<()> {
        wire::check_spec(queue)?;
        let declared = self.hear.retrying(&queue.name, |channel| async move { wire::declare(&channel, queue).await });
        self.hear.patiently(self.options.patience, declared).await?;
        self.topology.remember(queue);
        Ok(())
    }

    async fn publish_many(&self, queue: &str, messages: Vec<Message>) -> Result<()> {
        name(queue)?;
        messages.iter().try_for_each(wire::check_message)?;
        let published = self.publisher.publish(queue, messages);
        self.talk.patiently(self.options.patience, published).await
    }

    async fn consume(&self, queue: &str, prefetch: u16) -> Result<Box<dyn Consumer>> {
        name(queue)?;
        let mut consumer = RabbitConsumer::new(self.hear.clone(), self.topology.clone(), queue, prefetch);
        self.hear.patiently(self.options.patience, consumer.begin()).await?;
        Ok(Box::new(consumer))
    }

    async fn broadcast(&self, topic: &str, message: Message) -> Result<()> {
        name(topic)?;
        wire::check_message(&message)?;
        self.talk.patiently(MOMENT, self.speak(topic, &message)).await
    }

    async fn listen(&self, topic: &str) -> Result<Box<dyn Listener>> {
        name(topic)?;
        let mut listener = RabbitListener::new(self.hear.clone(), topic);
        self.hear.patiently(self.options.patience, listener.begin()).await?;
        Ok(Box::new(listener))
    }

    async fn depth(&self, queue: &str) -> Result<u64> {
        name(queue)?;
        let passive = QueueDeclareOptions { passive: true, durable: true, ..Default::default() };
        let asked = self.hear.retrying(queue, |channel| async move {
            channel.queue_declare(queue.into(), passive, FieldTable::default()).await
        });
        let answer = self.hear.patiently(self.options.patience, asked).await?;
        Ok(answer.message_count().into())
    }

    async fn check(&self) -> Result<()> {
        for link in [&self.talk, &self.hear] {
            link.patiently(MOMENT, link.retrying("", |channel| async move { channel.close(200, "OK".into()).await }))
                .await?;
        }
        Ok(())
    }

    fn delivery_warning(&self, longest: Duration) -> Option<String> {
        let limit = self.options.consumer_timeout;
        (longest >= limit).then(|| {
            format!(
                "a delivery may take {longest:?}, but RabbitMQ closes the channel of a consumer that leaves one \
                 unsettled for {limit:?}, and delivers it again: set `consumer_timeout` in rabbitmq.conf above \
                 {} ms",
                longest.as_millis()
            )
        })
    }

    fn describe(&self) -> String {
        self.hear.broker().to_owned()
    }

    async fn close(&self) {
        self.closed.cancel();
        for link in [&self.talk, &self.hear] {
            link.close().await;
        }
    }
}
