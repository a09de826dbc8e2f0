//! A question as token ids, cut where the protocol wants the cache to be within its budget.
//!
//! ```text
//! agnostic:       | template, instruction, haystack           | question, template, answer's prefix | answer
//! question-first: | template, question, instruction, haystack | template, answer's prefix           | answer
//! question-last:  | template, instruction, haystack, question | template, answer's prefix           | answer
//!                                              a boundary, the cache is within its budget
//! ```
//! The engine evicts at multiples of the stride alone, so the haystack is sized until the context
//! ends at one. Earlier boundaries evict, too: this is a streamed context, not one compression of a
//! finished one.

use serde::{Deserialize, Serialize};

use crate::haystack::{self, Filler};
use crate::tasks::Question;
use crate::{Error, Result, TextSide};

/// Stands for the haystack while the template renders. Control characters that no template or text
/// has.
const HAYSTACK: &str = "\u{1}haystack\u{1}";
/// Stands behind the question.
const AFTER: &str = "\u{1}after\u{1}";

/// Whether the question is known when the context is evicted. Results of different protocols do not
/// compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// It is not.
    Agnostic,
    /// It stands before the context.
    QuestionFirst,
    /// It ends the context, so that policies that look at the last queries see those of the
    /// question.
    #[serde(alias = "aware")]
    QuestionLast,
}

impl Protocol {
    /// Every protocol.
    pub const ALL: [Self; 3] = [Self::Agnostic, Self::QuestionFirst, Self::QuestionLast];

    /// Its name in records, tables and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Agnostic => "agnostic",
            Self::QuestionFirst => "question-first",
            Self::QuestionLast => "question-last",
        }
    }
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

