//! The choice of the next token.

use super::buffers::Buffers;
use crate::error::Result;
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
}
