//! Where the latent memories of an arena lie: in memory that was reserved for all of them, or each
//! by itself.

use super::latent_heap::{LatentHeap, Move};
use crate::cuda::checks::within;
use crate::cuda::device::Device;
use crate::cuda::launch::PtrMut;
use crate::cuda::stream::StreamMemory;
use crate::error::{Error, Result};
use crate::latent::{LatentHead, LatentId, LatentKind, Latents};

/// Latent memories of an arena of pages.
pub(crate) struct LatentStore<D: Device> {
    latents: Latents<Latent<D>>,
    reserved: Option<Reserved<D>>,
}

/// Memory for all latent memories, and what of it is taken.
struct Reserved<D: Device> {
    memory: StreamMemory<D>,
    heap: LatentHeap,
}

/// Memory of one sequence. Of centroids, each head has keys `[R, D]`, values `[R, D]` and counts
/// `[R]`, where a count of 0 is no centroid yet; of associative memories, `A` `[f, D]` and `b`
/// `[f]`.
struct Latent<D: Device> {
    place: Place<D>,
    kind: LatentKind,
    heads: usize,
    /// Values from one head to the next.
    stride: usize,
}

/// Where a memory lies.
enum Place<D: Device> {
    /// In the reserved memory, from this byte on.
    Reserved(usize),
    /// By itself.
    Alone(StreamMemory<D>),
}

/// Sizes of a latent memory.
#[derive(Clone, Copy)]
pub(crate) struct LatentSize {
    pub(crate) kind: LatentKind,
    /// KV heads.
    pub(crate) heads: usize,
    /// Values of a head's state, padded.
    stride: usize,
}

impl LatentSize {
    /// A memory of `kind` for `heads` heads of `head_dim` elements.
    pub(crate) fn new(kind: LatentKind, heads: usize, head_dim: usize) -> Self {
        Self {
            kind,
            heads,
            // Pairs of values are read as one.
            stride: kind.head_values(head_dim).next_multiple_of(4),
        }
    }

    /// Bytes of it.
    pub(crate) fn bytes(self) -> usize {
        size_of::<f32>() * self.heads * self.stride
    }
}

/// State of one head of a latent memory.
pub(crate) struct HeadState<'a, D: Device> {
    pub(crate) kind: LatentKind,
    pub(crate) memory: &'a StreamMemory<D>,
    /// The byte of the memory that it begins at.
    pub(crate) offset: usize,
}

impl<D: Device> HeadState<'_, D> {
    /// Its values, for kernels.
    pub(crate) fn ptr(&self) -> PtrMut<f32> {
        PtrMut::at(self.memory.address() + self.offset as u64)
    }
}

/// Bytes of the reserved memory that move, from one address to another.
pub(crate) struct MovedBytes {
    pub(crate) from: u64,
    pub(crate) to: u64,
    pub(crate) bytes: usize,
}

impl<D: Device> Default for LatentStore<D> {
    fn default() -> Self {
        Self {
            latents: Latents::default(),
            reserved: None,
        }
    }
}

impl<D: Device> LatentStore<D> {
    /// Whether there is no memory.
    pub(crate) fn is_empty(&mut self) -> bool {
        self.latents.all_mut().next().is_none()
    }

    /// Takes `memory` for all memories from now on.
    pub(crate) fn reserve(&mut self, memory: StreamMemory<D>, bytes: usize) {
        self.reserved = Some(Reserved {
            memory,
            heap: LatentHeap::new(bytes),
        });
    }

    /// Whether memories lie in reserved memory.
    pub(crate) fn is_reserved(&self) -> bool {
        self.reserved.is_some()
    }

    /// Adds a memory that lies by itself.
    pub(crate) fn insert_alone(&mut self, size: LatentSize, memory: StreamMemory<D>) -> LatentId {
        self.insert(size, Place::Alone(memory))
    }

    /// Adds a memory in the reserved memory, whose bytes are still what they were; returns where
    /// they are, too. Where no gap is large enough, all others are moved to the front by
    /// `move_bytes`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], and those of `move_bytes`.
    pub(crate) fn insert_reserved(
        &mut self,
        size: LatentSize,
        move_bytes: impl Fn(MovedBytes) -> Result<()>,
    ) -> Result<(LatentId, u64)> {
        let bytes = size.bytes();
        let full = Error::OutOfMemory {
            what: "a latent memory",
            bytes,
        };
        let Some(Reserved { memory, heap }) = &mut self.reserved else {
            return Err(full);
        };
        let base = memory.address();
        let start = match heap.alloc(bytes)? {
            Some(start) => start,
            None => {
                for Move { from, to, bytes } in heap.close_gaps() {
                    move_bytes(MovedBytes {
                        from: base + from as u64,
                        to: base + to as u64,
                        bytes,
                    })?;
                    for latent in self.latents.all_mut() {
                        if matches!(latent.place, Place::Reserved(start) if start == from) {
                            latent.place = Place::Reserved(to);
                        }
                    }
                }
                heap.alloc(bytes)?.ok_or(full)?
            }
        };
        let id = self.insert(size, Place::Reserved(start));
        Ok((id, base + start as u64))
    }

    fn insert(&mut self, size: LatentSize, place: Place<D>) -> LatentId {
        let LatentSize {
            kind,
            heads,
            stride,
        } = size;
        self.latents.insert(Latent {
            place,
            kind,
            heads,
            stride,
        })
    }

    /// Frees a memory; an id that is not in use changes nothing.
    pub(crate) fn free(&mut self, id: LatentId) {
        let Some(latent) = self.latents.remove(id) else {
            return;
        };
        if let (Place::Reserved(start), Some(reserved)) = (latent.place, &mut self.reserved) {
            reserved.heap.free(start);
        }
    }

    /// Sizes of a memory.
    ///
    /// # Errors
    /// [`Error::Index`] for an id that is not in use.
    pub(crate) fn size(&self, op: &'static str, id: LatentId) -> Result<LatentSize> {
        let &Latent {
            kind,
            heads,
            stride,
            ..
        } = self.latents.get(op, id)?;
        Ok(LatentSize {
            kind,
            heads,
            stride,
        })
    }

    /// State of one head of a memory.
    ///
    /// # Errors
    /// [`Error::Index`] for an id that is not in use, and for a head that the memory lacks.
    pub(crate) fn state(&self, op: &'static str, head: LatentHead) -> Result<HeadState<'_, D>> {
        let latent = self.latents.get(op, head.id)?;
        within(op, "latent head", head.head, latent.heads)?;
        let (memory, start) = match (&latent.place, &self.reserved) {
            (Place::Alone(memory), _) => (memory, 0),
            (&Place::Reserved(start), Some(reserved)) => (&reserved.memory, start),
            (Place::Reserved(_), None) => {
                return Err(Error::Device {
                    op,
                    what: "the reserved memory is gone".into(),
                });
            }
        };
        Ok(HeadState {
            kind: latent.kind,
            memory,
            offset: start + size_of::<f32>() * head.head * latent.stride,
        })
    }
}
