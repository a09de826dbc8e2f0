//! Bytes under keys that outlive a process: a directory, an object store by its URL, or memory.
//!
//! Every call has a deadline, every object that is read has a bound, and every error says what to
//! do. [`sealed`] tells a damaged record from a whole one.

pub mod claim;
#[cfg(feature = "cloud")]
mod cloud;
#[cfg(any(test, feature = "testing"))]
pub mod conformance;
mod error;
mod place;
pub mod sealed;
mod url;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use tokio::time::timeout;

pub use self::claim::Claim;
pub use self::error::{Error, Result};
use self::place::Place;

/// Time for one call, unless [`Store::with_limit`] says otherwise.
pub const CALL_LIMIT: Duration = Duration::from_secs(30);

/// A place that keeps objects; cheap to clone.
#[derive(Clone)]
pub struct Store {
    objects: Arc<dyn ObjectStore>,
    /// Before every key.
    prefix: Path,
    limit: Duration,
    /// As the operator named it, without credentials.
    name: Arc<str>,
    place: Arc<Place>,
}

/// What a listing says of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its key.
    pub key: String,
    /// Its length in bytes.
    pub bytes: u64,
}

impl Store {
    /// Opens the store that `place` names: a path, or a URL (see the README of this crate). A
    /// directory is made if it is not there.
    ///
    /// # Errors
    /// [`Error::Place`] for what names no store that this build knows.
    pub fn open(place: &str) -> Result<Self> {
        url::open(place, &url::environment())
    }

    /// The same, where an object store takes its credentials and its endpoint from these
    /// variables, by their names, and not from the environment.
    ///
    /// # Errors
    /// [`Error::Place`], which repeats no value of a variable.
    pub fn open_with(place: &str, variables: Vec<(String, String)>) -> Result<Self> {
        url::open(place, &variables)
    }

    /// A store in this process's memory.
    pub fn memory() -> Self {
        Self::over(Arc::new(InMemory::new()), Path::default(), "memory:").at(Place::Private)
    }

    /// A store over any implementation, for tests that let it fail.
    pub fn over(objects: Arc<dyn ObjectStore>, prefix: Path, name: &str) -> Self {
        Self {
            objects,
            prefix,
            limit: CALL_LIMIT,
            name: name.into(),
            place: Arc::new(Place::Shared),
        }
    }

    /// The same store, reached by these.
    fn at(self, place: Place) -> Self {
        let place = Arc::new(place);
        Self { place, ..self }
    }

    /// The same store with another time for each call.
    #[must_use]
    pub fn with_limit(self, limit: Duration) -> Self {
        Self { limit, ..self }
    }

    /// As the operator named it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Keeps `bytes` under `key`, in place of what was there: whole or not at all.
    ///
    /// # Errors
    /// [`Error::Key`], [`Error::Late`], [`Error::Failed`].
    pub async fn put(&self, key: &str, bytes: impl Into<Bytes>) -> Result<()> {
        let path = self.path(key)?;
        let bytes: Bytes = bytes.into();
        let put = self.within(key, self.objects.put(&path, bytes.into()));
        match put.await {
            // Nothing has to be there to be written over.
            Err(Error::Missing { .. }) => Err(Error::Failed {
                store: self.name.to_string(),
                key: key.into(),
                message: "it has no such bucket, container or directory".into(),
            }),
            other => other.map(|_| ()),
        }
    }

    /// What is kept under `key`, if it has at most `most` bytes. A longer one is not read.
    ///
    /// # Errors
    /// [`Error::Missing`], [`Error::TooLong`], [`Error::Key`], [`Error::Late`], [`Error::Failed`].
    pub async fn get(&self, key: &str, most: u64) -> Result<Bytes> {
        let path = self.path(key)?;
        let read = async {
            let found = self.objects.get(&path).await?;
            match found.meta.size {
                bytes if bytes > most => Ok(Err(bytes)),
                _ => found.bytes().await.map(Ok),
            }
        };
        self.within(key, read)
            .await?
            .map_err(|bytes| Error::TooLong {
                key: key.into(),
                bytes,
                most,
            })
    }

    /// Forgets what is kept under `key`; nothing to forget is no error.
    ///
    /// # Errors
    /// [`Error::Key`], [`Error::Late`], [`Error::Failed`].
    pub async fn delete(&self, key: &str) -> Result<()> {
        let path = self.path(key)?;
        match self.within(key, self.objects.delete(&path)).await {
            Err(Error::Missing { .. }) => Ok(()),
            other => other,
        }
    }

    /// The objects whose keys begin with `prefix` (whole parts between slashes), in the order of
    /// their keys.
    ///
    /// # Errors
    /// [`Error::Key`], [`Error::Late`], [`Error::Failed`].
    pub async fn list(&self, prefix: &str) -> Result<Vec<Entry>> {
        let path = self.path(prefix)?;
        let listing = self.objects.list(Some(&path)).try_collect::<Vec<_>>();
        let found = self.within(prefix, listing).await?;
        let mut entries: Vec<_> = found
            .into_iter()
            .filter_map(|meta| {
                let parts: Vec<_> = meta
                    .location
                    .prefix_match(&self.prefix)?
                    .map(|part| part.as_ref().to_owned())
                    .collect();
                Some(Entry {
                    key: parts.join("/"),
                    bytes: meta.size,
                })
            })
            .collect();
        entries.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(entries)
    }

    /// Where `key` is. Keys are ASCII letters, digits, `-`, `_`, `.` and `/` between parts, so that
    /// they mean the same in every store and never leave it.
    fn path(&self, key: &str) -> Result<Path> {
        let is_plain = |part: &str| {
            let letters = part
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
            letters && !part.is_empty() && part.len() <= 200 && part.trim_matches('.') == part
        };
        if !key.split('/').all(is_plain) {
            return Err(Error::Key { key: key.into() });
        }
        let parts = self.prefix.parts().map(|part| part.as_ref().to_owned());
        let all = parts.chain(key.split('/').map(str::to_owned));
        Ok(Path::from_iter(all))
    }

    async fn within<T>(
        &self,
        key: &str,
        call: impl Future<Output = object_store::Result<T>>,
    ) -> Result<T> {
        match timeout(self.limit, call).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(error)) => Err(Error::of(&self.name, key, &error)),
            Err(_) => Err(Error::Late {
                store: self.name.to_string(),
                key: key.into(),
                seconds: self.limit.as_secs_f64(),
            }),
        }
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Store").field(&self.name).finish()
    }
}

#[cfg(test)]
mod tests;
