//! Needles in a haystack.

use super::filler::{Filler, NeedleKind, Prose};
use super::haystack::Needle;
use super::question::{Draw, Judge, Question};
use super::task::{NEEDLES, Task};
use super::vocabulary::distinct;
use crate::draws::Draws;

/// Needles of `task` at random depths, or all at the draw's; of several keys with a question each,
/// the draw's key is asked for.
pub(super) fn question<'a>(
    task: Task,
    prose: &'a Prose,
    draws: &mut Draws,
    draw: Draw,
) -> Question<'a> {
    let kind = NeedleKind {
        uuid_keys: task == Task::Multikey3,
        uuid_values: matches!(task, Task::Single3 | Task::Multikey3),
    };
    let (keys, values, asked) = match task {
        // Among needles nobody can tell which ones are asked for.
        Task::Multikey1 | Task::Multikey2 | Task::Multikey3 => (NEEDLES, 1, 1),
        Task::Multivalue => (1, NEEDLES, 1),
        Task::Multiquery => (NEEDLES, 1, NEEDLES),
        _ => (1, 1, 1),
    };
    let start = draws.below(prose.len());
    let keys = distinct(keys, || kind.key(draws));
    let all = distinct(keys.len() * values, || kind.value(draws));
    let mut needles = Vec::new();
    for (i, value) in all.iter().enumerate() {
        let depth = draw.depth.unwrap_or_else(|| draws.unit());
        needles.push(Needle {
            text: kind.sentence(&keys[i / values], value),
            depth,
        });
    }
    let filler = match task {
        Task::Single1 => Filler::Noise,
        Task::Multikey2 | Task::Multikey3 => Filler::Distractors {
            kind,
            draws: draws.clone(),
        },
        _ => Filler::Prose { prose, start },
    };
    // Which of the needles stands first in the text is random by their depths.
    let first = draw.key.min(keys.len() - asked);
    let answers = all[first * values..(first + asked) * values].to_vec();
    let query = list(&keys[first..first + asked]);
    let plural = answers.len() > 1;
    let what = kind.what(plural);
    let (some, ask, are) = if plural {
        (
            format!("Some special magic {what} are"),
            "What are all",
            "are",
        )
    } else {
        (format!("A special magic {what} is"), "What is", "is")
    };
    Question {
        instruction: format!(
            "{some} hidden within the following text. Make sure to memorize it. I will quiz you \
             about the {what} afterwards.\n"
        ),
        filler,
        needles,
        question: format!(
            "\n{ask} the special magic {what} for {query} mentioned in the provided text?"
        ),
        answer_prefix: format!(
            "The special magic {what} for {query} mentioned in the provided text {are}"
        ),
        expected: format!(" {}", list(&answers)),
        answers,
        judge: Judge::All,
        chat: true,
    }
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
