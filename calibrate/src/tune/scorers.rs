//! The scorers that are tuned: `max(m, n - e^f age / AGE)` per layer and KV head, `m` and `n`
//! linear in the hidden state; `m` alone where there is no second scorer. What is trained is a
//! change of both, on standardised inputs.

use std::ops::Range;

use candle_core::{Device, Result, Tensor, Var};
use palimpsest_engine::policy::retention::{AGE, LayerScorer, RecentScorer};

use crate::gradient::Adam;

/// How sharply a slot below the threshold is gone, nats of score.
const TEMPERATURE: f32 = 0.5;
/// Lowest exponent: below it nothing is left of a slot, and its logarithm would overflow.
const LOWEST: f64 = -60.0;
/// How much faster biases and rates are learned than weights: one number for a whole head has to
/// move further than one of many hundred.
const SINGLE: f32 = 15.0;
/// Adam's memory of slopes and of their squares.
const DECAY: (f32, f32) = (0.9, 0.98);
/// A step's share of the running mean that is saved: every step sees a single document.
const AVERAGE: f32 = 0.04;
/// Largest norm of a step's gradient.
const CLIP: f32 = 1.0;

/// Slots that never go, and entries' ages at the boundary `end`.
#[derive(Debug, Clone, Copy)]
pub struct Protected {
    /// First tokens.
    pub sinks: usize,
    /// Last tokens.
    pub window: usize,
}

impl Protected {
    /// Positions that may go at the boundary `end`.
    pub fn candidates(self, end: usize) -> Range<usize> {
        self.sinks..end.saturating_sub(self.window).max(self.sinks)
    }
}

/// Values of all layers that are trained alike, with their running mean.
pub struct Parameters {
    pub(super) values: Vec<f32>,
    pub(super) mean: Vec<f32>,
    pub(super) adam: Adam,
    per_layer: usize,
    speed: f32,
}

impl Parameters {
    fn new(values: Vec<f32>, layers: usize, speed: f32) -> Self {
        let (len, mean) = (values.len(), values.clone());
        Self {
            values,
            mean,
            adam: Adam::with_decay(len, DECAY),
            per_layer: len / layers,
            speed,
        }
    }

    fn of(&self, layer: usize) -> &[f32] {
        &self.values[layer * self.per_layer..][..self.per_layer]
    }
}

/// One layer's fixed part.
struct Layer {
    /// `[P * K, E]`, `[P * K, 1]`.
    weight: Tensor,
    bias: Tensor,
    /// `[1, E]`, `[E, 1]`.
    inverse: Tensor,
    mean: Tensor,
}

/// The variables of one layer, and what they make of it.
pub struct LayerVars {
    /// `[P * K, E]`, `[P * K, 1]` and `[K, 1]`.
    vars: [Var; 3],
}

impl LayerVars {
    /// The layer's part of a gradient, by kind of parameter; zeros where nothing depended on it.
    pub fn slopes(&self, grads: &candle_core::backprop::GradStore) -> Result<[Vec<f32>; 3]> {
        let of = |var: &Var| match grads.get(var) {
            Some(slope) => slope.flatten_all()?.to_vec1(),
            None => Ok(vec![0.0; var.elem_count()]),
        };
        let [change, shift, fade] = &self.vars;
        Ok([of(change)?, of(shift)?, of(fade)?])
    }
}

/// A scorer of every KV head of a layer, for hidden states as they are.
struct Folded {
    weight: Vec<f32>,
    bias: Vec<f32>,
}

/// Scorers of all layers.
pub struct Scorers {
    layers: Vec<Layer>,
    start: Vec<LayerScorer>,
    kv_heads: usize,
    hidden: usize,
    parts: usize,
    /// Changes of weights, shifts of biases, logarithms of rates.
    pub(super) parameters: [Parameters; 3],
}

