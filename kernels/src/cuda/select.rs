//! Boundary selection: which slots stay is decided, and stays, on the device; see
//! `kernels/cu/select.cu`.

use std::sync::{Arc, Mutex, PoisonError};

use bytemuck::Zeroable;

use super::items::{Item, Items};
use super::slots::Pages;
use super::{Arg, Buffer, CudaBackend, Device, Held, Launch, Pack, at_least};
use crate::backend::{HeadPages, PageShape, SelectBudget, SelectHead};
use crate::error::{Error, Result};
use crate::select::{self, KeptLists};

/// Threads of a block that reads scores.
const THREADS: u32 = 256;
/// Bytes of `Floor` and of `Cut`.
const FLOOR_BYTES: usize = 16;
const CUT_BYTES: usize = 8;

/// Memory of lists that nobody needs any more, with its size, to be used again: work is done in
/// order.
pub(super) type Spare<D> = Arc<Mutex<Vec<(Held<D>, usize)>>>;

/// Lists of slots that stay and of slots that go, on the device.
pub struct Kept<D: Device> {
    /// For each head two counts: slots that stay, and the first that goes. Then those that stay,
    /// then those that go, each head's from the sum of the lengths before it on. There until this
    /// is dropped.
    memory: Option<(Held<D>, usize)>,
    lens: Vec<usize>,
    spare: Spare<D>,
}

impl<D: Device> Drop for Kept<D> {
    fn drop(&mut self) {
        self.spare
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend(self.memory.take());
    }
}

impl<D: Device> Kept<D> {
    /// Slots of each head.
    pub(super) fn lens(&self) -> &[usize] {
        &self.lens
    }

    fn total(&self) -> usize {
        self.lens.iter().sum()
    }

    fn memory(&self) -> &Held<D> {
        &self.memory.as_ref().expect("there until this is dropped").0
    }

    /// Counts, lists that stay, lists that go.
    pub(super) fn args(&self) -> [Arg; 3] {
        let base = self.memory().address();
        let words = |count: usize| Arg::Pointer(base + 4 * count as u64);
        let heads = 2 * self.lens.len();
        [words(0), words(heads), words(heads + self.total())]
    }
}

impl<D: Device> CudaBackend<D> {
    fn new_kept(&self, lens: Vec<usize>) -> Result<Kept<D>> {
        let total: usize = lens.iter().sum();
        let bytes = (4 * (2 * lens.len() + 2 * total)).next_power_of_two();
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        let found = spare.iter().position(|&(_, size)| size >= bytes);
        let memory = match found {
            Some(index) => spare.swap_remove(index),
            None => (self.device.alloc("lists of slots", bytes)?, bytes),
        };
        Ok(Kept {
            memory: Some(memory),
            lens,
            spare: self.spare.clone(),
        })
    }

    pub(super) fn select_slots(
        &self,
        budget: SelectBudget,
        scores: &Buffer<D>,
        heads: &[SelectHead],
    ) -> Result<Kept<D>> {
        select::check_select(budget, heads)?;
        let kept = self.new_kept(heads.iter().map(|head| head.len).collect())?;
        at_least("select", "scores", scores.len, kept.total())?;
        let (mut all, mut at) = (Items::default(), 0);
        for SelectHead { len, candidates } in heads {
            let (first, count) = (candidates.start as u32, candidates.end as u32);
            all.items.push(Item {
                len: *len as u32,
                first,
                count,
                extra: at,
                output: at,
                ..Item::zeroed()
            });
            at += *len as u32;
        }
        let mut work = self.work();
        let mut pack = Pack::new();
        let packed = all.pack(&mut pack, &self.device);
        let (count, heads) = (heads.len(), heads.len() as u32);
        let arg = pack.upload(&self.device, &mut work.stage)?;
        let bytes = count * (FLOOR_BYTES + CUT_BYTES);
        let floors = work.scratch.address(&self.device, "cuts of heads", bytes)?;
        let cuts = Arg::Pointer(floors + (count * FLOOR_BYTES) as u64);
        let (list, scores, floors) = (arg(packed.items), scores.arg(), Arg::Pointer(floors));
        let run = |kernel, blocks, args: &[Arg]| {
            self.run(Launch {
                kernel,
                grid: [blocks, 1, 1],
                threads: THREADS,
                shared: 0,
                args,
            })
        };
        let [pools, take, floor] =
            [budget.pools, budget.take, budget.floor].map(|n| Arg::U32(n as u32));
        run("select_heads", heads, &[list, scores, floors, floor])?;
        let blocks = heads.min(budget.pools as u32);
        run(
            "select_pools",
            blocks,
            &[list, scores, floors, cuts, Arg::U32(heads), pools, take],
        )?;
        let [counts, keeps, losts] = kept.args();
        run(
            "select_lists",
            heads,
            &[list, scores, cuts, counts, keeps, losts],
        )?;
        drop(work);
        Ok(kept)
    }

