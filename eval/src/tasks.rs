//! The tasks: what is hidden, what is asked, what the answer is. Wordings follow RULER's templates.

use crate::draws::Draws;
use crate::haystack::{Filler, Needle, Prose};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};

const ADJECTIVES: [&str; 32] = [
    "brave", "calm", "clever", "cosy", "curious", "dusty", "eager", "early", "faint", "fancy", "gentle", "giant",
    "happy", "hidden", "humble", "jolly", "kind", "lazy", "lively", "lucky", "modest", "narrow", "noisy", "plain",
    "proud", "quiet", "rapid", "rusty", "shiny", "silent", "tidy", "wild",
];
const NOUNS: [&str; 32] = [
    "anchor", "basket", "blanket", "bridge", "candle", "carpet", "castle", "cottage", "drum", "engine", "feather",
    "fiddle", "garden", "hammer", "helmet", "island", "jacket", "kettle", "ladder", "lantern", "mirror", "needle",
    "orchard", "pillow", "pocket", "puzzle", "ribbon", "saddle", "shovel", "tunnel", "violin", "wagon",
];
/// Needles of the tasks that have several.
const SEVERAL: usize = 4;
/// Distinct coded words, RULER's number.
const CODED: usize = 2000;
/// Frequent words that are asked for.
const FREQUENT: usize = 3;

/// A task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Task {
    /// One number in noise.
    Single1,
    /// One number in prose.
    Single2,
    /// One of four keys is asked for, in prose.
    Multikey1,
    /// Four numbers of one key, in prose.
    Multivalue,
    /// Four keys are asked for, in prose.
    Multiquery,
    /// A chain of variable assignments in noise, with this many hops.
    Vt(usize),
    /// The three most frequent of coded words.
    Fwe,
}

/// Names of all tasks.
pub const NAMES: &str = "single_1, single_2, multikey_1, multivalue, multiquery, vt, vt_2 to vt_8, fwe";

impl std::str::FromStr for Task {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Ok(match name {
            "single_1" => Self::Single1,
            "single_2" => Self::Single2,
            "multikey_1" => Self::Multikey1,
            "multivalue" => Self::Multivalue,
            "multiquery" => Self::Multiquery,
            "vt" => Self::Vt(1),
            "fwe" => Self::Fwe,
            _ => match name.strip_prefix("vt_").and_then(|hops| hops.parse().ok()) {
                Some(hops @ 1..=8) => Self::Vt(hops),
                _ => return Err(Error::Spec(format!("task `{name}` is not one of {NAMES}"))),
            },
        })
    }
}

impl std::fmt::Display for Task {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Single1 => f.write_str("single_1"),
            Self::Single2 => f.write_str("single_2"),
            Self::Multikey1 => f.write_str("multikey_1"),
            Self::Multivalue => f.write_str("multivalue"),
            Self::Multiquery => f.write_str("multiquery"),
            Self::Vt(1) => f.write_str("vt"),
            Self::Vt(hops) => write!(f, "vt_{hops}"),
            Self::Fwe => f.write_str("fwe"),
        }
    }
}

impl From<Task> for String {
    fn from(task: Task) -> Self {
        task.to_string()
    }
}

impl TryFrom<String> for Task {
    type Error = Error;

    fn try_from(name: String) -> Result<Self> {
        name.parse()
    }
}

impl Task {
    /// Whether the answer is one string, so that the greedy path alone decides.
    pub fn single_answer(self) -> bool {
        matches!(self, Self::Single1 | Self::Single2 | Self::Multikey1)
    }

    fn number(self) -> u64 {
        match self {
            Self::Single1 => 1,
            Self::Single2 => 2,
            Self::Multikey1 => 3,
            Self::Multivalue => 4,
            Self::Multiquery => 5,
            Self::Fwe => 6,
            Self::Vt(hops) => 16 + hops as u64,
        }
    }
}

/// A task made concrete: everything but the length of its haystack.
#[derive(Debug, Clone)]
pub struct Question<'a> {
    /// Before the haystack.
    pub instruction: String,
    /// The haystack without needles.
    pub filler: Filler<'a>,
    /// What is hidden in it.
    pub needles: Vec<Needle>,
    /// After the haystack.
    pub question: String,
    /// Forced beginning of the answer.
    pub answer_prefix: String,
    /// Strings that the answer must contain.
    pub answers: Vec<String>,
    /// The answer whose likelihood is measured, as it would continue the prefix.
    pub expected: String,
}

