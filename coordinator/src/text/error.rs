//! What goes wrong between characters and token ids.

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
    /// The template takes more steps than a conversation of this length may.
    #[error(
        "the model's chat template took more than {0} steps for the conversation: send fewer or \
         shorter messages"
    )]
    OutOfFuel(u64),
    /// A field of the conversation that is wrong.
    #[error("{message}")]
    Chat {
        /// Its path in a request.
        field: &'static str,
        /// What is wrong with it.
        message: String,
    },
    /// The conversation has all characters that could mark a place in it.
    #[error(
        "the conversation has nearly all of the characters U+FDD0 to U+FDEF, which Unicode keeps \
         for use within programs: leave two of them out"
    )]
    NoMark,
    /// A chat for a model that is none.
    #[error("the model has no chat template: send text or token ids")]
    NoTemplate,
}
