//! Weights by role, read from a GGUF file or safetensors: what the decoder asks for, whatever the file calls it.
//!
//! Everything is checked when the model is opened: all tensors there, none too many, every shape and type as the
//! configuration says. Matrices stay in the memory map until a device packs them.

use super::config::{Architecture, ModelConfig};
use super::weights_file::{StoredTensor, TensorTable, floats};
use palimpsest_kernels::{WeightType, WeightView};
use std::borrow::Cow;
use std::collections::BTreeSet;
use std::ops::Range;

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
    /// A slice of a matrix that would cut through a block.
    #[error("columns {range:?} of a {dtype:?} matrix with {cols} columns do not fall on blocks")]
    Columns {
        /// Columns asked for.
        range: Range<usize>,
        /// Element type.
        dtype: WeightType,
        /// Columns of the matrix.
        cols: usize,
    },
}

/// Convention of a file's tensor names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Naming {
    Gguf,
    HuggingFace,
}

/// Roles of the tensors of a decoder layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    AttnNorm,
    Query,
    Key,
    Value,
    QueryBias,
    KeyBias,
    ValueBias,
    QueryNorm,
    KeyNorm,
    Output,
    FfnNorm,
    Gate,
    Up,
    Down,
}

impl Naming {
    fn layer(self, layer: usize, role: Role) -> String {
        let (gguf, hugging_face) = match role {
            Role::AttnNorm => ("attn_norm.weight", "input_layernorm.weight"),
            Role::Query => ("attn_q.weight", "self_attn.q_proj.weight"),
            Role::Key => ("attn_k.weight", "self_attn.k_proj.weight"),
            Role::Value => ("attn_v.weight", "self_attn.v_proj.weight"),
            Role::QueryBias => ("attn_q.bias", "self_attn.q_proj.bias"),
            Role::KeyBias => ("attn_k.bias", "self_attn.k_proj.bias"),
            Role::ValueBias => ("attn_v.bias", "self_attn.v_proj.bias"),
            Role::QueryNorm => ("attn_q_norm.weight", "self_attn.q_norm.weight"),
            Role::KeyNorm => ("attn_k_norm.weight", "self_attn.k_norm.weight"),
            Role::Output => ("attn_output.weight", "self_attn.o_proj.weight"),
            Role::FfnNorm => ("ffn_norm.weight", "post_attention_layernorm.weight"),
            Role::Gate => ("ffn_gate.weight", "mlp.gate_proj.weight"),
            Role::Up => ("ffn_up.weight", "mlp.up_proj.weight"),
            Role::Down => ("ffn_down.weight", "mlp.down_proj.weight"),
        };
        match self {
            Self::Gguf => format!("blk.{layer}.{gguf}"),
            Self::HuggingFace => format!("model.layers.{layer}.{hugging_face}"),
        }
    }

    const fn embedding(self) -> &'static str {
        match self {
            Self::Gguf => "token_embd.weight",
            Self::HuggingFace => "model.embed_tokens.weight",
        }
    }

    const fn final_norm(self) -> &'static str {
        match self {
            Self::Gguf => "output_norm.weight",
            Self::HuggingFace => "model.norm.weight",
        }
    }

    const fn head(self) -> &'static str {
        match self {
            Self::Gguf => "output.weight",
            Self::HuggingFace => "lm_head.weight",
        }
    }

    /// Tensors that some files carry and no forward pass needs: the tied head a second time, rotary tables.
    fn is_redundant(self, name: &str) -> bool {
        match self {
            Self::Gguf => name == "rope_freqs.weight" || name.ends_with(".rope_freqs.weight"),
            Self::HuggingFace => name == self.head() || name.ends_with(".rotary_emb.inv_freq"),
        }
    }
}

/// A matrix of a model file, `rows` outputs by `cols` inputs, row-major.
#[derive(Debug, Clone, PartialEq)]
pub struct WeightData<'a> {
    /// Stored element type.
    pub dtype: WeightType,
    /// Output features.
    pub rows: usize,
    /// Input features.
    pub cols: usize,
    /// `dtype.bytes(rows * cols)` bytes: the file's, or a reordered copy.
    pub bytes: Cow<'a, [u8]>,
}

