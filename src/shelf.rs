//! Where the snapshots of a rank are kept.

use anyhow::Context;
use palimpsest_engine::rank::Rank;
use palimpsest_kernels::Backend;
use palimpsest_store::Store;
use palimpsest_worker::shelf::{RankFiles, Shelf};

/// The store that `--snapshot-store` names, if it names one.
pub fn store(place: Option<&str>) -> anyhow::Result<Option<Store>> {
    let open = |place| Store::open(place).context("--snapshot-store");
    place.map(open).transpose()
}

/// The shelf of an opened rank, which tells the coordinator of its store.
pub fn open<B: Backend>(rank: &mut Rank<B>, store: Option<&Store>) -> std::io::Result<Shelf> {
    let kept = rank.runner.kept().clone();
    let (Some(store), Some(model)) = (store, &rank.info.model) else {
        return Ok(Shelf::in_memory(kept));
    };
    let files = RankFiles::of(&rank.runner, &model.state_digest);
    rank.info.snapshot_store = true;
    Shelf::with_store(kept, store.clone(), files)
}
