//! Where records are kept that outlive a request: the store, who owns it, what time it is there,
//! and who looks after what is too old. Sessions and responses each have such a place.

mod clock;

use std::sync::Arc;
use std::time::Duration;

pub use palimpsest_store::Error as StoreError;
use palimpsest_store::{Claim, Store};
use tokio::time::sleep;

pub use self::clock::Clock;

/// Between two looks at what is too old.
pub(crate) const PAUSE: Duration = Duration::from_secs(10);

/// A store of records, and the claim on it.
#[derive(Debug, Clone)]
pub struct Place {
    store: Store,
    /// Says whether the store is this service's own; none where nobody else can reach it.
    claim: Option<Arc<Claim>>,
}

impl Place {
    /// In the memory of this process.
    pub fn memory() -> Self {
        Self::over(Store::memory())
    }

    /// The store that `place` names: see [`Store::open`]. It is nobody's yet: see
    /// [`Self::claimed`].
    ///
    /// # Errors
    /// If it names none.
    pub fn open(place: &str) -> Result<Self, StoreError> {
        Store::open(place).map(Self::over)
    }

    /// A store that is nobody's yet.
    pub const fn over(store: Store) -> Self {
        Self { store, claim: None }
    }

    /// The same place, which is now this service's own. `owner` is its name for others.
    ///
    /// # Errors
    /// [`StoreError::Taken`], and what the store says.
    pub async fn claimed(&self, owner: &str) -> Result<Self, StoreError> {
        let claim = self.store.claim(owner).await?;
        Ok(Self {
            store: self.store.clone(),
            claim: Some(Arc::new(claim)),
        })
    }

    /// The store itself.
    pub const fn store(&self) -> &Store {
        &self.store
    }

    /// Whether records may be written: a write after the claim was lost would undo another
    /// service's.
    pub fn is_ours(&self) -> bool {
        self.claim.as_ref().is_none_or(|claim| claim.is_held())
    }

    /// Gives the place back, when nothing is written any more, so that the next owner need not
    /// wait. `what` is kept there.
    pub async fn release(&self, what: &str) {
        if let Some(claim) = &self.claim
            && let Err(error) = claim.release().await
        {
            tracing::warn!(%error, "the place of {what} is not given back: the next owner waits");
        }
    }
}

/// Has `look` look at all records again and again, until the service that `of` belongs to is gone.
/// The first look is at once.
pub(crate) fn watch<T, F>(of: &Arc<T>, look: impl Fn(Arc<T>) -> F + Send + 'static)
where
    T: Send + Sync + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let of = Arc::downgrade(of);
    tokio::spawn(async move {
        while let Some(of) = of.upgrade() {
            look(of).await;
            sleep(PAUSE).await;
        }
    });
}
