//! Weights by role, read from a GGUF file or safetensors: what the decoder asks for, whatever the
//! file calls it.
//!
//! Everything is checked when the model is opened: all tensors there, none too many, every shape
//! and type as the configuration says. Matrices stay in the memory map until a device packs them.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::ops::Range;

use xxhash_rust::xxh3::Xxh3;

use crate::config::{Experts, ModelConfig};
pub use crate::error::WeightsError;
use crate::file_digest::DigestCache;
use crate::gguf_types::TensorType;
use crate::part::Part;
pub(crate) use crate::tensor_names::Naming;
use crate::tensor_names::{NamedShape, Names, Role};
use crate::weight_data::{RowOrder, WeightData, pick};
use crate::weights_file::{StoredTensor, TensorTable, floats};
use crate::weights_id::WeightsId;

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
    /// Output bias `[E]`.
    pub o_bias: Option<Vec<f32>>,
    /// Logits of attention sinks `[H]`.
    pub sinks: Option<Vec<f32>>,
    /// RMS norm of what attention adds `[E]`.
    pub post_attn_norm: Option<Vec<f32>>,
    /// RMS norm before the feed-forward part `[E]`.
    pub ffn_norm: Vec<f32>,
    /// The feed-forward part.
    pub feed_forward: FeedForwardWeights<'a>,
    /// RMS norm of what the feed-forward part adds `[E]`.
    pub post_ffn_norm: Option<Vec<f32>>,
}

/// Weights of a feed-forward part.
#[derive(Debug, Clone)]
pub enum FeedForwardWeights<'a> {
    /// One for all tokens.
    Dense(GatedWeights<'a>),
    /// Experts, of which a token goes to some.
    Routed {
        /// Their logits `[X, E]`.
        router: WeightData<'a>,
        /// Biases of these `[X]`.
        router_bias: Option<Vec<f32>>,
        /// `X` of them.
        experts: Vec<GatedWeights<'a>>,
        /// How tokens are dealt to them.
        shape: Experts,
    },
}

/// Projections of a gated feed-forward network.
#[derive(Debug, Clone)]
pub struct GatedWeights<'a> {
    /// Gate projection `[F, E]`.
    pub gate: WeightData<'a>,
    /// Up projection `[F, E]`.
    pub up: WeightData<'a>,
    /// Down projection `[E, F]`.
    pub down: WeightData<'a>,
    /// Their biases.
    pub biases: Option<GatedBiases>,
}

/// Biases of a gated feed-forward network.
#[derive(Debug, Clone, PartialEq)]
pub struct GatedBiases {
    /// Of the gate projection `[F]`.
    pub gate: Vec<f32>,
    /// Of the up projection `[F]`.
    pub up: Vec<f32>,
    /// Of the down projection `[E]`.
    pub down: Vec<f32>,
}

/// Weights of a model, in its files.
#[derive(Debug)]
pub struct Weights {
    config: ModelConfig,
    table: TensorTable,
    names: Names,
}