impl Scorers {
    /// Starts from those of an indexer. `inputs`: some hidden states of every layer `[n, E]`, by
    /// which they are standardised.
    ///
    /// # Errors
    /// Those of candle.
    pub fn new(start: Vec<LayerScorer>, kv_heads: usize, inputs: &[Tensor]) -> Result<Self> {
        let parts = 1 + usize::from(start.iter().all(|layer| layer.recent.is_some()));
        let hidden = inputs.first().map_or(Ok(0), |input| input.dim(1))?;
        let layers = start
            .iter()
            .zip(inputs)
            .map(|(scorer, input)| Layer::new(scorer, parts, input));
        let layers: Vec<_> = layers.collect::<Result<_>>()?;
        let count = layers.len();
        let rate = |layer: &LayerScorer| {
            layer
                .recent
                .as_ref()
                .map_or(vec![0.0; kv_heads], |recent| recent.rate.clone())
        };
        let fade = start
            .iter()
            .flat_map(rate)
            .map(|rate| (-rate).max(1e-3).ln())
            .collect();
        let parameters = [
            Parameters::new(vec![0.0; count * parts * kv_heads * hidden], count, 1.0),
            Parameters::new(vec![0.0; count * parts * kv_heads], count, SINGLE),
            Parameters::new(fade, count, SINGLE),
        ];
        Ok(Self {
            layers,
            start,
            kv_heads,
            hidden,
            parts,
            parameters,
        })
    }

    /// Variables with the present values of a layer's parameters.
    ///
    /// # Errors
    /// Those of candle.
    pub fn vars(&self, layer: usize) -> Result<LayerVars> {
        let rows = self.parts * self.kv_heads;
        let [change, shift, fade] = &self.parameters;
        let var = |parameters: &Parameters, shape: (usize, usize)| {
            Var::from_slice(parameters.of(layer), shape, &Device::Cpu)
        };
        Ok(LayerVars {
            vars: [
                var(change, (rows, self.hidden))?,
                var(shift, (rows, 1))?,
                var(fade, (self.kv_heads, 1))?,
            ],
        })
    }

    /// Scores `[P * K, n]` of tokens with hidden states `[n, E]`.
    ///
    /// # Errors
    /// Those of candle.
    pub fn scores(&self, layer: usize, vars: &LayerVars, hidden: &Tensor) -> Result<Tensor> {
        let fixed = &self.layers[layer];
        let [change, shift, _] = &vars.vars;
        let change = change.broadcast_mul(&fixed.inverse)?;
        let weight = (&fixed.weight + &change)?;
        let bias = ((&fixed.bias + shift.as_tensor())? - change.matmul(&fixed.mean)?)?;
        weight.matmul(&hidden.t()?)?.broadcast_add(&bias)
    }

    /// Scores `[K, m]` of the tokens at `candidates`, at the boundary `end`.
    ///
    /// # Errors
    /// Those of candle.
    pub fn faded(
        &self,
        vars: &LayerVars,
        scores: &Tensor,
        candidates: Range<usize>,
        end: usize,
    ) -> Result<Tensor> {
        let kept = scores.narrow(1, candidates.start, candidates.len())?;
        let asked_for = kept.narrow(0, 0, self.kv_heads)?;
        if self.parts == 1 {
            return Ok(asked_for);
        }
        let age: Vec<f32> = candidates
            .map(|position| (end - 1 - position) as f32 / AGE)
            .collect();
        let age = Tensor::new(age, &Device::Cpu)?.unsqueeze(0)?;
        let passed = vars.vars[2].exp()?.broadcast_mul(&age)?;
        asked_for.maximum(&(kept.narrow(0, self.kv_heads, self.kv_heads)? - passed)?)
    }

    /// Logarithms of what is left of every token before the boundary `end`, `[K, end]`.
    /// `thresholds`: `[K]`.
    ///
    /// # Errors
    /// Those of candle.
    pub fn gates(
        &self,
        faded: &Tensor,
        thresholds: &[f32],
        protected: Protected,
        end: usize,
    ) -> Result<Tensor> {
        let thresholds = Tensor::from_slice(thresholds, (self.kv_heads, 1), &Device::Cpu)?;
        let above =
            (faded.broadcast_sub(&thresholds)? / f64::from(TEMPERATURE))?.maximum(LOWEST)?;
        let left = (above.neg()?.exp()? + 1.0)?.log()?.neg()?;
        let edge = |tokens| {
            Tensor::zeros(
                (self.kv_heads, tokens),
                candle_core::DType::F32,
                &Device::Cpu,
            )
        };
        let candidates = protected.candidates(end);
        Tensor::cat(
            &[edge(candidates.start)?, left, edge(end - candidates.end)?],
            1,
        )
    }

