//! What a file holds, without a model.

use std::borrow::Cow;
use std::collections::BTreeMap;

use safetensors::SafeTensors;

use super::checksum::{CHECKSUM, Summed, checksum};
use super::decode::File;
use super::header::Header;
use super::identity::FORMAT;
use super::tensors::Tensor;
use crate::snapshot::SnapshotError;

/// What a snapshot file holds.
#[derive(Debug, Clone)]
pub struct Description {
    /// What it says of itself.
    pub header: Header,
    /// Entries of each KV head, layer-major.
    pub entries: Vec<usize>,
    /// Bytes of each part, over all heads.
    pub parts: BTreeMap<String, usize>,
}

/// Describes a snapshot file whose checksum holds.
///
/// # Errors
/// [`SnapshotError`] says what is wrong with the bytes.
pub fn describe(bytes: &[u8]) -> Result<Description, SnapshotError> {
    let File { header, tensors } = File::open(bytes)?;
    let (mut entries, mut parts) = (BTreeMap::new(), BTreeMap::new());
    for (name, tensor) in &tensors {
        let mut words = name.splitn(3, '.');
        let number = |word: Option<&str>| word.and_then(|word| word.parse::<usize>().ok());
        let head = (number(words.next()), number(words.next()));
        let part = words.next().unwrap_or_default();
        *parts.entry(part.to_owned()).or_insert(0) += tensor.data().len();
        if part == "positions" {
            entries.insert(head, tensor.shape().iter().product());
        }
    }
    Ok(Description {
        header,
        entries: entries.into_values().collect(),
        parts,
    })
}

/// Whether bytes say that they are a snapshot file.
pub fn is_snapshot(bytes: &[u8]) -> bool {
    let header = SafeTensors::read_metadata(bytes).ok();
    let metadata = header.and_then(|(_, header)| header.metadata().clone());
    metadata.is_some_and(|metadata| metadata.get("format").map(String::as_str) == Some(FORMAT))
}

/// The file with the checksum of what it holds, for tests of what stands behind the checksum.
/// `None`: it is no safetensors file.
pub fn seal(bytes: &[u8]) -> Option<Vec<u8>> {
    let (_, header) = SafeTensors::read_metadata(bytes).ok()?;
    let mut metadata = header.metadata().clone()?;
    let file = SafeTensors::deserialize(bytes).ok()?;
    let tensors: BTreeMap<String, Tensor<'_>> = file
        .iter()
        .map(|(name, tensor)| {
            let tensor = Tensor {
                dtype: tensor.dtype(),
                shape: tensor.shape().to_vec(),
                bytes: Cow::Borrowed(tensor.data()),
            };
            (name.to_owned(), tensor)
        })
        .collect();
    let summed = tensors.iter().map(|(name, tensor)| Summed {
        name,
        dtype: tensor.dtype,
        shape: &tensor.shape,
        bytes: &tensor.bytes,
    });
    let sum = checksum(&metadata, summed.collect());
    metadata.insert(CHECKSUM.into(), sum);
    safetensors::serialize(tensors.iter(), Some(metadata)).ok()
}
