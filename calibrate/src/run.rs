//! A whole calibration: documents in, indexer and report out.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};

use palimpsest_engine::indexer::Indexer;
use palimpsest_engine::kv::budget;
use palimpsest_engine::memory::associative::{AssociativeLayerWeights, AssociativeWeights};
use palimpsest_engine::offline::reconstruction::{Reconstruction, Target};
use palimpsest_engine::policy::pairwise::{PairwiseLayer, PairwiseWeights};
use palimpsest_engine::policy::retention::LayerScorer;
use palimpsest_engine::runner::Runner;
use palimpsest_kernels::{Backend, SelectBudget, SelectItem, select};
use xxhash_rust::xxh3::Xxh3;

use crate::Result;
use crate::associative::{self, AssociativeOptions, Case, Heads};
use crate::collect::{self, LayerSample};
use crate::fit::{self, Sums};
use crate::query::{self, QueryOptions};
use crate::report::{self, LayerReport};
use crate::store::{Store, Stored};

/// One document in this many teaches the memory.
const MEMORY_EVERY: usize = 4;
/// Share of a document that stays when the memory learns from what goes.
const MEMORY_SHARE: f32 = 0.25;
/// First and last positions that never go, as in served contracts.
const PROTECTED: (usize, usize) = (4, 64);

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

