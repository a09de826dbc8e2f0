//! Slots as they are stored, from the pages to the host and back.

use std::sync::Mutex;

use super::element::Element;
use super::exec::Exec;
use super::page_layout::SLOTS;
use super::page_writer::with_writer;
use super::pages::{CpuPages, with_arena};
use super::slots::disjoint;
use crate::backend::HeadPages;
use crate::error::Result;
use crate::stored::{StoredParts, check_bytes};

/// Slots of one page among those of a head.
struct PageSlots {
    /// Which page of the head's table.
    page: usize,
    /// The first of them.
    first: usize,
    /// How many there are.
    count: usize,
}

fn pages_of(len: usize) -> impl Iterator<Item = PageSlots> {
    (0..len.div_ceil(SLOTS)).map(move |page| PageSlots {
        page,
        first: page * SLOTS,
        count: SLOTS.min(len - page * SLOTS),
    })
}

/// Copies slots out of a page to where they lie in the bytes of their head.
fn save_page<T: Element>(
    page: &[T],
    dim: usize,
    at: &PageSlots,
    parts: &StoredParts,
    out: &mut [u8],
) {
    let (row, size) = (dim * size_of::<T>(), size_of::<T>());
    let keys = &mut out[parts.keys.clone()][at.first * row..][..at.count * row];
    for (slot, key) in keys.chunks_exact_mut(row).enumerate() {
        let elements = page[slot..].iter().step_by(SLOTS);
        for (to, x) in key.chunks_exact_mut(size).zip(elements) {
            to.copy_from_slice(bytemuck::bytes_of(x));
        }
    }
    let values = &page[SLOTS * dim..][..at.count * dim];
    out[parts.values.clone()][at.first * row..][..at.count * row]
        .copy_from_slice(bytemuck::cast_slice(values));
    if T::SCALED {
        let scales: &[u8] = bytemuck::cast_slice(&page[2 * SLOTS * dim..]);
        let (first, bytes) = (2 * at.first, 2 * at.count);
        out[parts.key_scales.clone()][first..][..bytes].copy_from_slice(&scales[..bytes]);
        out[parts.value_scales.clone()][first..][..bytes]
            .copy_from_slice(&scales[2 * SLOTS..][..bytes]);
    }
}

/// Copies slots into a page from where they lie in the bytes of their head.
fn load_page<T: Element>(
    page: &mut [T],
    dim: usize,
    at: &PageSlots,
    parts: &StoredParts,
    from: &[u8],
) {
    let (row, size) = (dim * size_of::<T>(), size_of::<T>());
    let keys = &from[parts.keys.clone()][at.first * row..][..at.count * row];
    for (slot, key) in keys.chunks_exact(row).enumerate() {
        let elements = page[slot..].iter_mut().step_by(SLOTS);
        for (to, x) in elements.zip(key.chunks_exact(size)) {
            *to = bytemuck::pod_read_unaligned(x);
        }
    }
    let values: &mut [u8] = bytemuck::cast_slice_mut(&mut page[SLOTS * dim..][..at.count * dim]);
    values.copy_from_slice(&from[parts.values.clone()][at.first * row..][..at.count * row]);
    if T::SCALED {
        let scales: &mut [u8] = bytemuck::cast_slice_mut(&mut page[2 * SLOTS * dim..]);
        let (first, bytes) = (2 * at.first, 2 * at.count);
        scales[..bytes].copy_from_slice(&from[parts.key_scales.clone()][first..][..bytes]);
        scales[2 * SLOTS..][..bytes]
            .copy_from_slice(&from[parts.value_scales.clone()][first..][..bytes]);
    }
}

/// See [`Cache::save_slots`](crate::backend::Cache::save_slots).
pub(crate) fn save_slots(
    exec: Exec<'_>,
    pages: &CpuPages,
    heads: &[HeadPages<'_>],
    out: &mut [u8],
) -> Result<()> {
    let (op, shape) = ("save_slots", pages.shape());
    check_bytes(op, shape, heads, out.len())?;
    let (mut rest, mut tasks) = (out, Vec::with_capacity(heads.len()));
    for head in heads {
        pages.check(op, head, head.len)?;
        let parts = StoredParts::of(shape, head.len);
        let (own, others) = rest.split_at_mut(parts.bytes());
        rest = others;
        tasks.push((head, parts, Mutex::new(own)));
    }
    exec.run_items(tasks.len(), true, &|index| {
        let (head, parts, out) = &tasks[index];
        let mut out = out.lock().expect("no task panics");
        with_arena!(pages.data(), arena => {
            let dim = shape.head_dim;
            for at in pages_of(head.len) {
                let page = arena.page(head.pages[at.page], dim);
                save_page(page, dim, &at, parts, &mut out);
            }
        });
    });
    Ok(())
}

/// See [`Cache::load_slots`](crate::backend::Cache::load_slots).
pub(crate) fn load_slots(
    exec: Exec<'_>,
    pages: &mut CpuPages,
    heads: &[HeadPages<'_>],
    from: &[u8],
) -> Result<()> {
    let (op, shape) = ("load_slots", pages.shape());
    check_bytes(op, shape, heads, from.len())?;
    let (mut rest, mut tasks) = (from, Vec::with_capacity(heads.len()));
    for head in heads {
        pages.check(op, head, head.len)?;
        let parts = StoredParts::of(shape, head.len);
        let (own, others) = rest.split_at(parts.bytes());
        rest = others;
        tasks.push((head, parts, own));
    }
    let used = |head: &HeadPages<'_>| head.len.div_ceil(SLOTS);
    let apart = disjoint(heads.iter().map(|head| &head.pages[..used(head)]));
    let writer = pages.writer();
    exec.run_items(tasks.len(), apart, &|index| {
        let (head, parts, from) = &tasks[index];
        with_writer!(&writer, w => {
            for at in pages_of(head.len) {
                let first = head.pages[at.page].0 as usize;
                // SAFETY: the table was checked, and items run at the same time only when they
                // share no page.
                let page = unsafe { w.page(first) };
                load_page(page, w.dim, &at, parts, from);
            }
        });
    });
    Ok(())
}
