//! Twin arenas: one of the backend, one of the reference.

use super::report::Failure;
use super::suite::{Check, Named, Suite};
use crate::backend::{Cache, HeadPages, LatentMemory, PageId, PageShape};
use crate::latent::{LatentHead, LatentId, LatentKind, LatentState};
use crate::reference::{ReferenceBackend, ReferencePages};

/// Twin arenas with the same contents: some heads, each with a page table in random order.
pub(super) struct Arenas<B: Cache> {
    pub(super) dim: usize,
    pub(super) pages: B::Pages,
    pub(super) reference: ReferencePages,
    pub(super) tables: Vec<Vec<PageId>>,
}

impl<B: Cache> Arenas<B> {
    /// One table per entry of `slots`, for that many slots.
    pub(super) fn new(suite: &mut Suite<'_, B>, dim: usize, slots: &[usize]) -> Check<Self> {
        let shape = suite.shape(dim);
        let counts: Vec<usize> = slots
            .iter()
            .map(|slots| slots.div_ceil(PageShape::SLOTS))
            .collect();
        let mut order = suite
            .random
            .shuffled(counts.iter().sum::<usize>() + 1)
            .into_iter()
            .map(PageId);
        let tables: Vec<Vec<PageId>> = counts
            .iter()
            .map(|&count| order.by_ref().take(count).collect())
            .collect();
        let count = counts.iter().sum::<usize>() + 1;
        Ok(Self {
            dim,
            pages: suite
                .backend
                .alloc_pages(shape, count)
                .named("alloc_pages")?,
            reference: ReferenceBackend
                .alloc_pages(shape, count)
                .named("alloc_pages")?,
            tables,
        })
    }

    /// Head `index` with `len` slots.
    pub(super) fn head(&self, index: usize, len: usize) -> HeadPages<'_> {
        HeadPages::new(&self.tables[index], len)
    }

    /// Writes random entries to the first `len` slots of head `index`.
    pub(super) fn fill(&mut self, suite: &mut Suite<'_, B>, index: usize, len: usize) -> Check {
        let (keys, values) = (
            suite.random.values(len * self.dim),
            suite.random.values(len * self.dim),
        );
        let head = HeadPages::new(&self.tables[index], len);
        suite
            .backend
            .write_slots(&mut self.pages, head, 0, &keys, &values)
            .named("write_slots")?;
        ReferenceBackend
            .write_slots(&mut self.reference, head, 0, &keys, &values)
            .named("write_slots")
    }

    /// Compares the first `len` slots of head `index`.
    pub(super) fn compare(
        &self,
        suite: &mut Suite<'_, B>,
        case: &str,
        index: usize,
        len: usize,
        allowed: f32,
    ) -> Check {
        let slots: Vec<u32> = (0..len as u32).collect();
        let zeros = vec![0.0; len * self.dim];
        let (mut keys, mut values) = (zeros.clone(), zeros.clone());
        suite
            .backend
            .read_slots(
                &self.pages,
                self.head(index, len),
                &slots,
                &mut keys,
                &mut values,
            )
            .named("read_slots")?;
        let (mut want_keys, mut want_values) = (zeros.clone(), zeros);
        ReferenceBackend
            .read_slots(
                &self.reference,
                self.head(index, len),
                &slots,
                &mut want_keys,
                &mut want_values,
            )
            .named("read_slots")?;
        suite.compare(&format!("{case}, keys"), &keys, &want_keys, allowed)?;
        suite.compare(&format!("{case}, values"), &values, &want_values, 0.0)
    }
}

impl<B: LatentMemory> Arenas<B> {
    /// An empty latent memory in both arenas, which give it one id.
    pub(super) fn latent(
        &mut self,
        suite: &Suite<'_, B>,
        kind: LatentKind,
        heads: usize,
    ) -> Check<LatentId> {
        let id = suite
            .backend
            .alloc_latent(&mut self.pages, kind, heads)
            .named("alloc_latent")?;
        let twin = ReferenceBackend
            .alloc_latent(&mut self.reference, kind, heads)
            .named("alloc_latent")?;
        if id == twin {
            Ok(id)
        } else {
            Err(Failure::Length {
                case: "id".into(),
                got: id.0 as usize,
                want: twin.0 as usize,
            })
        }
    }

    /// Writes one state to both.
    pub(super) fn write_state(
        &mut self,
        suite: &Suite<'_, B>,
        head: LatentHead,
        state: &LatentState,
    ) -> Check {
        suite
            .backend
            .write_latent(&mut self.pages, head, state)
            .named("write_latent")?;
        ReferenceBackend
            .write_latent(&mut self.reference, head, state)
            .named("write_latent")
    }
}

/// Heads with page tables `tables` and `lens` slots.
pub(super) fn heads<'a>(tables: &'a [Vec<PageId>], lens: &[usize]) -> Vec<HeadPages<'a>> {
    tables
        .iter()
        .zip(lens)
        .map(|(pages, &len)| HeadPages::new(pages, len))
        .collect()
}
