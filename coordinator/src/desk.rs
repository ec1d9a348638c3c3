//! The desk: where the ledger lies, and where its effects are handed on in order.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use domain::job::Timestamp;
use tokio::sync::{mpsc, oneshot, watch};

use crate::ledger::{Effect, Event, Ledger};

/// What dispatch is handed.
#[derive(Debug)]
pub enum Errand {
    /// Do this.
    Effects(Vec<Effect>),
    /// Say when everything before is done.
    Settle(oneshot::Sender<()>),
}

/// The ledger, shared. Events are applied one after the other, and their effects reach dispatch in the same order.
#[derive(Debug)]
pub struct Desk {
    ledger: Mutex<Ledger>,
    errands: mpsc::UnboundedSender<Errand>,
    changed: watch::Sender<u64>,
}

impl Desk {
    /// A desk for `ledger`, and where its effects come out.
    pub fn new(ledger: Ledger) -> (Self, mpsc::UnboundedReceiver<Errand>) {
        let (errands, receiver) = mpsc::unbounded_channel();
        let (changed, _) = watch::channel(0);
        (Self { ledger: Mutex::new(ledger), errands, changed }, receiver)
    }

    /// Applies an event.
    pub fn apply(&self, event: Event) {
        self.apply_all([event]);
    }

    /// Applies events one after the other.
    pub fn apply_all(&self, events: impl IntoIterator<Item = Event>) {
        {
            let mut ledger = self.lock();
            for event in events {
                let effects = ledger.apply(event, now());
                if !effects.is_empty() {
                    // Only fails when dispatch is gone, that is, when the process is on its way out.
                    let _ = self.errands.send(Errand::Effects(effects));
                }
            }
        }
        self.changed.send_modify(|count| *count += 1);
    }

    /// Waits until the effects of all events so far are done. False: dispatch is gone, and they may never be.
    pub async fn settled(&self) -> bool {
        let (done, settled) = oneshot::channel();
        self.errands.send(Errand::Settle(done)).is_ok() && settled.await.is_ok()
    }

    /// Reads the ledger. `read` must be brief: everybody waits for it.
    pub fn read<R>(&self, read: impl FnOnce(&Ledger) -> R) -> R {
        read(&self.lock())
    }

    /// Tells whenever the ledger may have changed.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    fn lock(&self) -> MutexGuard<'_, Ledger> {
        // A panic while an event was applied leaves the ledger as it was in the middle; going on with it is better than
        // stopping every job, and a restart builds it anew.
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// This moment.
pub fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
