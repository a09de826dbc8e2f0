//! Page tables that stay on the device.
//!
//! A step of decoding names the page tables of all its heads in every layer. They are longer than
//! all else that it uploads, and hardly change: a head takes a page every 32 tokens, and a boundary
//! gives some back. So they lie in rows of one array on the device, the host keeps a copy of each
//! row, and what differs from it goes with the step's upload, as pairs of place and page that a
//! kernel puts where they belong before any other reads them.
//!
//! A row is found by its table's first page, which belongs to one head at a time. That is a guess
//! and nothing depends on it: a table whose mark is not that of its row is compared with it, entry
//! by entry, and where the row is needed as it is by an earlier call of the same step, or where
//! there is no room, the call's tables go with its other descriptors, as those of other calls do.
//!
//! Every call of every layer names the tables of all heads, and few of them have changed. So a row
//! is found and a mark compared without a search.

use crate::shapes::{PageId, PageMark};

/// Entries of the array for each page of an arena: rows are as long as the next power of two, four
/// at least, so that this holds a row for every table even where each has one page.
pub(super) const ENTRIES_PER_PAGE: usize = 4;
/// Entries of the shortest row.
const SHORTEST: usize = 4;

/// An entry that has to be written: its place in the array, and the page.
pub(super) type Change = [u32; 2];

/// A head's page table, as a call names it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PageTable<'a> {
    /// From the first page on.
    pub(crate) pages: &'a [PageId],
    /// What they are known by.
    pub(crate) mark: PageMark,
    /// Pages that the call begins behind.
    pub(crate) skip: usize,
}

/// Which rows there are, and what they hold once all changes have arrived.
#[derive(Default)]
pub(super) struct PageTables {
    /// By the first page of the table that each was made for: one place for every page.
    rows: Vec<Option<Row>>,
    /// Those pages.
    firsts: Vec<u32>,
    /// Places of rows that are free, by the logarithm of their length.
    free: [Vec<u32>; 32],
    /// Entries that were ever part of a row, and all there are.
    used: usize,
    capacity: usize,
    /// Counts steps.
    step: u64,
    /// What has to be written before the step's calls: place and page.
    changes: Vec<Change>,
    /// There was no room in the last step for rows that it needed.
    crowded: bool,
}

struct Row {
    at: u32,
    entries: Vec<u32>,
    /// What the table is known by that the first `known` entries are of.
    mark: PageMark,
    known: usize,
    /// The step that used it last, and how many entries of it.
    step: u64,
    used: usize,
}

impl Row {
    fn class(&self) -> usize {
        self.entries.len().trailing_zeros() as usize
    }
}

