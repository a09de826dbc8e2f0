//! The parts of a body that may be long: prompts, stop strings, biases. They are held as the
//! service takes them, and no further than it would.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use palimpsest_proto::error::{Reason, RequestError};
use palimpsest_proto::v1::TokenIds;
use palimpsest_proto::v1::generate_request::Input;
use serde::de::{Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::read::object;
use crate::api::http::error::HttpError;
use crate::request::{MAX_BIASES, MAX_MARKS, MAX_STOP_BYTES, MAX_STOP_IDS, MAX_STOP_STRINGS};

/// Choices of one request at most, over all its prompts.
pub const MAX_CHOICES: usize = 16;

/// Numbers, no more than one too many.
#[derive(Debug, Clone)]
pub struct Numbers<T, const MOST: usize>(pub Vec<T>);

/// Positions of a prompt.
pub type Positions = Numbers<u64, MAX_MARKS>;
/// Token ids that end an answer.
pub type StopIds = Numbers<u32, MAX_STOP_IDS>;

impl<T, const MOST: usize> Default for Numbers<T, MOST> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>, const MOST: usize> Deserialize<'de> for Numbers<T, MOST> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct List<T, const MOST: usize>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>, const MOST: usize> Visitor<'de> for List<T, MOST> {
            type Value = Numbers<T, MOST>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of numbers")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
                let mut kept = Vec::new();
                while let Some(number) = list.next_element()? {
                    if kept.len() <= MOST {
                        kept.push(number);
                    }
                }
                Ok(Numbers(kept))
            }
        }

        from.deserialize_seq(List(PhantomData))
    }
}

/// Stop strings: one, or a list.
#[derive(Debug, Clone, Default)]
pub struct Stops {
    /// No more than one too many.
    kept: Vec<String>,
    count: usize,
}

impl Stops {
    /// The stop strings.
    ///
    /// # Errors
    /// If they are too many, or one is too long: each choice has a copy of its own.
    pub fn strings(self) -> Result<Vec<String>, HttpError> {
        if let Some(stop) = self.kept.iter().find(|stop| stop.len() > MAX_STOP_BYTES) {
            let message = format!(
                "a stop string has {} bytes, it must have 1 to {MAX_STOP_BYTES}",
                stop.len()
            );
            let error = RequestError::new(Reason::BadStopping, message).in_field("stopping.stop");
            return Err(error.into());
        }
        if self.count <= MAX_STOP_STRINGS {
            return Ok(self.kept);
        }
        let message = format!(
            "{} stop strings, over the limit of {MAX_STOP_STRINGS}",
            self.count
        );
        let error = RequestError::new(Reason::BadStopping, message).in_field("stopping.stop");
        Err(error.into())
    }
}

impl<'de> Deserialize<'de> for Stops {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct List;

        impl<'de> Visitor<'de> for List {
            type Value = Stops;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a list of strings")
            }

            fn visit_str<E>(self, stop: &str) -> Result<Stops, E> {
                Ok(Stops {
                    kept: vec![stop.to_owned()],
                    count: 1,
                })
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Stops, A::Error> {
                let mut stops = Stops::default();
                while let Some(stop) = list.next_element::<Option<String>>()? {
                    // Some clients fill the places that they do not use with nulls.
                    let Some(stop) = stop else {
                        continue;
                    };
                    stops.count += 1;
                    if stops.count <= MAX_STOP_STRINGS {
                        stops.kept.push(stop);
                    }
                }
                Ok(stops)
            }
        }

        from.deserialize_any(List)
    }
}

/// What is added to logits, by token ids that are strings in JSON.
#[derive(Debug, Clone, Default)]
pub struct Biases {
    kept: BTreeMap<u32, f32>,
    has_other_key: bool,
    has_more: bool,
}

impl Biases {
    /// The biases.
    ///
    /// # Errors
    /// If a key is no token id, or they are too many.
    pub fn entries(self) -> Result<BTreeMap<u32, f32>, HttpError> {
        if self.has_other_key {
            let message = "logit_bias has token ids for keys";
            return Err(HttpError::invalid("logit_bias", message));
        }
        if self.has_more {
            let message = format!("logit_bias has more than {MAX_BIASES} entries");
            let error = RequestError::new(Reason::BadSampling, message);
            return Err(error.in_field("sampling.logit_bias").into());
        }
        Ok(self.kept)
    }
}

