//! Beginnings of a conversation whose states are kept, as clients mark them: by the text at which
//! they end, and not by tokens.

use palimpsest_proto::error::RequestError;
use palimpsest_proto::v1::Chat;
use palimpsest_proto::v1::generate_request::Input;

use super::prompt::{Prompt, encode, tokenize};
use crate::config::Config;
use crate::model::ServedModel;

/// Bytes of text that are about one token.
const TOKEN_BYTES: u64 = 4;

/// The end of a beginning of a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// Number of the message that it lies in.
    pub message: usize,
    /// Bytes of that message's text before it.
    pub bytes: usize,
}

/// A prompt, and how much of it its beginnings are.
#[derive(Debug, Clone)]
pub struct Marked {
    /// Its token ids, and how its answer is read.
    pub prompt: Prompt,
    /// The length of each beginning, in tokens.
    pub marks: Vec<u64>,
}

/// Token ids of whatever the client sent, as [`tokenize`] makes them, and the lengths of its
/// beginnings. A beginning is what every conversation shares that begins like this one up to the
/// cut: the tokens of the whole prompt and of the text up to the cut, as far as they are the same.
///
/// # Errors
/// As [`tokenize`]. A beginning that the model's template does not take alone has no mark.
pub fn tokenize_marked(
    input: Option<Input>,
    cuts: &[Cut],
    model: &ServedModel,
    config: &Config,
) -> Result<Marked, RequestError> {
    let beginnings: Vec<Prompt> = match &input {
        Some(Input::Chat(chat)) => {
            let alone = |cut| beginning(chat, &cut);
            let encoded = |chat| encode(Input::Chat(chat), model, config).ok();
            let cuts = cuts.iter().copied();
            cuts.filter_map(alone).filter_map(encoded).collect()
        }
        _ => Vec::new(),
    };
    let prompt = tokenize(input, model, config)?;
    let shared = |beginning: &Prompt| {
        let both = beginning.ids.iter().zip(&*prompt.ids);
        both.take_while(|(a, b)| a == b).count() as u64
    };
    let marks = beginnings.iter().map(shared).collect();
    Ok(Marked { prompt, marks })
}

/// The cuts of a conversation: those that the client marks, and one of our own.
pub fn all_cuts(chat: &Chat, mut cuts: Vec<Cut>, model: &ServedModel) -> Vec<Cut> {
    cuts.extend(before_last(chat, model.geometry.stride));
    cuts
}

/// Where the last message begins, if it is so long that no other state is kept near there: who asks
/// something else about the same text begins with what came before.
fn before_last(chat: &Chat, stride: u64) -> Option<Cut> {
    let message = chat
        .messages
        .len()
        .checked_sub(1)
        .filter(|&last| last > 0)?;
    let is_long = chat.messages[message].content.len() as u64 > TOKEN_BYTES * stride;
    is_long.then_some(Cut { message, bytes: 0 })
}

/// The conversation up to a cut, if it has one there.
fn beginning(chat: &Chat, cut: &Cut) -> Option<Chat> {
    let last = chat.messages.get(cut.message)?;
    last.content.get(..cut.bytes)?;
    let mut beginning = chat.clone();
    beginning.messages.truncate(cut.message + 1);
    beginning.messages[cut.message].content.truncate(cut.bytes);
    beginning.answer_prefix.clear();
    beginning.continue_final_message = false;
    Some(beginning)
}

#[cfg(test)]
mod tests {
    use palimpsest_proto::v1::ChatMessage;

    use super::*;
    use crate::executor::fake::Script;

    fn chat(messages: &[(&str, &str)]) -> Chat {
        let message = |(role, content): &(&str, &str)| ChatMessage {
            role: (*role).into(),
            content: (*content).into(),
            ..Default::default()
        };
        Chat {
            messages: messages.iter().map(message).collect(),
            answer_prefix: "So".into(),
            ..Default::default()
        }
    }

    /// The text of the tokens before each mark.
    fn marked(chat: Chat, cuts: &[Cut]) -> Vec<String> {
        let model = ServedModel::new(vec![Script::endless(0, 1).rank]).unwrap();
        let config = Config::default();
        let input = Some(Input::Chat(chat));
        let whole = tokenize(input.clone(), &model, &config).unwrap();
        let Some(Input::Chat(chat)) = &input else {
            unreachable!("it is a chat");
        };
        let cuts = all_cuts(chat, cuts.to_vec(), &model);
        let marked = tokenize_marked(input, &cuts, &model, &config).unwrap();
        assert_eq!(marked.prompt.ids, whole.ids);
        let text = |&mark: &u64| {
            let ids = marked.prompt.ids[..mark as usize].iter();
            let bytes = ids.flat_map(|&id| model.tokenizer.bytes(id)).collect();
            String::from_utf8(bytes).unwrap()
        };
        marked.marks.iter().map(text).collect()
    }

    #[test]
    fn a_mark_stands_behind_all_that_conversations_with_this_beginning_share() {
        let cut = |message, bytes| Cut { message, bytes };
        let conversation = chat(&[("system", "Be brief"), ("user", "A book. A question?")]);
        let cuts = [cut(0, 8), cut(1, 7), cut(1, 19)];
        let found = marked(conversation, &cuts);
        assert_eq!(found.len(), 3);
        assert!(
            found[0].contains("Be brief") && !found[0].contains("A book"),
            "{found:?}"
        );
        assert!(found[1].ends_with("A book."), "{found:?}");
        assert!(
            found[2].contains("A question?") && !found[2].contains("So"),
            "{found:?}"
        );
        // Whoever asks another question has the second beginning in common, and no more.
        let other = chat(&[("system", "Be brief"), ("user", "A book. Why?")]);
        assert_eq!(marked(other, &cuts[1..2]), found[1..2]);
    }

    #[test]
    fn the_beginning_of_a_long_last_message_is_marked_without_being_asked() {
        let stride = Script::endless(0, 1)
            .rank
            .model
            .map_or(0, |model| model.stride);
        let long = "x".repeat(5 * stride as usize);
        let found = marked(chat(&[("system", "Be brief"), ("user", &long)]), &[]);
        assert_eq!(found.len(), 1);
        assert!(
            found[0].contains("Be brief") && !found[0].contains('x'),
            "{found:?}"
        );
        // A short one is near the prompt's end, and what is alone follows nothing.
        for other in [
            chat(&[("system", &long), ("user", "x")]),
            chat(&[("user", &long)]),
        ] {
            assert_eq!(marked(other, &[]), Vec::<String>::new());
        }
    }

    #[test]
    fn cuts_that_a_conversation_does_not_have_mark_nothing() {
        let cut = |message, bytes| Cut { message, bytes };
        let conversation = chat(&[("user", "é")]);
        let cuts = [cut(1, 0), cut(0, 1), cut(0, 3), cut(9, 9)];
        assert_eq!(marked(conversation, &cuts), Vec::<String>::new());
    }
}
