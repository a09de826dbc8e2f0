//! Records with a seal: a line with a version and the SHA-256 of what follows it.
//!
//! ```text
//! palimpsest-record 1 <64 hex digits>\n
//! <payload>
//! ```

use bytes::Bytes;
use sha2::{Digest, Sha256};

use crate::Store;
use crate::error::{Error, Result};

const MAGIC: &str = "palimpsest-record 1 ";
/// Bytes of the line.
const LINE: usize = MAGIC.len() + 64 + 1;

/// `payload` with its seal.
pub fn seal(payload: &[u8]) -> Vec<u8> {
    let line = format!("{MAGIC}{}\n", hex(payload));
    [line.as_bytes(), payload].concat()
}

/// The payload of a sealed record.
///
/// # Errors
/// [`Error::Damaged`], with `key` as the record's name.
pub fn open(key: &str, record: &Bytes) -> Result<Bytes> {
    let damaged = |what| Error::Damaged {
        key: key.into(),
        what,
    };
    let (Some(line), Some(payload)) = (record.get(..LINE), record.get(LINE..)) else {
        return Err(damaged("it is shorter than its seal"));
    };
    if !line.starts_with(MAGIC.as_bytes()) {
        return Err(damaged("it has no seal of this version"));
    }
    if line[MAGIC.len()..LINE - 1] != *hex(payload).as_bytes() || line[LINE - 1] != b'\n' {
        return Err(damaged("its seal is of other bytes"));
    }
    Ok(record.slice(LINE..))
}

impl Store {
    /// Keeps a sealed record: see [`Store::put`].
    ///
    /// # Errors
    /// Those of [`Store::put`].
    pub async fn put_sealed(&self, key: &str, payload: &[u8]) -> Result<()> {
        self.put(key, seal(payload)).await
    }

    /// The payload of a sealed record of at most `most` bytes: see [`Store::get`].
    ///
    /// # Errors
    /// Those of [`Store::get`], and [`Error::Damaged`].
    pub async fn get_sealed(&self, key: &str, most: u64) -> Result<Bytes> {
        let record = self.get(key, most.saturating_add(LINE as u64)).await?;
        open(key, &record)
    }
}

fn hex(payload: &[u8]) -> String {
    Sha256::digest(payload)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}
