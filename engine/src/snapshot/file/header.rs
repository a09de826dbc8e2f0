//! What a file says of itself, as entries of its metadata.

use std::collections::HashMap;
use std::fmt;

use palimpsest_kernels::{KvType, LatentKind, PageShape};
use palimpsest_proto::v1::KvContract;
use serde_json::{Value, json};

use super::hex::{from_hex, to_hex};
use super::identity::{FORMAT, Identity, VERSION};
use crate::kv::Contract;
use crate::snapshot::error::same;
use crate::snapshot::{Extent, Snapshot, SnapshotError, lines};

/// What a file says of the state in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// The state's name.
    pub name: Vec<u8>,
    /// Digest of weights and scorers.
    pub model: Vec<u8>,
    /// Tokens between two boundaries.
    pub stride: u64,
    /// Head size and type of elements.
    pub shape: PageShape,
    /// Whose state it is.
    pub extent: Extent,
    /// What the sequence was held to.
    pub contract: Contract,
    /// Name of the policy that ranked or observed.
    pub policy: String,
    /// Whether the policy keeps numbers of each query head.
    pub per_query_head: bool,
    /// What the latent memory holds of each KV head.
    pub memory: Option<LatentKind>,
    /// Tokens that it is the state of.
    pub position: u64,
    /// Rotary position of the next token.
    pub next_rotary: u64,
}

type Metadata = HashMap<String, String>;

impl Header {
    /// What a file of `snapshot` says.
    pub(super) fn of(snapshot: &Snapshot, identity: &Identity) -> Self {
        Self {
            name: identity.name.clone(),
            model: identity.model.clone(),
            stride: identity.stride,
            shape: snapshot.shape,
            extent: snapshot.extent.clone(),
            contract: snapshot.contract.clone(),
            policy: snapshot.policy.clone(),
            per_query_head: snapshot.per_query_head,
            memory: snapshot.memory,
            position: snapshot.position,
            next_rotary: snapshot.next_rotary,
        }
    }

    /// What a reader has to ask for to get this state.
    pub fn identity(&self) -> Identity {
        Identity {
            name: self.name.clone(),
            model: self.model.clone(),
            stride: self.stride,
            shape: self.shape,
            layers: self.extent.layers,
            total_kv_heads: self.extent.total_kv_heads,
            group: self.extent.group,
        }
    }

    /// The entries of the metadata, but for the checksum.
    pub(super) fn entries(&self) -> Metadata {
        let Extent {
            layers,
            kv_heads,
            total_kv_heads,
            group,
            queries,
        } = &self.extent;
        let entries = [
            ("format", FORMAT.to_owned()),
            ("version", VERSION.to_string()),
            ("name", to_hex(&self.name)),
            ("model", to_hex(&self.model)),
            ("stride", self.stride.to_string()),
            ("element", self.shape.dtype.name().to_owned()),
            ("head_dim", self.shape.head_dim.to_string()),
            ("layers", layers.to_string()),
            ("kv_heads", total_kv_heads.to_string()),
            ("first_kv_head", kv_heads.start.to_string()),
            ("end_kv_head", kv_heads.end.to_string()),
            ("group", group.to_string()),
            ("first_query_head", queries.start.to_string()),
            ("end_query_head", queries.end.to_string()),
            ("contract", contract_text(&self.contract)),
            ("policy", self.policy.clone()),
            ("per_query_head", self.per_query_head.to_string()),
            ("memory", memory_text(self.memory)),
            ("position", self.position.to_string()),
            ("next_rotary", self.next_rotary.to_string()),
        ];
        let owned = entries.map(|(key, value)| (key.to_owned(), value));
        owned.into_iter().collect()
    }

    /// Lines of numbers that a policy keeps with a KV head: one for each query head, or a single
    /// one.
    pub(super) fn lines(&self) -> usize {
        lines(self.per_query_head, &self.extent)
    }

