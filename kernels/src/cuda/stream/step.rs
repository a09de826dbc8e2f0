//! A step of decoding while it is put off: its descriptors and its commands.

use super::bucket::Bucket;
use super::page_tables::Change;
use crate::cuda::launch::kernels::PutTables;
use crate::cuda::launch::{Command, Kernel, Ptr, PtrMut, TAIL};

/// Blocks that write changes of page tables: two of each sequence of a large batch, where all heads
/// take a page at once.
const PUT_BLOCKS: usize = 64;

/// What was asked for since the step began, or since it was started last.
pub(super) struct Step {
    pub(super) bucket: Bucket,
    /// Descriptors whose sizes the bucket alone determines.
    pub(super) fixed: Vec<u8>,
    /// Descriptors of any length, which lie behind those.
    pub(super) tail: Vec<u8>,
    pub(super) commands: Vec<Command>,
    /// Whether any command reads page tables that stay on the device.
    pub(super) reads_tables: bool,
}

/// A step that is ready to start: one upload, then the commands.
pub(super) struct Ready {
    pub(super) descriptors: Vec<u8>,
    /// Where in the descriptors the tail begins.
    pub(super) tail: usize,
    pub(super) commands: Vec<Command>,
}

impl Step {
    pub(super) fn new(bucket: Bucket) -> Self {
        Self {
            bucket,
            fixed: Vec::new(),
            tail: Vec::new(),
            commands: Vec::new(),
            reads_tables: false,
        }
    }

    /// Puts a launch before all others that writes changes to the page tables at `tables`. It is
    /// the same in all steps of the bucket, since the changes go to the tail.
    pub(super) fn put_tables(&mut self, changes: &[Change], tables: u64) {
        self.tail
            .resize(self.tail.len().next_multiple_of(size_of::<Change>()), 0);
        let first = self.tail.len() / size_of::<Change>();
        let header = [first as u32, changes.len() as u32, 0, 0];
        self.tail.extend_from_slice(bytemuck::cast_slice(changes));
        let launch = PutTables {
            tables: PtrMut::at(tables),
            header: Ptr::in_descriptors(self.fixed.len()),
            changes: Ptr::at(TAIL),
        }
        .blocks(PUT_BLOCKS);
        self.fixed.extend_from_slice(bytemuck::cast_slice(&header));
        self.commands.insert(0, Command::Launch(launch));
    }

    /// Takes all that was asked for. The step goes on empty.
    pub(super) fn take(&mut self) -> Ready {
        let mut descriptors = std::mem::take(&mut self.fixed);
        let tail = descriptors.len();
        descriptors.append(&mut self.tail);
        self.reads_tables = false;
        Ready {
            descriptors,
            tail,
            commands: std::mem::take(&mut self.commands),
        }
    }
}

impl Ready {
    /// Replaces places in the descriptors by addresses, once these lie at `base`.
    pub(super) fn resolve(&mut self, base: u64) {
        for command in &mut self.commands {
            if let Command::Launch(launch) = command {
                launch.resolve(base, base + self.tail as u64);
            }
        }
    }
}
