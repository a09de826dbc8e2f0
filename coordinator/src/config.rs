//! Limits of a coordinator. Nothing here is read from the environment; the binary fills it in.

use std::sync::Arc;
use std::time::Duration;

use palimpsest_tls::Connector;

use crate::budget::{BODY_WEIGHT, for_large};
use crate::hosts::AllowedHosts;
use crate::keys::ApiKeys;
use crate::origins::AllowedOrigins;
use crate::pool::TOKENIZER_WEIGHT;
use crate::responses;
use crate::scheduler::Company;
use crate::sessions;

/// What a message may have beside a full context: instructions, encodings, prompts beyond it.
const SPARE_BYTES: u64 = 4 << 20;
/// Bytes of a message for each token of a model's context, generously: English takes 4 to 5, and
/// escapes may double that.
const BYTES_PER_TOKEN: u64 = 8;

/// What a coordinator takes on, and how long it waits. Every queue and every wait has its bound
/// here.
#[derive(Debug, Clone)]
pub struct Config {
    /// Sequences that run at once.
    pub max_running: usize,
    /// Requests that wait at most.
    pub max_queued: usize,
    /// Prompt tokens of all waiting requests together.
    pub max_queued_tokens: u64,
    /// Prompt and answer of one request together, in tokens.
    pub max_total_tokens: u64,
    /// Largest budget that a request may ask for, in entries per KV head.
    pub max_budget: u32,
    /// Tokens of an answer when the request does not say.
    pub default_max_tokens: u32,
    /// Prefill tokens of a step in which others decode, at most; 0: one stride.
    pub busy_prefill_tokens: u64,
    /// Prefill tokens of a step in which nobody decodes, at most; 0: four strides.
    pub idle_prefill_tokens: u64,
    /// Time that the prompts of a step may take. Steps are made as small as that needs, from what
    /// earlier ones took, down to 16 tokens: so a slow machine stays far below `step_limit`.
    pub step_target: Duration,
    /// How much prompts that are read lengthen the gaps between tokens of those that decode, and
    /// these the reading.
    pub company: Company,
    /// Longest time from arrival to the end of a request.
    pub request_limit: Duration,
    /// Longest time of one step on any rank.
    pub step_limit: Duration,
    /// Longest silence of a rank's beats, which come several times a second.
    pub beat_limit: Duration,
    /// Time that ranks have to meet when a group forms.
    pub join_limit: Duration,
    /// Tokens that wait for a reader before its sequence is paused.
    pub ring_tokens: usize,
    /// Time after which a paused request is given up, and in which a reader that is behind must
    /// take as many tokens as its ring holds.
    pub slow_reader_limit: Duration,
    /// Time that running requests have to finish on shutdown.
    pub drain_limit: Duration,
    /// Largest message that a client may send, in bytes; 0: what the model's context needs (see
    /// [`Self::message_limit`]).
    pub max_message_bytes: usize,
    /// Memory that requests may take between their first byte and admission, all together, in
    /// bytes. A byte of a body counts as [`BODY_WEIGHT`] of them.
    pub max_inflight_bytes: u64,
    /// Long texts that are tokenised at once, each on a thread of its own.
    pub tokenizer_threads: usize,
    /// What is held of an answer that is not streamed, in bytes.
    pub max_answer_bytes: usize,
    /// Time that the requests of a lost group wait for another one, which then goes on with them;
    /// zero: they end at once.
    pub regroup_limit: Duration,
    /// Time that a request waits which comes while a group is about to be ready or a lost one is
    /// being replaced.
    pub group_wait_limit: Duration,
    /// Times that one request is read anew after a group was lost in a step with it, the last time
    /// in steps of its own. If the group is lost in one of these, the request ends; those that only
    /// shared steps with it do not.
    pub max_replays: u32,
    /// Keys that clients must show; `None`: anyone may ask.
    pub keys: Option<Arc<ApiKeys>>,
    /// Hosts beside addresses and localhost that HTTP is asked by, where no keys are.
    pub allowed_hosts: AllowedHosts,
    /// Origins whose pages may ask over HTTP and read the answers.
    pub cors: AllowedOrigins,
    /// Whether HTTP serves the console.
    pub console: bool,
    /// What clients call the model, the name that answers show first; none: as its ranks call it.
    pub served_names: Vec<String>,
    /// What sessions may take, and where they are kept.
    pub sessions: sessions::Limits,
    /// What responses may take that are kept, and where.
    pub responses: responses::Limits,
    /// How ranks are connected to.
    pub ranks: Connector,
    /// Number of the first epoch.
    pub first_epoch: u64,
    /// Bytes that a rank's snapshots may take in the store, where ranks have one.
    pub snapshot_store_bytes: u64,
    /// Whether requests over HTTP are refused for fields that have no effect or that nobody knows.
    pub strict: bool,
    /// Whether clients with different keys may use each other's snapshots. Who does learns from
    /// the time of an answer what others have asked.
    pub share_snapshots: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_running: 16,
            max_queued: 256,
            max_queued_tokens: 4 << 20,
            max_total_tokens: 16 << 20,
            max_budget: 1 << 20,
            default_max_tokens: 512,
            busy_prefill_tokens: 0,
            idle_prefill_tokens: 0,
            step_target: Duration::from_secs(1),
            company: Company::default(),
            request_limit: Duration::from_secs(3600),
            step_limit: Duration::from_secs(60),
            beat_limit: Duration::from_millis(2500),
            join_limit: Duration::from_secs(20),
            ring_tokens: 256,
            slow_reader_limit: Duration::from_secs(60),
            drain_limit: Duration::from_secs(60),
            max_message_bytes: 0,
            max_inflight_bytes: 256 << 20,
            tokenizer_threads: 2,
            max_answer_bytes: 16 << 20,
            snapshot_store_bytes: 16 << 30,
            share_snapshots: false,
            strict: false,
            regroup_limit: Duration::ZERO,
            group_wait_limit: Duration::from_secs(30),
            max_replays: 2,
            keys: None,
            allowed_hosts: AllowedHosts::default(),
            cors: AllowedOrigins::default(),
            console: true,
            served_names: Vec::new(),
            sessions: sessions::Limits::default(),
            responses: responses::Limits::default(),
            ranks: Connector::default(),
            first_epoch: 1,
        }
    }
}

