//! Faults for tests: a rank that computes what the others of its group do not.

use palimpsest_kernels::Backend;

use super::Decoder;
use crate::error::Result;

impl<B: Backend> Decoder<B> {
    /// Lets the next step start from hidden states that no other rank has, as a damaged memory or
    /// another kernel would have it.
    pub fn perturb_next_step(&mut self) {
        self.perturbed = true;
    }

    /// Changes one value of each row, if that was asked for, after the sum that makes them the same
    /// on all ranks. What it asks the device for, other ranks do not. Where the step is put off, it
    /// stays one list all the same.
    pub(super) fn perturb(&mut self, rows: usize) -> Result<()> {
        if !std::mem::take(&mut self.perturbed) {
            return Ok(());
        }
        let mut values = vec![0.0; rows * self.config.hidden];
        values
            .chunks_exact_mut(self.config.hidden)
            .for_each(|row| row[0] = 0.25);
        let mut change = self.backend.alloc(values.len())?;
        self.backend.upload(&values, &mut change, 0)?;
        Ok(self
            .backend
            .add(&mut self.scratch.x, &change, values.len())?)
    }
}
