//! Collectives over a mesh: every rank is connected with every other one.
//!
//! A mesh moves bytes; sums are taken here, in rank order, so that every rank has the same bits,
//! and the same as [`super::local`]. Short vectors go from everyone to everyone in one round; long
//! ones are summed in slices, each by one rank, and gathered in a second round.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::{Collective, CollectiveError, add_bytes, check_gather, check_root};
use crate::{Place, even};

/// A part of a buffer, in bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Span {
    /// Its first byte.
    pub start: usize,
    /// Its length.
    pub len: usize,
}

/// One round between all ranks.
pub struct Round<'a> {
    /// Number of the round: messages of one never mix with those of another.
    pub slot: u64,
    /// What is done, for errors.
    pub operation: &'static str,
    /// What is sent: `sends[r]` of the bytes to rank `r`.
    pub out: (&'a [u8], &'a [Span]),
    /// What is received: `recvs[r]` of the bytes from rank `r`. Spans of a rank itself are left
    /// alone.
    pub into: (&'a mut [u8], &'a [Span]),
    /// When the round is given up.
    pub deadline: Instant,
}

/// Moves bytes between the ranks of a group.
pub trait Mesh: Send + Sync {
    /// See [`Collective::name`].
    const NAME: &'static str;

    /// Sends and receives; one round at a time. After an error the mesh is of no more use.
    ///
    /// # Errors
    /// See [`CollectiveError`].
    fn exchange(&self, round: Round<'_>) -> Result<(), CollectiveError>;

    /// Ends a round under way on another thread, and every later one; returns at once.
    fn abort(&self);
}

/// A rank's end of a group over a mesh.
pub struct MeshCollective<M> {
    place: Place,
    mesh: M,
    turn: Mutex<Turn>,
}

/// One call at a time.
#[derive(Default)]
struct Turn {
    slot: u64,
    /// What failed stays.
    failed: Option<CollectiveError>,
    scratch: Vec<u8>,
}

/// Vectors of up to so many bytes are summed in one round.
const ONE_ROUND: usize = 32 << 10;

impl<M: Mesh> MeshCollective<M> {
    /// The collectives of a mesh whose ranks have met.
    pub(super) fn new(place: Place, mesh: M) -> Self {
        Self {
            place,
            mesh,
            turn: Mutex::default(),
        }
    }

    fn turn(&self) -> MutexGuard<'_, Turn> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn exchange(&self, turn: &mut Turn, round: Round<'_>) -> Result<(), CollectiveError> {
        if let Some(error) = &turn.failed {
            return Err(error.clone());
        }
        let slot = turn.slot;
        turn.slot += 1;
        let done = self.mesh.exchange(Round { slot, ..round });
        turn.failed = done.clone().err();
        done
    }

