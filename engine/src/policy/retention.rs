//! The learned, query-independent policy: a score per token and KV head, computed once from the
//! hidden state that enters attention, that may fade with age.
//!
//! Source: retention scores of IndexMem++, the successor of IndexMem (arXiv 2605.25475), with
//! another law of decay. For the token at position `j`, `s_j(t) = m_j + r ln(1 + (t - j) / AGE)`,
//! `r <= 0` per layer and KV head. `m` is trained to predict the logarithm of an attention
//! probability, so scores of different heads and layers are comparable and budgets may be pooled. A
//! term in the logarithm of the age is then a power law of attention over distance. It goes on
//! gently at lengths beyond those trained on, where the published term, linear in the age, would
//! leave nothing old.
//!
//! Text needs what is recent, questions may need what is old, and one number per token has to
//! choose. A file may therefore hold two scorers: `s_j(t) = max(m_j, n_j + r (t - j) / AGE)`. A
//! token stays for the better of two reasons: that it may be asked for at any time, or that it is
//! in use now, which passes. Here the age is linear, since nothing old hangs on it.
//!
//! Its tensors in an indexer file, which always has them:
//! ```text
//! retention.{l}.weight [K, E]         .bias [K]  .rate [K]
//! retention.{l}.recent.weight [K, E]  .bias [K]  .rate [K]
//! ```
//! The second line is the second scorer, which all layers have or none.

use std::ops::Range;
use std::sync::Arc;

use palimpsest_kernels::{Backend, NoteItem, ScoreRule};

use super::{Hook, Installed, LayerStep, Needs, NewTokens, Policy, Site};
use crate::error::{Error, Result};
use crate::indexer::{Indexer, ModelShape, Precision, Reader, Trained};
use crate::random::splitmix;
use crate::upload::Linear;

/// Age scale in tokens. It is a constant, never the live length.
pub const AGE: f32 = 256.0;

/// Weights of one layer's linear scorer.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerScorer {
    /// `[K, E]`: one row per KV head.
    pub weight: Vec<f32>,
    /// `[K]`.
    pub bias: Vec<f32>,
    /// `[K]`: `r`, at most 0; 0 beside a scorer of what is in use.
    pub rate: Vec<f32>,
    /// `n`, where a file has two scorers.
    pub recent: Option<RecentScorer>,
}

/// Weights of one layer's scorer of what is in use now.
#[derive(Debug, Clone, PartialEq)]
pub struct RecentScorer {
    /// `[K, E]`.
    pub weight: Vec<f32>,
    /// `[K]`.
    pub bias: Vec<f32>,
    /// `[K]`: nats for every [`AGE`] tokens, at most 0.
    pub rate: Vec<f32>,
}

impl LayerScorer {
    /// How a head's notes are turned into scores.
    pub fn rule(&self, kv_head: usize) -> ScoreRule {
        match &self.recent {
            Some(recent) => ScoreRule::Either {
                rate: recent.rate[kv_head],
                scale: AGE,
            },
            None => ScoreRule::Fading {
                rate: self.rate[kv_head],
                scale: AGE,
            },
        }
    }
}

/// Trained scorers, one per decoder layer.
#[derive(Debug, Clone, PartialEq)]
pub struct RetentionWeights {
    /// The layers' scorers.
    pub layers: Vec<LayerScorer>,
}

impl RetentionWeights {
    /// Scorers of chance, as a model of random weights has them: its steps then cost what those of
    /// a trained model cost. They say nothing of what is worth keeping.
    pub fn random(shape: ModelShape) -> Self {
        let layer = |layer: usize| {
            let value = |index: usize| {
                let drawn = splitmix(((layer as u64) << 32) | index as u64);
                // 24 bits, which a float holds, from -1 to 1.
                (drawn >> 40) as f32 / (1u64 << 23) as f32 - 1.0
            };
            let width = 1.0 / (shape.hidden.max(1) as f32).sqrt();
            LayerScorer {
                weight: (0..shape.kv_heads * shape.hidden)
                    .map(|index| width * value(index))
                    .collect(),
                bias: vec![0.0; shape.kv_heads],
                rate: (0..shape.kv_heads)
                    .map(|head| -value(usize::MAX - head).abs())
                    .collect(),
                recent: None,
            }
        };
        Self {
            layers: (0..shape.layers).map(layer).collect(),
        }
    }

