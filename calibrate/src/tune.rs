//! Tunes fitted scorers end to end: what is lost when entries go is what they learn to keep.
//!
//! Fitted scorers predict how much attention a key receives while the model repeats the text. That
//! is a stand-in. Here the model reads documents with a soft form of the service's eviction inside
//! its own forward pass and answers questions on what stood in them: facts that were planted, and
//! sentences of the text as it is. The gradient of the answers' loss, and of how far its
//! predictions of the text are from those of the full cache, goes to the scorers. The model's
//! weights stay as they are. Some documents are read with a memory of what went, so that scorers
//! learn what it makes up for.
//!
//! Short documents come first. They cost a third, mostly ask for facts, and what a fact looks like
//! does not depend on how long its document is; then documents of the lengths that are served, in
//! which the text weighs more.
//!
//! The idea of learning retention through the language model's loss is that of Dynamic Memory
//! Compression (arXiv 2403.09636) and TRIM-KV (arXiv 2512.03324); stride boundaries, one threshold
//! per KV head over all layers, two linear scorers for each and the memory in the loop are this
//! project's.
//!
//! [`documents`] are drawn; [`pass`] reads them, over [`model`] and [`attention`], with what
//! [`evictor`] decides and [`centroids`] remember; [`losses`] says what that cost; [`scorers`] take
//! a step against it; [`state`] keeps them on disk.

pub mod attention;
pub mod centroids;
pub mod documents;
pub mod evictor;
pub mod losses;
pub mod model;
pub mod pass;
pub mod scorers;
pub mod state;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::path::PathBuf;

use palimpsest_engine::indexer::Indexer;
use palimpsest_engine::policy::retention::{LayerScorer, RecentScorer, RetentionWeights};
use xxhash_rust::xxh3::Xxh3;

use self::documents::{Documents, Kind, LONG, SHORT};
use self::evictor::Budget;
use self::losses::{Losses, Outputs};
use self::model::Model;
use self::pass::Reader;
use self::scorers::{Protected, Scorers};
use self::state::State;
use crate::Result;
use crate::draws::Draws;

/// What never goes, in served contracts of small budgets.
const PROTECTED: Protected = Protected {
    sinks: 4,
    window: 12,
};
/// Slots per KV head as a share of the document, in thousandths; drawn for each.
const BUDGET: (usize, usize) = (50, 160);
/// Percent of the documents that are read with a memory, and a centroid for how many slots of the
/// budget.
const WITH_MEMORY: usize = 60;
const SLOTS_PER_CENTROID: f32 = 24.0;
/// Fewest centroids of a memory.
const LEAST_CENTROIDS: usize = 4;
/// Slots that a centroid costs: it is kept in f32, slots in f16.
const CENTROID_SLOTS: f32 = 2.0;
/// A part of the tuning.
#[derive(Debug, Clone, Copy)]
struct Part {
    kind: Kind,
    /// Weight of the text beside the answers.
    text_weight: f64,
}

const PARTS: [Part; 2] = [
    Part {
        kind: SHORT,
        text_weight: 2.0,
    },
    Part {
        kind: LONG,
        text_weight: 6.0,
    },
];
/// Share of the documents that are in the first part.
const FIRST: (usize, usize) = (4, 7);
/// Where a second scorer starts: nats that it loses in 256 tokens, and nats that it is given ahead.
const RATE: f32 = 1.0;
const OFFSET: f32 = 2.0;
/// Steps in which the rate rises, and how much of it is left at the end.
const WARM_UP: f32 = 5.0;
const LAST_RATE: f32 = 0.1;
/// Steps between two saved states.
const SAVE_EVERY: usize = 5;
/// Steps that progress shows the mean of.
const SHOWN: usize = 20;
/// Between the seeds of two runs.
const SEEDS: u64 = 100_003;

/// How to tune.
#[derive(Debug, Clone)]
pub struct Options {
    /// Documents, one a step.
    pub steps: usize,
    /// Rate of weights at its highest.
    pub rate: f32,
    /// Seed of the documents.
    pub seed: u64,
    /// Tokens between two boundaries.
    pub stride: usize,
    /// Where a run that was interrupted goes on from.
    pub state: PathBuf,
}

/// Where tuning stands.
#[derive(Debug, Clone, Copy)]
pub struct Progress {
    /// Steps done.
    pub done: usize,
    /// Steps in all.
    pub of: usize,
    /// Means of the last steps.
    pub losses: Losses,
}

/// Gives every head a second scorer that starts as the first one and passes with age.
pub fn add_second(scorers: &mut [LayerScorer]) {
    for layer in scorers.iter_mut().filter(|layer| layer.recent.is_none()) {
        let bias = layer.bias.iter().map(|bias| bias + OFFSET).collect();
        let rate = vec![-RATE; layer.rate.len()];
        layer.recent = Some(RecentScorer {
            weight: layer.weight.clone(),
            bias,
            rate,
        });
        layer.rate.fill(0.0);
    }
}

/// The first indexer, with the mean of all ones' `retention` scorers. They are linear and scores
/// add up, so the mean keeps what most of them want kept.
///
/// # Errors
/// [`crate::Error::Scorers`] when some have one scorer for each head and others two; all must be
/// for the same model.
pub fn mean_of(indexers: Vec<Indexer>) -> Result<Indexer> {
    let count = indexers.len() as f32;
    let mut indexers = indexers.into_iter();
    let mut mean = indexers.next().ok_or(crate::Error::Scorers)?;
    let mut scorers = RetentionWeights::of(&mean)?;
    for other in indexers {
        let other = RetentionWeights::of(&other)?;
        for (sum, mut layer) in scorers.layers.iter_mut().zip(other.layers) {
            if sum.recent.is_some() != layer.recent.is_some() {
                return Err(crate::Error::Scorers);
            }
            for (sum, values) in arrays(sum).into_iter().zip(arrays(&mut layer)) {
                sum.iter_mut()
                    .zip(values)
                    .for_each(|(sum, value)| *sum += *value);
            }
        }
    }
    scorers
        .layers
        .iter_mut()
        .flat_map(arrays)
        .flatten()
        .for_each(|value| *value /= count);
    mean.set(&scorers);
    Ok(mean)
}

