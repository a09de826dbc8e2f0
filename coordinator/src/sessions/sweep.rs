//! What happens to sessions that nobody uses: their state leaves memory, and then they are
//! forgotten.

use std::time::Duration;

use palimpsest_proto::v1::SessionState;
use tokio::time::sleep;

use super::index::Key;
use super::records::Records;

/// Between two looks at all sessions.
const PAUSE: Duration = Duration::from_secs(10);
/// Sessions that are looked at before others get the lock.
const AT_ONCE: usize = 256;

/// Looks at all sessions again and again, until the service is gone.
pub(super) fn start(records: &Records) {
    let records = records.downgrade();
    tokio::spawn(async move {
        while let Some(records) = records.upgrade() {
            sweep(&records).await;
            drop(records);
            sleep(PAUSE).await;
        }
    });
}

/// Looks at every session once.
pub(super) async fn sweep(records: &Records) {
    let mut after: Option<Key> = None;
    loop {
        let keys = records.index().all_behind(after.as_ref(), AT_ONCE);
        for key in &keys {
            sweep_one(records, key).await;
        }
        let Some(last) = keys.last() else {
            return;
        };
        after = Some(last.clone());
    }
}

async fn sweep_one(records: &Records, key: &Key) {
    // A store that fails is asked again at the next look; what is damaged is left to people.
    let _ = records.learn(key).await;
    let Some(view) = records.index().view(key) else {
        return;
    };
    let now = records.now();
    let is_over = records.is_over(&view);
    let idle = Duration::from_secs(now.saturating_sub(view.used));
    let is_idle = view.state() == SessionState::Idle && idle >= records.limits().suspend_after;
    if !is_over && !is_idle {
        return;
    }
    // Somebody who uses it now keeps it.
    let Ok(hold) = records.index().hold(key) else {
        return;
    };
    let done = if is_over {
        records.remove(hold).await
    } else {
        records.suspend(hold).await.map(|_| ())
    };
    if let Err(error) = done {
        tracing::warn!(session = key.id(), %error, "a session that nobody uses stays");
    }
}
