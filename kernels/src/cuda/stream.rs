//! The stream: the one device's work in order, and the steps of decoding that are put off.
//!
//! Outside of a step every command starts at once. Between [`Stream::begin_step`] and
//! [`Stream::end_step`] nothing is uploaded or started: descriptors are gathered in one buffer, and
//! commands in a list. The first call that the host must wait for, or the step's end, starts all
//! of it:
//!
//! ```text
//! one upload   [ fixed: arrays whose sizes the bucket alone  | tail: changes of page tables and ]
//!              [        determines                           |       edits, as long as they are ]
//! commands     kernels, grids and arguments: addresses of buffers, places in `fixed`, the
//!              beginning of `tail`
//! ```
//!
//! Page tables stay on the device ([`page_tables`]). So a page that is added to a sequence, or a
//! sequence that joins its bucket, changes what is uploaded and no launch. A list of commands that
//! comes again is captured as a graph and replayed from then on ([`graph_cache`]). A graph is
//! replayed for the very list that it was captured from and for no other, so it cannot compute
//! anything else than the commands would have. Where the device cannot capture, the commands are
//! started one by one.

mod bucket;
mod graph_cache;
mod memory;
mod page_tables;
mod step;
mod workspace;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub(crate) use bucket::Bucket;
pub use bucket::bucket;
use graph_cache::GraphCache;
use memory::Parked;
pub(crate) use memory::StreamMemory;
pub(crate) use page_tables::PageTable;
use page_tables::{ENTRIES_PER_PAGE, PageTables};
use step::Step;
pub(crate) use workspace::{LEAST_BYTES, Workspace};

use super::device::Device;
use super::launch::{Command, Launch, Product, Ptr, Sum};
use crate::backend::DecodeStep;
use crate::error::{Error, Result};
use crate::sums::DeviceSums;

/// A device's work in order, some of which can be put off.
pub(crate) struct Stream<D: Device> {
    pub(crate) device: D,
    state: Mutex<State<D>>,
    parked: Arc<Parked<D>>,
}

struct State<D: Device> {
    step: Option<Step>,
    /// Descriptors of the step.
    workspace: Workspace<D>,
    /// Address of the descriptors of the call that is under way outside of a step.
    call: u64,
    graphs: GraphCache<D>,
    tables: PageTables,
    /// Where they are.
    array: Workspace<D>,
}

/// Where the descriptors of a step's next call will lie.
pub(crate) struct NextCall {
    pub(crate) bucket: Bucket,
    /// Bytes of the step's fixed descriptors so far.
    pub(crate) fixed: usize,
    /// Bytes of its tail so far.
    pub(crate) tail: usize,
}

/// Page tables of a call on the device.
pub(crate) struct Placed {
    /// Where each begins, in entries of the array.
    pub(crate) first: Vec<u32>,
    /// The array.
    pub(crate) tables: Ptr<u32>,
}

