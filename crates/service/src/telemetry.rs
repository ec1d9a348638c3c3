//! Logs on stderr; spans and measurements over OTLP where the standard `OTEL_*` variables say so.
//!
//! Every span has a trace, also where nobody exports it, so that a job is one trace through all processes that do:
//! [`inject`] puts it into the headers of a message, [`set_parent`] takes it up again.
//!
//! What a process measures it lists in its own `metrics.rs`, made from [`meter`].

use std::{
    collections::{BTreeMap, HashMap},
    io::IsTerminal as _,
    time::Duration,
};

use opentelemetry::{
    global,
    propagation::TextMapPropagator as _,
    trace::{TraceContextExt as _, TracerProvider as _},
};
use opentelemetry_sdk::{
    Resource,
    metrics::SdkMeterProvider,
    propagation::TraceContextPropagator,
    trace::{SdkTracerProvider, TracerProviderBuilder},
};
use tracing::{Level, Span};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, Registry, filter::filter_fn, layer::SubscriberExt as _};

pub use opentelemetry::{
    KeyValue,
    metrics::{Counter, Gauge, Histogram, Meter, UpDownCounter},
};

use crate::config::{self, LogFormat};

/// The longest that leaving waits for a collector.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

/// What makes this process's instruments; they measure into the void where no exporter is set up.
pub fn meter() -> Meter {
    global::meter("tessera")
}

/// The trace context of `span` as W3C headers: `traceparent`, and `tracestate` where there is one.
pub fn inject(span: &Span) -> BTreeMap<String, String> {
    let mut headers = HashMap::new();
    TraceContextPropagator::new().inject_context(&span.context(), &mut headers);
    headers.into_iter().filter(|(_, value)| !value.is_empty()).collect()
}

/// The `traceparent` of `span`; `None` where no telemetry was started.
pub fn traceparent_of(span: &Span) -> Option<String> {
    inject(span).remove("traceparent")
}

/// The trace that `span` belongs to, as 32 hexadecimal digits; `None` where no telemetry was started.
pub fn trace_id_of(span: &Span) -> Option<String> {
    let context = span.context();
    let context = context.span().span_context().clone();
    context.is_valid().then(|| context.trace_id().to_string())
}

/// Makes `span` a child of the span whose W3C headers these are; without any it stays what it is.
///
/// Must come before the span is entered or has children.
pub fn set_parent<'a>(span: &Span, headers: impl IntoIterator<Item = (&'a str, &'a str)>) {
    let headers: HashMap<String, String> =
        headers.into_iter().map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned())).collect();
    let parent = TraceContextPropagator::new().extract(&headers);
    if parent.span().span_context().is_valid() {
        // Fails where no telemetry was started: then there is nothing to connect.
        let _ = span.set_parent(parent);
    }
}

/// Why telemetry cannot start.
#[derive(Debug, thiserror::Error)]
#[error("cannot export {signal} over OTLP")]
pub struct TelemetryError {
    signal: &'static str,
    #[source]
    source: opentelemetry_otlp::ExporterBuildError,
}

/// The telemetry of a running process; to be [stopped](Telemetry::stop), so that nothing is lost.
pub(crate) struct Telemetry {
    tracer: SdkTracerProvider,
    meter: Option<SdkMeterProvider>,
}

impl Telemetry {
    /// Starts logging and exporting for the program `name`, once per process: a second call in a process leaves the
    /// first as it is. Must be called within a runtime.
    pub(crate) fn start(name: &'static str, config: &config::Telemetry) -> Result<Self, TelemetryError> {
        let resource = resource(name, &config.instance);
        let mut tracer = SdkTracerProvider::builder().with_resource(resource.clone());
        if config.traces {
            let exporter = opentelemetry_otlp::SpanExporter::builder().with_tonic().build();
            tracer = tracer.with_batch_exporter(exporter.map_err(|source| TelemetryError { signal: "spans", source })?);
        }
        let mut meter = None;
        if config.metrics {
            let exporter = opentelemetry_otlp::MetricExporter::builder().with_tonic().build();
            let exporter = exporter.map_err(|source| TelemetryError { signal: "measurements", source })?;
            meter = Some(SdkMeterProvider::builder().with_resource(resource).with_periodic_exporter(exporter).build());
        }
        Ok(Self::install(config, tracer, meter))
    }

