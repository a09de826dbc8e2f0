//! A file becomes a snapshot, if it is one.
//!
//! What is allocated is copied out of the file, so a header cannot ask for more than the file has.

use std::collections::HashMap;

use palimpsest_kernels::LatentKind;
use palimpsest_proto::kv::{self, Geometry};
use safetensors::{Dtype, SafeTensorError, SafeTensors, tensor::TensorView};

use super::checksum::{CHECKSUM, Summed, checksum};
use super::header::Header;
use super::identity::{FORMAT, Identity, VERSION};
use super::tensors::{Number, STORED, element, name};
use crate::kv::{Contract, Positions};
use crate::snapshot::error::possible;
use crate::snapshot::latent::LatentArrays;
use crate::snapshot::{HeadState, Snapshot, SnapshotError};

impl Snapshot {
    /// The state in a file.
    ///
    /// # Errors
    /// [`SnapshotError`] says what is wrong with the file, or that it holds another state than the
    /// `expected` one.
    pub fn decode(bytes: &[u8], expected: &Identity) -> Result<Self, SnapshotError> {
        decode(bytes, expected)
    }
}

fn decode(bytes: &[u8], expected: &Identity) -> Result<Snapshot, SnapshotError> {
    let File { header, tensors } = File::open(bytes)?;
    header.check(expected)?;
    let mut reader = Reader {
        header: &header,
        tensors: tensors.into_iter().collect(),
    };
    reader.check_header()?;
    let (mut heads, mut slots) = (Vec::new(), Vec::new());
    for layer in 0..header.extent.layers {
        for kv_head in header.extent.kv_heads.clone() {
            let head = HeadReader {
                layer,
                kv_head,
                file: &mut reader,
            };
            heads.push(head.read(&mut slots)?);
        }
    }
    let unknown = reader.tensors.keys().next();
    possible(unknown.is_none(), || "a tensor that has no meaning".into())?;
    check_size(&header, &heads)?;
    Ok(Snapshot {
        extent: header.extent,
        shape: header.shape,
        contract: header.contract,
        policy: header.policy,
        per_query_head: header.per_query_head,
        memory: header.memory,
        position: header.position,
        next_rotary: header.next_rotary,
        heads,
        slots,
    })
}

/// A file that is what was written.
pub(super) struct File<'a> {
    pub(super) header: Header,
    pub(super) tensors: Vec<(String, TensorView<'a>)>,
}

impl<'a> File<'a> {
    /// Reads the header, and checks that the bytes are those that were written.
    pub(super) fn open(bytes: &'a [u8]) -> Result<Self, SnapshotError> {
        let (_, header) =
            SafeTensors::read_metadata(bytes).map_err(|error| unreadable(bytes, &error))?;
        let metadata = header.metadata().clone().unwrap_or_default();
        let text = |key: &str| metadata.get(key).map(String::as_str);
        if text("format") != Some(FORMAT) {
            let what = format!("its metadata `format` is not {FORMAT}");
            return Err(SnapshotError::NotOne(what));
        }
        let version = text("version").and_then(|version| version.parse().ok());
        match version {
            Some(VERSION) => {}
            Some(found) if found > VERSION => {
                let known = VERSION;
                return Err(SnapshotError::Future { found, known });
            }
            _ => return Err(SnapshotError::NotOne("its metadata has no version".into())),
        }
        let file = SafeTensors::deserialize(bytes).map_err(|error| unreadable(bytes, &error))?;
        let tensors = file.tensors();
        let summed = tensors.iter().map(|(name, tensor)| Summed {
            name,
            dtype: tensor.dtype(),
            shape: tensor.shape(),
            bytes: tensor.data(),
        });
        let found = checksum(&metadata, summed.collect());
        let expected = text(CHECKSUM).unwrap_or("missing");
        if found != expected {
            let expected = expected.chars().take(2 * 32).collect();
            return Err(SnapshotError::Checksum { found, expected });
        }
        Ok(Self {
            header: Header::read(&metadata)?,
            tensors,
        })
    }
}

fn unreadable(bytes: &[u8], error: &SafeTensorError) -> SnapshotError {
    use SafeTensorError::{HeaderTooSmall, InvalidHeaderLength, MetadataIncompleteBuffer};
    match error {
        HeaderTooSmall | InvalidHeaderLength | MetadataIncompleteBuffer => SnapshotError::Length {
            bytes: bytes.len(),
            what: error.to_string(),
        },
        error => SnapshotError::NotOne(error.to_string()),
    }
}

