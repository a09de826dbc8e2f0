//! Body of `POST /v1/responses`, and what it means here.
//!
//! Types of OpenAI's API in other crates take their unions by trial, which holds a body several
//! times, and they skip fields that nobody knows. So the body is read here as the others are, and
//! those types are the oracle of what is answered.

mod input;
mod metadata;
#[cfg(test)]
mod tests;

use palimpsest_proto::v1::GenerateRequest;
use serde::Deserialize;
use serde::de::MapAccess;

use self::input::Items;
use self::metadata::Metadata;
use super::fields::{Known, Rest, Unsupported};
use super::guide::TextFormat;
use super::lists::Object;
use super::{Common, MAX_NAME_BYTES, RequestBody};
use crate::api::http::error::{HttpError, shorten};
use crate::responses::{Asked, Message, ResponseId};

/// Fields that no other body has.
pub(super) const OWN: [&str; 10] = [
    "input",
    "instructions",
    "previous_response_id",
    "store",
    "max_output_tokens",
    "metadata",
    "user",
    "truncation",
    "text",
    "include",
];
/// Fields of [`Common`] that mean the same here.
pub(super) const SHARED: [&str; 18] = [
    "model",
    "temperature",
    "top_p",
    "stop",
    "seed",
    "frequency_penalty",
    "presence_penalty",
    "logit_bias",
    "stream",
    "stream_options",
    "top_k",
    "min_p",
    "repetition_penalty",
    "ignore_eos",
    "priority",
    "kv_budget",
    "kv_policy",
    "latent_memory",
];
/// Sent by clients, and without effect on an answer.
pub(super) const IGNORED: [&str; 8] = [
    "reasoning",
    "parallel_tool_calls",
    "max_tool_calls",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "prompt_cache_options",
];
/// Refused unless they ask for what is done anyway.
pub(super) const UNSUPPORTED: [Unsupported; 7] = [
    Unsupported::new("tools", "tool calls are not supported"),
    Unsupported::new("tool_choice", "tool calls are not supported"),
    Unsupported::new(
        "background",
        "responses in the background are not supported: ask for a stream",
    ),
    Unsupported::new(
        "conversation",
        "conversations are not supported: go on with `previous_response_id`",
    ),
    Unsupported::new("prompt", "stored prompts are not supported: send `input`"),
    Unsupported::new(
        "top_logprobs",
        "log-probabilities come from /v1/chat/completions and /v1/completions",
    ),
    Unsupported::new(
        "context_management",
        "nothing is dropped from a conversation: the cache is bounded anyway",
    ),
];
const KNOWN: Known = Known {
    ignored: &IGNORED,
    unsupported: &UNSUPPORTED,
};

/// Parts of an answer that can be asked for, and that no answer here has.
const ABSENT_PARTS: [&str; 7] = [
    "reasoning.encrypted_content",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "message.input_image.image_url",
];

/// Body of `/v1/responses`.
#[derive(Debug, Clone, Default)]
pub struct ResponseBody {
    common: Common,
    input: Items,
    instructions: Option<String>,
    previous_response_id: Option<String>,
    store: Option<bool>,
    max_output_tokens: Option<u32>,
    metadata: Option<Metadata>,
    user: Option<String>,
    truncation: Option<String>,
    text: Option<Object<Text>>,
    include: Option<Include>,
    rest: Rest,
}

/// A request for a response, as the service takes it.
#[derive(Debug, Clone, PartialEq)]
pub struct ResponseRequest {
    /// All but its prompt.
    pub request: GenerateRequest,
    /// What the response repeats.
    pub asked: Asked,
    /// The messages that it brings.
    pub input: Vec<Message>,
    /// The response that it goes on from; `None` inside for a name that none has.
    pub previous: Option<Option<ResponseId>>,
    /// Whether the answer comes as server-sent events.
    pub stream: bool,
}

/// Form of the answer.
#[derive(Debug, Clone, Default, Deserialize)]
struct Text {
    #[serde(default)]
    format: Option<Object<TextFormat>>,
}

/// Further parts of the answer.
#[derive(Debug, Clone, Default)]
struct Include {
    /// The beginning of the first name that is refused.
    refused: Option<String>,
}

impl<'de> Deserialize<'de> for Include {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Names;

        impl<'de> serde::de::Visitor<'de> for Names {
            type Value = Include;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a list of names")
            }

