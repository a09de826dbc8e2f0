//! A snapshot becomes a file.

use std::borrow::Cow;
use std::collections::BTreeMap;

use palimpsest_kernels::StoredParts;
use safetensors::Dtype;

use super::checksum::{CHECKSUM, Summed, checksum};
use super::header::Header;
use super::identity::Identity;
use super::tensors::{Number, STORED, Tensor, element, name};
use crate::snapshot::latent::LatentArrays;
use crate::snapshot::{HeadState, Snapshot, SnapshotError};

impl Snapshot {
    /// Bytes of a file of this state.
    ///
    /// # Errors
    /// [`SnapshotError::Foreign`] where `identity` is of another cache or model.
    pub fn encode(&self, identity: &Identity) -> Result<Vec<u8>, SnapshotError> {
        encode(self, identity)
    }
}

fn encode(snapshot: &Snapshot, identity: &Identity) -> Result<Vec<u8>, SnapshotError> {
    identity.check(&snapshot.extent, snapshot.shape)?;
    let mut tensors = BTreeMap::new();
    let mut first = 0;
    let kv_heads = &snapshot.extent.kv_heads;
    for (index, head) in snapshot.heads.iter().enumerate() {
        let parts = StoredParts::of(snapshot.shape, head.len());
        let mut writer = HeadWriter {
            layer: index / kv_heads.len(),
            kv_head: kv_heads.start + index % kv_heads.len(),
            snapshot,
            head,
            tensors: &mut tensors,
        };
        writer.slots(&parts, &snapshot.slots[first..first + parts.bytes()]);
        writer.state();
        first += parts.bytes();
    }

    let mut metadata = Header::of(snapshot, identity).entries();
    let summed = tensors.iter().map(|(name, tensor)| Summed {
        name,
        dtype: tensor.dtype,
        shape: &tensor.shape,
        bytes: &tensor.bytes,
    });
    let sum = checksum(&metadata, summed.collect());
    metadata.insert(CHECKSUM.into(), sum);
    safetensors::serialize(tensors.iter(), Some(metadata))
        .map_err(|error| SnapshotError::Impossible(error.to_string()))
}

/// The tensors of one KV head.
struct HeadWriter<'w, 'a> {
    layer: usize,
    kv_head: usize,
    snapshot: &'a Snapshot,
    head: &'a HeadState,
    tensors: &'w mut BTreeMap<String, Tensor<'a>>,
}

impl<'a> HeadWriter<'_, 'a> {
    fn put(&mut self, part: &str, dtype: Dtype, shape: Vec<usize>, bytes: Cow<'a, [u8]>) {
        let tensor = Tensor {
            dtype,
            shape,
            bytes,
        };
        self.tensors
            .insert(name(self.layer, self.kv_head, part), tensor);
    }

    fn numbers<T: Number>(&mut self, part: &str, shape: Vec<usize>, values: &'a [T]) {
        self.put(
            part,
            T::DTYPE,
            shape,
            Cow::Borrowed(bytemuck::cast_slice(values)),
        );
    }

    /// Numbers that are left out where there are none.
    fn some<T: Number>(&mut self, part: &str, shape: Vec<usize>, values: &'a [T]) {
        if !values.is_empty() {
            self.numbers(part, shape, values);
        }
    }

    /// Keys and values as they are stored.
    fn slots(&mut self, parts: &StoredParts, bytes: &'a [u8]) {
        let (shape, len) = (self.snapshot.shape, self.head.len());
        for (part, range) in STORED.into_iter().zip(parts.all()) {
            let is_scale = part.ends_with("scales");
            if is_scale && shape.dtype.scale_bytes() == 0 {
                continue;
            }
            let (dtype, shape) = if is_scale {
                (Dtype::F16, vec![len])
            } else {
                (element(shape.dtype), vec![len, shape.head_dim])
            };
            self.put(part, dtype, shape, Cow::Borrowed(&bytes[range]));
        }
    }

    /// What is known of the slots, and the latent memory.
    fn state(&mut self) {
        let (head, len) = (self.head, self.head.len());
        self.numbers("positions", vec![len], &head.positions);
        self.some("rotary", vec![len], &head.rotary);
        self.some("notes", vec![len], &head.notes);
        let width = head.terms.len() / len.max(1);
        self.some("terms", vec![len, width], &head.terms);
        if !head.mass.is_empty() {
            let all: Vec<f32> = head.mass.iter().flatten().copied().collect();
            let bytes = bytemuck::cast_slice(&all).to_vec();
            let shape = vec![head.mass.len(), len];
            self.put("mass", f32::DTYPE, shape, Cow::Owned(bytes));
        }
        let lines = self.snapshot.lines();
        self.some("sums", vec![lines, head.sums.len() / lines], &head.sums);

        let dim = self.snapshot.shape.head_dim;
        match &head.latent {
            None => {}
            Some(LatentArrays::Centroids {
                keys,
                values,
                counts,
            }) => {
                let rows = counts.len();
                self.numbers("memory_keys", vec![rows, dim], keys);
                self.numbers("memory_values", vec![rows, dim], values);
                self.numbers("memory_counts", vec![rows], counts);
            }
            Some(LatentArrays::Associative { sums, norms }) => {
                self.numbers("memory_sums", vec![norms.len(), dim], sums);
                self.numbers("memory_norms", vec![norms.len()], norms);
            }
        }
    }
}
