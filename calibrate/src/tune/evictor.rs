//! What goes at a boundary: one threshold for each KV head over all layers, and what is left of
//! every token by it. Nothing here has a gradient.

use candle_core::{Result, Tensor};
use palimpsest_models::config::ModelConfig;

use super::centroids::{Centroids, Snapshot};
use super::scorers::{LayerVars, Protected, Scorers, threshold};

/// Logarithm of the share by which a slot counts as gone to the memory.
const HALF: f32 = -std::f32::consts::LN_2;

/// What is left of a document.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Budget {
    /// Slots of each KV head beside the protected ones; their mean over layers.
    pub slots: f32,
    /// Centroids of each KV head; 0: no memory.
    pub centroids: usize,
}

/// One boundary, as it was.
pub(super) struct Boundary {
    /// Tokens before it.
    pub end: usize,
    /// `[K]`.
    pub thresholds: Vec<f32>,
    /// By layer; empty without a memory.
    pub memories: Vec<Snapshot>,
}

/// What is left of every token at a boundary, and the boundary itself.
pub(super) struct Evicted {
    /// The boundary.
    pub boundary: Boundary,
    /// Logarithms of what is left `[K, end]`, by layer.
    pub gates: Vec<Tensor>,
}

/// What a layer has seen.
#[derive(Default)]
pub(super) struct Past {
    /// `[2, K, s, D]`.
    pub entries: Option<Tensor>,
    /// `[P * K, s]`.
    scores: Option<Tensor>,
    memory: Option<Centroids>,
}

impl Past {
    /// Appends keys and values `[2, K, n, D]`; returns all of them.
    pub fn extend(&mut self, entries: &Tensor) -> Result<&Tensor> {
        append(&mut self.entries, entries, 2)
    }
}

/// Decides what goes, without gradients.
pub(super) struct Evictor<'a> {
    scorers: &'a Scorers,
    vars: Vec<LayerVars>,
    budget: Budget,
    protected: Protected,
    kv_heads: usize,
    head_dim: usize,
}

impl<'a> Evictor<'a> {
    /// Of a model of this shape.
    pub fn new(
        config: &ModelConfig,
        protected: Protected,
        scorers: &'a Scorers,
        budget: Budget,
    ) -> Result<Self> {
        let vars = (0..config.layers)
            .map(|layer| scorers.vars(layer))
            .collect::<Result<_>>()?;
        Ok(Self {
            scorers,
            vars,
            budget,
            protected,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
        })
    }

    /// Whether anything goes at the boundary `end`.
    pub fn evicts(&self, end: usize) -> bool {
        end as f32 > self.budget.slots + (self.protected.sinks + self.protected.window) as f32
    }

    /// Scores tokens of a layer with hidden states `[n, E]`.
    pub fn score(&self, layer: usize, hidden: &Tensor, past: &mut Past) -> Result<()> {
        let scores = self.scorers.scores(layer, &self.vars[layer], hidden)?;
        // Detached: what is decided here has no gradient.
        append(&mut past.scores, &scores.detach(), 1)?;
        Ok(())
    }

    /// Evicts at the boundary `end`.
    pub fn evict(&self, end: usize, pasts: &mut [Past]) -> Result<Evicted> {
        let candidates = self.protected.candidates(end);
        let faded = |(vars, past): (&LayerVars, &Past)| {
            let scores = past.scores.as_ref().expect("scored as it was read");
            let faded = self.scorers.faded(vars, scores, candidates.clone(), end)?;
            Ok(faded.detach())
        };
        let faded: Vec<Tensor> = self
            .vars
            .iter()
            .zip(pasts.iter())
            .map(faded)
            .collect::<Result<_>>()?;

        let pools = Tensor::cat(&faded, 1)?.to_vec2::<f32>()?;
        let wanted = self.budget.slots * pasts.len() as f32;
        let thresholds: Vec<f32> = pools.iter().map(|pool| threshold(pool, wanted)).collect();
        let gates = |faded: &Tensor| self.scorers.gates(faded, &thresholds, self.protected, end);
        let gates: Vec<Tensor> = faded.iter().map(gates).collect::<Result<_>>()?;

        let mut memories = Vec::new();
        if self.budget.centroids > 0 {
            for (past, gates) in pasts.iter_mut().zip(&gates) {
                memories.push(self.memorise(past, gates)?);
            }
        }
        Ok(Evicted {
            boundary: Boundary {
                end,
                thresholds,
                memories,
            },
            gates,
        })
    }

    /// Takes what went from a layer into its memory.
    fn memorise(&self, past: &mut Past, gates: &Tensor) -> Result<Snapshot> {
        let empty = || Centroids::new(self.kv_heads, self.budget.centroids, self.head_dim);
        let memory = past.memory.get_or_insert_with(empty);
        let entries = past.entries.as_ref().expect("read before");
        let values = |part: usize| entries.get(part)?.flatten_all()?.to_vec1::<f32>();
        let is_gone: Vec<bool> = gates
            .flatten_all()?
            .to_vec1::<f32>()?
            .iter()
            .map(|&left| left < HALF)
            .collect();
        memory.absorb(&values(0)?, &values(1)?, &is_gone);
        memory.snapshot()
    }
}

/// Puts `new` behind all that was there along `dim`.
fn append<'a>(all: &'a mut Option<Tensor>, new: &Tensor, dim: usize) -> Result<&'a Tensor> {
    let joined = match all.take() {
        Some(before) => Tensor::cat(&[&before, new], dim)?,
        None => new.clone(),
    };
    Ok(all.insert(joined))
}
