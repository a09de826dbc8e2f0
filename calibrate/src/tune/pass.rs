//! A document read with a soft form of the service's eviction, and the gradient of what that costs.
//!
//! ```text
//! read:      stride by stride, all layers; before each stride: scores ▸ one threshold per KV head over all layers ▸ gates
//! backward:  the losses' slopes at the last layer's output ▸ layer by layer from the last: the whole document once more
//! ```
//! Thresholds and memories are held fixed in the backward pass, and all that layers then exchange
//! is their input, so that only one layer's intermediate values are in memory at a time.

use std::ops::Range;

use candle_core::{DType, Device, Result, Tensor, Var};

use super::attention::{Seen, attend};
use super::centroids::{Centroids, Snapshot};
use super::model::Model;
use super::scorers::{LayerVars, Protected, Scorers, threshold};

/// Logarithm of the share by which a slot counts as gone to the memory.
const HALF: f32 = -std::f32::consts::LN_2;
/// Tokens to read and to answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// All tokens.
    pub ids: Vec<u32>,
    /// Tokens that are evicted from, whole strides.
    pub length: usize,
    /// Positions of the answers' tokens, behind those.
    pub answers: Vec<usize>,
}

/// What is left of a document.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Budget {
    /// Slots of each KV head beside the protected ones; their mean over layers.
    pub slots: f32,
    /// Centroids of each KV head; 0: no memory.
    pub centroids: usize,
}

/// One boundary, as it was.
struct Boundary {
    end: usize,
    /// `[K]`.
    thresholds: Vec<f32>,
    /// By layer; empty without a memory.
    memories: Vec<Snapshot>,
}

/// What a pass leaves for another.
pub struct Reading {
    /// Inputs of every layer `[n, E]`, and the last one's output.
    pub states: Vec<Tensor>,
    boundaries: Vec<Boundary>,
}

impl Reading {
    /// The last layer's output `[n, E]`.
    pub fn output(&self) -> &Tensor {
        self.states.last().expect("a model has layers")
    }
}

/// Reads documents.
pub struct Reader<'a> {
    /// The model.
    pub model: &'a Model,
    /// Tokens between boundaries.
    pub stride: usize,
    /// What never goes.
    pub protected: Protected,
}

