//! The signals that end a service.

use std::future::{Future, poll_fn};
use std::task::Poll;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Watches for Ctrl-C, SIGTERM and SIGHUP from this call on: a signal that comes before the future
/// is waited for is not lost. The first one ends the future and starts the drain. A second one ends
/// the process at once.
///
/// # Panics
/// Outside of a runtime.
pub fn shutdown() -> impl Future<Output = ()> {
    let mut watched = Watched::new();
    async move {
        watched.any().await;
        eprintln!("draining; once more to stop at once");
        tokio::spawn(async move {
            watched.any().await;
            std::process::exit(130);
        });
    }
}

/// The signals that can be watched here.
struct Watched(Vec<Signal>);

impl Watched {
    fn new() -> Self {
        let kinds = [
            SignalKind::interrupt(),
            SignalKind::terminate(),
            SignalKind::hangup(),
        ];
        let watch = |kind| {
            signal(kind)
                .inspect_err(|error| tracing::warn!(%error, ?kind, "a signal cannot be watched"))
                .ok()
        };
        Self(kinds.into_iter().filter_map(watch).collect())
    }

    /// Waits for one of them.
    async fn any(&mut self) {
        poll_fn(|context| {
            let came = self
                .0
                .iter_mut()
                .any(|signal| signal.poll_recv(context).is_ready());
            if came { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
}