    /// Reads the entries.
    pub(super) fn read(metadata: &Metadata) -> Result<Self, SnapshotError> {
        let bytes = |key| from_hex(text(metadata, key)?).ok_or_else(|| bad(key, metadata));
        let dtype = [KvType::F32, KvType::F16, KvType::Q8]
            .into_iter()
            .find(|dtype| metadata.get("element").map(String::as_str) == Some(dtype.name()))
            .ok_or_else(|| bad("element", metadata))?;
        let size = |key| number::<usize>(metadata, key);
        Ok(Self {
            name: bytes("name")?,
            model: bytes("model")?,
            stride: number(metadata, "stride")?,
            shape: PageShape {
                head_dim: size("head_dim")?,
                dtype,
            },
            extent: Extent {
                layers: size("layers")?,
                kv_heads: size("first_kv_head")?..size("end_kv_head")?,
                total_kv_heads: size("kv_heads")?,
                group: size("group")?,
                queries: size("first_query_head")?..size("end_query_head")?,
            },
            contract: contract(text(metadata, "contract")?)?,
            policy: text(metadata, "policy")?.to_owned(),
            per_query_head: number(metadata, "per_query_head")?,
            memory: memory(metadata)?,
            position: number(metadata, "position")?,
            next_rotary: number(metadata, "next_rotary")?,
        })
    }

    /// Checks that it is of the state that is asked for.
    pub(super) fn check(&self, expected: &Identity) -> Result<(), SnapshotError> {
        let digits = |bytes: &Vec<u8>| to_hex(bytes);
        same(
            "model or set of scorers",
            &self.model,
            &expected.model,
            digits,
        )?;
        same("stride", &self.stride, &expected.stride, u64::to_string)?;
        expected.check(&self.extent, self.shape)?;
        same("name", &self.name, &expected.name, digits)
    }
}

impl fmt::Display for Header {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "state after {} tokens, {}, {} elements of {}",
            self.position,
            self.extent,
            self.shape.dtype.name(),
            self.shape.head_dim
        )
    }
}

fn text<'m>(metadata: &'m Metadata, key: &str) -> Result<&'m str, SnapshotError> {
    let value = metadata.get(key).map(String::as_str);
    value.ok_or_else(|| SnapshotError::NotOne(format!("its metadata has no `{key}`")))
}

fn number<T: std::str::FromStr>(metadata: &Metadata, key: &str) -> Result<T, SnapshotError> {
    text(metadata, key)?.parse().map_err(|_| bad(key, metadata))
}

fn bad(key: &str, metadata: &Metadata) -> SnapshotError {
    let value = metadata.get(key).map_or("missing", String::as_str);
    // What nobody has checked is not repeated at any length.
    let value: String = value.chars().take(60).collect();
    SnapshotError::NotOne(format!("its metadata `{key}` is `{value}`"))
}

fn memory_text(memory: Option<LatentKind>) -> String {
    match memory {
        None => "none".into(),
        Some(LatentKind::Centroids { most }) => format!("centroids {most}"),
        Some(LatentKind::Associative { features }) => format!("associative {features}"),
    }
}

fn memory(metadata: &Metadata) -> Result<Option<LatentKind>, SnapshotError> {
    let text = text(metadata, "memory")?;
    let units = |units: &str| units.parse().map_err(|_| bad("memory", metadata));
    match text.split_once(' ') {
        None if text == "none" => Ok(None),
        Some(("centroids", most)) => Ok(Some(LatentKind::Centroids { most: units(most)? })),
        Some(("associative", features)) => Ok(Some(LatentKind::Associative {
            features: units(features)?,
        })),
        _ => Err(bad("memory", metadata)),
    }
}

fn contract_text(contract: &Contract) -> String {
    let wire = KvContract::from(contract);
    json!({
        "policy": wire.policy, "budget": wire.budget, "head_budget": wire.head_budget,
        "sinks": wire.sinks, "window": wire.window, "positions": wire.positions,
        "memory": wire.memory, "memory_slots": wire.memory_slots,
    })
    .to_string()
}

fn contract(text: &str) -> Result<Contract, SnapshotError> {
    let not_one = |what: String| SnapshotError::NotOne(format!("its KV contract: {what}"));
    let value: Value = serde_json::from_str(text).map_err(|error| not_one(error.to_string()))?;
    let name = |key: &str| value[key].as_str().unwrap_or_default().to_owned();
    let count = |key: &str| {
        value[key]
            .as_u64()
            .and_then(|count| u32::try_from(count).ok())
    };
    let wire = KvContract {
        budget: count("budget").unwrap_or_default(),
        policy: name("policy"),
        memory: name("memory"),
        head_budget: name("head_budget"),
        sinks: count("sinks"),
        window: count("window"),
        positions: name("positions"),
        memory_slots: count("memory_slots"),
    };
    Contract::try_from(&wire).map_err(|error| not_one(error.to_string()))
}
