//! Names of the tasks, and what each of them is known to need.

use serde::{Deserialize, Serialize};

use super::longbench::Dataset;
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

/// Needles of the tasks that have several, each with a key or a value of its own.
pub(super) const NEEDLES: usize = 4;
/// Sentences of a context of [`Task::Recall`] that can be asked for, one a question.
pub(super) const SENTENCES: usize = 4;
/// Before the names of LongBench's datasets.
const LONG: &str = "longbench/";
/// Hops of RULER's variable tracking.
pub(super) const HOPS: usize = 4;
/// The needle tasks.
pub(super) const NIAH: [(&str, Task); 8] = [
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
            Self::Multikey1 | Self::Multikey2 | Self::Multikey3 => NEEDLES,
            Self::Recall => SENTENCES,
            _ => 1,
        }
    }

    /// A different number for each task: what its draws depend on beside seed and sample.
    pub(super) fn number(self) -> u64 {
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
