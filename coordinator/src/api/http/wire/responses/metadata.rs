//! Names and values of a client's own, which a response repeats.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::api::http::error::HttpError;

/// Pairs, characters of a name and characters of a value at most, as in OpenAI's API.
const MAX_PAIRS: usize = 16;
const MAX_NAME: usize = 64;
const MAX_VALUE: usize = 512;

/// At most [`MAX_PAIRS`] pairs, and what is wrong with others.
#[derive(Debug, Clone, Default)]
pub struct Metadata {
    kept: BTreeMap<String, String>,
    count: usize,
    is_long: bool,
}

impl Metadata {
    /// The pairs.
    ///
    /// # Errors
    /// If they are too many, or one is too long.
    pub fn pairs(self) -> Result<BTreeMap<String, String>, HttpError> {
        if self.count > MAX_PAIRS {
            let message = format!("metadata has {} pairs, the most is {MAX_PAIRS}", self.count);
            return Err(HttpError::invalid("metadata", message));
        }
        if self.is_long {
            let message =
                format!("names in metadata have at most {MAX_NAME} characters, values {MAX_VALUE}");
            return Err(HttpError::invalid("metadata", message));
        }
        Ok(self.kept)
    }
}

impl<'de> Deserialize<'de> for Metadata {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Pairs;

        impl<'de> Visitor<'de> for Pairs {
            type Value = Metadata;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of strings")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut pairs: A) -> Result<Metadata, A::Error> {
                let is_long = |text: &str, most| text.chars().nth(most).is_some();
                let mut metadata = Metadata::default();
                while let Some(name) = pairs.next_key::<String>()? {
                    metadata.count += 1;
                    if metadata.count > MAX_PAIRS {
                        pairs.next_value::<IgnoredAny>()?;
                        continue;
                    }
                    let value: String = pairs.next_value()?;
                    if is_long(&name, MAX_NAME) || is_long(&value, MAX_VALUE) {
                        metadata.is_long = true;
                    } else {
                        metadata.kept.insert(name, value);
                    }
                }
                Ok(metadata)
            }
        }

        from.deserialize_map(Pairs)
    }
}
