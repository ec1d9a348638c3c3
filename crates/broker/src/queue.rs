//! What every broker promises: the trait, and the values that pass through it.

use std::collections::BTreeMap;
use std::fmt::{self, Debug};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::error::Result;

/// Bytes on their way, with a name and a few words for the road.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// What the sender calls it, at most 255 bytes. Brokers do not compare ids: equal ids are two messages.
    pub id: String,
    /// Small words beside the body, such as the trace context. Names have at most 255 bytes and do not begin with
    /// `x-`, which belongs to the broker.
    pub headers: BTreeMap<String, String>,
    /// The content, which no broker looks into.
    pub body: Bytes,
}

impl Message {
    /// Makes a message without headers.
    pub fn new(id: impl Into<String>, body: impl Into<Bytes>) -> Self {
        Self { id: id.into(), headers: BTreeMap::new(), body: body.into() }
    }
}

/// What a durable queue is like. Every process that names a queue declares it alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueSpec {
    /// The queue's name, 1 to 255 bytes.
    pub name: String,
    /// How many times a message is delivered at most, from 1. When the last delivery fails, or is lost with its
    /// consumer, the message is dead-lettered. `None` leaves it to the broker: RabbitMQ before 4.0 and memory have
    /// no limit then, RabbitMQ 4 has one of 20.
    pub delivery_limit: Option<u32>,
    /// The queue that gets the dead-lettered messages. Without one they are dropped.
    pub dead_letter_to: Option<String>,
}

impl QueueSpec {
    /// Describes a plain queue: no delivery limit, no dead-letter queue.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), delivery_limit: None, dead_letter_to: None }
    }

    /// Limits how many times a message is delivered, from 1, and says which queue gets it then.
    pub fn dead_letter_after(mut self, deliveries: u32, queue: impl Into<String>) -> Self {
        self.delivery_limit = Some(deliveries);
        self.dead_letter_to = Some(queue.into());
        self
    }
}

/// A broker: durable queues, transient topics.
///
/// Calls survive a broker that restarts and a connection that is cut: they wait for it, reconnect, declare again what
/// was declared, and try again, until [`Options::patience`](crate::Options::patience) runs out. All calls may be
/// dropped half-way; a message being published is then published or not.
#[async_trait]
pub trait Broker: Send + Sync + Debug {
    /// Makes sure that the queue exists, now and after every recovery. Declaring it again alike does nothing.
    ///
    /// # Errors
    /// [`Mismatch`](crate::BrokerError::Mismatch) if it exists with another delivery limit or dead-letter queue.
    async fn declare(&self, queue: &QueueSpec) -> Result<()>;

    /// Publishes one message, and returns once the broker has it safely: routed, stored, confirmed.
    ///
    /// # Errors
    /// As [`publish_many`](Self::publish_many).
    async fn publish(&self, queue: &str, message: Message) -> Result<()> {
        self.publish_many(queue, vec![message]).await
    }

    /// Publishes messages in order, and returns once the broker has all of them safely. Confirmations are awaited
    /// together, so this is the way to publish thousands a second.
    ///
    /// # Errors
    /// [`UnknownQueue`](crate::BrokerError::UnknownQueue) if nobody declared the queue. After an error nobody knows
    /// which of the messages arrived: publish them all again, since whoever takes them can take them twice.
    async fn publish_many(&self, queue: &str, messages: Vec<Message>) -> Result<()>;

    /// Takes messages from a queue, holding at most `prefetch` unsettled ones at a time; 0 is no limit.
    ///
    /// # Errors
    /// [`UnknownQueue`](crate::BrokerError::UnknownQueue) if nobody declared the queue.
    async fn consume(&self, queue: &str, prefetch: u16) -> Result<Box<dyn Consumer>>;

    /// Sends a message to everybody who listens to the topic at this moment. It may be lost, so this waits a few
    /// seconds at most for a broker that is away.
    async fn broadcast(&self, topic: &str, message: Message) -> Result<()>;

    /// Listens to a topic. Messages broadcast after this returns are heard.
    async fn listen(&self, topic: &str) -> Result<Box<dyn Listener>>;

    /// Counts the messages that wait in the queue, without those in consumers' hands. The figure may be a moment old.
    ///
    /// # Errors
    /// [`UnknownQueue`](crate::BrokerError::UnknownQueue) if nobody declared the queue.
    async fn depth(&self, queue: &str) -> Result<u64>;

    /// Asks whether the broker answers at this moment, within a few seconds.
    async fn check(&self) -> Result<()>;

