//! Notes of slots, beside the arena.

use super::page_layout::SLOTS;
use crate::backend::PageId;
use crate::score::Noted;

/// Note and position of every slot of an arena: slot `s` of page `p` at `p * 32 + s`.
pub(crate) struct Notes(Vec<[u32; 2]>);

impl Notes {
    /// Zeroed by the operating system, as pages are.
    pub(crate) fn zeroed(pages: usize) -> Self {
        Self(vec![[0; 2]; pages * SLOTS])
    }

    fn at(table: &[PageId], slot: usize) -> usize {
        table[slot / SLOTS].0 as usize * SLOTS + slot % SLOTS
    }

    /// Note and position of a slot.
    pub(crate) fn get(&self, table: &[PageId], slot: usize) -> Noted {
        let [note, position] = self.0[Self::at(table, slot)];
        Noted { note, position }
    }

    /// Keeps a note and a position with a slot.
    pub(crate) fn set(&mut self, table: &[PageId], slot: usize, note: u32, position: u32) {
        self.0[Self::at(table, slot)] = [note, position];
    }

    /// Moves the notes of slots `keep` to the front.
    pub(crate) fn compact(&mut self, table: &[PageId], keep: &[u32]) {
        for (to, &from) in keep
            .iter()
            .enumerate()
            .skip_while(|&(to, &from)| to == from as usize)
        {
            self.0[Self::at(table, to)] = self.0[Self::at(table, from as usize)];
        }
    }
}
