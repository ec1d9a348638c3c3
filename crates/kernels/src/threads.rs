//! One pool of threads for the process, rayon's, and how work is shared among them.
//!
//! Results never depend on the shares: they only say who computes what.

use std::{
    ops::Range,
    sync::atomic::{AtomicUsize, Ordering},
};

use rayon::prelude::*;

/// How many computations that use [`shares`] are going on in this process.
static ACTIVE: AtomicUsize = AtomicUsize::new(0);

/// A computation that takes its share of the processor as long as this lives.
#[derive(Debug)]
pub struct Share(());

impl Share {
    /// Counts one more computation.
    pub fn take() -> Self {
        ACTIVE.fetch_add(1, Ordering::Relaxed);
        Self(())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        ACTIVE.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The threads that a computation may use now: all, or its share where several go on at once.
pub fn threads() -> usize {
    (rayon::current_num_threads() / ACTIVE.load(Ordering::Relaxed).max(1)).max(1)
}

/// Cuts `count` equal parts into one range for each thread that may be used now.
pub(crate) fn shares(count: usize) -> Vec<Range<usize>> {
    let shares = threads().min(count).max(1);
    (0..shares).map(|share| count * share / shares..count * (share + 1) / shares).collect()
}

/// Deals `items` out, in order, to the threads that may be used now.
pub(crate) fn parts<T>(items: Vec<T>) -> Vec<Vec<T>> {
    let shares = shares(items.len());
    let mut items = items.into_iter();
    shares.into_iter().map(|share| items.by_ref().take(share.len()).collect()).collect()
}

/// Does each of `jobs`, each on a thread of the pool; a single one on this thread.
pub(crate) fn each<J: Send>(mut jobs: Vec<J>, work: impl Fn(J) + Send + Sync) {
    if jobs.len() == 1 {
        jobs.drain(..).for_each(work);
    } else {
        jobs.into_par_iter().with_max_len(1).for_each(work);
    }
}
