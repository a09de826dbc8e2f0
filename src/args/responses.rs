//! Where a server keeps responses, and what they may take.

use std::time::Duration;

use clap::Args;

use super::number::positive;
use crate::responses::ResponseConfig;

/// Where a server keeps responses, and what they may take.
#[derive(Debug, Args)]
pub struct ResponseArgs {
    /// Where responses outlive this process: a directory of its own, or the URL of an object
    /// store. In memory when not given.
    #[arg(
        long,
        env = "PALIMPSEST_RESPONSE_STORE",
        value_name = "PLACE",
        help_heading = "Responses"
    )]
    pub response_store: Option<String>,
    /// Days after which a response is forgotten.
    #[arg(
        long,
        env = "PALIMPSEST_RESPONSE_DAYS",
        default_value_t = 30,
        value_parser = positive,
        help_heading = "Responses"
    )]
    pub response_days: usize,
    /// Responses that are kept of all clients. When not given: 100000 with --response-store, 10000
    /// without.
    #[arg(
        long,
        env = "PALIMPSEST_MAX_RESPONSES",
        value_parser = positive,
        help_heading = "Responses"
    )]
    pub max_responses: Option<usize>,
    /// MiB of all of them. When not given: 4096 with --response-store, 64 without.
    #[arg(
        long,
        env = "PALIMPSEST_RESPONSE_STORE_MIB",
        value_parser = positive,
        help_heading = "Responses"
    )]
    pub response_store_mib: Option<usize>,
    /// Turns that a conversation may have.
    #[arg(
        long,
        env = "PALIMPSEST_RESPONSE_MAX_TURNS",
        default_value_t = 1000,
        value_parser = positive,
        help_heading = "Responses"
    )]
    pub response_max_turns: usize,
}

impl ResponseArgs {
    /// What was typed, as the rest of the program takes it.
    pub fn config(self) -> ResponseConfig {
        let mib = |mib: usize| (mib as u64).saturating_mul(1 << 20);
        let days = (self.response_days as u64).saturating_mul(24 * 3600);
        ResponseConfig {
            place: self.response_store,
            ttl: Duration::from_secs(days),
            max_responses: self.max_responses,
            max_bytes: self.response_store_mib.map(mib),
            max_turns: self.response_max_turns,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use palimpsest_coordinator::responses::Limits;

    use super::*;

    #[derive(Debug, Parser)]
    struct Flags {
        #[command(flatten)]
        responses: ResponseArgs,
    }

    fn open(flags: &[&str]) -> Limits {
        let flags = Flags::try_parse_from([&["test"], flags].concat()).expect("flags");
        flags.responses.config().open().expect("a store")
    }

    #[test]
    fn what_is_not_said_is_as_the_library_and_the_help_have_it() {
        let (memory, library) = (open(&[]), Limits::default());
        let bounds = |limits: &Limits| {
            let bytes = limits.max_bytes >> 20;
            [
                limits.max_responses as u64,
                bytes,
                limits.max_turns as u64,
                limits.ttl.as_secs(),
            ]
        };
        assert_eq!(bounds(&memory), bounds(&library));
        assert_eq!(bounds(&memory), [10_000, 64, 1000, 30 * 24 * 3600]);
        let place = tempfile::tempdir().expect("a directory");
        let place = place.path().to_str().expect("UTF-8");
        assert_eq!(
            bounds(&open(&["--response-store", place]))[..2],
            [100_000, 4096]
        );
        let said = [
            "--response-days",
            "1",
            "--max-responses",
            "5",
            "--response-store-mib",
            "2",
            "--response-max-turns",
            "3",
        ];
        assert_eq!(bounds(&open(&said)), [5, 2, 3, 24 * 3600]);
    }
}
