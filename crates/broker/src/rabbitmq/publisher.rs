//! Publishes with confirms, many callers over one channel.
//!
//! Every caller hands an order to one task, which sends all waiting orders together, waits for all confirms together,
//! and only then answers. So a message that comes back unroutable is told to the right caller: AMQP does not say
//! which publish a returned message belongs to, but it returns it before its confirm. And a caller who stops waiting
//! leaves nothing half-done behind.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{Channel, Confirmation};
use tokio::sync::{mpsc, oneshot};

use crate::error::{BrokerError, Result};
use crate::queue::Message;
use crate::rabbitmq::link::{Link, Pause};
use crate::rabbitmq::wire::{Durability, properties};

/// How many messages one order holds at most; larger requests become several orders.
const ORDER_MESSAGES: usize = 1024;
/// How many orders are sent together at most.
const BATCH_ORDERS: usize = 64;
/// How many messages may be unconfirmed at a time.
const WINDOW: usize = 4096;

/// The callers' end.
#[derive(Debug)]
pub(super) struct Publisher {
    orders: mpsc::Sender<Order>,
    link: Arc<Link>,
}

/// Some messages for one queue. Whoever dropped the other end of `done` no longer wants them sent.
struct Order {
    queue: String,
    messages: Vec<Message>,
    done: oneshot::Sender<Result<()>>,
}

impl Publisher {
    /// Starts the task, which lives as long as this does. A batch that is not confirmed within `patience` is given
    /// up, with its channel.
    pub(super) fn start(link: Arc<Link>, patience: Duration) -> Self {
        let (orders, waiting) = mpsc::channel(BATCH_ORDERS);
        tokio::spawn(serve(link.clone(), waiting, patience));
        Self { orders, link }
    }

    /// Publishes the messages in order, and waits until all are confirmed, for as long as that takes.
    pub(super) async fn publish(&self, queue: &str, mut messages: Vec<Message>) -> Result<()> {
        let mut answers = Vec::new();
        while !messages.is_empty() {
            let rest = messages.split_off(messages.len().min(ORDER_MESSAGES));
            let (done, answer) = oneshot::channel();
            let order = Order { queue: queue.to_owned(), messages: std::mem::replace(&mut messages, rest), done };
            answers.push(answer);
            if self.orders.send(order).await.is_err() {
                return Err(self.link.until_closed().await);
            }
        }
        for answer in answers {
            match answer.await {
                Ok(outcome) => outcome?,
                Err(_) => return Err(self.link.until_closed().await),
            }
        }
        Ok(())
    }
}

/// Sends what is ordered, until nobody can order any more or the broker is closed.
async fn serve(link: Arc<Link>, mut waiting: mpsc::Receiver<Order>, patience: Duration) {
    let mut channel = None;
    let mut batch = Vec::new();
    while waiting.recv_many(&mut batch, BATCH_ORDERS).await > 0 {
        let mut pause = Pause::default();
        loop {
            batch.retain(|order| !order.done.is_closed());
            if batch.is_empty() {
                break;
            }
            let outcome = match tokio::time::timeout(patience, attempt(&link, &mut channel, &mut batch)).await {
                Ok(outcome) => outcome,
                Err(_) => {
                    channel = None;
                    Ok(())
                }
            };
            match outcome {
                Err(BrokerError::Closed { .. }) => return,
                Err(error) => refuse(&mut batch, error),
                Ok(()) => {}
            }
            // The first failure often is a connection found dead: try at once, then with pauses.
            if !batch.is_empty() && link.wait(&mut pause).await.is_err() {
                return;
            }
        }
    }
}

/// Sends the batch once and answers the orders that are settled; what stays in it is to be sent again.
async fn attempt(link: &Link, channel: &mut Option<Channel>, batch: &mut Vec<Order>) -> Result<()> {
    let open = match channel.take().filter(|channel| channel.status().connected()) {
        Some(open) => open,
        None => link.retrying("", confirming).await?,
    };
    let sent: Vec<_> = batch
        .iter()
        .flat_map(|order| order.messages.iter().map(|message| send(&open, &order.queue, message)))
        .collect();
    let mut confirms = stream::iter(sent).buffered(WINDOW);
    let mut outcomes = Vec::new();
    while let Some(outcome) = confirms.next().await {
        outcomes.push(outcome);
    }
    drop(confirms);

    let mut unroutable = BTreeSet::new();
    let mut refused = None;
    let mut broken = false;
    for outcome in &outcomes {
        match outcome {
            Ok(Confirmation::Ack(returned) | Confirmation::Nack(returned)) => {
                unroutable.extend(returned.iter().map(|message| message.routing_key.as_str().to_owned()));
            }
            Ok(Confirmation::NotRequested) => unreachable!("the channel confirms"),
            Err(error) => {
                broken = true;
                refused = link.judge("", error).or(refused);
            }
        }
    }
    if !broken {
        *channel = Some(open);
    }

    let mut outcomes = outcomes.into_iter();
    for mut order in std::mem::take(batch) {
        let mine: Vec<_> = outcomes.by_ref().take(order.messages.len()).collect();
        if unroutable.contains(&order.queue) {
            let queue = order.queue;
            // Whoever no longer waits for the answer does not need it, here and below.
            let _ = order.done.send(Err(BrokerError::UnknownQueue { queue }));
            continue;
        }
        let mut confirmed = mine.into_iter().map(|outcome| matches!(outcome, Ok(Confirmation::Ack(_))));
        order.messages.retain(|_| !confirmed.next().expect("there is one outcome per message"));
        if order.messages.is_empty() {
            let _ = order.done.send(Ok(()));
        } else {
            batch.push(order);
        }
    }
    refused.map_or(Ok(()), Err)
}

/// Turns confirms on.
async fn confirming(channel: Channel) -> lapin::Result<Channel> {
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    Ok(channel)
}

/// Sends one message and waits for its confirm.
async fn send(channel: &Channel, queue: &str, message: &Message) -> lapin::Result<Confirmation> {
    let mandatory = BasicPublishOptions { mandatory: true, ..Default::default() };
    let properties = properties(message, Durability::Persistent);
    channel.basic_publish("".into(), queue.into(), mandatory, &message.body, properties).await?.await
}

/// Tells everybody in the batch that the broker said no.
fn refuse(batch: &mut Vec<Order>, error: BrokerError) {
    let (broker, reason) = match error {
        BrokerError::Refused { broker, reason } => (broker, reason),
        other => ("the broker".into(), other.to_string()),
    };
    for order in batch.drain(..) {
        let _ = order.done.send(Err(BrokerError::Refused { broker: broker.clone(), reason: reason.clone() }));
    }
}
