//! One service at a time on a place.
//!
//! A directory has a lock of the operating system, which ends with the process that holds it,
//! however that ends. An object store has none, so there a record names the owner, who counts up
//! in it several times in a lease. Whoever finds a record watches it: one that changes has an owner
//! that lives, and one that stands still for a whole lease has none. No clock is compared with
//! another machine's.

use std::fs::{File, OpenOptions, TryLockError};
use std::hash::{BuildHasher, RandomState};
use std::io::{Read, Seek, Write};
use std::path::Path;
use std::sync::Mutex;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep};

use crate::error::{Error, Result};
use crate::{Store, place::Place};

/// Time after which an owner that does not count up has none.
pub const LEASE: Duration = Duration::from_secs(15);
/// An owner counts up that often in a lease.
const BEATS: u32 = 5;
/// Key of the owner's record.
const KEY: &str = "owner";
/// Name of the file that is locked.
const LOCK: &str = "owner.lock";
/// Bytes of an owner's record at most.
const MOST: u64 = 4096;

/// A place that is this service's own until the claim is dropped.
#[derive(Debug)]
pub struct Claim(Held);

#[derive(Debug)]
enum Held {
    /// Nobody else can reach the place.
    Private,
    /// The lock ends when the file is closed.
    Lock { _file: File },
    /// A record of the store says who owns it.
    Lease(Lease),
}

#[derive(Debug)]
struct Lease {
    store: Store,
    /// When the record was last known to be ours.
    known: Arc<Mutex<Option<Instant>>>,
    beats: AbortHandle,
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.beats.abort();
    }
}

impl Claim {
    /// Whether the place is still this service's own. A lease is lost to a network that fails for
    /// longer than it.
    pub fn is_held(&self) -> bool {
        match &self.0 {
            Held::Private | Held::Lock { .. } => true,
            Held::Lease(lease) => {
                let known = lease.known.lock().unwrap_or_else(PoisonError::into_inner);
                known.is_some_and(|known| known.elapsed() < LEASE - LEASE / BEATS)
            }
        }
    }

    /// Gives the place back, so that the next service need not wait. A directory is given back
    /// when the claim is dropped.
    ///
    /// # Errors
    /// Those of [`Store::delete`].
    pub async fn release(&self) -> Result<()> {
        let is_held = self.is_held();
        match &self.0 {
            Held::Lease(lease) if is_held => {
                lease.beats.abort();
                *lease.known.lock().unwrap_or_else(PoisonError::into_inner) = None;
                lease.store.delete(KEY).await
            }
            _ => Ok(()),
        }
    }
}

impl Store {
    /// Makes the place this service's own. `owner` is what another service reads that wants it as
    /// well: one line. In an object store that an owner left without a word this takes a
    /// [`LEASE`].
    ///
    /// # Errors
    /// [`Error::Taken`] if another one has it, and what the store says.
    pub async fn claim(&self, owner: &str) -> Result<Claim> {
        match &*self.place {
            Place::Private => Ok(Claim(Held::Private)),
            Place::Directory(root) => lock(self, root, owner),
            Place::Shared => lease(self, owner).await,
        }
    }

    fn taken(&self, owner: &str) -> Error {
        let owner = match owner.lines().next() {
            None | Some("") => "another service",
            Some(owner) => owner,
        };
        Error::Taken {
            store: self.name().into(),
            owner: owner.into(),
        }
    }
}

fn lock(store: &Store, root: &Path, owner: &str) -> Result<Claim> {
    let failed = |error: std::io::Error| Error::Failed {
        store: store.name().into(),
        key: LOCK.into(),
        message: error.to_string(),
    };
    let mut options = OpenOptions::new();
    // What stands there names the owner until the lock is ours.
    options.read(true).write(true).create(true).truncate(false);
    let mut file = options.open(root.join(LOCK)).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut other = String::new();
            // A name that cannot be read is none.
            let _ = (&mut file).take(MOST).read_to_string(&mut other);
            return Err(store.taken(&other));
        }
        Err(TryLockError::Error(error)) => return Err(failed(error)),
    }
    file.set_len(0).map_err(failed)?;
    file.rewind().map_err(failed)?;
    writeln!(file, "{owner}").map_err(failed)?;
    Ok(Claim(Held::Lock { _file: file }))
}

/// What an owner writes.
struct Owner {
    name: String,
    /// Two processes may have the same name.
    token: u64,
}

impl Owner {
    fn record(&self, beat: u64) -> Vec<u8> {
        format!("{}\n{:016x}\n{beat}\n", self.name, self.token).into_bytes()
    }

    /// Whether `record` is one of this owner's.
    fn wrote(&self, record: &[u8]) -> bool {
        let text = String::from_utf8_lossy(record);
        text.lines().nth(1) == Some(&format!("{:016x}", self.token))
    }
}

