//! The choice of the next token, and how likely known ones are.

use super::buffers::Buffers;
use crate::error::Result;
use crate::likelihood::{self, KnownToken, Likelihood, likelihood};
use crate::sample::SampleItem;

/// A device that chooses tokens, so that logits need not come to the host.
pub trait Sampling: Buffers {
    /// Chooses a token for every item from its row of `logits` (`[T, V]`, `vocabulary` is `V`),
    /// whose edits and mask change the row in place: see [`crate::sample`], bit for bit. `None`: a
    /// logit of the row is not a number.
    fn sample(
        &self,
        logits: &mut Self::Buffer,
        vocabulary: usize,
        items: &[SampleItem<'_>],
    ) -> Result<Vec<Option<u32>>>;

    /// How likely the token of every item is under its row of `logits` (`[T, V]`, `vocabulary` is
    /// `V`), and the best tokens of that row: see [`crate::likelihood`]. A device has this of the
    /// host unless it brings its own: the rows are copied up to the last that is asked for.
    ///
    /// # Errors
    /// Those of [`Buffers::download`], and [`crate::Error::Index`] for a token that is not there.
    fn likelihoods(
        &self,
        logits: &Self::Buffer,
        vocabulary: usize,
        items: &[KnownToken],
    ) -> Result<Vec<Likelihood>> {
        let rows = items.iter().map(|item| item.row + 1).max().unwrap_or(0);
        likelihood::check(items, rows, vocabulary)?;
        let mut all = vec![0.0; rows * vocabulary];
        self.download(logits, 0, &mut all)?;
        let of = |item: &KnownToken| likelihood(&all[item.row * vocabulary..][..vocabulary], item);
        Ok(items.iter().map(of).collect())
    }
}
