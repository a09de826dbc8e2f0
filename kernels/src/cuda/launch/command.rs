//! What a stream carries out in order: a launch, a product of the vendor's library, a sum over
//! ranks. A graph is a list of them.

use super::Launch;
use crate::sums::SumElement;

/// `out[rows, outputs] (+)= x[rows, cols] · w[outputs, cols]ᵀ`, bf16 in, f32 out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Product {
    /// Address of `x`, rows of `stride` elements.
    pub x: u64,
    /// Address of `w`, rows of `stride` elements.
    pub w: u64,
    /// Address of `out`.
    pub out: u64,
    /// `T`.
    pub rows: usize,
    /// `N`.
    pub outputs: usize,
    /// Elements of a row of `x` and `w`; zeros beyond the reduced axis.
    pub stride: usize,
    /// Add to what `out` holds.
    pub accumulate: bool,
}

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

/// What a stream carries out.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    /// A kernel.
    Launch(Launch),
    /// A product by the vendor's library.
    Product(Product),
    /// A sum over ranks.
    Sum(Sum),
}

impl Command {
    /// Whether other ranks take part in it.
    pub fn is_sum(&self) -> bool {
        matches!(self, Self::Sum(_))
    }
}
