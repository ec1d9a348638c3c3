//! Waiting for a store or a broker that is away, for as long as it takes.

use std::{error::Error, time::Duration};

use tracing::{info, warn};

/// The pause after attempt number `attempt`, from 1: doubles each time, up to five seconds.
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
    fn pauses_grow_up_to_a_limit() {
        let millis = [1, 2, 3, 6, 7, u32::MAX].map(|attempt| pause_after(attempt).as_millis());
        assert_eq!(millis, [100, 200, 400, 3200, 5000, 5000]);
    }
}
