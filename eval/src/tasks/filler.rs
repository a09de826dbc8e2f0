//! What a haystack consists of beside its needles: units of text, as many as are asked for.

use std::borrow::Cow;

use super::vocabulary;
use crate::draws::Draws;
use crate::{Error, Result};

/// RULER's noise.
pub const NOISE: &str =
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.";
/// Bytes of a prose sentence; longer ones are cut at a space.
const SENTENCE_BYTES: usize = 400;
/// Sentences a text must have.
const SENTENCES: usize = 16;

/// FNV-1a: tells one text from another in the records, no more.
pub fn digest(text: &str) -> String {
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| {
        (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3)
    });
    format!("{hash:016x}")
}

/// Sentences of a text, white space collapsed.
#[derive(Debug, Clone)]
pub struct Prose {
    sentences: Vec<String>,
    digest: String,
}

impl Prose {
    /// Splits a text into sentences.
    ///
    /// # Errors
    /// [`Error::Prose`] for fewer than 16 sentences.
    pub fn new(text: &str) -> Result<Self> {
        let mut sentences: Vec<String> = Vec::new();
        let mut current = String::new();
        for word in text.split_whitespace() {
            if !current.is_empty() {
                current.push(' ');
            }
            current.push_str(word);
            if word.ends_with(['.', '?', '!']) || current.len() > SENTENCE_BYTES {
                sentences.push(std::mem::take(&mut current));
            }
        }
        if sentences.len() < SENTENCES {
            return Err(Error::Prose {
                found: sentences.len(),
                needed: SENTENCES,
                unit: "sentences",
            });
        }
        Ok(Self {
            sentences,
            digest: digest(text),
        })
    }

    /// Names the text in records.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Its sentences from `start` on, again from the front at the end.
    pub fn from(&self, start: usize) -> impl Iterator<Item = &str> {
        self.sentences
            .iter()
            .cycle()
            .skip(start)
            .map(String::as_str)
    }

    /// Number of sentences.
    pub fn len(&self) -> usize {
        self.sentences.len()
    }

    /// Never: see [`Prose::new`].
    pub fn is_empty(&self) -> bool {
        self.sentences.is_empty()
    }
}

/// What the haystack consists of.
#[derive(Debug, Clone)]
pub enum Filler<'a> {
    /// RULER's noise, a line a unit.
    Noise,
    /// Sentences of a text, from one of them on, around the end if need be.
    Prose {
        /// The text.
        prose: &'a Prose,
        /// First sentence.
        start: usize,
    },
    /// Needles that nobody asks for, a line each.
    Distractors {
        /// What they hide.
        kind: NeedleKind,
        /// State of the draws before the first one.
        draws: Draws,
    },
    /// Coded words whose frequency falls with the square of their rank, in random order: the word
    /// of rank `r` (from 1) comes `units / (r^2 zeta(2))` times, rounded down.
    Coded {
        /// Words, the most frequent first.
        words: Vec<String>,
        /// State of the draws before they are put in order.
        draws: Draws,
    },
    /// A numbered list in which the common words come `common_repeats` times, the others `repeats`
    /// times.
    Listed {
        /// The common words.
        common: Vec<String>,
        /// As many others as may be needed.
        others: Vec<String>,
        /// How often each of the common and of the other words comes.
        repeats: Repeats,
        /// State of the draws before they are put in order.
        draws: Draws,
    },
    /// Numbered documents; needles among them are documents, too.
    Documents {
        /// Documents, those nearest to the question's subject first; again from the front when
        /// they do not suffice.
        documents: Vec<&'a str>,
        /// State of the draws before they are put in order.
        draws: Draws,
    },
    /// One text, cut from its middle when it is too long.
    Document(&'a str),
}

/// How often words of a list come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Repeats {
    /// Each of the common ones.
    pub common: usize,
    /// Each of the others.
    pub others: usize,
}

/// What a needle says: `One of the special magic {what} for {key} is: {value}.`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NeedleKind {
    /// Whether keys are UUIDs rather than words.
    pub uuid_keys: bool,
    /// Whether values are UUIDs rather than numbers.
    pub uuid_values: bool,
}

