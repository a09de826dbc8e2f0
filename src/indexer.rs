//! Which indexer a model gets: the one that the operator named, else one that was trained for
//! exactly these weights; and which policy serves where there is none.
//!
//! ```text
//! --indexer FILE ▸ beside the model's file ▸ in its repository ▸ in the cache ▸ built in
//! ```
//! An indexer says in its metadata for which weights it was trained. One that does not is used only
//! by name.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use palimpsest_engine::indexer::Indexer;
use palimpsest_engine::policy;
use palimpsest_engine::policy::pairwise::{PairwiseIndexer, PairwiseWeights};
use palimpsest_engine::policy::retention::{Retention, RetentionWeights};
use palimpsest_hub::{INDEXER, snapshot_root};
use palimpsest_models::WeightsId;
use palimpsest_models::fetch::default_cache_dir;
use palimpsest_proto::v1::KvContract;

/// The default model's indexer: `palimpsest calibrate` on the corpus of `calibrate/make_corpus.py`.
const BUILT_IN: &[u8] = include_bytes!("../assets/indexers/smollm2-135m-instruct.safetensors");
/// The weights that it was trained for.
const BUILT_IN_FOR: WeightsId = WeightsId(0x179a_c262_b0ca_ecb3_9890_2706_19b9_e67d);
/// Entry of an indexer's metadata: names of the weights it was trained for, spaces between them.
const WEIGHTS: &str = "weights";
/// Bytes of an indexer at most, far above that of any model.
const LARGEST: u64 = 1 << 30;

/// A model that an indexer is looked for.
#[derive(Debug, Clone)]
pub struct Subject {
    /// Its file or directory.
    pub file: PathBuf,
    /// Its weights; `None` for those that are made here.
    pub weights: Option<WeightsId>,
    /// Where the cache has an indexer of these weights, if it has one.
    pub kept: Option<PathBuf>,
}

impl Subject {
    /// A model's file or directory and its weights.
    pub fn new(file: PathBuf, weights: Option<WeightsId>) -> Self {
        Self {
            kept: weights.and_then(|weights| kept_at(weights).ok()),
            file,
            weights,
        }
    }

    /// Where an indexer of these weights may lie, in the order in which one is taken.
    fn places(&self) -> Vec<PathBuf> {
        let mut places = Vec::new();
        if self.file.is_dir() {
            places.push(self.file.join(INDEXER));
        } else {
            places.push(self.file.with_extension("indexer.safetensors"));
            places.push(self.file.with_file_name(INDEXER));
        }
        places.extend(snapshot_root(&self.file).map(|root| root.join(INDEXER)));
        places.extend(self.kept.clone());
        places.dedup();
        places
    }
}

/// An indexer that a model gets.
#[derive(Debug, Clone)]
pub struct Found {
    /// What was trained.
    pub indexer: Indexer,
    /// Its file; `None` for one that is built in.
    pub file: Option<PathBuf>,
}

/// The indexer of a model.
///
/// # Errors
/// When the one that was `named` cannot be read. One that is found and cannot be read is left
/// alone, with a warning.
pub fn find(subject: &Subject, named: Option<&Path>) -> anyhow::Result<Option<Found>> {
    if let Some(path) = named {
        let indexer = read(path)?;
        if let (Some(weights), Some(of)) = (subject.weights, trained_for(&indexer))
            && !of.contains(&weights)
        {
            tracing::warn!(
                path = %path.display(),
                "this indexer was trained for other weights: its scores may mean little here"
            );
        }
        return Ok(Some(Found {
            indexer,
            file: Some(path.to_owned()),
        }));
    }
    let Some(weights) = subject.weights else {
        return Ok(None);
    };
    let mut places = subject.places().into_iter();
    Ok(match places.find_map(|path| suitable(path, weights)) {
        None if weights == BUILT_IN_FOR => Some(Found {
            indexer: Indexer::parse(BUILT_IN)?,
            file: None,
        }),
        found => found,
    })
}

/// Where an indexer of these weights is kept when nobody says where.
///
/// # Errors
/// When no variable says where the cache is.
pub fn kept_at(weights: WeightsId) -> anyhow::Result<PathBuf> {
    let folder = default_cache_dir()?.join("indexers");
    Ok(folder.join(format!("{weights}.safetensors")))
}