impl<'de> Deserialize<'de> for Biases {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Entries;

        impl<'de> Visitor<'de> for Entries {
            type Value = Biases;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of numbers")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Biases, A::Error> {
                let mut biases = Biases::default();
                while let Some(key) = entries.next_key::<String>()? {
                    let bias = entries.next_value()?;
                    match key.parse() {
                        Err(_) => biases.has_other_key = true,
                        Ok(id) if biases.kept.len() < MAX_BIASES => {
                            biases.kept.insert(id, bias);
                        }
                        Ok(id) => match biases.kept.get_mut(&id) {
                            Some(kept) => *kept = bias,
                            None => biases.has_more = true,
                        },
                    }
                }
                Ok(biases)
            }
        }

        from.deserialize_map(Entries)
    }
}

/// What stands in an object, and not in a list in the order of its fields.
#[derive(Debug, Clone, Default)]
pub(super) struct Object<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        object(from).map(Self)
    }
}

/// Prompts: a text, token ids, or a list of texts and of lists of token ids. No more than `MOST`
/// are held.
#[derive(Debug, Clone, Default)]
pub struct Prompts<const MOST: usize> {
    /// No more than may be.
    pub inputs: Vec<Input>,
    /// All that were there.
    pub count: usize,
}

impl<const MOST: usize> Prompts<MOST> {
    fn push(&mut self, input: Input) {
        self.count += 1;
        if self.count <= MOST {
            self.inputs.push(input);
        }
    }
}

/// An element of a list that is a prompt or has prompts.
enum Element {
    Text(String),
    Id(u32),
    Ids(Vec<u32>),
}

impl<'de> Deserialize<'de> for Element {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Any;

        impl<'de> Visitor<'de> for Any {
            type Value = Element;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text, a token id or a list of token ids")
            }

            fn visit_str<E>(self, text: &str) -> Result<Element, E> {
                Ok(Element::Text(text.to_owned()))
            }

            fn visit_u64<E: Error>(self, id: u64) -> Result<Element, E> {
                let id = u32::try_from(id).map_err(|_| E::custom("a token id is too large"))?;
                Ok(Element::Id(id))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Element, A::Error> {
                let mut ids = Vec::new();
                while let Some(id) = list.next_element()? {
                    ids.push(id);
                }
                Ok(Element::Ids(ids))
            }
        }

        from.deserialize_any(Any)
    }
}

impl<'de, const MOST: usize> Deserialize<'de> for Prompts<MOST> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Any<const MOST: usize>;

        impl<'de, const MOST: usize> Visitor<'de> for Any<MOST> {
            type Value = Prompts<MOST>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text, texts, token ids or lists of token ids")
            }

            fn visit_str<E>(self, text: &str) -> Result<Prompts<MOST>, E> {
                let mut prompts = Prompts::default();
                prompts.push(Input::Text(text.to_owned()));
                Ok(prompts)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Prompts<MOST>, A::Error> {
                let mut prompts = Prompts::default();
                let Some(first) = list.next_element()? else {
                    return Ok(prompts);
                };
                if let Element::Id(id) = first {
                    let mut ids = vec![id];
                    while let Some(id) = list.next_element()? {
                        ids.push(id);
                    }
                    prompts.push(Input::TokenIds(TokenIds { ids }));
                    return Ok(prompts);
                }
                let mut next = Some(first);
                while let Some(prompt) = next {
                    prompts.push(match prompt {
                        Element::Text(text) => Input::Text(text),
                        Element::Ids(ids) => Input::TokenIds(TokenIds { ids }),
                        Element::Id(_) => {
                            let message = "token ids of one prompt stand in a list of their own";
                            return Err(A::Error::custom(message));
                        }
                    });
                    next = list.next_element()?;
                }
                Ok(prompts)
            }
        }

        from.deserialize_any(Any::<MOST>)
    }
}
