//! The paper's indexer: a small network compares every query with every entry, and an entry is
//! worth the largest score it has had.
//!
//! Source: the query indexer of IndexMem (arXiv 2605.25475), with three changes. It is per KV head
//! instead of per layer, so that it shards and heads may differ. Its queries are read off the
//! hidden state: the paper projects the layer's queries before rotation, which are themselves
//! linear in it, so both maps are one matrix. And it is trained to predict the logarithm of the
//! same target as the scorers of [`super::retention`], so scores of heads are comparable.
//!
//! `I[t, j] = sum_h w[t, h] * relu(<q[t, h], k[j]>)`, `q`, `k` layer-normalised, no rotary
//! positions. The score of entry `j` is `offset + max over t >= j of I[t, j]`, kept up to date as
//! queries come.
//!
//! Its tensors in an indexer file, with `query_heads` `h` and `query_dim` `d` in the metadata:
//! ```text
//! query.{l}.weight [K*(h*d + d + h), E]  .bias [K*(h*d + d + h)]  .norm [K, 4, d]  .offset [K]
//! ```
//! `weight` is stored in 16 bits.

use std::ops::Range;
use std::sync::Arc;

use palimpsest_kernels::{Backend, IndexItem, IndexShape};

use super::{Attention, HeadView, Hook, Installed, LayerStep, Needs, NewTokens, Policy, Site};
use crate::error::Result;
use crate::indexer::{Indexer, Precision, Reader, Trained};
use crate::upload::Linear;

/// Added to variances.
pub const EPSILON: f32 = 1e-5;

/// Weights of one layer. Rows of a KV head are adjacent: `h*d` of queries, `d` of the key, `h` of
/// head weights.
#[derive(Debug, Clone, PartialEq)]
pub struct PairwiseLayer {
    /// `[K * rows, E]`.
    pub weight: Vec<f32>,
    /// `[K * rows]`.
    pub bias: Vec<f32>,
    /// Gain and shift of the queries' and of the keys' layer norm, `[K, 4, d]`.
    pub norm: Vec<f32>,
    /// `[K]`: added to scores.
    pub offset: Vec<f32>,
}

/// A trained pairwise indexer, every layer.
#[derive(Debug, Clone, PartialEq)]
pub struct PairwiseWeights {
    /// `h`: indexer heads of one KV head.
    pub heads: usize,
    /// `d`: width of indexer queries and keys.
    pub dim: usize,
    /// One per decoder layer.
    pub layers: Vec<PairwiseLayer>,
}

impl PairwiseWeights {
    /// Projected values of one token and KV head.
    pub const fn rows(heads: usize, dim: usize) -> usize {
        heads
            .saturating_mul(dim)
            .saturating_add(dim)
            .saturating_add(heads)
    }

    /// What projected values `[rows]` of one token become: normalised queries `[h, d]`, normalised
    /// key `[d]`, weights `[h]`. Written over the values, in the same places.
    pub fn finish(&self, layer: usize, kv_head: usize, values: &mut [f32]) {
        let (heads, dim) = (self.heads, self.dim);
        let norm = &self.layers[layer].norm[kv_head * 4 * dim..][..4 * dim];
        let (query_norm, key_norm) = norm.split_at(2 * dim);
        let (queries, rest) = values.split_at_mut(heads * dim);
        let (key, weights) = rest.split_at_mut(dim);
        queries
            .chunks_exact_mut(dim)
            .for_each(|query| layer_norm(query, query_norm));
        layer_norm(key, key_norm);
        let scale = 1.0 / ((heads * dim) as f32).sqrt();
        weights.iter_mut().for_each(|w| *w *= scale);
    }
}

/// `(x - mean) / sqrt(variance + epsilon) * gain + shift`; `norm`: gain, then shift.
fn layer_norm(x: &mut [f32], norm: &[f32]) {
    let len = x.len() as f32;
    let mean = x.iter().sum::<f32>() / len;
    let variance = x.iter().map(|v| (v - mean) * (v - mean)).sum::<f32>() / len;
    let inverse = 1.0 / (variance + EPSILON).sqrt();
    let (gain, shift) = norm.split_at(x.len());
    for ((x, gain), shift) in x.iter_mut().zip(gain).zip(shift) {
        *x = (*x - mean) * inverse * gain + shift;
    }
}

