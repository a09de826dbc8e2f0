//! Installing policies, and what was trained for them and for memories.

use std::sync::Arc;

use palimpsest_kernels::Backend;

use super::Decoder;
use super::hooks::Hooks;
use crate::error::Result;
use crate::indexer::{Indexer, ModelShape};
use crate::memory::Memories;
use crate::policy::{self, Policy, Site};

impl<B: Backend> Decoder<B> {
    /// Installs the policies of this engine, and what was trained for them and for memories.
    /// Returns the policies that sequences may then have.
    ///
    /// # Errors
    /// [`Error::Indexer`](crate::Error::Indexer) when the indexer was made for another model, or
    /// has tensors that nobody knows; those of the kernels.
    pub fn install(&mut self, indexer: Option<&Indexer>) -> Result<Vec<Arc<dyn Policy>>> {
        let config = &self.config;
        if let Some(indexer) = indexer {
            indexer.check(ModelShape {
                layers: config.layers,
                kv_heads: config.kv_heads,
                hidden: config.hidden,
            })?;
        }
        let (backend, kv_heads) = (&self.backend, &self.shard.part.kv_heads);
        let mut reader = indexer.map(Indexer::reader);
        let mut site = Site {
            backend,
            kv_heads: kv_heads.clone(),
            trained: reader.as_mut(),
        };
        let installed = policy::install(&mut site)?;
        let memories = match &mut reader {
            Some(reader) => Memories::load(backend, reader, config.head_dim, kv_heads.clone())?,
            None => Memories::untrained(),
        };
        if let Some(reader) = reader {
            reader.finish()?;
        }
        self.memories = memories;
        let policies = installed.iter().map(|it| it.policy.clone()).collect();
        self.hooks = Hooks::of(installed);
        Ok(policies)
    }
}
