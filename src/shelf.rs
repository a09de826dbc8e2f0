//! Where the snapshots of a rank are kept.

use std::time::Duration;

use anyhow::Context;
use palimpsest_engine::rank::Rank;
use palimpsest_kernels::Backend;
use palimpsest_store::Store;
use palimpsest_worker::shelf::{RankFiles, Shelf};

/// Time for one call of the store. A request may wait for it, and could read its text instead.
const CALL_LIMIT: Duration = Duration::from_secs(10);

/// The store that `--snapshot-store` names, if it names one.
pub fn store(place: Option<&str>) -> anyhow::Result<Option<Store>> {
    let open = |place| {
        let store = Store::open(place).context("--snapshot-store")?;
        anyhow::Ok(store.with_limit(CALL_LIMIT))
    };
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
