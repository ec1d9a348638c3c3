//! `tessera workers`: who renders.

use proto::v1;
use service::config::{Config, units::show_bytes};

use crate::{
    client::{Farm, call},
    exit::Outcome,
    output, wire_json,
};

/// Lists the workers that were heard of lately.
pub async fn run(json: bool, config: Config) -> Outcome {
    let farm = Farm::configured(&config).await?;
    let answer = call("ListWorkers", || {
        let mut workers = farm.workers.clone();
        async move { workers.list_workers(v1::ListWorkersRequest {}).await }
    });
    let workers = answer.await?.workers;
    if json {
        output::json(&workers.iter().map(|worker| wire_json::show("Worker", worker)).collect());
        return Ok(());
    }
    let rows: Vec<_> = workers.iter().map(row).collect();
    output::table(["WORKER", "CLASSES", "DEVICE", "MEMORY", "DONE", "NOW"], &rows);
    Ok(())
}

fn row(worker: &v1::Worker) -> [String; 6] {
    let memory = match (worker.memory_bytes, worker.memory_free_bytes) {
        (0, _) => String::new(),
        (all, 0) => show_bytes(all),
        (all, free) => format!("{} of {} free", show_bytes(free), show_bytes(all)),
    };
    let tasks = worker.tasks.iter().map(|task| format!("{} {:.0} %", task.description, task.fraction * 100.0));
    let now = match tasks.collect::<Vec<_>>().join(", ") {
        tasks if !tasks.is_empty() => tasks,
        _ if worker.draining => "is leaving".to_owned(),
        _ => "waits".to_owned(),
    };
    let classes = worker.compute_classes.join(" ");
    [worker.id.clone(), classes, worker.device.clone(), memory, worker.tasks_done.to_string(), now]
}
