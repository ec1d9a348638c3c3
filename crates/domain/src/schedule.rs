//! How long a plan takes: its critical path, what N workers make of it, and the graph as a picture.

use std::{cmp::Reverse, collections::BinaryHeap, fmt::Write as _};

use crate::plan::{Needs, Plan};

/// Needs longer than this are kept as ranges: an assembly needs all of a picture's tiles.
const LONG: usize = 256;

/// Which tasks need a task's result: the arrows of a plan the other way round.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dependants {
    /// The dependants of task `i` are `tasks[starts[i]..starts[i + 1]]`, besides those in `ranges`.
    starts: Vec<u32>,
    tasks: Vec<u32>,
    /// Tasks that need all of a long range.
    ranges: Vec<(std::ops::Range<u32>, u32)>,
}

impl Dependants {
    /// Those of every task of `plan`.
    pub fn of(plan: &Plan) -> Self {
        let long = |needs: &Needs| match needs {
            Needs::Range(range) if range.len() > LONG => Some(range.clone()),
            Needs::Range(_) | Needs::List(_) => None,
        };
        let tasks = || (0..).zip(plan.tasks());
        let ranges = tasks().filter_map(|(task, planned)| Some((long(&planned.needs)?, task))).collect();
        let arrows = || {
            let short = tasks().filter(move |(_, planned)| long(&planned.needs).is_none());
            short.flat_map(|(task, planned)| planned.needs.iter().map(move |need| (need, task)))
        };
        let mut starts = vec![0; plan.tasks().len() + 1];
        arrows().for_each(|(need, _)| starts[need as usize + 1] += 1);
        for at in 1..starts.len() {
            starts[at] += starts[at - 1];
        }
        let (mut next, mut sorted) = (starts.clone(), vec![0; starts.last().map_or(0, |&all| all as usize)]);
        for (need, task) in arrows() {
            sorted[next[need as usize] as usize] = task;
            next[need as usize] += 1;
        }
        Self { starts, tasks: sorted, ranges }
    }

    /// The tasks that need `task`.
    pub fn on(&self, task: u32) -> impl Iterator<Item = u32> + '_ {
        let (start, end) = (self.starts[task as usize] as usize, self.starts[task as usize + 1] as usize);
        let ranged = self.ranges.iter().filter(move |(range, _)| range.contains(&task)).map(|(_, task)| *task);
        self.tasks[start..end].iter().copied().chain(ranged)
    }
}

/// The longest chain of tasks that must be done one after the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CriticalPath {
    /// What it costs: no number of workers is faster.
    pub cost: u64,
    /// Its tasks, from the first.
    pub tasks: Vec<u32>,
}

/// A plan with what its tasks cost, in any unit. A task that costs nothing takes no worker.
#[derive(Debug)]
pub struct Schedule<'a> {
    plan: &'a Plan,
    costs: &'a [u64],
    dependants: Dependants,
    /// What the longest chain costs that begins with a task.
    levels: Vec<u64>,
}

/// What the longest chain costs that begins with each task of `plan`, whose tasks cost `costs`.
///
/// # Panics
/// When there is not one cost for each task.
pub fn levels(plan: &Plan, costs: &[u64]) -> Vec<u64> {
    assert_eq!(plan.tasks().len(), costs.len(), "one cost for each task");
    let mut levels = costs.to_vec();
    // From the back, since needs stand before; a task's own level is settled when it is come to.
    for (index, task) in plan.tasks().iter().enumerate().rev() {
        let level = levels[index];
        for need in task.needs.iter() {
            let need = need as usize;
            levels[need] = levels[need].max(costs[need].saturating_add(level));
        }
    }
    levels
}

impl<'a> Schedule<'a> {
    /// Looks at a plan whose tasks cost `costs`, in its order; what is done already costs nothing.
    ///
    /// # Panics
    /// When there is not one cost for each task.
    pub fn new(plan: &'a Plan, costs: &'a [u64]) -> Self {
        Self { plan, costs, dependants: Dependants::of(plan), levels: levels(plan, costs) }
    }

