//! A conversation as the values that templates read.

use minijinja::Value;
use palimpsest_proto::v1::{Chat, ChatMessage, Tool, ToolCall};
use serde_json::{Map, Value as Json, json};

use super::guard::{Guard, Marks};
use crate::text::error::Error;

/// Variables that are a template's own, whatever a client calls its.
const OWN: [&str; 5] = [
    "messages",
    "tools",
    "add_generation_prompt",
    "bos_token",
    "eos_token",
];

/// All texts of a message but those of its calls.
fn texts(one: &ChatMessage) -> [&str; 5] {
    [
        &one.role,
        &one.content,
        one.tool_call_id(),
        one.name(),
        one.reasoning(),
    ]
}

/// Bytes of all texts of a conversation.
pub fn chat_bytes(chat: &Chat) -> usize {
    let message = |one: &ChatMessage| {
        let calls = one.tool_calls().iter();
        let calls = calls.map(|call| call.id.len() + call.name.len() + call.arguments.len());
        let own = texts(one).map(str::len);
        calls.chain(own).fold(0, usize::saturating_add)
    };
    let tools = chat.tools.iter();
    let tools = tools.map(|tool| tool.name.len() + tool.description.len() + tool.parameters.len());
    let other = chat.answer_prefix.len() + chat.template_kwargs.len();
    let messages = chat.messages.iter().map(message);
    messages.chain(tools).fold(other, usize::saturating_add)
}

/// A client's words on their way into a template.
#[derive(Debug)]
pub(super) struct Words<'a> {
    guard: &'a Guard,
    marks: Marks,
}

impl<'a> Words<'a> {
    pub(super) fn new(guard: &'a Guard, marks: Marks) -> Self {
        Self { guard, marks }
    }

    /// The words with their marks.
    pub(super) fn marked(&self, words: &str) -> String {
        let mut marked = String::with_capacity(words.len());
        self.guard.push(&mut marked, words, self.marks.place);
        marked
    }

    fn value(&self, words: &str) -> Value {
        if self.guard.is_empty() {
            return Value::from(words);
        }
        Value::from(self.marked(words))
    }

    fn json(&self, value: &Json) -> Value {
        match value {
            Json::String(words) => self.value(words),
            Json::Array(items) => items.iter().map(|item| self.json(item)).collect(),
            Json::Object(fields) => fields
                .iter()
                .map(|(name, field)| (self.value(name), self.json(field)))
                .collect(),
            plain => Value::from_serialize(plain),
        }
    }
}

/// A conversation whose JSON was read.
#[derive(Debug)]
pub(super) struct Conversation<'a> {
    chat: &'a Chat,
    /// Of all calls of all messages, in their order.
    arguments: Vec<Json>,
    tools: Vec<Json>,
    variables: Map<String, Json>,
}

impl<'a> Conversation<'a> {
    /// Reads the JSON of a conversation.
    ///
    /// # Errors
    /// [`Error::Chat`], with the field that is none.
    pub(super) fn read(chat: &'a Chat, has_tools: bool) -> Result<Self, Error> {
        let calls = chat.messages.iter().flat_map(ChatMessage::tool_calls);
        let tools = chat.tools.iter().enumerate().filter(|_| has_tools);
        Ok(Self {
            chat,
            arguments: calls.map(arguments).collect(),
            tools: tools
                .map(|(index, tool)| read_tool(index, tool))
                .collect::<Result<_, _>>()?,
            variables: variables(&chat.template_kwargs)?,
        })
    }

    /// Messages.
    pub(super) fn count(&self) -> usize {
        self.chat.messages.len()
    }

    /// Bytes of all texts.
    pub(super) fn bytes(&self) -> usize {
        chat_bytes(self.chat)
    }

    /// Whether a character stands in what the template is given.
    pub(super) fn has(&self, c: char) -> bool {
        let chat = self.chat;
        let message = |one: &ChatMessage| {
            let calls = one.tool_calls().iter();
            let calls = calls.flat_map(|call| [&*call.id, &*call.name]);
            texts(one)
                .into_iter()
                .chain(calls)
                .any(|text| text.contains(c))
        };
        chat.answer_prefix.contains(c)
            || chat.messages.iter().any(message)
            || self
                .arguments
                .iter()
                .chain(&self.tools)
                .any(|json| json_has(json, c))
            || self
                .variables
                .iter()
                .any(|(name, json)| name.contains(c) || json_has(json, c))
    }

