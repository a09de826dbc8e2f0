//! The learned, query-independent policy: a score per token and KV head, computed once from the hidden state that enters
//! attention, that may fade with age.
//!
//! Source: IndexMem++ retention scores (method section 3.1) in their intercept form. For the token at position `j`,
//! `s_j(t) = m_j + r_j * (t - j) / TAU = a_j + r_j * t / TAU` with `a_j = m_j - r_j * j / TAU`, `r_j <= 0`.
//! Here `m` is trained to predict the logarithm of an attention probability, so scores of different heads and layers are
//! comparable and budgets may be pooled.

use super::{HeadView, Ingest, Policy};
use crate::error::{Error, Result};
use safetensors::tensor::{Dtype, SafeTensors};
use std::collections::HashMap;
use std::sync::Arc;

/// Age scale in tokens; a constant, never the live length (method section 6.2).
pub const TAU: f32 = 16384.0;
/// Values stored per slot: intercept `a` and rate `r`.
pub const TERMS: usize = 2;
/// `format` entry of an indexer file's metadata.
pub const FORMAT: &str = "palimpsest-indexer-1";

/// Weights of one layer's linear scorer.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerScorer {
    /// `[K, E]`: one row per KV head.
    pub weight: Vec<f32>,
    /// `[K]`.
    pub bias: Vec<f32>,
    /// `[K]`: score lost per `TAU` tokens of age, at most 0.
    pub rate: Vec<f32>,
}

/// A trained scorer for one model, every layer.
#[derive(Debug, Clone, PartialEq)]
pub struct RetentionScorer {
    /// One per decoder layer.
    pub layers: Vec<LayerScorer>,
    /// KV heads of the model.
    pub kv_heads: usize,
    /// Hidden size of the model.
    pub hidden: usize,
    /// How it was trained, for `inspect`.
    pub metadata: HashMap<String, String>,
}

impl RetentionScorer {
    /// Reads an indexer file.
    ///
    /// # Errors
    /// [`Error::Indexer`] when the bytes are not such a file, or hold a value that is not finite.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let bad = |what: String| Error::Indexer(what);
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(|e| bad(format!("not an indexer file: {e}")))?;
        let metadata = header.metadata().clone().unwrap_or_default();
        if metadata.get("format").map(String::as_str) != Some(FORMAT) {
            return Err(bad(format!("metadata `format` is not {FORMAT}; train one with `palimpsest calibrate`")));
        }
        let number = |key: &str| -> Result<usize> {
            let text = metadata.get(key).ok_or_else(|| bad(format!("metadata has no `{key}`")))?;
            text.parse().map_err(|_| bad(format!("metadata `{key}` is `{text}`, not a number")))
        };
        let (layers, kv_heads, hidden) = (number("layers")?, number("kv_heads")?, number("hidden")?);
        let file = SafeTensors::deserialize(bytes).map_err(|e| bad(format!("damaged indexer file: {e}")))?;
        if file.len() != layers.saturating_mul(3) {
            return Err(bad(format!("{} tensors for {layers} layers, 3 each expected", file.len())));
        }
        let read = |name: String, len: usize| -> Result<Vec<f32>> {
            let view = file.tensor(&name).map_err(|_| bad(format!("tensor {name} is missing")))?;
            if view.dtype() != Dtype::F32 || view.data().len() != len * 4 {
                return Err(bad(format!("tensor {name} is {:?} {:?}, {len} f32 expected", view.dtype(), view.shape())));
            }
            let values: Vec<f32> =
                view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
            if values.iter().any(|v| !v.is_finite()) {
                return Err(bad(format!("tensor {name} holds a value that is not finite")));
            }
            Ok(values)
        };
        let layer = |l: usize| -> Result<LayerScorer> {
            Ok(LayerScorer {
                weight: read(format!("retention.{l}.weight"), kv_heads.saturating_mul(hidden))?,
                bias: read(format!("retention.{l}.bias"), kv_heads)?,
                rate: read(format!("retention.{l}.rate"), kv_heads)?,
            })
        };
        Ok(Self { layers: (0..layers).map(layer).collect::<Result<_>>()?, kv_heads, hidden, metadata })
    }

    /// Bytes of an indexer file. The shape entries of the metadata are written from the scorer itself.
    ///
    /// # Errors
    /// [`Error::Indexer`] when the file format cannot hold it.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let le = |values: &[f32]| -> Vec<u8> { values.iter().flat_map(|v| v.to_le_bytes()).collect() };
        let mut stored = Vec::new();
        for (l, layer) in self.layers.iter().enumerate() {
            stored.push((format!("retention.{l}.weight"), vec![self.kv_heads, self.hidden], le(&layer.weight)));
            stored.push((format!("retention.{l}.bias"), vec![self.kv_heads], le(&layer.bias)));
            stored.push((format!("retention.{l}.rate"), vec![self.kv_heads], le(&layer.rate)));
        }
        let views = stored.iter().map(|(name, shape, bytes)| {
            let view = safetensors::tensor::TensorView::new(Dtype::F32, shape.clone(), bytes);
            view.map(|v| (name.as_str(), v)).map_err(|e| Error::Indexer(e.to_string()))
        });
        let mut metadata = self.metadata.clone();
        metadata.insert("format".into(), FORMAT.into());
        for (key, value) in [("layers", self.layers.len()), ("kv_heads", self.kv_heads), ("hidden", self.hidden)] {
            metadata.insert(key.into(), value.to_string());
        }
        let views = views.collect::<Result<Vec<_>>>()?;
        safetensors::serialize(views, Some(metadata)).map_err(|e| Error::Indexer(e.to_string()))
    }

    /// Checks that the scorer was made for a model of this shape.
    ///
    /// # Errors
    /// [`Error::Indexer`] with both shapes.
    pub fn check(&self, layers: usize, kv_heads: usize, hidden: usize) -> Result<()> {
        let own = (self.layers.len(), self.kv_heads, self.hidden);
        if own == (layers, kv_heads, hidden) {
            return Ok(());
        }
        Err(Error::Indexer(format!(
            "made for a model with {} layers, {} KV heads, hidden size {}; this one has {layers}, {kv_heads}, {hidden}",
            own.0, own.1, own.2
        )))
    }
}