impl Trained for PairwiseWeights {
    fn read(reader: &mut Reader<'_>) -> Result<Option<Self>> {
        if !reader.has("query_dim") {
            return Ok(None);
        }
        let (heads, dim) = (reader.number("query_heads")?, reader.number("query_dim")?);
        let shape = reader.shape();
        let (kv_heads, hidden) = (shape.kv_heads, shape.hidden);
        let rows = kv_heads.saturating_mul(Self::rows(heads, dim));
        let mut layer = |l: usize| {
            Ok(PairwiseLayer {
                weight: reader.tensor(&format!("query.{l}.weight"), &[rows, hidden])?,
                bias: reader.tensor(&format!("query.{l}.bias"), &[rows])?,
                norm: reader.tensor(&format!("query.{l}.norm"), &[kv_heads, 4, dim])?,
                offset: reader.tensor(&format!("query.{l}.offset"), &[kv_heads])?,
            })
        };
        let layers = (0..shape.layers).map(&mut layer).collect::<Result<_>>()?;
        Ok(Some(Self { heads, dim, layers }))
    }

    fn write(&self, indexer: &mut Indexer) {
        indexer.put_number("query_heads", self.heads);
        indexer.put_number("query_dim", self.dim);
        let (kv_heads, hidden) = (indexer.shape.kv_heads, indexer.shape.hidden);
        let rows = kv_heads * Self::rows(self.heads, self.dim);
        for (l, layer) in self.layers.iter().enumerate() {
            let name = |part: &str| format!("query.{l}.{part}");
            indexer.put(
                name("weight"),
                &[rows, hidden],
                &layer.weight,
                Precision::Half,
            );
            let mut put = |part: &str, shape: &[usize], values: &[f32]| {
                indexer.put(name(part), shape, values, Precision::Single);
            };
            put("bias", &[rows], &layer.bias);
            put("norm", &[kv_heads, 4, self.dim], &layer.norm);
            put("offset", &[kv_heads], &layer.offset);
        }
    }
}

/// Ranks by a trained pairwise indexer.
pub struct PairwiseIndexer {
    weights: Arc<PairwiseWeights>,
}

impl PairwiseIndexer {
    /// Name on the wire.
    pub const NAME: &'static str = "query-indexer";

    /// The policy of a trained indexer.
    pub fn new(weights: Arc<PairwiseWeights>) -> Self {
        Self { weights }
    }
}

impl Policy for PairwiseIndexer {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn comparable(&self) -> bool {
        true
    }

    /// Terms of a slot are its indexer key. The running maximum lives where other policies keep
    /// attention.
    fn needs(&self) -> Needs {
        Needs {
            attention: Attention::ByHook,
            terms: self.weights.dim,
            host: true,
            ..Needs::default()
        }
    }

    fn score(&self, head: &HeadView<'_>, scores: &mut [f32]) {
        let offset = self.weights.layers[head.layer].offset[head.kv_head];
        for (score, mass) in scores.iter_mut().zip(head.mass) {
            *score = mass + offset;
        }
    }
}

/// Installs the policy where a file has an indexer.
pub(super) fn install<B: Backend>(site: &mut Site<'_, '_, B>) -> Result<Option<Installed<B>>> {
    let Some(reader) = &mut site.trained else {
        return Ok(None);
    };
    let Some(weights) = PairwiseWeights::read(reader)?.map(Arc::new) else {
        return Ok(None);
    };
    let hidden = reader.shape().hidden;
    let hook = PairwiseHook::load(site.backend, weights.clone(), hidden, site.kv_heads.clone())?;
    Ok(Some(Installed {
        policy: Arc::new(PairwiseIndexer::new(weights)),
        hook: Some(Box::new(hook)),
    }))
}

