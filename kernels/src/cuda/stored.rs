//! Slots as they are stored, from the device to the host and back.
//!
//! They go through the scratch memory, a piece at a time, so that a large cache needs no more of it
//! than any call has. See `kernels/cu/slots.cu`.

use std::ops::Range;

use bytemuck::Zeroable;

use super::backend::CudaBackend;
use super::cache::Pages;
use super::descriptors::{Descriptors, Items};
use super::device::Device;
use super::launch::kernels::{LoadSlots, SaveSlots};
use super::launch::{Item, Kernel, Ptr, PtrMut};
use super::stream::LEAST_BYTES;
use crate::error::Result;
use crate::shapes::{HeadPages, PageShape};
use crate::stored::{StoredParts, check_bytes};

/// Bytes that go at a time: what the scratch memory has at least.
const STAGED: usize = LEAST_BYTES;
/// Slots of all heads begin at multiples of this many bytes.
const ALIGNED: usize = 16;

/// Slots of one head that go at once.
struct Piece<'a> {
    head: HeadPages<'a>,
    /// Which of its slots.
    slots: Range<usize>,
    /// The first byte of the head among those of all heads.
    start: usize,
    /// The first byte of the piece in the scratch memory, where its parts are those of as many
    /// slots.
    staged: usize,
}

impl Piece<'_> {
    /// What goes from where in the scratch memory to where in the bytes of all heads, part by part.
    fn copies(&self, shape: PageShape) -> impl Iterator<Item = Copied> {
        let staged = StoredParts::of(shape, self.slots.len()).all();
        let whole = StoredParts::of(shape, self.head.len).all();
        let (from, to) = (self.staged, self.start);
        let (first, all) = (self.slots.start, self.head.len.max(1));
        staged.into_iter().zip(whole).map(move |(piece, whole)| {
            let begin = to + whole.start + whole.len() / all * first;
            Copied {
                staged: from + piece.start..from + piece.end,
                host: begin..begin + piece.len(),
            }
        })
    }
}

/// Bytes that are the same in both places.
struct Copied {
    staged: Range<usize>,
    host: Range<usize>,
}

/// Cuts the slots of heads into pieces; those of one list go together.
fn transfers<'a>(shape: PageShape, heads: &[HeadPages<'a>]) -> Vec<Vec<Piece<'a>>> {
    let slot = StoredParts::of(shape, 1).bytes();
    let (mut all, mut pieces) = (Vec::new(), Vec::new());
    let (mut staged, mut start) = (0, 0);
    for &head in heads {
        let mut first = 0;
        while first < head.len {
            let room = (STAGED - staged) / slot;
            if room == 0 && staged > 0 {
                all.push(std::mem::take(&mut pieces));
                staged = 0;
                continue;
            }
            let end = head.len.min(first + room.max(1));
            pieces.push(Piece {
                head,
                slots: first..end,
                start,
                staged,
            });
            staged = (staged + (end - first) * slot)
                .next_multiple_of(ALIGNED)
                .min(STAGED);
            first = end;
        }
        start += head.len * slot;
    }
    all.extend(Some(pieces).filter(|pieces| !pieces.is_empty()));
    all
}

/// Bytes of the scratch memory that pieces take.
fn staged_bytes(shape: PageShape, pieces: &[Piece<'_>]) -> usize {
    let last = pieces.last();
    last.map_or(0, |piece| {
        piece.staged + StoredParts::of(shape, piece.slots.len()).bytes()
    })
}

/// The pieces for a kernel.
fn items<'a>(pieces: &[Piece<'a>]) -> Items<'a> {
    let mut all = Items::default();
    for Piece {
        head,
        slots,
        staged,
        ..
    } in pieces
    {
        let table = all.table(head, slots.end);
        all.items.push(Item {
            len: slots.len() as u32,
            first: slots.start as u32,
            table,
            output: *staged as u32,
            ..Item::zeroed()
        });
    }
    all
}

/// Blocks for the slots of an item.
fn blocks(items: &Items<'_>) -> usize {
    items.most_slots().min(1024)
}

