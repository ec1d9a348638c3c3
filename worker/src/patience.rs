//! Waiting: for a store or a broker that is away, for as long as it takes, and after a task that did not succeed.

use std::{
    error::Error,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use tracing::{info, warn};

/// The pause after a worker's first failure.
pub const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause after a failure.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// The pauses between a failure and the next attempt.
///
/// They grow with the attempts of the task and with the failures of the worker in a row: a worker whose disk is full or
/// whose device is broken must not use up the attempts of tasks that others could do.
#[derive(Debug)]
pub struct Pauses {
    first: Duration,
    failures: AtomicU32,
}

impl Pauses {
    /// Begins with pauses of `first`; each is five times as long as the one before, up to half a minute.
    pub fn new(first: Duration) -> Self {
        Self { first, failures: AtomicU32::new(0) }
    }

    /// Takes note of a success: the worker is sound.
    pub fn succeeded(&self) {
        self.failures.store(0, Ordering::Relaxed);
    }

    /// Takes note that attempt number `attempt`, from 1, of a task failed, and says how long to pause.
    pub fn failed(&self, attempt: u32) -> Duration {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        let growth = 5_u32.saturating_pow(attempt.max(failures) - 1);
        self.first.saturating_mul(growth).min(LONGEST_PAUSE)
    }
}

/// The pause after call number `attempt`, from 1, to a service that is away: doubles each time, up to five seconds.
pub fn pause_after(attempt: u32) -> Duration {
    let doublings = attempt.saturating_sub(1).min(16);
    Duration::from_millis(100 << doublings).min(Duration::from_secs(5))
}

/// Calls `operation` until it gives a result, or an error for which waiting is no cure.
///
/// A service that is away says nothing about a task, so no task fails for it: the task waits. Whoever cannot wait any
/// longer drops the call. (Unlike `service::retry`, this has no end, and its future may go from thread to thread.)
pub async fn persist<T, E, F>(
    service: &'static str,
    is_passing: impl Fn(&E) -> bool,
    mut operation: impl FnMut() -> F,
) -> Result<T, E>
where
    E: Error + 'static,
    F: Future<Output = Result<T, E>>,
{
    let mut attempt = 0;
    loop {
        let result = operation().await;
        match &result {
            Err(error) if is_passing(error) => {
                attempt += 1;
                if attempt == 1 {
                    warn!(service, error = error as &(dyn Error + 'static), "waiting for a service that is away");
                }
                tokio::time::sleep(pause_after(attempt)).await;
            }
            _ => {
                if attempt > 0 {
                    info!(service, attempts = attempt, "the service answers again");
                }
                return result;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, thiserror::Error)]
    #[error("passing: {passing}")]
    struct Trouble {
        passing: bool,
    }

    #[tokio::test]
    async fn passing_trouble_is_waited_for_and_lasting_trouble_is_told() {
        let mut calls = 0;
        let operation = || {
            calls += 1;
            std::future::ready(if calls < 3 { Err(Trouble { passing: true }) } else { Ok(calls) })
        };
        assert_eq!(persist("test", |trouble: &Trouble| trouble.passing, operation).await, Ok(3));
        let operation = || std::future::ready(Err::<(), _>(Trouble { passing: false }));
        assert!(persist("test", |trouble: &Trouble| trouble.passing, operation).await.is_err());
    }

    #[test]
    fn failures_of_the_task_and_of_the_worker_lengthen_the_pause() {
        let pauses = Pauses::new(FIRST_PAUSE);
        let failed = |attempt| pauses.failed(attempt).as_secs();
        assert_eq!([failed(1), failed(2), failed(3), failed(1)], [1, 5, 25, 30], "the last is the worker's fourth");
        pauses.succeeded();
        assert_eq!([failed(1), failed(1), failed(u32::MAX)], [1, 5, 30]);
    }

    #[test]
    fn pauses_grow_up_to_a_limit() {
        let millis = [1, 2, 3, 6, 7, u32::MAX].map(|attempt| pause_after(attempt).as_millis());
        assert_eq!(millis, [100, 200, 400, 3200, 5000, 5000]);
    }
}