impl Reader<'_> {
    fn segments(&self, document: &Document) -> Vec<Range<usize>> {
        let mut ends: Vec<usize> = (self.stride..=document.length)
            .step_by(self.stride)
            .collect();
        ends.push(document.ids.len());
        let starts = std::iter::once(0).chain(ends.clone());
        starts
            .zip(ends)
            .map(|(start, end)| start..end)
            .filter(|segment| !segment.is_empty())
            .collect()
    }

    /// Reads with the full cache.
    ///
    /// # Errors
    /// Those of candle.
    pub fn read_full(&self, document: &Document) -> Result<Reading> {
        self.read(document, None)
    }

    /// Reads with eviction at every boundary.
    ///
    /// # Errors
    /// Those of candle.
    pub fn read_evicting(
        &self,
        document: &Document,
        scorers: &Scorers,
        budget: Budget,
    ) -> Result<Reading> {
        self.read(document, Some((scorers, budget)))
    }

    fn read(&self, document: &Document, eviction: Option<(&Scorers, Budget)>) -> Result<Reading> {
        let (model, layers) = (self.model, self.model.layers.len());
        let mut states: Vec<Vec<Tensor>> = vec![Vec::new(); layers + 1];
        let mut pasts: Vec<Past> = (0..layers).map(|_| Past::default()).collect();
        let evictor = eviction
            .map(|(scorers, budget)| Evictor::new(self, scorers, budget))
            .transpose()?;
        let mut boundaries = Vec::new();
        for rows in self.segments(document) {
            let mut gates = None;
            if let Some(evictor) = evictor
                .as_ref()
                .filter(|evictor| evictor.evicts(rows.start))
            {
                let (boundary, left) = evictor.boundary(rows.start, &mut pasts)?;
                boundaries.push(boundary);
                gates = Some(left);
            }
            let angles = model.angles(rows.clone())?;
            let mut x = model.embed(&document.ids[rows.clone()])?;
            for (index, layer) in model.layers.iter().enumerate() {
                states[index].push(x.clone());
                let projected = model.project(layer, &x, &angles)?;
                if let Some(evictor) = &evictor {
                    evictor.score(index, &projected.hidden, &mut pasts[index])?;
                }
                append(&mut pasts[index].entries, &projected.entries, 2)?;
                let entries = pasts[index].entries.as_ref().expect("just appended");
                let memory = boundaries
                    .last()
                    .filter(|_| gates.is_some())
                    .and_then(|b: &Boundary| b.memories.get(index));
                let read = self.attend(
                    &projected.queries,
                    entries,
                    gates.as_ref().map(|gates| &gates[index]),
                    memory,
                )?;
                x = model.finish(layer, &x, &read)?;
            }
            states[layers].push(x);
        }
        let states = states
            .iter()
            .map(|parts| Tensor::cat(parts, 0))
            .collect::<Result<_>>()?;
        Ok(Reading { states, boundaries })
    }

    /// What queries `[K, g, n, D]` read, `[n, H * D]`. `entries`: `[2, K, s, D]`, theirs last;
    /// `gates`: `[K, s - n]`, `None` where all is left.
    fn attend(
        &self,
        queries: &Tensor,
        entries: &Tensor,
        gates: Option<&Tensor>,
        memory: Option<&Snapshot>,
    ) -> Result<Tensor> {
        let (kv_heads, group, rows, dim) = queries.dims4()?;
        let zeros = |tokens: usize| Tensor::zeros((kv_heads, tokens), DType::F32, &Device::Cpu);
        let own = entries.dim(2)?;
        let mut left = match gates {
            Some(gates) => Tensor::cat(&[gates.clone(), zeros(own - gates.dim(1)?)?], 1)?,
            None => zeros(own)?,
        };
        let mut entries = entries.clone();
        let mut seen = Seen {
            rows,
            centroids: 0,
            window: self.model.config.sliding_window,
        };
        if let Some(memory) = memory {
            seen.centroids = memory.counts.dim(1)?;
            left = Tensor::cat(&[&memory.counts, &left], 1)?;
            entries = Tensor::cat(&[&memory.entries, &entries], 2)?;
        }
        let queries = queries
            .contiguous()?
            .reshape((kv_heads, group * rows, dim))?;
        let read = attend(&queries, &entries, &left, seen)?;
        read.reshape((kv_heads * group, rows, dim))?
            .transpose(0, 1)?
            .contiguous()?
            .reshape((rows, ()))
    }

    /// The gradient of the scorers' parameters, by kind, all layers. `slopes`: of the last layer's
    /// output `[n, E]`.
    ///
    /// # Errors
    /// Those of candle.
    pub fn backward(
        &self,
        document: &Document,
        scorers: &Scorers,
        reading: &Reading,
        slopes: Tensor,
    ) -> Result<[Vec<f32>; 3]> {
        let angles = self.model.angles(0..document.ids.len())?;
        let (mut slopes, mut by_layer) = (slopes, Vec::new());
        for index in (0..self.model.layers.len()).rev() {
            let x = Var::from_tensor(&reading.states[index])?;
            let vars = scorers.vars(index)?;
            let output = self.layer(document, (index, &x), (scorers, &vars), reading, &angles)?;
            let grads = (output * slopes)?.sum_all()?.backward()?;
            by_layer.push(vars.slopes(&grads)?);
            slopes = grads
                .get(&x)
                .expect("a layer's output depends on its input")
                .clone();
        }
        let of = |kind: usize| {
            by_layer
                .iter()
                .rev()
                .flat_map(|slopes| slopes[kind].iter().copied())
                .collect()
        };
        Ok([of(0), of(1), of(2)])
    }

    /// The last layer's output `[n, E]` with other scorers, at the thresholds and with the memories
    /// of a reading.
    #[cfg(test)]
    pub(super) fn replay(
        &self,
        document: &Document,
        scorers: &Scorers,
        reading: &Reading,
    ) -> Result<Tensor> {
        let angles = self.model.angles(0..document.ids.len())?;
        let mut x = self.model.embed(&document.ids)?;
        for index in 0..self.model.layers.len() {
            let vars = scorers.vars(index)?;
            x = self
                .layer(document, (index, &x), (scorers, &vars), reading, &angles)?
                .detach();
        }
        Ok(x)
    }

    /// A layer over the whole document, at the boundaries of a reading. `x`: `[n, E]`.
    fn layer(
        &self,
        document: &Document,
        (index, x): (usize, &Tensor),
        (scorers, vars): (&Scorers, &LayerVars),
        reading: &Reading,
        angles: &(Tensor, Tensor),
    ) -> Result<Tensor> {
        let layer = &self.model.layers[index];
        let projected = self.model.project(layer, x, angles)?;
        let scores = scorers.scores(index, vars, &projected.hidden)?;
        let mut read = Vec::new();
        for rows in self.segments(document) {
            let boundary = reading
                .boundaries
                .iter()
                .find(|boundary| boundary.end == rows.start);
            let gates = |boundary: &Boundary| {
                let candidates = self.protected.candidates(boundary.end);
                let faded = scorers.faded(vars, &scores, candidates, boundary.end)?;
                scorers.gates(&faded, &boundary.thresholds, self.protected, boundary.end)
            };
            let gates = boundary.map(gates).transpose()?;
            let memory = boundary.and_then(|boundary| boundary.memories.get(index));
            let queries = projected.queries.narrow(2, rows.start, rows.len())?;
            let entries = projected.entries.narrow(2, 0, rows.end)?;
            read.push(self.attend(&queries, &entries, gates.as_ref(), memory)?);
        }
        self.model.finish(layer, x, &Tensor::cat(&read, 0)?)
    }
}

