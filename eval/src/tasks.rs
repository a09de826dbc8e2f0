//! The tasks: what is hidden, what is asked, what the answer is.
//!
//! All of RULER (Hsieh et al., 2024; arXiv 2404.06654): its kinds of keys, values and haystacks,
//! its numbers of needles, hops and repetitions, its worked examples, lengths of answers and
//! metrics. Wordings keep close to its templates and are our own, words and texts are others, so
//! figures compare in kind with published ones and not to the digit. `recall` is no task
//! of RULER's: it asks for sentences of the prose itself.

mod chain;
mod needles;
pub mod qa;
mod recall;
pub mod vocabulary;
mod words;

use serde::{Deserialize, Serialize};

use crate::draws::Draws;
use crate::haystack::{Filler, Needle, Prose, digest};
use crate::longbench::metrics::Metric;
use crate::longbench::{self, Dataset};
use crate::{Error, Result};

/// A task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Task {
    /// One number in noise.
    Single1,
    /// One number in prose.
    Single2,
    /// One UUID in prose.
    Single3,
    /// One of four keys is asked for, in prose.
    Multikey1,
    /// The haystack is needles with other keys.
    Multikey2,
    /// The same with UUIDs for keys and values.
    Multikey3,
    /// Four numbers of one key, in prose.
    Multivalue,
    /// Four keys are asked for, in prose.
    Multiquery,
    /// A chain of variable assignments in noise, with this many hops. RULER has 4.
    Vt(usize),
    /// The ten common words of a list.
    Cwe,
    /// The three most frequent of coded words.
    Fwe,
    /// A question on one of many documents (SQuAD).
    Qa1,
    /// A question on several of many documents (HotpotQA).
    Qa2,
    /// Sentences of the prose, word for word.
    Recall,
    /// A dataset of LongBench.
    Long(Dataset),
}

/// Before the names of LongBench's datasets.
const LONG: &str = "longbench/";
/// Hops of RULER's variable tracking.
const HOPS: usize = 4;
/// The needle tasks.
const NIAH: [(&str, Task); 8] = [
    ("single_1", Task::Single1),
    ("single_2", Task::Single2),
    ("single_3", Task::Single3),
    ("multikey_1", Task::Multikey1),
    ("multikey_2", Task::Multikey2),
    ("multikey_3", Task::Multikey3),
    ("multivalue", Task::Multivalue),
    ("multiquery", Task::Multiquery),
];
/// The others: under RULER's names, and ours.
const OTHERS: [(&str, Task); 6] = [
    ("vt", Task::Vt(HOPS)),
    ("cwe", Task::Cwe),
    ("fwe", Task::Fwe),
    ("qa_1", Task::Qa1),
    ("qa_2", Task::Qa2),
    ("recall", Task::Recall),
];
/// Names of all tasks.
pub const NAMES: &str = "single_1, single_2, single_3, multikey_1, multikey_2, multikey_3, \
                         multivalue, multiquery, vt, vt_1 to vt_8, cwe, fwe, qa_1, qa_2, recall";

impl std::str::FromStr for Task {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let short = name.strip_prefix("niah_").unwrap_or(name);
        if let Some((_, task)) = NIAH.iter().find(|(n, _)| *n == short) {
            return Ok(*task);
        }
        if let Some((_, task)) = OTHERS.iter().find(|(n, _)| *n == name) {
            return Ok(*task);
        }
        if let Some(dataset) = name.strip_prefix(LONG) {
            return Ok(Self::Long(Dataset::find(dataset)?));
        }
        match name.strip_prefix("vt_").and_then(|hops| hops.parse().ok()) {
            Some(hops @ 1..=8) => Ok(Self::Vt(hops)),
            _ => Err(Error::Spec(format!(
                "task `{name}` is not one of {NAMES}, niah, words, qa, all"
            ))),
        }
    }
}

