//! Every instrument of the coordinator: name, unit and meaning together.

use std::time::Duration;

use domain::job::JobState;
use opentelemetry::{
    KeyValue, global,
    metrics::{Counter, Histogram},
};

/// The coordinator's instruments.
#[derive(Debug)]
pub struct Metrics {
    created: Counter<u64>,
    ended: Counter<u64>,
    published: Counter<u64>,
    assemble_seconds: Histogram<f64>,
}

impl Metrics {
    /// The instruments, registered with the process's meter.
    pub fn new() -> Self {
        let meter = global::meter("tessera.coordinator");
        Self {
            created: meter
                .u64_counter("tessera.jobs.created")
                .with_unit("{job}")
                .with_description("jobs accepted")
                .build(),
            ended: meter
                .u64_counter("tessera.jobs.ended")
                .with_unit("{job}")
                .with_description("jobs ended, by state")
                .build(),
            published: meter
                .u64_counter("tessera.tasks.published")
                .with_unit("{task}")
                .with_description("tasks given to the broker, repeats included")
                .build(),
            assemble_seconds: meter
                .f64_histogram("tessera.assemble.duration")
                .with_unit("s")
                .with_description("time to put a picture together")
                .build(),
        }
    }

    /// A job was accepted.
    pub fn created(&self) {
        self.created.add(1, &[]);
    }

    /// A job ended.
    pub fn ended(&self, state: JobState) {
        self.ended.add(1, &[KeyValue::new("job.state", state.name())]);
    }

    /// Tasks were given to the broker.
    pub fn published(&self, count: usize) {
        self.published.add(count as u64, &[]);
    }

    /// A picture was put together.
    pub fn assembled(&self, elapsed: Duration) {
        self.assemble_seconds.record(elapsed.as_secs_f64(), &[]);
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}
