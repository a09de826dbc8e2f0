//! Forward passes: hidden states of a document and the attention its keys receive while it is repeated.

use crate::{Error, Result};
use palimpsest_kernels::Backend;
use palimpsest_worker::reconstruct::Reconstruction;
use palimpsest_worker::runner::Runner;
use std::sync::{Arc, Mutex};

/// What one document teaches.
pub struct Sample {
    /// Hidden states that enter attention, per layer `[n, E]`.
    pub hidden: Vec<Vec<f32>>,
    /// Targets per layer, `[n, K]`: logarithms of the reconstruction target.
    pub targets: Vec<Vec<f32>>,
    /// Tokens.
    pub len: usize,
}

/// Reads `document` and repeats it.
///
/// # Errors
/// [`Error::Arena`] when the document does not fit twice; those of the engine.
pub fn sample<B: Backend>(runner: &mut Runner<B>, reconstruction: &Reconstruction, document: &[u32]) -> Result<Sample> {
    let config = runner.decoder().config().clone();
    let needed = runner.full_cache_bytes(reconstruction.positions(document.len()));
    if needed > runner.arena_bytes() {
        return Err(Error::Arena { tokens: document.len(), needed: needed >> 20 });
    }
    let hidden = Arc::new(Mutex::new(vec![Vec::new(); config.layers]));
    let sink = hidden.clone();
    runner.capture(Some(Box::new(move |found| {
        let mut layers = sink.lock().expect("no capture panics");
        layers.get_mut(found.layer).expect("a layer of the model").extend_from_slice(found.hidden);
    })));
    let mut session = reconstruction.open(runner)?;
    let surprisals = reconstruction.read(&mut session, document)?;
    session.runner().capture(None);
    let table = reconstruction.repeat(&mut session, document, &surprisals)?;
    drop(session);
    let len = document.len();
    let mut targets = vec![vec![0.0; len * config.kv_heads]; config.layers];
    for (index, scores) in table.heads.iter().enumerate() {
        let (layer, kv_head) = (index / config.kv_heads, index % config.kv_heads);
        for (position, &score) in scores.iter().enumerate() {
            targets[layer][position * config.kv_heads + kv_head] = score;
        }
    }
    let hidden = std::mem::take(&mut *hidden.lock().expect("no capture panics"));
    Ok(Sample { hidden, targets, len })
}
