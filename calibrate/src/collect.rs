//! Forward passes: what every layer computes for a document, and the attention its keys receive
//! while it is repeated.

use std::sync::{Arc, Mutex};

use palimpsest_engine::kv::Entries;
use palimpsest_engine::offline::reconstruction::Reconstruction;
use palimpsest_engine::runner::Runner;
use palimpsest_kernels::Backend;

use crate::{Error, Result};

/// What one document teaches, per decoder layer.
#[derive(Debug, Default, PartialEq)]
pub struct Sample {
    /// Tokens.
    pub len: usize,
    /// One per decoder layer.
    pub layers: Vec<LayerSample>,
}

/// What one document teaches one layer.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LayerSample {
    /// Normalised hidden states that enter attention `[n, E]`.
    pub hidden: Vec<f32>,
    /// Logarithms of the reconstruction target `[n, K]`.
    pub targets: Vec<f32>,
    /// Queries, rotated `[n, H, D]`. Empty unless the memory learns from this document, as are
    /// keys and values.
    pub queries: Vec<f32>,
    /// Keys, rotated `[K, n, D]`.
    pub keys: Vec<f32>,
    /// Values `[K, n, D]`.
    pub values: Vec<f32>,
}

/// Reads `document` and repeats it. Queries, keys and values are recorded `with_attention`.
///
/// # Errors
/// [`Error::Arena`] when the document does not fit twice; those of the engine.
pub fn sample<B: Backend>(
    runner: &mut Runner<B>,
    reconstruction: &Reconstruction,
    document: &[u32],
    with_attention: bool,
) -> Result<Sample> {
    let config = runner.decoder().config().clone();
    let needed = runner.full_cache_bytes(reconstruction.positions(document.len()));
    if needed > runner.arena_bytes() {
        return Err(Error::Arena {
            tokens: document.len(),
            needed: needed >> 20,
        });
    }
    let layers = Arc::new(Mutex::new(vec![LayerSample::default(); config.layers]));
    let sink = layers.clone();
    runner.capture(Some(Box::new(move |found| {
        let mut layers = sink.lock().expect("no capture panics");
        let layer = layers.get_mut(found.layer).expect("a layer of the model");
        layer.hidden.extend_from_slice(found.hidden);
        if with_attention {
            layer.queries.extend_from_slice(found.queries);
        }
    })));
    let mut sequence = reconstruction.open(runner)?;
    let weights = reconstruction.read(&mut sequence, document)?;
    sequence.runner().capture(None);
    let mut layers = std::mem::take(&mut *layers.lock().expect("no capture panics"));
    if with_attention {
        for (index, layer) in layers.iter_mut().enumerate() {
            for kv_head in 0..config.kv_heads {
                let Entries { keys, values } =
                    sequence.entries(index * config.kv_heads + kv_head)?;
                layer.keys.extend(keys);
                layer.values.extend(values);
            }
        }
    }
    let table = reconstruction.repeat(&mut sequence, document, weights)?;
    drop(sequence);
    for layer in &mut layers {
        layer.targets = vec![0.0; document.len() * config.kv_heads];
    }
    for (index, scores) in table.heads.iter().enumerate() {
        let (layer, kv_head) = (index / config.kv_heads, index % config.kv_heads);
        for (position, &score) in scores.iter().enumerate() {
            layers[layer].targets[position * config.kv_heads + kv_head] = score;
        }
    }
    Ok(Sample {
        len: document.len(),
        layers,
    })
}