impl std::fmt::Display for Task {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match NIAH.iter().chain(&OTHERS).find(|(_, task)| task == self) {
            Some((name, _)) => f.write_str(name),
            None => match self {
                Self::Vt(hops) => write!(f, "vt_{hops}"),
                Self::Long(dataset) => write!(f, "{LONG}{}", dataset.name()),
                _ => unreachable!("every other task has a name in the tables"),
            },
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

/// One task, or a group of them: `niah` (the eight with needles), `words` (cwe, fwe), `qa`, `all`
/// (all that need no file).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskGroup(pub Vec<Task>);

impl std::str::FromStr for TaskGroup {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let niah = NIAH.map(|(_, task)| task);
        Ok(Self(match name {
            "niah" => niah.into(),
            "words" => vec![Task::Cwe, Task::Fwe],
            "qa" => vec![Task::Qa1, Task::Qa2],
            "all" => niah
                .into_iter()
                .chain([Task::Vt(HOPS), Task::Cwe, Task::Fwe])
                .collect(),
            _ => vec![name.parse()?],
        }))
    }
}

impl Task {
    /// Tokens of an answer at most, the published numbers.
    pub fn answer_tokens(self) -> usize {
        match self {
            Self::Vt(_) => 30,
            Self::Cwe => 120,
            Self::Fwe => 50,
            Self::Qa1 | Self::Qa2 | Self::Recall => 32,
            Self::Long(dataset) => dataset.answer_tokens(),
            _ => 128,
        }
    }

    /// Changes when the same seed and share give other questions or budgets than before, so that
    /// records of before are not taken for the same.
    pub fn revision(self) -> u32 {
        match self {
            Self::Multikey2 | Self::Multikey3 => 4,
            _ => 3,
        }
    }

    /// Keys of which one is asked for: so many questions can be asked about one context.
    pub fn keys(self) -> usize {
        match self {
            Self::Multikey1 | Self::Multikey2 | Self::Multikey3 => needles::SEVERAL,
            Self::Recall => recall::SEVERAL,
            _ => 1,
        }
    }

    fn number(self) -> u64 {
        match self {
            Self::Single1 => 1,
            Self::Single2 => 2,
            Self::Multikey1 => 3,
            Self::Multivalue => 4,
            Self::Multiquery => 5,
            Self::Fwe => 6,
            Self::Single3 => 7,
            Self::Multikey2 => 8,
            Self::Multikey3 => 9,
            Self::Cwe => 10,
            Self::Qa1 => 11,
            Self::Qa2 => 12,
            Self::Recall => 13,
            Self::Vt(hops) => 16 + hops as u64,
            Self::Long(dataset) => 64 + dataset.number(),
        }
    }
}

/// How an answer is judged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Judge {
    /// All answers must be there; the score is the share that is.
    All,
    /// One of them must.
    Any,
    /// LongBench's: the best score against one of them.
    Long {
        /// Metric.
        metric: Metric,
        /// Whether only the first line counts.
        first_line: bool,
        /// Classes of a question of classes.
        classes: Vec<String>,
    },
}

impl Judge {
    /// Whether text at the end of an answer can lower its score, so that the whole answer must be
    /// decoded.
    pub fn needs_all(&self) -> bool {
        matches!(self, Self::Long { .. })
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
    /// How they are.
    pub judge: Judge,
    /// Whether the prompt is a chat message; otherwise the model goes on with the text.
    pub chat: bool,
    /// The answer whose likelihood is measured, as it would continue the prefix.
    pub expected: String,
}

impl Question<'_> {
    /// From 0 to 1. For [`Judge::All`] and [`Judge::Any`] RULER's string match: what `text`
    /// contains, whatever its case.
    pub fn score(&self, text: &str) -> f64 {
        let found = || {
            let text = text.to_lowercase();
            self.answers
                .iter()
                .filter(|a| text.contains(&a.to_lowercase()))
                .count()
        };
        match &self.judge {
            Judge::All => found() as f64 / self.answers.len().max(1) as f64,
            Judge::Any => f64::from(u8::from(found() > 0)),
            Judge::Long {
                metric,
                first_line,
                classes,
            } => {
                let first = || {
                    text.trim_start_matches('\n')
                        .split('\n')
                        .next()
                        .unwrap_or("")
                };
                let text = if *first_line { first() } else { text };
                self.answers
                    .iter()
                    .map(|truth| metric.score(text, truth, classes))
                    .fold(0.0, f64::max)
            }
        }
    }
}

