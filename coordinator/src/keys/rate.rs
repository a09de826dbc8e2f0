//! Requests of a key in a minute.
//!
//! The generic cell rate algorithm (ITU-T I.371, annex A): a key has a time at which its next
//! request would come if it sent them evenly, and a request may come earlier than that by the
//! burst. It holds one time for a key and needs no timer, and equals a bucket of `limit` tokens
//! that fills evenly within a minute.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

const MINUTE: Duration = Duration::from_secs(60);

/// What a key has sent lately.
#[derive(Debug, Default)]
pub(super) struct Rate(Mutex<Option<Instant>>);

impl Rate {
    /// Counts a request. After a minute without any, `limit` may come at once; then one in each
    /// `limit`-th part of a minute.
    ///
    /// # Errors
    /// The time until one may come, and this one does not count.
    pub(super) fn take(&self, limit: u32, now: Instant) -> Result<(), Duration> {
        let interval = MINUTE / limit.max(1);
        let burst = interval * (limit.max(1) - 1);
        let mut even = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let next = even.unwrap_or(now).max(now);
        let early = next.duration_since(now).saturating_sub(burst);
        if !early.is_zero() {
            return Err(early);
        }
        *even = Some(next + interval);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_burst_may_come_and_then_one_in_each_part_of_a_minute() {
        let (rate, start) = (Rate::default(), Instant::now());
        for _ in 0..6 {
            rate.take(6, start).expect("the burst");
        }
        assert_eq!(rate.take(6, start), Err(10 * SECOND));
        assert_eq!(rate.take(6, start + 4 * SECOND), Err(6 * SECOND));
        rate.take(6, start + 10 * SECOND).expect("one more");
        assert_eq!(rate.take(6, start + 10 * SECOND), Err(10 * SECOND));
        for _ in 0..6 {
            rate.take(6, start + 100 * SECOND).expect("a rest");
        }
        rate.take(6, start + 100 * SECOND)
            .expect_err("no more than before");
    }

    /// A smaller limit counts from the next request on, also behind a burst under the larger one.
    #[test]
    fn a_limit_may_change() {
        let (rate, start) = (Rate::default(), Instant::now());
        for _ in 0..60 {
            rate.take(60, start).expect("the burst");
        }
        assert_eq!(rate.take(1, start), Err(60 * SECOND));
        rate.take(1, start + 60 * SECOND).expect("a minute later");
    }

    /// A bucket that is filled by hand.
    fn bucket(limit: u32, times: &[u64]) -> Vec<bool> {
        let full = u64::from(limit) * 60_000;
        let (mut tokens, mut last) = (full, 0);
        let mut taken = Vec::new();
        for &time in times {
            tokens = full.min(tokens + (time - last) * u64::from(limit));
            last = time;
            taken.push(tokens >= 60_000);
            if tokens >= 60_000 {
                tokens -= 60_000;
            }
        }
        taken
    }

    proptest! {
        #[test]
        fn it_equals_a_bucket(
            limit in prop::sample::select(vec![1, 2, 3, 5, 60]),
            gaps in prop::collection::vec(0..40_000u64, 0..200),
        ) {
            let times: Vec<u64> = gaps
                .iter()
                .scan(0, |time, gap| { *time += gap; Some(*time) })
                .collect();
            let (rate, start) = (Rate::default(), Instant::now());
            let take = |time: &u64| rate.take(limit, start + Duration::from_millis(*time)).is_ok();
            let taken: Vec<bool> = times.iter().map(take).collect();
            prop_assert_eq!(taken, bucket(limit, &times));
        }
    }
}