async fn lease(store: &Store, name: &str) -> Result<Claim> {
    let owner = Owner {
        name: name.into(),
        token: RandomState::new().hash_one(name),
    };
    let pause = LEASE / BEATS;
    let found = read(store).await?;
    if found.is_some() {
        // A whole lease and the time of one beat.
        for _ in 0..=BEATS {
            sleep(pause).await;
            let now = read(store).await?;
            if now.is_some() && now != found {
                return Err(store.taken(&String::from_utf8_lossy(&now.unwrap_or_default())));
            }
        }
    }
    write(store, owner.record(0)).await?;
    // Of several that saw the place free, the last one's record stays.
    sleep(pause).await;
    let now = read(store).await?.unwrap_or_default();
    if !owner.wrote(&now) {
        return Err(store.taken(&String::from_utf8_lossy(&now)));
    }
    let known = Arc::new(Mutex::new(Some(Instant::now())));
    let beats = tokio::spawn(beat(store.clone(), owner, known.clone())).abort_handle();
    Ok(Claim(Held::Lease(Lease {
        store: store.clone(),
        known,
        beats,
    })))
}

/// Counts up until the record is another's.
async fn beat(store: Store, owner: Owner, known: Arc<Mutex<Option<Instant>>>) {
    let set = |instant| *known.lock().unwrap_or_else(PoisonError::into_inner) = instant;
    for beat in 1.. {
        sleep(LEASE / BEATS).await;
        let asked = Instant::now();
        match read(&store).await {
            Ok(Some(record)) if owner.wrote(&record) => {}
            // Somebody took it while this process slept or was cut off.
            Ok(_) => return set(None),
            Err(_) => continue,
        }
        if write(&store, owner.record(beat)).await.is_ok() {
            set(Some(asked));
        }
    }
}

/// Writes the record, and gives up after a beat: one that is written late would stand over the
/// record of whoever took the place meanwhile.
async fn write(store: &Store, record: Vec<u8>) -> Result<()> {
    let put = tokio::time::timeout(LEASE / BEATS, store.put(KEY, record));
    put.await.unwrap_or_else(|_| {
        Err(Error::Failed {
            store: store.name().into(),
            key: KEY.into(),
            message: "the owner's record was not written within a beat".to_owned(),
        })
    })
}

async fn read(store: &Store) -> Result<Option<Vec<u8>>> {
    match store.get(KEY, MOST).await {
        Ok(record) => Ok(Some(record.to_vec())),
        Err(Error::Missing { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;
    use object_store::path::Path as Key;
    use object_store::throttle::{ThrottleConfig, ThrottledStore};

    use super::*;

    fn shared() -> Store {
        Store::over(Arc::new(InMemory::new()), Key::default(), "shared")
    }

    fn is_taken_by(found: Result<Claim>, name: &str) -> bool {
        matches!(found, Err(Error::Taken { owner, .. }) if owner == name)
    }

    #[tokio::test]
    async fn a_directory_has_one_owner_whose_lock_ends_with_it() {
        let directory = tempfile::tempdir().expect("a directory");
        let place = directory.path().display().to_string();
        let open = || Store::open(&place).expect("a store");
        let first = open().claim("first").await.expect("nobody has it");
        assert!(first.is_held());
        assert!(is_taken_by(open().claim("second").await, "first"));
        // The operating system closes the files of a process that is killed.
        drop(first);
        let second = open().claim("second").await.expect("free again");
        assert!(is_taken_by(open().claim("third").await, "second"));
        drop(second);
    }

    #[tokio::test(start_paused = true)]
    async fn a_record_that_is_written_late_takes_no_place() {
        let slow = ThrottleConfig {
            wait_put_per_call: LEASE,
            ..ThrottleConfig::default()
        };
        let slow = Arc::new(ThrottledStore::new(InMemory::new(), slow));
        let store = Store::over(slow, Key::default(), "slow");
        let found = store.claim("first").await;
        assert!(matches!(found, Err(Error::Failed { .. })), "{found:?}");
        sleep(2 * LEASE).await;
        assert_eq!(read(&store).await, Ok(None));
    }

    #[tokio::test(start_paused = true)]
    async fn an_owner_that_lives_keeps_its_lease_and_one_that_died_loses_it() {
        let store = shared();
        let first = store.claim("first").await.expect("nobody has it");
        assert!(is_taken_by(store.claim("second").await, "first"));
        assert!(first.is_held());
        // It is killed: nothing is given back.
        drop(first);
        let begun = Instant::now();
        let second = store.claim("second").await.expect("a lease later");
        assert!(begun.elapsed() >= LEASE);
        second.release().await.expect("given back");
        assert!(!second.is_held());
        let begun = Instant::now();
        store.claim("third").await.expect("free at once");
        assert!(begun.elapsed() < LEASE);
    }

    #[tokio::test(start_paused = true)]
    async fn an_owner_whose_record_was_taken_knows_it() {
        let store = shared();
        let first = store.claim("first").await.expect("nobody has it");
        store.put(KEY, &b"other\n00\n0\n"[..]).await.expect("room");
        sleep(LEASE / BEATS + Duration::from_secs(1)).await;
        assert!(!first.is_held());
    }

    #[tokio::test(start_paused = true)]
    async fn of_two_that_come_at_once_one_is_refused() {
        let store = shared();
        let (one, other) = tokio::join!(store.claim("one"), store.claim("other"));
        assert_ne!(one.is_ok(), other.is_ok());
    }

    #[tokio::test]
    async fn memory_is_nobody_elses() {
        let store = Store::memory();
        let one = store.claim("one").await.expect("private");
        assert!(one.is_held());
        store.claim("two").await.expect("private");
    }
}
