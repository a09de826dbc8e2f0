//! A question as token ids, cut where the protocol wants the cache to be within its budget.
//!
//! ```text
//! agnostic:  | template, instruction, haystack          | question, template, answer's prefix | answer
//! aware:     | template, instruction, haystack, question | template, answer's prefix           | answer
//!                                        a boundary, the cache is within its budget
//! ```
//! The engine evicts at multiples of the stride alone, so the haystack is sized until the context ends at one. Earlier
//! boundaries evict, too: this is a streamed context, not one compression of a finished one.

use crate::haystack;
use crate::tasks::Question;
use crate::{Error, Result, TextSide};
use serde::{Deserialize, Serialize};

/// Stands for the haystack while the template renders. Control characters that no template or text has.
const HAYSTACK: &str = "\u{1}haystack\u{1}";
/// Stands behind the question.
const AFTER: &str = "\u{1}after\u{1}";

/// Whether the question is known when the context is evicted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// It is not.
    Agnostic,
    /// It is part of the context, at its end.
    Aware,
}

/// A prompt and its answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Prompt {
    /// Tokens before the boundary, a multiple of the stride.
    pub context: Vec<u32>,
    /// Tokens after it.
    pub tail: Vec<u32>,
    /// The expected answer.
    pub answer: Vec<u32>,
}

impl Prompt {
    /// Tokens before the answer.
    pub fn len(&self) -> usize {
        self.context.len() + self.tail.len()
    }

    /// Never.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Renders a question with a context of exactly `length` tokens.
///
/// # Errors
/// [`Error::TooShort`], [`Error::Text`], [`Error::Spec`] when the template changes the text.
pub fn build(side: &dyn TextSide, question: &Question<'_>, length: usize, protocol: Protocol) -> Result<Prompt> {
    let user = format!("{}{HAYSTACK}{}{AFTER}", question.instruction, question.question);
    let rendered = side.chat(&user, &question.answer_prefix)?;
    let changed = || Error::Spec("the chat template does not show the user's text as it is".into());
    let (head, rest) = rendered.split_once(HAYSTACK).ok_or_else(changed)?;
    let (asked, closing) = rest.split_once(AFTER).ok_or_else(changed)?;
    let (before, after) = match protocol {
        Protocol::Agnostic => (String::new(), format!("{asked}{closing}")),
        Protocol::Aware => (asked.to_string(), closing.to_string()),
    };
    let (mut context, before) = (side.encode(head)?, side.encode(&before)?);
    let taken = context.len() + before.len();
    let room = length.saturating_sub(taken);
    let haystack = haystack::tokens(side, &question.filler, &question.needles, room).map_err(|e| match e {
        Error::TooShort { needed, .. } => Error::TooShort { length, needed: needed + taken },
        other => other,
    })?;
    context.extend(haystack);
    context.extend(before);
    let tail = side.encode(&after)?;
    // Tokens of the answer where it stands; a tokenizer that joins it with the prefix gets the answer alone.
    let joint = side.encode(&format!("{after}{}", question.expected))?;
    let answer = match joint.strip_prefix(tail.as_slice()) {
        Some(answer) if !answer.is_empty() => answer.to_vec(),
        _ => side.encode(&question.expected)?,
    };
    Ok(Prompt { context, tail, answer })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::haystack::Prose;
    use crate::tasks::{self, Task};
    use std::cell::RefCell;

    /// A token per word or run of white space.
    #[derive(Default)]
    pub(crate) struct Words(RefCell<Vec<String>>);

    impl TextSide for Words {
        fn encode(&self, text: &str) -> Result<Vec<u32>> {
            let mut known = self.0.borrow_mut();
            let mut id = |word: &str| match known.iter().position(|k| k == word) {
                Some(id) => id as u32,
                None => {
                    known.push(word.into());
                    known.len() as u32 - 1
                }
            };
            Ok(text.split_inclusive([' ', '\n']).map(&mut id).collect())
        }

        fn decode(&self, ids: &[u32]) -> String {
            ids.iter().map(|&id| self.0.borrow()[id as usize].clone()).collect()
        }

        fn chat(&self, user: &str, answer_prefix: &str) -> Result<String> {
            Ok(format!("<user> {user} <end> <assistant> {answer_prefix}"))
        }

        fn ends(&self, _: u32) -> bool {
            false
        }
    }

    #[test]
    fn the_context_ends_where_asked_and_the_question_follows() {
        let prose = Prose::new(&"It was late. Nobody came by. ".repeat(10)).expect("sentences");
        for task in [Task::Single1, Task::Multikey1, Task::Multivalue, Task::Vt(1), Task::Fwe] {
            let question = tasks::question(task, &prose, (1, 2), None);
            for length in [128, 512] {
                let side = Words::default();
                let agnostic = build(&side, &question, length, Protocol::Agnostic).expect("fits");
                let aware = build(&side, &question, length, Protocol::Aware).expect("fits");
                let text = |ids: &[u32]| side.decode(ids);
                assert_eq!((agnostic.context.len(), aware.context.len()), (length, length));
                let asked = question.question.trim_end();
                assert!(!text(&agnostic.context).contains(asked) && text(&agnostic.tail).starts_with(asked), "{task}");
                assert!(text(&aware.context).contains(asked) && !text(&aware.tail).contains(asked), "{task}");
                for needle in &question.needles {
                    assert_eq!(text(&agnostic.context).matches(&needle.text).count(), 1, "{task} {length}");
                }
                assert!(text(&agnostic.tail).ends_with(&question.answer_prefix));
            }
        }
    }

    #[test]
    fn a_length_below_what_must_be_there_says_what_it_takes() {
        let prose = Prose::new(&"It was late. Nobody came by. ".repeat(10)).expect("sentences");
        let question = tasks::question(Task::Multikey1, &prose, (1, 2), None);
        let side = Words::default();
        let Err(Error::TooShort { length: 16, needed }) = build(&side, &question, 16, Protocol::Agnostic) else {
            panic!("16 tokens are too few")
        };
        assert!(build(&side, &question, needed, Protocol::Agnostic).is_ok());
        assert!(build(&side, &question, needed - 1, Protocol::Agnostic).is_err());
    }
}
