//! The text that needles are hidden in, sized to an exact number of tokens.

use std::borrow::Cow;

use crate::draws::Draws;
use crate::tasks::vocabulary;
use crate::{Error, Result, TextSide};

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
        repeats: (usize, usize),
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
    fn least(&self) -> usize {
        match self {
            Self::Listed {
                common, repeats, ..
            } => common.len() * (repeats.0 + repeats.1),
            // The third and the fourth word differ in frequency.
            Self::Coded { .. } => 40,
            _ => 0,
        }
    }

    /// The first `count` units, or what takes their place.
    fn units(&self, count: usize) -> Vec<Cow<'_, str>> {
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
                let mut all = again(common, repeats.0);
                all.extend(again(others, repeats.1));
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

    fn join(&self, parts: &[Cow<'_, str>]) -> String {
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

/// A sentence to hide.
#[derive(Debug, Clone, PartialEq)]
pub struct Needle {
    /// What it says.
    pub text: String,
    /// Where: 0 is the beginning of the haystack, 1 its end.
    pub depth: f64,
}

/// `units` units of filler with the needles between them. The last unit is always filler.
pub fn text(filler: &Filler<'_>, needles: &[Needle], units: usize) -> String {
    let mut order: Vec<&Needle> = needles.iter().collect();
    // Stable: needles at one place keep their order.
    order.sort_by(|a, b| a.depth.total_cmp(&b.depth));
    let mut order = order.into_iter().peekable();
    let found = filler.units(units);
    let last = found.len().saturating_sub(1);
    let mut parts: Vec<Cow<'_, str>> = Vec::with_capacity(found.len() + needles.len());
    for (index, unit) in found.into_iter().enumerate() {
        let due = |n: &&Needle| (n.depth * last as f64) as usize <= index;
        while let Some(needle) = order.next_if(due) {
            parts.push(needle.text.as_str().into());
        }
        parts.push(unit);
    }
    parts.extend(order.map(|n| n.text.as_str().into()));
    filler.join(&parts)
}

/// The first and the last half of `target` tokens, as LongBench cuts what is too long.
pub fn cut_middle(mut ids: Vec<u32>, target: usize) -> Vec<u32> {
    if ids.len() > target {
        let first = target / 2;
        ids.drain(first..ids.len() - (target - first));
    }
    ids
}

/// A haystack of exactly `target` tokens: the fewest units that reach it, the excess at its end cut
/// off. The number of units is found by doubling and bisection, because only tokenising tells their
/// length.
///
/// # Errors
/// [`Error::TooShort`] when the needles alone, or the fewest units that make sense, do not fit;
/// [`Error::Text`].
pub fn tokens(
    side: &dyn TextSide,
    filler: &Filler<'_>,
    needles: &[Needle],
    target: usize,
) -> Result<Vec<u32>> {
    let encode = |units: usize| side.encode(&text(filler, needles, units));
    let least = filler.least();
    let alone = encode(least)?.len();
    if alone >= target {
        return Err(Error::TooShort {
            length: target,
            needed: alone + 1,
        });
    }
    let (mut low, mut high) = (least, 2 * least.max(1));
    while encode(high)?.len() < target {
        (low, high) = (high, high * 2);
    }
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if encode(middle)?.len() < target {
            low = middle
        } else {
            high = middle
        }
    }
    let mut ids = encode(high)?;
    ids.truncate(target);
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prompt::tests::Words;

    fn needle(depth: f64) -> Needle {
        Needle {
            text: "NEEDLE.".into(),
            depth,
        }
    }

    #[test]
    fn needles_stand_where_asked_and_never_last() {
        let at = |depth: f64| {
            let text = text(&Filler::Noise, &[needle(depth)], 11);
            text.split('\n')
                .position(|l| l == "NEEDLE.")
                .expect("hidden")
        };
        assert_eq!([at(0.0), at(0.5), at(1.0)], [0, 5, 10]);
    }

    #[test]
    fn haystacks_have_exactly_the_tokens_and_all_needles() {
        for target in [20, 100, 257] {
            for depth in [0.0, 0.3, 1.0] {
                let side = Words::default();
                let ids = tokens(&side, &Filler::Noise, &[needle(depth)], target).expect("fits");
                assert_eq!(ids.len(), target);
                assert_eq!(
                    side.decode(&ids).matches("NEEDLE.").count(),
                    1,
                    "{target} {depth}"
                );
            }
        }
        let error = tokens(&Words::default(), &Filler::Noise, &[needle(0.0)], 1);
        assert!(matches!(error, Err(Error::TooShort { needed: 2, .. })));
    }

    #[test]
    fn coded_words_fall_with_the_square_of_their_rank() {
        let words: Vec<String> = (0..50).map(|i| format!("w{i}")).collect();
        let filler = Filler::Coded {
            words,
            draws: Draws::new(&[3]),
        };
        let text = text(&filler, &[], 1000);
        let count = |w: &str| text.split(' ').filter(|u| *u == w).count();
        // 1000 / zeta(2) = 607.9, and a quarter, a ninth, a sixteenth of it.
        assert_eq!(
            ["w0", "w1", "w2", "w3", "w24"].map(count),
            [607, 151, 67, 37, 0]
        );
    }

    #[test]
    fn lists_have_common_words_as_often_as_asked() {
        let list =
            |prefix: &str, n: usize| (0..n).map(|i| format!("{prefix}{i}")).collect::<Vec<_>>();
        let filler = Filler::Listed {
            common: list("c", 10),
            others: list("o", 100),
            repeats: (6, 2),
            draws: Draws::new(&[3]),
        };
        let text = text(&filler, &[], 60 + 2 * 40);
        let words: Vec<&str> = text.split(' ').skip(1).step_by(2).collect();
        let count = |w: &str| words.iter().filter(|u| **u == w).count();
        assert_eq!((words.len(), count("c0"), count("c9")), (140, 6, 6));
        assert_eq!((count("o0"), count("o39"), count("o40")), (2, 2, 0));
        assert!(text.starts_with("1. ") && text.contains(" 140. "));
        let error = tokens(&Words::default(), &filler, &[], 100);
        assert!(
            matches!(error, Err(Error::TooShort { needed: 161, .. })),
            "80 numbered words are the least"
        );
    }

    #[test]
    fn distractors_are_different_and_stay_when_more_come() {
        let kind = NeedleKind {
            uuid_keys: false,
            uuid_values: false,
        };
        let filler = Filler::Distractors {
            kind,
            draws: Draws::new(&[4]),
        };
        let (few, many) = (filler.units(10), filler.units(300));
        assert_eq!(few, many[..10]);
        let key = |s: &Cow<'_, str>| {
            s.split(" for ")
                .nth(1)
                .and_then(|t| t.split(" is:").next())
                .map(String::from)
        };
        let keys: std::collections::HashSet<_> = many.iter().map(key).collect();
        assert_eq!(keys.len(), 300);
    }

    #[test]
    fn what_is_too_long_is_cut_from_its_middle() {
        assert_eq!(cut_middle((0..10).collect(), 5), [0, 1, 7, 8, 9]);
        assert_eq!(cut_middle((0..3).collect(), 5), [0, 1, 2]);
    }

    #[test]
    fn documents_are_numbered_with_the_needle_among_them() {
        let filler = Filler::Documents {
            documents: vec!["a", "b", "c"],
            draws: Draws::new(&[5]),
        };
        let text = text(&filler, &[needle(0.5)], 5);
        let parts: Vec<&str> = text.split("\n\n").collect();
        assert_eq!(parts.len(), 6);
        assert_eq!(parts[2], "Document 3:\nNEEDLE.");
        assert!(parts[5].starts_with("Document 6:\n"));
    }
}
