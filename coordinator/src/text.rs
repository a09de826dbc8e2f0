//! Between characters and token ids: tokenizer, chat template, incremental decoding, stop strings.

mod chat;
mod detokenize;
mod error;
mod stop;
mod tokenizer;

pub use self::chat::ChatTemplate;
pub use self::detokenize::Detokenizer;
pub use self::error::Error;
pub use self::stop::{StopMatch, StopStrings};
pub use self::tokenizer::Tokenizer;
