//! Requests whose answers show every difference.

use palimpsest_proto::v1::generate_request::Input;
use palimpsest_proto::v1::{GenerateRequest, KvContract, Sampling, Stopping, TokenIds};
use palimpsest_tests::{VOCABULARY, random};

pub fn prompt(seed: u64, count: usize) -> Vec<u32> {
    random(seed, count)
        .iter()
        .map(|v| ((v + 1.0) * 0.5 * VOCABULARY as f32) as u32 % 255)
        .collect()
}

/// A request whose answer depends on every token of its prompt, on its own answer and on what was
/// evicted.
pub fn request(seed: u64, tokens: usize, answer: u32) -> GenerateRequest {
    GenerateRequest {
        input: Some(Input::TokenIds(TokenIds {
            ids: prompt(seed, tokens),
        })),
        sampling: Some(Sampling {
            temperature: Some(0.7),
            seed: Some(seed),
            frequency_penalty: 0.2,
            logprobs: Some(0),
            ..Default::default()
        }),
        stopping: Some(Stopping {
            max_tokens: Some(answer),
            ignore_eos: true,
            ..Default::default()
        }),
        kv: Some(KvContract {
            policy: "h2o".into(),
            budget: 40,
            sinks: Some(2),
            window: Some(8),
            ..Default::default()
        }),
        ..Default::default()
    }
}