/// Question `index` of a task. The same arguments give the same question. `depth` fixes where single needles are.
pub fn question(task: Task, prose: &Prose, (seed, index): (u64, usize), depth: Option<f64>) -> Question<'_> {
    let mut draws = Draws::new(&[seed, index as u64, task.number()]);
    match task {
        Task::Vt(hops) => variables(&mut draws, hops),
        Task::Fwe => frequent_words(&mut draws),
        _ => needles(task, prose, &mut draws, depth),
    }
}

fn needles<'a>(task: Task, prose: &'a Prose, draws: &mut Draws, depth: Option<f64>) -> Question<'a> {
    let (keys, values, asked) = match task {
        Task::Multikey1 => (SEVERAL, 1, 1),
        Task::Multivalue => (1, SEVERAL, 1),
        Task::Multiquery => (SEVERAL, 1, SEVERAL),
        _ => (1, 1, 1),
    };
    let filler = match task {
        Task::Single1 => Filler::Noise,
        _ => Filler::Prose { prose, start: draws.below(prose.len()) },
    };
    let keys =
        distinct(keys, || format!("{}-{}", ADJECTIVES[draws.below(ADJECTIVES.len())], NOUNS[draws.below(NOUNS.len())]));
    let numbers = distinct(keys.len() * values, || (1_000_000 + draws.below(9_000_000)).to_string());
    let mut needles = Vec::new();
    for (i, number) in numbers.iter().enumerate() {
        let text = format!("One of the special magic numbers for {} is: {number}.", keys[i / values]);
        needles.push(Needle { text, depth: depth.unwrap_or_else(|| draws.unit()) });
    }
    // The asked keys come first; which of the needles stands first in the text is random by their depths.
    let answers = numbers[..asked * values].to_vec();
    let query = list(&keys[..asked]);
    let (plural, magic) = if answers.len() > 1 { ("are", "numbers") } else { ("is", "number") };
    let what = if answers.len() > 1 { "What are all" } else { "What is" };
    let some = if needles.len() > 1 { "Some special magic numbers are" } else { "A special magic number is" };
    let memorise = if needles.len() > 1 {
        "them. I will quiz you about the numbers"
    } else {
        "it. I will quiz you about the number"
    };
    Question {
        instruction: format!("{some} hidden within the following text. Make sure to memorize {memorise} afterwards.\n"),
        filler,
        needles,
        question: format!("\n{what} the special magic {magic} for {query} mentioned in the provided text?"),
        answer_prefix: format!("The special magic {magic} for {query} mentioned in the provided text {plural}"),
        expected: format!(" {}", list(&answers)),
        answers,
    }
}

fn variables<'a>(draws: &mut Draws, hops: usize) -> Question<'a> {
    let mut letters = |count: usize| -> String { (0..count).map(|_| (b'A' + draws.below(26) as u8) as char).collect() };
    let names = distinct(hops + 1, || letters(5));
    let value = 10_000 + draws.below(90_000);
    let mut depths: Vec<f64> = names.iter().map(|_| draws.unit()).collect();
    depths.sort_by(f64::total_cmp);
    let assignment = |i: usize| match i {
        0 => format!("VAR {} = {value}", names[0]),
        _ => format!("VAR {} = VAR {}", names[i], names[i - 1]),
    };
    Question {
        instruction: "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n".into(),
        filler: Filler::Noise,
        needles: depths.into_iter().enumerate().map(|(i, depth)| Needle { text: assignment(i), depth }).collect(),
        question: format!("\nQuestion: Find all variables that are assigned the value {value} in the text above."),
        answer_prefix: format!(
            "Answer: According to the chain(s) of variable assignment in the text above, {} variables are assigned the \
             value {value}, they are:",
            names.len()
        ),
        expected: format!(" {}", names.join(" ")),
        answers: names,
    }
}

fn frequent_words<'a>(draws: &mut Draws) -> Question<'a> {
    let mut letters = |count: usize| -> String { (0..count).map(|_| (b'a' + draws.below(26) as u8) as char).collect() };
    let mut words = vec!["...".to_string()];
    words.extend(distinct(CODED - 1, || letters(6)));
    let answers = words[1..=FREQUENT].to_vec();
    Question {
        instruction: "Read the following coded text and track the frequency of each coded word. Find the three most \
                      frequently appeared coded words. "
            .into(),
        filler: Filler::Coded { words, draws: draws.clone() },
        needles: Vec::new(),
        question: "\nQuestion: Do not provide any explanation. Please ignore the dots '....'. What are the three most \
                   frequently appeared words in the above coded text?"
            .into(),
        answer_prefix: "Answer: According to the coded text above, the three most frequently appeared words are:"
            .into(),
        expected: format!(" {}", answers.join(" ")),
        answers,
    }
}

