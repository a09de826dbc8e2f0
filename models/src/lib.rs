//! Model files: where they come from and what they hold, checked.
//!
//! `fetch` brings a file. `weights` (by role) ▸ `gguf` · `safetensors` (tensor tables over memory
//! maps) ▸ `config` · `tokenizer` read it. Nothing in a file is trusted: every size is checked
//! against the bytes that are there before it is used.
#![deny(unsafe_code)]

pub mod config;
mod config_json;
pub mod fetch;
pub mod gguf;
mod gguf_config;
mod gguf_types;
pub mod part;
pub mod random;
pub mod safetensors;
pub mod tokenizer;
mod tokenizer_gguf;
pub mod weight_data;
pub mod weights;
mod weights_file;
mod weights_inspect;

use std::path::{Path, PathBuf};

use config::{ConfigError, ModelConfig};
use gguf::{Gguf, GgufError};
use gguf_config::GgufConfigError;
pub use gguf_types::TensorType;
use safetensors::SafetensorsError;
use tokenizer::{TokenizerError, TokenizerFiles};
use weights::{Naming, Weights, WeightsError};
use weights_file::{FileMap, StoredTensor, TensorTable, floats};
pub use weights_inspect::{Description, TensorDescription, inspect};

/// Result of reading a model.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a model cannot be opened. The message names the file and what is wrong with it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system refused.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// File.
        path: PathBuf,
        /// Reason.
        source: std::io::Error,
    },
    /// Neither form of a model.
    #[error("{} is not a model: give a .gguf file or a directory with config.json", path.display())]
    NotAModel {
        /// What was given.
        path: PathBuf,
    },
    /// A file that a model directory must have.
    #[error("{} has no {what}", dir.display())]
    MissingFile {
        /// Directory.
        dir: PathBuf,
        /// What is missing.
        what: &'static str,
    },
    /// The GGUF header is damaged.
    #[error("{}: {source}", path.display())]
    Gguf {
        /// File.
        path: PathBuf,
        /// Reason.
        source: GgufError,
    },
    /// A safetensors file or index is damaged.
    #[error("{}: {source}", path.display())]
    Safetensors {
        /// File.
        path: PathBuf,
        /// Reason.
        source: SafetensorsError,
    },
    /// The configuration is not one that can run.
    #[error("{}: {source}", path.display())]
    Config {
        /// File.
        path: PathBuf,
        /// Reason.
        source: ConfigError,
    },
    /// The tensors do not make the model of the configuration.
    #[error("{}: {source}", path.display())]
    Weights {
        /// File or directory.
        path: PathBuf,
        /// Reason.
        source: WeightsError,
    },
    /// A random model of a shape that is not known.
    #[error("no shape named `{name}`: give one of {known}, or a directory with a config.json")]
    Shape {
        /// Shape asked for.
        name: String,
        /// Names of the known shapes, comma-separated.
        known: String,
    },
    /// A random model whose vocabulary does not hold the bytes.
    #[error(
        "the shape `{name}` has a vocabulary of {vocabulary}; a random model needs {least}, one \
         for each byte"
    )]
    SmallVocabulary {
        /// Shape.
        name: String,
        /// Tokens of its vocabulary.
        vocabulary: usize,
        /// Tokens needed.
        least: usize,
    },
    /// The tokenizer cannot be used.
    #[error("{}: {source}", path.display())]
    Tokenizer {
        /// File.
        path: PathBuf,
        /// Reason.
        source: TokenizerError,
    },
}

impl Error {
    fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io {
            path: path.to_owned(),
            source,
        }
    }

    fn gguf(path: &Path, source: impl Into<GgufConfigError>) -> Self {
        let path = path.to_owned();
        match source.into() {
            GgufConfigError::Metadata(source) => Self::Gguf { path, source },
            GgufConfigError::Config(source) => Self::Config { path, source },
        }
    }
}

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
    /// Opens a `.gguf` file or a Hugging Face directory (`config.json`, safetensors,
    /// `tokenizer.json`), or makes the model that a path `random:SHAPE` names ([`random`]).
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
        let table = random::table(Weights::tensors_of(&config, Naming::HuggingFace));
        Self::new(path, None, config, table)
    }

    fn open_gguf(path: &Path) -> Result<Self> {
        let (map, gguf) = map_gguf(path)?;
        let name = path
            .file_stem()
            .map(|stem| stem.to_string_lossy().into_owned())
            .unwrap_or_default();
        let mut table = TensorTable::default();
        for tensor in &gguf.tensors {
            let stored = StoredTensor {
                dtype: tensor
                    .range
                    .as_ref()
                    .and_then(|_| tensor.dtype.weight_type()),
                type_name: tensor.dtype.to_string(),
                shape: tensor.shape.clone(),
                file: 0,
                range: tensor.range.clone().unwrap_or(0..0),
            };
            table.tensors.insert(tensor.name.clone(), stored);
        }
        let factors = rope_factors(&table, &map);
        let factors = factors.map_err(|source| Error::Weights {
            path: path.to_owned(),
            source,
        })?;
        let config = ModelConfig::from_gguf(&gguf, factors, &name)
            .map_err(|source| Error::gguf(path, source))?;
        table.files.push(map);
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
            None if random::shape(&self.path).is_some() => Ok(random::tokenizer()),
            None => TokenizerFiles::from_directory(&self.path, eos_ids),
            Some(gguf) => TokenizerFiles::from_gguf(gguf, self.weights.first_file(), eos_ids)
                .map_err(|source| Error::Tokenizer {
                    path: self.path.clone(),
                    source,
                }),
        }
    }
}

/// Content of `rope_freqs.weight`, the frequency divisors of Llama 3.1 and later.
fn rope_factors(
    table: &TensorTable,
    file: &[u8],
) -> std::result::Result<Option<Vec<f32>>, WeightsError> {
    let name = "rope_freqs.weight";
    let Some(tensor) = table.tensors.get(name) else {
        return Ok(None);
    };
    let values = tensor
        .dtype
        .and_then(|dtype| floats(dtype, &file[tensor.range.clone()]));
    let found = tensor.type_name.clone();
    values.map(Some).ok_or(WeightsError::Type {
        name: name.to_owned(),
        found,
        supported: "F32, F16, BF16",
    })
}

/// Maps and parses a GGUF file.
fn map_gguf(path: &Path) -> Result<(FileMap, Gguf)> {
    let map = FileMap::open(path).map_err(|source| Error::io(path, source))?;
    match Gguf::parse(&map) {
        Ok(gguf) => Ok((map, gguf)),
        Err(GgufError::Magic(_))
            if path.extension().is_none_or(|extension| extension != "gguf") =>
        {
            Err(Error::NotAModel {
                path: path.to_owned(),
            })
        }
        Err(source) => Err(Error::gguf(path, source)),
    }
}