    pub(super) fn upload_lists(&self, lens: &[usize], lists: &[Vec<u32>]) -> Result<Kept<D>> {
        let checked = KeptLists::new(lens, lists)?;
        let kept = self.new_kept(lens.to_vec())?;
        let mut all = Items::default();
        let mut chosen = vec![0u8; kept.total()];
        let mut at = 0;
        for (&len, list) in lens.iter().zip(checked.lists()) {
            list.iter().for_each(|&slot| chosen[at + slot as usize] = 1);
            all.items.push(Item {
                len: len as u32,
                extra: at as u32,
                output: at as u32,
                ..Item::zeroed()
            });
            at += len;
        }
        let mut work = self.work();
        let mut pack = Pack::new();
        let (packed, chosen) = (all.pack(&mut pack, &self.device), pack.push(&chosen));
        let arg = pack.upload(&self.device, &mut work.stage)?;
        let [counts, keeps, losts] = kept.args();
        self.run(Launch {
            kernel: "keep_lists",
            grid: [lens.len() as u32, 1, 1],
            threads: THREADS,
            shared: 0,
            args: &[arg(packed.items), arg(chosen), counts, keeps, losts],
        })?;
        drop(work);
        Ok(kept)
    }

    pub(super) fn download_lists(&self, kept: &Kept<D>) -> Result<Vec<Vec<u32>>> {
        let mut words = vec![0u32; 2 * kept.lens.len() + kept.total()];
        self.device
            .download(kept.memory(), 0, bytemuck::cast_slice_mut(&mut words))?;
        let (counts, mut rest) = words.split_at(2 * kept.lens.len());
        let mut lists = Vec::with_capacity(kept.lens.len());
        for (count, &len) in counts.chunks_exact(2).zip(&kept.lens) {
            let (own, after) = rest.split_at(len);
            let list = own.get(..count[0] as usize);
            lists.push(
                list.ok_or(Error::Index {
                    op: "kept",
                    what: "slot",
                    index: count[0] as usize,
                    len,
                })?
                .to_vec(),
            );
            rest = after;
        }
        Ok(lists)
    }

    pub(super) fn compact_slots(
        &self,
        pages: &Pages<D>,
        heads: &[HeadPages<'_>],
        kept: &Kept<D>,
    ) -> Result<()> {
        let op = "compact";
        select::check_lens(op, &kept.lens, heads)?;
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
        let mut work = self.work();
        let mut pack = Pack::new();
        let packed = all.pack(&mut pack, &self.device);
        let bytes = pages.shape.head_dim * pages.shape.dtype.bytes();
        let arg = pack.upload(&self.device, &mut work.stage)?;
        let [counts, keeps, _] = kept.args();
        let (items, tables) = (arg(packed.items), arg(packed.tables));
        self.run(Launch {
            kernel: pages.kernel(["compact_q8", "compact_f16", "compact_f32"]),
            grid: [heads.len() as u32, 1, 1],
            threads: 256,
            shared: (2 * PageShape::SLOTS * bytes) as u32,
            args: &[
                pages.arg(),
                pages.notes(),
                items,
                tables,
                counts,
                keeps,
                Arg::U32(bytes as u32),
            ],
        })
    }
}
