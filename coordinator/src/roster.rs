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
    /// CPUs, then one of shorter numbers than f32, which is faster, then the one with the most workers, then the first by
    /// name. A job that must be exact is offered f32 alone.
    pub fn best_class(&self, precision: Precision, now: Timestamp) -> Option<ComputeClass> {
        let mut counts: BTreeMap<ComputeClass, usize> = BTreeMap::new();
        for (worker, _) in self.present(now) {
            if !worker.draining {
                for class in worker.classes.into_iter().filter(|class| class.offers(precision)) {
                    *counts.entry(class).or_default() += 1;
                }
            }
        }
        let rank = |class: &ComputeClass| (class.kind() != "cpu", class.dtype() != "f32");
        let best = counts.into_iter().rev().max_by_key(|(class, count)| (rank(class), *count));
        best.map(|(class, _)| class)
    }

    /// The least memory of a device of `class` that is present, in bytes.
    pub fn memory_of(&self, class: &ComputeClass, now: Timestamp) -> Option<u64> {
        self.memories_of(class, now).min()
    }

    /// The most memory of a device of `class` that is present, in bytes.
    pub fn most_memory_of(&self, class: &ComputeClass, now: Timestamp) -> Option<u64> {
        self.memories_of(class, now).max()
    }

    /// What devices of `class` say that they have, in bytes.
    fn memories_of(&self, class: &ComputeClass, now: Timestamp) -> impl Iterator<Item = u64> {
        let present = self.present(now).into_iter().map(|(worker, _)| worker);
        let of_class = present.filter(move |worker| worker.classes.contains(class) && worker.memory_bytes > 0);
        of_class.map(|worker| worker.memory_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn beat(id: &str, classes: &str, leaving: bool) -> Beat {
        let worker = Worker {
            id: id.to_owned(),
            classes: classes.split(' ').map(|class| class.parse().unwrap()).collect(),
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
    fn a_fast_job_goes_where_shorter_numbers_are_faster_and_an_exact_one_to_the_same_workers_other_class() {
        let roster = Roster::new(Duration::from_secs(15));
        let best = |precision| roster.best_class(precision, Timestamp(1)).map(|class| class.to_string());
        for (id, classes) in [("a", "cpu.fma-1.f32"), ("b", "cpu.fma-1.f32"), ("c", "cpu.fma-1.f32 cpu.amx-1.bf16")] {
            roster.note(&beat(id, classes, false), Timestamp(1));
        }
        assert_eq!(best(Precision::Fast).as_deref(), Some("cpu.amx-1.bf16"));
        assert_eq!(best(Precision::Exact).as_deref(), Some("cpu.fma-1.f32"));
        assert_eq!(roster.memory_of(&"cpu.amx-1.bf16".parse().unwrap(), Timestamp(1)), Some(8 << 30));

        // An accelerator goes before CPUs, in whatever way it computes.
        roster.note(&beat("d", "cuda.z.f32", false), Timestamp(1));
        assert_eq!(best(Precision::Fast).as_deref(), Some("cuda.z.f32"));
        roster.note(&beat("d", "cuda.z.f32 cuda.z.bf16", false), Timestamp(1));
        assert_eq!(best(Precision::Fast).as_deref(), Some("cuda.z.bf16"));
        assert_eq!(best(Precision::Exact).as_deref(), Some("cuda.z.f32"));
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
