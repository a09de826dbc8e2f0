//! Weights by role, read from a GGUF file or safetensors: what the decoder asks for, whatever the
//! file calls it.
//!
//! Everything is checked when the model is opened: all tensors there, none too many, every shape
//! and type as the configuration says. Matrices stay in the memory map until a device packs them.

use std::borrow::Cow;
use std::collections::BTreeSet;

use xxhash_rust::xxh3::Xxh3;

use crate::config::{Architecture, ModelConfig};
pub use crate::error::WeightsError;
use crate::file_digest::DigestCache;
use crate::gguf_types::TensorType;
use crate::part::Part;
use crate::weight_data::{RowOrder, WeightData, pick};
use crate::weights_file::{StoredTensor, TensorTable, floats};

/// Convention of a file's tensor names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Naming {
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

    /// Tensors that some files carry and no forward pass needs: the tied head a second time, rotary
    /// tables.
    fn is_redundant(self, name: &str) -> bool {
        match self {
            Self::Gguf => name == "rope_freqs.weight" || name.ends_with(".rope_freqs.weight"),
            Self::HuggingFace => name == self.head() || name.ends_with(".rotary_emb.inv_freq"),
        }
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
    pub(crate) fn new(
        config: ModelConfig,
        table: TensorTable,
        naming: Naming,
    ) -> Result<Self, WeightsError> {
        let weights = Self {
            config,
            table,
            naming,
        };
        let mut used = BTreeSet::new();
        for (name, shape) in Self::tensors_of(&weights.config, naming) {
            used.insert(weights.check(name, &shape)?);
        }
        let is_unexpected = |name: &&String| !used.contains(*name) && !naming.is_redundant(name);
        let mut unexpected = weights.table.tensors.keys().filter(is_unexpected);
        if let Some(first) = unexpected.next() {
            return Err(WeightsError::Unexpected {
                first: first.clone(),
                count: 1 + unexpected.count(),
            });
        }
        Ok(weights)
    }

    /// Names and shapes of all tensors of the model of `config`.
    pub(crate) fn tensors_of(config: &ModelConfig, naming: Naming) -> Vec<(String, Vec<usize>)> {
        let (hidden, vocabulary) = (config.hidden, config.vocabulary);
        let mut tensors = vec![
            (naming.embedding().to_owned(), vec![vocabulary, hidden]),
            (naming.final_norm().to_owned(), vec![hidden]),
        ];
        if !config.tied_embeddings {
            tensors.push((naming.head().to_owned(), vec![vocabulary, hidden]));
        }
        for layer in 0..config.layers {
            let shapes = config.layer_shapes().into_iter();
            tensors.extend(shapes.map(|(role, shape)| (naming.layer(layer, role), shape)));
        }
        tensors
    }

    fn check(&self, name: String, shape: &[usize]) -> Result<String, WeightsError> {
        let tensor = self.tensor(&name)?;
        if tensor.shape != shape {
            let (found, expected) = (tensor.shape.clone(), shape.to_vec());
            return Err(WeightsError::Shape {
                name,
                found,
                expected,
            });
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

    /// The part's rows of the token embedding `[V, E]`.
    ///
    /// # Errors
    /// None once the model is open; kept for uniformity with [`Weights::layer`].
    pub fn embedding(&self, part: &Part) -> Result<WeightData<'_>, WeightsError> {
        Ok(self
            .matrix(self.naming.embedding())?
            .into_rows(part.vocabulary.clone()))
    }

    /// The part's rows of the output projection `[V, E]`; `None` when it is the embedding.
    ///
    /// # Errors
    /// As [`Weights::embedding`].
    pub fn output(&self, part: &Part) -> Result<Option<WeightData<'_>>, WeightsError> {
        if self.config.tied_embeddings {
            return Ok(None);
        }
        Ok(Some(
            self.matrix(self.naming.head())?
                .into_rows(part.vocabulary.clone()),
        ))
    }

    /// RMS norm before the output projection `[E]`.
    ///
    /// # Errors
    /// As [`Weights::embedding`].
    pub fn final_norm(&self) -> Result<Vec<f32>, WeightsError> {
        self.vector(self.naming.final_norm())
    }

    /// The part's weights of layer `index`. Only its own rows and columns are read from the file.
    ///
    /// # Errors
    /// [`WeightsError::Layer`] when there is no such layer, [`WeightsError::Columns`] when the
    /// part would cut through a group of 32 quantised weights.
    pub fn layer(&self, index: usize, part: &Part) -> Result<LayerWeights<'_>, WeightsError> {
        let config = &self.config;
        if index >= config.layers {
            return Err(WeightsError::Layer {
                layer: index,
                layers: config.layers,
            });
        }
        let order = if self.naming == Naming::Gguf && config.architecture == Architecture::Llama {
            RowOrder::Interleaved {
                head_dim: config.head_dim,
            }
        } else {
            RowOrder::Halves
        };
        let name = |role| self.naming.layer(index, role);
        let matrix = |role| self.matrix(&name(role));
        let vector = |role| self.vector(&name(role));
        let rotary = |role, rows| Ok(matrix(role)?.into_rows_in(order, rows));
        let optional = |wanted: bool, role| wanted.then(|| vector(role)).transpose();
        let bias = |role, order, rows| {
            Ok(optional(config.qkv_bias, role)?.map(|all| pick(&all, order, rows)))
        };
        let (queries, keys, ffn) = (part.query_rows(), part.key_rows(), part.ffn.clone());
        Ok(LayerWeights {
            attn_norm: vector(Role::AttnNorm)?,
            q: rotary(Role::Query, queries.clone())?,
            k: rotary(Role::Key, keys.clone())?,
            v: matrix(Role::Value)?.into_rows(keys.clone()),
            q_bias: bias(Role::QueryBias, order, queries)?,
            k_bias: bias(Role::KeyBias, order, keys.clone())?,
            v_bias: bias(Role::ValueBias, RowOrder::Halves, keys)?,
            q_norm: optional(config.qk_norm, Role::QueryNorm)?,
            k_norm: optional(config.qk_norm, Role::KeyNorm)?,
            o: matrix(Role::Output)?.into_columns(part.query_rows())?,
            ffn_norm: vector(Role::FfnNorm)?,
            gate: matrix(Role::Gate)?.into_rows(ffn.clone()),
            up: matrix(Role::Up)?.into_rows(ffn.clone()),
            down: matrix(Role::Down)?.into_columns(ffn)?,
        })
    }

    /// Bytes of all tensors of the model in its files.
    pub fn stored_bytes(&self) -> usize {
        self.table
            .tensors
            .values()
            .map(|tensor| tensor.range.len())
            .sum()
    }

    /// Digest of what the model is: its configuration but for its name, every byte of its files,
    /// and names, shapes and types of all tensors. Files are hashed once, and again when they
    /// change: see [`DigestCache`]. Weights that are made here are told by the beginnings of their
    /// tensors.
    pub fn digest(&self, cache: &DigestCache) -> u128 {
        const BEGINNING: usize = 4096;
        let mut hash = Xxh3::new();
        let nameless = ModelConfig {
            name: String::new(),
            ..self.config.clone()
        };
        hash.update(format!("{nameless:?}").as_bytes());
        for file in self
            .table
            .files
            .iter()
            .filter_map(|file| file.digest(cache))
        {
            hash.update(&file.to_le_bytes());
        }
        for (name, tensor) in &self.table.tensors {
            let bytes = self.table.bytes(tensor);
            hash.update(
                format!(
                    "{name} {:?} {:?} {}",
                    tensor.shape,
                    tensor.dtype,
                    bytes.len()
                )
                .as_bytes(),
            );
            hash.update(&bytes[..bytes.len().min(BEGINNING)]);
        }
        hash.digest128()
    }

    /// All bytes of the model's first file.
    pub(crate) fn first_file(&self) -> &[u8] {
        self.table.files.first().map_or(&[], |file| file)
    }

    fn tensor(&self, name: &str) -> Result<&StoredTensor, WeightsError> {
        self.table
            .tensors
            .get(name)
            .ok_or_else(|| WeightsError::Missing(name.to_owned()))
    }

    fn matrix(&self, name: &str) -> Result<WeightData<'_>, WeightsError> {
        let tensor = self.tensor(name)?;
        let error = || WeightsError::Type {
            name: name.to_owned(),
            found: tensor.type_name.clone(),
            supported: TensorType::SUPPORTED,
        };
        let dtype = tensor.dtype.ok_or_else(error)?;
        let [rows, cols] = tensor.shape[..] else {
            let (found, expected) = (tensor.shape.clone(), vec![0, 0]);
            return Err(WeightsError::Shape {
                name: name.to_owned(),
                found,
                expected,
            });
        };
        Ok(WeightData {
            dtype,
            rows,
            cols,
            skip: 0,
            bytes: Cow::Borrowed(self.table.bytes(tensor)),
        })
    }

    fn vector(&self, name: &str) -> Result<Vec<f32>, WeightsError> {
        let tensor = self.tensor(name)?;
        let values = tensor
            .dtype
            .and_then(|dtype| floats(dtype, self.table.bytes(tensor)));
        let found = || tensor.type_name.clone();
        values.ok_or_else(|| WeightsError::Type {
            name: name.to_owned(),
            found: found(),
            supported: "F32, F16, BF16",
        })
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
            shapes.extend([
                (Role::QueryNorm, vec![head_dim]),
                (Role::KeyNorm, vec![head_dim]),
            ]);
        }
        shapes
    }
}

#[cfg(test)]
mod tests;
