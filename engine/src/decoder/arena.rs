//! Device memory of a rank's cache.

use palimpsest_kernels::{Backend, KvType, PageShape};

use crate::device_memory::CacheBytes;
use crate::error::Result;
use crate::kv::{PagePool, SequenceCache};

/// The slot arena of a rank: device pages and their free list.
pub struct Arena<B: Backend> {
    /// Device memory.
    pub pages: B::Pages,
    /// Free pages.
    pub pool: PagePool,
    /// Page geometry.
    pub shape: PageShape,
    /// Bytes that latent memories may take.
    pub latent_bytes: usize,
}

impl<B: Backend> Arena<B> {
    /// An arena of as many pages, with notes, as fit into what `bytes` leaves beside latent
    /// memories.
    ///
    /// # Errors
    /// Those of [`palimpsest_kernels::Cache::alloc_pages`] and
    /// [`palimpsest_kernels::LatentMemory::reserve_latents`].
    pub fn new(backend: &B, head_dim: usize, dtype: KvType, bytes: CacheBytes) -> Result<Self> {
        let shape = PageShape { head_dim, dtype };
        let count = bytes.pages / shape.cost();
        let mut pages = backend.alloc_pages(shape, count)?;
        backend.reserve_latents(&mut pages, bytes.latent)?;
        Ok(Self {
            pages,
            pool: PagePool::new(count),
            shape,
            latent_bytes: bytes.latent,
        })
    }

    /// Takes back all that a sequence holds.
    pub fn reclaim(&mut self, backend: &B, cache: &mut SequenceCache) {
        cache.reclaim(backend, &mut self.pages, &mut self.pool);
    }
}
