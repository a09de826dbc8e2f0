//! Responses that are kept, so that a later request may go on from one.
//!
//! ```text
//!  request that names a response
//!     │ pin: its conversation stays until the request has ended     ─▶ unknown, too long
//!     ▼
//!  read: the turns of the conversation, the oldest first            ─▶ store unavailable, damaged
//!     │
//!     ▼ the answer has ended
//!  keep: its turn is written, and then it is known                  ─▶ store unavailable: nothing
//!     ▼                                                                was kept
//!  the client reads that it is complete
//! ```
//! - A record holds one turn, that is, the messages that a request brought and their answer, and
//!   names the response before it. So a conversation of n turns takes the bytes of n turns, not of
//!   n(n+1)/2.
//! - A response that others go on from is hidden when it is deleted or expires, and its record
//!   stays until the last of them is gone.
//! - The `index` says who goes on from whom, and is made of the names of the records alone.

mod error;
mod id;
mod index;
mod limits;
mod record;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use palimpsest_store::{Store, sealed};
use tokio::sync::OnceCell;

pub use self::error::{Error, Result};
pub use self::id::{ResponseId, TenantKey};
use self::index::{FOLDER, Garbage, Index, Name, Removal};
pub use self::limits::Limits;
pub use self::record::{Asked, Cost, Message, Record};
use crate::metrics::Metrics;
use crate::place::watch;

/// Records of a conversation that are read at once.
const READS: usize = 8;
/// Records that are removed behind one call, at most.
const SWEPT: usize = 256;

/// The responses of a service; cheap to clone.
#[derive(Debug, Clone)]
pub struct Responses(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    limits: Limits,
    index: Mutex<Index>,
    /// Whether the index knows what the store held.
    opened: OnceCell<()>,
    metrics: Metrics,
}

/// A response with all that it goes on from. None of it is removed before this is dropped.
#[derive(Debug)]
pub struct Pinned {
    of: Responses,
    /// The oldest first; never empty.
    names: Vec<Name>,
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let id = self.id();
        self.of.index().unpin(id);
    }
}

impl Pinned {
    /// Name of the response itself.
    pub fn id(&self) -> ResponseId {
        self.own().id
    }

    fn own(&self) -> Name {
        *self.names.last().expect("a conversation has a turn")
    }

    /// Bytes of all records.
    pub fn bytes(&self) -> u64 {
        self.names.iter().map(|name| name.bytes).sum()
    }

    /// Bytes of the record of the response itself.
    pub fn own_bytes(&self) -> u64 {
        self.own().bytes
    }

    /// The records of all turns, the oldest first, as [`Record::parse`] takes them.
    ///
    /// # Errors
    /// [`Error::Unknown`] if one is no longer in the store, [`Error::Damaged`], [`Error::Store`].
    pub async fn read(&self) -> Result<Vec<Bytes>> {
        let reads = self.names.iter().copied().map(|name| self.get(name));
        stream::iter(reads).buffered(READS).try_collect().await
    }

    /// The record of the response itself, as [`Self::read`] gives it.
    ///
    /// # Errors
    /// Those of [`Self::read`].
    pub async fn read_own(&self) -> Result<Bytes> {
        self.get(self.own()).await
    }

    async fn get(&self, name: Name) -> Result<Bytes> {
        let key = name.key();
        let read = async {
            let found = self.of.store().get(&key, name.bytes).await?;
            sealed::open(&key, &found)
        };
        read.await.map_err(|error| {
            let error = Error::from(error);
            tracing::warn!(key, %error, "a stored response cannot be read");
            error
        })
    }
}

impl Responses {
    /// The responses that the store of `limits` holds. They are looked up when they are first
    /// asked for.
    pub fn new(limits: Limits, metrics: Metrics) -> Self {
        Self(Arc::new(Inner {
            index: Mutex::new(Index::new(limits.bounds())),
            limits,
            opened: OnceCell::new(),
            metrics,
        }))
    }

    /// Seconds since 1970.
    pub fn now(&self) -> u64 {
        self.0.limits.clock.now()
    }

    /// A response of this tenant, held until the result is dropped.
    ///
    /// # Errors
    /// [`Error::Unknown`] if it was never made, was deleted, has expired or is another tenant's;
    /// [`Error::Store`].
    pub async fn pin(&self, tenant: TenantKey, id: ResponseId) -> Result<Pinned> {
        self.open().await?;
        let names = self.index().pin(tenant, id)?;
        let of = self.clone();
        Ok(Pinned { of, names })
    }

    /// The same, for a request that goes on from it.
    ///
    /// # Errors
    /// Those of [`Self::pin`], and [`Error::TooLong`].
    pub async fn go_on(&self, tenant: TenantKey, id: ResponseId) -> Result<Pinned> {
        let pinned = self.pin(tenant, id).await?;
        let (turns, most) = (pinned.names.len(), self.0.limits.max_turns);
        if turns >= most {
            return Err(Error::TooLong { turns, most });
        }
        Ok(pinned)
    }

