//! A task of a product: which panels it multiplies, and where its sums go.

use std::ops::{AddAssign, Range};

use super::super::cell::PANEL;
use super::super::pool::SendPtr;
use super::super::totals::Ends;

/// Where products go: the columns of one part in `out`.
#[derive(Clone, Copy)]
pub(crate) struct Sink<'a, T> {
    /// The whole array.
    pub out: &'a SendPtr<T>,
    /// The part's first column.
    pub first: usize,
    /// Columns of `out`.
    pub stride: usize,
    /// Columns of the part.
    pub cols: usize,
    /// Added to every row, where there is one.
    pub bias: Option<&'a [T]>,
}

impl<T: Copy + AddAssign> Sink<'_, T> {
    /// Writes output rows `8 panel ..` of token row `row`, those that exist.
    #[inline(always)]
    pub fn write(&self, panel: usize, row: usize, mut values: [T; PANEL]) {
        let col = panel * PANEL;
        if let Some(bias) = self.bias {
            values
                .iter_mut()
                .zip(&bias[self.first + col..])
                .for_each(|(value, bias)| *value += *bias);
        }
        let count = PANEL.min(self.cols - col);
        // SAFETY: `product` checked that `out` holds `rows * stride` values; `row` is below `rows`,
        // and `first + col + count` is at most `stride`. Each panel belongs to one task, so no
        // other thread touches these values.
        unsafe {
            let out = self.out.get().add(row * self.stride + self.first + col);
            if count == PANEL {
                out.cast::<[T; PANEL]>().write_unaligned(values)
            } else {
                copy(&values[..count], out)
            }
        }
    }
}

/// Copies a few values.
///
/// # Safety
/// `out` is writable for the length of `values`.
#[cold]
unsafe fn copy<T>(values: &[T], out: *mut T) {
    // SAFETY: the caller's promise.
    unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), out, values.len()) }
}

/// What of a part a task does, and where its units end.
#[derive(Clone)]
pub(crate) struct Cut<'a> {
    /// Panels of the part.
    pub panels: Range<usize>,
    /// Where units end.
    pub ends: &'a Ends<'a>,
}