/// A whole file whose tensors are being taken out.
struct Reader<'h, 'a> {
    header: &'h Header,
    tensors: HashMap<String, TensorView<'a>>,
}

impl Reader<'_, '_> {
    /// Numbers of the header that the rest is read by.
    fn check_header(&self) -> Result<(), SnapshotError> {
        let Header {
            extent,
            position,
            next_rotary,
            contract,
            ..
        } = self.header;
        let (kv_heads, queries) = (&extent.kv_heads, &extent.queries);
        possible(
            kv_heads.start < kv_heads.end && kv_heads.end <= extent.total_kv_heads,
            || format!("of {extent}"),
        )?;
        let all = queries.start == 0 && queries.end == extent.group;
        possible(
            queries.start < queries.end
                && queries.end <= extent.group
                && (all || kv_heads.len() == 1),
            || format!("of {extent}"),
        )?;
        // Each head has a tensor at least, whatever the header says.
        let heads = extent.layers.checked_mul(kv_heads.len());
        possible(
            heads.is_some_and(|heads| heads <= self.tensors.len()),
            || format!("of {extent} in {} tensors", self.tensors.len()),
        )?;
        possible((1..=1 << 32).contains(position), || {
            format!("after {position} tokens")
        })?;
        let follows = match contract.positions() {
            Positions::Absolute => next_rotary == position,
            Positions::Compacted => next_rotary <= position,
        };
        possible(follows, || {
            format!("the next rotary position is {next_rotary} after {position} tokens")
        })
    }
}

/// One KV head that is read.
struct HeadReader<'r, 'h, 'a> {
    layer: usize,
    kv_head: usize,
    file: &'r mut Reader<'h, 'a>,
}

impl<'a> HeadReader<'_, '_, 'a> {
    /// Reads the head; its slots go behind `slots`.
    fn read(mut self, slots: &mut Vec<u8>) -> Result<HeadState, SnapshotError> {
        let header = self.file.header;
        let positions: Vec<u32> = self.need("positions", |shape| shape.len() == 1)?;
        let len = positions.len();
        self.check_positions(&positions)?;
        for part in STORED {
            let is_scale = part.ends_with("scales");
            if is_scale && header.shape.dtype.scale_bytes() == 0 {
                continue;
            }
            let (dtype, shape) = if is_scale {
                (Dtype::F16, vec![len])
            } else {
                (
                    element(header.shape.dtype),
                    vec![len, header.shape.head_dim],
                )
            };
            slots.extend_from_slice(self.bytes(part, dtype, &shape)?);
        }
        let rotary = self.some("rotary", |shape| shape == [len])?;
        self.check_rotary(&rotary)?;
        let lines = header.lines();
        let mass: Vec<f32> = self.some("mass", |shape| shape == [lines, len])?;
        Ok(HeadState {
            rotary,
            notes: self.some("notes", |shape| shape == [len])?,
            terms: self.some("terms", |shape| shape.len() == 2 && shape[0] == len)?,
            mass: mass.chunks_exact(len).map(<[f32]>::to_vec).collect(),
            sums: self.some("sums", |shape| shape.len() == 2 && shape[0] == lines)?,
            latent: self.latent()?,
            positions,
        })
    }

    fn latent(&mut self) -> Result<Option<LatentArrays>, SnapshotError> {
        let dim = self.file.header.shape.head_dim;
        match self.file.header.memory {
            None => Ok(None),
            Some(LatentKind::Centroids { most }) => {
                let counts: Vec<f32> = self.need("memory_counts", |shape| shape.len() == 1)?;
                let rows = counts.len();
                if rows > most {
                    return Err(SnapshotError::TooLarge {
                        what: "centroids of a KV head",
                        found: rows as u64,
                        most: most as u64,
                    });
                }
                Ok(Some(LatentArrays::Centroids {
                    keys: self.need("memory_keys", |shape| shape == [rows, dim])?,
                    values: self.need("memory_values", |shape| shape == [rows, dim])?,
                    counts,
                }))
            }
            Some(LatentKind::Associative { features }) => {
                let norms: Vec<f32> = self.need("memory_norms", |shape| shape.len() == 1)?;
                let rows = norms.len();
                possible(rows == 0 || rows == features, || {
                    format!("{rows} features of a memory of {features}")
                })?;
                Ok(Some(LatentArrays::Associative {
                    sums: self.need("memory_sums", |shape| shape == [rows, dim])?,
                    norms,
                }))
            }
        }
    }