/// The indexer on the device: one small product per layer, then every new query against every slot.
struct PairwiseHook<B: Backend> {
    weights: Arc<PairwiseWeights>,
    /// Rows of this rank's KV heads.
    layers: Vec<Linear<B>>,
    /// KV heads of this rank, among those of the model.
    kv_heads: Range<usize>,
    /// Projected values of a step's rows, on the device and here.
    out: B::Buffer,
    host: Vec<f32>,
    /// Rows that `out` has room for.
    rows: usize,
}

/// New queries of one sequence and KV head.
#[derive(Default)]
struct Queries {
    queries: Vec<f32>,
    weights: Vec<f32>,
}

impl<B: Backend> PairwiseHook<B> {
    fn load(
        backend: &B,
        weights: Arc<PairwiseWeights>,
        hidden: usize,
        kv_heads: Range<usize>,
    ) -> Result<Self> {
        let rows = PairwiseWeights::rows(weights.heads, weights.dim);
        let own = kv_heads.start * rows..kv_heads.end * rows;
        let pack = |layer: &PairwiseLayer| {
            let weight = &layer.weight[own.start * hidden..own.end * hidden];
            Linear::load(backend, weight, &layer.bias[own.clone()])
        };
        let layers = weights.layers.iter().map(pack).collect::<Result<_>>()?;
        Ok(Self {
            weights,
            layers,
            kv_heads,
            out: backend.alloc(0)?,
            host: Vec::new(),
            rows: 0,
        })
    }

    /// Projected values of one token and KV head.
    fn per_head(&self) -> usize {
        PairwiseWeights::rows(self.weights.heads, self.weights.dim)
    }

    /// Projects the step's hidden states, and waits for the result.
    fn project(&mut self, step: &LayerStep<'_, B>, hidden: &B::Buffer) -> Result<()> {
        let width = self.kv_heads.len() * self.per_head();
        if step.rows > self.rows {
            self.out = step.backend.alloc(step.rows * width)?;
            self.rows = step.rows;
        }
        self.layers[step.layer].apply(step.backend, hidden, step.rows, &mut self.out)?;
        self.host.resize(step.rows * width, 0.0);
        Ok(step.backend.download(&self.out, 0, &mut self.host)?)
    }

    /// Stores the keys of a sequence's new slots in KV head `local` of this rank, and returns its
    /// new queries.
    fn store(&mut self, layer: usize, local: usize, new: &mut NewTokens<'_>) -> Queries {
        let (heads, dim, per_head) = (self.weights.heads, self.weights.dim, self.per_head());
        let width = self.kv_heads.len() * per_head;
        let mut queries = Queries::default();
        let head = &mut new.heads[local];
        let first_slot = head.len() - new.rows.len();
        for (row, slot) in new.rows.clone().zip(first_slot..) {
            let values = &mut self.host[row * width + local * per_head..][..per_head];
            self.weights
                .finish(layer, self.kv_heads.start + local, values);
            queries.queries.extend_from_slice(&values[..heads * dim]);
            head.terms[slot * dim..][..dim].copy_from_slice(&values[heads * dim..][..dim]);
            queries
                .weights
                .extend_from_slice(&values[(heads + 1) * dim..]);
            head.mass[0][slot] = f32::NEG_INFINITY;
        }
        queries
    }
}

impl<B: Backend> Hook<B> for PairwiseHook<B> {
    fn before_attention(
        &mut self,
        step: &LayerStep<'_, B>,
        hidden: &B::Buffer,
        _pages: &mut B::Pages,
        tokens: &mut [NewTokens<'_>],
    ) -> Result<()> {
        self.project(step, hidden)?;
        let shape = IndexShape {
            heads: self.weights.heads,
            dim: self.weights.dim,
        };
        for new in tokens {
            let queries: Vec<Queries> = (0..self.kv_heads.len())
                .map(|local| self.store(step.layer, local, new))
                .collect();
            let mut items: Vec<_> = new
                .heads
                .iter_mut()
                .zip(&queries)
                .map(|(head, own)| IndexItem {
                    rows: new.rows.len(),
                    queries: &own.queries,
                    weights: &own.weights,
                    keys: &head.terms,
                    scores: &mut head.mass[0],
                })
                .collect();
            step.backend.index(shape, &mut items)?;
        }
        Ok(())
    }
}
