//! Which of the tasks that are ready goes first.

use std::{cmp::Reverse, collections::BinaryHeap};

use domain::{cost, job::JobKind, plan::Plan, schedule::levels};

/// The order in which tasks of a job are handed out: those with the longest chain behind them first, and of equal ones
/// the first in the plan. In a job without chains that is the order of the plan.
#[derive(Debug, Default)]
pub struct Turn {
    /// The rank of each task; empty where it is its index.
    ranks: Vec<u32>,
    /// The task of each rank.
    tasks: Vec<u32>,
}

impl Turn {
    /// The order of the tasks of `plan`, of which `wanted` are still to be done.
    pub fn of(plan: &Plan, wanted: &[bool], kind: &JobKind) -> Self {
        if let JobKind::Upscale(_) = kind {
            return Self::default(); // no tile needs another
        }
        let mut costs = cost::all(plan);
        costs.iter_mut().zip(wanted).filter(|(_, is_wanted)| !**is_wanted).for_each(|(cost, _)| *cost = 0);
        let levels = levels(plan, &costs);
        let mut tasks: Vec<u32> = (0..levels.len() as u32).collect();
        tasks.sort_by_key(|&task| Reverse(levels[task as usize])); // stable
        let mut ranks = vec![0; tasks.len()];
        (0..).zip(&tasks).for_each(|(rank, &task)| ranks[task as usize] = rank);
        Self { ranks, tasks }
    }

    fn rank(&self, task: u32) -> u32 {
        self.ranks.get(task as usize).copied().unwrap_or(task)
    }

    fn task(&self, rank: u32) -> u32 {
        self.tasks.get(rank as usize).copied().unwrap_or(rank)
    }
}

/// Tasks of one place that may be ready. Four bytes each, since there can be millions.
#[derive(Debug, Default)]
pub struct Ready {
    ranks: BinaryHeap<Reverse<u32>>,
}

impl Ready {
    /// Adds a task.
    pub fn push(&mut self, task: u32, turn: &Turn) {
        self.ranks.push(Reverse(turn.rank(task)));
    }

    /// Takes the task that goes first.
    pub fn pop(&mut self, turn: &Turn) -> Option<u32> {
        self.ranks.pop().map(|Reverse(rank)| turn.task(rank))
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.ranks.is_empty()
    }
}
