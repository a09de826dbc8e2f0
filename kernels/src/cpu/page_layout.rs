//! Where the elements of a slot lie in the pages of the arena.
//!
//! A page holds 32 slots: keys as `[D][32]`, so that eight slots are one vector and a dot product
//! runs over `D` in order, then values as `[32][D]`, then, for scaled elements, the scales of 32
//! keys and of 32 values.

use super::element::Element;
use super::lanes::{Lanes, WIDTH};
use crate::backend::{PageId, PageShape};

/// Slots of one page.
pub(crate) const SLOTS: usize = PageShape::SLOTS;

/// Elements of a page of head size `dim`.
pub(crate) const fn page_len<T: Element>(dim: usize) -> usize {
    let scales = if T::SCALED {
        2 * SLOTS * size_of::<u16>() / size_of::<T>()
    } else {
        0
    };
    2 * SLOTS * dim + scales
}

/// Element of a slot's first key; the others follow at distance [`SLOTS`].
pub(crate) fn key_offset<T: Element>(dim: usize, pages: &[PageId], slot: usize) -> usize {
    pages[slot / SLOTS].0 as usize * page_len::<T>(dim) + slot % SLOTS
}

/// Element of a slot's first value; the others follow.
pub(crate) fn value_offset<T: Element>(dim: usize, pages: &[PageId], slot: usize) -> usize {
    pages[slot / SLOTS].0 as usize * page_len::<T>(dim) + (SLOTS + slot % SLOTS) * dim
}

/// Element where the scale of a slot's key is stored, of scaled elements; that of its value is
/// [`SLOTS`] halves behind.
pub(crate) fn scale_offset<T: Element>(dim: usize, pages: &[PageId], slot: usize) -> usize {
    let half = size_of::<u16>() / size_of::<T>();
    pages[slot / SLOTS].0 as usize * page_len::<T>(dim) + 2 * SLOTS * dim + slot % SLOTS * half
}

/// Reads one slot as f32, `D` values each.
///
/// # Safety
/// The slot's page is in the table and in the arena that begins at `start`; key and value have
/// `dim` values.
#[inline(always)]
pub(crate) unsafe fn read_slot<T: Element, L: Lanes>(
    start: *const T,
    dim: usize,
    table: &[PageId],
    slot: usize,
    key: &mut [f32],
    value: &mut [f32],
) {
    // SAFETY: by the caller's contract; `dim` is a multiple of eight, so all vectors lie inside.
    unsafe {
        let keys = start.add(key_offset::<T>(dim, table, slot));
        let values = start.add(value_offset::<T>(dim, table, slot));
        let (mut key_scale, mut value_scale) = (1.0, 1.0);
        if T::SCALED {
            let scales = start.add(scale_offset::<T>(dim, table, slot)).cast::<u16>();
            key_scale = half::f16::from_bits(*scales).to_f32();
            value_scale = half::f16::from_bits(*scales.add(SLOTS)).to_f32();
        }
        for d in (0..dim).step_by(WIDTH) {
            T::load::<L>(values.add(d))
                .mul(L::splat(value_scale))
                .store(value.as_mut_ptr().add(d));
            let mut lanes = [T::default(); WIDTH];
            for (i, x) in lanes.iter_mut().enumerate() {
                *x = *keys.add((d + i) * SLOTS);
            }
            T::load::<L>(lanes.as_ptr())
                .mul(L::splat(key_scale))
                .store(key.as_mut_ptr().add(d));
        }
    }
}
