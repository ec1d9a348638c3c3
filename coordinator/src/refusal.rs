//! Why a call is refused, and how that is told over gRPC.

use std::{error::Error, time::Duration};

use domain::check::Invalid;
use proto::convert::InvalidField;
use store::StoreError;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

/// Why a call is refused.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// A field of the request cannot be used.
    #[error(transparent)]
    Field(#[from] InvalidField),
    /// Something that a field names does not exist.
    #[error("{field}: {what} does not exist")]
    NotFound {
        /// The field's path.
        field: String,
        /// What was looked for.
        what: String,
    },
    /// Something that a field names may not be read.
    #[error("{field}: {what} may not be read with the coordinator's credentials")]
    Forbidden {
        /// The field's path.
        field: String,
        /// What was looked for.
        what: String,
    },
    /// The farm is not in a state in which this can be done.
    #[error("{why}")]
    Precondition {
        /// What is in the way, and what would help.
        why: String,
    },
    /// Too much is asked for at once.
    #[error("{why}")]
    Exhausted {
        /// What is exhausted.
        why: String,
    },
    /// The store or another service failed; trying again may help.
    #[error("{what} cannot be reached")]
    Unavailable {
        /// Which.
        what: &'static str,
        /// Why.
        source: Box<dyn Error + Send + Sync>,
    },
    /// A fault of ours.
    #[error("{what}")]
    Internal {
        /// What went wrong.
        what: String,
        /// Why.
        source: Box<dyn Error + Send + Sync>,
    },
}

impl Refusal {
    /// Something is wrong with the field at `path`.
    pub fn field(path: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Field(InvalidField::new(path, why.into()))
    }

    /// Turns an error of the store about what `field` names into a refusal.
    pub fn of_store(field: &str, what: &str) -> impl Fn(StoreError) -> Self + use<> {
        let (field, what) = (field.to_owned(), what.to_owned());
        move |error| match error {
            StoreError::NotFound { .. } | StoreError::MissingBucket { .. } => {
                Self::NotFound { field: field.clone(), what: what.clone() }
            }
            StoreError::Forbidden { .. } => Self::Forbidden { field: field.clone(), what: what.clone() },
            error @ (StoreError::InvalidKey { .. } | StoreError::InvalidUrl { .. }) => {
                Self::field(&field, chain(&error))
            }
            other => other.into(),
        }
    }
}

impl From<Invalid> for Refusal {
    fn from(invalid: Invalid) -> Self {
        Self::Field(invalid.into())
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Full { .. } => Self::Exhausted { why: chain(&error) },
            StoreError::InvalidKey { .. } | StoreError::InvalidUrl { .. } => Self::field("", chain(&error)),
            error if error.is_retryable() => Self::Unavailable { what: "the store", source: error.into() },
            error => Self::Internal { what: "the store failed".to_owned(), source: error.into() },
        }
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        // It travels in a header, and may quote what the caller wrote.
        let message: String = chain(&refusal).chars().take(1000).collect();
        let mut details = ErrorDetails::new();
        let code = match refusal {
            Refusal::Field(InvalidField { field, why }) => {
                details.add_bad_request_violation(field, why.chars().take(1000).collect::<String>());
                Code::InvalidArgument
            }
            Refusal::NotFound { field, what } => {
                details.add_bad_request_violation(field, format!("{what} does not exist"));
                Code::NotFound
            }
            Refusal::Forbidden { field, what } => {
                details.add_bad_request_violation(field, format!("{what} may not be read"));
                Code::PermissionDenied
            }
            Refusal::Precondition { .. } => Code::FailedPrecondition,
            Refusal::Exhausted { .. } => {
                details.set_retry_info(Some(Duration::from_secs(10)));
                Code::ResourceExhausted
            }
            Refusal::Unavailable { .. } => {
                details.set_retry_info(Some(Duration::from_secs(2)));
                Code::Unavailable
            }
            Refusal::Internal { .. } => {
                tracing::error!(error = message, "failed to answer a call");
                Code::Internal
            }
        };
        Status::with_error_details(code, message, details)
    }
}

/// An error with its causes, on one line.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let words = error.to_string();
        if !text.ends_with(&words) {
            text = format!("{text}: {words}");
        }
        cause = error.source();
    }
    text
}