impl Config {
    /// Largest message that a client of a model with this context may send, in bytes: what was
    /// set, or 4 MiB and 8 bytes for each token of the context. A message that alone passed
    /// `max_inflight_bytes` could never be read, so it is never larger than that allows.
    pub fn message_limit(&self, context_length: u64) -> usize {
        let asked = match self.max_message_bytes {
            0 => SPARE_BYTES.saturating_add(context_length.saturating_mul(BYTES_PER_TOKEN)),
            bytes => bytes as u64,
        };
        let most = for_large(self.max_inflight_bytes) / BODY_WEIGHT;
        usize::try_from(asked.min(most)).unwrap_or(usize::MAX)
    }

    /// The most that requests before admission take of the memory of a coordinator, in bytes:
    /// `max_inflight_bytes` for all that are read, and for texts of one message limit what a
    /// tokenizer takes.
    pub fn intake_peak(&self, context_length: u64) -> u64 {
        let text = self.message_limit(context_length) as u64;
        self.max_inflight_bytes
            .saturating_add(text.saturating_mul(TOKENIZER_WEIGHT))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_has_room_for_the_context_and_never_more_than_the_budget() {
        let config = Config::default();
        assert_eq!(config.message_limit(8192), (4 << 20) + 8 * 8192);
        let most = (config.max_inflight_bytes / 8 * 7 / BODY_WEIGHT) as usize;
        assert_eq!(config.message_limit(u64::MAX), most);
        let set = |max_message_bytes| Config {
            max_message_bytes,
            ..Config::default()
        };
        assert_eq!(set(1000).message_limit(8192), 1000);
        assert_eq!(set(usize::MAX).message_limit(8192), most);
    }
}
