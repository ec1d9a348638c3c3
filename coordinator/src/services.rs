//! gRPC in: the public services.

pub mod artifacts;
pub mod jobs;
pub mod models;
pub mod workers;

use std::collections::BTreeMap;

use service::telemetry;
use tonic::metadata::MetadataMap;
use tracing::Span;

/// Makes `span` part of the caller's trace.
fn follow(span: &Span, metadata: &MetadataMap) {
    let text = |name: &str| Some((name.to_owned(), metadata.get(name)?.to_str().ok()?.to_owned()));
    let headers: BTreeMap<_, _> = ["traceparent", "tracestate"].into_iter().filter_map(text).collect();
    telemetry::set_parent(span, headers.iter().map(|(name, value)| (name.as_str(), value.as_str())));
}
