//! What happens to sessions that nobody uses: their state leaves memory, and then they are
//! forgotten.

use std::time::Duration;

use palimpsest_proto::v1::SessionState;

use super::index::{By, Key};
use super::records::Records;

/// Sessions that are looked at before others get the lock.
const AT_ONCE: usize = 256;

/// Looks at all sessions again and again, until the service is gone.
pub(super) fn start(records: &Records) {
    records.watch(|records| async move { sweep(&records).await });
}

/// Looks at every session once.
pub(super) async fn sweep(records: &Records) {
    if !records.limits().place.is_ours() {
        return;
    }
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
    if what_is_due(records, key).is_none() {
        return;
    }
    // A client who uses it now keeps it, and one who has just used it has changed what is due.
    let Ok(hold) = records.index().hold(key, By::Service).await else {
        return;
    };
    let done = match what_is_due(records, key) {
        Some(Due::End) => records.remove(hold).await,
        Some(Due::Rest) => records.suspend(hold).await.map(|_| ()),
        None => Ok(()),
    };
    if let Err(error) = done {
        tracing::warn!(session = key.id(), %error, "a session that nobody uses stays");
    }
}

/// What happens to a session that nobody has used for some time.
enum Due {
    /// Its state leaves memory.
    Rest,
    /// It is forgotten.
    End,
}

fn what_is_due(records: &Records, key: &Key) -> Option<Due> {
    let view = records.index().view(key)?;
    if records.is_over(&view) {
        return Some(Due::End);
    }
    let idle = Duration::from_secs(records.now().saturating_sub(view.used));
    let is_idle = view.state() == SessionState::Idle && idle >= records.limits().suspend_after;
    is_idle.then_some(Due::Rest)
}