    /// Sends `mine` to all, and puts what they send, `lens[r]` bytes from rank `r`, side by side
    /// into `all`.
    fn gather(
        &self,
        turn: &mut Turn,
        (operation, deadline): (&'static str, Instant),
        mine: &[u8],
        (all, lens): (&mut [u8], &[usize]),
    ) -> Result<(), CollectiveError> {
        let recvs = side_by_side(lens);
        let own = recvs[self.place.rank];
        let sends = vec![
            Span {
                start: 0,
                len: mine.len()
            };
            lens.len()
        ];
        let round = Round {
            slot: 0,
            operation,
            out: (mine, &sends),
            into: (all, &recvs),
            deadline,
        };
        self.exchange(turn, round)?;
        all[own.start..own.start + own.len].copy_from_slice(mine);
        Ok(())
    }

    fn reduce<T: bytemuck::Pod>(
        &self,
        call: (&'static str, Instant),
        values: &mut [T],
        add: impl Fn(T, T) -> T,
    ) -> Result<(), CollectiveError> {
        let Place { rank, world_size } = self.place;
        let mut turn = self.turn();
        // Taken out for the call; one that fails needs none any more.
        let mut scratch = std::mem::take(&mut turn.scratch);
        if size_of_val(values) <= ONE_ROUND {
            let mine: &[u8] = bytemuck::cast_slice(values);
            let lens = vec![mine.len(); world_size];
            scratch.resize(mine.len() * world_size, 0);
            self.gather(&mut turn, call, mine, (&mut scratch, &lens))?;
            sum_parts(values, &scratch, add);
            turn.scratch = scratch;
            return Ok(());
        }
        // A slice for every rank: sent to it, summed there, and sent back.
        let width = size_of::<T>();
        let slices: Vec<usize> = (0..world_size)
            .map(|r| even(values.len(), r, world_size).len() * width)
            .collect();
        let (sends, own) = (side_by_side(&slices), even(values.len(), rank, world_size));
        let recvs = side_by_side(&vec![own.len() * width; world_size]);
        scratch.resize(own.len() * width * world_size, 0);
        let (operation, deadline) = call;
        let (out, into) = (
            (bytemuck::cast_slice(values), &sends[..]),
            (&mut scratch[..], &recvs[..]),
        );
        self.exchange(
            &mut turn,
            Round {
                slot: 0,
                operation,
                out,
                into,
                deadline,
            },
        )?;
        let mut slice = values[own.clone()].to_vec();
        scratch[recvs[rank].start..][..recvs[rank].len]
            .copy_from_slice(bytemuck::cast_slice(&slice));
        sum_parts(&mut slice, &scratch, add);
        turn.scratch = scratch;
        let all = (bytemuck::cast_slice_mut(values), &slices[..]);
        self.gather(&mut turn, call, bytemuck::cast_slice(&slice), all)
    }
}

/// Sums equally long parts that lie side by side, in order.
fn sum_parts<T: bytemuck::Pod>(sum: &mut [T], parts: &[u8], add: impl Fn(T, T) -> T) {
    let len = size_of_val(sum);
    if len == 0 {
        return;
    }
    for (index, part) in parts.chunks_exact(len).enumerate() {
        if index == 0 {
            bytemuck::cast_slice_mut(sum).copy_from_slice(part);
        } else {
            add_bytes(sum, part, &add);
        }
    }
}

fn side_by_side(lens: &[usize]) -> Vec<Span> {
    let place = |start: &mut usize, &len: &usize| {
        let span = Span { start: *start, len };
        *start += len;
        Some(span)
    };
    lens.iter().scan(0, place).collect()
}

impl<M: Mesh> Collective for MeshCollective<M> {
    fn rank(&self) -> usize {
        self.place.rank
    }

    fn world_size(&self) -> usize {
        self.place.world_size
    }

    fn name(&self) -> &'static str {
        M::NAME
    }

    fn all_reduce_sum(&self, values: &mut [f32], deadline: Instant) -> Result<(), CollectiveError> {
        self.reduce(("all_reduce_sum", deadline), values, |sum, part| sum + part)
    }

    fn all_reduce_counts(
        &self,
        counts: &mut [u64],
        deadline: Instant,
    ) -> Result<(), CollectiveError> {
        self.reduce(("all_reduce_counts", deadline), counts, |sum: u64, part| {
            sum.wrapping_add(part)
        })
    }

    fn all_gather(
        &self,
        mine: &[u8],
        all: &mut [u8],
        deadline: Instant,
    ) -> Result<(), CollectiveError> {
        check_gather(self.world_size(), mine, all)?;
        let lens = vec![mine.len(); self.world_size()];
        self.gather(
            &mut self.turn(),
            ("all_gather", deadline),
            mine,
            (all, &lens),
        )
    }

    fn broadcast(
        &self,
        bytes: &mut [u8],
        root: usize,
        deadline: Instant,
    ) -> Result<(), CollectiveError> {
        check_root(self.world_size(), root)?;
        let own = self.rank() == root;
        let nothing = Span { start: 0, len: 0 };
        let all = Span {
            start: 0,
            len: bytes.len(),
        };
        let sends = vec![if own { all } else { nothing }; self.world_size()];
        let mut recvs = vec![nothing; self.world_size()];
        recvs[root].len = if own { 0 } else { bytes.len() };
        let (out, into): (&[u8], &mut [u8]) = if own { (bytes, &mut []) } else { (&[], bytes) };
        let round = Round {
            slot: 0,
            operation: "broadcast",
            out: (out, &sends),
            into: (into, &recvs),
            deadline,
        };
        self.exchange(&mut self.turn(), round)
    }

    fn abort(&self) {
        self.mesh.abort();
    }
}
