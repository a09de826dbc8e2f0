//! A coordinator over a rank without a model, for targets that send it requests.

use std::time::Duration;

use palimpsest_coordinator::executor::ChannelExecutor;
use palimpsest_coordinator::executor::fake::{FakeRank, Script};
use palimpsest_coordinator::{Config, Coordinator};
use tokio::runtime::Runtime;

/// A coordinator and what it runs on.
pub struct Fixture {
    /// One thread, but for texts of more than 4 KiB: those are tokenised on another.
    pub runtime: Runtime,
    /// Serves a model that answers `ok`.
    pub coordinator: Coordinator,
}

impl Fixture {
    /// A coordinator that is ready.
    pub fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        let coordinator = runtime.block_on(async {
            let rank = FakeRank::new(Script::saying("ok", 0, 1));
            let config = Config::default();
            let executor = ChannelExecutor::new(vec![rank.spawn()], Duration::from_secs(60));
            let ranks = vec![rank.info()];
            let coordinator = Coordinator::build(config, Box::new(executor), ranks)
                .expect("a group of one rank");
            assert!(coordinator.ready().await);
            coordinator
        });
        Self {
            runtime,
            coordinator,
        }
    }
}

impl Default for Fixture {
    fn default() -> Self {
        Self::new()
    }
}
