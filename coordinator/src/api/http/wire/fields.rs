//! Which fields of a body are read, ignored and refused.

use std::fmt;

use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::table::{self, Neutral, Route, What};
use crate::api::http::error::{HttpError, shorten};

/// Names that warnings have of fields that were ignored.
const MAX_WARNINGS: usize = 16;

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

/// Fields that no type reads, and that have an answer of their own.
pub(super) struct Known {
    /// Without effect on an answer.
    pub ignored: &'static [&'static str],
    /// Refused unless they ask for what is done anyway.
    pub unsupported: &'static [Unsupported],
}

/// The fields of a body that no type reads: nothing is held of them but what is wrong.
#[derive(Debug, Clone, Default)]
pub(super) struct Rest {
    refused: Option<HttpError>,
    /// Those that do nothing here, no more than there may be warnings.
    ignored: Vec<Ignored>,
}

/// A field that was read over, and would be refused by a strict server.
#[derive(Debug, Clone)]
struct Ignored {
    /// The beginning of its name.
    name: String,
    is_known: bool,
}

impl Rest {
    /// Reads over a field of a chat or completion.
    pub(super) fn read<'de, A: MapAccess<'de>>(
        &mut self,
        route: Route,
        name: &str,
        values: &mut A,
    ) -> Result<(), A::Error> {
        match table::find(route, name) {
            Some(What::Refused { why, neutral }) => {
                let is_neutral = values.next_value_seed(IsDefault { name, neutral })?;
                if !is_neutral {
                    self.refuse(name, format!("`{name}`: {why}"));
                }
            }
            Some(What::Bookkeeping) => _ = values.next_value::<IgnoredAny>()?,
            found => {
                values.next_value::<IgnoredAny>()?;
                if self.ignored.len() < MAX_WARNINGS {
                    self.ignored.push(Ignored {
                        name: shorten(name),
                        is_known: found.is_some(),
                    });
                }
            }
        }
        Ok(())
    }

    /// Reads over a field of a body of which these are known, and no other is taken.
    pub(super) fn read_among<'de, A: MapAccess<'de>>(
        &mut self,
        known: &Known,
        name: &str,
        values: &mut A,
    ) -> Result<(), A::Error> {
        match known.unsupported.iter().find(|one| one.name == name) {
            Some(unsupported) => {
                let neutral = table::NOTHING;
                let is_default = values.next_value_seed(IsDefault { name, neutral })?;
                if !is_default {
                    self.refuse(name, format!("`{name}`: {}", unsupported.why));
                }
            }
            None => {
                values.next_value::<IgnoredAny>()?;
                if !known.ignored.contains(&name) {
                    self.refuse(name, format!("unknown field `{}`", shorten(name)));
                }
            }
        }
        Ok(())
    }

    fn refuse(&mut self, name: &str, message: String) {
        if self.refused.is_none() {
            self.refused = Some(HttpError::invalid(&shorten(name), message));
        }
    }

    /// # Errors
    /// Names the first field that would change the answer.
    pub(super) fn check(&self) -> Result<(), HttpError> {
        self.refused.clone().map_or(Ok(()), Err)
    }

    /// What the client is told of fields that do nothing.
    ///
    /// # Errors
    /// A strict server refuses the first of them instead.
    pub(super) fn warnings(self, is_strict: bool) -> Result<Vec<String>, HttpError> {
        self.check()?;
        let said = |Ignored { name, is_known }: &Ignored| match is_known {
            true => format!("`{name}` has no effect here"),
            false => format!("unknown field `{name}`"),
        };
        if let (true, Some(first)) = (is_strict, self.ignored.first()) {
            return Err(HttpError::invalid(&first.name, said(first)));
        }
        let ignored = self.ignored.iter();
        Ok(ignored
            .map(|one| format!("{}: it was ignored", said(one)))
            .collect())
    }
}

/// Reads over the value of an unsupported field, and says whether it asks for what is done anyway.
#[derive(Clone, Copy)]
struct IsDefault<'a> {
    name: &'a str,
    neutral: Neutral,
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
        Ok(value == self.neutral.flag)
    }

    fn visit_u64<E>(self, value: u64) -> Result<bool, E> {
        Ok(self.neutral.number == Some(value as f64))
    }

    fn visit_i64<E>(self, value: i64) -> Result<bool, E> {
        Ok(self.neutral.number == Some(value as f64))
    }

    fn visit_f64<E>(self, value: f64) -> Result<bool, E> {
        Ok(self.neutral.number == Some(value))
    }

    fn visit_str<E>(self, text: &str) -> Result<bool, E> {
        let is_done_anyway = self.name == "truncation_side" && text == "left";
        Ok(["", "none", "auto"].contains(&text) || is_done_anyway)
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
