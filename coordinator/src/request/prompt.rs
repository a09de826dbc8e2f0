//! The prompt of a request: how much text it is, and its token ids.

use std::sync::Arc;

use palimpsest_proto::error::{Reason, RequestError};
use palimpsest_proto::v1::Chat;
use palimpsest_proto::v1::generate_request::Input;

use super::chat::check_chat;
use crate::config::Config;
use crate::model::ServedModel;
use crate::text::{self, AnswerFormat, Infilling, NoInfilling, Rendered};

/// What a message of a conversation counts beside its text: a template writes about as much around
/// it, and takes a few hundred bytes for it while it does.
pub const MESSAGE_BYTES: usize = 64;
/// What a template may write of its own, in bytes: a standing instruction, a date.
const TEMPLATE_BYTES: usize = 64 << 10;

/// How much work a prompt is, in bytes of text: all that is tokenised or looked at.
pub fn weight(input: &Input) -> usize {
    match input {
        Input::Text(text) => text.len(),
        Input::Chat(chat) => chat_weight(chat),
        Input::TokenIds(tokens) => tokens.ids.len().saturating_mul(size_of::<u32>()),
        Input::Infill(infill) => infill.prefix.len().saturating_add(infill.suffix.len()),
    }
}

fn chat_weight(chat: &Chat) -> usize {
    // Calls and tools are written with about as much around them as messages are.
    let calls = chat
        .messages
        .iter()
        .map(|message| message.tool_calls().len());
    let parts = calls.fold(
        chat.messages.len() + chat.tools.len(),
        usize::saturating_add,
    );
    let around = parts.saturating_mul(MESSAGE_BYTES);
    text::chat_bytes(chat).saturating_add(around)
}

/// A prompt in token ids, and how the answer to it is read.
#[derive(Debug, Clone, Default)]
pub struct Prompt {
    /// The token ids.
    pub ids: Arc<[u32]>,
    /// `None`: as text, whatever it says.
    pub format: Option<Arc<AnswerFormat>>,
    /// Ends the answer beside the model's end of sequence, if anything does.
    pub end: Option<u32>,
}

/// Refuses an input that has nothing in it, whatever the tokenizer adds.
///
/// # Errors
/// `EmptyPrompt`.
pub fn check_input(input: Option<&Input>) -> Result<(), RequestError> {
    match input {
        None => Err(no_tokens()),
        Some(Input::TokenIds(tokens)) if tokens.ids.is_empty() => Err(no_tokens()),
        Some(Input::Chat(chat)) if chat.messages.is_empty() => Err(RequestError::new(
            Reason::EmptyPrompt,
            "chat.messages is empty: send at least one message",
        )
        .in_field("chat.messages")),
        Some(Input::Chat(chat)) => check_chat(chat),
        Some(Input::Infill(infill)) if infill.prefix.is_empty() && infill.suffix.is_empty() => {
            Err(no_tokens())
        }
        Some(_) => Ok(()),
    }
}

fn no_tokens() -> RequestError {
    RequestError::new(
        Reason::EmptyPrompt,
        "the prompt has no tokens: send text, chat or token_ids",
    )
    .in_field("text")
}

/// Token ids of whatever the client sent, all of them in the vocabulary, and at least one.
///
/// It takes time on long texts: call it where blocking is allowed.
///
/// # Errors
/// `EmptyPrompt`, `TokenOutOfRange`, `TooLong`, `BadChat`.
pub fn tokenize(
    input: Option<Input>,
    model: &ServedModel,
    config: &Config,
) -> Result<Prompt, RequestError> {
    let none = || Ok(Prompt::default());
    let has_ids = matches!(input, Some(Input::TokenIds(_)));
    let prompt = input.map_or_else(none, |input| encode(input, model, config))?;
    if prompt.ids.is_empty() {
        return Err(no_tokens());
    }
    check_ids(&prompt.ids, model).map_err(|error| match has_ids {
        true => error.in_field("token_ids"),
        false => error,
    })?;
    Ok(prompt)
}

/// Refuses token ids that the vocabulary does not have.
///
/// # Errors
/// `TokenOutOfRange`, with the first one.
pub fn check_ids(ids: &[u32], model: &ServedModel) -> Result<(), RequestError> {
    if let Some((index, id)) = ids
        .iter()
        .enumerate()
        .find(|(_, id)| u64::from(**id) >= model.info.vocabulary)
    {
        let message = format!(
            "token id {id} at index {index} is not below the vocabulary of {}",
            model.info.vocabulary
        );
        return Err(RequestError::new(Reason::TokenOutOfRange, message));
    }
    Ok(())
}

/// Token ids of an input, unchecked if they are the client's own.
///
/// # Errors
/// `EmptyPrompt` without messages, `TooLong` for a text that cannot be a prompt, `BadChat` for what
/// the model's template refuses.
pub fn encode(input: Input, model: &ServedModel, config: &Config) -> Result<Prompt, RequestError> {
    check_input(Some(&input))?;
    let ids = match input {
        Input::TokenIds(tokens) => tokens.ids,
        // Whoever writes a whole prompt writes its control tokens as well.
        Input::Text(text) => encode_text(&text, true, model, config)?,
        Input::Chat(chat) => {
            let rendered = render(&chat, true, model, config)?;
            return Ok(Prompt {
                ids: encode_rendered(&rendered, model, config)?.into(),
                format: answer_format(&chat, &rendered, model),
                end: None,
            });
        }
        Input::Infill(infill) => {
            let bytes = infill.prefix.len().saturating_add(infill.suffix.len());
            check_length(bytes, model, config)?;
            let infilling = infilling(model)?;
            let ids = infilling.encode(&infill.prefix, &infill.suffix, &model.tokenizer);
            return Ok(Prompt {
                ids: ids.map_err(text_error)?.into(),
                format: None,
                end: infilling.end(),
            });
        }
    };
    Ok(Prompt {
        ids: ids.into(),
        ..Prompt::default()
    })
}

