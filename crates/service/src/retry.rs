//! Waiting for an outside service that is down.

use std::{
    fmt::Display,
    time::{Duration, Instant, SystemTime},
};

/// How long to wait between attempts, and for how long to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// The wait after the first attempt; it doubles with each.
    pub first: Duration,
    /// The longest wait.
    pub longest: Duration,
    /// No attempt begins later than this after the first.
    pub deadline: Duration,
}

impl Backoff {
    /// Waits from 200 ms to 5 s, for at most `deadline`.
    pub const fn until(deadline: Duration) -> Self {
        Self { first: Duration::from_millis(200), longest: Duration::from_secs(5), deadline }
    }

    /// The wait after attempt number `attempt`, counted from 1; `dice`, from 0 to 1, takes off up to half of it.
    fn wait(&self, attempt: u32, dice: f64) -> Duration {
        let doubled = self.first.saturating_mul(2_u32.saturating_pow(attempt.saturating_sub(1)));
        doubled.min(self.longest).mul_f64(1.0 - dice / 2.0)
    }
}

/// Calls `attempt` until it succeeds, fails for good, or the time is up; each failure but the last is logged as a
/// warning that names `what`, such as `the store`.
///
/// # Errors
/// The last error of `attempt`.
pub async fn retry<T, E: Display>(
    what: &str,
    backoff: Backoff,
    is_retryable: impl Fn(&E) -> bool,
    mut attempt: impl AsyncFnMut() -> Result<T, E>,
) -> Result<T, E> {
    let start = Instant::now();
    let mut count = 1;
    loop {
        let error = match attempt().await {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        let wait = backoff.wait(count, dice());
        if !is_retryable(&error) || start.elapsed() + wait > backoff.deadline {
            return Err(error);
        }
        tracing::warn!(what, %error, attempt = count, wait_ms = wait.as_millis() as u64, "trying again");
        tokio::time::sleep(wait).await;
        count += 1;
    }
}

/// A number from 0 to 1 that differs between processes and moments: enough to keep a farm from knocking in step.
fn dice() -> f64 {
    let nanos = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.subsec_nanos());
    let mixed = (u64::from(nanos) ^ (u64::from(std::process::id()) << 32)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (mixed >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUICK: Backoff = Backoff {
        first: Duration::from_millis(1),
        longest: Duration::from_millis(4),
        deadline: Duration::from_secs(20),
    };

    #[tokio::test]
    async fn what_comes_back_is_waited_for() {
        let mut count = 0;
        let result = retry(
            "the store",
            QUICK,
            |_| true,
            async || {
                count += 1;
                if count < 4 { Err("down") } else { Ok(count) }
            },
        );
        assert_eq!(result.await, Ok(4));
    }

    #[tokio::test]
    async fn what_fails_for_good_is_not_tried_again() {
        let mut count = 0;
        let result = retry(
            "the store",
            QUICK,
            |error| *error != "forbidden",
            async || {
                count += 1;
                Err::<(), _>("forbidden")
            },
        );
        assert_eq!(result.await, Err("forbidden"));
        assert_eq!(count, 1);
    }

    #[tokio::test]
    async fn the_deadline_ends_it_with_the_last_error() {
        let backoff = Backoff { deadline: Duration::ZERO, ..QUICK };
        let result = retry("the store", backoff, |_| true, async || Err::<(), _>("down"));
        assert_eq!(result.await, Err("down"));
    }

    #[test]
    fn waits_double_up_to_the_longest() {
        let waits = [1, 2, 3, 9, 99].map(|attempt| QUICK.wait(attempt, 0.0).as_millis());
        assert_eq!(waits, [1, 2, 4, 4, 4]);
        assert_eq!(Backoff::until(Duration::MAX).wait(1, 1.0), Duration::from_millis(100));
        assert!((0.0..1.0).contains(&dice()));
    }
}
