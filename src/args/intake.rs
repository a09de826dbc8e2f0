//! What requests may take before they are admitted.

use clap::Args;

use super::number::positive;
use crate::intake::Intake;

/// What requests may take before they are admitted.
#[derive(Debug, Args)]
pub struct IntakeArgs {
    /// MiB that all requests together may hold between their first byte and their place in the
    /// queue. A byte of a body counts as 16, for what is made of it.
    #[arg(
        long,
        env = "PALIMPSEST_MAX_INFLIGHT_MIB",
        default_value_t = 256,
        value_parser = positive,
        help_heading = "Limits"
    )]
    pub max_inflight_mib: usize,
    /// MiB of one request's body or message: 4 and 8 bytes for each token of the model's context
    /// when not given, and at most a sixteenth of --max-inflight-mib.
    #[arg(
        long,
        env = "PALIMPSEST_MAX_MESSAGE_MIB",
        value_parser = positive,
        help_heading = "Limits"
    )]
    pub max_message_mib: Option<usize>,
    /// Long texts that are tokenised at once.
    #[arg(
        long,
        env = "PALIMPSEST_TOKENIZER_THREADS",
        default_value_t = 2,
        value_parser = positive,
        help_heading = "Limits"
    )]
    pub tokenizer_threads: usize,
}

impl IntakeArgs {
    /// What was typed, as the rest of the program takes it.
    pub fn config(self) -> Intake {
        let mib = |mib: usize| mib.saturating_mul(1 << 20);
        Intake {
            max_inflight_bytes: mib(self.max_inflight_mib) as u64,
            max_message_bytes: self.max_message_mib.map_or(0, mib),
            tokenizer_threads: self.tokenizer_threads,
        }
    }
}
