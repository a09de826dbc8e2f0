//! API keys: who may ask.
//!
//! A file has one line per key: `tenant:sha256`, the digest in hexadecimal digits of the key as
//! clients send it. Keys themselves are nowhere stored. Lines that are empty or begin with `#` are
//! skipped. Keys are looked up by their digest: how long that takes says something of digests at
//! most, and a digest leads to no key.

use std::collections::HashMap;
use std::fmt;

use sha2::{Digest, Sha256};

/// The keys of a service.
#[derive(Clone, Default)]
pub struct ApiKeys(HashMap<[u8; 32], String>);

/// A line that is no key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "line {line}: expected `tenant:sha256` with 64 hexadecimal digits, such as from `printf %s \
     KEY | sha256sum`"
)]
pub struct BadLine {
    /// Number of the line, from 1.
    pub line: usize,
}

impl fmt::Debug for ApiKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ApiKeys({})", self.0.len())
    }
}

impl ApiKeys {
    /// Reads a file's text.
    ///
    /// # Errors
    /// [`BadLine`], the first one.
    pub fn parse(text: &str) -> Result<Self, BadLine> {
        let mut keys = HashMap::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (tenant, digest) = line
                .rsplit_once(':')
                .and_then(|(tenant, hex)| Some((tenant, digest(hex)?)))
                .ok_or(BadLine { line: index + 1 })?;
            keys.insert(digest, tenant.to_owned());
        }
        Ok(Self(keys))
    }

    /// Whose key this is.
    pub fn tenant(&self, key: &str) -> Option<&str> {
        let digest: [u8; 32] = Sha256::digest(key.as_bytes()).into();
        self.0.get(&digest).map(String::as_str)
    }

    /// Whose key stands in an `authorization` header.
    pub fn bearer(&self, header: Option<&str>) -> Option<&str> {
        let (scheme, key) = header?.split_once(' ')?;
        scheme
            .eq_ignore_ascii_case("bearer")
            .then(|| self.tenant(key.trim()))?
    }
}

fn digest(hex: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if hex.len() != 64 || !hex.is_ascii() {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// sha256("secret")
    const SECRET: &str = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";

    #[test]
    fn keys_are_known_by_their_digest() {
        let keys = ApiKeys::parse(&format!("# ours\n\nresearch:{SECRET}\n")).unwrap();
        assert_eq!(keys.bearer(Some("Bearer secret")), Some("research"));
        assert_eq!(keys.bearer(Some("bearer  secret")), Some("research"));
        for bad in [
            None,
            Some("secret"),
            Some("Basic secret"),
            Some("Bearer"),
            Some("Bearer Secret"),
            Some(SECRET),
        ] {
            assert_eq!(keys.bearer(bad), None, "{bad:?}");
        }
        assert!(!format!("{keys:?}").contains("2bb8"));
    }

    #[test]
    fn a_line_that_is_no_key_is_named() {
        for bad in [
            "secret",
            "a:secret",
            &format!("a:{SECRET}0"),
            &format!("a:{}", "zz".repeat(32)),
        ] {
            assert_eq!(
                ApiKeys::parse(&format!("# one\n{bad}")).unwrap_err(),
                BadLine { line: 2 }
            );
        }
    }
}
