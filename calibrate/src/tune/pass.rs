//! A document read with a soft form of the service's eviction, and the gradient of what that costs.
//!
//! ```text
//! read:      stride by stride, all layers
//!            before each stride: scores ▸ one threshold per KV head over all layers ▸ gates
//! backward:  the losses' slopes at the last layer's output
//!            ▸ layer by layer from the last: the whole document once more
//! ```
//! Thresholds and memories are held fixed in the backward pass, and all that layers then exchange
//! is their input, so that only one layer's intermediate values are in memory at a time.

use std::ops::Range;

use candle_core::{DType, Device, Result, Tensor, Var};

use super::attention::{Seen, attend};
use super::centroids::Snapshot;
use super::documents::Document;
use super::evictor::{Boundary, Budget, Evictor, Past};
use super::model::{Angles, Model};
use super::scorers::{LayerVars, Protected, Scorers};

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
            .map(|(scorers, budget)| Evictor::new(&model.config, self.protected, scorers, budget))
            .transpose()?;
        let mut boundaries: Vec<Boundary> = Vec::new();
        for rows in self.segments(document) {
            let mut gates = None;
            if let Some(evictor) = evictor
                .as_ref()
                .filter(|evictor| evictor.evicts(rows.start))
            {
                let evicted = evictor.evict(rows.start, &mut pasts)?;
                boundaries.push(evicted.boundary);
                gates = Some(evicted.gates);
            }
            let angles = model.angles(rows.clone())?;
            let mut x = model.embed(&document.ids[rows.clone()])?;
            for (index, layer) in model.layers.iter().enumerate() {
                states[index].push(x.clone());
                let projected = model.project(layer, &x, &angles)?;
                if let Some(evictor) = &evictor {
                    evictor.score(index, &projected.hidden, &mut pasts[index])?;
                }
                let entries = pasts[index].extend(&projected.entries)?;
                let memory = boundaries
                    .last()
                    .filter(|_| gates.is_some())
                    .and_then(|boundary| boundary.memories.get(index));
                let gates = gates.as_ref().map(|gates| &gates[index]);
                let read = self.attend(&projected.queries, entries, gates, memory)?;
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
            window: self.model.config.differences.sliding_window,
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
        let replay = Replay::new(self, document, scorers, reading)?;
        let (mut slopes, mut by_layer) = (slopes, Vec::new());
        for index in (0..self.model.layers.len()).rev() {
            let x = Var::from_tensor(&reading.states[index])?;
            let vars = scorers.vars(index)?;
            let output = replay.layer(index, &x, &vars)?;
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
        let replay = Replay::new(self, document, scorers, reading)?;
        let mut x = self.model.embed(&document.ids)?;
        for index in 0..self.model.layers.len() {
            x = replay.layer(index, &x, &scorers.vars(index)?)?.detach();
        }
        Ok(x)
    }
}

/// A document that is read once more, a layer at a time, at the boundaries of an earlier reading.
struct Replay<'a> {
    reader: &'a Reader<'a>,
    scorers: &'a Scorers,
    reading: &'a Reading,
    segments: Vec<Range<usize>>,
    angles: Angles,
}

impl<'a> Replay<'a> {
    fn new(
        reader: &'a Reader<'_>,
        document: &Document,
        scorers: &'a Scorers,
        reading: &'a Reading,
    ) -> Result<Self> {
        Ok(Self {
            reader,
            scorers,
            reading,
            segments: reader.segments(document),
            angles: reader.model.angles(0..document.ids.len())?,
        })
    }

    /// A layer over the whole document. `x`: its input `[n, E]`; `vars`: its scorers.
    fn layer(&self, index: usize, x: &Tensor, vars: &LayerVars) -> Result<Tensor> {
        let model = self.reader.model;
        let layer = &model.layers[index];
        let projected = model.project(layer, x, &self.angles)?;
        let scores = self.scorers.scores(index, vars, &projected.hidden)?;
        let mut read = Vec::new();
        for rows in &self.segments {
            let boundaries = &self.reading.boundaries;
            let boundary = boundaries
                .iter()
                .find(|boundary| boundary.end == rows.start);
            let gates = boundary
                .map(|boundary| self.gates(boundary, vars, &scores))
                .transpose()?;
            let memory = boundary.and_then(|boundary| boundary.memories.get(index));
            let queries = projected.queries.narrow(2, rows.start, rows.len())?;
            let entries = projected.entries.narrow(2, 0, rows.end)?;
            let reader = self.reader;
            read.push(reader.attend(&queries, &entries, gates.as_ref(), memory)?);
        }
        model.finish(layer, x, &Tensor::cat(&read, 0)?)
    }

    fn gates(&self, boundary: &Boundary, vars: &LayerVars, scores: &Tensor) -> Result<Tensor> {
        let Boundary {
            end, thresholds, ..
        } = boundary;
        let protected = self.reader.protected;
        let candidates = protected.candidates(*end);
        let faded = self.scorers.faded(vars, scores, candidates, *end)?;
        self.scorers.gates(&faded, thresholds, protected, *end)
    }
}
