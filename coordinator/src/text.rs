//! Between characters and token ids: tokenizer, chat template, incremental decoding, stop strings.

mod chat;
mod detokenize;
mod stop;
mod tokenizer;

pub use self::chat::ChatTemplate;
pub use self::detokenize::Detokenizer;
pub use self::stop::{StopMatch, StopStrings};
pub use self::tokenizer::Tokenizer;

/// Why a model's text side cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The worker's `tokenizer.json` is not one.
    #[error("the model's tokenizer.json cannot be read: {0}")]
    Tokenizer(String),
    /// The text has no token ids.
    #[error("the text cannot be tokenised: {0}")]
    Encode(String),
    /// The chat template is not valid Jinja.
    #[error("the model's chat template cannot be read: {0}")]
    Template(String),
    /// The template refuses the conversation.
    #[error("the model's chat template refuses the conversation: {0}")]
    Render(String),
    /// A chat for a model that is none.
    #[error("the model has no chat template: send text or token ids")]
    NoTemplate,
}
