//! What a plan would cost, before anybody runs it.

use std::collections::BTreeMap;

use domain::{
    cost,
    plan::Task,
    schedule::Schedule,
    task::{Context, LatentWork, Part},
};
use proto::{convert::job_to_wire, v1};

use crate::intake::Planned;

/// The most tasks of which the graph is drawn.
pub const MOST_DRAWN: usize = 20_000;

/// The numbers of workers for which the speed-up is worked out when nobody says.
pub const WORKERS: [u32; 5] = [1, 2, 4, 8, 16];

/// Says what of a plan would run, and how long it takes `workers` at best; `draws` the graph too.
pub fn forecast(planned: &Planned, workers: &[u32], draws: bool) -> v1::PlanJobResponse {
    let Planned { job, plan, found, .. } = planned;
    let is_found = {
        let mut is_found = vec![false; plan.tasks().len()];
        found.iter().for_each(|&task| is_found[task as usize] = true);
        is_found
    };
    let wanted = plan.wanted(|task| is_found[task as usize]);
    let mut operations: BTreeMap<&'static str, v1::PlannedOperation> = BTreeMap::new();
    let mut largest_task_bytes = 0;
    for ((task, &is_found), &is_wanted) in plan.tasks().iter().zip(&is_found).zip(&wanted) {
        let operation = plan.context_of(task).context.operation();
        let counted = operations.entry(operation).or_default();
        counted.operation = operation.to_owned();
        counted.total += 1;
        counted.found += u64::from(is_found);
        counted.wanted += u64::from(is_wanted);
        if is_wanted {
            largest_task_bytes = largest_task_bytes.max(task_bytes(&plan.context_of(task).context, task));
        }
    }
    let mut costs = cost::all(plan);
    costs.iter_mut().zip(&wanted).filter(|(_, is_wanted)| !**is_wanted).for_each(|(cost, _)| *cost = 0);
    let schedule = Schedule::new(plan, &costs);
    let path = schedule.critical_path();
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
            .map(|&workers| v1::PlannedSpeedUp { workers, speed_up: schedule.speed_up(workers) })
            .collect(),
        largest_task_bytes,
        warnings: job.warnings.clone(),
        dot: if draws { schedule.dot(|task| is_found[task as usize]) } else { String::new() },
        job: Some(job_to_wire(job)),
    }
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
