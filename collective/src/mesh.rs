//! Collectives over a mesh: every rank is connected with every other one.
//!
//! A mesh moves bytes; sums are taken here, in rank order, so that every rank has the same bits,
//! and the same as [`crate::local`]. Short vectors go from everyone to everyone in one round; long
//! ones are summed in slices, each by one rank, and gathered in a second round.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::checks::{add_bytes, check_gather, check_root};
use crate::communicator::{Collective, CollectiveError};
use crate::place::{Place, even};

/// A part of a buffer, in bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Span {
    /// Its first byte.
    pub start: usize,
    /// Its length.
    pub len: usize,
}

/// What a rank sends in a round. Its own span is left alone.
#[derive(Clone, Copy)]
pub struct Outgoing<'a> {
    /// What all spans are parts of.
    pub bytes: &'a [u8],
    /// `spans[r]` goes to rank `r`.
    pub spans: &'a [Span],
}

/// Where a rank puts what it receives in a round. Its own span is left alone.
pub struct Incoming<'a> {
    /// What all spans are parts of.
    pub bytes: &'a mut [u8],
    /// `spans[r]` comes from rank `r`.
    pub spans: &'a [Span],
}

/// One round between all ranks.
pub struct Round<'a> {
    /// Number of the round: messages of one never mix with those of another.
    pub slot: u64,
    /// What is done, for errors.
    pub operation: &'static str,
    /// What is sent.
    pub out: Outgoing<'a>,
    /// What is received.
    pub into: Incoming<'a>,
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

/// What is done, and when it is given up.
#[derive(Clone, Copy)]
struct Call {
    operation: &'static str,
    deadline: Instant,
}

/// Vectors of up to so many bytes are summed in one round.
const ONE_ROUND: usize = 32 << 10;

impl<M: Mesh> MeshCollective<M> {
    /// The collectives of a mesh whose ranks have met.
    pub(crate) fn new(place: Place, mesh: M) -> Self {
        Self {
            place,
            mesh,
            turn: Mutex::default(),
        }
    }

    fn turn(&self) -> MutexGuard<'_, Turn> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Carries out the next round, unless one failed before.
    fn exchange(
        &self,
        turn: &mut Turn,
        call: Call,
        out: Outgoing<'_>,
        into: Incoming<'_>,
    ) -> Result<(), CollectiveError> {
        if let Some(error) = &turn.failed {
            return Err(error.clone());
        }
        let slot = turn.slot;
        turn.slot += 1;
        let done = self.mesh.exchange(Round {
            slot,
            operation: call.operation,
            out,
            into,
            deadline: call.deadline,
        });
        turn.failed = done.clone().err();
        done
    }

    /// Sends `mine` to all, and puts what they send, `lens[r]` bytes from rank `r`, side by side
    /// into `all`.
    fn gather(
        &self,
        turn: &mut Turn,
        call: Call,
        mine: &[u8],
        all: &mut [u8],
        lens: &[usize],
    ) -> Result<(), CollectiveError> {
        let recvs = side_by_side(lens);
        let own = recvs[self.place.rank];
        let whole = Span {
            start: 0,
            len: mine.len(),
        };
        let out = Outgoing {
            bytes: mine,
            spans: &vec![whole; lens.len()],
        };
        let into = Incoming {
            bytes: all,
            spans: &recvs,
        };
        self.exchange(turn, call, out, into)?;
        all[own.start..own.start + own.len].copy_from_slice(mine);
        Ok(())
    }

    fn reduce<T: bytemuck::Pod>(
        &self,
        call: Call,
        values: &mut [T],
        add: impl Fn(T, T) -> T,
    ) -> Result<(), CollectiveError> {
        let mut turn = self.turn();
        // Taken out for the call; one that fails needs none any more.
        let mut scratch = std::mem::take(&mut turn.scratch);
        if size_of_val(values) <= ONE_ROUND {
            self.reduce_at_once(&mut turn, call, values, &mut scratch, add)?;
        } else {
            self.reduce_in_slices(&mut turn, call, values, &mut scratch, add)?;
        }
        turn.scratch = scratch;
        Ok(())
    }

    /// Every rank sends all to all, and sums all.
    fn reduce_at_once<T: bytemuck::Pod>(
        &self,
        turn: &mut Turn,
        call: Call,
        values: &mut [T],
        scratch: &mut Vec<u8>,
        add: impl Fn(T, T) -> T,
    ) -> Result<(), CollectiveError> {
        let mine: &[u8] = bytemuck::cast_slice(values);
        let lens = vec![mine.len(); self.place.world_size];
        scratch.resize(mine.len() * self.place.world_size, 0);
        self.gather(turn, call, mine, scratch, &lens)?;
        sum_parts(values, scratch, add);
        Ok(())
    }

    /// Every rank has a slice, which is sent to it, summed there, and sent back.
    fn reduce_in_slices<T: bytemuck::Pod>(
        &self,
        turn: &mut Turn,
        call: Call,
        values: &mut [T],
        scratch: &mut Vec<u8>,
        add: impl Fn(T, T) -> T,
    ) -> Result<(), CollectiveError> {
        let Place { rank, world_size } = self.place;
        let width = size_of::<T>();
        let slices: Vec<usize> = (0..world_size)
            .map(|r| even(values.len(), r, world_size).len() * width)
            .collect();
        let (sends, own) = (side_by_side(&slices), even(values.len(), rank, world_size));
        let recvs = side_by_side(&vec![own.len() * width; world_size]);
        scratch.resize(own.len() * width * world_size, 0);
        let out = Outgoing {
            bytes: bytemuck::cast_slice(values),
            spans: &sends,
        };
        let into = Incoming {
            bytes: scratch,
            spans: &recvs,
        };
        self.exchange(turn, call, out, into)?;
        let mut slice = values[own.clone()].to_vec();
        scratch[recvs[rank].start..][..recvs[rank].len]
            .copy_from_slice(bytemuck::cast_slice(&slice));
        sum_parts(&mut slice, scratch, add);
        let (mine, all) = (
            bytemuck::cast_slice(&slice),
            bytemuck::cast_slice_mut(values),
        );
        self.gather(turn, call, mine, all, &slices)
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
        let call = Call {
            operation: "all_reduce_sum",
            deadline,
        };
        self.reduce(call, values, |sum, part| sum + part)
    }

    fn all_reduce_counts(
        &self,
        counts: &mut [u64],
        deadline: Instant,
    ) -> Result<(), CollectiveError> {
        let call = Call {
            operation: "all_reduce_counts",
            deadline,
        };
        self.reduce(call, counts, u64::wrapping_add)
    }

    fn all_gather(
        &self,
        mine: &[u8],
        all: &mut [u8],
        deadline: Instant,
    ) -> Result<(), CollectiveError> {
        check_gather(self.world_size(), mine, all)?;
        let lens = vec![mine.len(); self.world_size()];
        let call = Call {
            operation: "all_gather",
            deadline,
        };
        self.gather(&mut self.turn(), call, mine, all, &lens)
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
        let call = Call {
            operation: "broadcast",
            deadline,
        };
        let out = Outgoing {
            bytes: out,
            spans: &sends,
        };
        let into = Incoming {
            bytes: into,
            spans: &recvs,
        };
        self.exchange(&mut self.turn(), call, out, into)
    }

    fn abort(&self) {
        self.mesh.abort();
    }
}
