//! The trained parts of a model's bounded cache, one file: what scores entries, and what is read of
//! those that went.
//!
//! ```text
//! retention.{l}.weight [K, E]  .bias [K]  .rate [K]                           policy `retention`, always there
//! retention.{l}.recent.weight [K, E]  .bias [K]  .rate [K]                    its second scorer, for all layers or none
//! query.{l}.weight [K*(h*d + d + h), E]  .bias  .norm [K, 4, d]  .offset [K]  policy `query-indexer`
//! associative.{l}.features [F, D]  .gates [K]                                 memory `associative`
//! ```
//! safetensors, f32 but for the large `query.{l}.weight` in f16; shapes stand in the metadata, too,
//! so that a file for another model is refused by name.

use std::collections::HashMap;
use std::sync::Arc;

use half::f16;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use xxhash_rust::xxh3::Xxh3;

use crate::error::{Error, Result};
use crate::memory::associative::{AssociativeLayerWeights, AssociativeWeights};
use crate::policy::pairwise::{PairwiseLayer, PairwiseWeights};
use crate::policy::retention::{LayerScorer, RecentScorer};

/// `format` entry of an indexer file's metadata.
pub const FORMAT: &str = "palimpsest-indexer-1";
/// Most entries that a shape in the metadata may have, far above any model.
const MOST: usize = 1 << 24;

/// What was trained for one model.
#[derive(Debug, Clone, PartialEq)]
pub struct Indexer {
    /// KV heads of the model.
    pub kv_heads: usize,
    /// Hidden size of the model.
    pub hidden: usize,
    /// Query-independent scorers, one per decoder layer.
    pub retention: Vec<LayerScorer>,
    /// The paper's pairwise indexer.
    pub query: Option<Arc<PairwiseWeights>>,
    /// The paper's latent memory.
    pub associative: Option<Arc<AssociativeWeights>>,
    /// How it was trained, for `inspect`.
    pub metadata: HashMap<String, String>,
}

/// A file being read.
struct Reader<'a> {
    file: SafeTensors<'a>,
    metadata: HashMap<String, String>,
    read: usize,
}

impl Reader<'_> {
    fn number(&self, key: &str) -> Result<usize> {
        let bad = |what: String| Error::Indexer(what);
        let text = self
            .metadata
            .get(key)
            .ok_or_else(|| bad(format!("metadata has no `{key}`")))?;
        let number = text
            .parse()
            .map_err(|_| bad(format!("metadata `{key}` is `{text}`, not a number")))?;
        if number > MOST {
            Err(bad(format!(
                "metadata `{key}` is {number}, more than any model has"
            )))
        } else {
            Ok(number)
        }
    }

    fn has(&self, key: &str) -> bool {
        self.metadata.contains_key(key)
    }

    fn tensor(&mut self, name: String, shape: &[usize]) -> Result<Vec<f32>> {
        let bad = |what: String| Error::Indexer(what);
        let len = shape.iter().copied().fold(1, usize::saturating_mul);
        let view = self
            .file
            .tensor(&name)
            .map_err(|_| bad(format!("tensor {name} is missing")))?;
        let bytes = view.data();
        let values: Vec<f32> = match view.dtype() {
            Dtype::F32 => bytes
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                .collect(),
            Dtype::F16 => bytes
                .chunks_exact(2)
                .map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32())
                .collect(),
            other => {
                return Err(bad(format!(
                    "tensor {name} is of type {other:?}, F32 or F16 expected"
                )));
            }
        };
        if values.len() != len {
            return Err(bad(format!(
                "tensor {name} has shape {:?}, {shape:?} expected",
                view.shape()
            )));
        }
        if values.iter().any(|v| !v.is_finite()) {
            return Err(bad(format!(
                "tensor {name} holds a value that is not finite"
            )));
        }
        self.read += 1;
        Ok(values)
    }

    fn retention(&mut self, layer: usize, kv_heads: usize, hidden: usize) -> Result<LayerScorer> {
        let two = self.has("recent");
        let mut part = |name: &str| {
            let prefix = format!("retention.{layer}.{name}");
            let weight = self.tensor(format!("{prefix}weight"), &[kv_heads, hidden])?;
            let bias = self.tensor(format!("{prefix}bias"), &[kv_heads])?;
            let rate = self.tensor(format!("{prefix}rate"), &[kv_heads])?;
            match rate.iter().find(|&&rate| rate > 0.0) {
                Some(rate) => Err(Error::Indexer(format!(
                    "tensor {prefix}rate holds {rate}: a score cannot rise with age"
                ))),
                None => Ok((weight, bias, rate)),
            }
        };
        let (weight, bias, rate) = part("")?;
        if !two {
            return Ok(LayerScorer {
                weight,
                bias,
                rate,
                recent: None,
            });
        }
        let (second, offset, passing) = part("recent.")?;
        if rate.iter().any(|&rate| rate != 0.0) {
            let name = format!("retention.{layer}.rate");
            return Err(Error::Indexer(format!(
                "tensor {name} is not 0, but beside a second scorer only that one passes"
            )));
        }
        let recent = Some(RecentScorer {
            weight: second,
            bias: offset,
            rate: passing,
        });
        Ok(LayerScorer {
            weight,
            bias,
            rate,
            recent,
        })
    }

    fn query(&mut self, layers: usize, kv_heads: usize, hidden: usize) -> Result<PairwiseWeights> {
        let (heads, dim) = (self.number("query_heads")?, self.number("query_dim")?);
        let rows = kv_heads.saturating_mul(PairwiseWeights::rows(heads, dim));
        let layer = |l: usize| {
            Ok(PairwiseLayer {
                weight: self.tensor(format!("query.{l}.weight"), &[rows, hidden])?,
                bias: self.tensor(format!("query.{l}.bias"), &[rows])?,
                norm: self.tensor(format!("query.{l}.norm"), &[kv_heads, 4, dim])?,
                offset: self.tensor(format!("query.{l}.offset"), &[kv_heads])?,
            })
        };
        Ok(PairwiseWeights {
            heads,
            dim,
            layers: (0..layers).map(layer).collect::<Result<_>>()?,
        })
    }

    fn associative(&mut self, layers: usize, kv_heads: usize) -> Result<AssociativeWeights> {
        let (features, head_dim) = (self.number("features")?, self.number("head_dim")?);
        let layer = |l: usize| {
            Ok(AssociativeLayerWeights {
                features: self
                    .tensor(format!("associative.{l}.features"), &[features, head_dim])?,
                gates: self.tensor(format!("associative.{l}.gates"), &[kv_heads])?,
            })
        };
        Ok(AssociativeWeights {
            features,
            head_dim,
            layers: (0..layers).map(layer).collect::<Result<_>>()?,
        })
    }
}

