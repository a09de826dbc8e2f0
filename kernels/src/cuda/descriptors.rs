//! Descriptors: what a call hands to its kernels besides buffers.
//!
//! They are items, page tables and lists of numbers, packed for one upload, which is that of the
//! call or that of its step. An array that is pushed has a pointer at once. It names a place in the
//! descriptors, which becomes an address when the launch starts.

mod items;

pub(super) use items::Items;

use super::device::Device;
use super::launch::{Ptr, TAIL};
use super::stream::{Bucket, Stream, Workspace};
use crate::error::Result;

/// Descriptors of one call, which go up by themselves or, in a step of decoding, with those of the
/// step.
pub(super) struct Descriptors {
    bytes: Vec<u8>,
    tail: Vec<u8>,
    /// Bytes that calls before left in the step's fixed descriptors.
    fixed_before: usize,
    /// Bytes that they left in its tail.
    tail_before: usize,
    /// Sizes that arrays are padded to.
    bucket: Option<Bucket>,
}

/// An array of any length.
pub(super) struct Tail<T> {
    /// The array that it is part of.
    pub(super) array: Ptr<T>,
    /// Which value of that is its first.
    pub(super) first: u32,
}

impl Descriptors {
    /// Descriptors that have the call's own sizes, also in a step of decoding. The caller holds the
    /// backend's workspaces until it has sent them.
    pub(super) fn of_call<D: Device>(stream: &Stream<D>) -> Self {
        let next = stream.next_call();
        Self {
            bytes: Vec::new(),
            tail: Vec::new(),
            fixed_before: next.as_ref().map_or(0, |next| next.fixed),
            tail_before: next.as_ref().map_or(0, |next| next.tail),
            bucket: None,
        }
    }

    /// Descriptors that a step of decoding pads to the sizes of its bucket, where there is a step:
    /// arrays of any length go to its tail. The caller holds the backend's workspaces until it has
    /// sent them.
    pub(super) fn of_step<D: Device>(stream: &Stream<D>) -> Self {
        Self {
            bucket: stream.next_call().map(|next| next.bucket),
            ..Self::of_call(stream)
        }
    }

    /// Sizes that arrays are padded to; `None` where they have their own.
    pub(super) fn bucket(&self) -> Option<Bucket> {
        self.bucket
    }

    /// How many items a call of `count` items is launched for: in a step, those of its bucket.
    pub(super) fn items(&self, count: usize) -> usize {
        self.bucket.map_or(count, |bucket| count.max(bucket.items))
    }

    /// How many rows a call of `count` rows is launched for: in a step, those of its bucket.
    pub(super) fn rows(&self, count: usize) -> usize {
        self.bucket.map_or(count, |bucket| count.max(bucket.rows))
    }

    /// Adds an array. In a step, its length is that of all steps of the bucket.
    pub(super) fn push<T: bytemuck::NoUninit>(&mut self, values: &[T]) -> Ptr<T> {
        self.bytes.resize(self.bytes.len().next_multiple_of(16), 0);
        let array = Ptr::in_descriptors(self.fixed_before + self.bytes.len());
        self.bytes.extend_from_slice(bytemuck::cast_slice(values));
        array
    }

    /// Adds an array, followed by `fill` up to `len` values in all.
    pub(super) fn push_padded<T: bytemuck::NoUninit>(
        &mut self,
        values: &[T],
        len: usize,
        fill: T,
    ) -> Ptr<T> {
        let array = self.push(values);
        for _ in values.len()..len {
            self.bytes.extend_from_slice(bytemuck::bytes_of(&fill));
        }
        array
    }

    /// Adds an array of any length.
    pub(super) fn push_tail<T: bytemuck::NoUninit>(&mut self, values: &[T]) -> Tail<T> {
        if self.bucket.is_none() {
            return Tail {
                array: self.push(values),
                first: 0,
            };
        }
        // Calls count from the beginning of the tail in values of their own size, eight bytes at
        // least.
        let size = size_of::<T>().max(1);
        let begin = (self.tail_before + self.tail.len())
            .next_multiple_of(8)
            .next_multiple_of(size);
        self.tail.resize(begin - self.tail_before, 0);
        self.tail.extend_from_slice(bytemuck::cast_slice(values));
        Tail {
            array: Ptr::at(TAIL),
            first: (begin / size) as u32,
        }
    }

    /// Uploads everything to the workspace, or leaves that to the step. Launches of this call
    /// follow.
    ///
    /// # Errors
    /// Those of the device.
    pub(super) fn send<D: Device>(
        mut self,
        stream: &Stream<D>,
        workspace: &mut Workspace<D>,
    ) -> Result<()> {
        let padded = self.bytes.len().next_multiple_of(16).max(16);
        self.bytes.resize(padded, 0);
        if stream.append(&mut self.bytes, &mut self.tail) {
            return Ok(());
        }
        let base = stream.reserve(workspace, "descriptors", self.bytes.len())?;
        stream.upload(&self.bytes, workspace.memory()?, 0)?;
        stream.set_call(base);
        Ok(())
    }
}
