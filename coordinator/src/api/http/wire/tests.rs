use serde_json::json;

use super::fields::{COMMON, IGNORED};
use super::*;

fn chat(extra: Value) -> Result<Choices, HttpError> {
    let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]});
    body.as_object_mut()
        .unwrap()
        .extend(extra.as_object().unwrap().clone());
    serde_json::from_value::<ChatRequest>(body)
        .expect("well-formed")
        .choices()
}

#[test]
fn every_field_reaches_the_request() {
    let choices = chat(json!({
        "max_completion_tokens": 7, "temperature": 0.5, "top_p": 0.9, "n": 2, "stop": "x",
        "seed": 3, "top_k": -1, "frequency_penalty": 0.1, "presence_penalty": 0.2,
        "logit_bias": {"5": -1.0}, "logprobs": true, "top_logprobs": 4, "kv_budget": 512,
        "kv_policy": "window", "latent_memory": "none", "priority": 2, "stream": true,
        "stream_options": {"include_usage": true}, "min_p": 0.05, "user": "u", "ignore_eos": true,
    }))
    .unwrap();
    assert!(choices.include_usage && choices.per_prompt == 2 && choices.requests.len() == 2);
    let [first, second] = &choices.requests[..] else {
        panic!("two choices")
    };
    let sampling = first.sampling.clone().unwrap();
    assert_eq!(
        (
            sampling.temperature,
            sampling.seed,
            sampling.logprobs,
            sampling.top_k
        ),
        (Some(0.5), Some(3), Some(4), 0)
    );
    assert_eq!(second.sampling.clone().unwrap().seed, Some(4));
    assert_eq!(sampling.logit_bias, BTreeMap::from([(5, -1.0)]));
    let stopping = first.stopping.clone().unwrap();
    assert_eq!(
        (stopping.max_tokens, stopping.stop, stopping.ignore_eos),
        (Some(7), vec!["x".to_owned()], true)
    );
    let kv = first.kv.clone().unwrap();
    assert_eq!(
        (
            kv.budget,
            kv.policy.as_str(),
            kv.memory.as_str(),
            first.priority
        ),
        (512, "window", "none", 2)
    );
    assert_eq!(
        chat(json!({})).unwrap().requests[0]
            .sampling
            .clone()
            .unwrap()
            .temperature,
        Some(1.0)
    );
}

#[test]
fn what_is_not_supported_is_named_unless_it_asks_for_nothing() {
    let cases = [
        (json!({"tools": [{"type": "function"}]}), "tools"),
        (
            json!({"response_format": {"type": "json_object"}}),
            "response_format",
        ),
        (json!({"best_of": 3}), "best_of"),
        (json!({"temprature": 1}), "temprature"),
        (json!({"n": 0}), "n"),
        (json!({"n": 17}), "n"),
        (json!({"top_logprobs": 3}), "top_logprobs"),
        (
            json!({"logprobs": true, "top_logprobs": 21}),
            "top_logprobs",
        ),
        (json!({"logit_bias": {"a": 1}}), "logit_bias"),
        (json!({"top_k": -2}), "top_k"),
    ];
    for (extra, field) in cases {
        let error = chat(extra.clone()).unwrap_err();
        assert_eq!(
            (error.status.as_u16(), error.body.param.as_deref()),
            (400, Some(field)),
            "{extra}"
        );
    }
    for harmless in [
        json!({
            "tools": [], "tool_choice": "none", "response_format": {"type": "text"},
            "functions": null,
        }),
        json!({"user": "u", "metadata": {"a": "b"}, "store": false, "parallel_tool_calls": true}),
    ] {
        assert!(chat(harmless.clone()).is_ok(), "{harmless}");
    }
    let content = json!([{"type": "image_url", "image_url": {}}]);
    let image = json!({"messages": [{"role": "user", "content": content}]});
    assert_eq!(
        chat(image).unwrap_err().body.param.as_deref(),
        Some("messages[0].content")
    );
}

/// The document names every field that is read or ignored, and no other.
#[test]
fn the_openapi_document_has_the_fields_of_these_types() {
    let document: Value = serde_json::from_str(include_str!("../openapi.json")).expect("JSON");
    assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
    let own: [(&str, &[&str], Value); 2] = [
        (
            "ChatRequest",
            &["messages", "logprobs", "top_logprobs"],
            json!({"messages": []}),
        ),
        (
            "CompletionRequest",
            &["prompt", "logprobs"],
            json!({"prompt": ""}),
        ),
    ];
    for (schema, own, least) in own {
        let schema = &document["components"]["schemas"][schema];
        let mut documented: Vec<&str> = schema["properties"]
            .as_object()
            .expect("properties")
            .keys()
            .map(String::as_str)
            .collect();
        let mut known: Vec<&str> = own.iter().chain(&COMMON).chain(&IGNORED).copied().collect();
        documented.sort_unstable();
        known.sort_unstable();
        assert_eq!(documented, known);
        assert_eq!(schema["additionalProperties"], false);
        // COMMON itself is held against the struct: a field that serde does not read would be
        // left in `rest`.
        for field in own.iter().chain(&COMMON) {
            let mut body = least.clone();
            body[*field] = json!({"no": ["such", "type"]});
            let is_read = serde_json::from_value::<ChatRequest>(body.clone()).is_err()
                || serde_json::from_value::<CompletionRequest>(body).is_err();
            assert!(is_read, "{field} takes anything");
        }
    }
}

#[test]
fn prompts_come_in_four_shapes() {
    let ask = |prompt: Value| {
        serde_json::from_value::<CompletionRequest>(json!({"prompt": prompt, "n": 2}))
            .unwrap()
            .choices()
            .unwrap()
    };
    assert_eq!(ask(json!("a")).requests.len(), 2);
    assert_eq!(ask(json!(["a", "b"])).requests.len(), 4);
    assert_eq!(
        ask(json!([1, 2, 3])).requests[0].input,
        Some(Input::TokenIds(TokenIds { ids: vec![1, 2, 3] }))
    );
    assert_eq!(ask(json!([[1], [2]])).requests.len(), 4);
}

#[test]
fn the_field_that_cannot_be_read_is_named() {
    let chat = |extra: Value| {
        let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]});
        let fields = extra.as_object().unwrap().clone();
        body.as_object_mut().unwrap().extend(fields);
        field_at_fault::<ChatRequest>(body.to_string().as_bytes())
    };
    assert_eq!(chat(json!({})), None);
    for (extra, field) in [
        (json!({"temperature": "hot"}), "temperature"),
        (json!({"max_tokens": -1}), "max_tokens"),
        (json!({"seed": 1, "top_p": [0.5]}), "top_p"),
        (json!({"messages": "hi"}), "messages"),
    ] {
        assert_eq!(chat(extra).as_deref(), Some(field));
    }
    // Nothing that stands there is at fault.
    assert_eq!(field_at_fault::<CompletionRequest>(b"{}"), None);
    assert_eq!(field_at_fault::<CompletionRequest>(b"[1"), None);
}