impl WeightData<'_> {
    /// The matrix as [`palimpsest_kernels::Backend::load_matrix`] takes it.
    pub fn view(&self) -> WeightView<'_> {
        WeightView { dtype: self.dtype, rows: self.rows, cols: self.cols, bytes: &self.bytes }
    }

    /// Some outputs of the matrix: a shard of a column-parallel layer.
    ///
    /// # Panics
    /// When `range` goes beyond `rows`.
    pub fn rows(&self, range: Range<usize>) -> WeightView<'_> {
        let width = self.row_bytes();
        let bytes = &self.bytes[range.start * width..range.end * width];
        WeightView { dtype: self.dtype, rows: range.len(), cols: self.cols, bytes }
    }

    /// Some inputs of the matrix, copied: a shard of a row-parallel layer.
    ///
    /// # Errors
    /// [`WeightsError::Columns`] when the range leaves the matrix or cuts through a block.
    pub fn columns(&self, range: Range<usize>) -> Result<WeightData<'static>, WeightsError> {
        let error = || WeightsError::Columns { range: range.clone(), dtype: self.dtype, cols: self.cols };
        if range.start > range.end || range.end > self.cols {
            return Err(error());
        }
        let start = self.dtype.bytes(range.start).ok_or_else(error)?;
        let end = self.dtype.bytes(range.end).ok_or_else(error)?;
        let bytes = self.bytes.chunks_exact(self.row_bytes()).flat_map(|row| &row[start..end]).copied().collect();
        Ok(WeightData { dtype: self.dtype, rows: self.rows, cols: range.len(), bytes: Cow::Owned(bytes) })
    }

    fn row_bytes(&self) -> usize {
        self.bytes.len() / self.rows
    }
}

/// Weights of one decoder layer. Norms and biases are f32 whatever the file holds.
#[derive(Debug, Clone)]
pub struct LayerWeights<'a> {
    /// RMS norm before attention `[E]`.
    pub attn_norm: Vec<f32>,
    /// Query projection `[H*D, E]`, rows in the order of GPT-NeoX rotary halves.
    pub q: WeightData<'a>,
    /// Key projection `[K*D, E]`, likewise.
    pub k: WeightData<'a>,
    /// Value projection `[K*D, E]`.
    pub v: WeightData<'a>,
    /// Query bias `[H*D]`.
    pub q_bias: Option<Vec<f32>>,
    /// Key bias `[K*D]`.
    pub k_bias: Option<Vec<f32>>,
    /// Value bias `[K*D]`.
    pub v_bias: Option<Vec<f32>>,
    /// RMS norm of query heads `[D]`.
    pub q_norm: Option<Vec<f32>>,
    /// RMS norm of key heads `[D]`.
    pub k_norm: Option<Vec<f32>>,
    /// Output projection `[E, H*D]`.
    pub o: WeightData<'a>,
    /// RMS norm before the feed-forward part `[E]`.
    pub ffn_norm: Vec<f32>,
    /// Gate projection `[F, E]`.
    pub gate: WeightData<'a>,
    /// Up projection `[F, E]`.
    pub up: WeightData<'a>,
    /// Down projection `[E, F]`.
    pub down: WeightData<'a>,
}

/// Weights of a model, in its files.
#[derive(Debug)]
pub struct Weights {
    config: ModelConfig,
    table: TensorTable,
    naming: Naming,
}