    /// Positions increase, and the last token is held.
    fn check_positions(&self, positions: &[u32]) -> Result<(), SnapshotError> {
        let position = self.file.header.position;
        let increasing = positions.windows(2).all(|pair| pair[0] < pair[1]);
        let last = positions.last().map(|&last| u64::from(last) + 1);
        possible(increasing && last == Some(position), || {
            format!(
                "positions of KV head {} in layer {} do not increase up to {position}",
                self.kv_head, self.layer
            )
        })
    }

    /// Rotary positions are there where they are not the absolute ones, and do not decrease.
    fn check_rotary(&self, rotary: &[u32]) -> Result<(), SnapshotError> {
        let header = self.file.header;
        let compacted = header.contract.positions() == Positions::Compacted;
        let ordered = rotary.windows(2).all(|pair| pair[0] <= pair[1]);
        let ends = rotary
            .last()
            .is_none_or(|&last| u64::from(last) < header.next_rotary);
        possible(compacted != rotary.is_empty() && ordered && ends, || {
            format!(
                "rotary positions of KV head {} in layer {} do not lead up to {}",
                self.kv_head, self.layer, header.next_rotary
            )
        })
    }

    fn take(&mut self, part: &str) -> Option<TensorView<'a>> {
        let name = name(self.layer, self.kv_head, part);
        self.file.tensors.remove(&name)
    }

    fn wrong(&self, part: &str, what: &str) -> SnapshotError {
        let name = name(self.layer, self.kv_head, part);
        SnapshotError::Impossible(format!("tensor {name} {what}"))
    }

    /// Bytes of a tensor that has to be there.
    fn bytes(
        &mut self,
        part: &str,
        dtype: Dtype,
        shape: &[usize],
    ) -> Result<&'a [u8], SnapshotError> {
        let tensor = self.take(part);
        let tensor = tensor.ok_or_else(|| self.wrong(part, "is missing"))?;
        if tensor.dtype() != dtype || tensor.shape() != shape {
            return Err(self.wrong(part, "has another type or shape"));
        }
        Ok(tensor.data())
    }

    /// Numbers that have to be there.
    fn need<T: Number>(
        &mut self,
        part: &str,
        fits: impl Fn(&[usize]) -> bool,
    ) -> Result<Vec<T>, SnapshotError> {
        let tensor = self.take(part);
        let tensor = tensor.ok_or_else(|| self.wrong(part, "is missing"))?;
        if tensor.dtype() != T::DTYPE || !fits(tensor.shape()) {
            return Err(self.wrong(part, "has another type or shape"));
        }
        // Tensors of a file begin at any byte.
        let numbers = tensor.data().chunks_exact(size_of::<T>());
        Ok(numbers.map(bytemuck::pod_read_unaligned).collect())
    }

    /// Numbers, none where there is no tensor of them.
    fn some<T: Number>(
        &mut self,
        part: &str,
        fits: impl Fn(&[usize]) -> bool,
    ) -> Result<Vec<T>, SnapshotError> {
        let name = name(self.layer, self.kv_head, part);
        if self.file.tensors.contains_key(&name) {
            self.need(part, fits)
        } else {
            Ok(Vec::new())
        }
    }
}

/// Checks that there are no more slots than the contract allows.
fn check_size(header: &Header, heads: &[HeadState]) -> Result<(), SnapshotError> {
    let found: u64 = heads.iter().map(|head| head.len() as u64).sum();
    let geometry = Geometry {
        layers: header.extent.layers as u64,
        kv_heads: header.extent.kv_heads.len() as u64,
        total_kv_heads: header.extent.total_kv_heads as u64,
        head_dim: header.shape.head_dim as u64,
        element_bytes: header.shape.dtype.bytes() as u64,
        scale_bytes: header.shape.dtype.scale_bytes() as u64,
        stride: header.stride,
    };
    let most = match &header.contract {
        Contract::Full => {
            let all = header.position * geometry.heads();
            return possible(found == all, || {
                format!("{found} entries of {all}, where none is evicted")
            });
        }
        contract => kv::reserved_pages(contract, &geometry, header.position) * kv::PAGE_SLOTS,
    };
    if found > most {
        let what = "entries";
        return Err(SnapshotError::TooLarge { what, found, most });
    }
    Ok(())
}
