//! Names of sessions and of whose they are, as keys of a store take them.

use std::fmt::Write;
use std::sync::Arc;

use palimpsest_proto::error::RequestError;
use sha2::{Digest, Sha256};

use super::error::bad;

/// Whose sessions are meant: the name of a tenant, where keys are asked for.
pub type TenantName<'a> = Option<&'a Arc<str>>;

/// Name of a session: letters, digits, `-` and `_`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct SessionId(Arc<str>);

impl SessionId {
    /// Longest name, in bytes.
    const MOST: usize = 64;

    /// The name, if it can be one.
    pub(super) fn parse(id: &str) -> Option<Self> {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
        let is_name = (1..=Self::MOST).contains(&id.len()) && id.bytes().all(is_plain);
        is_name.then(|| Self(id.into()))
    }

    /// The name that a client gives in `field`, or a random one for the empty string.
    pub(super) fn new_or_drawn(id: &str, field: &'static str) -> Result<Self, RequestError> {
        if id.is_empty() {
            return Ok(Self(format!("{:032x}", rand::random::<u128>()).into()));
        }
        Self::parse(id).ok_or_else(|| {
            let message = format!(
                "{field} must be 1 to {} letters, digits, `-` and `_`",
                Self::MOST
            );
            bad(field, message)
        })
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

/// A tenant, as keys name it: tenants may have any name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct TenantKey(Arc<str>);

impl TenantKey {
    /// Of a tenant, or of everyone where no keys are asked for.
    pub(super) fn of(tenant: TenantName<'_>) -> Self {
        let Some(name) = tenant else {
            return Self("none".into());
        };
        let mut key = String::from("t-");
        for byte in &Sha256::digest(name.as_bytes())[..16] {
            // Writing to a String cannot fail.
            let _ = write!(key, "{byte:02x}");
        }
        Self(key.into())
    }

    /// As a key of the store has it.
    pub(super) fn parse(part: &str) -> Self {
        Self(part.into())
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}
