//! The pages of a head: as who owns them keeps them, and as a call names them. The owner's list is
//! known by a mark, so that a device need not read it again to see that it is as it was.

use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};

/// Index of a page in a backend's `Pages`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PageId(pub u32);

/// Marks of lists, each given once.
static NEXT: AtomicU64 = AtomicU64::new(1);

/// The slots of one KV head of one sequence in one layer: slot `i` lives in `pages[i / P]` at `i %
/// P`.
#[derive(Debug, Clone, Copy)]
pub struct HeadPages<'a> {
    /// Page table, at least `ceil(len / P)` entries.
    pub pages: &'a [PageId],
    /// Slots that hold an entry.
    pub len: usize,
    /// What the page table is known by, if it is a part of a list.
    pub mark: PageMark,
}

impl<'a> HeadPages<'a> {
    /// Slots of a page table that is known by nothing.
    pub fn new(pages: &'a [PageId], len: usize) -> Self {
        Self {
            pages,
            len,
            mark: PageMark::default(),
        }
    }
}

/// Pages of one head in the order of its slots. Copies have the mark of their original until one of
/// them is changed.
#[derive(Debug, Clone, Default)]
pub struct PageList {
    pages: Vec<PageId>,
    mark: PageMark,
}

/// What a list of pages is known by: two lists of one mark have the same pages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PageMark {
    /// 0: unknown, so equal to none.
    version: u64,
    /// No page of the list has a higher number.
    highest: u32,
}

impl PageMark {
    /// Whether lists of both marks have the same pages.
    pub fn is_same(self, other: Self) -> bool {
        self.is_known() && self.version == other.version
    }

    /// Whether the list has a mark.
    pub fn is_known(self) -> bool {
        self.version != 0
    }

    /// No page of the list has a higher number; for a mark that is known.
    pub fn highest(self) -> PageId {
        PageId(self.highest)
    }
}

impl PageList {
    /// Adds pages at the end.
    pub fn extend(&mut self, pages: impl Iterator<Item = PageId>) {
        let before = self.pages.len();
        self.pages.extend(pages);
        if self.pages.len() > before {
            self.renew();
        }
    }

    /// Takes out the pages behind the first `keep`.
    pub fn take_after(&mut self, keep: usize) -> Vec<PageId> {
        let taken = self.pages.split_off(keep.min(self.pages.len()));
        if !taken.is_empty() {
            self.renew();
        }
        taken
    }

    /// The first `len` slots as kernels see them.
    pub fn view(&self, len: usize) -> HeadPages<'_> {
        HeadPages {
            pages: &self.pages,
            len,
            mark: self.mark,
        }
    }

    fn renew(&mut self) {
        self.mark = PageMark {
            version: NEXT.fetch_add(1, Ordering::Relaxed),
            highest: self.pages.iter().map(|page| page.0).max().unwrap_or(0),
        };
    }
}

impl Deref for PageList {
    type Target = [PageId];

    fn deref(&self) -> &[PageId] {
        &self.pages
    }
}

impl<'a> IntoIterator for &'a PageList {
    type Item = &'a PageId;
    type IntoIter = std::slice::Iter<'a, PageId>;

    fn into_iter(self) -> Self::IntoIter {
        self.pages.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pages(numbers: &[u32]) -> impl Iterator<Item = PageId> {
        numbers.iter().copied().map(PageId)
    }

    #[test]
    fn a_mark_changes_with_the_pages_alone() {
        let mut list = PageList::default();
        assert!(!list.view(0).mark.is_known());
        list.extend(pages(&[7, 3]));
        let first = list.view(0).mark;
        assert!(first.is_same(first) && first.highest() == PageId(7));
        list.extend(pages(&[]));
        assert!(list.take_after(2).is_empty());
        let copy = list.clone();
        assert!(list.view(40).mark.is_same(first) && copy.view(1).mark.is_same(first));
        list.extend(pages(&[9]));
        assert!(!list.view(0).mark.is_same(first) && copy.view(0).mark.is_same(first));
        assert_eq!(list.view(0).mark.highest(), PageId(9));
        assert_eq!(list.take_after(1), [PageId(3), PageId(9)]);
        assert_eq!(&list[..], [PageId(7)]);
        let unknown = HeadPages::new(&copy, 1).mark;
        assert!(!unknown.is_same(unknown) && !unknown.is_same(first));
    }
}
