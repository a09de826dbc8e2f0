//! The files that weights are read from: memory maps and one table of the tensors in them.

#![allow(unsafe_code)] // the memory map below, and nothing else

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::{Deref, Range};
use std::path::{Path, PathBuf};

use palimpsest_kernels::WeightType;

use crate::file_digest::DigestCache;

/// Bytes of a model file.
#[derive(Debug)]
pub(crate) enum FileMap {
    /// A file mapped into memory, read-only.
    Mapped(MappedFile),
    /// Made here.
    Made(Vec<u8>),
}

/// A file, mapped.
#[derive(Debug)]
pub(crate) struct MappedFile {
    map: memmap2::Mmap,
    file: File,
    path: PathBuf,
}

impl FileMap {
    /// Maps the file at `path`. An empty file is an I/O error of kind `InvalidInput` on some
    /// systems and an empty slice on others; both fail later on their missing header.
    pub(crate) fn open(path: &Path) -> std::io::Result<Self> {
        let file = File::open(path)?;
        if !file.metadata()?.is_file() {
            return Err(std::io::Error::new(
                std::io::ErrorKind::InvalidInput,
                "not a regular file",
            ));
        }
        // SAFETY: the map is private and read-only. The one hazard is another process that
        // truncates or rewrites the file meanwhile; model files are written once and replaced by
        // renaming (`pull` does so), and the operator who edits one in place is told not to by the
        // documentation of `Model::open`.
        let map = unsafe { memmap2::Mmap::map(&file)? };
        Ok(Self::Mapped(MappedFile {
            map,
            file,
            path: path.to_owned(),
        }))
    }

    /// Digest of the whole file; `None` for what was made here.
    pub(crate) fn digest(&self, cache: &DigestCache) -> Option<u128> {
        match self {
            Self::Mapped(MappedFile { map, file, path }) => Some(cache.digest(path, file, map)),
            Self::Made(_) => None,
        }
    }
}

impl Deref for FileMap {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(mapped) => &mapped.map,
            Self::Made(bytes) => bytes,
        }
    }
}

/// Where a tensor lies and what it is.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct StoredTensor {
    /// Type as the kernels know it; `None`: one that they do not read.
    pub(crate) dtype: Option<WeightType>,
    /// Type as the file names it.
    pub(crate) type_name: String,
    /// Dimensions, outermost first.
    pub(crate) shape: Vec<usize>,
    /// Index into [`TensorTable::files`].
    pub(crate) file: usize,
    /// Bytes of that file.
    pub(crate) range: Range<usize>,
}

/// All tensors of a model by name, and the maps that hold them.
#[derive(Debug, Default)]
pub(crate) struct TensorTable {
    pub(crate) files: Vec<FileMap>,
    pub(crate) tensors: BTreeMap<String, StoredTensor>,
}

impl TensorTable {
    /// Stored bytes of a tensor of this table.
    pub(crate) fn bytes(&self, tensor: &StoredTensor) -> &[u8] {
        &self.files[tensor.file][tensor.range.clone()]
    }
}

/// Dequantises a tensor of a plain float type. `None` for block types.
pub(crate) fn floats(dtype: WeightType, bytes: &[u8]) -> Option<Vec<f32>> {
    let pairs = || bytes.chunks_exact(2).map(|pair| [pair[0], pair[1]]);
    Some(match dtype {
        WeightType::F32 => bytes
            .chunks_exact(4)
            .map(|four| f32::from_le_bytes([four[0], four[1], four[2], four[3]]))
            .collect(),
        WeightType::F16 => pairs()
            .map(|pair| half::f16::from_le_bytes(pair).to_f32())
            .collect(),
        WeightType::BF16 => pairs()
            .map(|pair| half::bf16::from_le_bytes(pair).to_f32())
            .collect(),
        _ => return None,
    })
}