            fn visit_seq<A: serde::de::SeqAccess<'de>>(
                self,
                mut names: A,
            ) -> Result<Include, A::Error> {
                let mut include = Include::default();
                while let Some(name) = names.next_element::<String>()? {
                    if !ABSENT_PARTS.contains(&name.as_str()) {
                        include.refused.get_or_insert_with(|| shorten(&name));
                    }
                }
                Ok(include)
            }
        }

        from.deserialize_seq(Names)
    }
}

impl RequestBody for ResponseBody {
    const OWN: &'static [&'static str] = &OWN;
    const SHARED: &'static [&'static str] = &SHARED;
    const NEEDED: Option<&'static str> = Some("input");

    fn read<'de, A: MapAccess<'de>>(
        &mut self,
        field: &'static str,
        values: &mut A,
    ) -> Result<(), A::Error> {
        match field {
            "input" => self.input = values.next_value()?,
            "instructions" => self.instructions = values.next_value()?,
            "previous_response_id" => self.previous_response_id = values.next_value()?,
            "store" => self.store = values.next_value()?,
            "max_output_tokens" => self.max_output_tokens = values.next_value()?,
            "metadata" => self.metadata = values.next_value()?,
            "user" => self.user = values.next_value()?,
            "truncation" => self.truncation = values.next_value()?,
            "text" => self.text = values.next_value()?,
            "include" => self.include = values.next_value()?,
            _ => return self.common.read(field, values),
        }
        Ok(())
    }

    fn read_other<'de, A: MapAccess<'de>>(
        &mut self,
        name: &str,
        values: &mut A,
    ) -> Result<(), A::Error> {
        self.rest.read_among(&KNOWN, name, values)
    }
}

impl ResponseBody {
    /// What is asked of the service.
    ///
    /// # Errors
    /// Names the field that is wrong or not supported.
    pub fn asked(self) -> Result<ResponseRequest, HttpError> {
        self.rest.check()?;
        self.check_form()?;
        let format = self.text.and_then(|Object(text)| text.format);
        let format = format.map(|Object(format)| format);
        let guide = format.as_ref().map_or(Ok(None), TextFormat::guide)?;
        let format = format.as_ref().and_then(TextFormat::repeated);
        let input = self.input.messages()?;
        let user = self.user.map(|user| short("user", user)).transpose()?;
        let previous = self.previous_response_id;
        let asked = Asked {
            instructions: self.instructions,
            max_output_tokens: self.max_output_tokens,
            temperature: self.common.temperature.unwrap_or(1.0),
            top_p: self.common.top_p.unwrap_or(1.0),
            metadata: self.metadata.unwrap_or_default().pairs()?,
            user,
            store: self.store.unwrap_or(true),
            format,
        };
        let stream = self.common.stream.unwrap_or(false);
        let common = Common {
            max_completion_tokens: self.max_output_tokens.map(i64::from),
            ..self.common
        };
        let request = GenerateRequest {
            guide: guide.map(|named| named.guide),
            ..common.request(None)?
        };
        Ok(ResponseRequest {
            request,
            asked,
            input,
            previous: previous.map(|previous| ResponseId::parse(&previous)),
            stream,
        })
    }

    /// Checks what is asked of the form of the answer.
    fn check_form(&self) -> Result<(), HttpError> {
        if self.max_output_tokens == Some(0) {
            let message = "max_output_tokens is 0: a response has at least one token";
            return Err(HttpError::invalid("max_output_tokens", message));
        }
        if let Some(name) = self
            .include
            .as_ref()
            .and_then(|include| include.refused.as_ref())
        {
            let message = format!(
                "`{name}` cannot be included; log-probabilities come from /v1/chat/completions"
            );
            return Err(HttpError::invalid("include", message));
        }
        match self.truncation.as_deref() {
            None | Some("disabled") => Ok(()),
            Some(other) => {
                let message = format!(
                    "truncation `{}` is not supported, only `disabled`: nothing is dropped from a \
                     conversation, and a long one needs no more cache than its KV budget",
                    shorten(other)
                );
                Err(HttpError::invalid("truncation", message))
            }
        }
    }
}

/// A name that is not too long to be repeated.
fn short(field: &str, name: String) -> Result<String, HttpError> {
    if name.len() <= MAX_NAME_BYTES {
        return Ok(name);
    }
    let message = format!(
        "{field} has {} bytes, the most is {MAX_NAME_BYTES}",
        name.len()
    );
    Err(HttpError::invalid(field, message))
}
