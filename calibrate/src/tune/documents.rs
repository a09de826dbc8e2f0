//! Documents to tune on: passages of a corpus, with facts planted in some, and questions on them.
//!
//! Documents, wordings, names and kinds of values are not those of the evaluation in `eval/`.

mod questions;

use tokenizers::Tokenizer;

use self::questions::{Fact, Question, name, recall, template};
pub use crate::corpus::Turns;
use crate::corpus::{encode, floor_char};
use crate::draws::Draws;
use crate::{Error, Result};

/// Tokens to read and to answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// All tokens.
    pub ids: Vec<u32>,
    /// Tokens that are evicted from, whole strides.
    pub length: usize,
    /// Positions of the answers' tokens, behind those.
    pub answers: Vec<usize>,
}

/// What is drawn.
#[derive(Debug, Clone, Copy)]
pub struct Kind {
    /// Lengths, strides.
    pub lengths: [usize; 4],
    /// Documents in five that have planted facts; the others' questions are on their own
    /// sentences.
    pub planted_of_five: usize,
}

/// Cheap ones that mostly ask for planted facts, to begin with.
pub const SHORT: Kind = Kind {
    lengths: [4; 4],
    planted_of_five: 4,
};
/// Those of the lengths that are served.
pub const LONG: Kind = Kind {
    lengths: [8, 8, 8, 16],
    planted_of_five: 2,
};
/// Questions on a document, at most.
const QUESTIONS: usize = 4;
/// Characters that surely hold a token's worth of text, and those that a document is cut from.
const CHARACTERS: (usize, usize) = (14, 16);
/// Sentences that are tried for questions.
const TRIED: usize = 24;

/// A text with questions on it.
struct Passage {
    ids: Vec<u32>,
    questions: Vec<Question>,
}

/// Draws documents.
pub struct Documents<'a> {
    text: &'a str,
    tokenizer: &'a Tokenizer,
    turns: &'a Turns,
    stride: usize,
}

impl<'a> Documents<'a> {
    /// From the text of a corpus.
    ///
    /// # Errors
    /// [`Error::TooShort`] when the longest document would not fit into it twice.
    pub fn new(
        text: &'a str,
        tokenizer: &'a Tokenizer,
        turns: &'a Turns,
        stride: usize,
    ) -> Result<Self> {
        let longest = LONG
            .lengths
            .iter()
            .max()
            .map_or(0, |strides| strides * stride);
        if text.len() < 2 * CHARACTERS.1 * longest {
            let found = encode(tokenizer, text)?.len();
            return Err(Error::TooShort {
                found,
                needed: 2 * CHARACTERS.1 * longest / 4,
            });
        }
        Ok(Self {
            text,
            tokenizer,
            turns,
            stride,
        })
    }

    /// The document of a kind and a seed.
    ///
    /// # Errors
    /// [`Error::Tokenizer`].
    pub fn draw(&self, kind: Kind, seed: u64) -> Result<Document> {
        let mut draws = Draws::new(seed);
        let length = self.stride * *draws.pick(&kind.lengths);
        loop {
            let start = floor_char(
                self.text,
                draws.between(0, self.text.len() - CHARACTERS.1 * length),
            );
            let passage = &self.text[start..floor_char(self.text, start + CHARACTERS.0 * length)];
            let mut passage = encode(self.tokenizer, passage)?;
            passage.truncate(length);
            let Passage { ids, questions } = if draws.between(1, 5) <= kind.planted_of_five {
                self.planted(&mut draws, &passage, length)?
            } else {
                self.recalls(&mut draws, &passage, length)?
            };
            if ids.len() == length && !questions.is_empty() {
                return self.ask(ids, &questions);
            }
        }
    }

    fn decode(&self, ids: &[u32]) -> Result<String> {
        self.tokenizer
            .decode(ids, false)
            .map_err(|error| Error::Tokenizer(error.to_string()))
    }

    fn ask(&self, mut ids: Vec<u32>, questions: &[Question]) -> Result<Document> {
        let (length, mut answers) = (ids.len(), Vec::new());
        for (index, question) in questions.iter().take(QUESTIONS).enumerate() {
            let turn = if index == 0 { "\n\n" } else { &self.turns.next };
            let Question {
                text,
                opening,
                answer,
            } = question;
            ids.extend(encode(
                self.tokenizer,
                &format!("{turn}{text}{}{opening}", self.turns.answer),
            )?);
            let space = if opening.is_empty() { "" } else { " " };
            let answer = encode(self.tokenizer, &format!("{space}{answer}"))?;
            answers.extend(ids.len()..ids.len() + answer.len());
            ids.extend(answer);
            ids.extend(encode(self.tokenizer, ".")?);
        }
        Ok(Document {
            ids,
            length,
            answers,
        })
    }

    /// A passage with facts, of one kind or of several.
    fn planted(&self, draws: &mut Draws, passage: &[u32], length: usize) -> Result<Passage> {
        let text = self.decode(passage)?;
        let mut sentences: Vec<String> = text.split(". ").map(str::to_string).collect();
        let one_kind = (draws.between(0, 1) == 1).then(|| template(draws));
        let mut facts: Vec<Fact> = Vec::new();
        for _ in 0..draws.between(2, 6) {
            let name = name(draws);
            let template = one_kind.unwrap_or_else(|| template(draws));
            let fact = Fact::new(name, template, draws);
            if facts.iter().all(|known| known.name != fact.name) {
                let at = draws.between(0, sentences.len());
                sentences.insert(at, fact.sentence());
                facts.push(fact);
            }
        }
        let mut ids = encode(
            self.tokenizer,
            &format!("{}{}", self.turns.opening, sentences.join(". ")),
        )?;
        ids.truncate(length);
        let text = self.decode(&ids)?;
        let space = encode(self.tokenizer, " ")?;
        ids.extend(space.iter().cycle().take(length - ids.len()));
        facts.retain(|fact| text.contains(&fact.sentence()));
        draws.shuffle(&mut facts);
        let questions = facts.into_iter().map(Fact::question).collect();
        Ok(Passage { ids, questions })
    }

    /// A passage as it is.
    fn recalls(&self, draws: &mut Draws, passage: &[u32], length: usize) -> Result<Passage> {
        let opening = encode(self.tokenizer, &self.turns.opening)?.len();
        let mut ids = encode(
            self.tokenizer,
            &format!("{}{}", self.turns.opening, self.decode(passage)?),
        )?;
        ids.truncate(length);
        let text = self.decode(&ids[opening.min(ids.len())..])?;
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        let ends = text.char_indices().zip(text.chars().skip(1));
        let cuts = ends
            .filter(|((_, end), next)| ".!?".contains(*end) && *next == ' ')
            .map(|((at, _), _)| at + 1);
        let cuts: Vec<usize> = cuts.collect();
        // Neither the first sentence nor the last need be whole.
        let sentences: Vec<&str> = cuts
            .windows(2)
            .map(|pair| {
                text[pair[0]..pair[1]]
                    .trim()
                    .trim_end_matches(['.', '!', '?'])
            })
            .collect();
        let tried = sentences.len().min(TRIED);
        let questions = draws
            .several(&sentences, tried)
            .into_iter()
            .filter_map(|sentence| recall(draws, sentence))
            .collect();
        Ok(Passage { ids, questions })
    }
}
