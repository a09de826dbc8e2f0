//! Which fields of a body are read, ignored and refused.

use std::fmt;

use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::api::http::error::{HttpError, shorten};

/// Sent by clients, and without effect on an answer.
pub(super) const IGNORED: [&str; 10] = [
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "parallel_tool_calls",
    "verbosity",
    "reasoning_effort",
    "prompt_cache_retention",
];
/// A field that is not supported, and what to say of it.
pub(super) struct Unsupported {
    name: &'static str,
    why: &'static str,
}

impl Unsupported {
    pub(super) const fn new(name: &'static str, why: &'static str) -> Self {
        Self { name, why }
    }
}

/// Fields of OpenAI's that would change the answer; refused unless they ask for what is done
/// anyway.
const UNSUPPORTED: [Unsupported; 10] = [
    Unsupported::new("tools", "tool calls are not supported"),
    Unsupported::new("tool_choice", "tool calls are not supported"),
    Unsupported::new("functions", "function calls are not supported"),
    Unsupported::new("function_call", "function calls are not supported"),
    Unsupported::new("modalities", "only the modality `text` is supported"),
    Unsupported::new("audio", "audio is not supported"),
    Unsupported::new("prediction", "predicted outputs are not supported"),
    Unsupported::new("web_search_options", "web search is not supported"),
    Unsupported::new("best_of", "use `n` instead"),
    Unsupported::new("suffix", "insertion is not supported"),
];

/// Fields that no type reads, and that have an answer of their own.
pub(super) struct Known {
    /// Without effect on an answer.
    pub ignored: &'static [&'static str],
    /// Refused unless they ask for what is done anyway.
    pub unsupported: &'static [Unsupported],
}

/// Those of chats and completions.
const KNOWN: Known = Known {
    ignored: &IGNORED,
    unsupported: &UNSUPPORTED,
};

/// The fields of a body that no type reads: nothing is held of them but what is wrong.
#[derive(Debug, Clone, Default)]
pub(super) struct Rest {
    refused: Option<HttpError>,
}

impl Rest {
    /// Reads over a field of a chat or completion.
    pub(super) fn read<'de, A: MapAccess<'de>>(
        &mut self,
        name: &str,
        values: &mut A,
    ) -> Result<(), A::Error> {
        self.read_among(&KNOWN, name, values)
    }

    /// Reads over a field of a body of which these are known.
    pub(super) fn read_among<'de, A: MapAccess<'de>>(
        &mut self,
        known: &Known,
        name: &str,
        values: &mut A,
    ) -> Result<(), A::Error> {
        let refused = match known.unsupported.iter().find(|one| one.name == name) {
            Some(unsupported) => {
                let is_default = values.next_value_seed(IsDefault { name })?;
                (!is_default).then(|| format!("`{name}`: {}", unsupported.why))
            }
            None => {
                values.next_value::<IgnoredAny>()?;
                let is_known = known.ignored.contains(&name);
                (!is_known).then(|| format!("unknown field `{}`", shorten(name)))
            }
        };
        if let (Some(message), None) = (refused, &self.refused) {
            self.refused = Some(HttpError::invalid(&shorten(name), message));
        }
        Ok(())
    }

    /// # Errors
    /// Names the first field that would change the answer, or that nobody knows.
    pub(super) fn check(&self) -> Result<(), HttpError> {
        self.refused.clone().map_or(Ok(()), Err)
    }
}

/// Reads over the value of an unsupported field, and says whether it asks for what is done anyway.
#[derive(Clone, Copy)]
struct IsDefault<'a> {
    name: &'a str,
}

impl<'de> DeserializeSeed<'de> for IsDefault<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<bool, D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for IsDefault<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }

    fn visit_unit<E>(self) -> Result<bool, E> {
        Ok(true)
    }

    fn visit_bool<E>(self, value: bool) -> Result<bool, E> {
        Ok(!value)
    }

    fn visit_u64<E>(self, value: u64) -> Result<bool, E> {
        Ok(matches!(
            (self.name, value),
            ("best_of", 1) | ("top_logprobs", 0)
        ))
    }

    fn visit_i64<E>(self, _: i64) -> Result<bool, E> {
        Ok(false)
    }

    fn visit_f64<E>(self, _: f64) -> Result<bool, E> {
        Ok(false)
    }

    fn visit_str<E>(self, text: &str) -> Result<bool, E> {
        Ok(text == "none" || text == "auto")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<bool, A::Error> {
        let mut is_default = true;
        while let Some(IsText(is_text)) = items.next_element()? {
            is_default &= self.name == "modalities" && is_text;
        }
        Ok(is_default)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<bool, A::Error> {
        while fields.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(false)
    }
}

/// Whether a value is the string `text`.
struct IsText(bool);

impl<'de> Deserialize<'de> for IsText {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Any;

        impl<'de> Visitor<'de> for Any {
            type Value = bool;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("anything")
            }

            fn visit_unit<E>(self) -> Result<bool, E> {
                Ok(false)
            }

            fn visit_bool<E>(self, _: bool) -> Result<bool, E> {
                Ok(false)
            }

            fn visit_u64<E>(self, _: u64) -> Result<bool, E> {
                Ok(false)
            }

            fn visit_i64<E>(self, _: i64) -> Result<bool, E> {
                Ok(false)
            }

            fn visit_f64<E>(self, _: f64) -> Result<bool, E> {
                Ok(false)
            }

            fn visit_str<E>(self, text: &str) -> Result<bool, E> {
                Ok(text == "text")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<bool, A::Error> {
                while items.next_element::<IgnoredAny>()?.is_some() {}
                Ok(false)
            }

            fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<bool, A::Error> {
                while fields.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(false)
            }
        }

        from.deserialize_any(Any).map(Self)
    }
}

/// Fields of [`Common`](super::Common).
pub(super) const COMMON: [&str; 31] = [
    "model",
    "max_tokens",
    "max_completion_tokens",
    "temperature",
    "top_p",
    "n",
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
    "cache_salt",
    "snapshot_at",
    "session_id",
    "prompt_logprobs",
    "response_format",
    "structured_outputs",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
];
