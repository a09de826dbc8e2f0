//! What an answer must be, in OpenAI's words and in vLLM's.
//!
//! A schema is kept as the text that the client sent: the order of its properties is that of the
//! answer's.

#[cfg(test)]
mod tests;

use std::fmt;

use palimpsest_guide::MAX_BYTES;
use palimpsest_proto::error::{Reason, RequestError};
use palimpsest_proto::v1::guide::Kind;
use palimpsest_proto::v1::{Guide, GuideChoice};
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::lists::Object;
use crate::api::http::error::{HttpError, shorten};

/// Fields that guide an answer.
pub(super) const FIELDS: [&str; 6] = [
    "response_format",
    "structured_outputs",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
];

/// The fields of a body that guide its answers.
#[derive(Debug, Clone, Default)]
pub(super) struct GuideFields {
    response_format: Option<Object<ResponseFormat>>,
    structured_outputs: Option<Object<StructuredOutputs>>,
    guided_json: Option<Schema>,
    guided_regex: Option<String>,
    guided_choice: Option<Texts>,
    guided_grammar: Option<String>,
}

/// A guide, and the name of what it is made of in the body.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct NamedGuide {
    pub(super) guide: Guide,
    pub(super) field: &'static str,
}

/// OpenAI's.
#[derive(Debug, Clone, Deserialize)]
struct ResponseFormat {
    #[serde(rename = "type")]
    kind: String,
    json_schema: Option<Object<JsonSchema>>,
    /// Of the format `json_object`, as llama.cpp has it.
    schema: Option<Schema>,
}

#[derive(Debug, Clone, Deserialize)]
struct JsonSchema {
    schema: Option<Schema>,
    strict: Option<bool>,
}

/// OpenAI's for responses.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct TextFormat {
    #[serde(rename = "type")]
    kind: String,
    name: Option<String>,
    schema: Option<Schema>,
    strict: Option<bool>,
}

/// How the fields of a format are called.
struct FormatNames {
    format: &'static str,
    kind: &'static str,
    schema: &'static str,
}

const RESPONSE_FORMAT: FormatNames = FormatNames {
    format: "response_format",
    kind: "response_format.type",
    schema: "response_format.json_schema.schema",
};
const TEXT_FORMAT: FormatNames = FormatNames {
    format: "text.format",
    kind: "text.format",
    schema: "text.format.schema",
};

/// vLLM's. What it has beside these would change the answer.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct StructuredOutputs {
    json: Option<Schema>,
    regex: Option<String>,
    choice: Option<Texts>,
    grammar: Option<String>,
    json_object: Option<bool>,
}

/// The text of a schema, which is a JSON value or a string that holds one.
#[derive(Debug, Clone)]
struct Schema(Box<RawValue>);

impl<'de> Deserialize<'de> for Schema {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Box::deserialize(from).map(Self)
    }
}

impl Schema {
    fn text(&self) -> String {
        let text = self.0.get();
        // vLLM's clients send either.
        serde_json::from_str(text).unwrap_or_else(|_| text.to_owned())
    }
}

/// Texts of which an answer is one, no more of them than a guide may have.
#[derive(Debug, Clone, Default)]
struct Texts(Vec<String>);

impl<'de> Deserialize<'de> for Texts {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct List;

        impl<'de> Visitor<'de> for List {
            type Value = Texts;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of texts")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Texts, A::Error> {
                let mut kept = GuideChoice::default();
                let mut bytes = 0;
                while let Some(text) = list.next_element::<String>()? {
                    // What is beyond is not looked at: one too many is refused.
                    if bytes <= MAX_BYTES {
                        bytes += text.len() + size_of::<String>();
                        kept.texts.push(text);
                    }
                }
                Ok(Texts(kept.texts))
            }
        }

        from.deserialize_seq(List)
    }
}

impl GuideFields {
    /// Reads one of [`FIELDS`].
    pub(super) fn read<'de, A: MapAccess<'de>>(
        &mut self,
        field: &str,
        values: &mut A,
    ) -> Result<(), A::Error> {
        match field {
            "response_format" => self.response_format = values.next_value()?,
            "structured_outputs" => self.structured_outputs = values.next_value()?,
            "guided_json" => self.guided_json = values.next_value()?,
            "guided_regex" => self.guided_regex = values.next_value()?,
            "guided_choice" => self.guided_choice = values.next_value()?,
            _ => self.guided_grammar = values.next_value()?,
        }
        Ok(())
    }

    /// The one guide that they ask for.
    ///
    /// # Errors
    /// Names the field that is wrong, or the second one.
    pub(super) fn guide(self) -> Result<Option<NamedGuide>, HttpError> {
        let mut asked = Vec::new();
        if let Some(Object(format)) = self.response_format {
            asked.extend(format.guide()?);
        }
        if let Some(Object(outputs)) = self.structured_outputs {
            outputs.guides(&mut asked)?;
        }
        let mut add = |field, kind: Option<Kind>| {
            asked.extend(kind.map(|kind| NamedGuide {
                guide: kind.into(),
                field,
            }));
        };
        add("guided_json", self.guided_json.map(schema));
        add("guided_regex", self.guided_regex.map(Kind::Regex));
        add("guided_choice", self.guided_choice.map(choice));
        add("guided_grammar", self.guided_grammar.map(Kind::Grammar));
        let second = asked.get(1).map(|second| second.field);
        match (asked.into_iter().next(), second) {
            (Some(first), Some(second)) => {
                let message = format!(
                    "`{second}` beside `{}`: an answer has one guide at most",
                    first.field
                );
                Err(HttpError::invalid(second, message))
            }
            (guide, _) => {
                guide.as_ref().map_or(Ok(()), check_size)?;
                Ok(guide)
            }
        }
    }
}

