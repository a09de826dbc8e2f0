//! A whole calibration: documents in, indexer and report out.

use std::path::PathBuf;

use palimpsest_engine::indexer::{Indexer, ModelShape};
use palimpsest_engine::kv::allocation;
use palimpsest_engine::memory::associative::{AssociativeLayerWeights, AssociativeWeights};
use palimpsest_engine::offline::reconstruction::{Reconstruction, Target};
use palimpsest_engine::policy::pairwise::{PairwiseLayer, PairwiseWeights};
use palimpsest_engine::policy::retention::{LayerScorer, RetentionWeights};
use palimpsest_engine::runner::Runner;
use palimpsest_kernels::{Backend, SelectBudget, SelectItem, select};
use palimpsest_models::config::ModelConfig;
use xxhash_rust::xxh3::Xxh3;

use crate::Result;
use crate::associative::{self, AssociativeOptions, Case, Heads};
use crate::collect::{self, LayerSample};
use crate::fit::{self, Sums};
use crate::per_layer::per_layer;
use crate::query::{self, QueryOptions};
use crate::report::{self, LayerReport};
use crate::store::{Store, Stored};

/// One document in this many teaches the memory.
const MEMORY_EVERY: usize = 4;
/// Share of a document that stays when the memory learns from what goes.
const MEMORY_SHARE: f32 = 0.25;
/// First positions that never go, as in served contracts.
const SINKS: usize = 4;
/// Last ones.
const WINDOW: usize = 64;

/// What to train and how.
#[derive(Debug, Clone)]
pub struct Options {
    /// One document in this many is held out for the report.
    pub holdout: usize,
    /// Strength of the scorers' ridge penalty.
    pub ridge: f64,
    /// Seed of what is drawn.
    pub seed: u64,
    /// The pairwise indexer, if any.
    pub query: Option<QueryOptions>,
    /// The associative memory, if any.
    pub memory: Option<AssociativeOptions>,
    /// What scorers learn to predict.
    pub target: Target,
    /// Where samples are kept.
    pub samples: PathBuf,
}

impl Options {
    /// Whether document `index` is held out.
    fn holds_out(&self, index: usize) -> bool {
        index % self.holdout == self.holdout - 1
    }

    /// Whether queries, keys and values of document `index` are recorded: the memory learns from
    /// them.
    fn records_attention(&self, index: usize) -> bool {
        self.memory.is_some() && (index.is_multiple_of(MEMORY_EVERY) || self.holds_out(index))
    }
}

/// What is read.
#[derive(Debug, Clone)]
pub struct Source {
    /// Token ids of every document.
    pub documents: Vec<Vec<u32>>,
    /// Tokens of [`palimpsest_engine::offline::reconstruction::INSTRUCTION`].
    pub instruction: Vec<u32>,
    /// Names the model, its weights and its arithmetic.
    pub model: String,
}

/// What is going on, for progress bars.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Documents are read and repeated.
    Reading,
    /// Scorers and indexers are fitted, by layer.
    Scorers,
    /// Memories are fitted, by layer.
    Memories,
}

/// Receives the stage, how much of it is done, and how much there is.
pub type Progress<'a> = &'a mut dyn FnMut(Stage, usize, usize);

/// Sizes of the model.
#[derive(Debug, Clone, Copy)]
struct Shape {
    layers: usize,
    hidden: usize,
    heads: Heads,
}

impl Shape {
    fn of(config: &ModelConfig) -> Self {
        Self {
            layers: config.layers,
            hidden: config.hidden,
            heads: Heads {
                kv_heads: config.kv_heads,
                group: config.heads / config.kv_heads,
                dim: config.head_dim,
            },
        }
    }
}

/// What a calibration gives.
pub struct Calibrated {
    /// Everything that was trained, without metadata.
    pub indexer: Indexer,
    /// How well it agrees with held-out documents, by layer.
    pub report: Vec<LayerReport>,
}

