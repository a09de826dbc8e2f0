//! The text that needles are hidden in, sized to an exact number of tokens.

use crate::draws::Draws;
use crate::{Error, Result, TextSide};

/// RULER's noise.
pub const NOISE: &str = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.";
/// Bytes of a prose sentence; longer ones are cut at a space.
const SENTENCE_BYTES: usize = 400;
/// Sentences a text must have.
const SENTENCES: usize = 16;

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
            return Err(Error::Prose { found: sentences.len(), needed: SENTENCES, unit: "sentences" });
        }
        // FNV-1a: tells one text from another in the records, no more.
        let hash =
            text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
        Ok(Self { sentences, digest: format!("{hash:016x}") })
    }

    /// Names the text in records.
    pub fn digest(&self) -> &str {
        &self.digest
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
    /// Words drawn one by one, Zipf-distributed over `words` with exponent 2, as RULER's frequent words are.
    Coded {
        /// Words, the most frequent first.
        words: Vec<String>,
        /// State of the draws before the first word.
        draws: Draws,
    },
}

impl Filler<'_> {
    /// The first `count` units.
    fn units(&self, count: usize) -> Vec<&str> {
        match self {
            Self::Noise => vec![NOISE; count],
            Self::Prose { prose, start } => {
                prose.sentences.iter().cycle().skip(*start).take(count).map(|s| &**s).collect()
            }
            Self::Coded { words, draws } => {
                let mut draws = draws.clone();
                let total: f64 = (1..=words.len()).map(|r| (r as f64).powi(-2)).sum();
                let mut draw = || {
                    let mut rest = draws.unit() * total;
                    let rank = (1..words.len()).find(|r| {
                        rest -= (*r as f64).powi(-2);
                        rest < 0.0
                    });
                    &*words[rank.unwrap_or(words.len()) - 1]
                };
                (0..count).map(|_| draw()).collect()
            }
        }
    }

    fn separator(&self) -> &'static str {
        if matches!(self, Self::Noise) { "\n" } else { " " }
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
    let mut parts: Vec<&str> = Vec::with_capacity(units + needles.len());
    for (index, unit) in filler.units(units).into_iter().enumerate() {
        let due = |n: &&Needle| (n.depth * (units - 1) as f64) as usize <= index;
        while let Some(needle) = order.next_if(due) {
            parts.push(&needle.text);
        }
        parts.push(unit);
    }
    parts.extend(order.map(|n| &*n.text));
    parts.join(filler.separator())
}

/// A haystack of exactly `target` tokens: the fewest units that reach it, the excess of the last unit cut off.
/// The number of units is found by doubling and bisection, because only tokenising tells their length.
///
/// # Errors
/// [`Error::TooShort`] when the needles alone do not fit, [`Error::Text`].
pub fn tokens(side: &dyn TextSide, filler: &Filler<'_>, needles: &[Needle], target: usize) -> Result<Vec<u32>> {
    let encode = |units: usize| side.encode(&text(filler, needles, units));
    let alone = encode(0)?.len();
    if alone >= target {
        return Err(Error::TooShort { length: target, needed: alone + 1 });
    }
    let (mut low, mut high) = (0, 1);
    while encode(high)?.len() < target {
        (low, high) = (high, high * 2);
    }
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if encode(middle)?.len() < target { low = middle } else { high = middle }
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
        Needle { text: "NEEDLE.".into(), depth }
    }

    #[test]
    fn needles_stand_where_asked_and_never_last() {
        let at = |depth: f64| {
            let text = text(&Filler::Noise, &[needle(depth)], 11);
            text.split('\n').position(|l| l == "NEEDLE.").expect("hidden")
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
                assert_eq!(side.decode(&ids).matches("NEEDLE.").count(), 1, "{target} {depth}");
            }
        }
        let error = tokens(&Words::default(), &Filler::Noise, &[needle(0.0)], 1);
        assert!(matches!(error, Err(Error::TooShort { needed: 2, .. })));
    }

    #[test]
    fn coded_words_follow_the_distribution() {
        let words: Vec<String> = (0..50).map(|i| format!("w{i}")).collect();
        let filler = Filler::Coded { words, draws: Draws::new(&[3]) };
        let units = filler.units(20_000);
        let share = |w: &str| units.iter().filter(|u| **u == w).count() as f64 / 20_000.0;
        let total: f64 = (1..=50).map(|r| f64::from(r).powi(-2)).sum();
        assert!((share("w0") - 1.0 / total).abs() < 0.015);
        assert!((share("w2") - 1.0 / 9.0 / total).abs() < 0.01);
        assert_eq!(filler.units(10), filler.units(20)[..10]);
    }
}