/// Ranks by a trained [`RetentionScorer`].
pub struct Retention {
    scorer: Arc<RetentionScorer>,
}

impl Retention {
    /// Name on the wire.
    pub const NAME: &'static str = "retention";

    /// The policy of a trained scorer.
    pub fn new(scorer: Arc<RetentionScorer>) -> Self {
        Self { scorer }
    }

    /// Intercept and rate of a token at `position` whose scorer gave `m` in `layer`, `kv_head`.
    pub fn terms_of(&self, layer: usize, kv_head: usize, position: u64, m: f32) -> [f32; TERMS] {
        let rate = self.scorer.layers[layer].rate[kv_head];
        [m - rate * (position as f32 / TAU), rate]
    }
}

impl Policy for Retention {
    fn name(&self) -> &'static str {
        Self::NAME
    }
    fn comparable(&self) -> bool {
        true
    }
    fn ingest(&self) -> Ingest<'_> {
        Ingest::Retention(self)
    }
    fn terms(&self) -> usize {
        TERMS
    }
    fn score(&self, head: &HeadView<'_>, scores: &mut [f32]) {
        let age = head.at as f32 / TAU;
        for (score, terms) in scores.iter_mut().zip(head.terms.chunks_exact(TERMS)) {
            *score = terms[0] + terms[1] * age;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scorer() -> RetentionScorer {
        let layer = |x: f32| LayerScorer { weight: vec![x; 6], bias: vec![x, 1.0], rate: vec![-1.0, 0.0] };
        let metadata = [("seed".to_string(), "7".to_string())].into();
        RetentionScorer { layers: vec![layer(0.5), layer(2.0)], kv_heads: 2, hidden: 3, metadata }
    }

    #[test]
    fn a_file_comes_back_as_it_was_written() {
        let bytes = scorer().to_bytes().expect("fits the format");
        let back = RetentionScorer::parse(&bytes).expect("just written");
        assert_eq!(back.layers, scorer().layers);
        assert_eq!(back.metadata["seed"], "7");
        assert!(back.check(2, 2, 3).is_ok());
        assert!(back.check(2, 4, 3).unwrap_err().to_string().contains("4"));
    }

    #[test]
    fn damaged_files_are_refused() {
        let bytes = scorer().to_bytes().expect("fits the format");
        for cut in 0..bytes.len() {
            assert!(RetentionScorer::parse(&bytes[..cut]).is_err(), "cut at {cut}");
        }
        let mut nan = scorer();
        nan.layers[1].weight[0] = f32::NAN;
        let error = RetentionScorer::parse(&nan.to_bytes().expect("fits")).unwrap_err();
        assert!(error.to_string().contains("retention.1.weight"), "{error}");
    }

    #[test]
    fn scores_fade_with_age_as_the_pairwise_form_says() {
        let policy = Retention::new(Arc::new(scorer()));
        let (j, m) = (1000u64, -3.0);
        let terms = policy.terms_of(0, 0, j, m);
        let view = HeadView {
            layer: 0,
            kv_head: 0,
            at: 9192,
            sinks: 4,
            head_dim: 2,
            positions: &[1000],
            terms: &terms,
            mass: &[],
            keys: &[],
            values: &[],
        };
        let mut score = [0.0];
        policy.score(&view, &mut score);
        assert!((score[0] - (m - (9192.0 - 1000.0) / TAU)).abs() < 1e-5);
    }
}
