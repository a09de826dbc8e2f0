//! Forward passes: hidden states of a document and the attention its keys receive while it is repeated.

use crate::{Error, Result};
use palimpsest_kernels::{Backend, Reduce};
use palimpsest_worker::kv::Contract;
use palimpsest_worker::model::decoder::Logits;
use palimpsest_worker::policy::{HeadView, Observe, Policy};
use palimpsest_worker::runner::Runner;
use palimpsest_worker::session::Session;
use std::sync::{Arc, Mutex};

/// Keeps everything and records the largest attention probability of every slot.
struct MaxObserver;

/// Name of the observing policy, for this crate only.
const OBSERVER: &str = "max-attention";

impl Policy for MaxObserver {
    fn name(&self) -> &'static str {
        OBSERVER
    }
    fn comparable(&self) -> bool {
        true
    }
    fn observes(&self) -> Option<Observe> {
        Some(Observe { last_rows: None, reduce: Reduce::Max })
    }
    fn score(&self, head: &HeadView<'_>, scores: &mut [f32]) {
        scores.copy_from_slice(head.mass);
    }
}

/// Smallest probability that a target distinguishes.
const LEAST: f32 = 1e-8;

/// What one document teaches.
pub struct Sample {
    /// Hidden states that enter attention, per layer `[n, E]`.
    pub hidden: Vec<Vec<f32>>,
    /// Targets per layer, `[n, K]`: log of the largest attention a key received during the repetition.
    pub targets: Vec<Vec<f32>>,
    /// Tokens.
    pub len: usize,
}

/// Makes the observing policy known to a runner.
pub fn prepare<B: Backend>(runner: &mut Runner<B>) {
    if !runner.policies().iter().any(|p| p.name() == OBSERVER) {
        runner.add_policy(Arc::new(MaxObserver));
    }
}

/// Reads `document`, then `instruction` and the document again.
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
    let contract = Contract { policy: OBSERVER.into(), ..Contract::full() };
    let mut session = Session::open(runner, contract)?;
    session.feed(document, Logits::None)?;
    session.runner().capture(None);
    for head in &mut session.cache().heads {
        head.mass.fill(0.0);
    }
    session.feed(instruction, Logits::None)?;
    session.feed(document, Logits::None)?;
    let len = document.len();
    let mut targets = vec![vec![0.0; len * config.kv_heads]; config.layers];
    for (index, head) in session.cache().heads.iter().enumerate() {
        let (layer, kv_head) = (index / config.kv_heads, index % config.kv_heads);
        for (position, &mass) in head.mass[..len].iter().enumerate() {
            targets[layer][position * config.kv_heads + kv_head] = mass.max(LEAST).ln();
        }
    }
    drop(session);
    let hidden = std::mem::take(&mut *hidden.lock().expect("no capture panics"));
    Ok(Sample { hidden, targets, len })
}