/// What a layer has seen.
#[derive(Default)]
struct Past {
    /// `[2, K, s, D]`.
    entries: Option<Tensor>,
    /// `[P * K, s]`.
    scores: Option<Tensor>,
    memory: Option<Centroids>,
}

/// Decides what goes, without gradients.
struct Evictor<'a> {
    scorers: &'a Scorers,
    vars: Vec<LayerVars>,
    budget: Budget,
    protected: Protected,
    /// `K`, `D`.
    heads: (usize, usize),
}

impl<'a> Evictor<'a> {
    fn new(reader: &Reader<'_>, scorers: &'a Scorers, budget: Budget) -> Result<Self> {
        let config = &reader.model.config;
        let vars = (0..config.layers)
            .map(|layer| scorers.vars(layer))
            .collect::<Result<_>>()?;
        Ok(Self {
            scorers,
            vars,
            budget,
            protected: reader.protected,
            heads: (config.kv_heads, config.head_dim),
        })
    }

    fn evicts(&self, end: usize) -> bool {
        end as f32 > self.budget.slots + (self.protected.sinks + self.protected.window) as f32
    }

    fn score(&self, layer: usize, hidden: &Tensor, past: &mut Past) -> Result<()> {
        // Detached: what is decided here has no gradient.
        append(
            &mut past.scores,
            &self
                .scorers
                .scores(layer, &self.vars[layer], hidden)?
                .detach(),
            1,
        )
    }

    /// The boundary, and what is left of every token `[K, end]`, by layer.
    fn boundary(&self, end: usize, pasts: &mut [Past]) -> Result<(Boundary, Vec<Tensor>)> {
        let (kv_heads, dim) = self.heads;
        let candidates = self.protected.candidates(end);
        let faded = |(vars, past): (&LayerVars, &Past)| {
            let scores = past.scores.as_ref().expect("scored as it was read");
            Ok(self
                .scorers
                .faded(vars, scores, candidates.clone(), end)?
                .detach())
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
                let memory = past
                    .memory
                    .get_or_insert_with(|| Centroids::new(kv_heads, self.budget.centroids, dim));
                let entries = past.entries.as_ref().expect("read before");
                let values = |part: usize| entries.get(part)?.flatten_all()?.to_vec1::<f32>();
                let is_gone: Vec<bool> = gates
                    .flatten_all()?
                    .to_vec1::<f32>()?
                    .iter()
                    .map(|&left| left < HALF)
                    .collect();
                memory.absorb(&values(0)?, &values(1)?, &is_gone);
                memories.push(memory.snapshot()?);
            }
        }
        Ok((
            Boundary {
                end,
                thresholds,
                memories,
            },
            gates,
        ))
    }
}

fn append(all: &mut Option<Tensor>, new: &Tensor, dim: usize) -> Result<()> {
    *all = Some(match all.take() {
        Some(before) => Tensor::cat(&[&before, new], dim)?,
        None => new.clone(),
    });
    Ok(())
}
