//! Log-probabilities of tokens that are known already, such as those of a prompt.

use palimpsest_kernels::Backend;
use palimpsest_proto::v1::TokenLogprob;

use super::Decoder;
use super::step::{Known, Piece, ROWS};
use crate::error::Result;
use crate::sampler::{best, log_sum_exp};

impl<B: Backend> Decoder<B> {
    /// The log-probabilities that pieces ask for, one list for each piece. It uses the memory of
    /// the step's logits, so it comes before those.
    pub(super) fn score_known(&mut self, pieces: &[Piece<'_>]) -> Result<()> {
        self.known.clear();
        let mut first = 0;
        for piece in pieces {
            let scored = match piece.known {
                Some(known) => self.score_piece(first, known)?,
                None => Vec::new(),
            };
            self.known.push(scored);
            first += piece.tokens.len();
        }
        Ok(())
    }

    fn score_piece(&mut self, first: usize, known: Known<'_>) -> Result<Vec<TokenLogprob>> {
        let vocabulary = self.config.vocabulary;
        let mut scored = Vec::with_capacity(known.next.len());
        for (block, next) in known.next.chunks(ROWS).enumerate() {
            self.cancel.check()?;
            let from = first + known.first_row + block * ROWS;
            let rows: Vec<usize> = (from..from + next.len()).collect();
            self.multiply_head(&rows)?;
            let logits = self.all_logits(next.len())?;
            let rows = logits.chunks_exact(vocabulary).zip(next);
            scored
                .extend(rows.map(|(row, &token)| log_probability(row, token, known.alternatives)));
        }
        Ok(scored)
    }

    /// Logits `[rows, V]` of a product that was started, over the whole vocabulary.
    fn all_logits(&mut self, rows: usize) -> Result<Vec<f32>> {
        if !self.shard.is_whole() {
            return self.gather_logits(rows);
        }
        let mut all = vec![0.0; rows * self.config.vocabulary];
        self.backend.download(&self.scratch.logits, 0, &mut all)?;
        Ok(all)
    }
}

/// The log-probability of `token` under `logits` (`[V]`), and those of the best `alternatives`.
pub fn log_probability(logits: &[f32], token: u32, alternatives: usize) -> TokenLogprob {
    let sum = log_sum_exp(logits);
    let of = |id: u32| TokenLogprob {
        id,
        logprob: logits[id as usize] - sum,
        ..Default::default()
    };
    TokenLogprob {
        top: best(logits, alternatives).into_iter().map(of).collect(),
        ..of(token)
    }
}
