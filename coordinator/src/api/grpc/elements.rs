//! Elements of the lists in a message, counted before they are decoded: an element may take two
//! bytes on the wire, and what is made of it a hundred.

/// A list of messages or strings in a message: the numbers of the fields that lead to it.
pub(super) type List = [u64];

/// `GenerateRequest.stopping.stop`.
pub(super) const STOP: &List = &[6, 2];
/// `GenerateRequest.guide.choice.texts`.
pub(super) const GUIDE_TEXTS: &List = &[23, 4, 1];
/// `ScoreRequest.completions`.
pub(super) const COMPLETIONS: &List = &[5];

/// What a conversation has many of: the list of each, or what was found of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct ChatLists<T> {
    pub(super) messages: T,
    pub(super) details: T,
    pub(super) calls: T,
    pub(super) tools: T,
}

impl<T> ChatLists<T> {
    /// What `find` makes of each.
    pub(super) fn map<U>(self, find: impl Fn(T) -> U) -> ChatLists<U> {
        ChatLists {
            messages: find(self.messages),
            details: find(self.details),
            calls: find(self.calls),
            tools: find(self.tools),
        }
    }
}

/// Those of `GenerateRequest.chat` and of `ScoreRequest.chat`.
pub(super) const CHAT: ChatLists<&List> = ChatLists {
    messages: &[3, 1],
    details: &[3, 1, 3],
    calls: &[3, 1, 3, 1],
    tools: &[3, 3],
};
/// Those of `TokenizeRequest.chat`.
pub(super) const TOKENIZE_CHAT: ChatLists<&List> = ChatLists {
    messages: &[2, 1],
    details: &[2, 1, 3],
    calls: &[2, 1, 3, 1],
    tools: &[2, 3],
};

/// Elements of a list in all frames of a body; `None` if it is no protobuf, or has the groups of
/// old ones, which nobody sends.
pub(super) fn count(body: &[u8], path: &List) -> Option<usize> {
    let mut count = 0;
    for message in frames(body) {
        count += count_in(message, path)?;
    }
    Some(count)
}

/// Elements of a list in one message.
fn count_in(message: &[u8], path: &List) -> Option<usize> {
    let (&number, rest) = path.split_first()?;
    let mut count = Some(0);
    each_field(message, number, |field| {
        let inner = if rest.is_empty() {
            Some(1)
        } else {
            count_in(field, rest)
        };
        count = count.zip(inner).map(|(count, inner)| count + inner);
    })?;
    count
}

/// Messages of a body that are there as a whole.
pub(super) fn frames(mut body: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (head, rest) = body.split_first_chunk::<5>()?;
        let [_, a, b, c, d] = *head;
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        // A frame that is cut off is the decoder's affair, and it decodes none.
        let (message, next) = rest.split_at_checked(length)?;
        body = next;
        Some(message)
    })
}

/// Calls `act` with each field of this number that has a length; `None` as in [`count`].
pub(super) fn each_field<'m>(
    mut message: &'m [u8],
    number: u64,
    mut act: impl FnMut(&'m [u8]),
) -> Option<()> {
    while !message.is_empty() {
        let key = varint(&mut message)?;
        let skipped = match key & 7 {
            0 => {
                varint(&mut message)?;
                0
            }
            1 => 8,
            2 => usize::try_from(varint(&mut message)?).ok()?,
            5 => 4,
            _ => return None,
        };
        let (value, rest) = message.split_at_checked(skipped)?;
        if key == number << 3 | 2 {
            act(value);
        }
        message = rest;
    }
    Some(())
}

fn varint(message: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..70).step_by(7) {
        let (&byte, rest) = message.split_first()?;
        *message = rest;
        // The tenth byte has one bit of a u64; decoders drop the others.
        value |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use palimpsest_proto::v1::generate_request::Input;
    use palimpsest_proto::v1::{
        Chat, ChatMessage, Completion, GenerateRequest, Guide, MessageDetails, ScoreRequest,
        Stopping, Tool, ToolCall, score_request,
    };
    use tonic::codec::{Codec, EncodeBody};
    use tonic_prost::ProstCodec;

    use super::*;

    /// As clients send it, with the library's own encoder.
    async fn frames<M>(requests: Vec<M>) -> Vec<u8>
    where
        M: prost::Message + Send + 'static,
    {
        let encoder = ProstCodec::<M, ()>::default().encoder();
        let messages = futures::stream::iter(requests.into_iter().map(Ok));
        let body = EncodeBody::new_client(encoder, messages, None, None);
        let body = axum::body::Body::new(body);
        axum::body::to_bytes(body, usize::MAX).await.unwrap().into()
    }

    fn message(calls: usize) -> ChatMessage {
        ChatMessage {
            details: Some(Box::new(MessageDetails {
                tool_calls: vec![ToolCall::default(); calls],
                ..Default::default()
            })),
            ..Default::default()
        }
    }

    fn request(messages: usize, stops: usize) -> GenerateRequest {
        let chat = Chat {
            messages: vec![message(2); messages],
            tools: vec![Tool::default(); 5],
            answer_prefix: "\u{a}\u{12}".into(),
            ..Default::default()
        };
        GenerateRequest {
            model: "m".repeat(300),
            input: Some(Input::Chat(chat)),
            stopping: Some(Stopping {
                max_tokens: Some(u32::MAX),
                stop: vec![String::new(); stops],
                ignore_eos: true,
                ..Default::default()
            }),
            guide: Some(Guide::of_texts(vec![String::new(); stops])),
            priority: -1,
            ..Default::default()
        }
    }

    #[tokio::test]
    async fn elements_are_counted_as_the_encoder_writes_them() {
        let body = frames(vec![request(1000, 3), request(17, 0)]).await;
        assert_eq!(count(&body, CHAT.messages), Some(1017));
        assert_eq!(count(&body, CHAT.details), Some(1017));
        assert_eq!(count(&body, CHAT.calls), Some(2 * 1017));
        assert_eq!(count(&body, CHAT.tools), Some(10));
        assert_eq!(count(&body, STOP), Some(3));
        assert_eq!(count(&body, GUIDE_TEXTS), Some(3));
        assert_eq!(count(b"", CHAT.messages), Some(0));
        let cut = count(&body[..body.len() - 1], CHAT.messages);
        assert_eq!(cut, Some(1000), "the second cannot be decoded");
    }

    #[tokio::test]
    async fn completions_and_their_prompt_are_counted() {
        let chat = Chat {
            messages: vec![message(2); 7],
            ..Default::default()
        };
        let request = ScoreRequest {
            prompt: Some(score_request::Prompt::Chat(chat)),
            completions: vec![Completion::default(); 129],
            ..Default::default()
        };
        let body = frames(vec![request]).await;
        assert_eq!(count(&body, COMPLETIONS), Some(129));
        assert_eq!(count(&body, CHAT.messages), Some(7));
        assert_eq!(count(&body, CHAT.calls), Some(14));
    }

    #[test]
    fn what_is_no_protobuf_is_not_counted() {
        // A field of type 7, a length beyond the end, a varint without an end, a group.
        for bad in [&[0x0f_u8][..], &[0x1a, 5, 0], &[0xff; 11], &[0x1b, 0x1c]] {
            let mut body = vec![0, 0, 0, 0, bad.len() as u8];
            body.extend(bad);
            assert_eq!(count(&body, CHAT.messages), None, "{bad:?}");
        }
        // The same within the field of the list.
        assert_eq!(count(&[0, 0, 0, 0, 3, 0x1a, 1, 0x0f], CHAT.messages), None);
    }
}
