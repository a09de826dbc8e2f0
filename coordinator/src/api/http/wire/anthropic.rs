//! Bodies of `POST /v1/messages` and `POST /v1/messages/count_tokens`, and what they mean here.

mod calls;
mod content;
#[cfg(test)]
mod tests;
mod tools;
mod turns;

use palimpsest_proto::v1::generate_request::Input;
use palimpsest_proto::v1::{Chat, ToolMode};
use serde::Deserialize;
use serde::de::MapAccess;
use serde_json::json;

use self::content::{Content, MAX_CUTS};
pub use self::tools::CALL_PREFIX;
use self::tools::{Choice, ToolChoice, Tools};
use self::turns::Turns;
use super::fields::{Known, Rest, Unsupported};
use super::lists::Object;
use super::{Common, MAX_NAME_BYTES, RequestBody};
use crate::api::http::error::{HttpError, shorten};
use crate::request::Cut;
use crate::service::Prompted;

/// Fields of a conversation.
const CONVERSATION: [&str; 6] = [
    "messages",
    "system",
    "tools",
    "tool_choice",
    "thinking",
    "model",
];
/// Fields that no other body has, and those of a conversation.
pub(super) const OWN: [&str; 7] = [
    "messages",
    "system",
    "tools",
    "tool_choice",
    "thinking",
    "model",
    "stop_sequences",
];
/// Fields of [`Common`] that mean the same here; the last ones are ours and vLLM's.
pub(super) const SHARED: [&str; 14] = [
    "max_tokens",
    "stream",
    "temperature",
    "top_p",
    "top_k",
    "seed",
    "min_p",
    "repetition_penalty",
    "ignore_eos",
    "priority",
    "kv_budget",
    "kv_policy",
    "latent_memory",
    "cache_salt",
];
/// Sent by clients, and without effect on an answer. A mark on the whole request is one on its last
/// block, and the last boundary of a prompt is kept without being marked.
pub(super) const IGNORED: [&str; 6] = [
    "metadata",
    "service_tier",
    "inference_geo",
    "cache_control",
    "diagnostics",
    "speed",
];
/// Refused unless they ask for what is done anyway.
const UNSUPPORTED: [Unsupported; 5] = [
    Unsupported::new("container", "there are no containers"),
    Unsupported::new("mcp_servers", "servers of tools are not supported"),
    Unsupported::new(
        "context_management",
        "nothing is dropped from a conversation: the cache is bounded anyway",
    ),
    Unsupported::new("output_config", "only free text is supported"),
    Unsupported::new("output_format", "only free text is supported"),
];
const KNOWN: Known = Known {
    ignored: &IGNORED,
    unsupported: &UNSUPPORTED,
};
/// What a question about the number of tokens may have beside its conversation.
const KNOWN_TO_COUNT: Known = Known {
    ignored: &["cache_control", "speed"],
    unsupported: &UNSUPPORTED,
};

/// Body of `/v1/messages`.
#[derive(Debug, Clone, Default)]
pub struct MessagesBody {
    common: Common,
    conversation: Conversation,
    rest: Rest,
}

/// Body of `/v1/messages/count_tokens`.
#[derive(Debug, Clone, Default)]
pub struct CountBody {
    conversation: Conversation,
    rest: Rest,
}

/// A request for a message, as the service takes it.
#[derive(Debug, Clone, PartialEq)]
pub struct MessagesRequest {
    /// Prompt and the one choice.
    pub prompted: Prompted,
    /// Whether the answer comes as server-sent events.
    pub stream: bool,
    /// Whether the answer has what the model thinks.
    pub hears_thoughts: bool,
    /// What the client is told of fields that are not honoured.
    pub warnings: Vec<String>,
}

/// What both bodies have.
#[derive(Debug, Clone, Default)]
struct Conversation {
    model: String,
    system: Option<Content>,
    messages: Turns,
    tools: Option<Tools>,
    tool_choice: Option<Object<ToolChoice>>,
    thinking: Option<Object<Thinking>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct Thinking {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    budget_tokens: Option<u64>,
}

impl Thinking {
    /// Whether the model is to think.
    fn is_on(&self) -> Result<bool, HttpError> {
        match self.kind.as_str() {
            "enabled" | "adaptive" => Ok(true),
            "disabled" => Ok(false),
            other => {
                let kind = shorten(other);
                let message = format!(
                    "thinking of type `{kind}` is not supported: send `enabled`, `adaptive` or \
                     `disabled`"
                );
                Err(HttpError::invalid("thinking.type", message))
            }
        }
    }
}

/// What tells the templates of most families that their model is to think, or not to.
fn template_kwargs(thinks: bool) -> String {
    json!({"enable_thinking": thinks, "thinking": thinks}).to_string()
}

/// A conversation, and where states of it are to be kept.
struct Marked {
    chat: Chat,
    cuts: Vec<Cut>,
    hears_thoughts: bool,
}

impl RequestBody for MessagesBody {
    const OWN: &'static [&'static str] = &OWN;
    const SHARED: &'static [&'static str] = &SHARED;
    const NEEDED: Option<&'static str> = Some("messages");

    fn read<'de, A: MapAccess<'de>>(
        &mut self,
        field: &'static str,
        values: &mut A,
    ) -> Result<(), A::Error> {
        match field {
            "stop_sequences" => self.common.stop = values.next_value()?,
            _ if CONVERSATION.contains(&field) => self.conversation.read(field, values)?,
            _ => self.common.read(field, values)?,
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

impl RequestBody for CountBody {
    const OWN: &'static [&'static str] = &CONVERSATION;
    const SHARED: &'static [&'static str] = &[];
    const NEEDED: Option<&'static str> = Some("messages");

    fn read<'de, A: MapAccess<'de>>(
        &mut self,
        field: &'static str,
        values: &mut A,
    ) -> Result<(), A::Error> {
        self.conversation.read(field, values)
    }

    fn read_other<'de, A: MapAccess<'de>>(
        &mut self,
        name: &str,
        values: &mut A,
    ) -> Result<(), A::Error> {
        self.rest.read_among(&KNOWN_TO_COUNT, name, values)
    }
}

