//! A rendezvous between threads.

use std::collections::HashMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::communicator::CollectiveError;
use crate::store::Store;

/// What a [`MemoryStore`] holds at most. Ranks leave addresses and ids for each other: a thousand
/// ranks stay far below both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreLimits {
    /// Keys.
    pub keys: usize,
    /// Bytes of all keys and values.
    pub bytes: usize,
}

impl Default for StoreLimits {
    fn default() -> Self {
        Self {
            keys: 16_384,
            bytes: 16 << 20,
        }
    }
}

/// A [`Store`] in this process, with [`StoreLimits`].
#[derive(Debug, Default)]
pub struct MemoryStore {
    limits: StoreLimits,
    values: Mutex<HashMap<String, Vec<u8>>>,
    changed: Condvar,
}

impl MemoryStore {
    /// An empty store with these limits.
    pub fn new(limits: StoreLimits) -> Self {
        Self {
            limits,
            ..Self::default()
        }
    }

    /// The value of a key, if it is there already.
    pub fn find(&self, key: &str) -> Option<Vec<u8>> {
        self.values().get(key).cloned()
    }

    /// Forgets the keys that `keep` does not name.
    pub fn retain(&self, keep: impl Fn(&str) -> bool) {
        self.values().retain(|key, _| keep(key));
    }

    fn values(&self) -> MutexGuard<'_, HashMap<String, Vec<u8>>> {
        self.values.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a value takes of the limit.
fn size(key: &str, value: &[u8]) -> usize {
    key.len() + value.len()
}

impl Store for MemoryStore {
    fn set(&self, key: &str, value: &[u8]) -> Result<(), CollectiveError> {
        let mut values = self.values();
        // Few and small: they are counted again rather than kept in step with every change.
        let others = || values.iter().filter(|(other, _)| other.as_str() != key);
        let bytes: usize = others().map(|(key, value)| size(key, value)).sum();
        let StoreLimits {
            keys: most,
            bytes: room,
        } = self.limits;
        if others().count() >= most || bytes + size(key, value) > room {
            return Err(CollectiveError::StoreFull {
                keys: most,
                bytes: room,
            });
        }
        values.insert(key.to_owned(), value.to_vec());
        self.changed.notify_all();
        Ok(())
    }

    fn get(&self, key: &str, deadline: Instant) -> Result<Vec<u8>, CollectiveError> {
        let mut values = self.values();
        loop {
            if let Some(value) = values.get(key) {
                return Ok(value.clone());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left == Duration::ZERO {
                return Err(CollectiveError::Deadline {
                    operation: "rendezvous",
                    missing: key.to_owned(),
                });
            }
            values = self
                .changed
                .wait_timeout(values, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance;

    #[test]
    fn conforms() {
        conformance::run_store(&MemoryStore::default());
    }

    /// Whoever reaches the port of rank 0 may set keys: they must not take its memory.
    #[test]
    fn keys_and_bytes_have_bounds_and_a_key_may_be_set_again() {
        let limits = StoreLimits { keys: 2, bytes: 10 };
        let full = Err(CollectiveError::StoreFull { keys: 2, bytes: 10 });
        let store = MemoryStore::new(limits);
        assert_eq!(store.set("a", b"12345"), Ok(()));
        assert_eq!(store.set("b", b"1234"), full, "eleven bytes");
        assert_eq!(store.set("b", b"123"), Ok(()), "ten bytes");
        assert_eq!(store.set("c", b""), full, "a third key");
        assert_eq!(store.set("b", b"12"), Ok(()), "instead of its own value");
        store.retain(|key| key == "b");
        assert_eq!(
            store.set("c", b"12345"),
            Ok(()),
            "what was forgotten is room"
        );
        assert_eq!(store.find("a"), None);
        assert_eq!(store.find("c").as_deref(), Some(&b"12345"[..]));
    }
}
