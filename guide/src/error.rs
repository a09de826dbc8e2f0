//! What is wrong with a guide.

/// Characters of what the library says of a guide: it may repeat all of it.
const SAID_CHARACTERS: usize = 400;

/// Why an answer cannot be guided, or not any further.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The tokenizer does not say which bytes its tokens stand for.
    #[error("answers of this model cannot be guided: its tokenizer {0}")]
    Tokenizer(String),
    /// Nothing could end a guided answer.
    #[error("answers of this model cannot be guided: it has no end-of-sequence token")]
    NoEnd,
    /// A guide without a kind, or with nothing in it.
    #[error("{0}")]
    Empty(&'static str),
    /// More text than a guide may have.
    #[error("{bytes} bytes, over the limit of {most}")]
    TooLong {
        /// Bytes of its texts.
        bytes: usize,
        /// Bytes that they may have.
        most: usize,
    },
    /// It cannot be compiled, or costs too much.
    #[error("{0}")]
    Refused(String),
    /// It does not allow a token that was read.
    #[error("a token of the answer is not one that the guide allows")]
    NotAllowed,
    /// No token may come next, or finding out takes more than a guide may.
    #[error("the guide allows no token here, or is too complex to say which: simplify it")]
    Stuck,
}

impl Error {
    /// What the library says of a guide, without what it adds for those who work on it.
    pub(crate) fn refused(said: &anyhow::Error) -> Self {
        let said = format!("{said:#}");
        let said = said.split("\n<").next().unwrap_or_default();
        // The library ends some of its work so.
        let said = said.strip_prefix("panic: ").unwrap_or(said);
        let shown = match said.char_indices().nth(SAID_CHARACTERS) {
            Some((end, _)) => format!("{}…", &said[..end]),
            None => said.to_owned(),
        };
        Self::Refused(shown)
    }
}