    /// Reads the scorers of an indexer. Every indexer file has some.
    ///
    /// # Errors
    /// [`Error::Indexer`] when a tensor is missing or misshapen, or a score would rise with age.
    pub fn of(indexer: &Indexer) -> Result<Self> {
        read(&mut indexer.reader())
    }

    /// Whether they are two for each head.
    fn are_two(&self) -> bool {
        self.layers.iter().any(|layer| layer.recent.is_some())
    }
}

/// Metadata entry of files with two scorers.
const RECENT: &str = "recent";

impl Trained for RetentionWeights {
    fn read(reader: &mut Reader<'_>) -> Result<Option<Self>> {
        read(reader).map(Some)
    }

    fn write(&self, indexer: &mut Indexer) {
        if self.are_two() {
            indexer.put_number(RECENT, 1);
        }
        let (kv_heads, hidden) = (indexer.shape.kv_heads, indexer.shape.hidden);
        let mut put = |name: String, shape: &[usize], values: &[f32]| {
            indexer.put(name, shape, values, Precision::Single);
        };
        for (l, layer) in self.layers.iter().enumerate() {
            put(
                format!("retention.{l}.weight"),
                &[kv_heads, hidden],
                &layer.weight,
            );
            put(format!("retention.{l}.bias"), &[kv_heads], &layer.bias);
            put(format!("retention.{l}.rate"), &[kv_heads], &layer.rate);
            if let Some(recent) = &layer.recent {
                let prefix = format!("retention.{l}.recent");
                put(
                    format!("{prefix}.weight"),
                    &[kv_heads, hidden],
                    &recent.weight,
                );
                put(format!("{prefix}.bias"), &[kv_heads], &recent.bias);
                put(format!("{prefix}.rate"), &[kv_heads], &recent.rate);
            }
        }
    }
}

fn read(reader: &mut Reader<'_>) -> Result<RetentionWeights> {
    let layers = (0..reader.shape().layers)
        .map(|layer| read_layer(reader, layer))
        .collect::<Result<_>>()?;
    Ok(RetentionWeights { layers })
}

fn read_layer(reader: &mut Reader<'_>, layer: usize) -> Result<LayerScorer> {
    let RecentScorer { weight, bias, rate } = read_scorer(reader, &format!("retention.{layer}"))?;
    let recent = if reader.has(RECENT) {
        Some(read_scorer(reader, &format!("retention.{layer}.recent"))?)
    } else {
        None
    };
    if recent.is_some() && rate.iter().any(|&rate| rate != 0.0) {
        return Err(Error::Indexer(format!(
            "tensor retention.{layer}.rate is not 0, but beside a second scorer only that one \
             passes"
        )));
    }
    Ok(LayerScorer {
        weight,
        bias,
        rate,
        recent,
    })
}

/// The tensors of one scorer; both kinds have the same.
fn read_scorer(reader: &mut Reader<'_>, prefix: &str) -> Result<RecentScorer> {
    let (kv_heads, hidden) = (reader.shape().kv_heads, reader.shape().hidden);
    let weight = reader.tensor(&format!("{prefix}.weight"), &[kv_heads, hidden])?;
    let bias = reader.tensor(&format!("{prefix}.bias"), &[kv_heads])?;
    let rate = reader.tensor(&format!("{prefix}.rate"), &[kv_heads])?;
    match rate.iter().find(|&&rate| rate > 0.0) {
        Some(rate) => Err(Error::Indexer(format!(
            "tensor {prefix}.rate holds {rate}: a score cannot rise with age"
        ))),
        None => Ok(RecentScorer { weight, bias, rate }),
    }
}

