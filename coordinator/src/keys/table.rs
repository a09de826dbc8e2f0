//! The lines of a file of keys.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::options::{BadOption, KeyOptions};
use super::tenant::{InUse, Tenant};

/// SHA-256 of a key.
pub(super) type KeyDigest = [u8; 32];

/// Longest name of a tenant, in bytes: it is a label of metrics.
const MAX_TENANT: usize = 128;

/// A line that is no key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {fault}")]
pub struct BadLine {
    /// Number of the line, from 1.
    pub line: usize,
    /// What is wrong with it.
    pub fault: LineFault,
}

/// What is wrong with a line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LineFault {
    /// Not `tenant:sha256`.
    #[error(
        "expected `tenant:sha256` with 64 hexadecimal digits, such as from `printf %s KEY | \
         sha256sum`"
    )]
    NoKey,
    /// A name that cannot be a label.
    #[error("a tenant's name has at most {MAX_TENANT} bytes and no control characters")]
    BadTenant,
    /// A key that stands in an earlier line.
    #[error("the same key stands in line {first}: remove one of them")]
    Again {
        /// Number of the earlier line.
        first: usize,
    },
    /// An option behind the digest.
    #[error(transparent)]
    Option(#[from] BadOption),
}

/// What keys have under way, whatever becomes of the file: a key that stands there still keeps its
/// count.
#[derive(Debug, Default)]
pub(super) struct Uses(Mutex<HashMap<KeyDigest, Arc<InUse>>>);

impl Uses {
    fn of(&self, digest: KeyDigest) -> Arc<InUse> {
        let mut uses = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        uses.entry(digest).or_default().clone()
    }

    /// Forgets keys that nobody has any more.
    fn prune(&self) {
        let mut uses = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        uses.retain(|_, in_use| Arc::strong_count(in_use) > 1);
    }
}

/// Keys by their digests.
#[derive(Debug, Default)]
pub(super) struct Table(HashMap<KeyDigest, Arc<Tenant>>);

impl Table {
    /// Reads a file's text.
    pub(super) fn parse(text: &str, uses: &Uses) -> Result<Self, BadLine> {
        let mut keys = HashMap::new();
        let mut lines: HashMap<KeyDigest, usize> = HashMap::new();
        let mut names: HashMap<&str, Arc<str>> = HashMap::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let bad = |fault| BadLine {
                line: index + 1,
                fault,
            };
            let found = Line::parse(line).map_err(bad)?;
            if let Some(first) = lines.insert(found.digest, index + 1) {
                return Err(bad(LineFault::Again { first }));
            }
            let name = names
                .entry(found.tenant)
                .or_insert_with(|| found.tenant.into())
                .clone();
            let tenant = Tenant::new(name, found.options, uses.of(found.digest));
            keys.insert(found.digest, Arc::new(tenant));
        }
        uses.prune();
        Ok(Self(keys))
    }

    pub(super) fn get(&self, digest: &KeyDigest) -> Option<&Arc<Tenant>> {
        self.0.get(digest)
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

struct Line<'a> {
    tenant: &'a str,
    digest: KeyDigest,
    options: KeyOptions,
}

impl<'a> Line<'a> {
    fn parse(line: &'a str) -> Result<Self, LineFault> {
        let (tenant, rest) = line.rsplit_once(':').ok_or(LineFault::NoKey)?;
        let mut words = rest.split_whitespace();
        // As before there were options: nothing stands between the colon and the digest.
        let hex = words.next().filter(|hex| rest.starts_with(hex));
        let digest = hex.and_then(digest).ok_or(LineFault::NoKey)?;
        if tenant.len() > MAX_TENANT || tenant.chars().any(char::is_control) {
            return Err(LineFault::BadTenant);
        }
        Ok(Self {
            tenant,
            digest,
            options: KeyOptions::parse(words)?,
        })
    }
}

fn digest(hex: &str) -> Option<KeyDigest> {
    let mut bytes = [0; 32];
    if hex.len() != 64 || !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}
