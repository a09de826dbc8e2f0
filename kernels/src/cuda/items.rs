//! What is passed to kernels for each KV head of each sequence: `struct Item` of
//! `kernels/cu/common.cuh`.

use std::ops::Range;

use bytemuck::{Pod, Zeroable};

use super::slots::Pages;
use super::tables::Table;
use super::{Device, Pack, Part, Queue};
use crate::backend::{AttentionItem, HeadPages, PageShape, QkvShape};
use crate::error::{Error, Result};
use crate::latent::LatentKind;

/// No entry.
pub(super) const NONE: u32 = u32::MAX;

/// See `kernels/cu/common.cuh`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub(super) struct Item {
    pub(super) row: u32,
    pub(super) rows: u32,
    pub(super) kv_head: u32,
    pub(super) len: u32,
    pub(super) table: u32,
    pub(super) first: u32,
    pub(super) extra: u32,
    pub(super) count: u32,
    pub(super) output: u32,
    pub(super) flags: u32,
}

impl Item {
    pub(super) fn new(rows: &Range<usize>, kv_head: usize) -> Self {
        Self {
            row: rows.start as u32,
            rows: rows.len() as u32,
            kv_head: kv_head as u32,
            first: NONE,
            ..Self::zeroed()
        }
    }
}

/// Items of a call and the arrays that they point into.
#[derive(Default)]
pub(super) struct Items<'a> {
    pub(super) items: Vec<Item>,
    pub(super) tables: Vec<u32>,
    /// Tables that may be on the device already, by the index that items have for theirs; then
    /// there are no others.
    known: Vec<Table<'a>>,
    pub(super) first_visible: Vec<u32>,
    pub(super) floats: Vec<f32>,
    /// Addresses of latent memories.
    pub(super) states: Vec<u64>,
}

/// [`Items`] in a [`Pack`].
pub(super) struct Packed {
    pub(super) items: Part,
    /// Items, padding included.
    pub(super) count: u32,
    pub(super) tables: Part,
    pub(super) first_visible: Part,
    pub(super) floats: Part,
    pub(super) states: Part,
}

impl<'a> Items<'a> {
    /// Adds the page table of `slots` slots of a head; returns where it begins.
    pub(super) fn table(&mut self, head: &HeadPages<'_>, slots: usize) -> u32 {
        let first = self.tables.len() as u32;
        self.tables.extend(
            head.pages[..slots.div_ceil(PageShape::SLOTS)]
                .iter()
                .map(|page| page.0),
        );
        first
    }

    /// Adds the page table of `slots` slots of a head of which a call begins with slot `first`;
    /// returns its index, and how many slots of the page that it begins with are before that.
    pub(super) fn known(&mut self, head: &HeadPages<'a>, first: usize, slots: usize) -> (u32, u32) {
        let pages = &head.pages[..slots.div_ceil(PageShape::SLOTS)];
        self.known.push(Table {
            pages,
            skip: (first / PageShape::SLOTS).min(pages.len()),
        });
        (
            self.known.len() as u32 - 1,
            (first % PageShape::SLOTS) as u32,
        )
    }

    /// Adds an item of an attention call after checking it.
    pub(super) fn attend<D: Device>(
        &mut self,
        op: &'static str,
        shape: QkvShape,
        pages: &Pages<D>,
        attend: &AttentionItem<'a>,
    ) -> Result<()> {
        let (rows, len) = (attend.rows.len(), attend.slots.len);
        if attend.kv_head >= shape.kv_heads {
            return Err(Error::Index {
                op,
                what: "KV head",
                index: attend.kv_head,
                len: shape.kv_heads,
            });
        }
        if rows > len {
            return Err(Error::Shape {
                op,
                what: "slots of an item",
                got: len,
                want: rows,
            });
        }
        pages.check(op, &attend.slots, len)?;
        let mut item = Item {
            len: len as u32,
            ..Item::new(&attend.rows, attend.kv_head)
        };
        if let Some(first) = attend.first_visible {
            super::exactly(op, "first_visible", first.len(), rows)?;
            let sees_nothing = |(i, &first): (usize, &u32)| first as usize > len - rows + i;
            if let Some((i, &first)) = first.iter().enumerate().find(|&row| sees_nothing(row)) {
                return Err(Error::Index {
                    op,
                    what: "first visible slot",
                    index: first as usize,
                    len: len - rows + i + 1,
                });
            }
            item.first = self.first_visible.len() as u32;
            self.first_visible.extend_from_slice(first);
        }
        if let Some(head) = attend.centroids {
            let (latent, address) = pages.latent(op, head)?;
            let LatentKind::Centroids { most } = latent.kind else {
                return Err(Error::Index {
                    op,
                    what: "centroids of an associative memory",
                    index: 0,
                    len: 0,
                });
            };
            (item.extra, item.count) = (self.states.len() as u32, most as u32);
            self.states.push(address);
        }
        item.table = self.known(&attend.slots, 0, len).0;
        self.items.push(item);
        Ok(())
    }

    /// Packs all arrays. In a step, items and what has at most one entry for each are padded to the
    /// bucket's number of items, with items of no rows and no slots, which kernels do nothing for.
    pub(super) fn pack<D: Device>(&mut self, pack: &mut Pack, queue: &Queue<D>) -> Packed {
        let tables = self.place_tables(pack, queue);
        let count = pack.items(self.items.len());
        let entries = if pack.shape.is_some() { count } else { 0 };
        Packed {
            items: pack.push_padded(&self.items, count, Item::new(&(0..0), 0)),
            count: count as u32,
            tables,
            first_visible: pack.push_padded(&self.first_visible, entries, 0),
            floats: pack.push(&self.floats),
            states: pack.push_padded(&self.states, entries, 0),
        }
    }

    /// Gives items the places of their tables, on the device where a step has them there, else in
    /// what is uploaded.
    fn place_tables<D: Device>(&mut self, pack: &mut Pack, queue: &Queue<D>) -> Part {
        if pack.shape.is_some()
            && !self.known.is_empty()
            && let Some((places, address)) = queue.place(&self.known)
        {
            self.items
                .iter_mut()
                .for_each(|item| item.table = places[item.table as usize]);
            return Part::Resident(address);
        }
        let mut begins = Vec::with_capacity(self.known.len());
        for Table { pages, skip } in &self.known {
            begins.push(self.tables.len() as u32);
            self.tables.extend(pages[*skip..].iter().map(|page| page.0));
        }
        let (tables, first) = pack.push_any(&self.tables);
        for item in &mut self.items {
            item.table = begins
                .get(item.table as usize)
                .copied()
                .unwrap_or(item.table)
                + first as u32;
        }
        tables
    }
}
