//! Cases of arrays: allocation, offsets, and their limits.

use super::report::Failure;
use super::suite::{Check, Named, Suite, refused};
use crate::backend::Buffers;

impl<B: Buffers> Suite<'_, B> {
    /// Cases of [`Buffers`].
    ///
    /// # Errors
    /// The [`Failure`] that ended the part; values that differ are told by [`Suite::finish`].
    pub fn buffers(&mut self) -> Result<(), Failure> {
        run(self)
    }
}

/// Allocation, offsets, and their limits.
fn run<B: Buffers>(suite: &mut Suite<'_, B>) -> Check {
    for len in [0, 1, 7, 1000] {
        let case = format!("alloc {len}");
        let buffer = suite.backend.alloc(len).named(&case)?;
        let got = suite.download(&buffer, len)?;
        suite.compare(&case, &got, &vec![0.0; len], 0.0)?;
    }
    let values = suite.random.values(5);
    let mut buffer = suite.backend.alloc(9).named("alloc 9")?;
    suite
        .backend
        .upload(&values, &mut buffer, 3)
        .named("upload at 3")?;
    let mut got = vec![0.0; 4];
    suite
        .backend
        .download(&buffer, 4, &mut got)
        .named("download at 4")?;
    suite.compare("upload at 3, download at 4", &got, &values[1..], 0.0)?;
    refused(
        "upload past the end",
        suite.backend.upload(&values, &mut buffer, 5),
    )?;
    refused(
        "download past the end",
        suite.backend.download(&buffer, 6, &mut got),
    )
}
