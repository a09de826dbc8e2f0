//! What an answer cost.

use palimpsest_proto::v1::Usage;
use serde_json::{Value, json};

use super::choice::Choice;

/// OpenAI's figures, and ours: under `kv` means per KV head, and sums over choices for bytes; under
/// `timing` the longest times of a choice.
pub(super) fn usage(choices: &[Choice], per_prompt: usize) -> Value {
    let prompt: u64 = choices
        .iter()
        .step_by(per_prompt.max(1))
        .map(|choice| choice.usage.prompt_tokens)
        .sum();
    let completion: u64 = choices
        .iter()
        .map(|choice| choice.usage.generated_tokens)
        .sum();
    let cached: u64 = choices
        .iter()
        .step_by(per_prompt.max(1))
        .map(|choice| choice.usage.cached_tokens)
        .sum();
    let sum = |field: fn(&Usage) -> u64| {
        choices
            .iter()
            .map(|choice| field(&choice.usage))
            .sum::<u64>()
    };
    let most = |field: fn(&Usage) -> u64| {
        choices
            .iter()
            .map(|choice| field(&choice.usage))
            .max()
            .unwrap_or(0)
    };
    let mut warnings: Vec<&String> = choices
        .iter()
        .flat_map(|choice| &choice.usage.warnings)
        .collect();
    warnings.dedup();
    json!({
        "prompt_tokens": prompt, "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
        "kv": {
            "evicted_tokens": most(|usage| usage.evicted_tokens),
            "held_slots": most(|usage| usage.held_slots),
            "held_bytes": sum(|usage| usage.held_bytes),
            "full_cache_bytes": sum(|usage| usage.full_cache_bytes),
            "warnings": warnings,
        },
        "timing": {
            "queue_seconds": longest(choices, |usage| usage.queue_seconds),
            "prefill_seconds": longest(choices, |usage| usage.prefill_seconds),
            "decode_seconds": longest(choices, |usage| usage.decode_seconds),
            "first_token_seconds": longest(choices, |usage| usage.first_token_seconds),
        },
    })
}

fn longest(choices: &[Choice], seconds: fn(&Usage) -> f64) -> f64 {
    let seconds = choices.iter().map(|choice| seconds(&choice.usage));
    seconds.fold(0.0, f64::max)
}