    /// Says what an operator should know if a delivery may stay unsettled for as long as `longest`: `None` if the
    /// broker leaves it alone for that long.
    fn delivery_warning(&self, longest: Duration) -> Option<String>;

    /// Names the broker for people, without secrets.
    fn describe(&self) -> String;

    /// Says goodbye. Consumers and listeners end with [`Closed`](crate::BrokerError::Closed), and unsettled messages
    /// go back to their queues, at the latest when their consumer is dropped. Dropping the broker alone ends nothing.
    async fn close(&self);
}

/// Takes messages from one queue.
///
/// Dropping it gives the messages that are not settled back to the queue, each counted as one more delivery;
/// settling their deliveries then fails with [`Stale`](crate::BrokerError::Stale).
#[async_trait]
pub trait Consumer: Send + Debug {
    /// Waits for the next message. A broker that is away is waited for without limit; it says so through `tracing`.
    /// The call may be dropped half-way without losing a message.
    ///
    /// # Errors
    /// Only when waiting does not help: [`Closed`](crate::BrokerError::Closed),
    /// [`Refused`](crate::BrokerError::Refused), or the queue is gone and this process never declared it.
    async fn next(&mut self) -> Result<Delivery>;
}

/// Hears the messages of one topic.
#[async_trait]
pub trait Listener: Send + Debug {
    /// Waits for the next message. One who listens too slowly, or while the broker is away, misses some.
    /// The call may be dropped half-way.
    ///
    /// # Errors
    /// As [`Consumer::next`].
    async fn next(&mut self) -> Result<Message>;
}

/// A message in a consumer's hands, until it is settled by one of the four calls.
///
/// Settling is a word sent, not a word confirmed: if the connection dies right after, the message comes again.
/// Dropping a delivery is a failure of whoever held it (a panic, say) and equals [`retry`](Self::retry).
#[derive(Debug)]
pub struct Delivery {
    /// The message.
    pub message: Message,
    /// Which delivery of this message this is, from 1.
    pub attempt: u32,
    hold: Hold,
}

impl Delivery {
    /// Makes a delivery that an adapter settles through `settle`.
    pub fn new(message: Message, attempt: u32, settle: Box<dyn Settle>) -> Self {
        Self { message, attempt, hold: Hold(Some(settle)) }
    }

    /// Says that the message is dealt with; the queue forgets it.
    pub async fn ack(self) -> Result<()> {
        self.settle(Outcome::Done).await
    }

    /// Says that dealing with it failed. It comes again, or is dead-lettered if this was its last delivery.
    pub async fn retry(self) -> Result<()> {
        self.settle(Outcome::Retry).await
    }

    /// Gives it back without having failed, as one who leaves does.
    ///
    /// Whether that counts as a delivery is the broker's affair: it does on RabbitMQ 3.x, where quorum queues count
    /// every return, and does not on RabbitMQ 4 and in memory. So leave room for it in the delivery limit.
    pub async fn give_back(self) -> Result<()> {
        self.settle(Outcome::GiveBack).await
    }

    /// Sends it to the dead-letter queue at once, as nothing can be done with it.
    pub async fn dead_letter(self) -> Result<()> {
        self.settle(Outcome::DeadLetter).await
    }

    async fn settle(mut self, outcome: Outcome) -> Result<()> {
        let settle = self.hold.0.take().expect("every way to settle consumes the delivery");
        settle.settle(outcome).await
    }
}

/// What becomes of a delivered message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Dealt with: the queue forgets it.
    Done,
    /// Failed: it comes again, within the delivery limit.
    Retry,
    /// Given back unharmed: it comes again.
    GiveBack,
    /// Hopeless: to the dead-letter queue.
    DeadLetter,
}

/// The adapter's side of a [`Delivery`].
#[async_trait]
pub trait Settle: Send + Sync {
    /// Tells the broker what becomes of the message.
    ///
    /// # Errors
    /// [`Stale`](crate::BrokerError::Stale) if it is no longer ours to settle.
    async fn settle(self: Box<Self>, outcome: Outcome) -> Result<()>;

    /// Does as [`Outcome::Retry`], without waiting: the delivery was dropped.
    fn abandon(self: Box<Self>);
}

/// Abandons what was not settled.
struct Hold(Option<Box<dyn Settle>>);

impl Drop for Hold {
    fn drop(&mut self) {
        if let Some(settle) = self.0.take() {
            settle.abandon();
        }
    }
}

impl Debug for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "unsettled" } else { "settled" })
    }
}