    /// `messages`, as Hugging Face's libraries have them.
    pub(super) fn messages(&self, words: &Words<'_>) -> Value {
        let mut arguments = self.arguments.iter();
        let last = self.chat.messages.len().wrapping_sub(1);
        let messages = self.chat.messages.iter().enumerate();
        let value = |(index, one): (usize, &ChatMessage)| {
            let content_is_empty = one.content.is_empty();
            let mut content = words.marked(&one.content);
            if self.chat.continue_final_message && index == last {
                content.push(words.marks.end);
            }
            let mut fields = vec![
                ("role", words.value(&one.role)),
                ("content", Value::from(content)),
            ];
            for (name, text) in [
                ("name", one.name()),
                ("tool_call_id", one.tool_call_id()),
                ("reasoning_content", one.reasoning()),
            ] {
                // Templates ask whether these are defined.
                if !text.is_empty() {
                    fields.push((name, words.value(text)));
                }
            }
            // gpt-oss has thoughts by another name, and refuses them beside what comes with a call.
            if !one.reasoning().is_empty() && (content_is_empty || one.tool_calls().is_empty()) {
                fields.push(("thinking", words.value(one.reasoning())));
            }
            if !one.tool_calls().is_empty() {
                let calls = one.tool_calls().iter().zip(&mut arguments);
                let calls: Value = calls
                    .map(|(call, json)| call_value(words, call, json))
                    .collect();
                fields.push(("tool_calls", calls));
            }
            fields.into_iter().collect::<Value>()
        };
        messages.map(value).collect::<Vec<Value>>().into()
    }

    /// `tools`: none where the model is told of none.
    pub(super) fn tools(&self, words: &Words<'_>) -> Value {
        if self.tools.is_empty() {
            return Value::from(());
        }
        self.tools.iter().map(|tool| words.json(tool)).collect()
    }

    /// What the client gives the template by name.
    pub(super) fn variables(&self, words: &Words<'_>) -> Vec<(Value, Value)> {
        let variables = self.variables.iter();
        variables
            .map(|(name, json)| (Value::from(name.as_str()), words.json(json)))
            .collect()
    }
}

fn call_value(words: &Words<'_>, call: &ToolCall, arguments: &Json) -> Value {
    let function: Value = [
        ("name", words.value(&call.name)),
        ("arguments", words.json(arguments)),
    ]
    .into_iter()
    .collect();
    [
        ("id", words.value(&call.id)),
        ("type", Value::from("function")),
        ("function", function),
    ]
    .into_iter()
    .collect()
}

/// Arguments as an object, which templates ask for; those that an answer broke off stay text.
fn arguments(call: &ToolCall) -> Json {
    let text = if call.arguments.trim().is_empty() {
        "{}"
    } else {
        &call.arguments
    };
    serde_json::from_str(text).unwrap_or_else(|_| Json::String(text.to_owned()))
}

/// A tool as OpenAI's object, whose fields stand in the order in which models were shown them.
pub(super) fn read_tool(index: usize, tool: &Tool) -> Result<Json, Error> {
    let bad = |message: String| Error::Chat {
        field: "chat.tools",
        message,
    };
    let parameters = match tool.parameters.trim() {
        "" => json!({"type": "object", "properties": {}}),
        text => {
            let read: Map<String, Json> = serde_json::from_str(text).map_err(|error| {
                bad(format!(
                    "tools[{index}].parameters must be a JSON Schema, an object of fewer than 128 \
                     levels: it cannot be read at line {}, column {}",
                    error.line(),
                    error.column()
                ))
            })?;
            Json::Object(read)
        }
    };
    let mut function = json!({"name": tool.name});
    if !tool.description.is_empty() {
        function["description"] = tool.description.clone().into();
    }
    function["parameters"] = parameters;
    Ok(json!({"type": "function", "function": function}))
}

fn variables(text: &str) -> Result<Map<String, Json>, Error> {
    let bad = |message: String| Error::Chat {
        field: "chat.template_kwargs",
        message,
    };
    if text.trim().is_empty() {
        return Ok(Map::new());
    }
    let read: Map<String, Json> = serde_json::from_str(text).map_err(|error| {
        bad(format!(
            "the variables for the chat template must be a JSON object of fewer than 128 levels: \
             it cannot be read at line {}, column {}",
            error.line(),
            error.column()
        ))
    })?;
    if let Some(own) = OWN.iter().find(|own| read.contains_key(**own)) {
        return Err(bad(format!(
            "`{own}` is set by the server: use the field of the request for it"
        )));
    }
    Ok(read)
}

fn json_has(value: &Json, c: char) -> bool {
    match value {
        Json::String(text) => text.contains(c),
        Json::Array(items) => items.iter().any(|item| json_has(item, c)),
        Json::Object(fields) => fields
            .iter()
            .any(|(name, field)| name.contains(c) || json_has(field, c)),
        _ => false,
    }
}