/// What questions are made of.
#[derive(Debug, Clone)]
pub struct Material {
    /// Text for haystacks.
    pub prose: Prose,
    /// Files of questions.
    pub qa: Vec<qa::Corpus>,
    /// Files of LongBench.
    pub longbench: Vec<longbench::File>,
}

impl Material {
    fn corpus(&self, task: Task) -> Result<&qa::Corpus> {
        self.qa.iter().find(|c| c.task() == task).ok_or_else(|| {
            let format = if task == Task::Qa1 {
                "SQuAD"
            } else {
                "HotpotQA"
            };
            Error::Spec(format!(
                "task {task} needs a file of questions in the format of {format}: give it with \
                 --qa"
            ))
        })
    }

    fn file(&self, dataset: Dataset) -> Result<&longbench::File> {
        let missing = || {
            Error::Spec(format!(
                "there is no file of {}: see `eval longbench`",
                dataset.name()
            ))
        };
        self.longbench
            .iter()
            .find(|f| f.dataset() == dataset)
            .ok_or_else(missing)
    }

    /// Questions that a task has, if their number is limited.
    ///
    /// # Errors
    /// [`Error::Spec`] when it needs a file that is not there.
    pub fn available(&self, task: Task) -> Result<Option<usize>> {
        match task {
            Task::Long(dataset) => Ok(Some(self.file(dataset)?.len())),
            _ => Ok(None),
        }
    }

    /// Names what a task is made of in records.
    ///
    /// # Errors
    /// [`Error::Spec`] when it needs a file that is not there.
    pub fn digest(&self, task: Task) -> Result<String> {
        match task {
            Task::Qa1 | Task::Qa2 => Ok(self.corpus(task)?.digest().into()),
            Task::Long(dataset) => Ok(self.file(dataset)?.digest().into()),
            Task::Single1
            | Task::Multikey2
            | Task::Multikey3
            | Task::Vt(_)
            | Task::Cwe
            | Task::Fwe => Ok(digest("")),
            _ => Ok(self.prose.digest().into()),
        }
    }
}

/// Which question of a task.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Draw {
    /// Seed of the grid.
    pub seed: u64,
    /// Sample.
    pub index: usize,
    /// Where needles are, from 0 to 1; `None`: at random.
    pub depth: Option<f64>,
    /// Tokens of the context. Only word lists depend on it.
    pub length: usize,
    /// Which of the task's [`Task::keys`] is asked for. The context does not depend on it.
    pub key: usize,
}

