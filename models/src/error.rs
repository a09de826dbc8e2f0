//! Why a model cannot be opened.

use std::ops::Range;
use std::path::{Path, PathBuf};

use palimpsest_kernels::WeightType;

use crate::config::ConfigError;
use crate::gguf::GgufError;
use crate::gguf_config::GgufConfigError;

/// Name of the file that says which safetensors file holds which tensor.
pub(crate) const SAFETENSORS_INDEX: &str = "model.safetensors.index.json";

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
    /// The parts of a model in several GGUF files do not make one.
    #[error("{}: {source}", path.display())]
    Split {
        /// The part in question.
        path: PathBuf,
        /// Reason.
        source: SplitError,
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
    pub(crate) fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io {
            path: path.to_owned(),
            source,
        }
    }

    pub(crate) fn gguf(path: &Path, source: impl Into<GgufConfigError>) -> Self {
        let path = path.to_owned();
        match source.into() {
            GgufConfigError::Metadata(source) => Self::Gguf { path, source },
            GgufConfigError::Config(source) => Self::Config { path, source },
        }
    }
}

/// Why the parts of a model do not make one.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SplitError {
    /// A part whose name does not say where the others are.
    #[error(
        "this is one of the {count} files of a model, and its name is not NAME-{number:05}-of-\
         {count:05}.gguf, by which the others are found: give all of them such names"
    )]
    Name {
        /// Number of the part, from 1.
        number: u64,
        /// How many there are.
        count: u64,
    },
    /// A part that is not there.
    #[error("part {number} of the {count} files of this model is missing: fetch it")]
    Missing {
        /// Number of the part, from 1.
        number: u64,
        /// How many there are.
        count: u64,
    },
    /// A file that says it is another part, or of another model.
    #[error(
        "by its name this is part {number} of {count}, and it says that it is part {found} of {of}: \
         fetch all parts anew"
    )]
    Other {
        /// Number that its name says.
        number: u64,
        /// How many there are.
        count: u64,
        /// Number that it says.
        found: u64,
        /// How many it says there are.
        of: u64,
    },
    /// Parts of different models.
    #[error("the {count} parts hold {found} tensors, and the first one says {expected}")]
    Tensors {
        /// How many parts there are.
        count: u64,
        /// Tensors of all parts.
        found: u64,
        /// Tensors of the model.
        expected: u64,
    },
}

/// Why safetensors files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SafetensorsError {
    /// The header of a file is damaged.
    #[error("damaged or truncated safetensors file: {0}")]
    Header(#[from] safetensors::SafeTensorError),
    /// The index is not what it should be.
    #[error("{SAFETENSORS_INDEX} cannot be read: {0}")]
    Index(serde_json::Error),
    /// An index that points out of its directory.
    #[error("{SAFETENSORS_INDEX} names \"{0}\", which is not a plain file name")]
    Name(String),
    /// The index promises a tensor that its file does not hold.
    #[error("{SAFETENSORS_INDEX} says that \"{tensor}\" is in {file}, but it is not")]
    NotInFile {
        /// Tensor.
        tensor: String,
        /// File of the index.
        file: String,
    },
    /// Two files hold one tensor.
    #[error("tensor \"{0}\" appears twice")]
    Duplicate(String),
}

/// Why the tensors of a model file do not make the model of its configuration.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum WeightsError {
    /// A tensor that must be there.
    #[error("tensor \"{0}\" is missing")]
    Missing(String),
    /// Tensors that the model has no use for: it is not the model that the configuration describes.
    #[error("{count} tensors have no place in this architecture, \"{first}\" is the first")]
    Unexpected {
        /// Name of the first.
        first: String,
        /// How many.
        count: usize,
    },
    /// A shape that contradicts the configuration.
    #[error("tensor \"{name}\" has shape {found:?}, the configuration says {expected:?}")]
    Shape {
        /// Tensor.
        name: String,
        /// Shape stored, outermost first.
        found: Vec<usize>,
        /// Shape needed.
        expected: Vec<usize>,
    },
    /// An element type that the kernels do not read.
    #[error("tensor \"{name}\" has type {found}, which is not supported; supported: {supported}")]
    Type {
        /// Tensor.
        name: String,
        /// Type stored.
        found: String,
        /// Types that would do.
        supported: &'static str,
    },
    /// A layer that the model does not have.
    #[error("layer {layer} was asked for, the model has {layers}")]
    Layer {
        /// Index asked for.
        layer: usize,
        /// Layers of the model.
        layers: usize,
    },
    /// A slice of a matrix that would cut through a group of weights.
    #[error(
        "columns {range:?} of a {dtype:?} matrix with {cols} columns do not begin and end at \
         multiples of 32; use another --tp"
    )]
    Columns {
        /// Columns asked for.
        range: Range<usize>,
        /// Element type.
        dtype: WeightType,
        /// Columns of the matrix.
        cols: usize,
    },
}

/// Why a model's tokenizer cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// A JSON file that is none.
    #[error("not a JSON object: {0}")]
    Json(#[from] serde_json::Error),
    /// The GGUF metadata cannot be read.
    #[error(transparent)]
    Metadata(#[from] GgufError),
    /// A tokenizer model that cannot be rebuilt from a GGUF file.
    #[error(
        "tokenizer.ggml.model is \"{0}\", which is not supported (gpt2 and llama are); use the \
         model's Hugging Face directory"
    )]
    Model(String),
    /// A pre-tokenizer that is not known.
    #[error(
        "tokenizer.ggml.pre is \"{0}\", which is not supported (default, gpt-2, smollm, \
         llama-bpe, qwen2 and their aliases are); use the model's Hugging Face directory"
    )]
    PreTokenizer(String),
    /// Two arrays of different lengths.
    #[error("{what} has {found} entries, the vocabulary has {expected}")]
    Length {
        /// Metadata key.
        what: &'static str,
        /// Entries found.
        found: usize,
        /// Entries of the vocabulary.
        expected: usize,
    },
    /// A token that appears twice.
    #[error("token {0:?} appears twice in the vocabulary")]
    Duplicate(String),
    /// A merge that does not consist of two tokens.
    #[error("merge {0:?} does not join two tokens of the vocabulary into a third")]
    Merge(String),
    /// Pieces that join in too many ways.
    #[error(
        "the merges of the pieces in tokenizer.ggml.tokens would take more than {} MiB; use the \
         model's Hugging Face directory", limit >> 20
    )]
    Merges {
        /// Most that they may take, in bytes.
        limit: usize,
    },
    /// A token id outside the vocabulary.
    #[error("{what} is {id}, the vocabulary has {len} tokens")]
    Id {
        /// Metadata key.
        what: &'static str,
        /// Id found.
        id: u64,
        /// Tokens of the vocabulary.
        len: usize,
    },
}
