//! What comes in through the broker: reports, signs of life, and messages that nobody could deal with.

use std::{sync::Arc, time::Duration};

use broker::{Broker, BrokerError, Consumer, Delivery, Message, QueueSpec};
use futures::FutureExt as _;
use proto::farm::{Beat, Names, Order, Report};

use crate::{
    desk::{Desk, now},
    ledger::Event,
    refusal::chain,
    roster::Roster,
};

/// Reports taken at once: they are acknowledged after the effects of all of them are done.
const REPORTS_AT_ONCE: u16 = 512;

/// Where to listen and whom to tell.
#[derive(Debug, Clone)]
pub struct Inbox {
    /// Where messages come from.
    pub broker: Arc<dyn Broker>,
    /// The queues' and topics' names.
    pub names: Names,
    /// Deliveries until a task is dead-lettered.
    pub delivery_limit: u32,
    /// Who decides.
    pub desk: Arc<Desk>,
    /// Who is there.
    pub roster: Arc<Roster>,
}

impl Inbox {
    /// Declares the queues that are read here.
    pub async fn declare(&self) -> Result<(), BrokerError> {
        for queue in [self.names.reports(), self.names.dead(), self.names.parked()] {
            self.broker.declare(&QueueSpec::new(queue)).await?;
        }
        Ok(())
    }

    /// Takes reports for good. Ends with the error that no waiting helps against.
    pub async fn take_reports(&self) -> BrokerError {
        let mut consumer = match self.broker.consume(&self.names.reports(), REPORTS_AT_ONCE).await {
            Ok(consumer) => consumer,
            Err(error) => return error,
        };
        loop {
            let deliveries = match some(&mut *consumer, REPORTS_AT_ONCE.into()).await {
                Ok(deliveries) => deliveries,
                Err(error) => return error,
            };
            let mut events = Vec::with_capacity(deliveries.len());
            let mut done = Vec::with_capacity(deliveries.len());
            for delivery in deliveries {
                match Report::decode(&delivery.message.body) {
                    Ok(report) => {
                        events.push(Event::Reported(report));
                        done.push(delivery);
                    }
                    Err(error) => self.park(delivery, chain(&error)).await,
                }
            }
            self.desk.apply_all(events);
            if self.desk.settled().await {
                for delivery in done {
                    log_stale(delivery.ack().await);
                }
            } // otherwise they come again, to the next coordinator
        }
    }

    /// Takes dead-lettered messages for good. Ends with the error that no waiting helps against.
    pub async fn take_dead(&self) -> BrokerError {
        let mut consumer = match self.broker.consume(&self.names.dead(), 16).await {
            Ok(consumer) => consumer,
            Err(error) => return error,
        };
        loop {
            let delivery = match consumer.next().await {
                Ok(delivery) => delivery,
                Err(error) => return error,
            };
            match Order::decode(&delivery.message.body) {
                Ok(order) => {
                    tracing::error!(job.id = %order.job, task = order.task, attempts = self.delivery_limit, "task was given up");
                    self.desk.apply(Event::Parked { order: Box::new(order), attempts: self.delivery_limit });
                    if self.desk.settled().await {
                        log_stale(delivery.ack().await);
                    }
                }
                Err(error) => self.park(delivery, chain(&error)).await,
            }
        }
    }

    /// Listens to signs of life for good. Ends with the error that no waiting helps against.
    pub async fn take_beats(&self) -> BrokerError {
        let mut listener = match self.broker.listen(&self.names.beats()).await {
            Ok(listener) => listener,
            Err(error) => return error,
        };
        loop {
            match listener.next().await {
                Ok(message) => match Beat::decode(&message.body) {
                    Ok(beat) => {
                        self.roster.note(&beat, now());
                        self.desk.apply(Event::Beat(beat.worker));
                    }
                    Err(error) => tracing::warn!(error = chain(&error), "passed over a beat that is not ours"),
                },
                Err(error) => return error,
            }
        }
    }

    /// Lets time pass. Every few seconds the queues' depths are looked up, so that lost tasks are noticed.
    pub async fn tick(&self) {
        let mut seconds = tokio::time::interval(Duration::from_secs(1));
        seconds.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        for count in 0_u64.. {
            seconds.tick().await;
            let mut depths = std::collections::HashMap::new();
            if count % 5 == 0 {
                for lane in self.desk.read(crate::ledger::Ledger::busy_lanes) {
                    let Some(queue) = self.names.tasks(&lane.0, lane.1, lane.2) else { continue };
                    if let Ok(depth) = self.broker.depth(&queue).await {
                        depths.insert(lane, depth);
                    }
                }
            }
            self.desk.apply(Event::Tick { depths });
        }
    }

    /// Puts a message that nobody can read where people can look at it, and goes on.
    async fn park(&self, delivery: Delivery, error: String) {
        tracing::error!(error, message.id = delivery.message.id, "parked a message that is not ours");
        let Message { id, headers, body } = delivery.message.clone();
        match self.broker.publish(&self.names.parked(), Message { id, headers, body }).await {
            Ok(()) => log_stale(delivery.ack().await),
            Err(error) => {
                tracing::warn!(error = chain(&error), "could not park a message");
                log_stale(delivery.give_back().await);
            }
        }
    }
}

/// The next delivery, and those that are there already, up to `most`.
async fn some(consumer: &mut dyn Consumer, most: usize) -> Result<Vec<Delivery>, BrokerError> {
    let mut deliveries = vec![consumer.next().await?];
    while deliveries.len() < most {
        match consumer.next().now_or_never() {
            Some(delivery) => deliveries.push(delivery?),
            None => break,
        }
    }
    Ok(deliveries)
}

/// A delivery that is stale comes again, and is dealt with again: nothing is lost.
fn log_stale(settled: Result<(), BrokerError>) {
    if let Err(error) = settled {
        tracing::debug!(error = chain(&error), "a message will come again");
    }
}