impl Weights {
    /// Checks that the table holds the model of `config`, the whole of it and nothing else.
    pub(super) fn new(config: ModelConfig, table: TensorTable, naming: Naming) -> Result<Self, WeightsError> {
        let weights = Self { config, table, naming };
        let mut used = BTreeSet::new();
        let (hidden, vocabulary) = (weights.config.hidden, weights.config.vocabulary);
        used.insert(weights.check(naming.embedding().to_owned(), &[vocabulary, hidden])?);
        used.insert(weights.check(naming.final_norm().to_owned(), &[hidden])?);
        if !weights.config.tied_embeddings {
            used.insert(weights.check(naming.head().to_owned(), &[vocabulary, hidden])?);
        }
        for layer in 0..weights.config.layers {
            for (role, shape) in weights.config.layer_shapes() {
                used.insert(weights.check(naming.layer(layer, role), &shape)?);
            }
        }
        let is_unexpected = |name: &&String| !used.contains(*name) && !naming.is_redundant(name);
        let mut unexpected = weights.table.tensors.keys().filter(is_unexpected);
        if let Some(first) = unexpected.next() {
            return Err(WeightsError::Unexpected { first: first.clone(), count: 1 + unexpected.count() });
        }
        Ok(weights)
    }

    fn check(&self, name: String, shape: &[usize]) -> Result<String, WeightsError> {
        let tensor = self.tensor(&name)?;
        if tensor.shape != shape {
            let (found, expected) = (tensor.shape.clone(), shape.to_vec());
            return Err(WeightsError::Shape { name, found, expected });
        }
        match shape {
            [_] => self.vector(&name).map(|_| name),
            _ => self.matrix(&name).map(|_| name),
        }
    }

    /// The model's configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Token embedding `[V, E]`.
    ///
    /// # Errors
    /// None once the model is open; kept for uniformity with [`Weights::layer`].
    pub fn embedding(&self) -> Result<WeightData<'_>, WeightsError> {
        self.matrix(self.naming.embedding())
    }

    /// Output projection `[V, E]`; `None` when it is the embedding.
    ///
    /// # Errors
    /// As [`Weights::embedding`].
    pub fn output(&self) -> Result<Option<WeightData<'_>>, WeightsError> {
        if self.config.tied_embeddings { Ok(None) } else { self.matrix(self.naming.head()).map(Some) }
    }

    /// RMS norm before the output projection `[E]`.
    ///
    /// # Errors
    /// As [`Weights::embedding`].
    pub fn final_norm(&self) -> Result<Vec<f32>, WeightsError> {
        self.vector(self.naming.final_norm())
    }

    /// Weights of layer `index`.
    ///
    /// # Errors
    /// [`WeightsError::Layer`] when there is no such layer.
    pub fn layer(&self, index: usize) -> Result<LayerWeights<'_>, WeightsError> {
        let config = &self.config;
        if index >= config.layers {
            return Err(WeightsError::Layer { layer: index, layers: config.layers });
        }
        let name = |role| self.naming.layer(index, role);
        let matrix = |role| self.matrix(&name(role));
        let vector = |role| self.vector(&name(role));
        let optional = |wanted: bool, role| wanted.then(|| vector(role)).transpose();
        let mut layer = LayerWeights {
            attn_norm: vector(Role::AttnNorm)?,
            q: matrix(Role::Query)?,
            k: matrix(Role::Key)?,
            v: matrix(Role::Value)?,
            q_bias: optional(config.qkv_bias, Role::QueryBias)?,
            k_bias: optional(config.qkv_bias, Role::KeyBias)?,
            v_bias: optional(config.qkv_bias, Role::ValueBias)?,
            q_norm: optional(config.qk_norm, Role::QueryNorm)?,
            k_norm: optional(config.qk_norm, Role::KeyNorm)?,
            o: matrix(Role::Output)?,
            ffn_norm: vector(Role::FfnNorm)?,
            gate: matrix(Role::Gate)?,
            up: matrix(Role::Up)?,
            down: matrix(Role::Down)?,
        };
        if self.naming == Naming::Gguf && config.architecture == Architecture::Llama {
            halve(&mut layer, config.head_dim);
        }
        Ok(layer)
    }

    /// Bytes of all tensors of the model in its files.
    pub fn stored_bytes(&self) -> usize {
        self.table.tensors.values().map(|tensor| tensor.range.len()).sum()
    }

    /// All bytes of the model's first file.
    pub(super) fn first_file(&self) -> &[u8] {
        self.table.files.first().map_or(&[], |file| file)
    }

    fn tensor(&self, name: &str) -> Result<&StoredTensor, WeightsError> {
        self.table.tensors.get(name).ok_or_else(|| WeightsError::Missing(name.to_owned()))
    }

    fn matrix(&self, name: &str) -> Result<WeightData<'_>, WeightsError> {
        let tensor = self.tensor(name)?;
        let supported = "F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q4_K, Q6_K";
        let found = || tensor.type_name.clone();
        let error = || WeightsError::Type { name: name.to_owned(), found: found(), supported };
        let dtype = tensor.dtype.ok_or_else(error)?;
        let [rows, cols] = tensor.shape[..] else {
            let (found, expected) = (tensor.shape.clone(), vec![0, 0]);
            return Err(WeightsError::Shape { name: name.to_owned(), found, expected });
        };
        Ok(WeightData { dtype, rows, cols, bytes: Cow::Borrowed(self.table.bytes(tensor)) })
    }

    fn vector(&self, name: &str) -> Result<Vec<f32>, WeightsError> {
        let tensor = self.tensor(name)?;
        let values = tensor.dtype.and_then(|dtype| floats(dtype, self.table.bytes(tensor)));
        let found = || tensor.type_name.clone();
        values.ok_or_else(|| WeightsError::Type { name: name.to_owned(), found: found(), supported: "F32, F16, BF16" })
    }
}