/// How the model is asked to fill a place between two texts.
///
/// # Errors
/// `BadInfill`, with the tokens that are missing.
pub fn infilling(model: &ServedModel) -> Result<&Infilling, RequestError> {
    let refused = |missing: &NoInfilling| {
        RequestError::new(Reason::BadInfill, missing.to_string()).in_field("infill.suffix")
    };
    model.infilling.as_ref().map_err(refused)
}

/// How the answer to a conversation is read.
pub fn answer_format(
    chat: &Chat,
    rendered: &Rendered,
    model: &ServedModel,
) -> Option<Arc<AnswerFormat>> {
    let template = model.template.as_ref()?;
    template.answer_format(chat, rendered).map(Arc::new)
}

/// Token ids of a conversation or of its end. The template writes BOS itself.
///
/// # Errors
/// `TooLong` for a text that cannot be a prompt.
pub fn encode_rendered(
    rendered: &Rendered,
    model: &ServedModel,
    config: &Config,
) -> Result<Vec<u32>, RequestError> {
    check_length(rendered.text().len(), model, config)?;
    let ids = model.tokenizer.encode_rendered(rendered);
    ids.map_err(text_error)
}

/// Token ids of a text, with what the tokenizer adds around one of its own if `special`.
///
/// # Errors
/// `TooLong` for a text that cannot be a prompt.
pub fn encode_text(
    text: &str,
    special: bool,
    model: &ServedModel,
    config: &Config,
) -> Result<Vec<u32>, RequestError> {
    check_length(text.len(), model, config)?;
    model.tokenizer.encode(text, special).map_err(text_error)
}

/// Token ids of a text that goes on from a prompt, with whatever control tokens it spells.
///
/// # Errors
/// `TooLong` for a text that cannot be a part of a prompt.
pub fn encode_behind(
    text: &str,
    model: &ServedModel,
    config: &Config,
) -> Result<Vec<u32>, RequestError> {
    check_length(text.len(), model, config)?;
    let tokenizer = &model.tokenizer;
    let ids = tokenizer.encode_behind(text, |text| tokenizer.encode(text, false));
    ids.map_err(text_error)
}

/// The text of a conversation, which is not much longer than its messages, with the opening of an
/// answer or without.
///
/// # Errors
/// `TooLong`, and `BadChat` for what the model's template refuses.
pub fn render(
    chat: &Chat,
    has_opening: bool,
    model: &ServedModel,
    config: &Config,
) -> Result<Rendered, RequestError> {
    let (count, bytes) = (chat.messages.len(), chat_weight(chat));
    let limit = config.message_limit(model.info.context_length);
    if bytes > limit {
        let message = format!(
            "{count} messages count as {bytes} bytes, {MESSAGE_BYTES} for each and their text, \
             over the limit of {limit}: send fewer messages"
        );
        return Err(RequestError::new(Reason::TooLong, message).in_field("chat.messages"));
    }
    let text = if has_opening {
        model.render(chat)
    } else {
        let template = model.template.as_ref().ok_or(text::Error::NoTemplate);
        template.and_then(|template| template.render_messages(chat))
    };
    let text = text.map_err(text_error)?;
    // The pool of tokenizers counts on texts no longer than a message.
    let most = bytes
        .saturating_mul(4)
        .min(limit)
        .saturating_add(TEMPLATE_BYTES);
    let written = text.text().len();
    if written > most {
        let message = format!(
            "the model's chat template makes {written} bytes of {bytes}, over the limit of \
             {most}: send fewer messages"
        );
        return Err(RequestError::new(Reason::BadChat, message));
    }
    Ok(text)
}

/// Refuses a text that has too many tokens whatever it says.
fn check_length(bytes: usize, model: &ServedModel, config: &Config) -> Result<(), RequestError> {
    let Some(longest) = model.tokenizer.longest_token() else {
        return Ok(());
    };
    let least = (bytes as u64).div_ceil(longest as u64);
    if least <= config.max_total_tokens {
        return Ok(());
    }
    let message = format!(
        "a prompt of {bytes} bytes has at least {least} tokens, over the limit of {}",
        config.max_total_tokens
    );
    Err(RequestError::new(Reason::TooLong, message))
}

/// The class of a text error that a client caused.
fn text_error(error: text::Error) -> RequestError {
    if let text::Error::Chat { field, message } = error {
        return RequestError::new(Reason::BadChat, message).in_field(field);
    }
    let reason = match error {
        text::Error::Render(_)
        | text::Error::OutOfFuel(_)
        | text::Error::Chat { .. }
        | text::Error::NoMark
        | text::Error::NoTemplate => Reason::BadChat,
        text::Error::Encode(_) | text::Error::Tokenizer(_) | text::Error::Template(_) => {
            Reason::Internal
        }
    };
    RequestError::new(reason, error.to_string())
}