impl Weights {
    /// Checks that the table holds the model of `config`, the whole of it and nothing else.
    pub(crate) fn new(
        config: ModelConfig,
        table: TensorTable,
        naming: Naming,
    ) -> Result<Self, WeightsError> {
        let names = Names {
            naming,
            architecture: config.architecture,
        };
        let weights = Self {
            config,
            table,
            names,
        };
        let mut used = BTreeSet::new();
        for NamedShape { name, shape } in weights.config.tensors(naming) {
            used.insert(weights.check(name, &shape)?);
        }
        let is_unexpected = |name: &&String| !used.contains(*name) && !names.is_redundant(name);
        let mut unexpected = weights.table.tensors.keys().filter(is_unexpected);
        if let Some(first) = unexpected.next() {
            return Err(WeightsError::Unexpected {
                first: first.clone(),
                count: 1 + unexpected.count(),
            });
        }
        Ok(weights)
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
            .matrix(self.names.embedding())?
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
            self.matrix(self.names.head())?
                .into_rows(part.vocabulary.clone()),
        ))
    }

    /// RMS norm before the output projection `[E]`.
    ///
    /// # Errors
    /// As [`Weights::embedding`].
    pub fn final_norm(&self) -> Result<Vec<f32>, WeightsError> {
        self.norm(self.names.final_norm())
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
        let name = |role| self.names.layer(index, role);
        let optional = |wanted: bool, role| {
            let norm = || self.norm(&name(role));
            wanted.then(norm).transpose()
        };
        let optional_vector = |wanted: bool, role| {
            let vector = || self.vector(&name(role));
            wanted.then(vector).transpose()
        };
        let (order, own) = (self.row_order(), &config.differences);
        let projections = self.projections(index, part)?;
        let of_head = |norm: Vec<f32>| pick(&norm, order, 0..config.head_dim);
        let q_norm = optional(own.qk_norm, Role::QueryNorm)?.map(of_head);
        let k_norm = optional(own.qk_norm, Role::KeyNorm)?.map(of_head);
        let bias = |role, order, rows| {
            let all = optional_vector(own.qkv_bias, role)?;
            Ok::<_, WeightsError>(all.map(|all| pick(&all, order, rows)))
        };
        let (queries, keys) = (part.query_rows(), part.key_rows());
        Ok(LayerWeights {
            attn_norm: self.norm(&name(Role::AttnNorm))?,
            q: projections.q,
            k: projections.k,
            v: projections.v,
            q_bias: bias(Role::QueryBias, order, queries)?,
            k_bias: bias(Role::KeyBias, order, keys.clone())?,
            v_bias: bias(Role::ValueBias, RowOrder::Halves, keys)?,
            q_norm: q_norm.map(|norm| self.scaled_for_queries(norm)),
            k_norm,
            o: self
                .matrix(&name(Role::Output))?
                .into_columns(part.query_rows())?,
            o_bias: optional_vector(own.all_biases, Role::OutputBias)?,
            sinks: optional_vector(own.sinks, Role::Sinks)?
                .map(|all| all[part.query_heads.clone()].to_vec()),
            post_attn_norm: optional(own.post_norms, Role::PostAttnNorm)?,
            ffn_norm: self.norm(&name(Role::FfnNorm))?,
            feed_forward: self.feed_forward(index, part)?,
            post_ffn_norm: optional(own.post_norms, Role::PostFfnNorm)?,
        })
    }

    /// Where the file has the rows of queries and keys.
    fn row_order(&self) -> RowOrder {
        let (head_dim, rotary_dim) = (self.config.head_dim, self.config.rope.rotary_dim);
        if self.names.naming == Naming::Gguf && self.config.architecture.interleaves() {
            RowOrder::Interleaved { head_dim }
        } else if rotary_dim < head_dim {
            RowOrder::Partial {
                head_dim,
                rotary_dim,
            }
        } else {
            RowOrder::Halves
        }
    }

    /// The part's query, key and value projections.
    fn projections(&self, index: usize, part: &Part) -> Result<Projections<'_>, WeightsError> {
        let (config, order) = (&self.config, self.row_order());
        let (queries, keys) = (part.query_rows(), part.key_rows());
        let matrix = |role| self.matrix(&self.names.layer(index, role));
        let [q, k, v] = if config.is_fused() {
            let all = matrix(Role::QueryKeyValue)?;
            let (width, key_width) = (
                config.heads * config.head_dim,
                config.kv_heads * config.head_dim,
            );
            let end = width + key_width;
            [
                all.clone().into_rows(0..width),
                all.clone().into_rows(width..end),
                all.into_rows(end..end + key_width),
            ]
        } else {
            [
                matrix(Role::Query)?,
                matrix(Role::Key)?,
                matrix(Role::Value)?,
            ]
        };
        Ok(Projections {
            q: q.into_rows_in(order, queries),
            k: k.into_rows_in(order, keys.clone()),
            v: v.into_rows(keys),
        })
    }

    /// The part's feed-forward weights of layer `index`.
    fn feed_forward(
        &self,
        index: usize,
        part: &Part,
    ) -> Result<FeedForwardWeights<'_>, WeightsError> {
        let matrix = |role| self.matrix(&self.names.layer(index, role));
        let columns = part.ffn.clone();
        if let Some(shape) = self.config.differences.experts {
            let all = (0..shape.count).map(|expert| self.expert(index, expert, part));
            return Ok(FeedForwardWeights::Routed {
                router: matrix(Role::Router)?,
                router_bias: match self.config.differences.all_biases {
                    true => Some(self.vector(&self.names.layer(index, Role::RouterBias))?),
                    false => None,
                },
                experts: all.collect::<Result<_, _>>()?,
                shape,
            });
        }
        let (gate, up) = if self.config.is_fused() {
            let (all, ffn) = (matrix(Role::GateUp)?, self.config.ffn);
            (all.clone().into_rows(0..ffn), all.into_rows(ffn..2 * ffn))
        } else {
            (matrix(Role::Gate)?, matrix(Role::Up)?)
        };
        Ok(FeedForwardWeights::Dense(GatedWeights {
            gate: gate.into_rows(columns.clone()),
            up: up.into_rows(columns.clone()),
            down: matrix(Role::Down)?.into_columns(columns)?,
            biases: None,
        }))
    }

    /// The part's weights of one expert. A GGUF file has all experts in one tensor, one under the
    /// other.
    fn expert(
        &self,
        index: usize,
        expert: usize,
        part: &Part,
    ) -> Result<GatedWeights<'_>, WeightsError> {
        let (hidden, ffn) = (self.config.hidden, self.config.ffn);
        let matrix = |role, rows: usize| match self.names.naming {
            Naming::Gguf => Ok(self
                .matrix(&self.names.layer(index, role))?
                .into_rows(expert * rows..(expert + 1) * rows)),
            Naming::HuggingFace => self.matrix(&self.names.expert(index, expert, role)),
        };
        let columns = part.ffn.clone();
        Ok(GatedWeights {
            gate: matrix(Role::Gates, ffn)?.into_rows(columns.clone()),
            up: matrix(Role::Ups, ffn)?.into_rows(columns.clone()),
            down: matrix(Role::Downs, hidden)?.into_columns(columns)?,
            biases: self.expert_biases(index, expert, part)?,
        })
    }

    /// The part's biases of one expert, where experts have any.
    fn expert_biases(
        &self,
        index: usize,
        expert: usize,
        part: &Part,
    ) -> Result<Option<GatedBiases>, WeightsError> {
        if !self.config.differences.all_biases {
            return Ok(None);
        }
        let (hidden, ffn) = (self.config.hidden, self.config.ffn);
        let bias = |role, width: usize, columns: Range<usize>| {
            let all = self.vector(&self.names.layer(index, role))?;
            let own = &all[expert * width..(expert + 1) * width];
            Ok::<_, WeightsError>(own[columns].to_vec())
        };
        Ok(Some(GatedBiases {
            gate: bias(Role::GatesBias, ffn, part.ffn.clone())?,
            up: bias(Role::UpsBias, ffn, part.ffn.clone())?,
            down: bias(Role::DownsBias, hidden, 0..hidden)?,
        }))
    }

    /// The queries' norm, such that logits come out as the family scales them: attention
    /// multiplies them with `1/sqrt(D)`.
    fn scaled_for_queries(&self, mut norm: Vec<f32>) -> Vec<f32> {
        if let Some(scale) = self.config.differences.query_scale {
            let scale = scale * (self.config.head_dim as f32).sqrt();
            norm.iter_mut().for_each(|weight| *weight *= scale);
        }
        norm
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

    /// What tells these weights from all others, in every version of this program: a digest of the
    /// files that hold them. `None` for weights that are made here.
    pub fn identity(&self, cache: &DigestCache) -> Option<WeightsId> {
        let files = self.table.files.iter();
        let digests = files.map(|file| file.digest(cache));
        let digests: Vec<u128> = digests.collect::<Option<_>>()?;
        if digests.is_empty() {
            return None;
        }
        let mut hash = Xxh3::new();
        for digest in digests {
            hash.update(&digest.to_le_bytes());
        }
        Some(WeightsId(hash.digest128()))
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
        // Matrices of experts stand one under the other.
        let (rows, cols) = match tensor.shape[..] {
            [rows, cols] => (rows, cols),
            [count, rows, cols] => (count * rows, cols),
            _ => {
                let (found, expected) = (tensor.shape.clone(), vec![0, 0]);
                return Err(WeightsError::Shape {
                    name: name.to_owned(),
                    found,
                    expected,
                });
            }
        };
        Ok(WeightData {
            dtype,
            rows,
            cols,
            skip: 0,
            bytes: Cow::Borrowed(self.table.bytes(tensor)),
        })
    }

    /// A norm as it is applied.
    fn norm(&self, name: &str) -> Result<Vec<f32>, WeightsError> {
        let mut norm = self.vector(name)?;
        if self.names.norms_lack_one() {
            norm.iter_mut().for_each(|weight| *weight += 1.0);
        }
        Ok(norm)
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

/// Projections of attention.
struct Projections<'a> {
    q: WeightData<'a>,
    k: WeightData<'a>,
    v: WeightData<'a>,
}

#[cfg(test)]
mod tests;
