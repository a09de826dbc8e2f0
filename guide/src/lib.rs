//! Which tokens may come next in an answer that is to be JSON, match an expression or follow a
//! grammar: see the README.
//!
//! ```text
//! matcher      follows the tokens of one answer and says which may come next
//! vocabulary   bytes of a model's tokens; compiles guides
//! calls        guides of answers in which tools are called
//! grammar      a guide of the API, as llguidance takes it
//! limits       what a guide may take
//! error        what is wrong with a guide
//! ```
#![forbid(unsafe_code)]

pub mod calls;
mod cost;
mod error;
mod grammar;
mod limits;
mod matcher;
#[cfg(test)]
mod tests;
mod vocabulary;

pub use error::Error;
pub use grammar::check_size;
pub use limits::MAX_BYTES;
pub use matcher::{Mask, Matcher};
pub use vocabulary::Vocabulary;
