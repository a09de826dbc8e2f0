//! A heap for latent memories: which bytes of one allocation belong to which memory, and what moves
//! when no gap is large enough.
//!
//! A memory is one block, and memories differ in size. So what is free may lie in gaps too small
//! for the next one. Then all blocks are moved to the front, where a launch finds them by their ids
//! as before. What fits by its size is never refused.

use std::ops::Range;

use crate::error::{Error, Result};

/// Blocks begin and end at multiples of this many bytes.
const UNIT: usize = 16;

/// Which bytes of an allocation are taken.
pub(super) struct LatentHeap {
    bytes: usize,
    /// In order.
    blocks: Vec<Range<usize>>,
}

/// A block that moves to the front.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Move {
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) bytes: usize,
}

impl LatentHeap {
    /// A heap of `bytes` bytes, all free.
    pub(super) fn new(bytes: usize) -> Self {
        Self {
            bytes,
            blocks: Vec::new(),
        }
    }

    /// Takes a block of `bytes` bytes; returns where it begins. `None`: no gap is so large, and
    /// nothing was taken.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] when all gaps together are too small.
    pub(super) fn alloc(&mut self, bytes: usize) -> Result<Option<usize>> {
        let want = bytes.next_multiple_of(UNIT);
        let taken: usize = self.blocks.iter().map(ExactSizeIterator::len).sum();
        if want > self.bytes - taken {
            return Err(Error::OutOfMemory {
                what: "a latent memory",
                bytes,
            });
        }
        let mut start = 0;
        let mut place = self.blocks.len();
        for (index, block) in self.blocks.iter().enumerate() {
            if block.start - start >= want {
                place = index;
                break;
            }
            start = block.end;
        }
        if self.bytes - start < want {
            return Ok(None);
        }
        self.blocks.insert(place, start..start + want);
        Ok(Some(start))
    }

    /// Frees the block that begins at `start`.
    pub(super) fn free(&mut self, start: usize) {
        self.blocks.retain(|block| block.start != start);
    }

    /// Moves all blocks to the front; returns the moves in the order in which they can be done.
    pub(super) fn close_gaps(&mut self) -> Vec<Move> {
        let (mut end, mut moves) = (0, Vec::new());
        for block in &mut self.blocks {
            let (from, bytes) = (block.start, block.len());
            if from != end {
                moves.push(Move {
                    from,
                    to: end,
                    bytes,
                });
                *block = end..end + bytes;
            }
            end += bytes;
        }
        moves
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn padded(bytes: usize) -> usize {
        bytes.next_multiple_of(UNIT)
    }

    /// One block more, of `bytes` bytes, beside those in `held`: start and size of each.
    fn alloc(
        heap: &mut LatentHeap,
        held: &mut Vec<(usize, usize)>,
        bytes: usize,
    ) -> std::result::Result<(), TestCaseError> {
        let free = 640 - held.iter().map(|block| padded(block.1)).sum::<usize>();
        match heap.alloc(bytes) {
            Err(_) => prop_assert!(padded(bytes) > free),
            Ok(Some(start)) => held.push((start, bytes)),
            Ok(None) => {
                for Move { from, to, bytes } in heap.close_gaps() {
                    prop_assert!(to < from);
                    let block = held.iter_mut().find(|(start, _)| *start == from);
                    let block = block.expect("a block");
                    prop_assert_eq!(padded(block.1), bytes);
                    block.0 = to;
                }
                let start = heap.alloc(bytes).expect("it fits").expect("in one piece");
                held.push((start, bytes));
            }
        }
        Ok(())
    }

    proptest! {
        /// Whatever comes and goes: blocks never overlap, and what fits by its size is given a
        /// place.
        #[test]
        fn what_fits_is_never_refused(
            ops in prop::collection::vec((0usize..6, 1usize..200), 1..120)
        ) {
            let mut heap = LatentHeap::new(640);
            let mut held: Vec<(usize, usize)> = Vec::new();
            for (which, bytes) in ops {
                if which < held.len() {
                    heap.free(held.swap_remove(which).0);
                } else {
                    alloc(&mut heap, &mut held, bytes)?;
                }
                held.sort_unstable();
                prop_assert!(held.windows(2).all(|two| two[0].0 + two[0].1 <= two[1].0));
                prop_assert!(held.last().is_none_or(|(start, bytes)| start + bytes <= 640));
            }
        }
    }
}
