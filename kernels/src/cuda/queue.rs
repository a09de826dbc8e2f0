//! The device behind the backend, and the steps of decoding that are put off.
//!
//! Between [`Queue::open`] and [`Queue::close`] nothing is uploaded or launched: descriptors are
//! gathered in one buffer, launches in a list. The first call that the host must wait for, or the
//! end, starts all of it:
//!
//! ```text
//! one upload   [ fixed: arrays whose sizes the bucket alone determines | tail: changes of page tables and edits, as long as they are ]
//! launches     kernels, grids and arguments: addresses of buffers, places in `fixed`, the beginning of `tail`
//! ```
//!
//! Page tables lie on the device (`tables.rs`). A page that is added to a sequence, or a sequence
//! that joins its batch bucket, changes what is uploaded and no launch. A list of launches that was
//! seen before is captured as a graph and replayed from then on. A graph is replayed for the very
//! list that it was captured from and for no other, so it cannot compute anything else than the
//! launches would have. Where the device cannot capture, the launches are started one by one
//! (`graphs.rs`).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::command::{Command, Sum};
use super::graphs::Graphs;
use super::tables::{ENTRIES_PER_PAGE, Table, Tables};
use super::{Arg, Device, Launch, Product, Region};
use crate::backend::DecodeStep;
use crate::error::{Error, Result};
use crate::sums::DeviceSums;

/// Blocks that write changes of page tables: two of each sequence of a large batch, where all heads
/// take a page at once.
const PUT_BLOCKS: u32 = 64;
/// Marks an address in a list of launches as a place in the step's descriptors; no device has such
/// addresses.
const STAGED: u64 = 1 << 63;
/// The beginning of the tail.
pub(super) const TAIL: u64 = STAGED | 1 << 62;

/// Sequences that a step of decoding is padded to: a graph is captured for each of these sizes.
/// `None`: too many for one.
pub fn bucket(rows: usize) -> Option<usize> {
    match rows {
        0 => None,
        1..=2 => Some(rows),
        3..=4 => Some(4),
        5..=8 => Some(8),
        9..=64 => Some(rows.next_multiple_of(if rows <= 32 { 8 } else { 16 })),
        65..=128 => Some(rows.next_multiple_of(32)),
        129..=256 => Some(rows.next_multiple_of(64)),
        _ => None,
    }
}

/// `count` rounded up to four sizes for each power of two.
fn coarse(count: usize) -> usize {
    let step = (count.next_power_of_two() / 8).max(1);
    count.next_multiple_of(step)
}

/// Sizes that all steps of a bucket have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    /// Sequences, padded.
    pub(super) rows: usize,
    /// KV heads of all of them in a layer: items of a call.
    pub(super) items: usize,
    /// Runs of slots that attention is split into, in the layer that has most.
    pub(super) splits: usize,
    /// Whether any head has more than one of them.
    pub(super) merges: bool,
}

impl Shape {
    fn new(rows: usize, step: &DecodeStep<'_>, split: usize) -> Self {
        let splits = |layer: &Vec<usize>| {
            layer
                .iter()
                .map(|slots| slots.div_ceil(split))
                .sum::<usize>()
        };
        let most = step.slots.iter().map(splits).max().unwrap_or(0);
        Self {
            rows,
            items: rows * step.kv_heads,
            // As if the sequences that are missing to the bucket were like those that are there.
            splits: coarse((most * rows).div_ceil(step.rows.max(1))),
            merges: step.slots.iter().flatten().any(|&slots| slots > split),
        }
    }
}

/// What was asked for since the step began, or since it was started last.
struct Step {
    shape: Shape,
    fixed: Vec<u8>,
    tail: Vec<u8>,
    commands: Vec<Command>,
    /// Whether any of them reads page tables that stay on the device.
    resident: bool,
}

impl Step {
    /// The kernel that puts changes where `tables` are, the same in all steps of the bucket; the
    /// changes go to the tail.
    fn put_tables(&mut self, changes: &[[u32; 2]], tables: u64) -> Command {
        self.tail.resize(self.tail.len().next_multiple_of(8), 0);
        let header = [(self.tail.len() / 8) as u32, changes.len() as u32, 0, 0];
        self.tail.extend_from_slice(bytemuck::cast_slice(changes));
        let place = STAGED | self.fixed.len() as u64;
        self.fixed.extend_from_slice(bytemuck::cast_slice(&header));
        let args = [tables, place, TAIL].map(Arg::Pointer).to_vec();
        Command::Launch {
            kernel: "put_tables",
            grid: [PUT_BLOCKS, 1, 1],
            threads: 256,
            shared: 0,
            args,
        }
    }
}

struct State<D: Device> {
    step: Option<Step>,
    stage: Region<D>,
    graphs: Graphs<D>,
    tables: Tables,
    /// Where they are.
    array: Region<D>,
}

/// A device that can put off what it is asked for.
pub(super) struct Queue<D: Device> {
    pub(super) device: D,
    state: Mutex<State<D>>,
    yard: Arc<Yard<D>>,
}

