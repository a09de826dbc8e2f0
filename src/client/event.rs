//! Events as JSON.

use palimpsest_proto::v1;
use palimpsest_proto::v1::generate_event::Event;

/// The stable JSON form of an event: `{"event": "started" | "prompt_logprobs" |
/// "delta" | "embedding" | "retention_map" | "finished", ...}`.
pub fn event_json(event: &v1::GenerateEvent) -> serde_json::Value {
    use serde_json::json;
    let sequence_number = event.sequence_number;
    match &event.event {
        Some(Event::Started(s)) => json!({
            "event": "started", "sequence_number": sequence_number, "request_id": s.request_id,
            "model": s.model, "seed": s.seed, "prompt_tokens": s.prompt_tokens,
            "reserved_bytes": s.reserved_bytes, "kv": s.kv.as_ref().map(contract_json),
        }),
        Some(Event::Delta(d)) => {
            json!({"event": "delta", "sequence_number": sequence_number, "text": d.text})
        }
        Some(Event::PromptLogprobs(p)) => {
            let logprobs: Vec<f32> = p.tokens.iter().map(|token| token.logprob).collect();
            json!({
                "event": "prompt_logprobs", "sequence_number": sequence_number,
                "logprobs": logprobs,
            })
        }
        Some(Event::Embedding(e)) => json!({
            "event": "embedding", "sequence_number": sequence_number, "values": e.values,
        }),
        Some(Event::RetentionMap(m)) => json!({
            "event": "retention_map", "sequence_number": sequence_number,
            "tokens": m.shares.len(), "held_slots": m.held_slots, "held_bytes": m.held_bytes,
            "full_cache_bytes": m.full_cache_bytes,
        }),
        Some(Event::Finished(f)) => json!({
            "event": "finished", "sequence_number": sequence_number,
            "reason": reason(f.reason()), "stop": f.stop, "usage": f.usage.as_ref().map(usage_json),
        }),
        None => json!({"event": "unknown", "sequence_number": sequence_number}),
    }
}

fn reason(reason: v1::FinishReason) -> &'static str {
    match reason {
        v1::FinishReason::Eos => "eos",
        v1::FinishReason::Stop => "stop",
        v1::FinishReason::Length => "length",
        v1::FinishReason::Read => "read",
        v1::FinishReason::ToolCalls => "tool_calls",
        v1::FinishReason::Unspecified => "unspecified",
    }
}

/// A contract as JSON.
pub fn contract_json(kv: &v1::KvContract) -> serde_json::Value {
    serde_json::json!({
        "budget": kv.budget, "policy": kv.policy, "memory": kv.memory,
        "head_budget": kv.head_budget, "sinks": kv.sinks, "window": kv.window,
        "positions": kv.positions, "memory_slots": kv.memory_slots,
    })
}

/// What a request cost, as JSON.
pub fn usage_json(usage: &v1::Usage) -> serde_json::Value {
    serde_json::json!({
        "prompt_tokens": usage.prompt_tokens, "generated_tokens": usage.generated_tokens,
        "cached_tokens": usage.cached_tokens,
        "evicted_tokens": usage.evicted_tokens, "held_slots": usage.held_slots,
        "held_bytes": usage.held_bytes, "full_cache_bytes": usage.full_cache_bytes,
        "queue_seconds": usage.queue_seconds,
        "prefill_seconds": usage.prefill_seconds, "decode_seconds": usage.decode_seconds,
        "first_token_seconds": usage.first_token_seconds, "warnings": usage.warnings,
    })
}
