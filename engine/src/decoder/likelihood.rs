//! Log-probabilities of tokens that are known already, such as those of a prompt.

use palimpsest_kernels::Backend;
use palimpsest_kernels::likelihood::{KnownToken, Likelihood, TokenLikelihood, likelihood};
use palimpsest_proto::v1::TokenLogprob;

use super::Decoder;
use super::step::{Known, Piece, ROWS};
use crate::error::Result;

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
        let mut scored = Vec::with_capacity(known.next.len());
        for (block, next) in known.next.chunks(ROWS).enumerate() {
            self.cancel.check()?;
            let from = first + known.first_row + block * ROWS;
            let rows: Vec<usize> = (from..from + next.len()).collect();
            self.multiply_head(&rows)?;
            let item = |(row, &token)| KnownToken {
                row,
                token,
                alternatives: known.alternatives,
            };
            let items: Vec<KnownToken> = next.iter().enumerate().map(item).collect();
            scored.extend(self.likelihoods(&items)?.into_iter().map(told));
        }
        Ok(scored)
    }

    /// Under the logits of a product that was started, where they are: they come to the host only
    /// where ranks have parts of them.
    fn likelihoods(&mut self, items: &[KnownToken]) -> Result<Vec<Likelihood>> {
        let vocabulary = self.config.vocabulary;
        if self.shard.is_whole() {
            let (b, logits) = (&self.backend, &self.scratch.logits);
            return Ok(b.likelihoods(logits, vocabulary, items)?);
        }
        let logits = self.gather_logits(items.len())?;
        let rows = logits.chunks_exact(vocabulary).zip(items);
        Ok(rows.map(|(row, item)| likelihood(row, item)).collect())
    }
}

/// The log-probability of `token` under `logits` (`[V]`), and those of the best `alternatives`.
pub fn log_probability(logits: &[f32], token: u32, alternatives: usize) -> TokenLogprob {
    told(likelihood(
        logits,
        &KnownToken {
            row: 0,
            token,
            alternatives,
        },
    ))
}

fn told(likelihood: Likelihood) -> TokenLogprob {
    let of = |one: TokenLikelihood| TokenLogprob {
        id: one.token,
        logprob: one.logprob,
        ..Default::default()
    };
    TokenLogprob {
        top: likelihood.best.into_iter().map(of).collect(),
        ..of(likelihood.known)
    }
}
