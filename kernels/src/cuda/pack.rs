//! What a call hands to its kernels besides buffers: items, page tables, lengths, packed for one
//! upload.

use super::queue::{Queue, Shape, TAIL};
use super::{Arg, Device, Region};
use crate::error::Result;

/// Descriptors of one call, packed for one upload, that of the call or that of its step.
pub(super) struct Pack {
    bytes: Vec<u8>,
    tail: Vec<u8>,
    /// Bytes of the step's tail that calls before left.
    before: usize,
    /// Sizes that arrays are padded to.
    pub(super) shape: Option<Shape>,
}

/// Where an array begins.
#[derive(Debug, Clone, Copy)]
pub(super) enum Part {
    /// In the call's own descriptors.
    Fixed(usize),
    /// At the beginning of the step's tail, whatever calls before put there.
    Tail,
    /// At this address, since an earlier step or with this one.
    Resident(u64),
}

impl Pack {
    /// An empty one.
    pub(super) fn new() -> Self {
        Self {
            bytes: Vec::new(),
            tail: Vec::new(),
            before: 0,
            shape: None,
        }
    }

    /// One for a call of a step of decoding: arrays are padded to the sizes of its bucket, and
    /// those of any length go to its tail. The backend's lock is held until it is uploaded.
    pub(super) fn of_step<D: Device>(queue: &Queue<D>) -> Self {
        let step = queue.shape();
        let (shape, before) = (step.map(|step| step.0), step.map_or(0, |step| step.1));
        Self {
            shape,
            before,
            ..Self::new()
        }
    }

    /// How often a call of `count` items is carried out: for all of the bucket in a step.
    pub(super) fn items(&self, count: usize) -> usize {
        self.shape.map_or(count, |shape| count.max(shape.items))
    }

    /// Adds an array. In a step, its length is that of all steps of the bucket.
    pub(super) fn push<T: bytemuck::NoUninit>(&mut self, values: &[T]) -> Part {
        self.bytes.resize(self.bytes.len().next_multiple_of(16), 0);
        let part = Part::Fixed(self.bytes.len());
        self.bytes.extend_from_slice(bytemuck::cast_slice(values));
        part
    }

    /// The same, followed by `fill` up to `len` values in all.
    pub(super) fn push_padded<T: bytemuck::NoUninit>(
        &mut self,
        values: &[T],
        len: usize,
        fill: T,
    ) -> Part {
        let part = self.push(values);
        for _ in values.len()..len {
            self.bytes.extend_from_slice(bytemuck::bytes_of(&fill));
        }
        part
    }

    /// Adds an array of any length; returns the array that it is part of, and which value of that
    /// is its first.
    pub(super) fn push_any<T: bytemuck::NoUninit>(&mut self, values: &[T]) -> (Part, usize) {
        if self.shape.is_none() {
            return (self.push(values), 0);
        }
        // Calls count from the beginning of the tail in values of their own size, eight bytes at
        // least.
        let size = size_of::<T>().max(1);
        let begin = (self.before + self.tail.len())
            .next_multiple_of(8)
            .next_multiple_of(size);
        self.tail.resize(begin - self.before, 0);
        self.tail.extend_from_slice(bytemuck::cast_slice(values));
        (Part::Tail, begin / size)
    }

    /// Uploads everything, or puts that off; the result turns parts into arguments.
    ///
    /// # Errors
    /// Those of the device.
    pub(super) fn upload<D: Device>(
        mut self,
        queue: &Queue<D>,
        stage: &mut Region<D>,
    ) -> Result<impl Fn(Part) -> Arg + use<D>> {
        self.bytes
            .resize(self.bytes.len().next_multiple_of(16).max(16), 0);
        let base = match queue.stage(&mut self.bytes, &mut self.tail) {
            Some(base) => base,
            None => {
                let base = stage.address(queue, "descriptors", self.bytes.len())?;
                queue.upload(&self.bytes, stage.memory()?, 0)?;
                base
            }
        };
        Ok(move |part: Part| match part {
            Part::Fixed(place) => Arg::Pointer(base + place as u64),
            Part::Tail => Arg::Pointer(TAIL),
            Part::Resident(address) => Arg::Pointer(address),
        })
    }
}
