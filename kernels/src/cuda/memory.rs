//! Latent memories: their state stays on the device, slots that go are merged into it there; see
//! `kernels/cu/memorise.cu`.

use bytemuck::Zeroable;

use super::items::{Item, Items};
use super::room::Room;
use super::select::Kept;
use super::slots::Pages;
use super::{Arg, Buffer, CudaBackend, Device, Held, Launch, Pack, exactly};
use crate::backend::{Features, HeadPages};
use crate::error::{Error, Result};
use crate::latent::{
    AssociativeState, CentroidState, FeatureSize, LatentHead, LatentId, LatentKind, LatentState,
    check_features,
};
use crate::select;

/// Threads of a block, features of one, and entries at a time: `kernels/cu/memorise.cu`.
const THREADS: u32 = 256;
const GROUP: usize = 8;
const ENTRIES: usize = 32;
/// What rows of centroids in shared memory are longer than their keys.
const PADDING: usize = 4;

/// Memory of one sequence: for each head keys `[R, D]`, values `[R, D]`, counts `[R]`, where a
/// count of 0 is no centroid yet; or `A` `[f, D]`, `b` `[f]`.
pub(super) struct Latent<D: Device> {
    place: Place<D>,
    pub(super) kind: LatentKind,
    heads: usize,
    /// Values from one head to the next.
    stride: usize,
}

/// Where a memory lies.
enum Place<D: Device> {
    /// In the room that was reserved, from this byte on.
    Room(usize),
    /// By itself.
    Alone(Held<D>),
}

/// Bytes that are moved at a time: what the scratch memory has at least.
const MOVED: usize = 1 << 20;

impl<D: Device> Pages<D> {
    /// The memory that holds a state, and where in it.
    fn place<'a>(&'a self, latent: &'a Latent<D>) -> Result<(&'a Held<D>, usize)> {
        match (&latent.place, &self.room) {
            (Place::Alone(memory), _) => Ok((memory, 0)),
            (&Place::Room(start), Some(room)) => Ok((&room.memory, start)),
            (Place::Room(_), None) => Err(Error::Device {
                op: "latent memory",
                what: "its room is gone".into(),
            }),
        }
    }

    /// Frees a memory; an id that is not in use changes nothing.
    pub(super) fn free(&mut self, id: LatentId) {
        let Some(latent) = self.latents.remove(id) else {
            return;
        };
        if let (Place::Room(start), Some(room)) = (latent.place, &mut self.room) {
            room.parts().give(start);
        }
    }

    /// A head's memory, and the address of its state.
    pub(super) fn latent(&self, op: &'static str, head: LatentHead) -> Result<(&Latent<D>, u64)> {
        let latent = self.latents.get(op, head.id)?;
        if head.head >= latent.heads {
            return Err(Error::Index {
                op,
                what: "latent head",
                index: head.head,
                len: latent.heads,
            });
        }
        let (memory, start) = self.place(latent)?;
        Ok((
            latent,
            memory.address() + (start + 4 * head.head * latent.stride) as u64,
        ))
    }
}

impl<D: Device> CudaBackend<D> {
    pub(super) fn new_latent(
        &self,
        pages: &mut Pages<D>,
        kind: LatentKind,
        heads: usize,
    ) -> Result<LatentId> {
        kind.check("alloc_latent")?;
        // Pairs of values are read as one.
        let stride = kind.head_values(pages.shape.head_dim).next_multiple_of(4);
        let bytes = 4 * heads * stride;
        let place = match &pages.room {
            Some(_) => Place::Room(self.place_in_room(pages, bytes)?),
            None => Place::Alone(self.device.alloc("latent memory", bytes)?),
        };
        Ok(pages.latents.insert(Latent {
            place,
            kind,
            heads,
            stride,
        }))
    }

