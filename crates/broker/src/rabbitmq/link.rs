//! One connection that is made again whenever it is found dead.

use std::collections::BTreeMap;
use std::fmt::{self, Debug};
use std::future::Future;
use std::sync::{Arc, Mutex as StdMutex, PoisonError};
use std::time::Duration;

use lapin::protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError};
use lapin::uri::AMQPUri;
use lapin::{Channel, Connection, ConnectionProperties, ErrorKind};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use crate::error::{BrokerError, Result};
use crate::queue::QueueSpec;
use crate::rabbitmq::wire;

/// How long one attempt to connect may take, from the first packet to the open virtual host.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long to wait before the second attempt; each further wait is twice as long.
const FIRST_WAIT: Duration = Duration::from_millis(100);
/// How long to wait between attempts at most.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// The queues that this process has declared, and declares again after every recovery.
#[derive(Debug, Default)]
pub(super) struct Topology(StdMutex<BTreeMap<String, QueueSpec>>);

impl Topology {
    pub(super) fn remember(&self, spec: &QueueSpec) {
        let mut queues = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        queues.insert(spec.name.clone(), spec.clone());
    }

    pub(super) fn queue(&self, name: &str) -> Option<QueueSpec> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    fn queues(&self) -> Vec<QueueSpec> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}

/// A connection for one purpose.
pub(super) struct Link {
    uri: AMQPUri,
    /// What an operator sees in RabbitMQ's list of connections.
    name: String,
    /// Which broker, for people.
    broker: String,
    topology: Arc<Topology>,
    closed: CancellationToken,
    live: Mutex<Option<Arc<Connection>>>,
    /// What went wrong last, to be told by whoever loses patience.
    trouble: StdMutex<Option<lapin::Error>>,
}

impl Link {
    pub(super) fn new(uri: AMQPUri, name: String, topology: Arc<Topology>, closed: CancellationToken) -> Self {
        Self {
            broker: wire::describe(&uri),
            uri,
            name,
            topology,
            closed,
            live: Mutex::new(None),
            trouble: StdMutex::new(None),
        }
    }

    pub(super) fn broker(&self) -> &str {
        &self.broker
    }

    /// Gives the live connection, or makes one, for as long as that takes.
    ///
    /// # Errors
    /// Only when waiting does not help: `Refused`, `Closed`.
    pub(super) async fn connection(&self) -> Result<Arc<Connection>> {
        let mut live = self.live.lock().await;
        if self.closed.is_cancelled() {
            return Err(self.closed());
        }
        if let Some(connection) = live.as_ref().filter(|connection| connection.status().connected()) {
            return Ok(connection.clone());
        }
        let again = live.take().is_some();
        let mut pause = Pause::default();
        loop {
            match self.connect().await {
                Ok(connection) => {
                    if again || pause.waited() {
                        tracing::info!(broker = self.broker, connection = self.name, "connected to the broker");
                    }
                    let connection = Arc::new(connection);
                    *live = Some(connection.clone());
                    return Ok(connection);
                }
                Err(error) => {
                    if let Some(fatal) = self.judge("", &error) {
                        return Err(fatal);
                    }
                    tracing::warn!(
                        broker = self.broker,
                        connection = self.name,
                        %error,
                        retry_in_ms = pause.next_ms(),
                        "the broker cannot be reached, trying again"
                    );
                    self.wait(&mut pause).await?;
                }
            }
        }
    }

