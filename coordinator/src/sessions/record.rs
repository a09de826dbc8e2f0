//! What is kept of a session: its sealed record.

use palimpsest_proto::contract::Contract;
use palimpsest_proto::error::{Reason, RequestError};
use palimpsest_proto::internal::v1::{ModelInfo, SessionRecord, SessionRecordHead};
use palimpsest_proto::v1;
use prost::Message;
use sha2::{Digest, Sha256};

use super::error::damaged;
use super::id::{SessionId, TenantKey};
use super::index::Key;
use super::log::{Log, Written};

/// The format that is written. An older one would be read here as well.
const FORMAT: u32 = 1;

/// A session as it is kept.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Record {
    /// Empty where no keys are asked for.
    pub(super) tenant: String,
    pub(super) id: String,
    /// See [`model_digest`].
    pub(super) model: [u8; 32],
    pub(super) contract: Contract,
    /// Seconds since 1970.
    pub(super) created: u64,
    pub(super) used: u64,
    pub(super) ttl_seconds: u64,
    pub(super) log: Log,
}

impl Record {
    /// When it is forgotten, in seconds since 1970.
    pub(super) fn expires(&self) -> u64 {
        self.used.saturating_add(self.ttl_seconds)
    }

    /// What a client is told, without its state and the bytes of its record.
    pub(super) fn view(&self) -> v1::Session {
        v1::Session {
            session_id: self.id.clone(),
            kv: Some((&self.contract).into()),
            tokens: self.log.tokens.len() as u64,
            messages: self.log.messages.len() as u64,
            created: self.created,
            used: self.used,
            expires: self.expires(),
            ..Default::default()
        }
    }

    /// Refuses a model to which the token ids of this log may mean something else.
    pub(super) fn check_model(&self, served: &[u8; 32]) -> Result<(), RequestError> {
        if self.model == *served {
            return Ok(());
        }
        let message = format!(
            "the session {:?} was made with another model than the one that is served: serve that \
             one again, or make another session",
            self.id
        );
        let error = RequestError::new(Reason::SessionModel, message);
        Err(error.in_field("session_id"))
    }

    /// Refuses a record that lies under another session's key.
    pub(super) fn check_owner(&self, key: &Key) -> Result<(), RequestError> {
        let name = std::sync::Arc::from(self.tenant.as_str());
        let tenant = (!self.tenant.is_empty()).then_some(&name);
        let id = SessionId::parse(&self.id);
        match id {
            Some(id) if *key == Key::new(TenantKey::of(tenant), id.clone()) => Ok(()),
            _ => Err(damaged("its record is another session's")),
        }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let log = &self.log;
        let record = SessionRecord {
            format: FORMAT,
            tenant: self.tenant.clone(),
            session_id: self.id.clone(),
            model: self.model.to_vec().into(),
            kv: Some((&self.contract).into()),
            created: self.created,
            used: self.used,
            ttl_seconds: self.ttl_seconds,
            tokens: log.tokens.clone(),
            messages: log.messages.clone(),
            text_bytes: log.text.bytes,
            text_digest: log.text.digest.to_vec().into(),
            pending: log.pending.clone(),
        };
        record.encode_to_vec()
    }

    /// Reads what was sealed.
    ///
    /// # Errors
    /// `SessionDamaged` for a later format, and for a record that cannot be.
    pub(super) fn decode(payload: &[u8]) -> Result<Self, RequestError> {
        let no_record = |_| damaged("its record is none");
        let head = SessionRecordHead::decode(payload).map_err(no_record)?;
        if head.format > FORMAT {
            return Err(damaged(
                "its record was written by a later version of this program",
            ));
        }
        let record = SessionRecord::decode(payload).map_err(no_record)?;
        let digest = |bytes: &[u8]| <[u8; 32]>::try_from(bytes).ok();
        let (Some(model), Some(text)) = (digest(&record.model), digest(&record.text_digest)) else {
            return Err(damaged("its record lacks a digest"));
        };
        let kv = record.kv.unwrap_or_default();
        let contract = Contract::try_from(&kv);
        let contract = contract.map_err(|_| damaged("its contract means nothing here"))?;
        Ok(Self {
            tenant: record.tenant,
            id: record.session_id,
            model,
            contract,
            created: record.created,
            used: record.used,
            ttl_seconds: record.ttl_seconds,
            log: Log {
                tokens: record.tokens,
                messages: record.messages,
                text: Written {
                    bytes: record.text_bytes,
                    digest: text,
                },
                pending: record.pending,
            },
        })
    }
}

/// What gives token ids their meaning: the model's name and shape, and its tokenizer. Scorers,
/// options and the number of ranks may change under a session, whose tokens are then read anew.
pub(super) fn model_digest(info: &ModelInfo) -> [u8; 32] {
    let mut hash = Sha256::new();
    for name in [&info.name, &info.architecture] {
        hash.update((name.len() as u64).to_le_bytes());
        hash.update(name);
    }
    let shape = [
        u64::from(info.layers),
        u64::from(info.heads),
        u64::from(info.kv_heads),
        u64::from(info.head_dim),
        info.vocabulary,
        info.parameters,
    ];
    for number in shape {
        hash.update(number.to_le_bytes());
    }
    hash.update(&info.tokenizer);
    hash.finalize().into()
}
