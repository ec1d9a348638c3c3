//! Room for the tiles that one process renders at once, where they share memory with everything else.

use std::{
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// How often whoever waits for room asks whether to go on waiting.
const PATIENCE: Duration = Duration::from_millis(100);

/// What tiles under way were promised. A tile takes its memory bit by bit, so what is free while others are under way
/// says little: those that begin together would each find room for itself.
#[derive(Debug, Default)]
pub struct Room {
    state: Mutex<State>,
    given_back: Condvar,
}

#[derive(Debug, Default)]
struct State {
    promised_bytes: u64,
    /// What was free when nothing was promised.
    free_bytes: u64,
}

/// Room for one tile, until it is dropped.
#[derive(Debug)]
pub struct Promise<'a> {
    room: &'a Room,
    bytes: u64,
}

impl Room {
    /// Waits until `bytes` fit beside what is promised; a tile that is alone need not wait. `None` as soon as `go_on`
    /// says no.
    pub fn take(&self, bytes: u64, free_bytes: u64, go_on: impl Fn() -> bool) -> Option<Promise<'_>> {
        let mut state = self.lock();
        while state.promised_bytes > 0 && state.promised_bytes.saturating_add(bytes) > state.free_bytes {
            if !go_on() {
                return None;
            }
            let waited = self.given_back.wait_timeout(state, PATIENCE);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        if state.promised_bytes == 0 {
            state.free_bytes = free_bytes;
        }
        state.promised_bytes = state.promised_bytes.saturating_add(bytes);
        Some(Promise { room: self, bytes })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Promise<'_> {
    fn drop(&mut self) {
        let mut state = self.room.lock();
        state.promised_bytes = state.promised_bytes.saturating_sub(self.bytes);
        self.room.given_back.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_that_do_not_fit_together_come_one_after_the_other() {
        let room = Room::default();
        let never = || false;
        let first = room.take(6, 10, never).expect("it is alone");
        // Nothing is taken yet, so that as much is free as before; yet it is promised.
        assert!(room.take(6, 10, never).is_none());
        let small = room.take(4, 10, never).expect("both fit");
        assert!(room.take(1, 10, never).is_none());
        drop((first, small));
        assert!(room.take(11, 10, never).is_some(), "whether one alone is too large, others say");
    }

    #[test]
    fn whoever_waits_goes_on_when_room_is_given_back() {
        let room = Room::default();
        let first = room.take(6, 10, || false).expect("it is alone");
        std::thread::scope(|scope| {
            let (asked, is_waiting) = std::sync::mpsc::channel();
            let second = scope.spawn(|| room.take(6, 10, move || asked.send(()).is_ok()).is_some());
            is_waiting.recv().expect("it asks whether to wait");
            drop(first);
            assert!(second.join().expect("it does not panic"));
        });
    }
}