    /// Keeps a response that goes on from `parent`. It goes on to its end if its caller goes away.
    ///
    /// # Errors
    /// [`Error::TooLarge`], [`Error::Store`]; then nothing of it is kept.
    pub async fn keep(
        &self,
        tenant: TenantKey,
        record: &Record,
        parent: Option<Pinned>,
    ) -> Result<()> {
        self.open().await?;
        let sealed = sealed::seal(&record.write());
        let name = Name {
            tenant,
            id: record.id,
            parent: parent.as_ref().map(Pinned::id),
            created: record.created,
            bytes: sealed.len() as u64,
        };
        let most = self.0.limits.max_bytes;
        if name.bytes > most {
            let bytes = name.bytes;
            return Err(Error::TooLarge { bytes, most });
        }
        let of = self.clone();
        let kept = tokio::spawn(async move {
            let put = of.store().put(&name.key(), sealed).await;
            {
                let mut index = of.index();
                match put {
                    Ok(()) => index.insert(name),
                    // A call that was late may still be carried out.
                    Err(_) => index.discard(&name),
                }
                // Only now: what it goes on from has a child, or may go.
                drop(index);
                drop(parent);
            }
            of.sweep();
            of.count();
            put
        });
        let put = kept.await.map_err(|_| Error::Ended)?;
        put.map_err(Error::from)
    }

    /// Forgets a response. Those that go on from it stay whole.
    ///
    /// # Errors
    /// As [`Self::pin`]; after [`Error::Store`] it is there as before.
    pub async fn delete(&self, tenant: TenantKey, id: ResponseId) -> Result<()> {
        self.open().await?;
        let removal = self.index().hide(tenant, id)?;
        let of = self.clone();
        // It goes on to its end if the client goes away: what is hidden is forgotten or shown.
        let removed = tokio::spawn(async move { of.delete_hidden(id, removal).await });
        removed.await.map_err(|_| Error::Ended)?
    }

    async fn delete_hidden(&self, id: ResponseId, removal: Removal) -> Result<()> {
        let done = match &removal {
            Removal::Marker(key) => self.store().put(key, Bytes::new()).await,
            Removal::Record(key) => self.store().delete(key).await,
        };
        match done {
            Ok(()) => self.index().forget(id),
            Err(error) => {
                self.index().show(id);
                return Err(error.into());
            }
        }
        self.sweep();
        self.count();
        Ok(())
    }

    /// Gives the place of the records back, when nothing is written any more.
    pub async fn close(&self) {
        self.0.limits.place.release("responses").await;
    }

    /// Responses that are kept, and the bytes of all records.
    pub fn held(&self) -> (usize, u64) {
        let index = self.index();
        (index.count(), index.bytes())
    }

    /// Learns what the store holds, once, and hides what has expired. From then on what expires is
    /// removed whether anyone asks for a response or not.
    async fn open(&self) -> Result<()> {
        if !self.0.limits.place.is_ours() {
            return Err(Error::NotOurs);
        }
        let open = || async {
            let found = self.store().list(FOLDER).await?;
            self.index().load(found.into_iter());
            self.watch();
            Ok::<_, Error>(())
        };
        self.0.opened.get_or_try_init(open).await?;
        self.expire();
        Ok(())
    }

    /// Looks for responses that have expired, again and again, until the service is gone.
    fn watch(&self) {
        watch(&self.0, |inner| async move {
            let of = Self(inner);
            if of.0.limits.place.is_ours() {
                of.expire();
            }
        });
    }

    /// Hides what has expired, and has it removed.
    fn expire(&self) {
        self.index().expire(self.now());
        self.sweep();
        self.count();
    }

    fn count(&self) {
        let (kept, bytes) = self.held();
        self.0.metrics.responses(kept, bytes);
    }

    /// Removes from the store what nobody can ask for, in the background.
    fn sweep(&self) {
        let garbage = self.index().take_garbage(SWEPT);
        if garbage.is_empty() {
            return;
        }
        let of = self.clone();
        tokio::spawn(async move {
            let mut failed = Vec::new();
            for keys in garbage {
                failed.extend(of.remove(keys).await);
            }
            of.index().put_garbage(failed);
        });
    }

    /// Removes keys in their order, and gives back those that it could not remove.
    async fn remove(&self, mut keys: Garbage) -> Option<Garbage> {
        while let Some(key) = keys.first() {
            if let Err(error) = self.store().delete(key).await {
                tracing::warn!(key, %error, "an old response cannot be removed");
                return Some(keys);
            }
            keys.remove(0);
        }
        None
    }

    fn store(&self) -> &Store {
        self.0.limits.place.store()
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        self.0.index.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