    pub(super) fn reserve_room(&self, pages: &mut Pages<D>, bytes: usize) -> Result<()> {
        if pages.latents.all_mut().next().is_some() {
            return Err(Error::Device {
                op: "reserve_latents",
                what: "there are latent memories already".into(),
            });
        }
        pages.room = Some(Room::new(
            self.device.alloc("latent memories", bytes)?,
            bytes,
        ));
        Ok(())
    }

    /// A zeroed part of the room, after all others were moved to its front where no gap is large
    /// enough.
    fn place_in_room(&self, pages: &mut Pages<D>, bytes: usize) -> Result<usize> {
        let Pages {
            room: Some(room),
            latents,
            ..
        } = pages
        else {
            unreachable!("asked for its room")
        };
        let base = room.memory.address();
        let start = match room.parts().take(bytes)? {
            Some(start) => start,
            None => {
                for (from, to, bytes) in room.parts().close_gaps() {
                    self.move_down(base + from as u64, base + to as u64, bytes)?;
                    for latent in latents.all_mut() {
                        if matches!(latent.place, Place::Room(start) if start == from) {
                            latent.place = Place::Room(to);
                        }
                    }
                }
                let start = room.parts().take(bytes)?;
                start.ok_or(Error::OutOfMemory {
                    what: "a latent memory",
                    bytes,
                })?
            }
        };
        self.put_words(0, base + start as u64, bytes / 4)?;
        Ok(start)
    }

    /// Moves bytes to a smaller address, through the scratch memory: where they come from and where
    /// they go may overlap.
    fn move_down(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        let mut work = self.work();
        let between = work
            .scratch
            .address(&self.device, "latent memories that move", MOVED)?;
        for first in (0..bytes).step_by(MOVED) {
            let count = (bytes - first).min(MOVED) / 4;
            self.put_words(from + first as u64, between, count)?;
            self.put_words(between, to + first as u64, count)?;
        }
        Ok(())
    }

    /// Copies words on the device, or zeroes them where `from` is 0.
    fn put_words(&self, from: u64, to: u64, count: usize) -> Result<()> {
        let args = [Arg::Pointer(from), Arg::U32(count as u32), Arg::Pointer(to)];
        let grid = [count.div_ceil(256) as u32, 1, 1];
        self.run(Launch {
            kernel: "put_words",
            grid,
            threads: 256,
            shared: 0,
            args: &args,
        })
    }

