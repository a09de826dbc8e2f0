//! Guides, as other parts make them.

use crate::v1::guide::Kind;
use crate::v1::{Guide, GuideChoice};

impl From<Kind> for Guide {
    /// A guide of this kind, which leaves nothing of it out.
    fn from(kind: Kind) -> Self {
        Self {
            kind: Some(kind),
            lenient: false,
        }
    }
}

impl Guide {
    /// The guide of a value under a JSON Schema, from the schema's text.
    pub fn of_schema(schema: impl Into<String>) -> Self {
        Kind::JsonSchema(schema.into()).into()
    }

    /// The guide of an answer that is one of these texts.
    pub fn of_texts(texts: Vec<String>) -> Self {
        Kind::Choice(GuideChoice { texts }).into()
    }

    /// Path in a `GenerateRequest` of what the guide is made of.
    pub fn field(&self) -> &'static str {
        match self.kind {
            Some(Kind::JsonSchema(_)) => "guide.json_schema",
            Some(Kind::JsonObject(_)) => "guide.json_object",
            Some(Kind::Regex(_)) => "guide.regex",
            Some(Kind::Choice(_)) => "guide.choice",
            Some(Kind::Grammar(_)) => "guide.grammar",
            None => "guide",
        }
    }

    /// Bytes of its texts.
    pub fn bytes(&self) -> usize {
        match &self.kind {
            Some(Kind::JsonSchema(text) | Kind::Regex(text) | Kind::Grammar(text)) => text.len(),
            // A text counts what its place in a list takes, too.
            Some(Kind::Choice(choice)) => {
                let texts = choice.texts.iter();
                texts.map(|text| text.len() + size_of::<String>()).sum()
            }
            Some(Kind::JsonObject(_)) | None => 0,
        }
    }
}
