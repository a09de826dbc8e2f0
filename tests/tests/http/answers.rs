//! Answers, whole and in chunks.

use palimpsest_coordinator::Config;
use palimpsest_proto::v1::generate_request::Input;
use palimpsest_proto::v1::{GenerateRequest, Sampling, Stopping};
use palimpsest_tests::service::ask;
use serde_json::{Value, json};

use crate::client::{Http, question, with};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn completions_say_what_grpc_says_whole_and_in_chunks() {
    let http = Http::start(Config::default()).await;
    let request = GenerateRequest {
        input: Some(Input::Text("hello there".into())),
        sampling: Some(Sampling {
            temperature: Some(0.8),
            seed: Some(3),
            logprobs: Some(2),
            ..Default::default()
        }),
        stopping: Some(Stopping {
            max_tokens: Some(20),
            ignore_eos: true,
            ..Default::default()
        }),
        ..Default::default()
    };
    let expected = ask(&http.service.client, request).await.expect("an answer");
    let body = json!({
        "model": "tiny", "prompt": "hello there", "max_tokens": 20, "temperature": 0.8,
        "seed": 3, "ignore_eos": true, "logprobs": 2,
    });
    let whole = http.post("/v1/completions", body.clone()).await;
    assert_eq!(whole.status, 200, "{whole:?}");
    let whole = whole.json();
    assert_whole(&whole, &expected.text);

    let streamed = json!({"stream": true, "stream_options": {"include_usage": true}});
    let stream = http.post("/v1/completions", with(body, streamed)).await;
    assert!(
        stream.head.contains("content-type: text/event-stream"),
        "{}",
        stream.head
    );
    let events = stream.events();
    let texts = |field: &str| -> Vec<&str> {
        events
            .iter()
            .filter_map(|event| event["choices"][0][field].as_str())
            .collect()
    };
    assert_eq!(texts("text").concat(), expected.text);
    let last = events.last().expect("usage");
    assert_eq!(
        (&last["choices"], &last["usage"]["completion_tokens"]),
        (&json!([]), &json!(20))
    );
    let counted = |answer: &Value| {
        let mut usage = answer["usage"].clone();
        let times = usage
            .as_object_mut()
            .and_then(|usage| usage.remove("timing"));
        assert!(times.is_some_and(|times| times["decode_seconds"].is_number()));
        usage
    };
    assert_eq!(counted(last), counted(&whole));
    assert_eq!(texts("finish_reason"), ["length"]);
}

/// A completion of twenty tokens with logprobs, in one piece.
fn assert_whole(whole: &Value, text: &str) {
    assert_eq!(whole["object"], "text_completion");
    let choice = &whole["choices"][0];
    assert_eq!(choice["text"], text);
    assert_eq!(choice["finish_reason"], "length");
    let logprobs = choice["logprobs"]["token_logprobs"].as_array();
    assert_eq!(logprobs.map(Vec::len), Some(20));
    let usage = &whole["usage"];
    assert_eq!(usage["completion_tokens"], 20);
    assert!(
        usage["kv"]["held_bytes"]
            .as_u64()
            .is_some_and(|bytes| bytes > 0),
        "{whole}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chat_is_answered_whole_and_in_chunks_and_choices_are_counted() {
    let http = Http::start(Config::default()).await;
    let whole = http.post("/v1/chat/completions", question()).await.json();
    let message = &whole["choices"][0]["message"];
    assert_eq!(
        (&whole["object"], &message["role"]),
        (&json!("chat.completion"), &json!("assistant"))
    );
    let stream = http
        .post(
            "/v1/chat/completions",
            with(question(), json!({"stream": true})),
        )
        .await
        .events();
    assert_eq!(stream[0]["choices"][0]["delta"]["role"], "assistant");
    let text: String = stream
        .iter()
        .filter_map(|event| event["choices"][0]["delta"]["content"].as_str())
        .collect();
    assert_eq!(message["content"], text);
    let body = json!({
        "model": "tiny", "prompt": ["a", "bc"], "n": 2, "max_tokens": 3, "ignore_eos": true,
        "seed": 1,
    });
    let many = http.post("/v1/completions", body).await.json();
    let choices = many["choices"].as_array().expect("choices");
    assert_eq!(
        choices
            .iter()
            .map(|choice| choice["index"].as_u64())
            .collect::<Vec<_>>(),
        [Some(0), Some(1), Some(2), Some(3)]
    );
    assert_eq!(many["usage"]["completion_tokens"], 12);
    assert_eq!(many["usage"]["prompt_tokens"], 3, "each prompt counts once");
}
