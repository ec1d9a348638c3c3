//! Which queues a worker needs, and what they are like.

use broker::QueueSpec;
use domain::task::ComputeClass;
use proto::farm::Names;

/// The queues of the farm that a worker of `classes` takes tasks from or writes to.
///
/// A task that was delivered `delivery_limit` times goes to the queue of the dead, so every process of a farm must be
/// configured with the same limit: a broker refuses a queue that is declared in two ways.
pub fn topology(names: &Names, classes: &[ComputeClass], delivery_limit: u32) -> Vec<QueueSpec> {
    let tasks = names.served_by(classes).into_iter();
    let tasks = tasks.map(|queue| QueueSpec::new(queue).dead_letter_after(delivery_limit, names.dead()));
    [names.dead(), names.reports()].map(QueueSpec::new).into_iter().chain(tasks).collect()
}
