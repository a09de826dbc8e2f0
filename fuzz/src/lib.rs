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
    rank: FakeRank,
}

impl Fixture {
    /// A coordinator that is ready.
    pub fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        let rank = FakeRank::new(Script::saying("ok", 0, 1));
        let coordinator = runtime.block_on(async {
            // A request may ask for millions of tokens, which is no fault and takes its time.
            let config = Config {
                max_total_tokens: 1024,
                ..Config::default()
            };
            let executor = ChannelExecutor::new(vec![rank.spawn()], Duration::from_secs(60));
            let ranks = vec![rank.info()];
            let coordinator =
                Coordinator::build(config, Box::new(executor), ranks).expect("a group of one rank");
            assert!(coordinator.ready().await);
            coordinator
        });
        Self {
            runtime,
            coordinator,
            rank,
        }
    }

    /// To be called before each request: the rank keeps every plan for tests that look at them.
    pub fn forget(&self) {
        self.rank.forget_plans();
    }
}

impl Default for Fixture {
    fn default() -> Self {
        Self::new()
    }
}
