//! A question as token ids, cut where the protocol wants the cache to be within its budget.
//!
//! ```text
//! protocol         context                                 | tail                     | answer
//! agnostic         template instruction haystack           | question template prefix | answer
//! question-first   template question instruction haystack  | template prefix          | answer
//! question-last    template instruction haystack question  | template prefix          | answer
//!                                             a boundary ──┘
//! ```
//! *Prefix* is the forced beginning of the answer.
//!
//! The engine evicts at multiples of the stride alone, so the haystack is sized until the context
//! ends at one. Earlier boundaries evict, too: this is a streamed context, not one compression of a
//! finished one.

use crate::record::Protocol;
use crate::tasks::filler::Filler;
use crate::tasks::{Question, haystack};
use crate::{Error, Result, TextSide};

/// Stands for the haystack while the template renders. Control characters that no template or text
/// has.
const HAYSTACK: &str = "\u{1}haystack\u{1}";
/// Stands behind the question.
const AFTER: &str = "\u{1}after\u{1}";

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

/// How long a context is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContextSize {
    /// Tokens, a multiple of the stride.
    pub length: usize,
    /// Tokens between boundaries.
    pub stride: usize,
}

/// Renders a question with a context of exactly `size.length` tokens. A document of its own length
/// gives the longest context up to that which ends at a boundary, or all of it when it does not
/// reach one.
///
/// # Errors
/// [`Error::TooShort`], [`Error::Text`], [`Error::Spec`] when the template changes the text.
pub fn build(
    side: &dyn TextSide,
    question: &Question<'_>,
    size: ContextSize,
    protocol: Protocol,
) -> Result<Prompt> {
    let around = Around::render(side, question, protocol)?;
    let mut context = side.encode(&around.before)?;
    let last = side.encode(&around.last)?;
    context.extend(fill(side, question, size, context.len() + last.len())?);
    context.extend(last);

    let tail = side.encode(&around.after)?;
    // Tokens of the answer where it stands; a tokenizer that joins it with the prefix gets the
    // answer alone.
    let joint = side.encode(&format!("{}{}", around.after, question.expected))?;
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

/// What stands around a haystack.
struct Around {
    /// Before it.
    before: String,
    /// Behind it, within the context.
    last: String,
    /// After the boundary.
    after: String,
}

impl Around {
    fn render(side: &dyn TextSide, question: &Question<'_>, protocol: Protocol) -> Result<Self> {
        let (asked, instruction) = (&question.question, &question.instruction);
        let user = match protocol {
            Protocol::QuestionFirst => {
                let asked = asked.trim_start();
                format!("{asked}\n\n{instruction}{HAYSTACK}{AFTER}")
            }
            Protocol::Agnostic | Protocol::QuestionLast => {
                format!("{instruction}{HAYSTACK}{asked}{AFTER}")
            }
        };
        let rendered = if question.chat {
            side.chat(&user, &question.answer_prefix)?
        } else {
            format!("{user}{}", question.answer_prefix)
        };

        let changed =
            || Error::Spec("the chat template does not show the user's text as it is".into());
        let (before, rest) = rendered.split_once(HAYSTACK).ok_or_else(changed)?;
        let (asked, closing) = rest.split_once(AFTER).ok_or_else(changed)?;
        let (last, after) = match protocol {
            Protocol::QuestionLast => (asked.to_string(), closing.to_string()),
            Protocol::Agnostic | Protocol::QuestionFirst => {
                (String::new(), format!("{asked}{closing}"))
            }
        };
        Ok(Self {
            before: before.to_string(),
            last,
            after,
        })
    }
}

/// A haystack for a context of which `taken` tokens are taken by what stands around it.
fn fill(
    side: &dyn TextSide,
    question: &Question<'_>,
    size: ContextSize,
    taken: usize,
) -> Result<Vec<u32>> {
    let ContextSize { length, stride } = size;
    let Filler::Document(text) = &question.filler else {
        let room = length.saturating_sub(taken);
        let found = haystack::tokens(side, &question.filler, &question.needles, room);
        return found.map_err(|e| match e {
            Error::TooShort { needed, .. } => Error::TooShort {
                length,
                needed: needed + taken,
            },
            other => other,
        });
    };

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
    Ok(haystack::cut_middle(ids, wanted - taken))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::subject::testing::Words;
    use crate::tasks::tests::{draw, material};
    use crate::tasks::{self, Task};

    const fn size(length: usize, stride: usize) -> ContextSize {
        ContextSize { length, stride }
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
                let [agnostic, first, last] = Protocol::ALL.map(|protocol| {
                    build(&side, &question, size(length, 16), protocol).expect("fits")
                });
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
            let prompt =
                build(&side, &question, size(length, 16), Protocol::Agnostic).expect("fits");
            let got = side.decode(&prompt.context);
            assert_eq!(prompt.context.len(), want);
            assert!(
                got.contains("w0 ")
                    && got.ends_with("w199 ")
                    && (want > 200 || !got.contains("w100 ")),
                "{got}"
            );
        }
        let whole = build(&side, &question, size(1000, 512), Protocol::Agnostic).expect("fits");
        assert!(
            side.decode(&whole.context).contains(&text),
            "no boundary is reached, nothing is cut"
        );
        question.chat = false;
        let raw = build(&side, &question, size(1000, 512), Protocol::Agnostic).expect("fits");
        assert!(side.decode(&raw.context).starts_with(&question.instruction));
    }

    #[test]
    fn a_length_below_what_must_be_there_says_what_it_takes() {
        let material = material();
        let question =
            tasks::question(Task::Multikey1, &material, draw(1, 2)).expect("no file needed");
        let side = Words::default();
        let Err(Error::TooShort { length: 16, needed }) =
            build(&side, &question, size(16, 16), Protocol::Agnostic)
        else {
            panic!("16 tokens are too few")
        };
        assert!(build(&side, &question, size(needed, 16), Protocol::Agnostic).is_ok());
        assert!(build(&side, &question, size(needed - 1, 16), Protocol::Agnostic).is_err());
    }
}