/// Memory that was dropped while launches that may use it were put off.
struct Yard<D: Device>(Mutex<Option<Vec<D::Memory>>>);

impl<D: Device> Yard<D> {
    fn lock(&self) -> MutexGuard<'_, Option<Vec<D::Memory>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Memory that outlives the launches which were put off: dropped meanwhile, it is freed after they
/// were started.
pub(super) struct Held<D: Device> {
    memory: Option<D::Memory>,
    yard: Arc<Yard<D>>,
}

impl<D: Device> Held<D> {
    pub(super) fn address(&self) -> u64 {
        D::address(self.memory())
    }

    fn memory(&self) -> &D::Memory {
        self.memory.as_ref().expect("there until this is dropped")
    }
}

impl<D: Device> Drop for Held<D> {
    fn drop(&mut self) {
        if let Some(parked) = &mut *self.yard.lock() {
            parked.extend(self.memory.take());
        }
    }
}

impl<D: Device> Queue<D> {
    pub(super) fn new(device: D) -> Self {
        let graphs = Graphs::default();
        let empty = || Region {
            memory: None,
            bytes: 0,
        };
        let state = State {
            step: None,
            stage: empty(),
            graphs,
            tables: Tables::default(),
            array: empty(),
        };
        Self {
            device,
            state: Mutex::new(state),
            yard: Arc::new(Yard(Mutex::new(None))),
        }
    }

    fn state(&self) -> MutexGuard<'_, State<D>> {
        // What a panic left of a step is dropped when the next one begins, and nothing else is ever
        // half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Captures graphs from now on, or does not.
    pub(super) fn want_graphs(&self, wanted: bool) {
        self.state().graphs.want(wanted);
    }

    /// Puts off what is asked for from now on; `split`: slots of a run that attention is split
    /// into. Returns the rows of the bucket, `None` where there is none: then nothing is put off.
    pub(super) fn open(&self, step: &DecodeStep<'_>, split: usize) -> Option<usize> {
        let rows = bucket(step.rows)?;
        let shape = Shape::new(rows, step, split);
        self.yard.lock().get_or_insert_default();
        let mut state = self.state();
        state.tables.begin();
        let (fixed, tail, commands) = (Vec::new(), Vec::new(), Vec::new());
        state.step = Some(Step {
            shape,
            fixed,
            tail,
            commands,
            resident: false,
        });
        Some(rows)
    }

    /// Starts what was put off. From now on everything takes effect at once.
    ///
    /// # Errors
    /// Those of the device.
    pub(super) fn close(&self) -> Result<()> {
        let done = self.flush();
        self.forget();
        done
    }

    /// Drops what was put off. From now on everything takes effect at once.
    pub(super) fn forget(&self) {
        let mut state = self.state();
        state.step = None;
        if !state.tables.take_changes().is_empty() {
            state.tables.forget();
        }
        drop(state);
        let parked = self.yard.lock().take();
        drop(parked);
    }

    /// Starts what was put off so far.
    fn flush(&self) -> Result<()> {
        let started = self.start().inspect_err(|_| self.state().tables.forget());
        self.watched(started)
    }

