//! Checks of sizes and indices, which every call makes before it launches anything.

pub(crate) use crate::error::at_least;
use crate::error::{Error, Result};

/// Checks that `what` has exactly `want` elements.
pub(crate) fn exactly(op: &'static str, what: &'static str, got: usize, want: usize) -> Result<()> {
    if got == want {
        return Ok(());
    }
    Err(Error::Shape {
        op,
        what,
        got,
        want,
    })
}

/// Checks that `index` is one of `len`.
pub(crate) fn within(op: &'static str, what: &'static str, index: usize, len: usize) -> Result<()> {
    if index < len {
        return Ok(());
    }
    Err(Error::Index {
        op,
        what,
        index,
        len,
    })
}
