//! Every instrument of a worker: name, unit and meaning together.

use std::time::Duration;

use service::telemetry::{Counter, Histogram, KeyValue, meter};

/// The instruments; clones measure into the same ones.
#[derive(Debug, Clone)]
pub struct Metrics {
    ended: Counter<u64>,
    render_time: Histogram<f64>,
    fetched: Counter<u64>,
    put: Counter<u64>,
}

impl Metrics {
    /// Makes the instruments.
    pub fn new() -> Self {
        let meter = meter();
        Self {
            ended: meter
                .u64_counter("tessera.worker.tasks")
                .with_unit("{task}")
                .with_description("Attempts by how they ended: rendered, found, failed, retrying, revoked and so on")
                .build(),
            render_time: meter
                .f64_histogram("tessera.worker.render.duration")
                .with_unit("s")
                .with_description("How long a task is on the device")
                .with_boundaries(vec![0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0])
                .build(),
            fetched: meter
                .u64_counter("tessera.worker.fetched")
                .with_unit("By")
                .with_description("Bytes of pictures fetched from the store")
                .build(),
            put: meter
                .u64_counter("tessera.worker.put")
                .with_unit("By")
                .with_description("Bytes of results put into the store")
                .build(),
        }
    }

    /// Counts an attempt that ended as `outcome`.
    pub fn ended(&self, outcome: &'static str) {
        self.ended.add(1, &[KeyValue::new("outcome", outcome)]);
    }

    /// Takes down how long a task was rendered.
    pub fn rendered_in(&self, elapsed: Duration) {
        self.render_time.record(elapsed.as_secs_f64(), &[]);
    }

    /// Counts bytes fetched.
    pub fn fetched(&self, size_bytes: u64) {
        self.fetched.add(size_bytes, &[]);
    }

    /// Counts bytes put.
    pub fn put(&self, size_bytes: u64) {
        self.put.add(size_bytes, &[]);
    }
}