    /// A step of size `rate` against the gradient of all layers. The mean follows.
    pub fn step(&mut self, mut slopes: [Vec<f32>; 3], rate: f32) {
        let square: f64 = slopes
            .iter()
            .flatten()
            .map(|slope| f64::from(*slope) * f64::from(*slope))
            .sum();
        let scale = (f64::from(CLIP) / square.sqrt()).min(1.0) as f32;
        for (parameters, slopes) in self.parameters.iter_mut().zip(&mut slopes) {
            slopes.iter_mut().for_each(|slope| *slope *= scale);
            parameters
                .adam
                .step(&mut parameters.values, slopes, rate * parameters.speed);
            let means = parameters.mean.iter_mut().zip(&parameters.values);
            means.for_each(|(mean, value)| *mean += AVERAGE * (value - *mean));
        }
    }

    /// The averaged scorers, for hidden states as they are.
    ///
    /// # Errors
    /// Those of candle.
    pub fn folded(&self) -> Result<Vec<LayerScorer>> {
        let [change, shift, fade] = &self.parameters;
        let layer = |index: usize| {
            let mean = |of: &Parameters| of.mean[index * of.per_layer..][..of.per_layer].to_vec();
            let fixed = &self.layers[index];
            let inverse: Vec<f32> = fixed.inverse.flatten_all()?.to_vec1()?;
            let centre: Vec<f32> = fixed.mean.flatten_all()?.to_vec1()?;
            let (change, shift, fade) = (mean(change), mean(shift), mean(fade));
            let folded = |part: usize, weight: &[f32], bias: &[f32]| {
                let rows = part * self.kv_heads..(part + 1) * self.kv_heads;
                let changes = change[rows.start * self.hidden..rows.end * self.hidden]
                    .chunks_exact(self.hidden);
                let changes: Vec<Vec<f32>> = changes
                    .map(|row| row.iter().zip(&inverse).map(|(c, i)| c * i).collect())
                    .collect();
                let moved = |row: &[f32]| row.iter().zip(&centre).map(|(c, m)| c * m).sum::<f32>();
                let biases = bias.iter().zip(&shift[rows]).zip(&changes);
                let weights = weight.iter().zip(changes.iter().flatten());
                Folded {
                    weight: weights.map(|(w, c)| w + c).collect(),
                    bias: biases.map(|((b, s), row)| b + s - moved(row)).collect(),
                }
            };
            let start = &self.start[index];
            let Folded { weight, bias } = folded(0, &start.weight, &start.bias);
            let recent = start.recent.as_ref().map(|recent| {
                let Folded { weight, bias } = folded(1, &recent.weight, &recent.bias);
                RecentScorer {
                    weight,
                    bias,
                    rate: fade.iter().map(|fade| -fade.exp()).collect(),
                }
            });
            Ok(LayerScorer {
                weight,
                bias,
                rate: start.rate.clone(),
                recent,
            })
        };
        (0..self.layers.len()).map(layer).collect()
    }
}

impl Layer {
    fn new(scorer: &LayerScorer, parts: usize, input: &Tensor) -> Result<Self> {
        let hidden = input.dim(1)?;
        let (mut weight, mut bias) = (scorer.weight.clone(), scorer.bias.clone());
        if let Some(recent) = scorer.recent.as_ref().filter(|_| parts == 2) {
            weight.extend(&recent.weight);
            bias.extend(&recent.bias);
        }
        let mean = input.mean_keepdim(0)?;
        let deviation = (input.broadcast_sub(&mean)?.sqr()?.mean_keepdim(0)?.sqrt()? + 1e-3)?;
        let rows = bias.len();
        Ok(Self {
            weight: Tensor::from_vec(weight, (rows, hidden), &Device::Cpu)?,
            bias: Tensor::from_vec(bias, (rows, 1), &Device::Cpu)?,
            inverse: deviation.recip()?,
            mean: mean.t()?.contiguous()?,
        })
    }
}

/// Where the soft shares of all slots add up to `count`.
pub fn threshold(scores: &[f32], count: f32) -> f32 {
    let least = scores.iter().copied().fold(f32::INFINITY, f32::min);
    let most = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let (mut low, mut high) = (least - 20.0, most + 20.0);
    for _ in 0..40 {
        let middle = (low + high) / 2.0;
        let share = |score: &f32| f64::from(1.0 / (1.0 + (-(score - middle) / TEMPERATURE).exp()));
        if scores.iter().map(share).sum::<f64>() > f64::from(count) {
            low = middle
        } else {
            high = middle
        }
    }
    (low + high) / 2.0
}