/// Reads documents and trains on them.
///
/// # Errors
/// [`crate::Error`]; what was read of the documents stays on disk.
pub fn calibrate<B: Backend>(
    runner: &mut Runner<B>,
    source: &Source,
    options: &Options,
    progress: Progress<'_>,
) -> Result<Calibrated> {
    let shape = Shape::of(runner.decoder().config());
    let samples = read(runner, source, options, progress)?;
    let Scored {
        scorers,
        queries,
        mut report,
    } = fit_all_scorers(&samples, shape, options, progress)?;

    let mut associative = None;
    if let Some(memory) = options.memory {
        let evictions = evictions(&samples, shape, &scorers)?;
        let fitted = fit_memory(&evictions, shape, memory, options.seed, progress)?;
        let mut layers = Vec::new();
        for (report, layer) in report.iter_mut().zip(fitted) {
            report.explained = Some(layer.explained);
            layers.push(layer.weights);
        }
        associative = Some(AssociativeWeights {
            features: memory.features,
            head_dim: shape.heads.dim,
            layers,
        });
    }
    let query = options.query.map(|query| PairwiseWeights {
        heads: query.heads,
        dim: query.dim,
        layers: queries,
    });
    let mut indexer = Indexer::new(ModelShape {
        layers: shape.layers,
        kv_heads: shape.heads.kv_heads,
        hidden: shape.hidden,
    });
    indexer.set(&RetentionWeights { layers: scorers });
    if let Some(query) = &query {
        indexer.set(query);
    }
    if let Some(associative) = &associative {
        indexer.set(associative);
    }
    Ok(Calibrated { indexer, report })
}

/// A document's sample on disk.
struct Sampled {
    stored: Stored,
    tokens: usize,
    is_held_out: bool,
    with_attention: bool,
}

/// Reads and repeats every document whose sample is not on disk yet.
fn read<B: Backend>(
    runner: &mut Runner<B>,
    source: &Source,
    options: &Options,
    progress: Progress<'_>,
) -> Result<Vec<Sampled>> {
    let store = Store::open(&options.samples)?;
    let mut common = Xxh3::new();
    common.update(source.model.as_bytes());
    common.update(bytemuck::cast_slice(&source.instruction));
    common.update(format!("{:?}", options.target).as_bytes());
    let reconstruction = Reconstruction::new(runner, source.instruction.clone(), options.target);
    let mut samples = Vec::with_capacity(source.documents.len());
    for (index, document) in source.documents.iter().enumerate() {
        let with_attention = options.records_attention(index);
        let mut hash = common.clone();
        hash.update(bytemuck::cast_slice(document));
        let made_from = format!("{:016x} {with_attention}", hash.digest());
        let stored = match store.find(index, &made_from) {
            Some(stored) => stored,
            None => {
                let sample = collect::sample(runner, &reconstruction, document, with_attention)?;
                store.save(index, &made_from, &sample)?
            }
        };
        samples.push(Sampled {
            stored,
            tokens: document.len(),
            is_held_out: options.holds_out(index),
            with_attention,
        });
        progress(Stage::Reading, index + 1, source.documents.len());
    }
    Ok(samples)
}

/// Scorers and pairwise indexers of all layers.
#[derive(Default)]
struct Scored {
    scorers: Vec<LayerScorer>,
    /// Empty when there is to be none.
    queries: Vec<PairwiseLayer>,
    report: Vec<LayerReport>,
}

fn fit_all_scorers(
    samples: &[Sampled],
    shape: Shape,
    options: &Options,
    progress: Progress<'_>,
) -> Result<Scored> {
    let samples_of = |is_held_out: bool, layer: usize| -> Result<Vec<LayerSample>> {
        samples
            .iter()
            .filter(|sampled| sampled.is_held_out == is_held_out)
            .map(|sampled| sampled.stored.layer(layer))
            .collect()
    };
    let fitted = per_layer(
        shape.layers,
        &mut |done| progress(Stage::Scorers, done, shape.layers),
        &|layer| {
            let fitted = fit_scorers(&samples_of(false, layer)?, shape, layer, options)?;
            let report = report_of(&samples_of(true, layer)?, shape, &fitted, options.query);
            Ok((fitted, report))
        },
    )?;

    let mut scored = Scored::default();
    for (layer, report) in fitted {
        scored.scorers.push(layer.scorer);
        scored.queries.extend(layer.query);
        scored.report.push(report);
    }
    Ok(scored)
}

/// What scores the entries of one layer.
struct LayerScorers {
    scorer: LayerScorer,
    query: Option<PairwiseLayer>,
}

fn fit_scorers(
    samples: &[LayerSample],
    shape: Shape,
    layer: usize,
    options: &Options,
) -> Result<LayerScorers> {
    let kv_heads = shape.heads.kv_heads;
    let mut sums = Sums::new(shape.hidden, kv_heads);
    samples.iter().for_each(|sample| sums.add(sample));
    let scorer = sums.solve(options.ridge, layer)?;
    let seed = options.seed.wrapping_add(layer as u64);
    let query = options
        .query
        .map(|query| query::fit(samples, kv_heads, shape.hidden, query, seed));
    Ok(LayerScorers { scorer, query })
}

