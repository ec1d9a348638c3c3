//! Why a broker could not do as asked.

use std::time::Duration;

/// The result of a call to a broker.
pub type Result<T> = std::result::Result<T, BrokerError>;

/// Why a broker could not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// The address cannot be understood. It is not repeated here, since it may hold a password.
    #[error("not a broker's address: {reason}")]
    Address {
        /// What is wrong with it.
        reason: String,
    },
    /// The broker answered and said no: wrong credentials, no such virtual host, no permission.
    #[error("{broker} refused: {reason}")]
    Refused {
        /// Which broker, without secrets.
        broker: String,
        /// The broker's own words.
        reason: String,
    },
    /// The broker was away, or kept failing, for longer than the caller's patience.
    /// Messages being published meanwhile may have arrived or not.
    #[error("{broker} could not be reached within {waited:?}")]
    Unreachable {
        /// Which broker, without secrets.
        broker: String,
        /// How long the call waited.
        waited: Duration,
        /// What went wrong last, if anything was heard at all.
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// Nobody has declared the queue, so a message for it would be lost.
    #[error("queue `{queue}` does not exist")]
    UnknownQueue {
        /// The queue's name.
        queue: String,
    },
    /// The queue exists with other properties than asked for.
    #[error("queue `{queue}` exists with other properties: {reason}")]
    Mismatch {
        /// The queue's name.
        queue: String,
        /// Which property differs.
        reason: String,
    },
    /// The broker can never take this message or name.
    #[error("`{name}` cannot be sent: {reason}")]
    Invalid {
        /// The message's id, or the name of the queue or topic.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The delivery is no longer in our hands: its consumer or connection is gone, and the broker has given the
    /// message to another consumer or will do so. Nothing is lost; log it and go on.
    #[error("the delivery of message `{id}` is stale: it was or will be delivered again")]
    Stale {
        /// The message's id.
        id: String,
    },
    /// This broker has been closed by its owner.
    #[error("the connection to {broker} has been closed")]
    Closed {
        /// Which broker, without secrets.
        broker: String,
    },
}

impl BrokerError {
    /// Whether the same call may succeed later without anybody changing anything.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Address { .. }
            | Self::Refused { .. }
            | Self::UnknownQueue { .. }
            | Self::Mismatch { .. }
            | Self::Invalid { .. }
            | Self::Stale { .. }
            | Self::Closed { .. } => false,
        }
    }
}