    /// Connects once, and declares what this process has declared before.
    async fn connect(&self) -> lapin::Result<Connection> {
        let properties = ConnectionProperties::default().with_connection_name(self.name.as_str().into());
        let connecting = async {
            let connection = Connection::connect_uri(self.uri.clone(), properties).await?;
            for queue in self.topology.queues() {
                let channel = connection.create_channel().await?;
                if let Err(error) = wire::declare(&channel, &queue).await {
                    // Whoever uses that queue is told; the others may go on.
                    tracing::warn!(broker = self.broker, queue = queue.name, %error, "could not declare a queue again");
                }
            }
            Ok(connection)
        };
        match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
            Ok(outcome) => outcome,
            Err(_) => Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()),
        }
    }

    /// Runs `work` on a fresh channel until it succeeds, for as long as that takes. `about` is the queue or topic.
    ///
    /// # Errors
    /// Only when trying again does not help.
    pub(super) async fn retrying<T, W, F>(&self, about: &str, work: W) -> Result<T>
    where
        W: Fn(Channel) -> F + Send + Sync,
        F: Future<Output = lapin::Result<T>> + Send,
    {
        let mut pause = Pause::default();
        loop {
            let connection = self.connection().await?;
            let outcome = match connection.create_channel().await {
                Ok(channel) => work(channel).await,
                Err(error) => Err(error),
            };
            match outcome {
                Ok(value) => return Ok(value),
                Err(error) => {
                    if let Some(fatal) = self.judge(about, &error) {
                        return Err(fatal);
                    }
                    self.wait(&mut pause).await?;
                }
            }
        }
    }

    /// Waits for `work` for as long as `patience`, or until the broker is closed.
    pub(super) async fn patiently<T>(
        &self,
        patience: Duration,
        work: impl Future<Output = Result<T>> + Send,
    ) -> Result<T> {
        tokio::select! {
            outcome = tokio::time::timeout(patience, work) => outcome.unwrap_or_else(|_| Err(self.unreachable(patience))),
            () = self.closed.cancelled() => Err(self.closed()),
        }
    }

    /// Waits a little longer than last time.
    pub(super) async fn wait(&self, pause: &mut Pause) -> Result<()> {
        tokio::select! {
            () = pause.wait() => Ok(()),
            () = self.closed.cancelled() => Err(self.closed()),
        }
    }

    /// Waits until the owner closes the broker.
    pub(super) async fn until_closed(&self) -> BrokerError {
        self.closed.cancelled().await;
        self.closed()
    }

    /// Decides what an error means for whoever asked for `about`: `None` is to try again.
    pub(super) fn judge(&self, about: &str, error: &lapin::Error) -> Option<BrokerError> {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.clone());
        let ErrorKind::ProtocolError(amqp) = error.kind() else {
            return None;
        };
        let reason = amqp.get_message().as_str().to_owned();
        match amqp.kind() {
            AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED) | AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED) => {
                Some(BrokerError::Refused { broker: self.broker.clone(), reason })
            }
            // A queue whose node is away is also "not found", but that passes.
            AMQPErrorKind::Soft(AMQPSoftError::NOTFOUND) if reason.contains("no queue") => {
                Some(BrokerError::UnknownQueue { queue: about.to_owned() })
            }
            AMQPErrorKind::Soft(AMQPSoftError::PRECONDITIONFAILED) => {
                Some(BrokerError::Mismatch { queue: about.to_owned(), reason })
            }
            AMQPErrorKind::Soft(_) | AMQPErrorKind::Hard(_) => None,
        }
    }

    pub(super) fn unreachable(&self, waited: Duration) -> BrokerError {
        let trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone();
        BrokerError::Unreachable { broker: self.broker.clone(), waited, source: trouble.map(Into::into) }
    }

    fn closed(&self) -> BrokerError {
        BrokerError::Closed { broker: self.broker.clone() }
    }

    /// Says goodbye, if the broker listens.
    pub(super) async fn close(&self) {
        let farewell = async {
            if let Some(connection) = self.live.lock().await.take() {
                // It may be dead already, which is as good.
                let _ = connection.close(200, "OK".into()).await;
            }
        };
        let _ = tokio::time::timeout(LONGEST_WAIT, farewell).await;
    }
}

impl Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("broker", &self.broker).field("name", &self.name).finish_non_exhaustive()
    }
}

/// Waits that grow: after each failure twice as long, within bounds.
#[derive(Debug, Default)]
pub(super) struct Pause {
    failures: u32,
}

impl Pause {
    fn next(&self) -> Duration {
        FIRST_WAIT.saturating_mul(2_u32.saturating_pow(self.failures)).min(LONGEST_WAIT)
    }

    fn next_ms(&self) -> u64 {
        u64::try_from(self.next().as_millis()).unwrap_or(u64::MAX)
    }

    fn waited(&self) -> bool {
        self.failures > 0
    }

    async fn wait(&mut self) {
        let next = self.next();
        self.failures = self.failures.saturating_add(1);
        tokio::time::sleep(next).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_up_to_their_bound() {
        let waits: Vec<u64> = (0..8).map(|failures| Pause { failures }.next_ms()).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        assert_eq!(Pause { failures: u32::MAX }.next(), LONGEST_WAIT);
    }
}
