//! A boundary on the device: which slots stay is decided there, and the rest is moved together.
//!
//! See `kernels/cu/select.cu` and, for the compaction, `kernels/cu/slots.cu`.

mod kept;

use bytemuck::Zeroable;
pub use kept::Kept;

use super::backend::{Buffer, CudaBackend};
use super::cache::Pages;
use super::checks::at_least;
use super::descriptors::{Descriptors, Items};
use super::device::Device;
use super::launch::kernels::{Compact, KeepLists, SelectHeads, SelectLists, SelectPools};
use super::launch::{Cut, Floor, Item, Kernel, PtrMut};
use crate::backend::{Boundary, SelectBudget, SelectHead};
use crate::error::{Error, Result};
use crate::select::{self, KeptLists};
use crate::shapes::{HeadPages, PageShape};

impl<D: Device> Boundary for CudaBackend<D> {
    type Kept = Kept<D>;

    fn select(
        &self,
        budget: SelectBudget,
        scores: &Buffer<D>,
        heads: &[SelectHead],
    ) -> Result<Kept<D>> {
        select::check_select(budget, heads)?;
        let kept = Kept::new(self, heads.iter().map(|head| head.len).collect())?;
        at_least("select", "scores", scores.len, kept.slots())?;

        let mut work = self.workspaces();
        let mut descriptors = Descriptors::of_call(&self.stream);
        let items = ranked(heads).push(&mut descriptors, &self.stream).items;
        descriptors.send(&self.stream, &mut work.descriptors)?;
        let count = heads.len();
        let bytes = count * (size_of::<Floor>() + size_of::<Cut>());
        let floors = self
            .stream
            .reserve(&mut work.scratch, "cuts of heads", bytes)?;
        let floors: PtrMut<Floor> = PtrMut::at(floors);
        let cuts: PtrMut<Cut> = floors.skip(count).cast();

        let select_heads = SelectHeads {
            items,
            scores: scores.ptr(),
            floors,
            floor: budget.floor as u32,
        };
        self.launch(select_heads.blocks(count))?;
        let select_pools = SelectPools {
            items,
            scores: scores.ptr(),
            floors: floors.read(),
            cuts,
            heads: count as u32,
            pools: budget.pools as u32,
            take: budget.take as u32,
        };
        self.launch(select_pools.blocks(count.min(budget.pools)))?;
        let lists = kept.lists();
        let select_lists = SelectLists {
            items,
            scores: scores.ptr(),
            cuts: cuts.read(),
            counts: lists.counts,
            keeps: lists.keeps,
            losts: lists.losts,
        };
        self.launch(select_lists.blocks(count))?;
        drop(work);
        Ok(kept)
    }

    fn keep_lists(&self, lens: &[usize], lists: &[Vec<u32>]) -> Result<Kept<D>> {
        let checked = KeptLists::new(lens, lists)?;
        let kept = Kept::new(self, lens.to_vec())?;
        let mut items = Items::default();
        let mut chosen = vec![0u8; kept.slots()];
        let mut first = 0;
        for (&len, list) in lens.iter().zip(checked.lists()) {
            for &slot in list {
                chosen[first + slot as usize] = 1;
            }
            items.items.push(Item {
                len: len as u32,
                extra: first as u32,
                output: first as u32,
                ..Item::zeroed()
            });
            first += len;
        }

        let mut work = self.workspaces();
        let mut descriptors = Descriptors::of_call(&self.stream);
        let items = items.push(&mut descriptors, &self.stream).items;
        let chosen = descriptors.push(&chosen);
        descriptors.send(&self.stream, &mut work.descriptors)?;
        let lists = kept.lists();
        let kernel = KeepLists {
            items,
            chosen,
            counts: lists.counts,
            keeps: lists.keeps,
            losts: lists.losts,
        };
        self.launch(kernel.blocks(lens.len()))?;
        drop(work);
        Ok(kept)
    }

    fn kept(&self, kept: &Kept<D>) -> Result<Vec<Vec<u32>>> {
        let lens = kept.lens();
        let mut words = vec![0u32; 2 * lens.len() + kept.slots()];
        let bytes = bytemuck::cast_slice_mut(&mut words);
        self.stream.download(kept.memory(), 0, bytes)?;
        let (counts, mut rest) = words.split_at(2 * lens.len());
        let mut lists = Vec::with_capacity(lens.len());
        for (count, &len) in counts.chunks_exact(2).zip(lens) {
            let (own, after) = rest.split_at(len);
            let count = count[0] as usize;
            let list = own.get(..count).ok_or(Error::Index {
                op: "kept",
                what: "slot",
                index: count,
                len,
            })?;
            lists.push(list.to_vec());
            rest = after;
        }
        Ok(lists)
    }

    fn compact(&self, pages: &mut Pages<D>, heads: &[HeadPages<'_>], kept: &Kept<D>) -> Result<()> {
        let op = "compact";
        select::check_lens(op, kept.lens(), heads)?;
        let (mut all, mut output) = (Items::default(), 0);
        for head in heads {
            pages.check(op, head, head.len)?;
            let table = all.table(head, head.len);
            all.items.push(Item {
                len: head.len as u32,
                table,
                output,
                ..Item::zeroed()
            });
            output += head.len as u32;
        }

        let mut work = self.workspaces();
        let mut descriptors = Descriptors::of_call(&self.stream);
        let on_device = all.push(&mut descriptors, &self.stream);
        descriptors.send(&self.stream, &mut work.descriptors)?;
        let bytes = pages.shape.head_dim * pages.shape.dtype.bytes();
        let lists = kept.lists();
        let kernel = Compact {
            pages: pages.slots_mut(),
            notes: pages.notes_mut(),
            items: on_device.items,
            tables: on_device.tables,
            counts: lists.counts.read(),
            keeps: lists.keeps.read(),
            bytes: bytes as u32,
        };
        let launch = kernel.blocks(heads.len());
        self.launch(launch.with_shared(2 * PageShape::SLOTS * bytes))
    }
}

/// Heads that are ranked. An item's candidates are its slots `first .. count`; its scores begin at
/// `extra`, and its lists at `output`.
fn ranked(heads: &[SelectHead]) -> Items<'static> {
    let (mut items, mut at) = (Items::default(), 0);
    for SelectHead { len, candidates } in heads {
        items.items.push(Item {
            len: *len as u32,
            first: candidates.start as u32,
            count: candidates.end as u32,
            extra: at,
            output: at,
            ..Item::zeroed()
        });
        at += *len as u32;
    }
    items
}
