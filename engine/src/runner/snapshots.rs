//! States of sequences that are kept, and sequences that begin with one.

use std::sync::Arc;

use palimpsest_kernels::Backend;

use super::Runner;
use crate::error::{Error, Result};
use crate::kv::SequenceCache;
use crate::snapshot::Snapshot;

impl<B: Backend> Runner<B> {
    /// Keeps the state of `cache` under `name`. Returns its bytes; 0 if it is not kept: a request
    /// goes on without its snapshot.
    pub(super) fn keep_state(&self, name: &bytes::Bytes, cache: &SequenceCache) -> u64 {
        match Snapshot::take(self.decoder.backend(), &self.arena, cache) {
            Ok(snapshot) => {
                let bytes = snapshot.bytes() as u64;
                let is_kept = self.kept.insert(name.clone(), Arc::new(snapshot));
                if is_kept { bytes } else { 0 }
            }
            Err(error) => {
                tracing::warn!(%error, "a state could not be kept");
                0
            }
        }
    }

    /// Gives an empty cache the state that is kept under `name`.
    ///
    /// # Errors
    /// [`Error::Plan`] if there is none, and those of [`Snapshot::restore`].
    pub(super) fn begin_with(&mut self, name: &[u8], cache: &mut SequenceCache) -> Result<()> {
        let missing = || Error::Plan {
            sequence: 0,
            what: "begins with a snapshot that is not in host memory".into(),
        };
        let snapshot = self.kept.get(name).ok_or_else(missing)?;
        snapshot.restore(self.decoder.backend(), &mut self.arena, cache)
    }
}
