//! The checksum of a file: SHA-256 over its metadata and every tensor, each with its length.

use std::collections::HashMap;

use safetensors::Dtype;
use sha2::{Digest, Sha256};

use super::hex::to_hex;

/// Its entry of the metadata.
pub(super) const CHECKSUM: &str = "checksum";

/// A tensor, as far as the checksum sees it.
pub(super) struct Summed<'a> {
    pub(super) name: &'a str,
    pub(super) dtype: Dtype,
    pub(super) shape: &'a [usize],
    pub(super) bytes: &'a [u8],
}

/// The checksum in hexadecimal digits. Neither the order of the metadata nor that of `tensors`
/// counts.
pub(super) fn checksum(metadata: &HashMap<String, String>, mut tensors: Vec<Summed<'_>>) -> String {
    let mut hash = Sha256::new();
    let mut add = |part: &[u8]| {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    };
    let mut entries: Vec<_> = metadata
        .iter()
        .filter(|(key, _)| *key != CHECKSUM)
        .collect();
    entries.sort();
    add(&entries.len().to_le_bytes());
    for (key, value) in entries {
        add(key.as_bytes());
        add(value.as_bytes());
    }
    tensors.sort_by_key(|tensor| tensor.name);
    for tensor in tensors {
        add(tensor.name.as_bytes());
        add(format!("{:?} {:?}", tensor.dtype, tensor.shape).as_bytes());
        add(tensor.bytes);
    }
    to_hex(&hash.finalize())
}
