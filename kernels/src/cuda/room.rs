//! Room for latent memories, allocated once: which part of it belongs to which memory, and what
//! moves when no gap is large enough.
//!
//! A memory is one piece, and memories differ in size. So what is free may lie in gaps too small
//! for the next one; then all of them are moved to the front, where a launch finds them by their
//! ids as before. What fits by its size is never refused.

use std::ops::Range;

use super::{Device, Held};
use crate::error::{Error, Result};

/// Parts of the room begin and end at multiples of this many bytes.
const UNIT: usize = 16;

/// The room and its parts.
pub(super) struct Room<D: Device> {
    pub(super) memory: Held<D>,
    parts: Parts,
}

impl<D: Device> Room<D> {
    pub(super) fn new(memory: Held<D>, bytes: usize) -> Self {
        Self {
            memory,
            parts: Parts {
                bytes,
                taken: Vec::new(),
            },
        }
    }

    pub(super) fn parts(&mut self) -> &mut Parts {
        &mut self.parts
    }
}

/// Which bytes are taken, in order.
pub(super) struct Parts {
    bytes: usize,
    taken: Vec<Range<usize>>,
}

impl Parts {
    /// Where a part of `bytes` can begin without moving any; `None`: there is no such gap.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] when all gaps together are too small.
    pub(super) fn take(&mut self, bytes: usize) -> Result<Option<usize>> {
        let want = bytes.next_multiple_of(UNIT);
        let free = self.bytes - self.taken.iter().map(ExactSizeIterator::len).sum::<usize>();
        if want > free {
            return Err(Error::OutOfMemory {
                what: "a latent memory",
                bytes,
            });
        }
        let mut start = 0;
        let mut place = self.taken.len();
        for (index, part) in self.taken.iter().enumerate() {
            if part.start - start >= want {
                place = index;
                break;
            }
            start = part.end;
        }
        if self.bytes - start < want {
            return Ok(None);
        }
        self.taken.insert(place, start..start + want);
        Ok(Some(start))
    }

    /// Frees the part that begins at `start`.
    pub(super) fn give(&mut self, start: usize) {
        self.taken.retain(|part| part.start != start);
    }

    /// Moves all parts to the front: returns `(from, to, bytes)` of each that moves, in the order
    /// in which that can be done.
    pub(super) fn close_gaps(&mut self) -> Vec<(usize, usize, usize)> {
        let (mut end, mut moves) = (0, Vec::new());
        for part in &mut self.taken {
            let (from, bytes) = (part.start, part.len());
            if from != end {
                moves.push((from, end, bytes));
                *part = end..end + bytes;
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

    proptest! {
        /// Whatever comes and goes: parts never overlap, and what fits by its size is given a place.
        #[test]
        fn what_fits_is_never_refused(ops in prop::collection::vec((0usize..6, 1usize..200), 1..120)) {
            let mut parts = Parts { bytes: 640, taken: Vec::new() };
            let mut held: Vec<(usize, usize)> = Vec::new();
            for (which, bytes) in ops {
                if which < held.len() {
                    parts.give(held.swap_remove(which).0);
                } else {
                    let free = 640 - held.iter().map(|(_, bytes)| bytes.next_multiple_of(UNIT)).sum::<usize>();
                    match parts.take(bytes) {
                        Err(_) => prop_assert!(bytes.next_multiple_of(UNIT) > free),
                        Ok(Some(start)) => held.push((start, bytes)),
                        Ok(None) => {
                            for (from, to, moved) in parts.close_gaps() {
                                prop_assert!(to < from);
                                let part = held.iter_mut().find(|(start, _)| *start == from).expect("a part");
                                prop_assert_eq!(part.1.next_multiple_of(UNIT), moved);
                                part.0 = to;
                            }
                            held.push((parts.take(bytes).expect("it fits").expect("in one piece"), bytes));
                        }
                    }
                }
                held.sort_unstable();
                prop_assert!(held.windows(2).all(|two| two[0].0 + two[0].1 <= two[1].0));
                prop_assert!(held.last().is_none_or(|(start, bytes)| start + bytes <= 640));
            }
        }
    }
}
