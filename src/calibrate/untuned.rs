//! What stands in place of tuning in programs that were built without it.

use std::path::PathBuf;

use anyhow::bail;
use palimpsest_engine::indexer::Indexer;
use palimpsest_models::Model;

use super::job::Job;

/// Whether this program can tune.
pub const IS_BUILT_IN: bool = false;
/// How to have it done.
pub const HOW: &str = "tuning is in programs that were built with `cargo build --release \
                       --features calibrate`; its library takes a third of a build";

/// A tuning, which there is none of.
pub enum Tuning {}

impl Tuning {
    /// # Errors
    /// Always: says how to have it.
    pub fn new(_: &Job<'_>) -> anyhow::Result<Self> {
        bail!("this program cannot tune: {HOW}. Leave --tune out, or give --tune 0")
    }

    /// # Errors
    /// Never: there is nothing to call it on.
    pub fn run(&self, _: &mut Indexer) -> anyhow::Result<()> {
        match *self {}
    }
}

/// # Errors
/// Always: says how to have it.
pub fn start(_: &[PathBuf], _: &Model) -> anyhow::Result<Indexer> {
    bail!("this program cannot go on from other scorers: {HOW}. Leave --start out")
}