    /// Whoever connects the ranks from now on.
    pub(super) fn join_sums(&self, sums: Option<Arc<dyn DeviceSums>>) {
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

    fn start(&self) -> Result<()> {
        let State {
            step,
            stage,
            graphs,
            tables,
            array,
        } = &mut *self.state();
        let Some(step) = step else { return Ok(()) };
        if step.commands.is_empty() {
            return Ok(());
        }
        let mut commands = std::mem::take(&mut step.commands);
        if std::mem::take(&mut step.resident) {
            commands.insert(
                0,
                step.put_tables(
                    &tables.take_changes(),
                    array.address(self, "page tables", 0)?,
                ),
            );
        }
        let (mut bytes, tail) = (
            std::mem::take(&mut step.fixed),
            std::mem::take(&mut step.tail),
        );
        let begin = bytes.len() as u64;
        bytes.extend_from_slice(&tail);
        let base = stage.address(self, "descriptors of a step", bytes.len().max(16))?;
        if !bytes.is_empty() {
            self.device.upload(&bytes, stage.memory()?.memory(), 0)?;
        }
        for command in &mut commands {
            let Command::Launch { args, .. } = command else {
                continue;
            };
            for arg in args {
                match arg {
                    Arg::Pointer(TAIL) => *arg = Arg::Pointer(base + begin),
                    Arg::Pointer(place) if *place & STAGED != 0 => {
                        *arg = Arg::Pointer(base + (*place & !STAGED))
                    }
                    _ => {}
                }
            }
        }
        // SAFETY: the commands were made by `launch`, `product` and `sum`, whose callers vouch for
        // them; the memory that they name is there, by `Held`.
        unsafe { graphs.start(&self.device, commands) }
    }

    /// Zeroed memory.
    ///
    /// # Errors
    /// Those of [`Device::alloc`].
    pub(super) fn alloc(&self, what: &'static str, bytes: usize) -> Result<Held<D>> {
        Ok(Held {
            memory: Some(self.device.alloc(what, bytes)?),
            yard: self.yard.clone(),
        })
    }

    /// Copies to the device, after what was put off.
    ///
    /// # Errors
    /// Those of the device.
    pub(super) fn upload(&self, src: &[u8], dst: &Held<D>, offset: usize) -> Result<()> {
        self.flush()?;
        self.watched(self.device.upload(src, dst.memory(), offset))
    }

    /// Copies from the device, after what was put off.
    ///
    /// # Errors
    /// Those of the device.
    pub(super) fn download(&self, src: &Held<D>, offset: usize, dst: &mut [u8]) -> Result<()> {
        self.flush()?;
        self.watched(self.device.download(src.memory(), offset, dst))
    }

    /// Starts a kernel, or puts it off.
    ///
    /// # Safety
    /// As [`Device::launch`]; what it reads and writes is [`Held`].
    ///
    /// # Errors
    /// [`Error::Device`].
    pub(super) unsafe fn launch(&self, launch: &Launch<'_>) -> Result<()> {
        if let Some(step) = &mut self.state().step {
            let &Launch {
                kernel,
                grid,
                threads,
                shared,
                args,
            } = launch;
            step.commands.push(Command::Launch {
                kernel,
                grid,
                threads,
                shared,
                args: args.to_vec(),
            });
            return Ok(());
        }
        // SAFETY: by the caller's contract.
        unsafe { self.device.launch(launch) }
    }

    /// Starts a product of the vendor's library, or puts it off; `false` where there is no library.
    ///
    /// # Safety
    /// As [`Device::product`]; all three matrices are [`Held`].
    ///
    /// # Errors
    /// [`Error::Device`].
    pub(super) unsafe fn product(&self, product: &Product) -> Result<bool> {
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
    /// As [`Device::sum`]; the array is [`Held`].
    ///
    /// # Errors
    /// [`Error::Sums`].
    pub(super) unsafe fn sum(&self, sum: &Sum) -> Result<()> {
        if let Some(step) = &mut self.state().step {
            step.commands.push(Command::Sum(*sum));
            return Ok(());
        }
        // SAFETY: by the caller's contract.
        self.watched(unsafe { self.device.sum(sum) })
    }

    /// Sizes of the step's bucket, and bytes of its tail so far, where calls are put off.
    pub(super) fn shape(&self) -> Option<(Shape, usize)> {
        self.state()
            .step
            .as_ref()
            .map(|step| (step.shape, step.tail.len()))
    }

    /// Makes room for the page tables of an arena of `pages` pages.
    ///
    /// # Errors
    /// Those of [`Device::alloc`].
    pub(super) fn reserve_tables(&self, pages: usize) -> Result<()> {
        let entries = pages.saturating_mul(ENTRIES_PER_PAGE);
        let State { tables, array, .. } = &mut *self.state();
        if entries > tables.capacity() {
            array.memory = None;
            let memory = self.alloc("page tables", 4 * entries)?;
            (*array, *tables) = (
                Region {
                    memory: Some(memory),
                    bytes: 4 * entries,
                },
                Tables::new(entries),
            );
        }
        Ok(())
    }

    /// Where the tables of a call of the step lie on the device, and the address that they count
    /// from; `None`: not there.
    pub(super) fn place(&self, known: &[Table<'_>]) -> Option<(Vec<u32>, u64)> {
        let State {
            step,
            tables,
            array,
            ..
        } = &mut *self.state();
        let (step, memory) = (step.as_mut()?, array.memory.as_ref()?);
        let places = tables.place(known)?;
        step.resident = true;
        Some((places, memory.address()))
    }

    /// Moves a call's descriptors to those of the step; returns the address that its launches find
    /// the fixed ones at. `None`: nothing is put off, and nothing was moved.
    pub(super) fn stage(&self, fixed: &mut Vec<u8>, tail: &mut Vec<u8>) -> Option<u64> {
        let mut state = self.state();
        let step = state.step.as_mut()?;
        let address = STAGED | step.fixed.len() as u64;
        step.fixed.append(fixed);
        step.tail.append(tail);
        Some(address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_hold_their_sequences_and_are_few() {
        let all: Vec<usize> = (1..=256)
            .map(|rows| bucket(rows).expect("a bucket"))
            .collect();
        assert!(all.iter().zip(1..).all(|(&bucket, rows)| bucket >= rows));
        let mut sizes = all;
        sizes.dedup();
        assert_eq!(sizes, [1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256]);
        assert_eq!((bucket(0), bucket(257)), (None, None));
    }

    #[test]
    fn coarse_counts_waste_a_quarter_at_most() {
        for count in 1..5000 {
            let got = coarse(count);
            assert!(
                got >= count && got <= count + count / 4 + 1,
                "{count}: {got}"
            );
        }
        assert_eq!(coarse(0), 0);
    }
}
