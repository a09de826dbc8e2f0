//! The signals that end a service.

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Waits for the first Ctrl-C, SIGTERM or SIGHUP, which starts the drain. A second one ends the
/// process at once.
pub async fn shutdown() {
    any().await;
    eprintln!("draining; once more to stop at once");
    tokio::spawn(async {
        any().await;
        std::process::exit(130);
    });
}

async fn any() {
    tokio::select! {
        () = one(SignalKind::interrupt()) => {}
        () = one(SignalKind::terminate()) => {}
        () = one(SignalKind::hangup()) => {}
    }
}

/// Waits for a signal of one kind; for ever where it cannot be watched.
async fn one(kind: SignalKind) {
    let watched: std::io::Result<Signal> = signal(kind);
    match watched {
        Ok(mut signal) => {
            signal.recv().await;
        }
        Err(error) => {
            tracing::warn!(%error, ?kind, "a signal cannot be watched");
            std::future::pending().await
        }
    }
}
