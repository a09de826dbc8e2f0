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
