//! What can be put off: a kernel, a product of the vendor's library, a sum over ranks.

use super::{Arg, Device, Launch, Product};
use crate::error::Result;
use crate::sums::SumElement;

/// An array that is replaced by its sum over all ranks of the group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sum {
    /// Address of the array.
    pub address: u64,
    /// Elements.
    pub count: usize,
    /// Their type.
    pub element: SumElement,
}

/// Something that is started later.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    /// A kernel.
    Launch {
        /// Function of `kernels/cu`.
        kernel: &'static str,
        /// Blocks.
        grid: [u32; 3],
        /// Threads of a block.
        threads: u32,
        /// Bytes of dynamic shared memory.
        shared: u32,
        /// Arguments in order.
        args: Vec<Arg>,
    },
    /// A product by the vendor's library.
    Product(Product),
    /// A sum over ranks.
    Sum(Sum),
}

impl Command {
    /// Starts it.
    ///
    /// # Safety
    /// As [`Device::launch`], [`Device::product`] and [`Device::sum`].
    ///
    /// # Errors
    /// Those of the device.
    pub unsafe fn start<D: Device>(&self, device: &D) -> Result<()> {
        match self {
            &Self::Launch {
                kernel,
                grid,
                threads,
                shared,
                ref args,
            } => {
                // SAFETY: by the caller's contract.
                unsafe {
                    device.launch(&Launch {
                        kernel,
                        grid,
                        threads,
                        shared,
                        args,
                    })
                }
            }
            // SAFETY: by the caller's contract.
            Self::Product(product) => unsafe { device.product(product) },
            // SAFETY: by the caller's contract.
            Self::Sum(sum) => unsafe { device.sum(sum) },
        }
    }

    /// Whether other ranks take part in it.
    pub fn is_sum(&self) -> bool {
        matches!(self, Self::Sum(_))
    }
}
