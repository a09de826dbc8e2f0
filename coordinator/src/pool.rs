//! Where long texts are parsed and tokenised: on few threads that may block, and with a bound on
//! their bytes together, because a tokenizer takes many times the memory of its text.

use std::sync::Arc;

use palimpsest_proto::error::{Reason, RequestError};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use crate::budget::Charge;

/// Bytes that a tokenizer takes at most for a byte of text, while it works on it.
/// `tests/peak_memory.rs` measures it.
pub const TOKENIZER_WEIGHT: u64 = 320;
/// Texts up to this many bytes are worked on in place; longer ones on a thread that may block.
pub const INLINE_BYTES: usize = 4096;

/// Threads for texts, and the bytes that they work on.
#[derive(Debug, Clone)]
pub struct Pool {
    threads: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    most: usize,
}

impl Pool {
    /// A pool in which at most `threads` texts are worked on at once, and at most `bytes` of them
    /// together. A longer text is worked on alone.
    pub fn new(threads: usize, bytes: usize) -> Self {
        let most = bytes.clamp(1, (u32::MAX as usize).min(Semaphore::MAX_PERMITS));
        Self {
            threads: Arc::new(Semaphore::new(threads.max(1))),
            bytes: Arc::new(Semaphore::new(most)),
            most,
        }
    }

    /// Does `work` on `bytes` of text where it does not hold other requests up. Work that has begun
    /// goes on to its end without a caller, and holds `charge` until then.
    ///
    /// # Errors
    /// What `work` says, or `DeadlineInQueue` if its turn does not come before `deadline`.
    pub async fn run<T: Send + 'static>(
        &self,
        bytes: usize,
        deadline: Instant,
        charge: Option<Charge>,
        work: impl FnOnce() -> Result<T, RequestError> + Send + 'static,
    ) -> Result<T, RequestError> {
        if bytes <= INLINE_BYTES {
            return work();
        }
        let share = u32::try_from(bytes.min(self.most)).unwrap_or(u32::MAX);
        let turn = async {
            let bytes = self.bytes.clone().acquire_many_owned(share).await;
            Ok::<_, tokio::sync::AcquireError>((
                bytes?,
                self.threads.clone().acquire_owned().await?,
            ))
        };
        let late = |_| {
            RequestError::new(
                Reason::DeadlineInQueue,
                "the deadline passed while the text waited to be tokenised",
            )
        };
        let closed = |_| RequestError::new(Reason::Internal, "the pool of texts is closed");
        let turn = timeout_at(deadline, turn)
            .await
            .map_err(late)?
            .map_err(closed)?;
        let work = move || {
            let _held = (turn, charge);
            work()
        };
        let failed = |_| RequestError::new(Reason::Internal, "tokenisation failed: see the log");
        tokio::task::spawn_blocking(work).await.map_err(failed)?
    }

    /// Takes all threads, so that tests see what waits for one.
    #[cfg(test)]
    pub(crate) async fn pause(&self) -> tokio::sync::OwnedSemaphorePermit {
        let all = self.threads.available_permits() as u32;
        let threads = self.threads.clone();
        threads.acquire_many_owned(all).await.expect("it is open")
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const LONG: usize = INLINE_BYTES + 1;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(1)
    }

    #[tokio::test(start_paused = true)]
    async fn a_long_text_waits_for_a_thread_until_its_deadline_and_a_short_one_does_not() {
        let pool = Pool::new(2, 1 << 20);
        let paused = pool.pause().await;
        assert_eq!(pool.run(INLINE_BYTES, soon(), None, || Ok(1)).await, Ok(1));
        let error = pool.run(LONG, soon(), None, || Ok(1)).await.unwrap_err();
        assert_eq!(error.reason, Reason::DeadlineInQueue);
        drop(paused);
        assert_eq!(pool.run(LONG, soon(), None, || Ok(1)).await, Ok(1));
    }

    /// Two threads are free; bytes are not. A text over the bound comes when nobody else works.
    #[tokio::test]
    async fn texts_share_the_bytes_and_the_longest_goes_alone() {
        let pool = Pool::new(2, 2 * LONG);
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let work = move || {
            wait.recv().expect("it is told to go on");
            Ok(())
        };
        let first = tokio::spawn({
            let pool = pool.clone();
            async move { pool.run(LONG, soon(), None, work).await }
        });
        while pool.bytes.available_permits() == 2 * LONG {
            tokio::task::yield_now().await;
        }
        let mut second = Box::pin(pool.run(100 * LONG, soon(), None, || Ok(())));
        assert!(futures::poll!(&mut second).is_pending());
        assert_eq!(pool.threads.available_permits(), 1, "it waits for bytes");
        go.send(()).unwrap();
        assert_eq!(second.await, Ok(()));
        assert_eq!(first.await.unwrap(), Ok(()));
        assert_eq!(pool.bytes.available_permits(), 2 * LONG);
    }
}