/// Renders a question with a context of exactly `length` tokens. A document of its own length gives
/// the longest context up to `length` that ends at a multiple of `stride`, or all of it when it
/// does not reach one.
///
/// # Errors
/// [`Error::TooShort`], [`Error::Text`], [`Error::Spec`] when the template changes the text.
pub fn build(
    side: &dyn TextSide,
    question: &Question<'_>,
    (length, stride): (usize, usize),
    protocol: Protocol,
) -> Result<Prompt> {
    let asked = &question.question;
    let user = match protocol {
        Protocol::QuestionFirst => {
            format!(
                "{}\n\n{}{HAYSTACK}{AFTER}",
                asked.trim_start(),
                question.instruction
            )
        }
        _ => format!("{}{HAYSTACK}{asked}{AFTER}", question.instruction),
    };
    let rendered = if question.chat {
        side.chat(&user, &question.answer_prefix)?
    } else {
        format!("{user}{}", question.answer_prefix)
    };
    let changed = || Error::Spec("the chat template does not show the user's text as it is".into());
    let (head, rest) = rendered.split_once(HAYSTACK).ok_or_else(changed)?;
    let (asked, closing) = rest.split_once(AFTER).ok_or_else(changed)?;
    let (before, after) = match protocol {
        Protocol::QuestionLast => (asked.to_string(), closing.to_string()),
        _ => (String::new(), format!("{asked}{closing}")),
    };
    let (mut context, before) = (side.encode(head)?, side.encode(&before)?);
    let taken = context.len() + before.len();
    let haystack = match &question.filler {
        Filler::Document(text) => {
            let ids = side.encode(text)?;
            let all = taken + ids.len();
            let wanted = if all < stride {
                all
            } else {
                all.min(length) / stride * stride
            };
            if wanted <= taken {
                return Err(Error::TooShort {
                    length,
                    needed: taken + 1,
                });
            }
            haystack::cut_middle(ids, wanted - taken)
        }
        filler => {
            let room = length.saturating_sub(taken);
            haystack::tokens(side, filler, &question.needles, room).map_err(|e| match e {
                Error::TooShort { needed, .. } => Error::TooShort {
                    length,
                    needed: needed + taken,
                },
                other => other,
            })?
        }
    };
    context.extend(haystack);
    context.extend(before);
    let tail = side.encode(&after)?;
    // Tokens of the answer where it stands; a tokenizer that joins it with the prefix gets the
    // answer alone.
    let joint = side.encode(&format!("{after}{}", question.expected))?;
    let answer = match joint.strip_prefix(tail.as_slice()) {
        Some(answer) if !answer.is_empty() => answer.to_vec(),
        _ => side.encode(&question.expected)?,
    };
    Ok(Prompt {
        context,
        tail,
        answer,
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use std::cell::RefCell;

    use super::*;
    use crate::tasks::tests::{draw, material};
    use crate::tasks::{self, Task};

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
            ids.iter()
                .map(|&id| self.0.borrow()[id as usize].clone())
                .collect()
        }

        fn chat(&self, user: &str, answer_prefix: &str) -> Result<String> {
            Ok(format!("<user> {user} <end> <assistant> {answer_prefix}"))
        }

        fn ends(&self, _: u32) -> bool {
            false
        }
    }

    #[test]
    fn the_context_ends_where_asked_and_the_question_stands_where_the_protocol_says() {
        let material = material();
        for task in [
            Task::Single1,
            Task::Multikey1,
            Task::Multikey3,
            Task::Multivalue,
            Task::Vt(1),
            Task::Fwe,
        ] {
            let question = tasks::question(task, &material, draw(1, 2)).expect("no file needed");
            for length in [512, 1024] {
                let side = Words::default();
                let [agnostic, first, last] = Protocol::ALL
                    .map(|protocol| build(&side, &question, (length, 16), protocol).expect("fits"));
                let text = |ids: &[u32]| side.decode(ids);
                for prompt in [&agnostic, &first, &last] {
                    assert_eq!(prompt.context.len(), length);
                    assert!(text(&prompt.tail).ends_with(&question.answer_prefix));
                    for needle in &question.needles {
                        assert_eq!(
                            text(&prompt.context).matches(&needle.text).count(),
                            1,
                            "{task} {length}"
                        );
                    }
                }
                let asked = question.question.trim();
                assert!(
                    !text(&agnostic.context).contains(asked)
                        && text(&agnostic.tail).trim().starts_with(asked),
                    "{task}"
                );
                for prompt in [&first, &last] {
                    assert!(
                        text(&prompt.context).contains(asked)
                            && !text(&prompt.tail).contains(asked),
                        "{task}"
                    );
                }
                assert!(
                    text(&first.context[..60]).contains(&asked[..20])
                        && text(&last.context).ends_with(asked),
                    "{task}"
                );
            }
        }
    }

    #[test]
    fn a_document_keeps_its_ends_and_the_context_ends_at_a_boundary() {
        let text: String = (0..200).map(|i| format!("w{i} ")).collect();
        let material = material();
        let mut question =
            tasks::question(Task::Single1, &material, draw(1, 2)).expect("no file needed");
        (question.filler, question.needles) = (Filler::Document(&text), Vec::new());
        let side = Words::default();
        for (length, want) in [(128, 128), (150, 144), (1000, 224)] {
            let prompt = build(&side, &question, (length, 16), Protocol::Agnostic).expect("fits");
            let got = side.decode(&prompt.context);
            assert_eq!(prompt.context.len(), want);
            assert!(
                got.contains("w0 ")
                    && got.ends_with("w199 ")
                    && (want > 200 || !got.contains("w100 ")),
                "{got}"
            );
        }
        let whole = build(&side, &question, (1000, 512), Protocol::Agnostic).expect("fits");
        assert!(
            side.decode(&whole.context).contains(&text),
            "no boundary is reached, nothing is cut"
        );
        question.chat = false;
        let raw = build(&side, &question, (1000, 512), Protocol::Agnostic).expect("fits");
        assert!(side.decode(&raw.context).starts_with(&question.instruction));
    }

    #[test]
    fn a_length_below_what_must_be_there_says_what_it_takes() {
        let material = material();
        let question =
            tasks::question(Task::Multikey1, &material, draw(1, 2)).expect("no file needed");
        let side = Words::default();
        let Err(Error::TooShort { length: 16, needed }) =
            build(&side, &question, (16, 16), Protocol::Agnostic)
        else {
            panic!("16 tokens are too few")
        };
        assert!(build(&side, &question, (needed, 16), Protocol::Agnostic).is_ok());
        assert!(build(&side, &question, (needed - 1, 16), Protocol::Agnostic).is_err());
    }

    #[test]
    fn protocols_keep_their_names() {
        for protocol in Protocol::ALL {
            let json = serde_json::to_string(&protocol).expect("JSON");
            assert_eq!(json, format!("\"{}\"", protocol.name()));
        }
    }
}