impl ModelConfig {
    /// Tensors of one layer and their shapes.
    fn layer_shapes(&self) -> Vec<(Role, Vec<usize>)> {
        let (hidden, ffn, head_dim) = (self.hidden, self.ffn, self.head_dim);
        let (queries, keys) = (self.heads * head_dim, self.kv_heads * head_dim);
        let mut shapes = vec![
            (Role::AttnNorm, vec![hidden]),
            (Role::Query, vec![queries, hidden]),
            (Role::Key, vec![keys, hidden]),
            (Role::Value, vec![keys, hidden]),
            (Role::Output, vec![hidden, queries]),
            (Role::FfnNorm, vec![hidden]),
            (Role::Gate, vec![ffn, hidden]),
            (Role::Up, vec![ffn, hidden]),
            (Role::Down, vec![hidden, ffn]),
        ];
        if self.qkv_bias {
            shapes.extend([
                (Role::QueryBias, vec![queries]),
                (Role::KeyBias, vec![keys]),
                (Role::ValueBias, vec![keys]),
            ]);
        }
        if self.qk_norm {
            shapes.extend([(Role::QueryNorm, vec![head_dim]), (Role::KeyNorm, vec![head_dim])]);
        }
        shapes
    }
}

/// Undoes the row order of llama.cpp's converter (`LlamaModel.permute`), which interleaves the two rotary halves of
/// each query and key head. Whole rows move, so quantised blocks stay as they are.
fn halve(layer: &mut LayerWeights<'_>, head_dim: usize) {
    for matrix in [&mut layer.q, &mut layer.k] {
        let width = matrix.row_bytes();
        let mut bytes = Vec::with_capacity(matrix.bytes.len());
        for row in 0..matrix.rows {
            let stored = interleaved(row, head_dim);
            bytes.extend_from_slice(&matrix.bytes[stored * width..(stored + 1) * width]);
        }
        matrix.bytes = Cow::Owned(bytes);
    }
    for bias in [&mut layer.q_bias, &mut layer.k_bias].into_iter().flatten() {
        *bias = (0..bias.len()).map(|row| bias[interleaved(row, head_dim)]).collect();
    }
}

/// Where the converter put `row`: value `half * D/2 + i` of a head went to `2 * i + half`.
const fn interleaved(row: usize, head_dim: usize) -> usize {
    let (head, value) = (row / head_dim, row % head_dim);
    let (half, i) = (value / (head_dim / 2), value % (head_dim / 2));
    head * head_dim + 2 * i + half
}
