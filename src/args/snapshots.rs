//! Kept states of prompts and answers: how much memory they may take, and where they outlive the
//! process.

use clap::Args;

/// Where a rank keeps them.
#[derive(Debug, Clone, Args)]
pub struct SnapshotArgs {
    /// MiB of host memory for kept states, of all ranks of this process. Whoever asks again about
    /// a text begins with its state. 0: nothing is kept.
    #[arg(
        long,
        env = "PALIMPSEST_SNAPSHOT_MEMORY_MIB",
        default_value_t = 1024,
        help_heading = "Kept states"
    )]
    pub snapshot_memory_mib: usize,
    /// Directory or URL where kept states outlive the process; they are written there in the
    /// background.
    #[arg(
        long,
        env = "PALIMPSEST_SNAPSHOT_STORE",
        value_name = "PLACE",
        help_heading = "Kept states"
    )]
    pub snapshot_store: Option<String>,
}

/// Which of them a coordinator uses.
#[derive(Debug, Clone, Args)]
pub struct ReuseArgs {
    /// MiB that the kept states of a rank may take in --snapshot-store.
    #[arg(
        long,
        env = "PALIMPSEST_SNAPSHOT_STORE_MIB",
        default_value_t = 16_384,
        help_heading = "Kept states"
    )]
    pub snapshot_store_mib: u64,
    /// Clients with different keys may begin with each other's kept states. The time of an answer
    /// then tells what others have asked.
    #[arg(long, env = "PALIMPSEST_SHARE_SNAPSHOTS", help_heading = "Kept states")]
    pub share_snapshots: bool,
}
