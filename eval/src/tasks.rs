//! The tasks: what is hidden, what is asked, what the answer is.
//!
//! All of RULER (Hsieh et al., 2024; arXiv 2404.06654): its kinds of keys, values and haystacks,
//! its numbers of needles, hops and repetitions, its worked examples, lengths of answers and
//! metrics. Wordings keep close to its templates and are our own, words and texts are others, so
//! figures compare in kind with published ones and not to the digit. `recall` is no task of
//! RULER's: it asks for sentences of the prose itself. [`longbench`] has its own files.
//!
//! A task becomes a [`Question`] with a [`haystack`] of some [`filler`]; nothing here knows of a
//! model's tokens but by [`crate::TextSide`], nor of caches.

mod chain;
pub mod filler;
pub mod haystack;
pub mod longbench;
pub mod metrics;
mod needles;
pub mod qa;
mod question;
mod recall;
mod task;
pub mod vocabulary;
mod words;

use self::filler::{Prose, digest};
use self::longbench::Dataset;
pub use self::question::{Draw, Judge, Question};
pub use self::task::{NAMES, Task, TaskGroup};
use crate::draws::Draws;
use crate::{Error, Result};

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
        Task::Qa1 | Task::Qa2 => qa::question(material.corpus(task)?, &mut draws, draw),
        Task::Recall => recall::question(&material.prose, &mut draws, draw),
        _ => needles::question(task, &material.prose, &mut draws, draw),
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::task::{HOPS, NIAH};
    use super::*;

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
