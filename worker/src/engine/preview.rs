//! What a task looks like while it is rendered, for whoever looks.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use domain::region::Size;
use tokio::sync::Notify;

/// The shortest time between two previews of a task.
const PAUSE: Duration = Duration::from_secs(1);

/// A rough picture of what a task comes to, as it is at one of its steps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Preview {
    /// The step, from 1 in each run of a sampler.
    pub step: u32,
    /// Steps of that run, as far as is known before.
    pub steps: u32,
    /// The size in pixels.
    pub size: Size,
    /// 8-bit RGB, row by row.
    pub rgb: Vec<u8>,
}

/// Who looks at a task, and what there is to see. Nothing is drawn while nobody does.
#[derive(Debug, Default)]
pub struct Previews {
    state: Mutex<State>,
    /// Told when there is something to see.
    shown: Arc<Notify>,
}

#[derive(Debug, Default)]
struct State {
    /// Until when somebody looks.
    until: Option<Instant>,
    /// When the last preview was drawn.
    drawn: Option<Instant>,
    /// The newest preview, unless somebody took it.
    newest: Option<Preview>,
}

impl State {
    fn is_looked_at(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }
}

impl Previews {
    /// Previews of a task at which nobody looks yet; `shown` is told when there is one.
    pub fn new(shown: Arc<Notify>) -> Self {
        Self { shown, ..Self::default() }
    }

    /// Notes that somebody looks until `until`.
    pub fn look(&self, until: Instant) {
        let mut state = self.state();
        state.until = state.until.max(Some(until));
    }

    /// Draws a preview, if somebody looks at this moment, `now`, and the last one is a second old. It replaces one that
    /// nobody has taken.
    pub fn show(&self, now: Instant, draw: impl FnOnce() -> Option<Preview>) {
        {
            let mut state = self.state();
            let is_due = state.drawn.is_none_or(|drawn| now.saturating_duration_since(drawn) >= PAUSE);
            if !state.is_looked_at(now) || !is_due {
                return;
            }
            state.drawn = Some(now);
        }
        if let Some(preview) = draw() {
            self.state().newest = Some(preview);
            self.shown.notify_one();
        }
    }

    /// Takes the newest preview, if somebody still looks at this moment, `now`.
    pub fn take(&self, now: Instant) -> Option<Preview> {
        let mut state = self.state();
        state.newest.take().filter(|_| state.is_looked_at(now))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A task whose clock is a number of milliseconds.
    struct Task {
        start: Instant,
        previews: Previews,
    }

    impl Task {
        fn new() -> Self {
            Self { start: Instant::now(), previews: Previews::default() }
        }

        fn at(&self, ms: u64) -> Instant {
            self.start + Duration::from_millis(ms)
        }

        /// Comes to a step, and says whether it was drawn.
        fn step(&self, ms: u64, step: u32) -> bool {
            let mut drawn = false;
            self.previews.show(self.at(ms), || {
                drawn = true;
                Some(Preview { step, steps: 9, size: Size::new(1, 1), rgb: vec![0; 3] })
            });
            drawn
        }

        /// The step that is seen.
        fn seen(&self, ms: u64) -> Option<u32> {
            self.previews.take(self.at(ms)).map(|preview| preview.step)
        }
    }

    #[test]
    fn nothing_is_drawn_unless_somebody_looks_and_a_look_ends() {
        let task = Task::new();
        assert!(!task.step(0, 1), "nobody looks");
        task.previews.look(task.at(5_000));
        task.previews.look(task.at(3_000)); // another one, who looks less long
        assert!(task.step(4_999, 2));
        assert_eq!(task.seen(4_999), Some(2));
        assert!(!task.step(5_000 + 1_000, 3));
        task.previews.look(task.at(9_000));
        assert!(task.step(6_000, 4));
        assert_eq!(task.seen(9_000), None, "nobody looks any more");
    }

    #[test]
    fn at_most_one_a_second_is_drawn_and_the_newest_is_seen_once() {
        let task = Task::new();
        task.previews.look(task.at(60_000));
        let drawn: Vec<u64> = (0..30).map(|n| n * 100).filter(|ms| task.step(*ms, *ms as u32)).collect();
        assert_eq!(drawn, [0, 1_000, 2_000]);
        assert_eq!(task.seen(2_500), Some(2_000));
        assert_eq!(task.seen(2_500), None);
    }
}
