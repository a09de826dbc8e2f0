//! Names of responses, and of whose they are.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use sha2::{Digest, Sha256};

/// Name of a response: `resp_` and 32 hexadecimal digits, drawn at random.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResponseId(pub(super) u128);

/// Whose a response is: a digest of the tenant's name, which may have any characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TenantKey(pub(super) u128);

const PREFIX: &str = "resp_";

impl ResponseId {
    /// A new name.
    pub fn draw() -> Self {
        Self(rand::random())
    }

    /// The name that a client sends, if it can be one.
    pub fn parse(text: &str) -> Option<Self> {
        digits(text.strip_prefix(PREFIX)?).map(Self)
    }

    /// Its digits, which the items of a response are named after.
    pub fn digits(self) -> String {
        format!("{:032x}", self.0)
    }
}

/// The number that 32 small hexadecimal digits are.
pub(super) fn digits(text: &str) -> Option<u128> {
    let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    if text.len() != 32 || !text.bytes().all(is_digit) {
        return None;
    }
    u128::from_str_radix(text, 16).ok()
}

impl TenantKey {
    /// Of the tenant of this name; `None` where no keys are asked for.
    pub fn of(name: Option<&str>) -> Self {
        let mut hash = Sha256::new();
        // One byte apart, so that no name stands for nobody.
        hash.update([u8::from(name.is_some())]);
        hash.update(name.unwrap_or_default());
        let digest: [u8; 32] = hash.finalize().into();
        let mut first = [0; 16];
        first.copy_from_slice(&digest[..16]);
        Self(u128::from_be_bytes(first))
    }
}

impl fmt::Display for ResponseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{:032x}", self.0)
    }
}

impl fmt::Display for TenantKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl Serialize for ResponseId {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ResponseId {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        Self::parse(&text).ok_or_else(|| de::Error::custom("no name of a response"))
    }
}

impl Serialize for TenantKey {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for TenantKey {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        let key = digits(&text).map(Self);
        key.ok_or_else(|| de::Error::custom("no key of a tenant"))
    }
}
