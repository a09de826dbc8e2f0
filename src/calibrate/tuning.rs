//! Tuning of fitted scorers end to end.

use std::path::PathBuf;

use anyhow::Context;
use palimpsest_calibrate::tune;
use palimpsest_calibrate::tune::documents::Documents;
use palimpsest_engine::indexer::{Indexer, ModelShape};
use palimpsest_engine::policy::retention::RetentionWeights;
use palimpsest_models::Model;

use super::job::Job;
use crate::model;
use crate::progress::Progress;

/// Whether this program can tune.
pub const IS_BUILT_IN: bool = true;
/// How to have it done.
pub const HOW: &str = "a large model takes long; ask for it with --tune 104";

/// A tuning that is about to begin.
pub struct Tuning<'a> {
    job: &'a Job<'a>,
    documents: Documents<'a>,
}

impl<'a> Tuning<'a> {
    /// Says what cannot be, before the long work.
    ///
    /// # Errors
    /// When the corpus is too short, or the model has what tuning does not know.
    pub fn new(job: &'a Job<'a>) -> anyhow::Result<Self> {
        tune::model::check(job.model.config())?;
        let corpus = job.corpus;
        let stride = job.config.model.stride as usize;
        let documents = Documents::new(corpus.text, corpus.tokenizer, &corpus.turns, stride)?;
        Ok(Self { job, documents })
    }

    /// Gives every head a second scorer and tunes both.
    ///
    /// # Errors
    /// Those of the arithmetic, and of a state that cannot be kept.
    pub fn run(&self, indexer: &mut Indexer) -> anyhow::Result<()> {
        let Job { config, steps, .. } = *self.job;
        let mut scorers = RetentionWeights::of(indexer)?;
        tune::add_second(&mut scorers.layers);
        indexer.set(&scorers);
        let (rate, seed) = (config.tune_rate, config.seed);
        let options = tune::Options {
            steps,
            rate,
            seed,
            stride: config.model.stride as usize,
            state: self.job.state.clone(),
        };
        let backend = model::cpu(&config.model);
        let model = tune::model::Model::load(&backend, self.job.model.weights())?;
        let mut bar = Progress::new("tuning");
        let losses = tune::tune(
            &model,
            indexer,
            &self.documents,
            &options,
            &mut |progress| {
                bar.at(progress.done as u64, progress.of as u64);
                tracing::info!(
                    done = progress.done,
                    of = progress.of,
                    answers = progress.losses.answers,
                    answers_full_cache = progress.losses.full,
                    text_over_full_cache = progress.losses.text,
                    "tuning, nats per token"
                );
            },
        )?;
        bar.finish();
        eprintln!(
            "tuned on {steps} documents; the last ones: answers {:.3} nats a token (full cache \
             {:.3}), text {:.3} over the full cache",
            losses.answers, losses.full, losses.text
        );
        let how = format!("{steps} documents, seed {seed}, rate {rate}");
        indexer.metadata.insert("tuned".into(), how);
        Ok(())
    }
}

/// The mean of the scorers of some files, with everything else of the first.
///
/// # Errors
/// When one of them cannot be read, or is for another model.
pub fn start(files: &[PathBuf], model: &Model) -> anyhow::Result<Indexer> {
    let read = |path: &PathBuf| -> anyhow::Result<Indexer> {
        let bytes = std::fs::read(path)
            .with_context(|| format!("cannot read the indexer {}", path.display()))?;
        let indexer = Indexer::parse(&bytes).with_context(|| path.display().to_string())?;
        let config = model.config();
        let check = indexer.check(ModelShape {
            layers: config.layers,
            kv_heads: config.kv_heads,
            hidden: config.hidden,
        });
        check.with_context(|| path.display().to_string())?;
        Ok(indexer)
    };
    let indexers = files.iter().map(read).collect::<anyhow::Result<Vec<_>>>()?;
    let mut mean = tune::mean_of(indexers)?;
    let stems = files
        .iter()
        .filter_map(|file| file.file_stem())
        .map(|stem| stem.to_string_lossy());
    mean.metadata
        .insert("start".into(), stems.collect::<Vec<_>>().join(" and "));
    Ok(mean)
}
