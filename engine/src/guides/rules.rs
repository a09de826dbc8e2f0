//! What an answer is guided by.

use palimpsest_guide::{Error, Matcher, Vocabulary};
use palimpsest_proto::internal::v1::{CallGuide, SequenceInit};
use palimpsest_proto::v1::Guide;

/// What one answer must be.
#[derive(Debug, Clone)]
pub(crate) enum Rules {
    /// What a client asks of all of it.
    Answer(Guide),
    /// What the tools ask of its calls.
    Calls(CallGuide),
}

impl Rules {
    /// Those of a sequence, if it has any.
    pub(crate) fn of(init: &SequenceInit) -> Option<Self> {
        let calls = init.calls.clone().map(Self::Calls);
        calls.or_else(|| init.guide.clone().map(Self::Answer))
    }

    pub(super) fn compile(&self, vocabulary: &Vocabulary) -> Result<Matcher, Error> {
        match self {
            Self::Answer(guide) => vocabulary.compile(guide),
            Self::Calls(guide) => vocabulary.compile_calls(guide),
        }
    }
}
