//! The states that logits are made of: what the last layer left, normalised.

use palimpsest_kernels::Backend;

use super::Decoder;
use super::step::{Piece, ROWS};
use crate::error::Result;

impl<B: Backend> Decoder<B> {
    /// The final states of the rows that pieces ask for, `[rows, E]` flattened, one list for each
    /// piece. It uses the memory of the step's logits, so it comes before those.
    pub(super) fn final_states(&mut self, pieces: &[Piece<'_>]) -> Result<()> {
        self.states.clear();
        let hidden = self.config.hidden;
        let mut first = 0;
        for piece in pieces {
            let wanted: Vec<usize> = piece.states.clone().map(|row| first + row).collect();
            let mut states = vec![0.0; wanted.len() * hidden];
            for (rows, out) in wanted.chunks(ROWS).zip(states.chunks_mut(ROWS * hidden)) {
                self.normalise(rows)?;
                self.backend.download(&self.scratch.h, 0, out)?;
            }
            self.states.push(states);
            first += piece.tokens.len();
        }
        Ok(())
    }
}