/// Trains on `documents`. `model` names the model, its weights and its arithmetic; `instruction`:
/// the tokens of [`palimpsest_engine::offline::reconstruction::INSTRUCTION`].
///
/// # Errors
/// [`crate::Error`]; what was read of the documents stays on disk.
pub fn calibrate<B: Backend>(
    runner: &mut Runner<B>,
    (documents, instruction): (&[Vec<u32>], Vec<u32>),
    model: &str,
    options: &Options,
    progress: Progress<'_>,
) -> Result<(Indexer, Vec<LayerReport>)> {
    let config = runner.decoder().config().clone();
    let group = config.heads / config.kv_heads;
    let heads = Heads {
        kv_heads: config.kv_heads,
        group,
        dim: config.head_dim,
    };
    let shape = Shape {
        layers: config.layers,
        hidden: config.hidden,
        heads,
    };
    let samples = read(runner, (documents, instruction), model, options, progress)?;
    let is_held_out = |index: usize| index % options.holdout == options.holdout - 1;
    let (held_out, train): (Vec<_>, Vec<_>) = samples
        .iter()
        .enumerate()
        .partition(|(index, _)| is_held_out(*index));
    let samples_of = |of: &[(usize, &'_ Sampled)], layer: usize| -> Result<Vec<LayerSample>> {
        of.iter()
            .map(|(_, sampled)| sampled.stored.layer(layer))
            .collect()
    };
    let mut scorers = Vec::new();
    let mut reports = Vec::new();
    let fitted = per_layer(
        shape.layers,
        &mut |done| progress(Stage::Scorers, done, shape.layers),
        &|layer| {
            let (scorer, query) = fit_scorers(&samples_of(&train, layer)?, shape, layer, options)?;
            let report = report_of(
                &samples_of(&held_out, layer)?,
                shape,
                &scorer,
                query.as_ref().zip(options.query),
            );
            Ok((scorer, query, report))
        },
    )?;
    let mut queries = Vec::new();
    for (scorer, query, report) in fitted {
        scorers.push(scorer);
        queries.extend(query);
        reports.push(report);
    }
    let memory = match options.memory {
        Some(memory) => {
            let layers = fit_memory(
                &samples,
                is_held_out,
                shape,
                &scorers,
                (memory, options.seed),
                progress,
            )?;
            for (report, (_, explained)) in reports.iter_mut().zip(&layers) {
                report.explained = Some(*explained);
            }
            let layers = layers.into_iter().map(|(layer, _)| layer).collect();
            Some(AssociativeWeights {
                features: memory.features,
                head_dim: heads.dim,
                layers,
            })
        }
        None => None,
    };
    let query = options.query.map(|query| PairwiseWeights {
        heads: query.heads,
        dim: query.dim,
        layers: queries,
    });
    let indexer = Indexer {
        kv_heads: heads.kv_heads,
        hidden: shape.hidden,
        retention: scorers,
        query: query.map(Arc::new),
        associative: memory.map(Arc::new),
        metadata: HashMap::new(),
    };
    Ok((indexer, reports))
}

/// A document's sample on disk.
struct Sampled {
    stored: Stored,
    tokens: usize,
    with_attention: bool,
}

/// Reads and repeats every document whose sample is not on disk yet.
fn read<B: Backend>(
    runner: &mut Runner<B>,
    (documents, instruction): (&[Vec<u32>], Vec<u32>),
    model: &str,
    options: &Options,
    progress: Progress<'_>,
) -> Result<Vec<Sampled>> {
    let store = Store::open(&options.samples)?;
    let mut common = Xxh3::new();
    common.update(model.as_bytes());
    common.update(bytemuck::cast_slice(&instruction));
    common.update(format!("{:?}", options.target).as_bytes());
    let reconstruction = Reconstruction::new(runner, instruction, options.target);
    let mut samples = Vec::with_capacity(documents.len());
    for (index, document) in documents.iter().enumerate() {
        let is_held_out = index % options.holdout == options.holdout - 1;
        let with_attention = options.memory.is_some() && (index % MEMORY_EVERY == 0 || is_held_out);
        let mut hash = common.clone();
        hash.update(bytemuck::cast_slice(document));
        let source = format!("{:016x} {with_attention}", hash.digest());
        let stored = match store.find(index, &source) {
            Some(stored) => stored,
            None => {
                let sample = collect::sample(runner, &reconstruction, document, with_attention)?;
                store.save(index, &source, &sample)?
            }
        };
        samples.push(Sampled {
            stored,
            tokens: document.len(),
            with_attention,
        });
        progress(Stage::Reading, index + 1, documents.len());
    }
    Ok(samples)
}

fn fit_scorers(
    samples: &[LayerSample],
    shape: Shape,
    layer: usize,
    options: &Options,
) -> Result<(LayerScorer, Option<PairwiseLayer>)> {
    let kv_heads = shape.heads.kv_heads;
    let mut sums = Sums::new(shape.hidden, kv_heads);
    samples.iter().for_each(|sample| sums.add(sample));
    let scorer = sums.solve(options.ridge, layer)?;
    let seed = options.seed.wrapping_add(layer as u64);
    let query = options
        .query
        .map(|query| query::fit(samples, kv_heads, shape.hidden, query, seed));
    Ok((scorer, query))
}

/// Means over held-out documents.
fn report_of(
    samples: &[LayerSample],
    shape: Shape,
    scorer: &LayerScorer,
    query: Option<(&PairwiseLayer, QueryOptions)>,
) -> LayerReport {
    let kv_heads = shape.heads.kv_heads;
    let mut report = LayerReport::default();
    for sample in samples {
        let scores = fit::predict(scorer, &sample.hidden, kv_heads);
        report.retention.add(
            report::compare(&scores, &sample.targets, kv_heads),
            samples.len(),
        );
        if let Some((layer, options)) = query {
            let scores = query::predict(layer, options, &sample.hidden, kv_heads);
            let found = report::compare(&scores, &sample.targets, kv_heads);
            report
                .query
                .get_or_insert_default()
                .add(found, samples.len());
        }
    }
    report
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
    let (sinks, window) = PROTECTED;
    let first = sinks.min(boundary);
    let candidates = first..boundary.saturating_sub(window).max(first);
    let mut heads = Vec::with_capacity(shape.layers * kv_heads);
    for (layer, scorer) in scorers.iter().enumerate() {
        let scores = fit::predict(scorer, &sampled.stored.layer(layer)?.hidden, kv_heads);
        heads.extend((0..kv_heads).map(|head| {
            (0..boundary)
                .map(|slot| scores[slot * kv_heads + head])
                .collect::<Vec<f32>>()
        }));
    }
    let take = ((boundary as f32 * MEMORY_SHARE) as usize).saturating_sub(sinks + window);
    let budget = SelectBudget {
        pools: kv_heads,
        take,
        floor: budget::floor_of(take),
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

/// Fitted layers, each with the share of the missing attention that it gives back on held-out
/// documents.
fn fit_memory(
    samples: &[Sampled],
    is_held_out: impl Fn(usize) -> bool,
    shape: Shape,
    scorers: &[LayerScorer],
    (options, seed): (AssociativeOptions, u64),
    progress: Progress<'_>,
) -> Result<Vec<(AssociativeLayerWeights, f64)>> {
    let mut evictions = Vec::new();
    for (index, sampled) in samples
        .iter()
        .enumerate()
        .filter(|(_, sampled)| sampled.with_attention)
    {
        // An eighth of the document comes after the eviction.
        let boundary = sampled.tokens - sampled.tokens / 8;
        evictions.push((
            is_held_out(index),
            sampled,
            boundary,
            kept(sampled, shape, scorers, boundary)?,
        ));
    }
    per_layer(
        shape.layers,
        &mut |done| progress(Stage::Memories, done, shape.layers),
        &|layer| {
            let (mut train, mut held_out) = (Vec::new(), Vec::new());
            for (is_held_out, sampled, boundary, kept) in &evictions {
                let sample = sampled.stored.layer(layer)?;
                for kv_head in 0..shape.heads.kv_heads {
                    let slots = &kept[layer * shape.heads.kv_heads + kv_head];
                    let case = Case::new(&sample, shape.heads, kv_head, *boundary, slots);
                    if *is_held_out {
                        held_out.push(case)
                    } else {
                        train.push(case)
                    }
                }
            }
            let fitted = associative::fit(
                &train,
                shape.heads,
                options,
                seed.wrapping_add(layer as u64),
            );
            let explained = associative::explained(&fitted, &held_out, shape.heads);
            Ok((fitted, explained))
        },
    )
}

/// `work` of every layer, in order, on all cores.
fn per_layer<T: Send>(
    layers: usize,
    progress: &mut dyn FnMut(usize),
    work: &(dyn Fn(usize) -> Result<T> + Sync),
) -> Result<Vec<T>> {
    let threads = std::thread::available_parallelism()
        .map_or(1, std::num::NonZero::get)
        .min(layers.max(1));
    let next = AtomicUsize::new(0);
    let mut found: Vec<Option<T>> = (0..layers).map(|_| None).collect();
    let (sender, receiver) = mpsc::channel();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            let (sender, next) = (sender.clone(), &next);
            scope.spawn(move || {
                loop {
                    let layer = next.fetch_add(1, Ordering::Relaxed);
                    if layer >= layers || sender.send((layer, work(layer))).is_err() {
                        break;
                    }
                }
            });
        }
        drop(sender);
        for (done, (layer, result)) in receiver.into_iter().enumerate() {
            match result {
                Ok(value) => found[layer] = Some(value),
                Err(error) => {
                    next.store(layers, Ordering::Relaxed);
                    return Err(error);
                }
            }
            progress(done + 1);
        }
        Ok(())
    })?;
    Ok(found.into_iter().flatten().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;

    #[test]
    fn layers_come_back_in_order_and_the_first_error_ends_it() {
        let mut seen = 0;
        let squares = per_layer(7, &mut |done| seen = done, &|layer| Ok(layer * layer))
            .expect("nothing fails");
        assert_eq!((squares, seen), (vec![0, 1, 4, 9, 16, 25, 36], 7));
        let failed = per_layer(7, &mut |_| {}, &|layer| {
            if layer == 3 {
                Err(Error::Singular { layer })
            } else {
                Ok(layer)
            }
        });
        assert!(matches!(failed, Err(Error::Singular { layer: 3 })));
    }
}