/// Each choice of a request has a copy of its guide, so it is looked at before there are any.
fn check_size(named: &NamedGuide) -> Result<(), HttpError> {
    let NamedGuide { guide, field } = named;
    palimpsest_guide::check_size(guide).map_err(|error| {
        let message = format!("{field}: {error}");
        HttpError::from(RequestError::new(Reason::BadGuide, message)).in_field(field)
    })
}

fn schema(schema: Schema) -> Kind {
    Kind::JsonSchema(schema.text())
}

fn choice(texts: Texts) -> Kind {
    Kind::Choice(GuideChoice { texts: texts.0 })
}

impl ResponseFormat {
    fn guide(self) -> Result<Option<NamedGuide>, HttpError> {
        let names = &RESPONSE_FORMAT;
        if let ("json_object", Some(schema)) = (&*self.kind, &self.schema) {
            let names = &FormatNames {
                schema: "response_format.schema",
                ..RESPONSE_FORMAT
            };
            return schema_format(Some(schema), None, names).map(Some);
        }
        if self.kind != "json_schema" {
            return plain_format(&self.kind, names);
        }
        let Some(Object(JsonSchema { schema, strict })) = self.json_schema else {
            let message = "the format `json_schema` needs the field `json_schema`";
            return Err(HttpError::invalid("response_format.json_schema", message));
        };
        schema_format(schema.as_ref(), strict, names).map(Some)
    }
}

impl TextFormat {
    /// The guide that it asks for.
    ///
    /// # Errors
    /// Names the field that is wrong.
    pub(super) fn guide(&self) -> Result<Option<NamedGuide>, HttpError> {
        if self.kind != "json_schema" {
            return plain_format(&self.kind, &TEXT_FORMAT);
        }
        schema_format(self.schema.as_ref(), self.strict, &TEXT_FORMAT).map(Some)
    }

    /// What the response repeats; `None`: the format `text`.
    pub(super) fn repeated(&self) -> Option<Value> {
        match self.kind.as_str() {
            "text" => None,
            "json_schema" => {
                let schema = self.schema.as_ref().map(Schema::text);
                let schema = schema.and_then(|text| serde_json::from_str::<Value>(&text).ok());
                Some(json!({
                    "type": self.kind, "name": self.name.as_deref().unwrap_or_default(),
                    "schema": schema, "strict": self.strict.unwrap_or(false),
                }))
            }
            _ => Some(json!({"type": self.kind})),
        }
    }
}

/// The guide of a format that has nothing but its type.
fn plain_format(kind: &str, names: &FormatNames) -> Result<Option<NamedGuide>, HttpError> {
    match kind {
        "text" => Ok(None),
        "json_object" => Ok(Some(NamedGuide {
            guide: Kind::JsonObject(true).into(),
            field: names.format,
        })),
        other => {
            let message = format!(
                "the format `{}` is not supported, only `text`, `json_object` and `json_schema`",
                shorten(other)
            );
            Err(HttpError::invalid(names.kind, message))
        }
    }
}

fn schema_format(
    schema: Option<&Schema>,
    strict: Option<bool>,
    names: &FormatNames,
) -> Result<NamedGuide, HttpError> {
    let field = names.schema;
    let Some(schema) = schema else {
        let message = "the format `json_schema` needs a `schema`";
        return Err(HttpError::invalid(field, message));
    };
    let guide = Guide {
        // A schema that is not strict asks for as much of it as there is.
        lenient: !strict.unwrap_or(false),
        ..Guide::of_schema(schema.text())
    };
    let named = NamedGuide { guide, field };
    check_size(&named)?;
    Ok(named)
}

impl StructuredOutputs {
    fn guides(self, asked: &mut Vec<NamedGuide>) -> Result<(), HttpError> {
        let before = asked.len();
        let object = self.json_object.filter(|&asked| asked);
        let fields = [
            ("structured_outputs.json", self.json.map(schema)),
            ("structured_outputs.regex", self.regex.map(Kind::Regex)),
            ("structured_outputs.choice", self.choice.map(choice)),
            (
                "structured_outputs.grammar",
                self.grammar.map(Kind::Grammar),
            ),
            (
                "structured_outputs.json_object",
                object.map(Kind::JsonObject),
            ),
        ];
        for (field, kind) in fields {
            asked.extend(kind.map(|kind| NamedGuide {
                guide: kind.into(),
                field,
            }));
        }
        if asked.len() > before {
            return Ok(());
        }
        let message = "structured_outputs needs one of json, regex, choice, grammar, json_object";
        Err(HttpError::invalid("structured_outputs", message))
    }
}
