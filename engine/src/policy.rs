//! Eviction policies: one number per slot, higher = keep. Protection of sinks and window, ranking
//! and gathering are shared code in `kv`.
//!
//! A policy is one file of this folder, and one line of the list in [`install`]. It implements
//! [`Policy`] and declares what it needs ([`Needs`]). Where it computes something for every new
//! token it has a [`Hook`], and where it was trained it reads its own tensors
//! ([`Trained`](crate::indexer::Trained)).

mod attention;
pub mod expected;
mod geometry;
mod hook;
mod interface;
pub mod pairwise;
pub mod retention;
mod simple;

use std::sync::Arc;

pub use attention::{H2o, SnapKv, Tova};
pub use expected::ExpectedAttention;
pub use geometry::{KNorm, KeyDiff, LagKv};
pub use hook::{Hook, Installed, LayerStep, NewTokens, Site};
use hook::{Install, plain};
pub use interface::{Attention, HeadView, Needs, Observe, Policy};
pub use pairwise::PairwiseIndexer;
use palimpsest_kernels::Backend;
pub use retention::Retention;
pub use simple::{Full, RandomPolicy, Window};

use crate::error::{Error, Result};

/// The policy that lost least among those that need no training: see `EVALUATION.md`.
pub const BEST_UNTRAINED: &str = KeyDiff::NAME;

/// Installs every policy of this engine that the rank has what it takes for.
///
/// # Errors
/// [`Error::Indexer`] when weights are missing or misshapen; those of the kernels.
pub fn install<B: Backend>(site: &mut Site<'_, '_, B>) -> Result<Vec<Installed<B>>> {
    let list: &[Install<B>] = &[
        plain::<Full, B>,
        plain::<Window, B>,
        plain::<RandomPolicy, B>,
        plain::<H2o, B>,
        plain::<Tova, B>,
        plain::<SnapKv, B>,
        plain::<KNorm, B>,
        plain::<KeyDiff, B>,
        plain::<LagKv, B>,
        expected::install,
        retention::install,
        pairwise::install,
    ];
    list.iter()
        .filter_map(|install| install(site).transpose())
        .collect()
}

/// The policy called `name` among `known`.
///
/// # Errors
/// [`Error::Contract`] lists the known names.
pub fn find(known: &[Arc<dyn Policy>], name: &str) -> Result<Arc<dyn Policy>> {
    known
        .iter()
        .find(|p| p.name() == name)
        .cloned()
        .ok_or_else(|| {
            let names: Vec<_> = known.iter().map(|p| p.name()).collect();
            Error::Contract(format!(
                "policy `{name}` is not one of {}",
                names.join(", ")
            ))
        })
}

/// Names of those whose scores of different heads can be compared.
pub fn pooled(known: &[Arc<dyn Policy>]) -> Vec<String> {
    let comparable = known.iter().filter(|policy| policy.comparable());
    comparable.map(|policy| policy.name().to_owned()).collect()
}

#[cfg(test)]
mod tests;
