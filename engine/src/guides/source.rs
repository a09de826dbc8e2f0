//! What guides of a model are compiled with.

use std::sync::OnceLock;

use palimpsest_guide::{Error, Vocabulary};
use palimpsest_models::tokenizer::TokenizerFiles;

/// The model's vocabulary as guides see it, made for the first that needs it.
pub(super) struct Source {
    tokenizer: TokenizerFiles,
    vocabulary: usize,
    made: OnceLock<Result<Vocabulary, Error>>,
}

impl Source {
    pub(super) fn new(tokenizer: TokenizerFiles, vocabulary: usize) -> Self {
        Self {
            tokenizer,
            vocabulary,
            made: OnceLock::new(),
        }
    }

    pub(super) fn vocabulary(&self) -> Result<&Vocabulary, Error> {
        let files = &self.tokenizer;
        let make = || Vocabulary::new(&files.tokenizer_json, self.vocabulary, &files.eos_ids);
        self.made.get_or_init(make).as_ref().map_err(Clone::clone)
    }
}
