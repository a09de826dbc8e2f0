use std::collections::BTreeMap;

use palimpsest_proto::v1::TokenIds;
use serde_json::{Value, json};

use super::fields::{COMMON, IGNORED};
use super::*;

fn read<T: RequestBody>(body: &Value) -> Result<T, Unreadable> {
    read_body(body.to_string().as_bytes())
}

fn chat(extra: Value) -> Result<Choices, HttpError> {
    let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]});
    body.as_object_mut()
        .unwrap()
        .extend(extra.as_object().unwrap().clone());
    read::<ChatRequest>(&body).expect("well-formed").choices()
}

#[test]
fn every_field_reaches_the_request() {
    let choices = chat(json!({
        "max_completion_tokens": 7, "temperature": 0.5, "top_p": 0.9, "n": 2, "stop": "x",
        "seed": 3, "top_k": -1, "frequency_penalty": 0.1, "presence_penalty": 0.2,
        "logit_bias": {"5": -1.0}, "logprobs": true, "top_logprobs": 4, "kv_budget": 512,
        "kv_policy": "window", "latent_memory": "none", "priority": 2, "stream": true,
        "stream_options": {"include_usage": true}, "min_p": 0.05, "user": "u", "ignore_eos": true,
        "session_id": "s",
    }))
    .unwrap();
    assert!(choices.include_usage && choices.per_prompt == 2 && choices.count() == 2);
    let [first, second] = &choices.prompts[0].choices[..] else {
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
    assert_eq!(first.session_id, "s");
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
        chat(json!({})).unwrap().prompts[0].choices[0]
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
        (json!({"audio": {"voice": "ash"}}), "audio"),
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
            &["prompt", "logprobs", "echo"],
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
        // COMMON itself is held against the struct: a field that is not read takes anything.
        // A schema may be any object.
        let fields = own.iter().chain(&COMMON);
        for field in fields.filter(|field| **field != "guided_json") {
            let mut body = least.clone();
            body[*field] = json!({"no": ["such", "type"]});
            let is_read =
                read::<ChatRequest>(&body).is_err() || read::<CompletionRequest>(&body).is_err();
            assert!(is_read, "{field} takes anything");
        }
    }
}

#[test]
fn the_openapi_document_has_the_fields_of_bodies_about_sessions() {
    let document: Value = serde_json::from_str(include_str!("../openapi.json")).expect("JSON");
    let embeddings: Vec<&str> = EmbeddingBody::OWN
        .iter()
        .chain(&["user"])
        .copied()
        .collect();
    for (schema, own) in [
        ("EmbeddingRequest", &embeddings[..]),
        ("CreateSession", CreateSessionBody::OWN),
        ("Append", AppendBody::OWN),
        ("Fork", ForkBody::OWN),
        ("OpenSession", OpenSessionBody::OWN),
        ("CloseSession", CloseSessionBody::OWN),
    ] {
        let schema = &document["components"]["schemas"][schema];
        let documented = schema["properties"].as_object().expect("properties");
        let documented: Vec<&str> = documented.keys().map(String::as_str).collect();
        assert_eq!(documented, own);
        assert_eq!(schema["additionalProperties"], false);
    }
}

#[test]
fn prompts_come_in_four_shapes() {
    let ask = |prompt: Value| {
        read::<CompletionRequest>(&json!({"prompt": prompt, "n": 2}))
            .unwrap()
            .choices()
            .unwrap()
    };
    assert_eq!(ask(json!("a")).count(), 2);
    let two = ask(json!(["a", "b"]));
    assert_eq!((two.prompts.len(), two.count()), (2, 4));
    assert_eq!(
        ask(json!([1, 2, 3])).prompts[0].input,
        Some(Input::TokenIds(TokenIds { ids: vec![1, 2, 3] }))
    );
    assert_eq!(ask(json!([[1], [2]])).count(), 4);
    for bad in [
        json!([1, "a"]),
        json!([[1], 2]),
        json!([-1]),
        json!([1.5]),
        json!([1_u64 << 32]),
    ] {
        let error = read::<CompletionRequest>(&json!({"prompt": bad})).unwrap_err();
        assert_eq!(error.field.as_deref(), Some("prompt"), "{bad}");
    }
}

