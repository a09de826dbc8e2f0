//! What is kept of a response: one turn of a conversation.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::error::{Error, Result};
use super::id::{ResponseId, TenantKey};

/// Version of the form of records.
const VERSION: u32 = 1;

/// One turn: the messages that a request brought, their answer, and what the client is shown of
/// both.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Of this form.
    version: u32,
    /// Whose it is.
    pub tenant: TenantKey,
    /// Its name.
    pub id: ResponseId,
    /// The response that it goes on from.
    pub parent: Option<ResponseId>,
    /// When it was asked for, in seconds since 1970.
    pub created: u64,
    /// When it ended.
    pub completed: u64,
    /// Name of the model.
    pub model: String,
    /// What was asked for beside the messages.
    pub asked: Asked,
    /// The messages of the request, without its instructions: these hold for one turn.
    pub input: Vec<Message>,
    /// The answer.
    pub output: String,
    /// Whether the model ended the answer, or its limit did.
    pub is_complete: bool,
    /// What it cost.
    pub cost: Cost,
}

/// What a request asked for beside its messages, as far as the response repeats it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Asked {
    /// Stands before all messages, in this turn alone.
    pub instructions: Option<String>,
    /// Tokens of the answer at most.
    pub max_output_tokens: Option<u32>,
    /// Of the sampling.
    pub temperature: f32,
    /// Of the sampling.
    pub top_p: f32,
    /// The client's own names and values.
    pub metadata: BTreeMap<String, String>,
    /// The client's own name of who asks.
    pub user: Option<String>,
    /// Whether the response is kept.
    pub store: bool,
    /// Form of the answer, as the client asked for it; `None`: any text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<serde_json::Value>,
}

/// A message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// `user`, `assistant` or `system`.
    pub role: String,
    /// Its text.
    pub text: String,
}

/// What a response cost: see `Usage` of the gRPC API.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cost {
    /// Tokens of the conversation with instructions.
    pub input_tokens: u64,
    /// Those of them that were not read again.
    pub cached_tokens: u64,
    /// Tokens of the answer.
    pub output_tokens: u64,
    /// Entries that were evicted, on average per KV head.
    pub evicted_tokens: u64,
    /// Entries that were held at the end, on average per KV head.
    pub held_slots: u64,
    /// Bytes of cache and memory at the end.
    pub held_bytes: u64,
    /// Bytes that a cache of every token would have taken.
    pub full_cache_bytes: u64,
    /// Such as a length beyond the range that the model was trained for.
    pub warnings: Vec<String>,
}

impl Record {
    /// A response that begins now, without an answer.
    pub fn begin(
        tenant: TenantKey,
        parent: Option<ResponseId>,
        created: u64,
        model: String,
        asked: Asked,
    ) -> Self {
        Self {
            version: VERSION,
            tenant,
            id: ResponseId::draw(),
            parent,
            created,
            completed: created,
            model,
            asked,
            input: Vec::new(),
            output: String::new(),
            is_complete: false,
            cost: Cost::default(),
        }
    }

    /// The record as bytes.
    pub fn write(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("texts and numbers have a JSON form")
    }

    /// The record that these bytes are. It takes time on long ones.
    ///
    /// # Errors
    /// [`Error::Damaged`], also for records of another version or another tenant.
    pub fn parse(bytes: &[u8], tenant: TenantKey) -> Result<Self> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let damaged = |what| Error::Damaged { what };
        // The errors of serde quote values, and these are prompts.
        let unreadable = |_| damaged("it is no record of a response");
        let record: Self = match serde_json::from_slice(bytes) {
            Ok(record) => record,
            Err(error) => {
                let versioned: Versioned = serde_json::from_slice(bytes).map_err(unreadable)?;
                return Err(match versioned.version {
                    VERSION => unreadable(error),
                    _ => damaged("another version of this program wrote it"),
                });
            }
        };
        if record.version != VERSION {
            return Err(damaged("another version of this program wrote it"));
        }
        if record.tenant != tenant {
            return Err(damaged("it is another tenant's"));
        }
        Ok(record)
    }
}
