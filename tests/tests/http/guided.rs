//! Answers of a given form.

use palimpsest_coordinator::Config;
use serde_json::{Value, json};

use crate::client::{Http, with};

fn chat(extra: Value) -> Value {
    let body = json!({
        "model": "tiny", "messages": [{"role": "user", "content": "hello there"}],
        "max_tokens": 200, "seed": 5,
    });
    with(body, extra)
}

fn point() -> Value {
    json!({
        "type": "object", "additionalProperties": false, "required": ["y", "x"],
        "properties": {
            "y": {"type": "integer", "minimum": 0, "maximum": 9999},
            "x": {"enum": ["left", "right"]},
        },
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_way_to_ask_for_a_form_gets_it() {
    let http = Http::start(Config::default()).await;
    let format = json!({"type": "json_schema", "json_schema": {
        "name": "point", "strict": true, "schema": point(),
    }});
    let asked = [
        json!({"response_format": format}),
        json!({"structured_outputs": {"json": point()}}),
        json!({"guided_json": point()}),
        json!({"guided_json": point().to_string()}),
    ];
    let mut texts = Vec::new();
    for extra in asked {
        let reply = http.post("/v1/chat/completions", chat(extra)).await;
        assert_eq!(reply.status, 200, "{reply:?}");
        let choice = reply.json()["choices"][0].clone();
        assert_eq!(choice["finish_reason"], "stop");
        let text = choice["message"]["content"]
            .as_str()
            .expect("text")
            .to_owned();
        let value: Value = serde_json::from_str(&text).expect("JSON");
        let keys = value.as_object().expect("an object").keys();
        assert_eq!(keys.collect::<Vec<_>>(), ["y", "x"], "the schema's order");
        texts.push(text);
    }
    texts.dedup();
    assert_eq!(texts.len(), 1, "one guide and one seed: {texts:?}");

    let yes_or_no = json!({"guided_choice": ["yes", "no"], "stream": true});
    let events = http
        .post("/v1/chat/completions", chat(yes_or_no))
        .await
        .events();
    let parts = events
        .iter()
        .filter_map(|event| event["choices"][0]["delta"]["content"].as_str());
    let text: String = parts.collect();
    assert!(["yes", "no"].contains(&text.as_str()), "{text}");

    let body = json!({
        "model": "tiny", "prompt": "a", "n": 2, "seed": 2, "max_tokens": 50, "logprobs": 1,
        "guided_regex": "[0-9]{3}",
    });
    let reply = http.post("/v1/completions", body).await.json();
    for choice in reply["choices"].as_array().expect("choices") {
        let text = choice["text"].as_str().expect("text");
        assert!(text.len() == 3 && text.parse::<u16>().is_ok(), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_form_that_cannot_be_is_refused_by_the_name_that_the_client_gave_it() {
    let http = Http::start(Config::default()).await;
    let bad = json!({"type": "array", "uniqueItems": true});
    let strict = |schema: &Value| {
        json!({"type": "json_schema", "json_schema": {
            "name": "n", "strict": true, "schema": schema,
        }})
    };
    for (extra, param) in [
        (
            json!({"response_format": strict(&bad)}),
            "response_format.json_schema.schema",
        ),
        (
            json!({"structured_outputs": {"json": bad}}),
            "structured_outputs.json",
        ),
        (json!({"guided_json": bad}), "guided_json"),
        (json!({"guided_regex": "("}), "guided_regex"),
        (json!({"guided_choice": []}), "guided_choice"),
        (json!({"guided_grammar": "start: x"}), "guided_grammar"),
    ] {
        let reply = http.post("/v1/chat/completions", chat(extra)).await;
        let error = &reply.json()["error"];
        assert_eq!(reply.status, 400, "{error}");
        assert_eq!(
            (&error["param"], &error["code"]),
            (&json!(param), &json!("bad_guide"))
        );
        let message = error["message"].as_str().expect("text");
        assert!(message.starts_with(&format!("{param}: ")), "{message}");
    }
    // Without `strict` what cannot be enforced is left out.
    let mut lenient = strict(&json!({"type": "array", "maxItems": 1, "uniqueItems": true}));
    lenient["json_schema"]["strict"] = json!(false);
    let reply = http
        .post(
            "/v1/chat/completions",
            chat(json!({"response_format": lenient})),
        )
        .await;
    let warnings = reply.json()["usage"]["kv"]["warnings"].to_string();
    assert!(warnings.contains("uniqueItems"), "{reply:?}");
    let waited = http.metrics().await;
    assert!(
        waited.body.contains("palimpsest_mask_wait_seconds_total"),
        "{}",
        waited.body
    );
}

/// A tool, and the schema that its calls must match.
fn move_to(strict: bool) -> Value {
    let function = json!({"name": "move_to", "strict": strict, "parameters": point()});
    json!({"type": "function", "function": function})
}

/// Weights are random, so nothing but the guide makes a call of what the model says.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_must_be_match_the_schemas_of_their_tools() {
    let http = Http::start(Config::default()).await;
    let schema = jsonschema::validator_for(&point()).expect("a schema");
    let named = json!({"type": "function", "function": {"name": "move_to"}});
    for (choice, stream) in [
        (json!("required"), false),
        (named.clone(), false),
        (json!("required"), true),
        (named, true),
    ] {
        for seed in 0..4 {
            let asked = json!({
                "tools": [move_to(false)], "tool_choice": choice, "seed": seed,
                "stream": stream, "parallel_tool_calls": false, "temperature": 1.5,
            });
            let reply = http.post("/v1/chat/completions", chat(asked)).await;
            assert_eq!(reply.status, 200, "{reply:?}");
            let (calls, reason) = if stream {
                streamed_calls(&reply.events())
            } else {
                whole_calls(&reply.json())
            };
            assert_eq!(reason, "tool_calls");
            let [(name, arguments)] = &calls[..] else {
                panic!("one call: {calls:?}")
            };
            assert_eq!(name, "move_to");
            let arguments: Value = serde_json::from_str(arguments).expect("JSON");
            assert!(schema.is_valid(&arguments), "{arguments}");
        }
    }
}

/// A call that is cut off is an answer like any other, with the arguments that there are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guided_call_that_is_cut_off_stays_an_answer() {
    let http = Http::start(Config::default()).await;
    let named = json!({"type": "function", "function": {"name": "move_to"}});
    for max_tokens in 1..8 {
        let asked = json!({
            "tools": [move_to(true)], "tool_choice": named, "max_tokens": max_tokens,
        });
        let reply = http.post("/v1/chat/completions", chat(asked)).await;
        let (calls, reason) = whole_calls(&reply.json());
        assert_eq!((calls.len(), reason.as_str()), (1, "length"), "{reply:?}");
        assert!(calls[0].1.starts_with('{'), "{calls:?}");
    }
}

/// Where the model decides, text is free: whatever else it says, a call of a strict tool is right.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_strict_tool_that_need_not_be_called_leaves_text_free() {
    let http = Http::start(Config::default()).await;
    let asked = json!({"tools": [move_to(true)], "max_tokens": 40, "temperature": 1.0});
    let reply = http.post("/v1/chat/completions", chat(asked)).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    let choice = &reply.json()["choices"][0];
    assert!(
        choice["message"]["content"]
            .as_str()
            .is_some_and(|text| !text.is_empty())
    );
    let mut bad = move_to(true);
    bad["function"]["parameters"] = json!({"type": "object", "not": {"required": ["x"]}});
    let reply = http
        .post("/v1/chat/completions", chat(json!({"tools": [bad]})))
        .await;
    let error = &reply.json()["error"];
    assert_eq!(
        (reply.status, &error["param"]),
        (400, &json!("tools")),
        "{error}"
    );
}

/// Names and arguments of calls, and why the answer ended.
type Calls = (Vec<(String, String)>, String);

fn text_of(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn whole_calls(reply: &Value) -> Calls {
    let choice = &reply["choices"][0];
    let calls = choice["message"]["tool_calls"].as_array();
    let calls = calls.into_iter().flatten().map(|call| &call["function"]);
    let calls = calls.map(|call| (text_of(&call["name"]), text_of(&call["arguments"])));
    (calls.collect(), text_of(&choice["finish_reason"]))
}

fn streamed_calls(events: &[Value]) -> Calls {
    let (mut calls, mut reason) = (Vec::new(), String::new());
    for event in events {
        let choice = &event["choices"][0];
        reason.push_str(choice["finish_reason"].as_str().unwrap_or_default());
        for piece in choice["delta"]["tool_calls"]
            .as_array()
            .into_iter()
            .flatten()
        {
            let function = &piece["function"];
            if let Some(name) = function["name"].as_str() {
                calls.push((name.to_owned(), String::new()));
            }
            let (_, arguments): &mut (String, String) = calls.last_mut().expect("a name first");
            arguments.push_str(function["arguments"].as_str().unwrap_or_default());
        }
    }
    (calls, reason)
}
