//! A queue: one trait, and two brokers behind it, in memory and RabbitMQ.
//!
//! It moves bytes between the processes of a farm and says nothing about what they mean: it knows no job and no
//! task. It is no store either. A message may come twice and a transient one may not come at all, so whatever must
//! survive is kept elsewhere, and whoever takes a message can take it again.
//!
//! Two kinds of address:
//!
//! - a **queue** is durable. A message is confirmed when published, belongs to one consumer at a time, is settled by
//!   it, and comes again when it was not;
//! - a **topic** is transient. A message reaches whoever listens at this moment, and may be lost.
//!
//! Start reading at [`Broker`]; [`open`] turns an address into one; [`suite`] is the promise as tests, the same for
//! every adapter.
//!
//! ```
//! # tokio::runtime::Runtime::new().unwrap().block_on(async {
//! use broker::{Message, Options, QueueSpec};
//!
//! let broker = broker::open("memory:", &Options::default()).await?;
//! broker.declare(&QueueSpec::new("tasks")).await?;
//! broker.publish("tasks", Message::new("task-1", "a few bytes")).await?;
//!
//! let mut consumer = broker.consume("tasks", 1).await?;
//! let delivery = consumer.next().await?;
//! assert_eq!(delivery.message.body, "a few bytes");
//! delivery.ack().await?;
//! # Ok::<_, broker::BrokerError>(()) }).unwrap();
//! ```

mod error;
mod memory;
mod queue;
mod rabbitmq;
pub mod suite;

use std::sync::Arc;
use std::time::Duration;

pub use error::{BrokerError, Result};
pub use memory::MemoryBroker;
pub use queue::{Broker, Consumer, Delivery, Listener, Message, Outcome, QueueSpec, Settle};
pub use rabbitmq::RabbitBroker;

/// How to be a client of a broker.
#[derive(Clone, Debug)]
pub struct Options {
    /// What an operator sees beside the connection, such as `worker gpu-3`.
    pub name: String,
    /// How long one call waits for a broker that is away before it fails with [`BrokerError::Unreachable`].
    /// Consumers and listeners, once made, wait for as long as it takes.
    pub patience: Duration,
    /// The `consumer_timeout` of the RabbitMQ server: how long it leaves a delivery unsettled before it closes the
    /// consumer's channel. AMQP cannot ask for it; 30 minutes is RabbitMQ's default since 3.8.17.
    pub consumer_timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            name: "tessera".into(),
            patience: Duration::from_secs(60),
            consumer_timeout: Duration::from_secs(30 * 60),
        }
    }
}

/// Connects to the broker at `address`, retrying for as long as `options.patience`.
///
/// - `memory:` is a new broker of its own; `memory:NAME` is shared by whoever opens that name in this process, for as
///   long as one of them holds it.
/// - `amqp://USER:PASSWORD@HOST:PORT/VHOST` and `amqps://…` are RabbitMQ 3.10 or newer. `amqps` trusts the
///   certificates of the system (or of `SSL_CERT_FILE`). `?heartbeat=SECONDS` changes the heartbeat.
///
/// # Errors
/// [`BrokerError::Address`] if the address is none of these; [`BrokerError::Refused`] if the broker answers and says
/// no; [`BrokerError::Unreachable`] if it does not answer in time.
pub async fn open(address: &str, options: &Options) -> Result<Arc<dyn Broker>> {
    match address.split_once(':') {
        Some(("memory", "")) => Ok(Arc::new(MemoryBroker::new())),
        Some(("memory", name)) => Ok(Arc::new(MemoryBroker::named(name))),
        Some(("amqp" | "amqps", _)) => Ok(Arc::new(RabbitBroker::connect(address, options).await?)),
        Some((scheme, _)) => Err(BrokerError::Address {
            reason: format!("unknown scheme `{scheme}`, expected `memory`, `amqp` or `amqps`"),
        }),
        None => {
            Err(BrokerError::Address { reason: "no scheme, expected `memory:`, `amqp://…` or `amqps://…`".into() })
        }
    }
}