impl PageTables {
    /// An array of `capacity` entries, of which nothing is known.
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            capacity,
            ..Self::default()
        }
    }

    /// Entries.
    pub(super) fn capacity(&self) -> usize {
        self.capacity
    }

    /// A step begins. Changes of the one before that were not taken were never made: then nothing
    /// is known of the array.
    pub(super) fn begin(&mut self) {
        if self.crowded || !self.changes.is_empty() {
            self.forget();
        }
        self.step += 1;
    }

    /// Nothing is known of the array any more.
    pub(super) fn forget(&mut self) {
        *self = Self {
            capacity: self.capacity,
            step: self.step,
            ..Self::default()
        };
    }

    /// What has to be written before any call that was given places reads them.
    pub(super) fn take_changes(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.changes)
    }

    /// Where the tables of a call begin in the array; `None` when one of them cannot be there now.
    pub(super) fn place(&mut self, tables: &[PageTable<'_>]) -> Option<Vec<u32>> {
        tables
            .iter()
            .map(|table| Some(self.row(table)? + table.skip as u32))
            .collect()
    }

    fn row(&mut self, table: &PageTable<'_>) -> Option<u32> {
        let pages = table.pages;
        let Some(first) = pages.first() else {
            return Some(0);
        };
        let (step, place) = (self.step, first.0 as usize);
        if place >= self.rows.len() {
            self.rows.resize_with(place + 1, || None);
        }
        if let Some(row) = &mut self.rows[place]
            && row.mark.is_same(table.mark)
            && pages.len() <= row.known
        {
            let used = if row.step == step { row.used } else { 0 };
            (row.step, row.used) = (step, used.max(pages.len()));
            return Some(row.at);
        }
        self.make_room(place, pages.len())?;
        let row = self.rows[place].as_mut()?;
        let needed = if row.step == step { row.used } else { 0 };
        let differs = |(entry, page): (&u32, &PageId)| *entry != page.0;
        if row
            .entries
            .iter()
            .zip(&pages[..needed.min(pages.len())])
            .any(differs)
        {
            return None;
        }
        for (index, (entry, page)) in row.entries.iter_mut().zip(pages).enumerate().skip(needed) {
            if *entry != page.0 {
                *entry = page.0;
                self.changes.push([row.at + index as u32, page.0]);
            }
        }
        (row.mark, row.known) = (table.mark, pages.len());
        (row.step, row.used) = (step, needed.max(pages.len()));
        Some(row.at)
    }

    /// A row at `place` of `len` entries at least; `None` where the step needs a shorter one as it
    /// is, or where there is no room.
    fn make_room(&mut self, place: usize, len: usize) -> Option<()> {
        let known = self.rows[place].as_ref();
        if known.is_some_and(|row| row.entries.len() >= len) {
            return Some(());
        }
        if known.is_some_and(|row| row.step == self.step) {
            return None;
        }
        match self.rows[place].take() {
            Some(row) => self.free[row.class()].push(row.at),
            None => self.firsts.push(place as u32),
        }
        let len = len.next_power_of_two().max(SHORTEST);
        let Some(at) = self.take(len) else {
            self.firsts.retain(|&first| first as usize != place);
            return None;
        };
        self.rows[place] = Some(Row {
            at,
            // No page has this number.
            entries: vec![u32::MAX; len],
            mark: PageMark::default(),
            known: 0,
            step: 0,
            used: 0,
        });
        Some(())
    }

    /// Room for a row of `len` entries, a power of two.
    fn take(&mut self, len: usize) -> Option<u32> {
        let class = len.trailing_zeros() as usize;
        if let Some(at) = self.find(class, len) {
            return Some(at);
        }
        // Rows that this step has not used so far may be those of heads that are gone.
        let Self {
            step, free, rows, ..
        } = self;
        self.firsts.retain(|&first| {
            let place = &mut rows[first as usize];
            if let Some(row) = place.take_if(|row| row.step != *step) {
                free[row.class()].push(row.at);
                return false;
            }
            true
        });
        let found = self.find(class, len);
        self.crowded |= found.is_none();
        found
    }

    fn find(&mut self, class: usize, len: usize) -> Option<u32> {
        if let Some(at) = self.free[class].pop() {
            return Some(at);
        }
        let at = self.used;
        if len > self.capacity - at {
            return None;
        }
        self.used += len;
        Some(at as u32)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::shapes::PageList;

    /// The array, as a kernel changes it.
    fn put(array: &mut [u32], tables: &mut PageTables) -> usize {
        let changes = tables.take_changes();
        changes
            .iter()
            .for_each(|&[at, page]| array[at as usize] = page);
        changes.len()
    }

    /// A table without a mark.
    fn unknown(pages: &[PageId]) -> PageTable<'_> {
        PageTable {
            pages,
            mark: PageMark::default(),
            skip: 0,
        }
    }

    fn pages(numbers: &[u32]) -> Vec<PageId> {
        numbers.iter().copied().map(PageId).collect()
    }

    #[test]
    fn only_what_changed_is_written() {
        let (mut tables, mut array) = (PageTables::new(64), vec![0; 64]);
        let mut step = |numbers: &[u32]| {
            tables.begin();
            let all = pages(numbers);
            let behind = PageTable {
                skip: 1,
                ..unknown(&all)
            };
            let at = tables.place(&[unknown(&all), behind]).expect("room");
            assert_eq!(at[1], at[0] + 1);
            let written = put(&mut array, &mut tables);
            assert_eq!(array[at[0] as usize..][..numbers.len()], *numbers);
            written
        };
        assert_eq!(step(&[7, 3, 9]), 3);
        assert_eq!(step(&[7, 3, 9]), 0);
        assert_eq!(step(&[7, 3, 9, 4]), 1, "a page was added");
        assert_eq!(step(&[7, 3]), 0, "a boundary gave pages back");
        assert_eq!(step(&[7, 3, 9, 5]), 1, "another page comes in its place");
        assert_eq!(step(&[7, 3, 9, 5, 1]), 5, "a longer row");
    }

    #[test]
    fn changes_that_were_not_made_are_made_anew() {
        let mut tables = PageTables::new(64);
        let all = pages(&[1, 2]);
        for _ in 0..3 {
            tables.begin();
            tables.place(&[unknown(&all)]).expect("room");
        }
        assert_eq!(tables.take_changes().len(), 2);
    }

    #[test]
    fn a_row_stays_as_a_step_needs_it() {
        let mut tables = PageTables::new(64);
        tables.begin();
        let mut place = |numbers: &[u32]| tables.place(&[unknown(&pages(numbers))]);
        place(&[1, 2]).expect("room");
        assert!(place(&[1, 3]).is_none(), "the second entry was needed");
        assert!(
            place(&[1, 2, 3]).is_some() && place(&[1, 2, 4]).is_none() && place(&[1, 2]).is_some()
        );
        assert!(
            place(&[1, 2, 3, 4, 5]).is_none(),
            "another row would take this one's place"
        );
    }

    /// What happens to a head between steps, and how much of its table a call names.
    #[derive(Debug, Clone, Copy)]
    struct Wanted {
        head: usize,
        /// Pages that it keeps, of those it had.
        keep: usize,
        /// Pages that it takes then.
        taken: usize,
        /// Whether the call knows the list's mark.
        is_known: bool,
        /// Pages that the call leaves out.
        less: usize,
    }

    fn wanted() -> impl Strategy<Value = Wanted> {
        let numbers = (0usize..6, 0usize..12, 0usize..4, any::<bool>(), 0usize..3);
        numbers.prop_map(|(head, keep, taken, is_known, less)| Wanted {
            head,
            keep,
            taken,
            is_known,
            less,
        })
    }

    fn steps() -> impl Strategy<Value = Vec<Vec<Wanted>>> {
        prop::collection::vec(prop::collection::vec(wanted(), 0..8), 1..40)
    }

    proptest! {
        /// Whatever heads come, grow, shrink and go, with pages that others had before, all tables
        /// of a step are read as they are, or refused.
        #[test]
        fn tables_are_what_was_asked_for(steps in steps()) {
            let (mut tables, mut array) = (PageTables::new(96), vec![0; 96]);
            let mut free: Vec<PageId> = (0..48).map(PageId).collect();
            let mut lists = vec![PageList::default(); 6];
            for step in steps {
                tables.begin();
                let mut placed = Vec::new();
                for wanted in step {
                    let list = &mut lists[wanted.head];
                    free.extend(list.take_after(wanted.keep));
                    let taken = wanted.taken.min(free.len());
                    list.extend(free.drain(..taken));
                    let head = list.view(0);
                    let len = head.pages.len().saturating_sub(wanted.less);
                    let mark = if wanted.is_known { head.mark } else { PageMark::default() };
                    let table = PageTable { pages: &head.pages[..len], mark, skip: 0 };
                    let at = tables.place(&[table]);
                    placed.push((head.pages[..len].to_vec(), at));
                }
                put(&mut array, &mut tables);
                for (pages, at) in placed {
                    let Some(at) = at else { continue };
                    let read = &array[at[0] as usize..][..pages.len()];
                    prop_assert!(read.iter().zip(&pages).all(|(read, page)| *read == page.0));
                }
            }
        }
    }
}
