//! The backend over a device: its buffers, its workspaces, and how a call launches kernels.
//!
//! A call checks its shapes, sends its descriptors and launches over all its items at once. Calls
//! take turns: they share the workspaces. The parts of [`Backend`](crate::Backend) are implemented
//! in the modules beside this one, which have the parts' names.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::checks::at_least;
use super::descriptors::Descriptors;
use super::device::Device;
use super::launch::kernels::PutWords;
use super::launch::{Kernel, Launch, Ptr, PtrMut};
use super::stream::{Stream, StreamMemory, Workspace};
use crate::backend::{Buffers, DecodeStep, Steps};
use crate::error::{Error, Result};

/// Slots of a split of attention: `SPLIT` of `kernels/cu/attention_decode.cu`.
pub(super) const SPLIT: usize = 512;

/// Values of an upload that goes with a step's descriptors, at most.
const MOST_VALUES_OF_A_STEP: usize = 1 << 20;

/// Type of weights on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precision {
    /// bfloat16 weights and activations in products, f32 sums: tensor cores.
    #[default]
    Bf16,
    /// f32 throughout: for parity with the CPU.
    F32,
}

/// The backend over a device.
pub struct CudaBackend<D: Device> {
    pub(super) stream: Stream<D>,
    pub(super) precision: Precision,
    workspaces: Mutex<Workspaces<D>>,
    /// Memory of lists of slots that nobody needs any more.
    pub(super) spare_lists: SpareMemory<D>,
}

/// Memory that was given back, to be used again: the stream works in order.
pub(super) type SpareMemory<D> = Arc<Mutex<Vec<SizedMemory<D>>>>;

/// Memory with its size.
pub(super) struct SizedMemory<D: Device> {
    pub(super) memory: StreamMemory<D>,
    pub(super) bytes: usize,
}

/// Device memory that calls use one after the other.
pub(super) struct Workspaces<D: Device> {
    /// Descriptors of the call, and a file's weights while they are loaded.
    pub(super) descriptors: Workspace<D>,
    /// Partial results of the call.
    pub(super) scratch: Workspace<D>,
    /// What ranks sum in fixed point.
    pub(super) fixed: Workspace<D>,
}

impl<D: Device> CudaBackend<D> {
    /// A backend over `device`. Steps of decoding are captured as graphs.
    pub fn new(device: D, precision: Precision) -> Self {
        Self {
            stream: Stream::new(device),
            precision,
            workspaces: Mutex::new(Workspaces {
                descriptors: Workspace::default(),
                scratch: Workspace::default(),
                fixed: Workspace::default(),
            }),
            spare_lists: SpareMemory::default(),
        }
    }

    /// This backend, which captures steps of decoding as graphs if `wanted`. Either way the same
    /// kernels run with the same arguments.
    #[must_use]
    pub fn with_graphs(self, wanted: bool) -> Self {
        self.stream.want_graphs(wanted);
        self
    }

    /// The device.
    pub fn device(&self) -> &D {
        &self.stream.device
    }

    /// The workspaces, which a call holds until it has started its launches.
    pub(super) fn workspaces(&self) -> MutexGuard<'_, Workspaces<D>> {
        // Every call overwrites what it uses: a panic elsewhere leaves nothing behind.
        self.workspaces
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Launches unless the grid is empty. Callers have checked that shapes, tables and buffers
    /// agree.
    pub(super) fn launch(&self, launch: Launch) -> Result<()> {
        if launch.grid.contains(&0) {
            return Ok(());
        }
        // SAFETY: a launch is made by `launch::kernels`, so its arguments are those that the kernel
        // declares. Every caller is a module of this backend and has checked buffer lengths and
        // page tables against the grid; all memory of the backend is `StreamMemory`.
        unsafe { self.stream.launch(launch) }
    }

    /// Copies words on the device, or zeroes them where `from` is null.
    pub(super) fn put_words(&self, from: Ptr<u32>, count: usize, out: PtrMut<u32>) -> Result<()> {
        self.launch(
            PutWords {
                from,
                count: count as u32,
                out,
            }
            .blocks(count.div_ceil(256)),
        )
    }
}

/// Array of f32 on a device.
pub struct Buffer<D: Device> {
    pub(super) memory: StreamMemory<D>,
    pub(super) len: usize,
}

impl<D: Device> Buffer<D> {
    /// Values it holds.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Address of the first value, for libraries that work on device memory.
    pub fn address(&self) -> u64 {
        self.memory.address()
    }

    /// Its values, for a kernel that reads them.
    pub(super) fn ptr(&self) -> Ptr<f32> {
        Ptr::at(self.address())
    }

    /// Its values, for a kernel that writes them.
    pub(super) fn ptr_mut(&mut self) -> PtrMut<f32> {
        PtrMut::at(self.address())
    }
}

impl<D: Device> Buffers for CudaBackend<D> {
    type Buffer = Buffer<D>;

    fn name(&self) -> String {
        let precision = match self.precision {
            Precision::Bf16 => "bf16",
            Precision::F32 => "f32",
        };
        format!("cuda {precision} ({})", self.device().name())
    }

    fn alloc(&self, len: usize) -> Result<Buffer<D>> {
        let bytes = len
            .checked_mul(size_of::<f32>())
            .ok_or(Error::OutOfMemory {
                what: "buffer",
                bytes: usize::MAX,
            })?;
        Ok(Buffer {
            memory: self.stream.alloc("buffer", bytes)?,
            len,
        })
    }

    fn upload(&self, src: &[f32], dst: &mut Buffer<D>, offset: usize) -> Result<()> {
        at_least("upload", "dst", dst.len, offset.saturating_add(src.len()))?;
        let mut work = self.workspaces();
        let mut descriptors = Descriptors::of_step(&self.stream);
        if descriptors.bucket().is_none() || src.len() > MOST_VALUES_OF_A_STEP {
            drop(work);
            let bytes = bytemuck::cast_slice(src);
            return self.stream.upload(bytes, &dst.memory, offset * 4);
        }
        let values = descriptors.push(src);
        descriptors.send(&self.stream, &mut work.descriptors)?;
        self.put_words(values.cast(), src.len(), dst.ptr_mut().skip(offset).cast())
    }

    fn download(&self, src: &Buffer<D>, offset: usize, dst: &mut [f32]) -> Result<()> {
        at_least("download", "src", src.len, offset.saturating_add(dst.len()))?;
        let bytes = bytemuck::cast_slice_mut(dst);
        self.stream.download(&src.memory, offset * 4, bytes)
    }
}

impl<D: Device> Steps for CudaBackend<D> {
    fn begin_decode(&self, step: &DecodeStep<'_>) -> Option<usize> {
        self.stream.begin_step(step, SPLIT)
    }

    fn end_decode(&self) -> Result<()> {
        self.stream.end_step()
    }

    fn cancel_decode(&self) {
        self.stream.cancel_step();
    }
}