/// `count` different strings.
fn distinct(count: usize, mut draw: impl FnMut() -> String) -> Vec<String> {
    let mut known = std::collections::HashSet::new();
    let mut found = Vec::with_capacity(count);
    while found.len() < count {
        let next = draw();
        if known.insert(next.clone()) {
            found.push(next);
        }
    }
    found
}

/// `a`, `a and b`, `a, b, and c`.
fn list(items: &[String]) -> String {
    match items {
        [] => String::new(),
        [one] => one.clone(),
        [a, b] => format!("{a} and {b}"),
        [rest @ .., last] => format!("{}, and {last}", rest.join(", ")),
    }
}

/// Share of `answers` that `text` contains, RULER's metric; case does not matter.
pub fn recall(answers: &[String], text: &str) -> f64 {
    let text = text.to_lowercase();
    let found = answers.iter().filter(|a| text.contains(&a.to_lowercase())).count();
    found as f64 / answers.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::haystack;

    const ALL: [Task; 7] =
        [Task::Single1, Task::Single2, Task::Multikey1, Task::Multivalue, Task::Multiquery, Task::Vt(2), Task::Fwe];

    fn prose() -> Prose {
        Prose::new(&"It was late. Nobody came by. ".repeat(10)).expect("sentences")
    }

    #[test]
    fn names_round_trip() {
        for task in ALL {
            assert_eq!(task.to_string().parse::<Task>().expect("a name"), task);
            let json = serde_json::to_string(&task).expect("JSON");
            assert_eq!(serde_json::from_str::<Task>(&json).expect("a task"), task);
        }
        assert!("vt_9".parse::<Task>().is_err() && "single".parse::<Task>().is_err());
    }

    #[test]
    fn questions_repeat_by_seed_and_differ_by_index() {
        let prose = prose();
        for task in ALL {
            let text = |seed, index| {
                let q = question(task, &prose, (seed, index), None);
                (haystack::text(&q.filler, &q.needles, 30), q.question, q.expected)
            };
            assert_eq!(text(1, 0), text(1, 0), "{task}");
            assert_ne!(text(1, 0), text(1, 1), "{task}");
            assert_ne!(text(1, 0), text(2, 0), "{task}");
        }
    }

    #[test]
    fn every_answer_is_hidden_once_and_asked_for() {
        let prose = prose();
        for task in &ALL[..5] {
            let q = question(*task, &prose, (9, 4), None);
            let text = haystack::text(&q.filler, &q.needles, 40);
            for answer in &q.answers {
                assert_eq!(text.matches(answer.as_str()).count(), 1, "{task}");
                assert!(q.expected.contains(answer.as_str()));
                let needle = q.needles.iter().find(|n| n.text.contains(answer.as_str())).expect("hidden");
                let key = needle.text.split(" for ").nth(1).and_then(|t| t.split(" is:").next()).expect("a key");
                assert!(q.question.contains(key) && q.answer_prefix.contains(key), "{task}");
            }
            let (needles, answers) = match task {
                Task::Multikey1 => (4, 1),
                Task::Multivalue | Task::Multiquery => (4, 4),
                _ => (1, 1),
            };
            assert_eq!((q.needles.len(), q.answers.len()), (needles, answers), "{task}");
        }
    }

    #[test]
    fn chains_are_in_order_and_linked() {
        let prose = prose();
        let q = question(Task::Vt(2), &prose, (3, 0), None);
        let text = haystack::text(&q.filler, &q.needles, 40);
        let lines: Vec<&str> = text.lines().filter(|l| l.starts_with("VAR")).collect();
        let [a, b, c] = [&q.answers[0], &q.answers[1], &q.answers[2]];
        assert!(lines[0].starts_with(&format!("VAR {a} = ")));
        assert_eq!(lines[1..], [format!("VAR {b} = VAR {a}"), format!("VAR {c} = VAR {b}")]);
        assert!(q.question.contains(&lines[0][12..]));
    }

    #[test]
    fn recall_counts_what_is_contained() {
        let answers = ["123".to_string(), "Abc".to_string()];
        assert_eq!(recall(&answers, "it is 123, ABC"), 1.0);
        assert_eq!(recall(&answers, "it is 1234"), 0.5);
        assert_eq!(recall(&answers, "12 3"), 0.0);
    }
}
