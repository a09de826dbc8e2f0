//! Ownership of arena pages: a free list, and nothing else.

use palimpsest_kernels::{PageId, PageList};

use crate::error::{Error, Result};

/// Free pages of one rank's arena. The page returned last is used first, so a small load touches
/// little memory.
#[derive(Debug)]
pub struct PagePool {
    free: Vec<PageId>,
    total: usize,
}

impl PagePool {
    /// A pool over pages `0 .. total`.
    pub fn new(total: usize) -> Self {
        let last = u32::try_from(total).expect("arena page ids fit 32 bits");
        Self {
            free: (0..last).rev().map(PageId).collect(),
            total,
        }
    }

    /// Pages not in use.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// Pages of the arena.
    pub fn total(&self) -> usize {
        self.total
    }

    /// Takes `count` pages onto `to`, all or none.
    ///
    /// # Errors
    /// [`Error::PagesExhausted`] when fewer are free; `to` is unchanged.
    pub fn take(&mut self, count: usize, to: &mut PageList) -> Result<()> {
        let free = self.free.len();
        if count > free {
            return Err(Error::PagesExhausted {
                needed: count,
                free,
            });
        }
        to.extend(self.free.drain(free - count..).rev());
        Ok(())
    }

    /// Gives back the pages of `from` beyond the first `keep`.
    pub fn give_back(&mut self, from: &mut PageList, keep: usize) {
        self.free.extend(from.take_after(keep).into_iter().rev());
        debug_assert!(self.free.len() <= self.total, "a page was returned twice");
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Random takes and returns never lose, duplicate or invent a page.
        #[test]
        fn pages_are_conserved(ops in prop::collection::vec((0usize..4, 0usize..9), 1..200)) {
            let mut pool = PagePool::new(20);
            let mut tables = vec![PageList::default(); 4];
            for (table, n) in ops {
                let t = &mut tables[table];
                if n % 2 == 0 {
                    let before = t.len();
                    if pool.take(n, t).is_err() { prop_assert_eq!(t.len(), before); }
                } else {
                    pool.give_back(t, n / 2);
                }
                let held = tables.iter().flatten().copied();
                let mut all: Vec<_> = held.chain(pool.free.iter().copied()).collect();
                all.sort_unstable();
                prop_assert_eq!(&all, &(0..20).map(PageId).collect::<Vec<_>>());
            }
        }
    }
}