/// Ranks by trained scorers.
pub struct Retention {
    weights: Arc<RetentionWeights>,
}

impl Retention {
    /// Name on the wire.
    pub const NAME: &'static str = "retention";

    /// The policy of trained scorers.
    pub fn new(weights: Arc<RetentionWeights>) -> Self {
        Self { weights }
    }
}

impl Policy for Retention {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn comparable(&self) -> bool {
        true
    }

    fn needs(&self) -> Needs {
        Needs {
            notes: true,
            ..Needs::default()
        }
    }

    fn rule(&self, layer: usize, kv_head: usize) -> Option<ScoreRule> {
        Some(self.weights.layers[layer].rule(kv_head))
    }
}

/// Installs the policy where a file of scorers is.
pub(super) fn install<B: Backend>(site: &mut Site<'_, '_, B>) -> Result<Option<Installed<B>>> {
    let Some(reader) = &mut site.trained else {
        return Ok(None);
    };
    let weights = Arc::new(read(reader)?);
    let hidden = reader.shape().hidden;
    let scorer = Scorer::load(site.backend, &weights, hidden, site.kv_heads.clone())?;
    Ok(Some(Installed {
        policy: Arc::new(Retention::new(weights)),
        hook: Some(Box::new(scorer)),
    }))
}

/// The scorers on the device: one small product per layer, whose results are noted with the new
/// slots. They stay on the device.
struct Scorer<B: Backend> {
    /// A layer's scorers of this rank's KV heads; the second scorers stand behind the first.
    layers: Vec<Linear<B>>,
    /// KV heads of this rank.
    kv_heads: usize,
    /// Scorers of a KV head.
    scorers: usize,
    /// Scores of a step's rows `[T, scorers * K]`.
    out: B::Buffer,
    /// Rows that `out` has room for.
    rows: usize,
}

impl<B: Backend> Scorer<B> {
    fn load(
        backend: &B,
        weights: &RetentionWeights,
        hidden: usize,
        kv_heads: Range<usize>,
    ) -> Result<Self> {
        let pack = |layer: &LayerScorer| {
            let own = kv_heads.start * hidden..kv_heads.end * hidden;
            let mut weight = layer.weight[own.clone()].to_vec();
            let mut bias = layer.bias[kv_heads.clone()].to_vec();
            if let Some(recent) = &layer.recent {
                weight.extend_from_slice(&recent.weight[own]);
                bias.extend_from_slice(&recent.bias[kv_heads.clone()]);
            }
            Linear::load(backend, &weight, &bias)
        };
        Ok(Self {
            layers: weights.layers.iter().map(pack).collect::<Result<_>>()?,
            kv_heads: kv_heads.len(),
            scorers: if weights.are_two() { 2 } else { 1 },
            out: backend.alloc(0)?,
            rows: 0,
        })
    }
}

impl<B: Backend> Hook<B> for Scorer<B> {
    fn before_attention(
        &mut self,
        step: &LayerStep<'_, B>,
        hidden: &B::Buffer,
        pages: &mut B::Pages,
        tokens: &mut [NewTokens<'_>],
    ) -> Result<()> {
        let width = self.scorers * self.kv_heads;
        let mut items = Vec::new();
        for new in tokens.iter() {
            let position = u32::try_from(new.first_position)
                .expect("the cache refuses positions beyond 32 bits");
            items.extend(
                new.heads
                    .iter()
                    .enumerate()
                    .map(|(kv_head, head)| NoteItem {
                        rows: new.rows.clone(),
                        kv_head,
                        second: (self.scorers == 2).then_some(self.kv_heads + kv_head),
                        slots: head.view(head.len() - new.rows.len()),
                        position,
                    }),
            );
        }
        if step.rows > self.rows {
            self.out = step.backend.alloc(step.rows * width)?;
            self.rows = step.rows;
        }
        self.layers[step.layer].apply(step.backend, hidden, step.rows, &mut self.out)?;
        Ok(step.backend.note(pages, &self.out, width, &items)?)
    }
}