    fn install(config: &config::Telemetry, tracer: TracerProviderBuilder, meter: Option<SdkMeterProvider>) -> Self {
        let tracer = tracer.build();
        let log = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
        let log = match (config.log_format, std::io::stderr().is_terminal()) {
            (LogFormat::Json, _) => log.json().flatten_event(true).boxed(),
            (LogFormat::Text, true) => log.boxed(),
            (LogFormat::Text, false) => log.with_ansi(false).boxed(),
        };
        // Spans are exported whatever is logged: a quiet log must not tear a trace.
        let spans = filter_fn(|span| *span.level() <= Level::INFO && !span.target().starts_with("opentelemetry"));
        let subscriber = Registry::default()
            .with(log.with_filter(EnvFilter::new(format!("opentelemetry=warn,{}", config.log)))) // it tells of itself
            .with(tracing_opentelemetry::layer().with_tracer(tracer.tracer("tessera")).with_filter(spans));
        if tracing::subscriber::set_global_default(subscriber).is_ok() {
            global::set_tracer_provider(tracer.clone());
            if let Some(meter) = &meter {
                global::set_meter_provider(meter.clone());
            }
        }
        Self { tracer, meter }
    }

    /// Sends what is still to be sent, and waits for it a few seconds at most.
    pub(crate) async fn stop(self) {
        // Exporters block; a collector that hangs must not hold the process.
        let flush = tokio::task::spawn_blocking(move || {
            let mut errors = Vec::new();
            errors.extend(self.tracer.shutdown_with_timeout(FLUSH_TIMEOUT).err());
            errors.extend(self.meter.and_then(|meter| meter.shutdown_with_timeout(FLUSH_TIMEOUT).err()));
            errors
        });
        if let Ok(Ok(errors)) = tokio::time::timeout(FLUSH_TIMEOUT, flush).await {
            for error in errors {
                tracing::warn!(%error, "telemetry was lost");
            }
        } else {
            tracing::warn!("telemetry was lost: the collector does not answer");
        }
    }
}

/// Who speaks: `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` go before what the program knows of itself.
fn resource(name: &'static str, instance: &str) -> Resource {
    let standard = Resource::builder().build();
    let mut ours = vec![KeyValue::new("service.version", env!("CARGO_PKG_VERSION"))];
    if standard.get(&"service.name".into()).is_none_or(|name| name.as_str().starts_with("unknown_service")) {
        ours.push(KeyValue::new("service.name", name));
    }
    if standard.get(&"service.instance.id".into()).is_none() {
        ours.push(KeyValue::new("service.instance.id", instance.to_owned()));
    }
    Resource::builder().with_attributes(ours).build()
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use opentelemetry_sdk::{
        error::OTelSdkResult,
        trace::{SpanData, SpanProcessor},
    };
    use tracing::{info_span, subscriber::with_default};

    use super::*;

    #[derive(Debug, Clone, Default)]
    struct Recorder(Arc<Mutex<Vec<SpanData>>>);

    impl SpanProcessor for Recorder {
        fn on_start(&self, _: &mut opentelemetry_sdk::trace::Span, _: &opentelemetry::Context) {}

        fn on_end(&self, span: SpanData) {
            self.0.lock().unwrap().push(span);
        }

        fn force_flush(&self) -> OTelSdkResult {
            Ok(())
        }

        fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
            Ok(())
        }
    }

    /// The spans that end while `body` runs.
    fn recorded(body: impl FnOnce()) -> Vec<SpanData> {
        let recorder = Recorder::default();
        let tracer = SdkTracerProvider::builder().with_span_processor(recorder.clone()).build();
        let layer = tracing_opentelemetry::layer().with_tracer(tracer.tracer("test"));
        with_default(Registry::default().with(layer), body);
        recorder.0.lock().unwrap().clone()
    }

    #[test]
    fn a_trace_goes_on_in_the_headers_of_a_message() {
        let spans = recorded(|| {
            let publish = info_span!("publish");
            let headers = inject(&publish);
            assert_eq!(headers.get("traceparent"), traceparent_of(&publish).as_ref());
            assert_eq!(headers["traceparent"].split('-').nth(1), trace_id_of(&publish).as_deref());
            let render = info_span!("render");
            set_parent(&render, headers.iter().map(|(name, value)| (name.as_str(), value.as_str())));
            render.in_scope(|| ());
        });
        let span = |name: &str| spans.iter().find(|span| span.name == name).unwrap();
        assert_eq!(span("render").span_context.trace_id(), span("publish").span_context.trace_id());
        assert_eq!(span("render").parent_span_id, span("publish").span_context.span_id());
    }

    #[test]
    fn headers_that_hold_no_trace_change_nothing() {
        let spans = recorded(|| {
            let span = info_span!("render");
            set_parent(&span, [("traceparent", "nonsense"), ("other", "1")]);
            span.in_scope(|| ());
        });
        assert_eq!(spans[0].parent_span_id, opentelemetry::trace::SpanId::INVALID);
    }

    #[test]
    fn without_telemetry_there_is_no_trace() {
        with_default(Registry::default(), || assert_eq!(traceparent_of(&info_span!("render")), None));
    }
}
