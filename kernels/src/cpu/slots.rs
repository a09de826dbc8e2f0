//! Operations that only move, rotate, read or write slots.

use super::exec::Exec;
use super::lanes::{Kernel, Lanes, dispatch};
use super::page_layout::{SLOTS, read_slot};
use super::page_writer::{PageWriter, with_writer};
use super::pages::{CpuPages, with_arena};
use crate::backend::{HeadPages, PageId, RotateItem};
use crate::error::{Error, Result};
use crate::select::KeptLists;

/// Whether no page occurs twice, so that items may be worked on at the same time.
pub(crate) fn disjoint<'a>(tables: impl Iterator<Item = &'a [PageId]>) -> bool {
    let mut pages: Vec<PageId> = tables.flatten().copied().collect();
    pages.sort_unstable();
    pages.windows(2).all(|pair| pair[0] != pair[1])
}

/// See [`Boundary::compact`](crate::backend::Boundary::compact).
pub(crate) fn compact(
    exec: Exec<'_>,
    pages: &mut CpuPages,
    heads: &[HeadPages<'_>],
    kept: &KeptLists,
) -> Result<()> {
    let op = "compact";
    kept.check(op, heads)?;
    for head in heads {
        pages.check(op, head, head.len)?;
    }
    let apart = disjoint(
        heads
            .iter()
            .map(|head| &head.pages[..head.len.div_ceil(SLOTS)]),
    );
    let writer = pages.writer();
    exec.run_items(heads.len(), apart, &|i| {
        // SAFETY: tables were checked, lists are within them, and items run at the same time only
        // when they share no page.
        with_writer!(&writer, w => unsafe { w.compact(heads[i].pages, &kept.lists()[i]) });
    });
    let notes = pages.notes_mut();
    heads
        .iter()
        .zip(kept.lists())
        .for_each(|(head, keep)| notes.compact(head.pages, keep));
    Ok(())
}

/// One item of `rotate_keys`.
struct Rotate<'a, 'b> {
    writer: &'a PageWriter<'b>,
    item: &'a RotateItem<'a>,
    inv_freq: &'a [f32],
}

impl Kernel for Rotate<'_, '_> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Self {
            writer,
            item,
            inv_freq,
        } = self;
        // SAFETY: `rotate_keys` checked the tables and runs items at the same time only when they
        // share no page.
        with_writer!(writer, w => unsafe { w.rotate::<L>(item.slots.pages, item.delta, inv_freq) });
    }
}

/// See [`Cache::rotate_keys`](crate::backend::Cache::rotate_keys). The angle is a product in f64.
pub(crate) fn rotate_keys(
    exec: Exec<'_>,
    pages: &mut CpuPages,
    items: &[RotateItem<'_>],
    inv_freq: &[f32],
) -> Result<()> {
    let op = "rotate_keys";
    let want = pages.head_dim() / 2;
    if inv_freq.len() != want {
        return Err(Error::Shape {
            op,
            what: "inv_freq",
            got: inv_freq.len(),
            want,
        });
    }
    for item in items {
        pages.check(op, &item.slots, item.slots.len)?;
        if item.delta.len() != item.slots.len {
            return Err(Error::Shape {
                op,
                what: "delta",
                got: item.delta.len(),
                want: item.slots.len,
            });
        }
    }
    let apart = disjoint(
        items
            .iter()
            .map(|item| &item.slots.pages[..item.slots.len.div_ceil(SLOTS)]),
    );
    let writer = pages.writer();
    exec.run_items(items.len(), apart, &|i| {
        dispatch(
            exec.level,
            Rotate {
                writer: &writer,
                item: &items[i],
                inv_freq,
            },
        );
    });
    Ok(())
}

/// Arguments of `write_slots`, checked.
struct Write<'a> {
    writer: PageWriter<'a>,
    pages: &'a [PageId],
    first: usize,
    keys: &'a [f32],
    values: &'a [f32],
}

impl Kernel for Write<'_> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        with_writer!(&self.writer, w => {
            let keys = self.keys.chunks_exact(w.dim);
            for (i, (key, value)) in keys.zip(self.values.chunks_exact(w.dim)).enumerate() {
                // SAFETY: `write_slots` checked the table and holds the arena exclusively.
                unsafe { w.write::<L>(self.pages, self.first + i, key, value) };
            }
        });
    }
}

/// Arguments of `read_slots`, checked.
struct Read<'a> {
    pages: &'a CpuPages,
    table: &'a [PageId],
    slots: &'a [u32],
    keys: &'a mut [f32],
    values: &'a mut [f32],
}

impl Kernel for Read<'_> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let dim = self.pages.head_dim();
        with_arena!(self.pages.data(), arena => {
            let rows = self.keys.chunks_exact_mut(dim).zip(self.values.chunks_exact_mut(dim));
            for (&slot, (key, value)) in self.slots.iter().zip(rows) {
                let slot = slot as usize;
                // SAFETY: `read_slots` checked the table.
                unsafe { read_slot::<_, L>(arena.start(), dim, self.table, slot, key, value) };
            }
        });
    }
}

/// See [`Cache::write_slots`](crate::backend::Cache::write_slots).
pub(crate) fn write_slots(
    exec: Exec<'_>,
    pages: &mut CpuPages,
    head: HeadPages<'_>,
    first: usize,
    keys: &[f32],
    values: &[f32],
) -> Result<()> {
    let op = "write_slots";
    let dim = pages.head_dim();
    if !keys.len().is_multiple_of(dim) {
        return Err(Error::Multiple {
            op,
            what: "length of keys",
            got: keys.len(),
            multiple: dim,
        });
    }
    if values.len() != keys.len() {
        return Err(Error::Shape {
            op,
            what: "values",
            got: values.len(),
            want: keys.len(),
        });
    }
    let end = first.saturating_add(keys.len() / dim);
    pages.check(op, &head, end)?;
    let writer = pages.writer();
    dispatch(
        exec.level,
        Write {
            writer,
            pages: head.pages,
            first,
            keys,
            values,
        },
    );
    Ok(())
}

/// See [`Cache::read_slots`](crate::backend::Cache::read_slots).
pub(crate) fn read_slots(
    exec: Exec<'_>,
    pages: &CpuPages,
    head: HeadPages<'_>,
    slots: &[u32],
    keys: &mut [f32],
    values: &mut [f32],
) -> Result<()> {
    let op = "read_slots";
    let want = slots.len() * pages.head_dim();
    for (what, got) in [("keys", keys.len()), ("values", values.len())] {
        if got != want {
            return Err(Error::Shape {
                op,
                what,
                got,
                want,
            });
        }
    }
    pages.check(op, &head, head.len)?;
    if let Some(&slot) = slots.iter().find(|&&slot| slot as usize >= head.len) {
        return Err(Error::Index {
            op,
            what: "slot",
            index: slot as usize,
            len: head.len,
        });
    }
    dispatch(
        exec.level,
        Read {
            pages,
            table: head.pages,
            slots,
            keys,
            values,
        },
    );
    Ok(())
}