/// Means over held-out documents.
fn report_of(
    samples: &[LayerSample],
    shape: Shape,
    layer: &LayerScorers,
    query_options: Option<QueryOptions>,
) -> LayerReport {
    let kv_heads = shape.heads.kv_heads;
    let mut report = LayerReport::default();
    for sample in samples {
        let scores = fit::predict(&layer.scorer, &sample.hidden, kv_heads);
        report.retention.add(
            report::compare(&scores, &sample.targets, kv_heads),
            samples.len(),
        );
        if let Some((query, options)) = layer.query.as_ref().zip(query_options) {
            let scores = query::predict(query, options, &sample.hidden, kv_heads);
            let found = report::compare(&scores, &sample.targets, kv_heads);
            report
                .query
                .get_or_insert_default()
                .add(found, samples.len());
        }
    }
    report
}

/// A document from which entries went.
struct Eviction<'a> {
    sampled: &'a Sampled,
    /// Position at which they went.
    boundary: usize,
    /// `layer * kv_heads + kv_head`: slots that stayed.
    kept: Vec<Vec<u32>>,
}

/// An eviction in every document of which attention was recorded.
fn evictions<'a>(
    samples: &'a [Sampled],
    shape: Shape,
    scorers: &[LayerScorer],
) -> Result<Vec<Eviction<'a>>> {
    let recorded = samples.iter().filter(|sampled| sampled.with_attention);
    recorded
        .map(|sampled| {
            // An eighth of the document comes after the eviction.
            let boundary = sampled.tokens - sampled.tokens / 8;
            Ok(Eviction {
                sampled,
                boundary,
                kept: kept(sampled, shape, scorers, boundary)?,
            })
        })
        .collect()
}

/// Slots of every head that stay at the last boundary of a document, by the trained scorers and
/// pooled by column.
fn kept(
    sampled: &Sampled,
    shape: Shape,
    scorers: &[LayerScorer],
    boundary: usize,
) -> Result<Vec<Vec<u32>>> {
    let kv_heads = shape.heads.kv_heads;
    let first = SINKS.min(boundary);
    let candidates = first..boundary.saturating_sub(WINDOW).max(first);
    let mut heads = Vec::with_capacity(shape.layers * kv_heads);
    for (layer, scorer) in scorers.iter().enumerate() {
        let scores = fit::predict(scorer, &sampled.stored.layer(layer)?.hidden, kv_heads);
        heads.extend((0..kv_heads).map(|head| {
            (0..boundary)
                .map(|slot| scores[slot * kv_heads + head])
                .collect::<Vec<f32>>()
        }));
    }
    let take = ((boundary as f32 * MEMORY_SHARE) as usize).saturating_sub(SINKS + WINDOW);
    let budget = SelectBudget {
        pools: kv_heads,
        take,
        floor: allocation::floor_of(take),
    };
    let items: Vec<_> = heads
        .iter()
        .map(|scores| SelectItem {
            scores,
            candidates: candidates.clone(),
        })
        .collect();
    let kept = select::select(budget, &items).map_err(palimpsest_engine::Error::from)?;
    Ok(kept.lists().to_vec())
}

/// The memory of one layer.
struct LayerMemory {
    weights: AssociativeLayerWeights,
    /// Share of the missing attention that it gives back on held-out documents.
    explained: f64,
}

fn fit_memory(
    evictions: &[Eviction<'_>],
    shape: Shape,
    options: AssociativeOptions,
    seed: u64,
    progress: Progress<'_>,
) -> Result<Vec<LayerMemory>> {
    let kv_heads = shape.heads.kv_heads;
    per_layer(
        shape.layers,
        &mut |done| progress(Stage::Memories, done, shape.layers),
        &|layer| {
            let (mut train, mut held_out) = (Vec::new(), Vec::new());
            for eviction in evictions {
                let sample = eviction.sampled.stored.layer(layer)?;
                let cases = if eviction.sampled.is_held_out {
                    &mut held_out
                } else {
                    &mut train
                };
                let kept = &eviction.kept[layer * kv_heads..][..kv_heads];
                for (kv_head, kept) in kept.iter().enumerate() {
                    let boundary = eviction.boundary;
                    cases.push(Case::new(&sample, shape.heads, kv_head, boundary, kept));
                }
            }
            let seed = seed.wrapping_add(layer as u64);
            let weights = associative::fit(&train, shape.heads, options, seed);
            let explained = associative::explained(&weights, &held_out, shape.heads);
            Ok(LayerMemory { weights, explained })
        },
    )
}
