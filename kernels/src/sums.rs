//! Sums over the ranks of a group that stay on the device: what a backend asks of whoever connects
//! the ranks.
//!
//! A backend puts an all-reduce between its kernels, on the same stream, so that neither the host
//! nor the bus sees the values and a step of decoding is one graph with its sums inside. Who
//! carries it out (NCCL, in `collective`) knows nothing of backends, and backends know nothing of
//! ranks: they meet in [`DeviceSums`].

use std::time::Instant;

use crate::error::Result;

/// Type of the values that are added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SumElement {
    /// f32, in an order that only the implementation knows: the same bits on all ranks.
    F32,
    /// 64-bit integers that wrap around, signed or not: exact in any order.
    U64,
}

impl SumElement {
    /// Bytes of one.
    pub const fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::U64 => 8,
        }
    }
}

/// One rank's part of a sum, an array on its device that the sum replaces.
#[derive(Debug)]
pub struct Summand<'a> {
    element: SumElement,
    place: Place<'a>,
}

/// Where an array lies, and when it may be read and written.
#[derive(Debug)]
pub enum Place<'a> {
    /// On a CUDA device, in the order of a stream. Only this crate makes one, and vouches for it:
    /// the stream (`CUstream`) is alive, its context is the calling thread's, and `count` elements
    /// from `address` on stay allocated until the stream has come by.
    Stream {
        /// Where it begins.
        address: u64,
        /// Elements.
        count: usize,
        /// `CUstream`.
        stream: u64,
    },
    /// In the host's memory, of a device without a stream: the sum is there when the call returns.
    Host(&'a mut [u8]),
}

impl<'a> Summand<'a> {
    /// An array in the host's memory, whole elements.
    pub fn on_host(element: SumElement, bytes: &'a mut [u8]) -> Self {
        debug_assert!(
            bytes.len().is_multiple_of(element.bytes()),
            "whole elements"
        );
        Self {
            element,
            place: Place::Host(bytes),
        }
    }

    /// An array that a stream gets to.
    ///
    /// # Safety
    /// As [`Place::Stream`] says, of `count` elements.
    pub(crate) unsafe fn on_stream(
        element: SumElement,
        address: u64,
        count: usize,
        stream: u64,
    ) -> Self {
        Self {
            element,
            place: Place::Stream {
                address,
                count,
                stream,
            },
        }
    }

    /// Type of its values.
    pub fn element(&self) -> SumElement {
        self.element
    }

    /// Where it lies.
    pub fn place(&mut self) -> Place<'_> {
        match &mut self.place {
            &mut Place::Stream {
                address,
                count,
                stream,
            } => Place::Stream {
                address,
                count,
                stream,
            },
            Place::Host(bytes) => Place::Host(bytes),
        }
    }
}

/// All-reduces of arrays on a device, over the ranks of one epoch of a group.
///
/// The contract is that of collectives: every rank makes the same calls in the same order with the
/// same sizes. The first failure is sticky, and every call fails from then on with the same
/// [`Error::Sums`](crate::Error::Sums).
pub trait DeviceSums: Send + Sync {
    /// What is asked for from now on has to be done by then.
    fn set_deadline(&self, deadline: Instant);

    /// Puts the sum of an array over all ranks on its stream, behind what is there; returns when it
    /// is there, which is not when it is done. A stream that is being captured captures it.
    ///
    /// # Errors
    /// [`Error::Sums`](crate::Error::Sums).
    fn all_reduce(&self, summand: Summand<'_>) -> Result<()>;

    /// Whether sums that are on a stream may still come to an end: whoever waits for the stream
    /// asks, for a kernel of NCCL waits for a dead rank as long as nobody ends it. Never waits.
    ///
    /// # Errors
    /// [`Error::Sums`](crate::Error::Sums), also when the deadline has passed.
    fn check(&self) -> Result<()>;

    /// One word of every rank, in rank order, over the host: for what all ranks have to do alike,
    /// such as to capture a step.
    ///
    /// # Errors
    /// [`Error::Sums`](crate::Error::Sums).
    fn gather(&self, word: u64) -> Result<Vec<u64>>;
}
