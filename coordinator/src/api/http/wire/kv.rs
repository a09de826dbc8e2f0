//! The KV contract of a body: all of it under `kv`, and its most common parts by names of their
//! own.

use std::fmt;

use palimpsest_proto::v1::KvContract;
use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::api::http::error::{HttpError, shorten};

/// Bytes of a name at most: each choice has a copy of its own.
pub(super) const MAX_NAME_BYTES: usize = 1024;

/// The contract, field by field as over gRPC.
#[derive(Debug, Clone, Default)]
pub(super) struct KvBody {
    budget: Option<u32>,
    policy: Option<String>,
    memory: Option<String>,
    head_budget: Option<String>,
    sinks: Option<u32>,
    window: Option<u32>,
    positions: Option<String>,
    memory_slots: Option<u32>,
}

impl<'de> Deserialize<'de> for KvBody {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Fields;

        impl<'de> Visitor<'de> for Fields {
            type Value = KvBody;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut values: A) -> Result<KvBody, A::Error> {
                let mut kv = KvBody::default();
                while let Some(name) = values.next_key::<String>()? {
                    match name.as_str() {
                        "budget" => kv.budget = values.next_value()?,
                        "policy" => kv.policy = values.next_value()?,
                        "memory" => kv.memory = values.next_value()?,
                        "head_budget" => kv.head_budget = values.next_value()?,
                        "sinks" => kv.sinks = values.next_value()?,
                        "window" => kv.window = values.next_value()?,
                        "positions" => kv.positions = values.next_value()?,
                        "memory_slots" => kv.memory_slots = values.next_value()?,
                        other => {
                            let other = shorten(other);
                            let message = format_args!("unknown field `kv.{other}`");
                            return Err(A::Error::custom(message));
                        }
                    }
                }
                Ok(kv)
            }
        }

        from.deserialize_map(Fields)
    }
}

/// The parts that have names of their own.
#[derive(Debug, Clone, Default)]
pub(super) struct KvNames {
    pub(super) budget: Option<u32>,
    pub(super) policy: Option<String>,
    pub(super) memory: Option<String>,
}

/// The contract that both together ask for.
///
/// # Errors
/// Names the field that both have, or that is too long to be a name.
pub(super) fn contract(body: KvBody, names: KvNames) -> Result<KvContract, HttpError> {
    let twice = [
        ("kv_budget", body.budget.is_some() && names.budget.is_some()),
        ("kv_policy", body.policy.is_some() && names.policy.is_some()),
        (
            "latent_memory",
            body.memory.is_some() && names.memory.is_some(),
        ),
    ];
    if let Some((field, _)) = twice.into_iter().find(|(_, is_twice)| *is_twice) {
        let message = format!("{field} is also in `kv`: send one of them");
        return Err(HttpError::invalid(field, message));
    }
    let texts = [
        ("kv.policy", &body.policy),
        ("kv.memory", &body.memory),
        ("kv.head_budget", &body.head_budget),
        ("kv.positions", &body.positions),
        ("kv_policy", &names.policy),
        ("latent_memory", &names.memory),
    ];
    for (field, text) in texts {
        let bytes = text.as_ref().map_or(0, String::len);
        if bytes > MAX_NAME_BYTES {
            let message = format!("{field} has {bytes} bytes, the most is {MAX_NAME_BYTES}");
            return Err(HttpError::invalid(field, message));
        }
    }
    Ok(KvContract {
        budget: body.budget.or(names.budget).unwrap_or(0),
        policy: body.policy.or(names.policy).unwrap_or_default(),
        memory: body.memory.or(names.memory).unwrap_or_default(),
        head_budget: body.head_budget.unwrap_or_default(),
        sinks: body.sinks,
        window: body.window,
        positions: body.positions.unwrap_or_default(),
        memory_slots: body.memory_slots,
    })
}
