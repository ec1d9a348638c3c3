//! From an answer of S3 to an error that says what can be done.

use std::error::Error;

use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::ProvideErrorMetadata;

use super::Object;
use crate::error::{Cause, StoreError};

pub(super) type SdkError<E> = aws_sdk_s3::error::SdkError<E, HttpResponse>;

/// What an operation's error must be so that it can be sorted.
pub(super) trait ServiceError: ProvideErrorMetadata + Error + Send + Sync + 'static {}
impl<E: ProvideErrorMetadata + Error + Send + Sync + 'static> ServiceError for E {}

/// Sorts an error of a request for `object`.
pub(super) fn failure<E: ServiceError>(object: &Object, error: SdkError<E>) -> StoreError {
    let key = object.name.clone();
    let code = error.code().unwrap_or_default().to_owned();
    let status = error.raw_response().map(|answer| answer.status().as_u16());
    let never_sent = matches!(error, SdkError::ConstructionFailure(_));
    let answered = matches!(error, SdkError::ServiceError(_));
    let source = Cause::from(account(&error, status));
    match (code.as_str(), status) {
        _ if never_sent => StoreError::Refused { key, source },
        _ if !answered => StoreError::Unavailable { key, source },
        ("NoSuchBucket", _) => StoreError::MissingBucket { bucket: object.bucket.clone() },
        // The upload was completed by an attempt whose answer was lost, or aborted: the body can be sent anew.
        ("NoSuchUpload", _) => StoreError::Unavailable { key, source },
        ("QuotaExceeded" | "XMinioStorageFull" | "InsufficientStorage", _) | (_, Some(507)) => {
            StoreError::Full { key, source }
        }
        (_, Some(401 | 403)) => StoreError::Forbidden { key, source },
        (_, Some(404)) => StoreError::NotFound { key },
        (_, Some(408 | 429 | 500 | 502 | 503 | 504)) => StoreError::Unavailable { key, source },
        _ => StoreError::Refused { key, source },
    }
}

/// Tells `error` in one line: the client's own words come nested, and without the service's code.
fn account<E: ServiceError>(error: &SdkError<E>, status: Option<u16>) -> String {
    if let (Some(code), Some(status)) = (error.code(), status) {
        let message = error.message().map(|message| format!(": {message}"));
        return format!("{code} (HTTP {status}){}", message.unwrap_or_default());
    }
    let mut words = vec![error.to_string()];
    let mut cause = error.source();
    while let Some(error) = cause {
        words.push(error.to_string());
        cause = error.source();
    }
    words.dedup();
    let status = status.map(|status| format!(" (HTTP {status})"));
    words.join(": ") + &status.unwrap_or_default()
}

/// An error of our own about a request for `object`, which a retry can help.
pub(super) fn broken(object: &Object, cause: impl Into<Cause>) -> StoreError {
    StoreError::Unavailable { key: object.name.clone(), source: cause.into() }
}