/// Notes for which weights an indexer was trained.
pub fn note(indexer: &mut Indexer, weights: Option<WeightsId>) {
    if let Some(weights) = weights {
        indexer.metadata.insert(WEIGHTS.into(), weights.to_string());
    }
}

/// The contract that a model gets by default with what was trained for it: where the policy that
/// the operator asks for was not, the best that needs no training takes its place, with a warning
/// that says what to do. `model` is what the operator calls a model that one can be trained for.
///
/// # Errors
/// When the indexer has parts that cannot be read.
pub fn contract(
    asked: &KvContract,
    indexer: Option<&Indexer>,
    model: Option<&str>,
) -> anyhow::Result<KvContract> {
    let mut kv = asked.clone();
    let learned = if kv.policy.is_empty() {
        Retention::NAME
    } else {
        kv.policy.as_str()
    };
    if has(indexer, learned)? {
        return Ok(kv);
    }
    let stand_in = policy::BEST_UNTRAINED;
    let advice = model.map_or(String::new(), advice);
    if kv.policy.is_empty() {
        // Made weights have no indexer, and nobody misses it.
        if model.is_some() {
            tracing::warn!(
                "no indexer was found for these weights: the default policy is `{stand_in}`, the \
                 best that needs none{advice}"
            );
        }
    } else {
        tracing::warn!(
            "the policy `{}` needs an indexer, and none was found for these weights: `{stand_in}`, \
             the best that needs none, takes its place{advice}",
            kv.policy
        );
        // How heads share a budget goes with the scores of the policy that was asked for.
        kv.head_budget = String::new();
    }
    kv.policy = stand_in.to_owned();
    Ok(kv)
}

fn advice(model: &str) -> String {
    format!(
        ". `palimpsest calibrate --fast --model {model}` trains one in minutes and keeps it where \
         the next start finds it, and `serve --calibrate` does so by itself"
    )
}

/// Whether a policy has what it needs: only the learned ones need anything.
fn has(indexer: Option<&Indexer>, policy: &str) -> anyhow::Result<bool> {
    Ok(match (policy, indexer) {
        (Retention::NAME | PairwiseIndexer::NAME, None) => false,
        (Retention::NAME, Some(indexer)) => indexer.get::<RetentionWeights>()?.is_some(),
        (PairwiseIndexer::NAME, Some(indexer)) => indexer.get::<PairwiseWeights>()?.is_some(),
        _ => true,
    })
}

/// The indexer at `path`, if there is one and it was trained for these weights.
fn suitable(path: PathBuf, weights: WeightsId) -> Option<Found> {
    if !path.exists() {
        return None;
    }
    let left_alone = match read(&path) {
        Ok(indexer) => match trained_for(&indexer) {
            Some(of) if of.contains(&weights) => {
                tracing::info!(path = %path.display(), "this indexer was trained for the model");
                return Some(Found {
                    indexer,
                    file: Some(path),
                });
            }
            Some(_) => "it was trained for other weights".to_owned(),
            None => "it does not say for which weights it was trained".to_owned(),
        },
        Err(error) => format!("{error:#}"),
    };
    tracing::warn!(
        path = %path.display(),
        "an indexer is left alone: {left_alone}; --indexer takes it all the same"
    );
    None
}

fn read(path: &Path) -> anyhow::Result<Indexer> {
    let wrong = || format!("cannot read the indexer {}", path.display());
    let meta = fs::metadata(path).with_context(wrong)?;
    ensure!(meta.is_file(), "{} is no file", path.display());
    ensure!(
        meta.len() <= LARGEST,
        "{} is too large for an indexer",
        path.display()
    );
    let bytes = fs::read(path).with_context(wrong)?;
    Indexer::parse(&bytes).with_context(|| path.display().to_string())
}

/// The weights that an indexer was trained for, if it says so.
fn trained_for(indexer: &Indexer) -> Option<Vec<WeightsId>> {
    let names = indexer.metadata.get(WEIGHTS)?;
    Some(
        names
            .split_whitespace()
            .filter_map(|name| name.parse().ok())
            .collect(),
    )
}

#[cfg(test)]
mod tests;
