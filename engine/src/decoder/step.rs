//! What goes into a step of the decoder, and what comes out.

use std::ops::Range;

use crate::kv::SequenceCache;

/// Rows whose logits are there at once, beside those that a step wants for its answers. All rows
/// of a stride would take 150 MB with a vocabulary of 150,000 tokens.
pub(super) const ROWS: usize = 32;

/// Which logits a piece wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Logits {
    /// None: more of the prompt follows.
    None,
    /// After the last token.
    Last,
    /// After every token.
    All,
}

/// Tokens of one sequence in a step. They must not go beyond the next boundary.
pub struct Piece<'a> {
    /// The sequence.
    pub cache: &'a mut SequenceCache,
    /// Tokens to read, at least one.
    pub tokens: &'a [u32],
    /// Logits to return.
    pub logits: Logits,
    /// Known tokens whose log-probabilities are wanted.
    pub known: Option<Known<'a>>,
    /// Of the piece's rows, those whose final states are wanted.
    pub states: Range<usize>,
}

/// What is asked of a piece beside its logits.
#[derive(Debug, Clone, Copy)]
pub struct Known<'a> {
    /// The token that follows each of the piece's tokens from `first_row` on, the first of them
    /// first. There may be fewer than the piece has tokens.
    pub next: &'a [u32],
    /// Number of the first token of the piece whose next one is told of.
    pub first_row: usize,
    /// Best tokens that are told of beside each one.
    pub alternatives: usize,
}

impl Piece<'_> {
    /// Whether anything is wanted beside the logits.
    pub(super) fn wants_more(&self) -> bool {
        self.known.is_some() || !self.states.is_empty()
    }

    /// Rows whose logits are wanted, when the piece starts at row `first`.
    pub(super) fn wanted_rows(&self, first: usize) -> Range<usize> {
        let end = first + self.tokens.len();
        match self.logits {
            Logits::None => end..end,
            Logits::Last => end - 1..end,
            Logits::All => first..end,
        }
    }
}

/// What a piece gets.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// Logits of the wanted rows `[rows, V]`, flattened.
    Logits(Vec<f32>),
    /// The token that was chosen; `None`: the logits are not numbers.
    Token(Option<u32>),
}

/// What a layer computed for the rows of a step.
pub struct Captured<'a> {
    /// Decoder layer.
    pub layer: usize,
    /// Normalised hidden states that enter attention `[T, E]`.
    pub hidden: &'a [f32],
    /// Queries, rotated `[T, H, D]`.
    pub queries: &'a [f32],
}

/// Receives what layers compute, see [`Decoder::set_capture`](super::Decoder::set_capture).
pub type Capture = Box<dyn FnMut(Captured<'_>) + Send>;
