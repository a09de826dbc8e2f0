//! The model that is measured: its engine, and what stands between text and token ids.

use palimpsest_engine::runner::Runner;
use palimpsest_kernels::Backend;

use crate::Result;

/// Between text and token ids. The caller implements it, so that this crate needs no tokenizer of
/// its own.
pub trait TextSide {
    /// Token ids of `text`; markers of the chat template become control tokens, nothing is added
    /// around the text.
    ///
    /// # Errors
    /// [`crate::Error::Text`].
    fn encode(&self, text: &str) -> Result<Vec<u32>>;

    /// Text of the ids, without control tokens.
    fn decode(&self, ids: &[u32]) -> String;

    /// A conversation of one user message, up to and including the forced beginning of the answer.
    ///
    /// # Errors
    /// [`crate::Error::Text`].
    fn chat(&self, user: &str, answer_prefix: &str) -> Result<String>;

    /// Whether generation ends with this token.
    fn ends(&self, id: u32) -> bool;
}

/// The model that is measured.
pub struct Subject<'a, B: Backend> {
    /// Token ids in, logits out.
    pub runner: &'a mut Runner<B>,
    /// Text to token ids and back.
    pub side: &'a dyn TextSide,
}

#[cfg(test)]
pub(crate) mod testing {
    use std::cell::RefCell;

    use super::*;

    /// A token per word or run of white space.
    #[derive(Default)]
    pub(crate) struct Words(RefCell<Vec<String>>);

    impl TextSide for Words {
        fn encode(&self, text: &str) -> Result<Vec<u32>> {
            let mut known = self.0.borrow_mut();
            let mut id = |word: &str| match known.iter().position(|k| k == word) {
                Some(id) => id as u32,
                None => {
                    known.push(word.into());
                    known.len() as u32 - 1
                }
            };
            Ok(text.split_inclusive([' ', '\n']).map(&mut id).collect())
        }

        fn decode(&self, ids: &[u32]) -> String {
            ids.iter()
                .map(|&id| self.0.borrow()[id as usize].clone())
                .collect()
        }

        fn chat(&self, user: &str, answer_prefix: &str) -> Result<String> {
            Ok(format!("<user> {user} <end> <assistant> {answer_prefix}"))
        }

        fn ends(&self, _: u32) -> bool {
            false
        }
    }
}
