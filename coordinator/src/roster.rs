//! The roster: which workers were heard of lately.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use domain::{
    job::{Precision, Timestamp},
    task::{ComputeClass, Place},
};
use proto::farm::{Beat, Speed, Worker, class_for};

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

    /// The workers that take tasks of `place`: those that are there and not about to leave.
    pub fn crew(&self, place: &Place, now: Timestamp) -> Crew {
        let present = self.present(now).into_iter().map(|(worker, _)| worker).filter(|worker| !worker.draining);
        let speeds = |worker: Worker| {
            let class = class_for(&worker.classes, place)?;
            Some(worker.speeds.into_iter().filter(|speed| speed.class == *class).collect())
        };
        Crew { speeds: present.filter_map(speeds).collect() }
    }

    /// What devices of `class` say that they have, in bytes.
    fn memories_of(&self, class: &ComputeClass, now: Timestamp) -> impl Iterator<Item = u64> {
        let present = self.present(now).into_iter().map(|(worker, _)| worker);
        let of_class = present.filter(move |worker| worker.classes.contains(class) && worker.memory_bytes > 0);
        of_class.map(|worker| worker.memory_bytes)
    }
}

/// The workers that take tasks of one place.
#[derive(Debug, Default)]
pub struct Crew {
    /// What each says of its speed as the class in which it renders them.
    speeds: Vec<Vec<Speed>>,
}

/// How fast the workers of a crew are on average.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MeanSpeed {
    /// By what [`domain::cost`] says of tasks.
    pub mega_multiply_adds_per_second: f64,
    /// Whether all of them have measured it.
    pub is_measured: bool,
}

impl Crew {
    /// How many they are.
    pub fn workers(&self) -> u32 {
        u32::try_from(self.speeds.len()).unwrap_or(u32::MAX)
    }

    /// How fast they are at `operation`. Those that do not say count as the others do; `None`: nobody says.
    pub fn speed(&self, operation: &str) -> Option<MeanSpeed> {
        let said = |speeds: &Vec<Speed>| {
            let of = |operation| speeds.iter().find(|speed| speed.operation.as_deref() == operation);
            of(Some(operation)).or_else(|| of(None)).cloned()
        };
        let said: Vec<Speed> = self.speeds.iter().filter_map(said).collect();
        (!said.is_empty()).then(|| {
            let sum: f64 = said.iter().map(|speed| speed.mega_multiply_adds_per_second).sum();
            MeanSpeed {
                mega_multiply_adds_per_second: sum / said.len() as f64,
                is_measured: said.iter().filter(|speed| speed.operation.is_some()).count() == self.speeds.len(),
            }
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn beat(id: &str, classes: &str, leaving: bool) -> Beat {
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
            speeds: Vec::new(),
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

    /// What a worker says of its speed: `redraw 100, other 50`, as class `cpu.x.f32`.
    pub(crate) fn speeds(words: &str) -> Vec<Speed> {
        let speed = |words: &str| {
            let (operation, speed) = words.split_once(' ').unwrap();
            Speed {
                class: "cpu.x.f32".parse().unwrap(),
                operation: Some(operation.to_owned()).filter(|operation| operation != "other"),
                mega_multiply_adds_per_second: speed.parse().unwrap(),
            }
        };
        words.split(", ").filter(|words| !words.is_empty()).map(speed).collect()
    }

    /// A roster of workers `cpu.x.f32` that say this of their speed.
    pub(crate) fn roster(said: &[&str]) -> Roster {
        let roster = Roster::new(Duration::from_secs(15));
        for (index, words) in said.iter().enumerate() {
            let mut beat = beat(&format!("worker-{index}"), "cpu.x.f32", false);
            beat.worker.speeds = speeds(words);
            roster.note(&beat, Timestamp(0));
        }
        roster
    }

    #[test]
    fn a_crew_is_as_fast_as_its_mean_and_measured_when_all_of_it_is() {
        let place = |class: &str| Place::Class(class.parse().unwrap());
        let check = |said: &[&str], operation: &str, want: Option<(f64, bool)>| {
            let crew = roster(said).crew(&place("cpu.x.f32"), Timestamp(1));
            assert_eq!(crew.workers() as usize, said.len());
            let speed = crew.speed(operation).map(|mean| (mean.mega_multiply_adds_per_second, mean.is_measured));
            assert_eq!(speed, want, "{operation} of {said:?}");
        };
        check(&[], "redraw", None);
        check(&[""], "redraw", None);
        check(&["redraw 100"], "redraw", Some((100.0, true)));
        check(&["redraw 100"], "upscale", None);
        check(&["redraw 100, other 50"], "upscale", Some((50.0, false)));
        check(&["redraw 100, other 50", "redraw 200"], "redraw", Some((150.0, true)));
        check(&["redraw 100", "other 20"], "redraw", Some((60.0, false)));
        check(&["redraw 100", ""], "redraw", Some((100.0, false)));

        // Others of the farm, those that leave, and what a worker shows as another class do not count.
        let roster = roster(&["redraw 100"]);
        let mut leaving = beat("leaving", "cpu.x.f32", false);
        leaving.worker.draining = true;
        roster.note(&leaving, Timestamp(0));
        roster.note(&beat("other", "cuda.y.f32", false), Timestamp(0));
        assert_eq!(roster.crew(&place("cpu.x.f32"), Timestamp(1)).workers(), 1);
        let any = roster.crew(&Place::AnyWorker, Timestamp(1));
        assert_eq!((any.workers(), any.speed("redraw").map(|mean| mean.is_measured)), (2, Some(false)));
        assert_eq!(roster.crew(&Place::Coordinator, Timestamp(1)).workers(), 0);
    }
}
