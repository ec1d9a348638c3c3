//! What a plan would cost, before anybody runs it.

use std::collections::BTreeMap;

use domain::{
    cost,
    plan::{Plan, Task},
    schedule::Schedule,
    task::{Context, LatentWork, Part, Place},
};
use proto::{
    convert::{job_to_wire, millis_to_wire},
    v1,
};

use crate::{
    intake::Planned,
    roster::{Crew, MeanSpeed},
};

/// The most tasks of which the graph is drawn.
pub const MOST_DRAWN: usize = 20_000;

/// The numbers of workers for which the speed-up is worked out when nobody says.
pub const WORKERS: [u32; 5] = [1, 2, 4, 8, 16];

/// Where the workers' tasks of `plan` are rendered, if it has any: all of a job in one place.
pub fn place(plan: &Plan) -> &Place {
    let mut places = plan.contexts().iter().map(|planned| planned.context.place());
    places.find(|place| **place != Place::Coordinator).unwrap_or(&Place::Coordinator)
}

/// Says what of a plan would run, and how long it takes `crew`, and `workers` like it, at best; `draws` the graph too.
pub fn forecast(planned: &Planned, crew: &Crew, workers: &[u32], draws: bool) -> v1::PlanJobResponse {
    let Planned { job, plan, found, .. } = planned;
    let is_found = {
        let mut is_found = vec![false; plan.tasks().len()];
        found.iter().for_each(|&task| is_found[task as usize] = true);
        is_found
    };
    let wanted = plan.wanted(|task| is_found[task as usize]);
    let mut operations: BTreeMap<&'static str, v1::PlannedOperation> = BTreeMap::new();
    let (mut largest_task_bytes, mut results_bytes) = (0, 0u64);
    for ((task, &is_found), &is_wanted) in plan.tasks().iter().zip(&is_found).zip(&wanted) {
        let context = &plan.context_of(task).context;
        let counted = operations.entry(context.operation()).or_default();
        counted.operation = context.operation().to_owned();
        counted.total += 1;
        counted.found += u64::from(is_found);
        counted.wanted += u64::from(is_wanted);
        if is_wanted {
            largest_task_bytes = largest_task_bytes.max(task_bytes(context, task));
            results_bytes = results_bytes.saturating_add(context.result_bytes(&task.part).unwrap_or(0));
        }
    }
    let mut costs = cost::all(plan);
    costs.iter_mut().zip(&wanted).filter(|(_, is_wanted)| !**is_wanted).for_each(|(cost, _)| *cost = 0);
    let schedule = Schedule::new(plan, &costs);
    let path = schedule.critical_path();
    // Where nobody says how fast it is, what each task costs stands for its time, also between operations.
    let times = times(plan, &costs, crew);
    let timed = times.as_ref().map(|times| Schedule::new(plan, &times.micros));
    let timing = timed.as_ref().unwrap_or(&schedule);
    let duration = |speed_up: f64| {
        let micros = timed.as_ref()?.total() as f64 / speed_up;
        Some(millis_to_wire((micros / 1e3).round() as u64))
    };
    let words = |&task: &u32| {
        let task = &plan.tasks()[task as usize];
        format!("{} {}", plan.context_of(task).context.operation(), task.part.region())
    };
    v1::PlanJobResponse {
        tasks_total: plan.tasks().len() as u64,
        tasks_found: found.len() as u64,
        tasks_wanted: wanted.iter().filter(|is_wanted| **is_wanted).count() as u64,
        operations: operations.into_values().collect(),
        cost: schedule.total(),
        critical_path_cost: path.cost,
        critical_path: path.tasks.iter().filter(|task| costs[**task as usize] > 0).map(words).collect(),
        speed_ups: workers
            .iter()
            .map(|&workers| {
                let speed_up = timing.speed_up(workers);
                v1::PlannedSpeedUp { workers, speed_up, duration: duration(speed_up) }
            })
            .collect(),
        largest_task_bytes,
        warnings: job.warnings.clone(),
        dot: if draws { schedule.dot(|task| is_found[task as usize]) } else { String::new() },
        job: Some(job_to_wire(job)),
        workers: crew.workers(),
        duration: times.as_ref().and_then(|_| duration(timing.speed_up(crew.workers()))),
        is_measured: times.as_ref().is_some_and(|times| times.are_measured),
        results_bytes,
    }
}

/// How long tasks take.
struct Times {
    /// Microseconds of each task of a plan; at least 1 of one that costs anything.
    micros: Vec<u64>,
    /// Whether none of the speeds behind them is a guess.
    are_measured: bool,
}

/// How long a worker of `crew` takes on average for each task of `plan`, which cost `costs`; `None`: there is nobody, or nobody
/// says how fast it is at one of them.
fn times(plan: &Plan, costs: &[u64], crew: &Crew) -> Option<Times> {
    if crew.workers() == 0 {
        return None;
    }
    let speeds: Vec<Option<MeanSpeed>> =
        plan.contexts().iter().map(|planned| crew.speed(planned.context.operation())).collect();
    let mut times = Times { micros: Vec::with_capacity(costs.len()), are_measured: true };
    for (task, &cost) in plan.tasks().iter().zip(costs) {
        let micros = match cost {
            0 => 0,
            cost => {
                let speed = speeds[task.context as usize]?;
                times.are_measured &= speed.is_measured;
                (cost as f64 / speed.mega_multiply_adds_per_second * 1e6).ceil() as u64
            }
        };
        times.micros.push(micros);
    }
    Some(times)
}

