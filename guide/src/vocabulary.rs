//! The bytes of a model's tokens, and guides compiled for them.

use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};
use llguidance::{ParserFactory, panic_utils, token_bytes_from_tokenizer_json};
use palimpsest_proto::internal::v1::CallGuide;
use palimpsest_proto::v1::Guide;

use crate::calls;
use crate::error::Error;
use crate::grammar::grammar;
use crate::limits::{MAX_TIME, STACK_BYTES, limits};
use crate::matcher::Matcher;

/// A model's tokens as guides see them. It takes tenths of a second to make, and a few times the
/// bytes of the tokens.
pub struct Vocabulary {
    factory: ParserFactory,
    /// Tokens that any guide may allow, as bits: those with bytes, and the ends of sequence.
    usable: Arc<[u32]>,
}

impl Vocabulary {
    /// The `vocabulary` tokens of a model, as its `tokenizer.json` names them. `eos_ids` end an
    /// answer.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] for a file that is none, or of a kind that the library does not know,
    /// [`Error::NoEnd`].
    pub fn new(tokenizer_json: &[u8], vocabulary: usize, eos_ids: &[u32]) -> Result<Self, Error> {
        let is_known = |id: &&u32| (**id as usize) < vocabulary;
        let ends: Vec<u32> = eos_ids.iter().filter(is_known).copied().collect();
        if ends.is_empty() {
            return Err(Error::NoEnd);
        }
        // The library takes some things for granted, and the file is somebody's.
        panic_utils::catch_unwind(|| build(tokenizer_json, vocabulary, &ends)).map_err(|error| {
            let what = error.to_string();
            let what = what.lines().next().unwrap_or_default();
            Error::Tokenizer(format!("cannot be used ({what})"))
        })
    }

    /// Follows an answer that `guide` guides, from its beginning.
    ///
    /// # Errors
    /// What is wrong with the guide.
    pub fn compile(&self, guide: &Guide) -> Result<Matcher, Error> {
        self.build(grammar(guide)?, self.usable.clone())
    }

    /// Follows an answer in which tools are called, from its beginning. The control tokens of the
    /// guide are allowed where its grammar has them.
    ///
    /// # Errors
    /// What is wrong with the guide.
    pub fn compile_calls(&self, guide: &CallGuide) -> Result<Matcher, Error> {
        let mut usable = self.usable.to_vec();
        for &token in &guide.control_tokens {
            let word = usable.get_mut(token as usize / 32);
            let word = word.ok_or_else(|| {
                Error::Refused(format!("token {token} is outside the vocabulary"))
            })?;
            *word |= 1 << (token % 32);
        }
        self.build(calls::grammar(guide)?, usable.into())
    }

    /// Compiles on a thread of its own, whose stack is large.
    fn build(&self, grammar: TopLevelGrammar, usable: Arc<[u32]>) -> Result<Matcher, Error> {
        let compile = || {
            let parser = self.factory.create_parser(grammar);
            let parser = parser.map_err(|error| Error::refused(&error))?;
            let matcher = llguidance::Matcher::new(Ok(parser));
            Ok(Matcher::new(matcher, usable))
        };
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new()
                .name("guide".to_owned())
                .stack_size(STACK_BYTES)
                .spawn_scoped(scope, compile);
            let failed = |what: &str| Error::Refused(format!("it cannot be compiled now: {what}"));
            match thread {
                Ok(thread) => thread.join().unwrap_or_else(|_| Err(failed("a fault"))),
                Err(_) => Err(failed("there is no thread for it")),
            }
        })
    }

    /// Compiles `guide` to see whether it can be used. Returns what was left out of it.
    ///
    /// # Errors
    /// What is wrong with the guide.
    pub fn check(&self, guide: &Guide) -> Result<Vec<String>, Error> {
        check(|| self.compile(guide))
    }

    /// Compiles the guide of calls to see whether it can be used. Returns what was left out of it.
    ///
    /// # Errors
    /// What is wrong with the guide.
    pub fn check_calls(&self, guide: &CallGuide) -> Result<Vec<String>, Error> {
        check(|| self.compile_calls(guide))
    }
}

/// Compiles to the first mask, and refuses what took longer than [`MAX_TIME`]. Nothing ends a
/// compilation before: what bounds it is [`crate::cost`] and the library's own limits.
fn check(compile: impl FnOnce() -> Result<Matcher, Error>) -> Result<Vec<String>, Error> {
    let since = Instant::now();
    let mut matcher = compile()?;
    matcher.mask()?;
    if since.elapsed() > MAX_TIME {
        let seconds = MAX_TIME.as_secs();
        let message = format!("it takes more than {seconds} s to compile: simplify it");
        return Err(Error::Refused(message));
    }
    Ok(matcher.warnings())
}

fn build(tokenizer_json: &[u8], vocabulary: usize, ends: &[u32]) -> anyhow::Result<Vocabulary> {
    let file = serde_json::from_slice(tokenizer_json).context("it is not JSON")?;
    let mut tokens = token_bytes_from_tokenizer_json(&file)?;
    tokens.resize(vocabulary, Vec::new());
    for token in &mut tokens {
        // Control tokens are marked by a byte that stands in no text.
        if token.first() == Some(&TokTrie::SPECIAL_TOKEN_MARKER) {
            token.clear();
        }
    }
    for &end in ends {
        tokens[end as usize].clear();
    }
    let mut usable = vec![0; vocabulary.div_ceil(32)];
    let texts = (0u32..).zip(&tokens).filter(|(_, token)| !token.is_empty());
    for id in texts.map(|(id, _)| id).chain(ends.iter().copied()) {
        usable[id as usize / 32] |= 1 << (id % 32);
    }
    let info = TokRxInfo::new(u32::try_from(vocabulary)?, ends[0]);
    let trie = TokTrie::from(&info, &tokens).with_eos_tokens(ends);
    let tokens: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
    let mut factory = ParserFactory::new_simple(&tokens)?;
    factory.quiet();
    *factory.limits_mut() = limits();
    Ok(Vocabulary {
        factory,
        usable: usable.into(),
    })
}

impl std::fmt::Debug for Vocabulary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vocabulary").finish_non_exhaustive()
    }
}
