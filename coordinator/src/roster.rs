//! The roster: which workers were heard of lately.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use domain::{
    job::{Precision, Timestamp},
    task::ComputeClass,
};
use proto::farm::{Beat, Worker};

/// Workers by id, with the moment they were heard of last.
#[derive(Debug)]
pub struct Roster {
    silence: Duration,
    workers: Mutex<BTreeMap<String, (Worker, Timestamp)>>,
}

impl Roster {
    /// An empty roster; a worker that is silent for longer than `silence` counts as gone.
    pub fn new(silence: Duration) -> Self {
        Self { silence, workers: Mutex::default() }
    }

    /// Notes a sign of life.
    pub fn note(&self, beat: &Beat, now: Timestamp) {
        let mut workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        if beat.leaving {
            workers.remove(&beat.worker.id);
        } else {
            workers.insert(beat.worker.id.clone(), (beat.worker.clone(), now));
        }
        let silence = self.silence.as_millis() as u64;
        workers.retain(|_, (_, seen)| now.millis_since(*seen) <= silence);
    }

    /// The workers that are there, by id, and when they were heard of.
    pub fn present(&self, now: Timestamp) -> Vec<(Worker, Timestamp)> {
        let silence = self.silence.as_millis() as u64;
        let workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        workers.values().filter(|(_, seen)| now.millis_since(*seen) <= silence).cloned().collect()
    }

    /// The class to which a job of `precision` goes when the user names none: that of an accelerator before that of
    /// CPUs, then the one with the most workers, then the first by name.
    pub fn best_class(&self, precision: Precision, now: Timestamp) -> Option<ComputeClass> {
        let mut counts: BTreeMap<ComputeClass, usize> = BTreeMap::new();
        for (worker, _) in self.present(now) {
            if worker.class.offers(precision) && !worker.draining {
                *counts.entry(worker.class).or_default() += 1;
            }
        }
        let best = counts.into_iter().rev().max_by_key(|(class, count)| (class.kind() != "cpu", *count));
        best.map(|(class, _)| class)
    }

    /// The least memory of a device of `class` that is present, in bytes.
    pub fn memory_of(&self, class: &ComputeClass, now: Timestamp) -> Option<u64> {
        let present = self.present(now).into_iter().map(|(worker, _)| worker);
        present
            .filter(|worker| worker.class == *class && worker.memory_bytes > 0)
            .map(|worker| worker.memory_bytes)
            .min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn beat(id: &str, class: &str, leaving: bool) -> Beat {
        let worker = Worker {
            id: id.to_owned(),
            class: class.parse().unwrap(),
            device: String::new(),
            memory_bytes: 8 << 30,
            memory_free_bytes: 0,
            tasks: Vec::new(),
            models: Vec::new(),
            tasks_done: 0,
            started: Timestamp(0),
            draining: false,
            version: String::new(),
        };
        Beat { worker, leaving }
    }

    #[test]
    fn a_job_goes_to_accelerators_before_cpus_and_to_many_before_few() {
        let roster = Roster::new(Duration::from_secs(15));
        let best = |precision| roster.best_class(precision, Timestamp(1)).map(|class| class.to_string());
        assert_eq!(best(Precision::Exact), None);
        for (id, class) in [("a", "cpu.x.f32"), ("b", "cpu.y.f32"), ("c", "cpu.y.f32"), ("d", "cuda.z.f16")] {
            roster.note(&beat(id, class, false), Timestamp(1));
        }
        assert_eq!(best(Precision::Exact).as_deref(), Some("cpu.y.f32"));
        assert_eq!(best(Precision::Fast).as_deref(), Some("cuda.z.f16"));
    }

    #[test]
    fn a_worker_that_leaves_or_falls_silent_is_gone() {
        let roster = Roster::new(Duration::from_secs(15));
        roster.note(&beat("a", "cpu.x.f32", false), Timestamp(1_000));
        roster.note(&beat("b", "cpu.x.f32", false), Timestamp(10_000));
        assert_eq!(roster.present(Timestamp(16_000)).len(), 2);
        assert_eq!(roster.present(Timestamp(16_001)).len(), 1);
        roster.note(&beat("b", "cpu.x.f32", true), Timestamp(16_002));
        assert_eq!(roster.present(Timestamp(16_002)).len(), 0);
    }
}