    /// What all tasks cost: the time that one worker takes.
    pub fn total(&self) -> u64 {
        self.costs.iter().fold(0, |sum, &cost| sum.saturating_add(cost))
    }

    /// The longest chain.
    pub fn critical_path(&self) -> CriticalPath {
        let longest = |tasks: &mut dyn Iterator<Item = u32>| {
            tasks.max_by_key(|&task| (self.levels[task as usize], Reverse(task)))
        };
        let mut tasks: Vec<u32> = longest(&mut (0..self.costs.len() as u32)).into_iter().collect();
        let cost = tasks.first().map_or(0, |&first| self.levels[first as usize]);
        while let Some(next) = tasks.last().and_then(|&last| longest(&mut self.dependants.on(last))) {
            tasks.push(next);
        }
        CriticalPath { cost, tasks }
    }

    /// The time that `workers` take when whoever is free takes the ready task with the longest chain behind it.
    ///
    /// # Panics
    /// When there is no worker.
    pub fn makespan(&self, workers: u32) -> u64 {
        assert!(workers > 0, "somebody must work");
        let mut lacking: Vec<u32> = self.plan.tasks().iter().map(|task| task.needs.len() as u32).collect();
        let ready = (0..).zip(&lacking).filter(|(_, lacking)| **lacking == 0).map(|(task, _)| task);
        let mut ready: BinaryHeap<(u64, Reverse<u32>)> =
            ready.map(|task: u32| (self.levels[task as usize], Reverse(task))).collect();
        let mut running: BinaryHeap<Reverse<(u64, u32)>> = BinaryHeap::new();
        let (mut now, mut free) = (0u64, workers);
        let mut waiting = Vec::new();
        loop {
            while let Some((level, Reverse(task))) = ready.pop() {
                match self.costs[task as usize] {
                    0 => running.push(Reverse((now, task))),
                    cost if free > 0 => {
                        free -= 1;
                        running.push(Reverse((now.saturating_add(cost), task)));
                    }
                    _ => waiting.push((level, Reverse(task))),
                }
            }
            ready.extend(waiting.drain(..));
            let Some(Reverse((end, task))) = running.pop() else { return now };
            now = end;
            free += u32::from(self.costs[task as usize] > 0);
            for dependant in self.dependants.on(task) {
                let lacking = &mut lacking[dependant as usize];
                *lacking -= 1;
                if *lacking == 0 {
                    ready.push((self.levels[dependant as usize], Reverse(dependant)));
                }
            }
        }
    }

    /// How many times as fast as one `workers` are; 1 where there is nothing to do.
    pub fn speed_up(&self, workers: u32) -> f64 {
        match self.makespan(workers) {
            0 => 1.0,
            time => self.total() as f64 / time as f64,
        }
    }

    /// The time that `workers` cannot beat: the critical path, or an equal share of all.
    pub fn bound(&self, workers: u32) -> u64 {
        self.critical_path().cost.max(self.total().div_ceil(workers.max(1).into()))
    }

    /// The graph in the language of Graphviz: needs point to what needs them, the critical path is bold, and what
    /// `found` says is there already is dashed.
    pub fn dot(&self, found: impl Fn(u32) -> bool) -> String {
        let critical = self.critical_path().tasks;
        let mut dot = String::from("digraph plan {\n  rankdir=LR;\n  node [shape=box];\n");
        let mut line = |text: std::fmt::Arguments<'_>| dot.write_fmt(text).expect("a string takes all that is written");
        for (index, task) in (0..).zip(self.plan.tasks()) {
            let operation = self.plan.context_of(task).context.operation();
            let style = match (found(index), critical.contains(&index)) {
                (true, _) => ", style=dashed",
                (false, true) => ", style=bold",
                (false, false) => "",
            };
            line(format_args!("  t{index} [label=\"{index} {operation}\\n{}\"{style}];\n", task.part.region()));
        }
        for (index, task) in (0..).zip(self.plan.tasks()) {
            for need in task.needs.iter() {
                let bold = critical.windows(2).any(|pair| pair == [need, index]);
                line(format_args!("  t{need} -> t{index}{};\n", if bold { " [style=bold]" } else { "" }));
            }
        }
        dot.push_str("}\n");
        dot
    }
}
