//! Threads for one kind of work, which other work cannot hold up.
//!
//! ```text
//! main's      the driver, executors, beats, membership, signals
//! "clients"   ports of clients: connections, parsing, templates, tokenisation
//! "probes"    the port of probes
//! ```
//! A request that keeps a thread for seconds is a fault; it must not look like a rank that is gone,
//! or a process that hangs.

use std::future::Future;

use anyhow::Context;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;

/// Threads that may block at once in the work of each runtime.
const BLOCKING_THREADS: usize = 16;

/// A runtime that ends when it is dropped, also within another one, and waits for nothing.
#[derive(Debug)]
pub struct Background(Option<Runtime>);

impl Background {
    /// Starts `threads` of them.
    ///
    /// # Errors
    /// If the system gives no threads.
    pub fn start(name: &'static str, threads: usize) -> anyhow::Result<Self> {
        let runtime = Builder::new_multi_thread()
            .thread_name(name)
            .worker_threads(threads)
            .max_blocking_threads(BLOCKING_THREADS)
            .enable_all()
            .build();
        let runtime = runtime.with_context(|| format!("cannot start the threads of {name}"))?;
        Ok(Self(Some(runtime)))
    }

    /// Does `work` there.
    ///
    /// # Panics
    /// Never while this is not being dropped.
    pub fn spawn<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        let runtime = self.0.as_ref().expect("it runs until it is dropped");
        runtime.spawn(work)
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_may_be_dropped_within_another() {
        let inner = Background::start("inner", 1).expect("a thread");
        let name = inner.spawn(async { std::thread::current().name().map(str::to_owned) });
        assert_eq!(name.await.expect("no panic").as_deref(), Some("inner"));
        let stuck = inner.spawn(std::future::pending::<()>());
        drop(inner);
        assert!(stuck.await.expect_err("it ended").is_cancelled());
    }
}
