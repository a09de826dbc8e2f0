//! Documents to tune on: passages of a corpus, with facts planted in some, and questions on them.
//!
//! Documents, wordings, names and kinds of values are not those of the evaluation in `eval/`.

use tokenizers::Tokenizer;

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

const NAMES: [&str; 32] = [
    "amber", "birch", "cobalt", "dune", "ember", "fjord", "glade", "harbor", "iris", "jade",
    "kelp", "lotus", "maple", "nectar", "onyx", "pearl", "quartz", "raven", "saddle", "tulip",
    "umber", "violet", "willow", "yarrow", "zephyr", "anchor", "basil", "cedar", "delta", "echo",
    "falcon", "granite",
];

/// A fact, a question on it, and how its answer begins.
type Template = [&'static str; 3];

const FACTS: [Template; 8] = [
    [
        "Locker {a} opens with the code {v}",
        "Which code opens locker {a}?",
        "Locker {a} opens with the code",
    ],
    [
        "The badge of {a} carries the number {v}",
        "What number is on the badge of {a}?",
        "The badge of {a} carries the number",
    ],
    [
        "{a} was given the serial {v} by the registry",
        "Which serial did {a} get?",
        "{a} was given the serial",
    ],
    ["Let {a} be {v}", "What is {a}?", "{a} is"],
    [
        "Parcel {a} travels under reference {v}",
        "Under which reference does parcel {a} travel?",
        "Parcel {a} travels under reference",
    ],
    [
        "Remember this: {a} lives at {v}",
        "Where does {a} live?",
        "{a} lives at",
    ],
    [
        "In the ledger {a} is entered as {v}",
        "How is {a} entered in the ledger?",
        "In the ledger {a} is entered as",
    ],
    [
        "The password that {a} uses is {v}",
        "Which password does {a} use?",
        "The password that {a} uses is",
    ],
];

/// Questions on the text's own sentences, and how their answers begin.
const RECALLS: [[&str; 2]; 5] = [
    [
        "Complete this sentence as it stands in the text: {head} ...",
        "{head}",
    ],
    ["What does the text say about {topic}?", "{head}"],
    ["Quote the sentence that has {topic} in it.", "{head}"],
    ["How does the text go on after this: {head}", ""],
    ["What is left out here: {head} ____", "What is left out is"],
];

/// What the model's chat template puts around texts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turns {
    /// Before the first text of the user.
    pub opening: String,
    /// Between a user's text and the answer.
    pub answer: String,
    /// Between an answer and the user's next text.
    pub next: String,
}

impl Default for Turns {
    /// For models that have no template.
    fn default() -> Self {
        Self {
            opening: String::new(),
            answer: "\n".into(),
            next: "\n\n".into(),
        }
    }
}

struct Question {
    text: String,
    opening: String,
    answer: String,
}

/// A text with questions on it.
struct Passage {
    ids: Vec<u32>,
    questions: Vec<Question>,
}

/// A planted fact.
struct Fact {
    name: String,
    template: Template,
    value: String,
}

impl Fact {
    fn sentence(&self) -> String {
        filled(self.template[0], &self.name, &self.value)
    }

    fn question(self) -> Question {
        Question {
            text: filled(self.template[1], &self.name, ""),
            opening: filled(self.template[2], &self.name, ""),
            answer: self.value,
        }
    }
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
        let length = self.stride * *pick(&mut draws, &kind.lengths);
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
        let one_kind = (draws.between(0, 1) == 1).then(|| *pick(draws, &FACTS));
        let mut facts: Vec<Fact> = Vec::new();
        for _ in 0..draws.between(2, 6) {
            let count = draws.between(1, 2);
            let name = drawn(draws, &NAMES, count).join("-");
            let template = one_kind.unwrap_or_else(|| *pick(draws, &FACTS));
            let value = value(draws);
            if facts.iter().all(|known| known.name != name) {
                let at = draws.between(0, sentences.len());
                let fact = Fact {
                    name,
                    template,
                    value,
                };
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
        shuffle(draws, &mut facts);
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
        let questions = drawn(draws, &sentences, tried)
            .into_iter()
            .filter_map(|sentence| recall(draws, sentence))
            .collect();
        Ok(Passage { ids, questions })
    }
}

/// A question on a sentence, most often on a word that could not be guessed: a number or a name.
fn recall(draws: &mut Draws, sentence: &str) -> Option<Question> {
    let words: Vec<&str> = sentence.split(' ').collect();
    let chars = |words: &[&str]| words.iter().map(|word| word.chars().count()).sum::<usize>();
    let cuts: Vec<usize> = (4..words.len())
        .filter(|&cut| chars(&words[..cut]) < 200)
        .collect();
    let telling: Vec<usize> = cuts
        .iter()
        .copied()
        .filter(|&cut| is_telling(words[cut]))
        .collect();
    if cuts.is_empty() || words.len() > 60 || (telling.is_empty() && draws.between(1, 10) <= 7) {
        return None;
    }
    let cut = *pick(draws, if telling.is_empty() { &cuts } else { &telling });
    let head = words[draws.between(0, (cut - 4).min(8))..cut].join(" ");
    let [text, opening] = *pick(draws, &RECALLS);
    let topic = head
        .split(' ')
        .max_by_key(|word| word.chars().count())?
        .trim_matches(&['.', ',', ':', ';', '(', ')', '"'][..]);
    let fill = |template: &str| template.replace("{topic}", topic).replace("{head}", &head);
    let answer = words[cut..words.len().min(cut + 5)].join(" ");
    Some(Question {
        text: fill(text),
        opening: fill(opening),
        answer,
    })
}

fn is_telling(word: &str) -> bool {
    let mut chars = word.chars();
    match (chars.next(), chars.next()) {
        (Some(first), _) if first.is_ascii_digit() => true,
        (Some(first), Some(second)) => {
            first.is_ascii_uppercase() && (second.is_alphanumeric() || second == '-')
        }
        _ => false,
    }
}

fn filled(template: &str, name: &str, value: &str) -> String {
    template.replace("{a}", name).replace("{v}", value)
}

/// What a fact says: a number, hexadecimal digits, words.
fn value(draws: &mut Draws) -> String {
    fn digits(draws: &mut Draws, base: u32, (least, most): (usize, usize)) -> String {
        let digit =
            |draws: &mut Draws| char::from_digit(draws.between(0, base as usize - 1) as u32, base);
        (0..draws.between(least, most))
            .filter_map(|_| digit(draws))
            .collect()
    }
    match draws.between(0, 5) {
        0..=2 => digits(draws, 10, (4, 8)),
        3 => digits(draws, 16, (8, 20)),
        4 => (0..draws.between(2, 4))
            .map(|_| digits(draws, 16, (3, 8)))
            .collect::<Vec<_>>()
            .join("-"),
        _ => (0..draws.between(1, 3))
            .map(|_| *pick(draws, &NAMES))
            .collect::<Vec<_>>()
            .join(" "),
    }
}

fn pick<'t, T>(draws: &mut Draws, of: &'t [T]) -> &'t T {
    &of[draws.between(0, of.len() - 1)]
}

/// `count` different ones of `of`.
fn drawn<T: Copy>(draws: &mut Draws, of: &[T], count: usize) -> Vec<T> {
    let mut all = of.to_vec();
    shuffle(draws, &mut all);
    all.truncate(count);
    all
}

fn shuffle<T>(draws: &mut Draws, items: &mut [T]) {
    for last in (1..items.len()).rev() {
        items.swap(last, draws.between(0, last));
    }
}
