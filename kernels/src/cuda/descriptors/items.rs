//! The items of a call, and the arrays that they point into.

use super::Descriptors;
use crate::cuda::device::Device;
use crate::cuda::launch::{Item, Ptr, PtrMut};
use crate::cuda::stream::{PageTable, Stream};
use crate::shapes::{HeadPages, PageShape};

/// Items of a call and the arrays that they point into, while they are gathered.
#[derive(Default)]
pub(crate) struct Items<'a> {
    pub(crate) items: Vec<Item>,
    /// Page tables that are uploaded.
    tables: Vec<u32>,
    /// Page tables that may be on the device already, by the index that items have for theirs;
    /// then there are no others.
    known: Vec<PageTable<'a>>,
    pub(crate) first_visible: Vec<u32>,
    pub(crate) floats: Vec<f32>,
    /// States of latent memories.
    pub(crate) states: Vec<PtrMut<f32>>,
}

/// [`Items`] in the [`Descriptors`] of a call.
pub(crate) struct DeviceItems {
    pub(crate) items: Ptr<Item>,
    /// Items, padding included.
    pub(crate) count: usize,
    pub(crate) tables: Ptr<u32>,
    pub(crate) first_visible: Ptr<u32>,
    pub(crate) floats: Ptr<f32>,
    pub(crate) states: Ptr<PtrMut<f32>>,
}

/// A page table that may be on the device already, as an item names it.
pub(crate) struct KnownTable {
    /// Its index, until the items are pushed.
    pub(crate) index: u32,
    /// Slots of the first page that are before the call's.
    pub(crate) skipped: u32,
}

impl<'a> Items<'a> {
    /// Adds the page table of `slots` slots of a head; returns where it begins.
    pub(crate) fn table(&mut self, head: &HeadPages<'_>, slots: usize) -> u32 {
        let first = self.tables.len() as u32;
        let pages = &head.pages[..slots.div_ceil(PageShape::SLOTS)];
        self.tables.extend(pages.iter().map(|page| page.0));
        first
    }

    /// Adds the page table of `slots` slots of a head of which a call begins with slot `first`.
    pub(crate) fn known_table(
        &mut self,
        head: &HeadPages<'a>,
        first: usize,
        slots: usize,
    ) -> KnownTable {
        let pages = &head.pages[..slots.div_ceil(PageShape::SLOTS)];
        self.known.push(PageTable {
            pages,
            mark: head.mark,
            skip: (first / PageShape::SLOTS).min(pages.len()),
        });
        KnownTable {
            index: self.known.len() as u32 - 1,
            skipped: (first % PageShape::SLOTS) as u32,
        }
    }

    /// Most rows of an item.
    pub(crate) fn most_rows(&self) -> usize {
        self.items.iter().map(|item| item.rows).max().unwrap_or(0) as usize
    }

    /// Most slots of an item.
    pub(crate) fn most_slots(&self) -> usize {
        self.items.iter().map(|item| item.len).max().unwrap_or(0) as usize
    }

    /// Adds all arrays to the call's descriptors. In a step, items and what has at most one entry
    /// for each are padded to the bucket's number of items, with items of no rows and no slots,
    /// which kernels do nothing for.
    pub(crate) fn push<D: Device>(
        &mut self,
        descriptors: &mut Descriptors,
        stream: &Stream<D>,
    ) -> DeviceItems {
        let tables = self.push_tables(descriptors, stream);
        let count = descriptors.items(self.items.len());
        let entries = descriptors.bucket().map_or(0, |_| count);
        let states: Vec<u64> = self.states.iter().map(|state| state.address()).collect();
        DeviceItems {
            items: descriptors.push_padded(&self.items, count, Item::padding()),
            count,
            tables,
            first_visible: descriptors.push_padded(&self.first_visible, entries, 0),
            floats: descriptors.push(&self.floats),
            states: descriptors.push_padded(&states, entries, 0).cast(),
        }
    }

    /// Gives items the places of their tables, on the device where a step has them there, else in
    /// what is uploaded.
    fn push_tables<D: Device>(
        &mut self,
        descriptors: &mut Descriptors,
        stream: &Stream<D>,
    ) -> Ptr<u32> {
        if descriptors.bucket().is_some()
            && !self.known.is_empty()
            && let Some(placed) = stream.place(&self.known)
        {
            for item in &mut self.items {
                item.table = placed.first[item.table as usize];
            }
            return placed.tables;
        }

        let mut begins = Vec::with_capacity(self.known.len());
        for PageTable { pages, skip, .. } in &self.known {
            begins.push(self.tables.len() as u32);
            self.tables.extend(pages[*skip..].iter().map(|page| page.0));
        }
        let tail = descriptors.push_tail(&self.tables);
        for item in &mut self.items {
            let begin = begins.get(item.table as usize).copied();
            item.table = begin.unwrap_or(item.table) + tail.first;
        }
        tail.array
    }
}
