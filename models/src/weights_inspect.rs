//! What a model file holds, for people: works for models that cannot run, too.

use std::collections::BTreeMap;
use std::path::Path;

use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::gguf::{GgufTensor, GgufValue};
use crate::gguf_split;
use crate::model::Model;
use crate::safetensors;
use crate::weights_file::StoredTensor;

/// A tensor of a model file.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorDescription {
    /// Name.
    pub name: String,
    /// Element type as the file names it.
    pub dtype: String,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Bytes in the file; 0 for types of unknown size.
    pub bytes: usize,
}

/// Content of a model file or directory.
#[derive(Debug, Clone)]
pub struct Description {
    /// `GGUF v3`, `safetensors`.
    pub format: String,
    /// Metadata in file order. Empty for safetensors.
    pub metadata: Vec<(String, GgufValue)>,
    /// Tensors.
    pub tensors: Vec<TensorDescription>,
    /// Elements of all tensors.
    pub parameters: u64,
    /// Bytes of all tensors.
    pub bytes: usize,
    /// The configuration, or why the model cannot run.
    pub config: std::result::Result<ModelConfig, String>,
}

/// All tensors of one element type.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TypeTotal {
    /// How many there are.
    pub tensors: usize,
    /// Elements of all of them.
    pub parameters: u64,
    /// Bytes of all of them.
    pub bytes: usize,
}

impl Description {
    /// Totals by element type.
    pub fn by_type(&self) -> BTreeMap<&str, TypeTotal> {
        let mut types = BTreeMap::<&str, TypeTotal>::new();
        for tensor in &self.tensors {
            let total = types.entry(tensor.dtype.as_str()).or_default();
            total.tensors += 1;
            total.parameters = total.parameters.saturating_add(elements(&tensor.shape));
            total.bytes = total.bytes.saturating_add(tensor.bytes);
        }
        types
    }
}

/// Lists what is at `path`, a GGUF file or a model directory.
///
/// # Errors
/// When the files cannot be read at all. A model that is readable but cannot run has `config:
/// Err(..)`.
pub fn inspect(path: &Path) -> Result<Description> {
    let (format, metadata, tensors) = if path.is_dir() {
        let table = match safetensors::open(path) {
            Err(Error::MissingFile { .. }) if !path.join("config.json").is_file() => {
                return Err(Error::NotAModel {
                    path: path.to_owned(),
                });
            }
            table => table?,
        };
        let describe = |(name, tensor): (String, StoredTensor)| {
            let bytes = tensor.range.len();
            TensorDescription {
                name,
                dtype: tensor.type_name,
                shape: tensor.shape,
                bytes,
            }
        };
        (
            "safetensors".to_owned(),
            Vec::new(),
            table.tensors.into_iter().map(describe).collect::<Vec<_>>(),
        )
    } else {
        let gguf = gguf_split::open(path)?.gguf;
        let describe = |tensor: GgufTensor| {
            let bytes = tensor.range.map_or(0, |range| range.len());
            TensorDescription {
                name: tensor.name,
                dtype: tensor.dtype.to_string(),
                shape: tensor.shape,
                bytes,
            }
        };
        (
            format!("GGUF v{}", gguf.version),
            gguf.metadata,
            gguf.tensors.into_iter().map(describe).collect(),
        )
    };
    Ok(Description {
        format,
        metadata,
        parameters: tensors
            .iter()
            .map(|tensor| elements(&tensor.shape))
            .fold(0, u64::saturating_add),
        bytes: tensors
            .iter()
            .map(|tensor| tensor.bytes)
            .fold(0, usize::saturating_add),
        tensors,
        config: Model::open(path)
            .map(|model| model.config().clone())
            .map_err(|error| error.to_string()),
    })
}

/// Elements of a tensor. Readers reject shapes whose product overflows, so saturation only guards
/// this sum.
fn elements(shape: &[usize]) -> u64 {
    shape
        .iter()
        .fold(1u64, |product, &dim| product.saturating_mul(dim as u64))
}