/// A question of a task. The same arguments give the same question.
///
/// # Errors
/// [`Error::Spec`] when the task needs a file that is not there.
pub fn question(task: Task, material: &Material, draw: Draw) -> Result<Question<'_>> {
    let mut draws = Draws::new(&[draw.seed, draw.index as u64, task.number()]);
    Ok(match task {
        Task::Vt(hops) => chain::question(&mut draws, hops),
        Task::Cwe => words::common(&mut draws, draw.length),
        Task::Fwe => words::frequent(&mut draws, draw.length),
        Task::Long(dataset) => material.file(dataset)?.question(draw.seed, draw.index),
        Task::Qa1 | Task::Qa2 => {
            qa::question(material.corpus(task)?, &mut draws, (draw.seed, draw.index))
        }
        Task::Recall => recall::question(&material.prose, &mut draws, (draw.length, draw.key)),
        _ => needles::question(task, &material.prose, &mut draws, (draw.depth, draw.key)),
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::haystack;

    /// Every task that needs no file.
    fn all() -> Vec<Task> {
        "all".parse::<TaskGroup>().expect("a group").0
    }

    pub(crate) fn material() -> Material {
        let prose = Prose::new(&"It was late. Nobody came by. ".repeat(10)).expect("sentences");
        Material {
            prose,
            qa: Vec::new(),
            longbench: Vec::new(),
        }
    }

    pub(crate) fn draw(seed: u64, index: usize) -> Draw {
        Draw {
            seed,
            index,
            depth: None,
            length: 2048,
            key: 0,
        }
    }

    #[test]
    fn names_and_groups_are_rulers() {
        for task in all().into_iter().chain([
            Task::Vt(2),
            Task::Qa1,
            Task::Qa2,
            Task::Recall,
            Task::Long(Dataset::find("lcc").expect("a name")),
        ]) {
            assert_eq!(task.to_string().parse::<Task>().expect("a name"), task);
            let json = serde_json::to_string(&task).expect("JSON");
            assert_eq!(serde_json::from_str::<Task>(&json).expect("a task"), task);
        }
        assert!("vt_9".parse::<Task>().is_err() && "single".parse::<TaskGroup>().is_err());
        assert_eq!(
            "niah_multikey_2"
                .parse::<TaskGroup>()
                .expect("RULER's name")
                .0,
            [Task::Multikey2]
        );
        let count = |group: &str| group.parse::<TaskGroup>().expect("a group").0.len();
        assert_eq!(["niah", "words", "qa", "all"].map(count), [8, 2, 2, 11]);
        assert_eq!(Task::Vt(HOPS).to_string(), "vt");
    }

    #[test]
    fn questions_repeat_by_seed_and_differ_by_index() {
        let material = material();
        for task in all() {
            let text = |seed, index| {
                let q = question(task, &material, draw(seed, index)).expect("no file needed");
                (
                    haystack::text(&q.filler, &q.needles, 120),
                    q.question,
                    q.expected,
                )
            };
            assert_eq!(text(1, 0), text(1, 0), "{task}");
            assert_ne!(text(1, 0), text(1, 1), "{task}");
            assert_ne!(text(1, 0), text(2, 0), "{task}");
        }
        assert!(question(Task::Qa1, &material, draw(1, 0)).is_err());
    }

    #[test]
    fn every_answer_is_hidden_once_and_asked_for() {
        let material = material();
        for (_, task) in NIAH {
            let q = question(task, &material, draw(9, 4)).expect("no file needed");
            let text = haystack::text(&q.filler, &q.needles, 40);
            for answer in &q.answers {
                assert_eq!(text.matches(answer.as_str()).count(), 1, "{task}");
                assert!(q.expected.contains(answer.as_str()));
                let needle = q
                    .needles
                    .iter()
                    .find(|n| n.text.contains(answer.as_str()))
                    .expect("hidden");
                let key = needle
                    .text
                    .split(" for ")
                    .nth(1)
                    .and_then(|t| t.split(" is:").next())
                    .expect("a key");
                assert!(
                    q.question.contains(key) && q.answer_prefix.contains(key),
                    "{task}"
                );
                let uuid = |text: &str| text.len() == 36 && text.matches('-').count() == 4;
                assert_eq!(uuid(key), task == Task::Multikey3, "{task}");
                assert_eq!(
                    uuid(answer),
                    matches!(task, Task::Single3 | Task::Multikey3),
                    "{task}"
                );
            }
            let (needles, answers) = match task {
                Task::Multikey1 | Task::Multikey2 | Task::Multikey3 => (4, 1),
                Task::Multivalue | Task::Multiquery => (4, 4),
                _ => (1, 1),
            };
            assert_eq!(
                (q.needles.len(), q.answers.len()),
                (needles, answers),
                "{task}"
            );
            let hay = text.matches("One of the special magic").count() - needles;
            assert_eq!(
                hay,
                if matches!(task, Task::Multikey2 | Task::Multikey3) {
                    40
                } else {
                    0
                },
                "{task}"
            );
        }
    }

    #[test]
    fn every_key_of_a_context_can_be_asked_for() {
        let material = material();
        for task in [Task::Multikey1, Task::Multikey2, Task::Multikey3] {
            let of = |key| {
                question(task, &material, Draw { key, ..draw(5, 1) }).expect("no file needed")
            };
            let text = |q: &Question<'_>| {
                q.instruction.clone() + &haystack::text(&q.filler, &q.needles, 30)
            };
            let mut answers: Vec<String> = (0..task.keys())
                .map(|key| of(key).answers[0].clone())
                .collect();
            for key in 1..task.keys() {
                assert_eq!(
                    text(&of(key)),
                    text(&of(0)),
                    "{task}: the context is the same"
                );
            }
            answers.sort();
            answers.dedup();
            assert_eq!(answers.len(), 4, "{task}");
        }
    }

    #[test]
    fn chains_are_in_order_and_linked_after_an_example_of_their_own() {
        let material = material();
        let q = question(Task::Vt(2), &material, draw(3, 0)).expect("no file needed");
        let text = haystack::text(&q.filler, &q.needles, 40);
        let lines: Vec<&str> = text.lines().filter(|l| l.starts_with("VAR")).collect();
        let [a, b, c] = [&q.answers[0], &q.answers[1], &q.answers[2]];
        assert!(lines[0].starts_with(&format!("VAR {a} = ")));
        assert_eq!(
            lines[1..],
            [format!("VAR {b} = VAR {a}"), format!("VAR {c} = VAR {b}")]
        );
        let value = &lines[0][12..];
        assert!(q.question.contains(value));
        // The example is solved, with other names and another value.
        assert!(!q.instruction.contains(value) && !q.instruction.contains(a.as_str()));
        let shown: Vec<&str> = q
            .instruction
            .lines()
            .filter(|l| l.starts_with("VAR"))
            .collect();
        let names: Vec<&str> = shown.iter().map(|l| &l[4..7]).collect();
        assert_eq!(names.len(), 3);
        assert!(
            q.instruction
                .contains(&format!("they are: {}\n", names.join(" ")))
        );
    }

    #[test]
    fn lists_have_ten_common_words_and_a_solved_example() {
        let material = material();
        for (length, times) in [(2048, 6), (4096, 30)] {
            let q = question(
                Task::Cwe,
                &material,
                Draw {
                    length,
                    ..draw(3, 0)
                },
            )
            .expect("no file needed");
            let text = haystack::text(&q.filler, &q.needles, 1000);
            assert_eq!(q.answers.len(), 10);
            for answer in &q.answers {
                let count = text.split(' ').filter(|w| *w == answer.as_str()).count();
                assert_eq!(count, times, "{answer}");
                assert!(
                    !q.instruction
                        .split([' ', '\n'])
                        .any(|w| w == answer.as_str()),
                    "{answer} is in the example"
                );
            }
        }
    }

    #[test]
    fn string_match_is_rulers() {
        let material = material();
        let mut q = question(Task::Multiquery, &material, draw(1, 0)).expect("no file needed");
        q.answers = vec!["123".into(), "Abc".into()];
        assert_eq!(
            [
                q.score("it is 123, ABC"),
                q.score("it is 1234"),
                q.score("12 3")
            ],
            [1.0, 0.5, 0.0]
        );
        q.judge = Judge::Any;
        assert_eq!(
            [
                q.score("it is 123, ABC"),
                q.score("it is 1234"),
                q.score("12 3")
            ],
            [1.0, 1.0, 0.0]
        );
    }
}