impl<D: Device> Stream<D> {
    pub(crate) fn new(device: D) -> Self {
        Self {
            device,
            state: Mutex::new(State {
                step: None,
                workspace: Workspace::default(),
                call: 0,
                graphs: GraphCache::default(),
                tables: PageTables::default(),
                array: Workspace::default(),
            }),
            parked: Parked::none(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State<D>> {
        // What a panic left of a step is dropped when the next one begins, and nothing else is ever
        // half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Captures graphs from now on, or does not.
    pub(crate) fn want_graphs(&self, wanted: bool) {
        self.state().graphs.want(wanted);
    }

    /// Puts off what is asked for from now on; `split`: slots of a run that attention is split
    /// into. Returns the rows of the bucket, `None` where there is none: then nothing is put off.
    pub(crate) fn begin_step(&self, step: &DecodeStep<'_>, split: usize) -> Option<usize> {
        let bucket = Bucket::of(step, split)?;
        self.parked.keep();
        let mut state = self.state();
        state.tables.begin();
        state.step = Some(Step::new(bucket));
        Some(bucket.rows)
    }

    /// Starts what was put off. From now on everything takes effect at once.
    ///
    /// # Errors
    /// Those of the device.
    pub(crate) fn end_step(&self) -> Result<()> {
        let done = self.flush();
        self.cancel_step();
        done
    }

    /// Drops what was put off. From now on everything takes effect at once.
    pub(crate) fn cancel_step(&self) {
        let mut state = self.state();
        state.step = None;
        if !state.tables.take_changes().is_empty() {
            state.tables.forget();
        }
        drop(state);
        self.parked.free();
    }

    /// Sums over ranks go to `sums` from now on, or to nobody.
    pub(crate) fn join_sums(&self, sums: Option<Arc<dyn DeviceSums>>) {
        self.device.join_sums(sums.clone());
        self.state().graphs.join_sums(sums);
    }

    /// Passes a result on. With failed sums go the graphs that contain any: NCCL gives back nothing
    /// of a communicator that one of them still names.
    fn watched<T>(&self, result: Result<T>) -> Result<T> {
        if let Err(Error::Sums(_)) = &result {
            self.state().graphs.join_sums(None);
        }
        result
    }

    /// Starts what was put off so far.
    fn flush(&self) -> Result<()> {
        let started = self.start().inspect_err(|_| self.state().tables.forget());
        self.watched(started)
    }

    fn start(&self) -> Result<()> {
        let State {
            step,
            workspace,
            graphs,
            tables,
            array,
            ..
        } = &mut *self.state();
        let Some(step) = step.as_mut().filter(|step| !step.commands.is_empty()) else {
            return Ok(());
        };
        if step.reads_tables {
            let address = self.reserve(array, "page tables", 0)?;
            step.put_tables(&tables.take_changes(), address);
        }
        let mut ready = step.take();
        let bytes = ready.descriptors.len();
        let base = self.reserve(workspace, "descriptors of a step", bytes.max(16))?;
        if bytes > 0 {
            let memory = workspace.memory()?.memory();
            self.device.upload(&ready.descriptors, memory, 0)?;
        }
        ready.resolve(base);
        // SAFETY: the commands were made by `launch`, `product` and `sum`, whose callers vouch for
        // them; the memory that they name is there, by `StreamMemory`.
        unsafe { graphs.start(&self.device, ready.commands) }
    }

    /// Zeroed memory.
    ///
    /// # Errors
    /// Those of [`Device::alloc`].
    pub(crate) fn alloc(&self, what: &'static str, bytes: usize) -> Result<StreamMemory<D>> {
        let memory = self.device.alloc(what, bytes)?;
        Ok(StreamMemory::new(memory, self.parked.clone()))
    }

    /// The address of at least `bytes` bytes of a workspace, whose values are undefined.
    ///
    /// # Errors
    /// Those of [`Device::alloc`].
    pub(crate) fn reserve(
        &self,
        workspace: &mut Workspace<D>,
        what: &'static str,
        bytes: usize,
    ) -> Result<u64> {
        if !workspace.holds(bytes) {
            // The old memory goes first: together they might not fit.
            workspace.clear();
            let grown = Workspace::<D>::grown(bytes);
            *workspace = Workspace::of(self.alloc(what, grown)?, grown);
        }
        Ok(workspace.memory()?.address())
    }

    /// Copies to the device, after what was put off.
    ///
    /// # Errors
    /// Those of the device.
    pub(crate) fn upload(&self, src: &[u8], dst: &StreamMemory<D>, offset: usize) -> Result<()> {
        self.flush()?;
        self.watched(self.device.upload(src, dst.memory(), offset))
    }

    /// Copies from the device, after what was put off.
    ///
    /// # Errors
    /// Those of the device.
    pub(crate) fn download(
        &self,
        src: &StreamMemory<D>,
        offset: usize,
        dst: &mut [u8],
    ) -> Result<()> {
        self.flush()?;
        self.watched(self.device.download(src.memory(), offset, dst))
    }

    /// Starts a kernel, or puts it off.
    ///
    /// # Safety
    /// As [`Device::launch`]; what it reads and writes is [`StreamMemory`], or descriptors of the
    /// call.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub(crate) unsafe fn launch(&self, mut launch: Launch) -> Result<()> {
        let mut state = self.state();
        if let Some(step) = &mut state.step {
            step.commands.push(Command::Launch(launch));
            return Ok(());
        }
        launch.resolve(state.call, state.call);
        drop(state);
        // SAFETY: by the caller's contract.
        unsafe { self.device.launch(&launch) }
    }

    /// Starts a product of the vendor's library, or puts it off; `false` where there is no library.
    ///
    /// # Safety
    /// As [`Device::product`]; all three matrices are [`StreamMemory`].
    ///
    /// # Errors
    /// [`Error::Device`].
    pub(crate) unsafe fn product(&self, product: &Product) -> Result<bool> {
        if !self.device.has_products() {
            return Ok(false);
        }
        if let Some(step) = &mut self.state().step {
            step.commands.push(Command::Product(*product));
            return Ok(true);
        }
        // SAFETY: by the caller's contract.
        unsafe { self.device.product(product) }?;
        Ok(true)
    }

    /// Starts a sum over ranks, or puts it off.
    ///
    /// # Safety
    /// As [`Device::sum`]; the array is [`StreamMemory`].
    ///
    /// # Errors
    /// [`Error::Sums`].
    pub(crate) unsafe fn sum(&self, sum: &Sum) -> Result<()> {
        if let Some(step) = &mut self.state().step {
            step.commands.push(Command::Sum(*sum));
            return Ok(());
        }
        // SAFETY: by the caller's contract.
        self.watched(unsafe { self.device.sum(sum) })
    }

    /// Where the descriptors of the next call will lie, where calls are put off.
    pub(crate) fn next_call(&self) -> Option<NextCall> {
        self.state().step.as_ref().map(|step| NextCall {
            bucket: step.bucket,
            fixed: step.fixed.len(),
            tail: step.tail.len(),
        })
    }

    /// Moves a call's descriptors to those of the step. `false`: nothing is put off, and nothing
    /// was moved.
    pub(crate) fn append(&self, fixed: &mut Vec<u8>, tail: &mut Vec<u8>) -> bool {
        let mut state = self.state();
        let Some(step) = &mut state.step else {
            return false;
        };
        step.fixed.append(fixed);
        step.tail.append(tail);
        true
    }

    /// The descriptors of the call that is under way lie at `address`.
    pub(crate) fn set_call(&self, address: u64) {
        self.state().call = address;
    }

    /// Makes room for the page tables of an arena of `pages` pages.
    ///
    /// # Errors
    /// Those of [`Device::alloc`].
    pub(crate) fn reserve_tables(&self, pages: usize) -> Result<()> {
        let entries = pages.saturating_mul(ENTRIES_PER_PAGE);
        let State { tables, array, .. } = &mut *self.state();
        if entries > tables.capacity() {
            // The old ones go first: together they might not fit.
            array.clear();
            let bytes = size_of::<u32>() * entries;
            *array = Workspace::of(self.alloc("page tables", bytes)?, bytes);
            *tables = PageTables::new(entries);
        }
        Ok(())
    }

    /// Where the page tables of a call of the step lie on the device; `None`: not there.
    pub(crate) fn place(&self, known: &[PageTable<'_>]) -> Option<Placed> {
        let State {
            step,
            tables,
            array,
            ..
        } = &mut *self.state();
        let (step, memory) = (step.as_mut()?, array.memory().ok()?);
        let first = tables.place(known)?;
        step.reads_tables = true;
        Some(Placed {
            first,
            tables: Ptr::at(memory.address()),
        })
    }
}