/// About how much memory a task of a worker takes, without weights.
fn task_bytes(context: &Context, task: &Task) -> u64 {
    match &task.part {
        Part::Seg(seg) => cost::bytes(seg.size),
        Part::Latent(link) => match &link.work {
            LatentWork::Step { to, .. } => cost::bytes(*to),
            LatentWork::Encode | LatentWork::Decode => cost::bytes(link.pixels()),
        },
        // A tile and what becomes of it, which the network's own maps outweigh by a factor that depends on it.
        Part::Region(_) => match context {
            Context::Upscale { .. } => context.result_bytes(&task.part).unwrap_or(0),
            _ => 0,
        },
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use domain::{
        job::{Job, Timestamp},
        plan::plan,
    };

    use super::*;
    use crate::{
        ledger::tests::{job, segs_job},
        roster::tests::roster,
    };

    /// What 1 and 2 workers make of a job, of whose tasks `found` are done, where those that are there say so of their speed.
    fn asked(job: Job, found: &[u32], said: &[&str]) -> v1::PlanJobResponse {
        let plan = Arc::new(plan(&job).unwrap());
        let crew = roster(said).crew(place(&plan), Timestamp(1));
        forecast(&Planned { job, plan, found: found.to_vec(), outputs: Vec::new() }, &crew, &[1, 2], false)
    }

    /// Seconds of the plan, then of each number of workers.
    fn seconds(plan: &v1::PlanJobResponse) -> Vec<Option<f64>> {
        let seconds = |duration: &prost_types::Duration| duration.seconds as f64 + f64::from(duration.nanos) / 1e9;
        let of_workers = plan.speed_ups.iter().map(|planned| &planned.duration);
        [&plan.duration].into_iter().chain(of_workers).map(|duration| duration.as_ref().map(seconds)).collect()
    }

    /// What a tile of 256 x 100 pixels costs.
    const TILE: u64 = 256_000;

    #[test]
    fn a_plan_takes_as_long_as_the_workers_that_are_there_say() {
        // Three tiles side by side.
        let tiles = || job("a", 704);
        let plan = asked(tiles(), &[], &["upscale 256000"]);
        assert_eq!((plan.cost, plan.workers, plan.is_measured), (3 * TILE, 1, true));
        assert_eq!(seconds(&plan), [Some(3.0), Some(3.0), Some(2.0)]);
        assert_eq!(plan.results_bytes, 3 * 256 * 100 * 4 * 12, "f32 RGB, twice the sides");

        // Two of them, of different speeds, are two of the mean.
        let plan = asked(tiles(), &[], &["upscale 128000", "other 384000"]);
        assert_eq!((plan.workers, plan.is_measured), (2, false));
        assert_eq!(seconds(&plan), [Some(2.0), Some(3.0), Some(2.0)]);

        // What is found takes neither time nor room.
        let plan = asked(tiles(), &[0], &["upscale 102400"]);
        assert_eq!(seconds(&plan), [Some(5.0), Some(5.0), Some(2.5)]);
        assert_eq!(plan.results_bytes, 2 * 256 * 100 * 4 * 12);
        let plan = asked(tiles(), &[0, 1, 2, 3], &["other 1"]);
        assert_eq!((seconds(&plan)[0], plan.is_measured, plan.results_bytes), (Some(0.0), true, 0));
    }

    #[test]
    fn each_operation_takes_its_own_time() {
        // Two tiles of 256 x 64 pixels, on each a segment that is redrawn.
        let both = || segs_job("a", &[(0, 64), (256, 64)], Some(256));
        let (tile, all) = (163_840, asked(both(), &[], &[]).cost);
        let seg = (all - 2 * tile) / 2;
        let plan = asked(both(), &[], &[&format!("redraw {}, upscale {}", seg as f64 / 10.0, tile)]);
        assert_eq!(seconds(&plan), [Some(22.0), Some(22.0), Some(11.0)]);
        assert!(plan.is_measured);
        let plan = asked(both(), &[], &[&format!("redraw {}, other {}", seg as f64 / 10.0, tile)]);
        assert_eq!((seconds(&plan)[0], plan.is_measured), (Some(22.0), false));
        let found = asked(both(), &[0, 1], &[&format!("redraw {}, other 1", seg as f64 / 10.0)]);
        assert_eq!((seconds(&found)[0], found.is_measured), (Some(20.0), true), "what is found needs no speed");
    }

    #[test]
    fn nobody_knows_how_long_a_plan_takes_where_no_worker_says_how_fast_it_is() {
        for (said, workers) in [(&[][..], 0), (&[""], 1), (&["redraw 100"], 1)] {
            let plan = asked(job("a", 704), &[], said);
            assert_eq!((plan.workers, plan.is_measured), (workers, false), "{said:?}");
            assert_eq!(seconds(&plan), [None; 3], "{said:?}");
            assert_eq!(plan.speed_ups[1].speed_up, 1.5, "costs tell that much");
        }
    }
}