/// What a list has beyond its limit is counted and not held.
#[test]
fn lists_over_their_limit_are_refused_with_their_number() {
    let refused = |extra: Value| {
        let error = chat(extra).unwrap_err();
        (error.body.code, error.body.message)
    };
    let stops = refused(json!({"stop": vec!["x"; 1000]}));
    assert_eq!(stops.0, "bad_stopping");
    assert!(
        stops.1.contains("1000 stop strings, over the limit of 16"),
        "{stops:?}"
    );
    let biases: BTreeMap<String, f32> = (0..2000).map(|id| (id.to_string(), 1.0)).collect();
    let biases = refused(json!({"logit_bias": biases}));
    assert_eq!(biases.0, "bad_sampling");
    assert!(biases.1.contains("more than 1024 entries"), "{biases:?}");
    for prompt in [json!(vec!["x"; 1000]), json!(vec![[1]; 1000])] {
        let body = read::<CompletionRequest>(&json!({"prompt": prompt})).unwrap();
        assert_eq!((body.prompt.inputs.len(), body.prompt.count), (16, 1000));
        let error = body.choices().unwrap_err();
        assert!(
            error.body.message.contains("is 1000: ask for 1 to 16"),
            "{error:?}"
        );
    }
}

#[test]
fn messages_come_as_text_or_in_parts_and_never_as_lists() {
    let ask = |messages: Value| read::<ChatRequest>(&json!({"messages": messages}));
    let parts = json!([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]);
    let read = ask(json!([{"role": "user", "content": parts}, {"role": "x", "name": [1]}]));
    let asked = read.unwrap().choices().unwrap();
    let Some(Input::Chat(chat)) = &asked.prompts[0].input else {
        panic!("{asked:?}")
    };
    assert_eq!(
        (chat.messages[0].content.as_str(), chat.messages.len()),
        ("ab", 2)
    );
    // Five bytes each, of which a hundred would be made.
    for bad in [
        json!([["user"]]),
        json!([{"role": "user", "content": [["text"]]}]),
    ] {
        assert_eq!(ask(bad).unwrap_err().field.as_deref(), Some("messages"));
    }
}

/// Names are the client's: an error that repeats megabytes goes into logs, too.
#[test]
fn an_error_repeats_the_beginning_of_a_field_only() {
    let name = "x".repeat(1_000_000);
    let error = chat(json!({ name.as_str(): 1 })).unwrap_err();
    let shown = error.json().to_string();
    assert!(
        shown.len() < 400 && shown.contains(&"x".repeat(64)),
        "{}",
        shown.len()
    );
    let error = read::<TokenizeBody>(&json!({ name.as_str(): 1 })).unwrap_err();
    assert!(error.field.is_some_and(|field| field.len() < 100));
    assert!(error.error.to_string().len() < 200);
}

#[test]
fn the_field_that_cannot_be_read_is_named() {
    let chat = |extra: Value| {
        let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]});
        let fields = extra.as_object().unwrap().clone();
        body.as_object_mut().unwrap().extend(fields);
        read::<ChatRequest>(&body).err().map(|error| error.field)
    };
    assert_eq!(chat(json!({})), None);
    for (extra, field) in [
        (json!({"temperature": "hot"}), "temperature"),
        (json!({"max_tokens": -1}), "max_tokens"),
        (json!({"seed": 1, "top_p": [0.5]}), "top_p"),
        (json!({"messages": "hi"}), "messages"),
    ] {
        assert_eq!(chat(extra), Some(Some(field.to_owned())));
    }
    // Nothing that stands there is at fault.
    for bad in [
        "{}",
        "[1",
        "{\"prompt\": \"a\", \"n\": 1e",
        "{\"prompt\": \"a\"} x",
    ] {
        let error = read_body::<CompletionRequest>(bad.as_bytes()).unwrap_err();
        assert_eq!(error.field, None, "{bad}");
    }
}