    pub(super) fn merge_slots(
        &self,
        pages: &Pages<D>,
        id: LatentId,
        features: Option<Features<'_, Buffer<D>>>,
        heads: &[HeadPages<'_>],
        kept: &Kept<D>,
    ) -> Result<()> {
        let (op, dim) = ("memorise", pages.shape.head_dim);
        select::check_lens(op, kept.lens(), heads)?;
        let latent = pages.latents.get(op, id)?;
        exactly(op, "heads", heads.len(), latent.heads)?;
        let sizes = features.map(|features| FeatureSize {
            len: features.values.len,
            count: features.count,
        });
        let layout = check_features(latent.kind, heads.len(), sizes, dim)?;
        let (group, layer) = (layout.layer_heads, layout.layer_values);
        let count = match latent.kind {
            LatentKind::Centroids { most } => most,
            LatentKind::Associative { features } => features,
        };
        let (mut all, mut output) = (Items::default(), 0);
        for (index, head) in heads.iter().enumerate() {
            pages.check(op, head, head.len)?;
            let (len, table, extra) = (head.len as u32, all.table(head, head.len), index as u32);
            all.states
                .push(pages.latent(op, LatentHead { id, head: index })?.1);
            all.items.push(Item {
                len,
                table,
                extra,
                count: count as u32,
                output,
                ..Item::zeroed()
            });
            output += len;
        }
        let mut work = self.work();
        let mut pack = Pack::new();
        let packed = all.pack(&mut pack, &self.device);
        let arg = pack.upload(&self.device, &mut work.stage)?;
        let [counts, _, losts] = kept.args();
        let (items, tables, states) = (arg(packed.items), arg(packed.tables), arg(packed.states));
        let common = [
            pages.arg(),
            items,
            tables,
            states,
            counts,
            losts,
            Arg::U32(dim as u32),
        ];
        let (kernel, grid, shared, own) = match (latent.kind, features) {
            (LatentKind::Associative { .. }, Some(Features { values, .. })) => {
                let floats = GROUP * (dim + 1) + ENTRIES * (2 * dim + 1 + GROUP);
                let own = vec![values.arg(), Arg::U32(group as u32), Arg::U32(layer as u32)];
                let grid = [count.div_ceil(GROUP) as u32, heads.len() as u32, 1];
                (
                    pages.kernel([
                        "memorise_associative_q8",
                        "memorise_associative_f16",
                        "memorise_associative_f32",
                    ]),
                    grid,
                    floats,
                    own,
                )
            }
            _ => {
                let keys = count * (dim + PADDING);
                let held = 4 * (dim + keys) <= self.device.device.shared_bytes();
                let kernel = pages.kernel([
                    "memorise_centroids_q8",
                    "memorise_centroids_f16",
                    "memorise_centroids_f32",
                ]);
                let floats = dim + if held { keys } else { 0 };
                (
                    kernel,
                    [heads.len() as u32, 1, 1],
                    floats,
                    vec![Arg::U32(u32::from(held))],
                )
            }
        };
        let args = [&common[..], &own].concat();
        self.run(Launch {
            kernel,
            grid,
            threads: THREADS,
            shared: 4 * shared as u32,
            args: &args,
        })
    }

    pub(super) fn download_state(&self, pages: &Pages<D>, head: LatentHead) -> Result<LatentState> {
        let (latent, _) = pages.latent("read_latent", head)?;
        let dim = pages.shape.head_dim;
        let mut values = vec![0.0f32; latent.kind.head_values(dim)];
        let bytes = bytemuck::cast_slice_mut(&mut values);
        let (memory, start) = pages.place(latent)?;
        self.device
            .download(memory, start + 4 * head.head * latent.stride, bytes)?;
        Ok(match latent.kind {
            LatentKind::Centroids { most } => {
                let counts = &values[2 * most * dim..];
                let count = counts.iter().take_while(|&&n| n > 0.0).count();
                let part = |first: usize| &values[first..first + count * dim];
                LatentState::Centroids(CentroidState::new(
                    part(0),
                    part(most * dim),
                    counts[..count].to_vec(),
                ))
            }
            LatentKind::Associative { features } => {
                let norms = values.split_off(features * dim);
                LatentState::Associative(AssociativeState {
                    sums: values,
                    norms,
                })
            }
        })
    }

    pub(super) fn upload_state(
        &self,
        pages: &Pages<D>,
        head: LatentHead,
        state: &LatentState,
    ) -> Result<()> {
        let op = "write_latent";
        let (latent, _) = pages.latent(op, head)?;
        let dim = pages.shape.head_dim;
        state.check(op, latent.kind, dim)?;
        let mut values = vec![0.0f32; latent.kind.head_values(dim)];
        let mut put =
            |first: usize, from: &[f32]| values[first..first + from.len()].copy_from_slice(from);
        match (state, latent.kind) {
            (LatentState::Centroids(state), LatentKind::Centroids { most }) => {
                put(0, &state.keys());
                put(most * dim, &state.values());
                put(2 * most * dim, state.counts());
            }
            (LatentState::Associative(state), LatentKind::Associative { features }) => {
                put(0, &state.sums);
                put(features * dim, &state.norms);
            }
            _ => unreachable!("checked above"),
        }
        let (memory, start) = pages.place(latent)?;
        self.device.upload(
            bytemuck::cast_slice(&values),
            memory,
            start + 4 * head.head * latent.stride,
        )
    }
}
