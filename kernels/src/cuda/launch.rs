//! A kernel with its grid and its arguments.
//!
//! [`kernels`] states for every kernel which arguments it takes, with their names and types. A
//! launch is made there and nowhere else, so that an argument in a wrong place or of a wrong type
//! does not compile.

mod command;
pub(super) mod kernels;
mod pointer;
mod records;

pub use command::{Command, Product, Sum};
pub(super) use kernels::Kernel;
pub use pointer::Arg;
pub(super) use pointer::{Argument, Bf16, DESCRIPTORS, Ptr, PtrMut, Slots, SlotsMut, TAIL, Void};
pub(super) use records::{Cut, Floor, Item, NONE, Reduction, Sample};

/// A kernel with its grid and arguments.
#[derive(Debug, Clone, PartialEq)]
pub struct Launch {
    /// Function of `kernels/cu`.
    pub kernel: &'static str,
    /// Blocks along x, y and z. With 0 in it there is nothing to do.
    pub grid: [u32; 3],
    /// Threads of a block, a multiple of 32.
    pub threads: u32,
    /// Bytes of dynamic shared memory of a block.
    pub shared: u32,
    /// Arguments in order.
    pub args: Vec<Arg>,
}

impl Launch {
    /// Gives each block `bytes` of dynamic shared memory.
    pub(super) fn with_shared(mut self, bytes: usize) -> Self {
        self.shared = bytes as u32;
        self
    }

    /// Replaces places in the descriptors by addresses: the descriptors begin at `descriptors`,
    /// and their tail at `tail`.
    pub(super) fn resolve(&mut self, descriptors: u64, tail: u64) {
        for arg in &mut self.args {
            match arg {
                Arg::Pointer(place) if *place == TAIL => *place = tail,
                Arg::Pointer(place) if *place & DESCRIPTORS != 0 => {
                    *place = descriptors + (*place & !DESCRIPTORS);
                }
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_in_the_descriptors_become_addresses() {
        let mut launch = kernels::PutTables {
            tables: PtrMut::at(4096),
            header: Ptr::in_descriptors(32),
            changes: Ptr::at(TAIL),
        }
        .blocks(64);
        launch.resolve(1 << 20, (1 << 20) + 48);
        let want = [4096, (1 << 20) + 32, (1 << 20) + 48].map(Arg::Pointer);
        assert_eq!(launch.args, want);
        assert_eq!((launch.kernel, launch.grid), ("put_tables", [64, 1, 1]));
    }
}
