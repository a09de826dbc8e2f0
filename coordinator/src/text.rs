//! Between characters and token ids: tokenizer, chat template, incremental decoding, stop strings,
//! and what of an answer is a call or a thought.

mod channels;
mod chat;
mod detokenize;
mod error;
mod infill;
mod marks;
mod output;
mod piece;
mod rendered;
mod stop;
mod tokenizer;
mod tools;

pub use self::chat::{ChatTemplate, chat_bytes};
pub use self::detokenize::{Detokenizer, Shown};
pub use self::error::Error;
pub use self::infill::{Infilling, NoInfilling};
pub use self::output::{AnswerFormat, AnswerReader};
pub use self::piece::Piece;
pub use self::rendered::Rendered;
pub use self::stop::{StopMatch, StopStrings};
pub use self::tokenizer::Tokenizer;
pub use self::tools::{Begun, GuidedTool, Shape, ToolCalls, ToolFormat};