fn arrays(layer: &mut LayerScorer) -> Vec<&mut Vec<f32>> {
    let mut arrays = vec![&mut layer.weight, &mut layer.bias, &mut layer.rate];
    if let Some(recent) = &mut layer.recent {
        arrays.extend([&mut recent.weight, &mut recent.bias, &mut recent.rate]);
    }
    arrays
}

/// Tunes the `retention` scorers of an indexer, where all heads have two of them or all have one.
/// Returns means of the last steps.
///
/// # Errors
/// Those of candle, of the tokenizer, and of a state that cannot be written.
pub fn tune(
    model: &Model,
    indexer: &mut Indexer,
    documents: &Documents<'_>,
    options: &Options,
    progress: &mut dyn FnMut(Progress),
) -> Result<Losses> {
    let reader = Reader {
        model,
        stride: options.stride,
        protected: PROTECTED,
    };
    let sample = documents.draw(LONG, options.seed.wrapping_mul(SEEDS).wrapping_sub(1))?;
    let states = reader.read_full(&sample)?.states;
    let inputs = model
        .layers
        .iter()
        .zip(&states)
        .map(|(layer, x)| model.attention_input(layer, x));
    let inputs = inputs.collect::<candle_core::Result<Vec<_>>>()?;
    let start = RetentionWeights::of(indexer)?.layers;
    let mut scorers = Scorers::new(start, indexer.shape.kv_heads, &inputs)?;
    drop((states, inputs));
    let state = State::new(&options.state, digest(indexer, options, &sample.ids));
    let mut done = state.load(&mut scorers).unwrap_or(0).min(options.steps);
    let mut recent = VecDeque::new();
    while done < options.steps {
        let step = Step {
            part: PARTS[usize::from(done >= first(options.steps))],
            seed: options.seed.wrapping_mul(SEEDS).wrapping_add(done as u64),
            rate: rate(options, done),
        };
        recent.push_front(step.take(&reader, &mut scorers, documents)?);
        recent.truncate(SHOWN);
        done += 1;
        if done.is_multiple_of(SAVE_EVERY) {
            state.save(&scorers, done)?;
        }
        progress(Progress {
            done,
            of: options.steps,
            losses: mean(&recent),
        });
    }
    indexer.set(&RetentionWeights {
        layers: scorers.folded()?,
    });
    state.remove();
    Ok(mean(&recent))
}

/// One document, and what is done with it.
struct Step {
    part: Part,
    seed: u64,
    rate: f32,
}

impl Step {
    fn take(
        &self,
        reader: &Reader<'_>,
        scorers: &mut Scorers,
        documents: &Documents<'_>,
    ) -> Result<Losses> {
        let document = documents.draw(self.part.kind, self.seed)?;
        let budget = budget(document.length, Draws::new(!self.seed));
        let full = reader.read_full(&document)?;
        let reading = reader.read_evicting(&document, scorers, budget)?;
        let outputs = Outputs {
            full: full.output(),
            output: reading.output(),
        };
        let (losses, slopes) = Losses::of(reader.model, &document, outputs, self.part.text_weight)?;
        drop(full);
        let gradient = reader.backward(&document, scorers, &reading, slopes)?;
        scorers.step(gradient, self.rate);
        Ok(losses)
    }
}

/// Some budget for a document of this length, with a memory or without.
fn budget(length: usize, mut draws: Draws) -> Budget {
    let slots = length as f32 * draws.between(BUDGET.0, BUDGET.1) as f32 / 1000.0;
    let with_memory = draws.between(1, 100) <= WITH_MEMORY;
    let centroids = if with_memory {
        LEAST_CENTROIDS.max((slots / SLOTS_PER_CENTROID).round() as usize)
    } else {
        0
    };
    Budget {
        slots: slots - CENTROID_SLOTS * centroids as f32,
        centroids,
    }
}

/// Documents of the first part.
fn first(steps: usize) -> usize {
    steps * FIRST.0 / FIRST.1
}

/// Rises for some steps, stays, and in the second part falls to a tenth.
fn rate(options: &Options, step: usize) -> f32 {
    let rise = ((step + 1) as f32 / WARM_UP).min(1.0);
    let first = first(options.steps);
    let passed = step.saturating_sub(first) as f32 / (options.steps - first).max(1) as f32;
    options.rate * rise * (1.0 - (1.0 - LAST_RATE) * passed)
}

fn mean(losses: &VecDeque<Losses>) -> Losses {
    let of = |part: fn(&Losses) -> f64| {
        losses.iter().map(part).sum::<f64>() / losses.len().max(1) as f64
    };
    Losses {
        answers: of(|l| l.answers),
        full: of(|l| l.full),
        text: of(|l| l.text),
    }
}

/// What a state must have been made from to be gone on with.
fn digest(indexer: &Indexer, options: &Options, sample: &[u32]) -> u64 {
    let mut hash = Xxh3::new();
    indexer.digest(&mut hash);
    hash.update(
        format!(
            "{} {} {} {}",
            options.steps, options.rate, options.seed, options.stride
        )
        .as_bytes(),
    );
    hash.update(bytemuck::cast_slice(sample));
    hash.digest()
}
