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
    /// MiB of one request's body or message. When not given: 4 MiB, and 8 bytes for each token of
    /// the model's context. At most about an eighteenth of --max-inflight-mib.
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

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Flags {
        #[command(flatten)]
        intake: IntakeArgs,
    }

    fn parse(flags: &[&str]) -> Result<Intake, clap::Error> {
        let flags = Flags::try_parse_from([&["test"], flags].concat())?;
        Ok(flags.intake.config())
    }

    #[test]
    fn limits_are_in_mib_and_never_zero() {
        let defaults = parse(&[]).unwrap();
        let library = palimpsest_coordinator::Config::default();
        assert_eq!(defaults.max_inflight_bytes, library.max_inflight_bytes);
        assert_eq!(defaults.max_message_bytes, library.max_message_bytes);
        assert_eq!(defaults.tokenizer_threads, library.tokenizer_threads);
        let flags = ["--max-inflight-mib", "64", "--max-message-mib", "1"];
        let limits = parse(&flags).unwrap().limits();
        assert_eq!(limits.max_inflight_bytes, 64 << 20);
        assert_eq!(limits.message_limit(1 << 20), 1 << 20);
        for flag in [
            "--max-inflight-mib",
            "--max-message-mib",
            "--tokenizer-threads",
        ] {
            assert!(parse(&[flag, "0"]).is_err(), "{flag}");
        }
    }
}
