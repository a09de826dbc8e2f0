//! Where the kept state of a session is: in memory, or in the lower tier.

use std::collections::HashSet;
use std::fmt::Debug;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use palimpsest_proto::contract::Contract;
use palimpsest_proto::error::RequestError;

/// What the state of a session is a function of, besides the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pinned {
    /// The session's log.
    pub tokens: Arc<[u32]>,
    /// Its contract.
    pub contract: Contract,
    /// Whose it is, where keys are asked for.
    pub tenant: Option<Arc<str>>,
}

/// Moves the snapshots of sessions between memory and the lower tier. [`conformance`] says what it
/// does; it never says whether a session may be used: what is kept nowhere is read anew.
#[async_trait]
pub trait Pins: Debug + Send + Sync {
    /// Moves what is kept for a log to the lower tier. Returns the bytes that left memory; 0 where
    /// nothing was kept there.
    ///
    /// # Errors
    /// `StoreUnavailable`, and what was in memory stays there.
    async fn suspend(&self, state: &Pinned) -> Result<u64, RequestError>;

    /// Fetches what the lower tier holds for a log. Returns the bytes that came to memory.
    ///
    /// # Errors
    /// `StoreUnavailable`.
    async fn resume(&self, state: &Pinned) -> Result<u64, RequestError>;

    /// Short names of the states that a log goes through, the earliest first. Two logs have as many
    /// of them in common as they begin with the same states.
    fn links(&self, state: &Pinned) -> Arc<[u64]>;

    /// Forgets what is kept for a log behind its first `shared` links, in both tiers, whoever has
    /// used it. When this returns it is gone.
    ///
    /// # Errors
    /// `StoreUnavailable`, and some of it may still be kept.
    async fn forget(&self, state: &Pinned, shared: usize) -> Result<(), RequestError>;
}

/// Pins of a service that keeps no snapshots: every turn reads its log.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unpinned;

#[async_trait]
impl Pins for Unpinned {
    async fn suspend(&self, _: &Pinned) -> Result<u64, RequestError> {
        Ok(0)
    }

    async fn resume(&self, _: &Pinned) -> Result<u64, RequestError> {
        Ok(0)
    }

    fn links(&self, _: &Pinned) -> Arc<[u64]> {
        Arc::default()
    }

    async fn forget(&self, _: &Pinned, _: usize) -> Result<(), RequestError> {
        Ok(())
    }
}

/// The twin in memory: what it holds of a state is its tokens.
#[derive(Debug, Default)]
pub struct MemoryPins(Mutex<Tiers>);

#[derive(Debug, Default)]
struct Tiers {
    memory: HashSet<Pin>,
    lower: HashSet<Pin>,
}

/// A state by its name. Contracts have no hash of their own.
type Pin = (Arc<[u32]>, String);

impl MemoryPins {
    /// A sequence that ended with this state leaves it in memory.
    pub fn keep(&self, state: &Pinned) {
        self.tiers().memory.insert(pin(state));
    }

    fn tiers(&self) -> MutexGuard<'_, Tiers> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn pin(state: &Pinned) -> Pin {
    let name = format!("{:?} of {:?}", state.contract, state.tenant);
    (state.tokens.clone(), name)
}

fn bytes(state: &Pinned) -> u64 {
    (state.tokens.len() * size_of::<u32>()) as u64
}

#[async_trait]
impl Pins for MemoryPins {
    async fn suspend(&self, state: &Pinned) -> Result<u64, RequestError> {
        let mut tiers = self.tiers();
        let was_kept = tiers.memory.remove(&pin(state));
        if was_kept {
            tiers.lower.insert(pin(state));
        }
        Ok(if was_kept { bytes(state) } else { 0 })
    }

    async fn resume(&self, state: &Pinned) -> Result<u64, RequestError> {
        let mut tiers = self.tiers();
        let is_new = tiers.lower.contains(&pin(state)) && tiers.memory.insert(pin(state));
        Ok(if is_new { bytes(state) } else { 0 })
    }

    /// One for every token.
    fn links(&self, state: &Pinned) -> Arc<[u64]> {
        let (tokens, name) = pin(state);
        let mut hasher = DefaultHasher::new();
        name.hash(&mut hasher);
        let link = |token: &u32| {
            token.hash(&mut hasher);
            hasher.finish()
        };
        tokens.iter().map(link).collect()
    }

    async fn forget(&self, state: &Pinned, shared: usize) -> Result<(), RequestError> {
        let (tokens, name) = pin(state);
        let stays = |(kept, other): &Pin| {
            *other != name || kept.len() <= shared || !tokens.starts_with(kept)
        };
        let mut tiers = self.tiers();
        tiers.memory.retain(stays);
        tiers.lower.retain(stays);
        Ok(())
    }
}

/// What every implementation does. `kept` must be in memory, and `other` be kept nowhere.
///
/// # Panics
/// If it does not.
#[cfg(any(test, feature = "testing"))]
pub async fn conformance(pins: &dyn Pins, kept: &Pinned, other: &Pinned) {
    let fine = "the tiers are there";
    assert_eq!(pins.suspend(other).await.expect(fine), 0, "nothing is kept");
    assert_eq!(pins.resume(other).await.expect(fine), 0, "nothing is kept");

    let left = pins.suspend(kept).await.expect(fine);
    assert!(left > 0, "it leaves memory");
    assert_eq!(pins.suspend(kept).await.expect(fine), 0, "it has left");
    assert_eq!(pins.resume(kept).await.expect(fine), left, "it comes back");
    assert_eq!(pins.resume(kept).await.expect(fine), 0, "it is there");
    assert_eq!(pins.suspend(kept).await.expect(fine), left, "and again");

    pins.forget(other, 0).await.expect("nothing to forget");
    assert_eq!(pins.resume(kept).await.expect(fine), left, "of another");
    let links = pins.links(kept);
    assert!(!links.is_empty() && links.first() != pins.links(other).first());
    pins.forget(kept, links.len()).await.expect(fine);
    assert_eq!(
        pins.suspend(kept).await.expect(fine),
        left,
        "others have it"
    );
    pins.forget(kept, 0).await.expect(fine);
    assert_eq!(pins.suspend(kept).await.expect(fine), 0, "forgotten");
    assert_eq!(pins.resume(kept).await.expect(fine), 0, "forgotten");
}
