//! What requests may take before they are admitted.

use palimpsest_coordinator::Config;

/// Bounds on requests that are read and tokenised.
#[derive(Debug, Clone, Copy)]
pub struct Intake {
    /// Memory of all of them together, in bytes.
    pub max_inflight_bytes: u64,
    /// Bytes of one message; 0: what the model's context needs.
    pub max_message_bytes: usize,
    /// Long texts that are tokenised at once.
    pub tokenizer_threads: usize,
}

impl Intake {
    /// The limits of a coordinator with these.
    pub fn limits(self) -> Config {
        Config {
            max_inflight_bytes: self.max_inflight_bytes,
            max_message_bytes: self.max_message_bytes,
            tokenizer_threads: self.tokenizer_threads,
            ..Config::default()
        }
    }
}
