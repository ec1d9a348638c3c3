//! What a worker has in hand, what was taken back from it, what somebody looks at, and what it has done: one room for
//! those who render, those who hear revocations and wishes, and those who tell the farm.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use domain::task::ResultKey;
use proto::farm::{Order, Revocation, Wish, WorkerTask};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::{
    engine::{Watch, preview::Preview},
    revoked::Revoked,
};

/// The state that all parts of a worker share.
#[derive(Debug, Default)]
pub struct Board {
    state: Mutex<State>,
    changed: Notify,
    previewed: Arc<Notify>,
}

#[derive(Debug, Default)]
struct State {
    /// By the number under which each was taken in.
    in_hand: BTreeMap<u64, InHand>,
    /// How many were ever taken in.
    taken: u64,
    rendered: u64,
    draining: bool,
    revoked: Revoked,
}

#[derive(Debug)]
struct InHand {
    order: Order,
    key: ResultKey,
    watch: Arc<Watch>,
}

impl InHand {
    fn show(&self) -> WorkerTask {
        WorkerTask { key: self.key, description: self.order.describe(), fraction: self.watch.fraction() }
    }
}

/// A task in hand, until it is dropped.
#[derive(Debug)]
pub struct Held {
    board: Arc<Board>,
    number: u64,
    /// How far it is, and whether to go on with it.
    pub watch: Arc<Watch>,
}

/// What [`Board::show`] tells.
#[derive(Debug, Clone, PartialEq)]
pub struct Shown {
    /// The tasks in hand, the oldest first.
    pub tasks: Vec<WorkerTask>,
    /// How many tasks were rendered.
    pub rendered: u64,
    /// Whether no more are taken.
    pub draining: bool,
}

impl Board {
    /// Takes `order` in hand, or nothing if it was revoked. The task is to be dropped when `leaving` is cancelled.
    pub fn take(self: &Arc<Self>, order: &Order, leaving: &CancellationToken) -> Option<Held> {
        let mut state = self.state();
        if state.revoked.voids(order) {
            return None;
        }
        state.taken += 1;
        let number = state.taken;
        let watch = Arc::new(Watch::new(leaving.clone(), self.previewed.clone()));
        let in_hand = InHand { order: order.clone(), key: order.result_key(), watch: watch.clone() };
        state.in_hand.insert(number, in_hand);
        drop(state);
        self.changed.notify_one();
        Some(Held { board: self.clone(), number, watch })
    }

    /// Takes note of `revocation`, stops what it voids, and returns how many tasks those were.
    pub fn revoke(&self, revocation: &Revocation) -> usize {
        let state = &mut *self.state();
        state.revoked.note(revocation);
        let void = state.in_hand.values().filter(|task| state.revoked.voids(&task.order));
        void.map(|task| task.watch.revoke()).count()
    }

    /// Notes which tasks in hand somebody looks at from this moment, `now`.
    pub fn wish(&self, wish: &Wish, now: Instant) {
        let Some(until) = now.checked_add(wish.valid) else { return }; // nonsense, and none of ours
        let state = self.state();
        let wished = state.in_hand.values().filter(|task| wish.keys.contains(&task.key));
        wished.for_each(|task| task.watch.previews.look(until));
    }

    /// Takes the previews that are new, of tasks that somebody still looks at.
    pub fn take_previews(&self, now: Instant) -> Vec<(WorkerTask, Preview)> {
        let state = self.state();
        let take = |task: &InHand| Some((task.show(), task.watch.previews.take(now)?));
        state.in_hand.values().filter_map(take).collect()
    }

    /// Waits until there may be a preview that was not there when this was last called. For one caller at a time.
    pub async fn previewed(&self) {
        self.previewed.notified().await;
    }

    /// Counts a task as rendered.
    pub fn count_rendered(&self) {
        self.state().rendered += 1;
    }

    /// Says that no more tasks are taken.
    pub fn drain(&self) {
        self.state().draining = true;
        self.changed.notify_one();
    }

    /// Shows how things stand.
    pub fn show(&self) -> Shown {
        let state = self.state();
        let tasks = state.in_hand.values().map(InHand::show).collect();
        Shown { tasks, rendered: state.rendered, draining: state.draining }
    }

    /// Waits until something has changed since this was last called. For one caller at a time.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.board.state().in_hand.remove(&self.number);
        self.board.changed.notify_one();
    }
}
