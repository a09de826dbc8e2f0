//! An opened model: its configuration, its weights, its tokenizer.

use std::path::{Path, PathBuf};

use crate::config::ModelConfig;
use crate::error::{Error, Result, WeightsError};
use crate::gguf::Gguf;
use crate::gguf_config::RopeTensors;
use crate::gguf_split::{self, GgufFiles};
use crate::tokenizer::TokenizerFiles;
use crate::weights::{Naming, Weights};
use crate::weights_file::{StoredTensor, TensorTable, floats};
use crate::{random, safetensors};

/// An opened model: configuration and weights checked, nothing packed yet.
///
/// The weights stay in memory maps of the files, so a file must not be rewritten in place while its
/// model is open.
#[derive(Debug)]
pub struct Model {
    path: PathBuf,
    gguf: Option<Gguf>,
    weights: Weights,
}

impl Model {
    /// Opens a `.gguf` file (any one of a model in several), a Hugging Face directory
    /// (`config.json`, safetensors, `tokenizer.json`), or makes the model that a path
    /// `random:SHAPE` names ([`crate::random`]).
    ///
    /// # Errors
    /// Whatever is wrong with the files, named; see [`Error`].
    pub fn open(path: &Path) -> Result<Self> {
        match random::shape(path) {
            Some(shape) => Self::make(path, shape),
            None if path.is_dir() => Self::open_directory(path),
            None => Self::open_gguf(path),
        }
    }

    fn make(path: &Path, shape: &str) -> Result<Self> {
        let config = random::config(shape)?;
        let table = random::table(config.tensors(Naming::HuggingFace));
        Self::new(path, None, config, table)
    }

    fn open_gguf(path: &Path) -> Result<Self> {
        let GgufFiles { maps, gguf, name } = gguf_split::open(path)?;
        let mut table = TensorTable::default();
        for tensor in &gguf.tensors {
            let stored = StoredTensor {
                dtype: tensor
                    .range
                    .as_ref()
                    .and_then(|_| tensor.dtype.weight_type()),
                type_name: tensor.dtype.to_string(),
                shape: tensor.shape.clone(),
                file: tensor.file,
                range: tensor.range.clone().unwrap_or(0..0),
            };
            table.tensors.insert(tensor.name.clone(), stored);
        }
        table.files = maps;
        let tensors = rope_tensors(&table).map_err(|source| Error::Weights {
            path: path.to_owned(),
            source,
        })?;
        let config = ModelConfig::from_gguf(&gguf, tensors, &name)
            .map_err(|source| Error::gguf(path, source))?;
        Self::new(path, Some(gguf), config, table)
    }

    fn open_directory(dir: &Path) -> Result<Self> {
        let path = dir.join("config.json");
        if !path.is_file() {
            return Err(Error::NotAModel {
                path: dir.to_owned(),
            });
        }
        let read = |path: &Path| std::fs::read(path).map_err(|source| Error::io(path, source));
        let json = read(&path)?;
        let generation = dir.join("generation_config.json");
        let generation = if generation.is_file() {
            Some(read(&generation)?)
        } else {
            None
        };
        let name = dir
            .canonicalize()
            .ok()
            .and_then(|dir| Some(dir.file_name()?.to_string_lossy().into_owned()));
        let config =
            ModelConfig::from_json(&json, generation.as_deref(), &name.unwrap_or_default())
                .map_err(|source| Error::Config { path, source })?;
        Self::new(dir, None, config, safetensors::open(dir)?)
    }

    fn new(
        path: &Path,
        gguf: Option<Gguf>,
        config: ModelConfig,
        table: TensorTable,
    ) -> Result<Self> {
        let naming = if gguf.is_some() {
            Naming::Gguf
        } else {
            Naming::HuggingFace
        };
        let weights = Weights::new(config, table, naming).map_err(|source| Error::Weights {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            path: path.to_owned(),
            gguf,
            weights,
        })
    }

    /// The model's configuration.
    pub fn config(&self) -> &ModelConfig {
        self.weights.config()
    }

    /// The model's weights.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// Whether its weights are of chance ([`crate::random`]).
    pub fn is_random(&self) -> bool {
        random::shape(&self.path).is_some()
    }

    /// The file or directory it was opened from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The tokenizer: the directory's `tokenizer.json`, or one built from what the GGUF file holds.
    ///
    /// # Errors
    /// [`Error::Tokenizer`], [`Error::MissingFile`] or [`Error::Io`].
    pub fn tokenizer(&self) -> Result<TokenizerFiles> {
        let eos_ids = &self.config().eos_ids;
        match &self.gguf {
            None if self.is_random() => Ok(random::tokenizer()),
            None => TokenizerFiles::from_directory(&self.path, eos_ids),
            Some(gguf) => TokenizerFiles::from_gguf(gguf, self.weights.first_file(), eos_ids)
                .map_err(|source| Error::Tokenizer {
                    path: self.path.clone(),
                    source,
                }),
        }
    }
}

/// What a file's tensors say of rotary positions.
fn rope_tensors(table: &TensorTable) -> std::result::Result<RopeTensors, WeightsError> {
    let values = |name: &str| {
        let Some(tensor) = table.tensors.get(name) else {
            return Ok(None);
        };
        let values = tensor
            .dtype
            .and_then(|dtype| floats(dtype, table.bytes(tensor)));
        let found = tensor.type_name.clone();
        values.map(Some).ok_or_else(|| WeightsError::Type {
            name: name.to_owned(),
            found,
            supported: "F32, F16, BF16",
        })
    };
    Ok(RopeTensors {
        frequencies: values("rope_freqs.weight")?,
        short: values("rope_factors_short.weight")?,
        long: values("rope_factors_long.weight")?,
    })
}