impl Indexer {
    /// Reads an indexer file.
    ///
    /// # Errors
    /// [`Error::Indexer`] when the bytes are not such a file, or hold a value that is not finite.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let bad = |what: String| Error::Indexer(what);
        let (_, header) = SafeTensors::read_metadata(bytes)
            .map_err(|e| bad(format!("not an indexer file: {e}")))?;
        let metadata = header.metadata().clone().unwrap_or_default();
        if metadata.get("format").map(String::as_str) != Some(FORMAT) {
            return Err(bad(format!(
                "metadata `format` is not {FORMAT}; train one with `palimpsest calibrate`"
            )));
        }
        let file = SafeTensors::deserialize(bytes)
            .map_err(|e| bad(format!("damaged indexer file: {e}")))?;
        let mut reader = Reader {
            file,
            metadata,
            read: 0,
        };
        let (layers, kv_heads, hidden) = (
            reader.number("layers")?,
            reader.number("kv_heads")?,
            reader.number("hidden")?,
        );
        let retention = (0..layers)
            .map(|l| reader.retention(l, kv_heads, hidden))
            .collect::<Result<_>>()?;
        let query = if reader.has("query_dim") {
            Some(reader.query(layers, kv_heads, hidden)?)
        } else {
            None
        };
        let associative = if reader.has("features") {
            Some(reader.associative(layers, kv_heads)?)
        } else {
            None
        };
        let (found, read) = (reader.file.len(), reader.read);
        if found != read {
            return Err(bad(format!(
                "{found} tensors, {read} expected from the metadata"
            )));
        }
        let metadata = reader.metadata;
        Ok(Self {
            kv_heads,
            hidden,
            retention,
            query: query.map(Arc::new),
            associative: associative.map(Arc::new),
            metadata,
        })
    }

    /// Bytes of an indexer file. The shape entries of the metadata are written from the indexer
    /// itself.
    ///
    /// # Errors
    /// [`Error::Indexer`] when the file format cannot hold it.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let mut metadata = self.metadata.clone();
        let mut set = |key: &str, value: usize| metadata.insert(key.into(), value.to_string());
        set("layers", self.retention.len());
        set("kv_heads", self.kv_heads);
        set("hidden", self.hidden);
        if self.retention.iter().any(|layer| layer.recent.is_some()) {
            set("recent", 1);
        }
        if let Some(query) = &self.query {
            set("query_heads", query.heads);
            set("query_dim", query.dim);
        }
        if let Some(associative) = &self.associative {
            set("features", associative.features);
            set("head_dim", associative.head_dim);
        }
        metadata.insert("format".into(), FORMAT.into());
        let stored: Vec<_> = self
            .tensors()
            .into_iter()
            .map(|(name, shape, values)| {
                let is_large = name.starts_with("query.") && name.ends_with(".weight");
                let bytes: Vec<u8> = if is_large {
                    values
                        .iter()
                        .flat_map(|v| f16::from_f32(*v).to_le_bytes())
                        .collect()
                } else {
                    values.iter().flat_map(|v| v.to_le_bytes()).collect()
                };
                (
                    name,
                    if is_large { Dtype::F16 } else { Dtype::F32 },
                    shape,
                    bytes,
                )
            })
            .collect();
        let views = stored.iter().map(|(name, dtype, shape, bytes)| {
            let view = TensorView::new(*dtype, shape.clone(), bytes);
            view.map(|v| (name.as_str(), v))
                .map_err(|e| Error::Indexer(e.to_string()))
        });
        safetensors::serialize(views.collect::<Result<Vec<_>>>()?, Some(metadata))
            .map_err(|e| Error::Indexer(e.to_string()))
    }

    /// Name, shape and values of every tensor.
    fn tensors(&self) -> Vec<(String, Vec<usize>, &[f32])> {
        let mut all: Vec<(String, Vec<usize>, &[f32])> = Vec::new();
        for (l, layer) in self.retention.iter().enumerate() {
            let mut push = |name: &str, weight, bias, rate| {
                all.push((
                    format!("retention.{l}.{name}weight"),
                    vec![self.kv_heads, self.hidden],
                    weight,
                ));
                all.push((
                    format!("retention.{l}.{name}bias"),
                    vec![self.kv_heads],
                    bias,
                ));
                all.push((
                    format!("retention.{l}.{name}rate"),
                    vec![self.kv_heads],
                    rate,
                ));
            };
            push("", &layer.weight, &layer.bias, &layer.rate);
            if let Some(recent) = &layer.recent {
                push("recent.", &recent.weight, &recent.bias, &recent.rate);
            }
        }
        if let Some(query) = &self.query {
            let rows = self.kv_heads * PairwiseWeights::rows(query.heads, query.dim);
            for (l, layer) in query.layers.iter().enumerate() {
                all.push((
                    format!("query.{l}.weight"),
                    vec![rows, self.hidden],
                    &layer.weight,
                ));
                all.push((format!("query.{l}.bias"), vec![rows], &layer.bias));
                all.push((
                    format!("query.{l}.norm"),
                    vec![self.kv_heads, 4, query.dim],
                    &layer.norm,
                ));
                all.push((
                    format!("query.{l}.offset"),
                    vec![self.kv_heads],
                    &layer.offset,
                ));
            }
        }
        if let Some(memory) = &self.associative {
            for (l, layer) in memory.layers.iter().enumerate() {
                all.push((
                    format!("associative.{l}.features"),
                    vec![memory.features, memory.head_dim],
                    &layer.features,
                ));
                all.push((
                    format!("associative.{l}.gates"),
                    vec![self.kv_heads],
                    &layer.gates,
                ));
            }
        }
        all
    }

    /// Feeds every weight to a digest.
    pub fn digest(&self, hash: &mut Xxh3) {
        for (_, _, values) in self.tensors() {
            hash.update(bytemuck::cast_slice(values));
        }
    }

    /// Checks that it was made for a model of this shape.
    ///
    /// # Errors
    /// [`Error::Indexer`] with both shapes.
    pub fn check(
        &self,
        layers: usize,
        kv_heads: usize,
        (hidden, head_dim): (usize, usize),
    ) -> Result<()> {
        let own = (self.retention.len(), self.kv_heads, self.hidden);
        if own != (layers, kv_heads, hidden) {
            return Err(Error::Indexer(format!(
                "made for a model with {} layers, {} KV heads, hidden size {}; this one has \
                 {layers}, {kv_heads}, {hidden}",
                own.0, own.1, own.2
            )));
        }
        match &self.associative {
            Some(memory) if memory.head_dim != head_dim => Err(Error::Indexer(format!(
                "made for a model with heads of {}; this one has heads of {head_dim}",
                memory.head_dim
            ))),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn indexer() -> Indexer {
        let scorer = |x: f32| LayerScorer {
            weight: vec![x; 6],
            bias: vec![x, 1.0],
            rate: vec![-1.0, 0.0],
            recent: None,
        };
        let rows = 2 * PairwiseWeights::rows(2, 4);
        let query = |x: f32| PairwiseLayer {
            weight: vec![x; rows * 3],
            bias: vec![x; rows],
            norm: vec![1.0; 2 * 4 * 4],
            offset: vec![x, 0.0],
        };
        let memory = |x: f32| AssociativeLayerWeights {
            features: vec![x; 3 * 8],
            gates: vec![x, 0.5],
        };
        Indexer {
            kv_heads: 2,
            hidden: 3,
            retention: vec![scorer(0.5), scorer(2.0)],
            query: Some(Arc::new(PairwiseWeights {
                heads: 2,
                dim: 4,
                layers: vec![query(0.125), query(0.25)],
            })),
            associative: Some(Arc::new(AssociativeWeights {
                features: 3,
                head_dim: 8,
                layers: vec![memory(1.0), memory(2.0)],
            })),
            metadata: [("seed".to_string(), "7".to_string())].into(),
        }
    }

    #[test]
    fn a_file_comes_back_as_it_was_written() {
        let small = Indexer {
            query: None,
            associative: None,
            ..indexer()
        };
        let mut two = small.clone();
        for layer in &mut two.retention {
            layer.rate = vec![0.0; 2];
            layer.recent = Some(RecentScorer {
                weight: vec![3.0; 6],
                bias: vec![0.5; 2],
                rate: vec![-2.0; 2],
            });
        }
        for indexer in [indexer(), small, two] {
            let back = Indexer::parse(&indexer.to_bytes().expect("fits the format"))
                .expect("just written");
            assert_eq!(
                (&back.retention, &back.query),
                (&indexer.retention, &indexer.query)
            );
            assert_eq!(back.associative, indexer.associative);
            assert_eq!(back.metadata["seed"], "7");
            assert!(back.check(2, 2, (3, 8)).is_ok());
            assert!(
                back.check(2, 4, (3, 8))
                    .unwrap_err()
                    .to_string()
                    .contains("4")
            );
            assert_eq!(
                back.check(2, 2, (3, 16)).is_err(),
                back.associative.is_some()
            );
        }
    }

    #[test]
    fn damaged_files_are_refused() {
        let bytes = indexer().to_bytes().expect("fits the format");
        for cut in 0..bytes.len() {
            assert!(Indexer::parse(&bytes[..cut]).is_err(), "cut at {cut}");
        }
        let mut nan = indexer();
        nan.retention[1].weight[0] = f32::NAN;
        let error = Indexer::parse(&nan.to_bytes().expect("fits")).unwrap_err();
        assert!(error.to_string().contains("retention.1.weight"), "{error}");
        let mut rising = indexer();
        rising.retention[1].rate[0] = 0.5;
        let error = Indexer::parse(&rising.to_bytes().expect("fits")).unwrap_err();
        assert!(error.to_string().contains("cannot rise"), "{error}");
        let mut both = indexer();
        let second = RecentScorer {
            weight: vec![3.0; 6],
            bias: vec![0.5; 2],
            rate: vec![-2.0; 2],
        };
        both.retention
            .iter_mut()
            .for_each(|layer| layer.recent = Some(second.clone()));
        let error = Indexer::parse(&both.to_bytes().expect("fits")).unwrap_err();
        assert!(
            error.to_string().contains("only that one passes"),
            "{error}"
        );
        // A part that the metadata does not know of, and a number that no memory holds.
        let text = String::from_utf8_lossy(&bytes).replace("query_dim", "query_dIm");
        assert_eq!(text.len(), String::from_utf8_lossy(&bytes).len());
        let swap = |from: &str, to: &str| {
            let at = bytes
                .windows(from.len())
                .position(|w| w == from.as_bytes())
                .expect("in the header");
            let mut changed = bytes.clone();
            changed[at..at + from.len()].copy_from_slice(to.as_bytes());
            Indexer::parse(&changed)
        };
        assert!(
            swap("query_dim", "query_dIm")
                .unwrap_err()
                .to_string()
                .contains("tensors")
        );
        assert!(swap("\"hidden\":\"3\"", "\"hidden\":\"4\"").is_err());
    }
}