impl NeedleKind {
    /// A key.
    pub fn key(self, draws: &mut Draws) -> String {
        if self.uuid_keys {
            vocabulary::uuid(draws)
        } else {
            vocabulary::key(draws)
        }
    }

    /// A value.
    pub fn value(self, draws: &mut Draws) -> String {
        if self.uuid_values {
            vocabulary::uuid(draws)
        } else {
            vocabulary::number(draws)
        }
    }

    /// What values are called.
    pub fn what(self, plural: bool) -> &'static str {
        match (self.uuid_values, plural) {
            (false, false) => "number",
            (false, true) => "numbers",
            (true, false) => "uuid",
            (true, true) => "uuids",
        }
    }

    /// The sentence.
    pub fn sentence(self, key: &str, value: &str) -> String {
        format!(
            "One of the special magic {} for {key} is: {value}.",
            self.what(true)
        )
    }
}

impl Filler<'_> {
    /// The fewest units with which the task makes sense.
    pub(super) fn least(&self) -> usize {
        match self {
            Self::Listed {
                common, repeats, ..
            } => common.len() * (repeats.common + repeats.others),
            // The third and the fourth word differ in frequency.
            Self::Coded { .. } => 40,
            _ => 0,
        }
    }

    /// The first `count` units, or what takes their place.
    pub(super) fn units(&self, count: usize) -> Vec<Cow<'_, str>> {
        match self {
            Self::Noise => vec![NOISE.into(); count],
            Self::Prose { prose, start } => {
                prose.from(*start).take(count).map(Into::into).collect()
            }
            Self::Distractors { kind, draws } => {
                let mut draws = draws.clone();
                let first = draws.next();
                let keys = vocabulary::distinct(count, || kind.key(&mut draws));
                // Values from draws of their own, so that further needles do not change those
                // before.
                let mut values = Draws::new(&[first]);
                keys.iter()
                    .map(|key| kind.sentence(key, &kind.value(&mut values)).into())
                    .collect()
            }
            Self::Coded { words, draws } => {
                let zeta = std::f64::consts::PI.powi(2) / 6.0;
                let copies = |rank: usize| (count as f64 / (zeta * (rank * rank) as f64)) as usize;
                let of = |(i, word): (usize, &'_ String)| {
                    std::iter::repeat_n(word.clone().into(), copies(i + 1))
                };
                let mut all: Vec<Cow<'_, str>> = words.iter().enumerate().flat_map(of).collect();
                draws.clone().shuffle(&mut all);
                all
            }
            Self::Listed {
                common,
                others,
                repeats,
                draws,
            } => {
                let again = |words: &'_ [String], times: usize| {
                    words
                        .iter()
                        .flat_map(move |word| std::iter::repeat_n(word.clone(), times))
                        .collect::<Vec<_>>()
                };
                let mut all = again(common, repeats.common);
                all.extend(again(others, repeats.others));
                all.truncate(count);
                draws.clone().shuffle(&mut all);
                all.iter()
                    .enumerate()
                    .map(|(i, word)| format!("{}. {word}", i + 1).into())
                    .collect()
            }
            Self::Documents { documents, draws } => {
                let mut all: Vec<Cow<'_, str>> = documents
                    .iter()
                    .cycle()
                    .take(count)
                    .map(|d| (*d).into())
                    .collect();
                draws.clone().shuffle(&mut all);
                all
            }
            Self::Document(text) => vec![(*text).into()],
        }
    }

    /// The text of units and needles in their order.
    pub(super) fn join(&self, parts: &[Cow<'_, str>]) -> String {
        match self {
            Self::Noise | Self::Distractors { .. } => parts.join("\n"),
            Self::Documents { .. } => {
                let number =
                    |(i, part): (usize, &Cow<'_, str>)| format!("Document {}:\n{part}", i + 1);
                parts
                    .iter()
                    .enumerate()
                    .map(number)
                    .collect::<Vec<_>>()
                    .join("\n\n")
            }
            _ => parts.join(" "),
        }
    }
}
