//! Forward passes: hidden states of a document and the attention its keys receive while it is repeated.

use crate::{Error, Result};
use palimpsest_kernels::Backend;
use palimpsest_worker::model::decoder::Logits;
use palimpsest_worker::reconstruct;
use palimpsest_worker::runner::Runner;
use palimpsest_worker::session::Session;
use std::sync::{Arc, Mutex};

/// What one document teaches.
pub struct Sample {
    /// Hidden states that enter attention, per layer `[n, E]`.
    pub hidden: Vec<Vec<f32>>,
    /// Targets per layer, `[n, K]`: log of the largest attention a key received during the repetition.
    pub targets: Vec<Vec<f32>>,
    /// Tokens.
    pub len: usize,
}

/// Reads `document`, then `instruction` and the document again. The runner needs [`reconstruct::prepare`].
///
/// # Errors
/// [`Error::Arena`] when the document does not fit twice; those of the engine.
pub fn sample<B: Backend>(runner: &mut Runner<B>, document: &[u32], instruction: &[u32]) -> Result<Sample> {
    let config = runner.decoder().config().clone();
    let tokens = 2 * document.len() + instruction.len();
    let needed = runner.full_cache_bytes(tokens);
    if needed > runner.arena_bytes() {
        return Err(Error::Arena { tokens: document.len(), needed: needed >> 20 });
    }
    let hidden = Arc::new(Mutex::new(vec![Vec::new(); config.layers]));
    let sink = hidden.clone();
    runner.capture(Some(Box::new(move |layer, rows| {
        sink.lock().expect("no capture panics").get_mut(layer).expect("a layer of the model").extend_from_slice(rows);
    })));
    let mut session = Session::open(runner, reconstruct::contract())?;
    session.feed(document, Logits::None)?;
    session.runner().capture(None);
    let table = reconstruct::repeat(&mut session, document, instruction)?;
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