impl MessagesBody {
    /// What is asked of the service.
    ///
    /// # Errors
    /// Names the field that is wrong or not supported.
    pub fn asked(self) -> Result<MessagesRequest, HttpError> {
        self.rest.check()?;
        if self.common.max_tokens.is_none_or(|tokens| tokens < 1) {
            let message = "max_tokens must be at least 1: say how many tokens the answer may have";
            return Err(HttpError::invalid("max_tokens", message));
        }
        let stream = self.common.stream.unwrap_or(false);
        let common = Common {
            model: self.conversation.checked_model()?,
            ..self.common
        };
        let has_budget = self.conversation.has_thinking_budget();
        let Marked {
            chat,
            cuts,
            hears_thoughts,
        } = self.conversation.marked()?;
        let request = common.request(None)?;
        let warning = "thinking.budget_tokens has no effect here: max_tokens bounds thoughts and \
                       answer together";
        Ok(MessagesRequest {
            prompted: Prompted {
                input: Some(Input::Chat(chat)),
                choices: vec![request],
                cuts,
            },
            stream,
            hears_thoughts,
            warnings: has_budget.then(|| warning.to_owned()).into_iter().collect(),
        })
    }
}

impl CountBody {
    /// The name of the model, and the conversation whose tokens are counted.
    ///
    /// # Errors
    /// Names the field that is wrong or not supported.
    pub fn asked(self) -> Result<CountRequest, HttpError> {
        self.rest.check()?;
        let model = self.conversation.checked_model()?;
        let chat = self.conversation.marked()?.chat;
        Ok(CountRequest { model, chat })
    }
}

/// A question about the number of tokens, as the service takes it.
#[derive(Debug, Clone, PartialEq)]
pub struct CountRequest {
    /// Name of the model.
    pub model: String,
    /// What is counted.
    pub chat: Chat,
}

impl Conversation {
    fn read<'de, A: MapAccess<'de>>(
        &mut self,
        field: &str,
        values: &mut A,
    ) -> Result<(), A::Error> {
        match field {
            "model" => self.model = values.next_value()?,
            "system" => self.system = values.next_value()?,
            "tools" => self.tools = values.next_value()?,
            "tool_choice" => self.tool_choice = values.next_value()?,
            "thinking" => self.thinking = values.next_value()?,
            _ => self.messages = values.next_value()?,
        }
        Ok(())
    }

    /// The name of the model, which is not too long to be repeated.
    fn checked_model(&self) -> Result<String, HttpError> {
        let bytes = self.model.len();
        if bytes > MAX_NAME_BYTES {
            let message = format!("model has {bytes} bytes, the most is {MAX_NAME_BYTES}");
            return Err(HttpError::invalid("model", message));
        }
        Ok(self.model.clone())
    }

    /// Whether it bounds thoughts apart from the answer.
    fn has_thinking_budget(&self) -> bool {
        let thinking = self.thinking.as_ref();
        thinking.is_some_and(|Object(thinking)| thinking.budget_tokens.is_some())
    }

    /// The conversation as the service takes it: what `system` says stands first, and a last
    /// message of the assistant is the beginning of its answer.
    fn marked(self) -> Result<Marked, HttpError> {
        let thinks = self.thinking.as_ref();
        let thinks = thinks.map_or(Ok(false), |Object(thinking)| thinking.is_on())?;
        let Choice { mode, name, single } = match self.tool_choice {
            Some(Object(choice)) => choice.read()?,
            None => Choice::default(),
        };
        if thinks && mode == ToolMode::Required {
            let message = "a call that must be has no thoughts before it: send tool_choice `auto`, \
                           or thinking `disabled`";
            return Err(HttpError::invalid("tool_choice", message));
        }
        let tools = self.tools.unwrap_or_default().tools()?;
        let mut turns = self.messages;
        turns.finish()?;
        if let Some(system) = self.system {
            turns.begin_with(system.texts("system")?);
        }
        let Turns {
            mut messages,
            mut cuts,
            ..
        } = turns;
        if cuts.len() > MAX_CUTS {
            let message = format!("more than {MAX_CUTS} blocks have cache_control");
            return Err(HttpError::invalid("cache_control", message));
        }
        let is_begun = messages.last().is_some_and(|last| last.role == "assistant");
        let begun = if is_begun { messages.pop() } else { None };
        let begun = begun.unwrap_or_default();
        if !begun.reasoning().is_empty() {
            let message = "the last message is the beginning of the answer, which has no \
                           `thinking`: leave that block out";
            return Err(HttpError::invalid("messages", message));
        }
        // What is kept of the prompt's end needs no mark.
        cuts.retain(|cut| cut.message < messages.len());
        let chat = Chat {
            messages,
            answer_prefix: begun.content,
            tools,
            tool_mode: mode.into(),
            tool_name: name,
            single_call: single,
            template_kwargs: template_kwargs(thinks),
            split_reasoning: true,
            ..Default::default()
        };
        Ok(Marked {
            chat,
            cuts,
            hears_thoughts: thinks,
        })
    }
}