impl<D: Device> CudaBackend<D> {
    /// See [`Cache::save_slots`](crate::backend::Cache::save_slots).
    pub(super) fn save(
        &self,
        pages: &Pages<D>,
        heads: &[HeadPages<'_>],
        out: &mut [u8],
    ) -> Result<()> {
        let (op, shape) = ("save_slots", pages.shape);
        check_bytes(op, shape, heads, out.len())?;
        heads
            .iter()
            .try_for_each(|head| pages.check(op, head, head.len))?;
        let mut host = Vec::new();
        for pieces in transfers(shape, heads) {
            let mut all = items(&pieces);
            let mut work = self.workspaces();
            let mut descriptors = Descriptors::of_call(&self.stream);
            let on_device = all.push(&mut descriptors, &self.stream);
            descriptors.send(&self.stream, &mut work.descriptors)?;
            host.resize(staged_bytes(shape, &pieces), 0);
            let staged = self
                .stream
                .reserve(&mut work.scratch, "slots saved", host.len())?;
            let kernel = SaveSlots {
                pages: pages.slots(),
                items: on_device.items,
                tables: on_device.tables,
                dim: shape.head_dim as u32,
                out: PtrMut::at(staged),
            };
            self.launch(kernel.grid(blocks(&all), pieces.len()))?;
            self.stream.download(work.scratch.memory()?, 0, &mut host)?;
            for copied in pieces.iter().flat_map(|piece| piece.copies(shape)) {
                out[copied.host].copy_from_slice(&host[copied.staged]);
            }
        }
        Ok(())
    }

    /// See [`Cache::load_slots`](crate::backend::Cache::load_slots).
    pub(super) fn load(
        &self,
        pages: &mut Pages<D>,
        heads: &[HeadPages<'_>],
        from: &[u8],
    ) -> Result<()> {
        let (op, shape) = ("load_slots", pages.shape);
        check_bytes(op, shape, heads, from.len())?;
        heads
            .iter()
            .try_for_each(|head| pages.check(op, head, head.len))?;
        let mut host = Vec::new();
        for pieces in transfers(shape, heads) {
            host.resize(staged_bytes(shape, &pieces), 0);
            for copied in pieces.iter().flat_map(|piece| piece.copies(shape)) {
                host[copied.staged].copy_from_slice(&from[copied.host]);
            }
            let mut all = items(&pieces);
            let mut work = self.workspaces();
            let mut descriptors = Descriptors::of_call(&self.stream);
            let on_device = all.push(&mut descriptors, &self.stream);
            descriptors.send(&self.stream, &mut work.descriptors)?;
            let staged = self
                .stream
                .reserve(&mut work.scratch, "slots loaded", host.len())?;
            self.stream.upload(&host, work.scratch.memory()?, 0)?;
            let kernel = LoadSlots {
                pages: pages.slots_mut(),
                items: on_device.items,
                tables: on_device.tables,
                dim: shape.head_dim as u32,
                from: Ptr::at(staged),
            };
            self.launch(kernel.grid(blocks(&all), pieces.len()))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shapes::KvType;

    #[test]
    fn pieces_cover_every_byte_once_and_fit_the_scratch_memory() {
        let shape = PageShape {
            head_dim: 40,
            dtype: KvType::Q8,
        };
        let lens = [0, 1, 31, 9000, 0, 20_000, 15_000, 7];
        let heads: Vec<_> = lens.iter().map(|&len| HeadPages::new(&[], len)).collect();
        let bytes = lens
            .iter()
            .map(|&len| StoredParts::of(shape, len).bytes())
            .sum();
        let mut times = vec![0; bytes];
        let all = transfers(shape, &heads);
        assert!(all.len() > 2, "{} transfers", all.len());
        for pieces in &all {
            assert!(staged_bytes(shape, pieces) <= STAGED);
            let mut end = 0;
            for piece in pieces {
                assert_eq!(piece.staged % ALIGNED, 0);
                for Copied { staged, host } in piece.copies(shape) {
                    assert!(staged.start >= end, "parts do not overlap");
                    end = staged.end;
                    assert_eq!(staged.len(), host.len());
                    times[host].iter_mut().for_each(|times| *times += 1);
                }
            }
        }
        assert!(times.iter().all(|&times| times == 1));
    }
}
