//! Following one answer.

use std::sync::Arc;

use crate::error::Error;

/// Tokens that may come next. Bit `t % 32` of word `t / 32` is token `t`'s; at least one is set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mask(Box<[u32]>);

impl Mask {
    /// Its words: as many as it takes for the vocabulary. Bits beyond are 0.
    pub fn words(&self) -> &[u32] {
        &self.0
    }

    /// Whether the token may come next.
    pub fn allows(&self, token: u32) -> bool {
        let word = self.0.get(token as usize / 32).copied().unwrap_or(0);
        word >> (token % 32) & 1 == 1
    }
}

/// The place of one answer in the grammar that guides it: a function of its tokens.
pub struct Matcher {
    inner: llguidance::Matcher,
    usable: Arc<[u32]>,
}

impl Matcher {
    pub(crate) fn new(inner: llguidance::Matcher, usable: Arc<[u32]>) -> Self {
        Self { inner, usable }
    }

    /// Goes on by the next tokens of the answer.
    ///
    /// # Errors
    /// [`Error::NotAllowed`]; it goes no further then.
    pub fn observe(&mut self, tokens: &[u32]) -> Result<(), Error> {
        if tokens.is_empty() {
            return Ok(());
        }
        let consumed = self.inner.consume_tokens(tokens);
        consumed.map_err(|_| Error::NotAllowed)
    }

    /// The tokens that may come next. Where the answer can only end, those that end it.
    ///
    /// # Errors
    /// [`Error::Stuck`]; it goes no further then.
    pub fn mask(&mut self) -> Result<Mask, Error> {
        let allowed = self.inner.compute_mask_or_eos();
        let allowed = allowed.map_err(|_| Error::Stuck)?;
        let words = self.usable.iter().zip(allowed.as_slice());
        let words: Box<[u32]> = words.map(|(usable, allowed)| usable & allowed).collect();
        if words.len() < self.usable.len() || words.iter().all(|&word| word == 0) {
            return Err(Error::Stuck);
        }
        Ok(Mask(words))
    }

    /// What was left out of the guide because it cannot be enforced.
    pub fn warnings(&mut self) -> Vec<String> {
        self.inner.grammar_warnings()
    }
}

impl std::fmt::Debug for Matcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Matcher").finish_non_exhaustive()
    }
}
