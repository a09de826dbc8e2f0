//! Steps of decoding that a device may start as one.

use crate::error::Result;

/// What is known of a step of decoding before it begins.
#[derive(Debug, Clone, Copy)]
pub struct DecodeStep<'a> {
    /// Sequences, which are the rows of the step.
    pub rows: usize,
    /// `K`, of this rank.
    pub kv_heads: usize,
    /// For each layer, slots that the KV heads of its sequences may hold until their next
    /// boundaries.
    pub slots: &'a [Vec<usize>],
}

/// A device that may put off the calls of a decode step and start them as one. A device that starts
/// each call at once takes the default methods.
pub trait Steps {
    /// Begins a step of decoding: one token of each of `step.rows` sequences. The device may put
    /// off the calls that follow until [`Self::end_decode`], or until the host waits for a value,
    /// and then start all of them as one. Results are the same.
    ///
    /// Returns the rows that the calls of the step are to be made with, `step.rows` or a few more.
    /// Rows beyond `step.rows` belong to no sequence and no item, and their values are not used.
    /// `None` means that the device puts nothing off, and changes nothing.
    fn begin_decode(&self, step: &DecodeStep<'_>) -> Option<usize> {
        let _ = step;
        None
    }

    /// Ends the step: every call that was put off is started.
    fn end_decode(&self) -> Result<()> {
        Ok(())
    }

    /// Ends a step that failed: the calls that were put off are dropped.
    fn cancel_decode(&self) {}
}
