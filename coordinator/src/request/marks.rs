//! Beginnings of a conversation whose states are kept, as clients mark them: by the text at which
//! they end, and not by tokens.

use palimpsest_proto::error::RequestError;
use palimpsest_proto::v1::Chat;
use palimpsest_proto::v1::generate_request::Input;

use super::prompt::{encode, tokenize};
use crate::config::Config;
use crate::model::ServedModel;

/// The end of a beginning of a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// Number of the message that it lies in.
    pub message: usize,
    /// Bytes of that message's text before it.
    pub bytes: usize,
}

/// A prompt, and how much of it its beginnings are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Marked {
    /// Its token ids.
    pub ids: Vec<u32>,
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
    let beginnings: Vec<Vec<u32>> = match &input {
        Some(Input::Chat(chat)) => {
            let alone = |cut| beginning(chat, cut);
            let encoded = |chat| encode(Input::Chat(chat), model, config).ok();
            cuts.iter().filter_map(alone).filter_map(encoded).collect()
        }
        _ => Vec::new(),
    };
    let ids = tokenize(input, model, config)?;
    let shared = |beginning: &Vec<u32>| {
        let same = beginning.iter().zip(&ids).take_while(|(a, b)| a == b);
        same.count() as u64
    };
    let marks = beginnings.iter().map(shared).collect();
    Ok(Marked { ids, marks })
}

/// The conversation up to a cut, if it has one there.
fn beginning(chat: &Chat, cut: &Cut) -> Option<Chat> {
    let last = chat.messages.get(cut.message)?;
    last.content.get(..cut.bytes)?;
    let mut beginning = chat.clone();
    beginning.messages.truncate(cut.message + 1);
    beginning.messages[cut.message].content.truncate(cut.bytes);
    beginning.answer_prefix.clear();
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
        };
        Chat {
            messages: messages.iter().map(message).collect(),
            answer_prefix: "So".into(),
        }
    }

    /// The text of the tokens before each mark.
    fn marked(chat: Chat, cuts: &[Cut]) -> Vec<String> {
        let model = ServedModel::new(vec![Script::endless(0, 1).rank]).unwrap();
        let config = Config::default();
        let input = Some(Input::Chat(chat));
        let whole = tokenize(input.clone(), &model, &config).unwrap();
        let marked = tokenize_marked(input, cuts, &model, &config).unwrap();
        assert_eq!(marked.ids, whole);
        let text = |&mark: &u64| {
            let ids = marked.ids[..mark as usize].iter();
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
    fn cuts_that_a_conversation_does_not_have_mark_nothing() {
        let cut = |message, bytes| Cut { message, bytes };
        let conversation = chat(&[("user", "é")]);
        let cuts = [cut(1, 0), cut(0, 1), cut(0, 3), cut(9, 9)];
        assert_eq!(marked(conversation, &cuts), Vec::<String>::new());
    }
}
