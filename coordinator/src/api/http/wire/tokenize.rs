//! Bodies of `/tokenize`, with the names that vLLM and llama.cpp have for their parts.

use palimpsest_proto::v1::{TokenizeRequest, tokenize_request};
use serde::de::{Error, MapAccess};

use super::chat::ChatFields;
use super::check_names;
use super::fields::{Known, Rest, Unsupported};
use super::names::TOKENIZE;
use super::read::RequestBody;
use crate::api::http::error::HttpError;

/// Those of neighbours.
const KNOWN: Known = Known {
    // The answer has them anyway.
    ignored: &["return_token_strs"],
    unsupported: &[Unsupported::new(
        "with_pieces",
        "`token_strs` of the answer has the pieces",
    )],
};

/// Body of `/tokenize`.
#[derive(Debug, Clone, Default)]
pub struct TokenizeBody {
    model: String,
    text: Option<Text>,
    fields: ChatFields,
    add_special: Option<bool>,
    parse_special: Option<bool>,
    rest: Rest,
}

/// A text, and what its client calls it.
#[derive(Debug, Clone)]
struct Text {
    name: &'static str,
    text: String,
}

/// What is asked of the service.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenizeAsked {
    /// Name of the model.
    pub model: String,
    /// The rest.
    pub request: TokenizeRequest,
}

impl RequestBody for TokenizeBody {
    const OWN: &'static [&'static str] = &TOKENIZE;
    const SHARED: &'static [&'static str] = &[];
    const NEEDED: Option<&'static str> = None;

    fn read<'de, A: MapAccess<'de>>(
        &mut self,
        field: &'static str,
        values: &mut A,
    ) -> Result<(), A::Error> {
        match field {
            "model" => self.model = values.next_value::<Option<_>>()?.unwrap_or_default(),
            // Three names of one field.
            "prompt" | "text" | "content" => {
                let text = values.next_value::<Option<String>>()?;
                if text.is_some() && self.text.is_some() {
                    return Err(A::Error::duplicate_field("prompt"));
                }
                if let Some(text) = text {
                    self.text = Some(Text { name: field, text });
                }
            }
            "add_special" | "add_special_tokens" => {
                let value = values.next_value::<Option<bool>>()?;
                self.add_special = value.or(self.add_special);
            }
            "parse_special" => self.parse_special = values.next_value()?,
            _ => self.fields.read(field, values)?,
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

impl TokenizeBody {
    /// What is asked of the service.
    ///
    /// # Errors
    /// Names the field that is wrong.
    pub fn asked(self) -> Result<TokenizeAsked, HttpError> {
        self.rest.check()?;
        check_names([("model", Some(&self.model))])?;
        if self.parse_special == Some(false) {
            let message = "what a text spells here is control tokens: send it in `messages` to \
                           have it read as plain text";
            return Err(HttpError::invalid("parse_special", message));
        }
        let request = match (self.text, self.fields.has_messages()) {
            (Some(Text { name, text }), false) => {
                self.fields.check_beside_text()?;
                TokenizeRequest {
                    input: Some(tokenize_request::Input::Text(text)),
                    // As the server that has this name for it.
                    add_special: Some(self.add_special.unwrap_or(name != "content")),
                }
            }
            (None, true) if self.add_special == Some(true) => {
                let message = "the chat template writes what stands before a conversation: leave \
                               add_special_tokens out";
                return Err(HttpError::invalid("add_special_tokens", message));
            }
            (None, true) => TokenizeRequest {
                input: Some(tokenize_request::Input::Chat(self.fields.chat()?)),
                add_special: None,
            },
            _ => {
                let message = "send either `prompt` or `messages`";
                return Err(HttpError::invalid("prompt", message));
            }
        };
        Ok(TokenizeAsked {
            model: self.model,
            request,
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::api::http::wire::read_body;

    fn asked(body: &Value) -> Result<TokenizeAsked, HttpError> {
        let body = read_body::<TokenizeBody>(body.to_string().as_bytes());
        body.expect("readable").asked()
    }

    #[test]
    fn a_text_has_three_names() {
        for (body, special) in [
            (json!({"prompt": "x"}), true),
            (json!({"prompt": "x", "messages": null, "model": "m"}), true),
            (json!({"text": "x", "prompt": null}), true),
            (
                json!({"prompt": "x", "add_special_tokens": false, "return_token_strs": true}),
                false,
            ),
            // llama.cpp adds nothing unless it is asked to.
            (json!({"content": "x", "with_pieces": false}), false),
            (
                json!({"content": "x", "add_special": true, "parse_special": true}),
                true,
            ),
        ] {
            let asked = asked(&body).expect("asked");
            let input = Some(tokenize_request::Input::Text("x".into()));
            assert_eq!(asked.request.input, input, "{body}");
            assert_eq!(asked.request.add_special, Some(special), "{body}");
        }
        let twice = json!({"prompt": "x", "content": "x"}).to_string();
        assert!(read_body::<TokenizeBody>(twice.as_bytes()).is_err());
    }

    #[test]
    fn what_cannot_be_is_named() {
        let messages = json!([{"role": "user", "content": "x"}]);
        for (body, field) in [
            (json!({}), "prompt"),
            (json!({"prompt": "x", "messages": messages}), "prompt"),
            (
                json!({"messages": messages, "add_special_tokens": true}),
                "add_special_tokens",
            ),
            (
                json!({"content": "x", "parse_special": false}),
                "parse_special",
            ),
            (json!({"content": "x", "with_pieces": true}), "with_pieces"),
            (
                json!({"prompt": "x", "chat_template_kwargs": [1]}),
                "chat_template_kwargs",
            ),
            (
                json!({"prompt": "x", "tool_choice": {"type": "function", "function": null}}),
                "tool_choice",
            ),
            (
                json!({"prompt": "x", "tools": [{"type": "function", "function": {"name": "f"}}]}),
                "tools",
            ),
            (json!({"prompt": "x", "prompts": 1}), "prompts"),
            (json!({"prompt": "x", "model": "m".repeat(2000)}), "model"),
        ] {
            let error = asked(&body).expect_err("refused");
            assert_eq!(error.body.param.as_deref(), Some(field));
        }
        let other = asked(&json!({"messages": messages, "add_special_tokens": false}));
        assert_eq!(other.expect("asked").request.add_special, None);
    }
}
