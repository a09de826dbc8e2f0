//! Questions: on planted facts, and on a text's own sentences.

use crate::draws::Draws;

/// Words that names and some values are made of.
const NAMES: [&str; 32] = [
    "amber", "birch", "cobalt", "dune", "ember", "fjord", "glade", "harbor", "iris", "jade",
    "kelp", "lotus", "maple", "nectar", "onyx", "pearl", "quartz", "raven", "saddle", "tulip",
    "umber", "violet", "willow", "yarrow", "zephyr", "anchor", "basil", "cedar", "delta", "echo",
    "falcon", "granite",
];

/// A fact, a question on it, and how its answer begins.
pub(super) type Template = [&'static str; 3];

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

/// A question, the forced beginning of its answer, and the rest of it.
pub(super) struct Question {
    /// What is asked.
    pub text: String,
    /// Beginning of the answer, which is given; may be empty.
    pub opening: String,
    /// The rest, which is learned.
    pub answer: String,
}

/// A planted fact.
pub(super) struct Fact {
    /// What it is about.
    pub name: String,
    template: Template,
    value: String,
}

/// A name, of one word or of two.
pub(super) fn name(draws: &mut Draws) -> String {
    let count = draws.between(1, 2);
    draws.several(&NAMES, count).join("-")
}

/// Any kind of fact.
pub(super) fn template(draws: &mut Draws) -> Template {
    *draws.pick(&FACTS)
}

impl Fact {
    /// With a value that is drawn.
    pub fn new(name: String, template: Template, draws: &mut Draws) -> Self {
        Self {
            name,
            template,
            value: value(draws),
        }
    }

    /// What stands in the document.
    pub fn sentence(&self) -> String {
        filled(self.template[0], &self.name, &self.value)
    }

    /// What is asked about it.
    pub fn question(self) -> Question {
        Question {
            text: filled(self.template[1], &self.name, ""),
            opening: filled(self.template[2], &self.name, ""),
            answer: self.value,
        }
    }
}

/// A question on a sentence, most often on a word that could not be guessed: a number or a name.
pub(super) fn recall(draws: &mut Draws, sentence: &str) -> Option<Question> {
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
    let cut = *draws.pick(if telling.is_empty() { &cuts } else { &telling });
    let head = words[draws.between(0, (cut - 4).min(8))..cut].join(" ");
    let [text, opening] = *draws.pick(&RECALLS);
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
            .map(|_| *draws.pick(&NAMES))
            .collect::<Vec<_>>()
            .join(" "),
    }
}
