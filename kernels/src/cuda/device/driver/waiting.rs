//! Sums over ranks on the stream, and waiting for it: it does not end by itself when a rank has
//! died in the middle of a sum.
//!
//! NCCL's kernel spins on the GPU until its peers have come; only an abort of the communicator, by
//! whoever connects the ranks, ends it. So while sums are under way the stream is asked again and
//! again, and so are they: a thread that sleeps in the driver could be told of nothing.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::error::Result;
use crate::sums::DeviceSums;

/// Questions without a pause: a step of decoding takes milliseconds, and its answer should not
/// wait.
const EAGER: u32 = 20_000;
/// Pause between later ones.
const PAUSE: Duration = Duration::from_micros(50);
/// The stream is asked as often before the sums are: that takes a lock.
const ASKED: u32 = 64;

/// Who sums with other ranks, and whether any sum may be under way.
#[derive(Default)]
pub(super) struct Sums {
    joined: Mutex<Option<Arc<dyn DeviceSums>>>,
    under_way: AtomicBool,
}

impl Sums {
    /// From now on with these.
    pub(super) fn join(&self, sums: Option<Arc<dyn DeviceSums>>) {
        *self.joined.lock().unwrap_or_else(PoisonError::into_inner) = sums;
        // Those of the epoch before were aborted, so they come to an end.
        self.end();
    }

    pub(super) fn joined(&self) -> Option<Arc<dyn DeviceSums>> {
        self.joined
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// A sum is put on the stream, or a graph that has some.
    pub(super) fn begin(&self) {
        self.under_way.store(true, Ordering::Release);
    }

    /// The stream has come to the end of all sums.
    pub(super) fn end(&self) {
        self.under_way.store(false, Ordering::Release);
    }

    /// Whether any sum may be under way.
    pub(super) fn are_under_way(&self) -> bool {
        self.under_way.load(Ordering::Acquire)
    }
}

/// Asks until it is done, or the sums will not be.
pub(super) fn wait_until(
    mut is_done: impl FnMut() -> Result<bool>,
    sums: &dyn DeviceSums,
) -> Result<()> {
    let mut asked = 0;
    while !is_done()? {
        if asked >= EAGER || asked % ASKED == 0 {
            sums.check()?;
        }
        if asked < EAGER {
            asked += 1;
            std::hint::spin_loop();
        } else {
            std::thread::sleep(PAUSE);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::time::Instant;

    use super::*;
    use crate::error::Error;
    use crate::sums::Summand;

    /// Sums that fail after so many questions.
    struct Failing(AtomicUsize);

    impl DeviceSums for Failing {
        fn set_deadline(&self, _: Instant) {}
        fn all_reduce(&self, _: Summand<'_>) -> Result<()> {
            Ok(())
        }
        fn check(&self) -> Result<()> {
            let left = self
                .0
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                    left.checked_sub(1)
                });
            left.map(|_| ())
                .map_err(|_| Error::Sums("a rank is gone".into()))
        }
        fn gather(&self, word: u64) -> Result<Vec<u64>> {
            Ok(vec![word])
        }
    }

    #[test]
    fn a_stream_that_ends_is_waited_for() {
        for asked in [0, 1, 1000, EAGER + 3] {
            let mut left = asked;
            let is_done = || {
                left = left.saturating_sub(1);
                Ok(left == 0)
            };
            wait_until(is_done, &Failing(AtomicUsize::new(usize::MAX))).expect("it ends");
        }
    }

    #[test]
    fn a_stream_that_hangs_in_a_sum_is_given_up() {
        // While it is asked without a pause, and after that.
        for questions in [0, 5, EAGER as usize / ASKED as usize + 4] {
            let error = wait_until(|| Ok(false), &Failing(AtomicUsize::new(questions)))
                .expect_err("it never ends");
            assert!(
                matches!(&error, Error::Sums(cause) if cause.to_string() == "a rank is gone"),
                "{error}"
            );
        }
    }

    #[test]
    fn a_stream_that_fails_says_so() {
        let lost = || {
            Err(Error::Device {
                op: "wait",
                what: "lost".into(),
            })
        };
        let error =
            wait_until(lost, &Failing(AtomicUsize::new(usize::MAX))).expect_err("it failed");
        assert!(matches!(error, Error::Device { .. }), "{error}");
    }
}
