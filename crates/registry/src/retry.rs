//! When to try again, and how long to wait first.

use std::time::{Duration, SystemTime};

use reqwest::StatusCode;
use reqwest::header::{HeaderMap, RETRY_AFTER};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc2822;

use crate::RegistryError;

/// How often and how soon a request that failed in passing is sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Attempts at one request in all, at least one. For a blob only attempts that brought no byte count.
    pub attempts: u32,
    /// The wait after the first failure; it doubles with each, and is spread at random over its half and its whole.
    pub first_wait: Duration,
    pub longest_wait: Duration,
    /// A registry that asks for more patience (`Retry-After`) is not waited for.
    pub longest_asked_wait: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            attempts: 6,
            first_wait: Duration::from_millis(250),
            longest_wait: Duration::from_secs(8),
            longest_asked_wait: Duration::from_secs(90),
        }
    }
}

impl RetryPolicy {
    /// Returns the wait after failure number `failures`, counted from one. `spread` is at random between 0 and 1.
    fn wait(&self, failures: u32, spread: f64) -> Duration {
        let doublings = failures.saturating_sub(1).min(20);
        let whole = self
            .first_wait
            .saturating_mul(1 << doublings)
            .min(self.longest_wait);
        whole.mul_f64(0.5 + spread / 2.0)
    }
}

/// A failed attempt, and whether another makes sense.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) error: RegistryError,
    pub(crate) retry: Retry,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Retry {
    Never,
    /// After the wait of the policy.
    Soon,
    /// At most `attempts` times: nobody may be there at all.
    Few(u32),
    /// When the registry says.
    After(Duration),
}

impl Failure {
    pub(crate) fn never(error: RegistryError) -> Self {
        Self {
            error,
            retry: Retry::Never,
        }
    }

    pub(crate) fn soon(error: RegistryError) -> Self {
        Self {
            error,
            retry: Retry::Soon,
        }
    }
}

/// Counts the failures of one request.
#[derive(Debug)]
pub(crate) struct Backoff {
    policy: RetryPolicy,
    failures: u32,
}

impl Backoff {
    pub(crate) fn new(policy: RetryPolicy) -> Self {
        Self {
            policy,
            failures: 0,
        }
    }

    /// Forgets the failures so far: there was progress.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }

    /// Waits until it is time for another attempt, or gives the error back when there should be none.
    pub(crate) async fn pause(&mut self, failure: Failure) -> Result<(), RegistryError> {
        self.failures += 1;
        let Some(wait) = self.next_wait(failure.retry) else {
            return Err(failure.error);
        };
        tracing::debug!(error = %failure.error, failures = self.failures, ?wait, "trying again");
        tokio::time::sleep(wait).await;
        Ok(())
    }

    fn next_wait(&self, retry: Retry) -> Option<Duration> {
        let (attempts, asked) = match retry {
            Retry::Never => return None,
            Retry::Soon => (self.policy.attempts, Duration::ZERO),
            Retry::Few(attempts) => (attempts.min(self.policy.attempts), Duration::ZERO),
            Retry::After(asked) if asked > self.policy.longest_asked_wait => return None,
            Retry::After(asked) => (self.policy.attempts, asked),
        };
        (self.failures < attempts).then(|| {
            self.policy
                .wait(self.failures, rand::random::<f64>())
                .max(asked)
        })
    }
}

/// Whether a request that got this status may succeed when it is sent again.
pub(crate) fn is_passing(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 425 | 429 | 500 | 502 | 503 | 504)
}

/// Returns how long the registry asks to wait, in seconds or until a date (RFC 9110, 10.2.3).
pub(crate) fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let date = OffsetDateTime::parse(text, &Rfc2822).ok()?;
    let wait = date - OffsetDateTime::from(now);
    Some(Duration::try_from(wait).unwrap_or(Duration::ZERO))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_and_are_spread() {
        let policy = RetryPolicy::default();
        let milliseconds: Vec<u128> = (1..=8)
            .map(|failures| policy.wait(failures, 1.0).as_millis())
            .collect();
        assert_eq!(milliseconds, [250, 500, 1000, 2000, 4000, 8000, 8000, 8000]);
        assert_eq!(policy.wait(3, 0.0).as_millis(), 500);
        assert_eq!(policy.wait(u32::MAX, 0.0).as_millis(), 4000);
    }

    #[test]
    fn a_registry_may_ask_for_patience_within_limits() {
        let mut backoff = Backoff::new(RetryPolicy {
            attempts: 3,
            ..RetryPolicy::default()
        });
        backoff.failures = 1;
        let asked = Duration::from_secs(30);
        assert_eq!(backoff.next_wait(Retry::After(asked)), Some(asked));
        assert_eq!(
            backoff.next_wait(Retry::After(Duration::from_secs(3600))),
            None
        );
        assert_eq!(backoff.next_wait(Retry::Few(1)), None);
        assert!(backoff.next_wait(Retry::Soon).is_some());
        backoff.failures = 3;
        assert_eq!(backoff.next_wait(Retry::Soon), None);
        assert_eq!(backoff.next_wait(Retry::After(asked)), None);
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_770);
        let check = |text: &str, expect: Option<u64>| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, text.parse().unwrap());
            assert_eq!(
                retry_after(&headers, now),
                expect.map(Duration::from_secs),
                "{text}"
            );
        };
        check("120", Some(120));
        check("Sun, 06 Nov 1994 08:49:37 GMT", Some(7));
        check("Sun, 06 Nov 1994 08:49:00 GMT", Some(0));
        check("soon", None);
        check("-1", None);
    }
}
