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

/// As evaluation harnesses ask for the likelihood of a text.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prompt_is_repeated_with_its_log_probabilities() {
    let http = Http::start(Config::default()).await;
    let text = "hello there, and good day to you all";
    let body = json!({
        "model": "tiny", "prompt": text, "max_tokens": 3, "temperature": 0, "logprobs": 1,
        "echo": true, "ignore_eos": true,
    });
    let echoed = http.post("/v1/completions", body.clone()).await;
    assert_eq!(echoed.status, 200, "{echoed:?}");
    let echoed = echoed.json();
    let choice = &echoed["choices"][0];
    let answer = choice["text"].as_str().expect("a text");
    assert!(answer.starts_with(text), "{answer}");
    let list = |name: &str| choice["logprobs"][name].as_array().expect("a list").clone();
    let (tokens, logprobs) = (list("tokens"), list("token_logprobs"));
    let count = echoed["usage"]["prompt_tokens"].as_u64().expect("a number") as usize + 3;
    assert_eq!((tokens.len(), logprobs.len()), (count, count));
    assert_eq!(
        (&logprobs[0], &list("top_logprobs")[0]),
        (&Value::Null, &Value::Null)
    );
    for (own, top) in logprobs.iter().zip(list("top_logprobs")).skip(1) {
        let own = own.as_f64().expect("a number");
        let best = top.as_object().and_then(|top| top.values().next()).cloned();
        let best = best.and_then(|value| value.as_f64()).expect("a number");
        assert!(own <= best && best <= 0.0, "{own}, {best}");
    }
    let first = tokens[0].as_str().expect("a text").chars().count();
    assert_eq!(list("text_offset")[..2], [json!(0), json!(first)]);

    // In chunks, the prompt comes first.
    let stream = http
        .post(
            "/v1/completions",
            with(body.clone(), json!({"stream": true})),
        )
        .await;
    let events = stream.events();
    let texts: Vec<&str> = events
        .iter()
        .filter_map(|event| event["choices"][0]["text"].as_str())
        .collect();
    assert_eq!((texts[0], texts.concat().as_str()), (text, answer));
    let offsets: Vec<Value> = events
        .iter()
        .filter_map(|event| event["choices"][0]["logprobs"]["text_offset"].as_array())
        .flatten()
        .cloned()
        .collect();
    assert_eq!(offsets, list("text_offset"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prompt_is_read_without_an_answer_and_told_of_as_vllm_tells_it() {
    let http = Http::start(Config::default()).await;
    let body = json!({
        "model": "tiny", "prompt": "hello there", "max_tokens": 3, "temperature": 0, "logprobs": 1,
        "echo": true, "ignore_eos": true,
    });
    // Token ids are repeated as their text; nothing is answered.
    let ids = json!({"prompt": [104, 105, 33], "max_tokens": 0});
    let read = http
        .post("/v1/completions", with(body.clone(), ids))
        .await
        .json();
    let choice = &read["choices"][0];
    assert_eq!(choice["finish_reason"], "length");
    assert_eq!(
        choice["logprobs"]["tokens"].as_array().map(Vec::len),
        Some(3)
    );
    assert_eq!(read["usage"]["completion_tokens"], 0);

    // What was cut off is not repeated.
    let cut = json!({"prompt": "abcdef", "truncate_prompt_tokens": 2, "max_tokens": 0});
    for logprobs in [json!(1), json!(null)] {
        let cut = with(cut.clone(), json!({"logprobs": logprobs}));
        let read = http.post("/v1/completions", with(body.clone(), cut)).await;
        assert_eq!(read.json()["choices"][0]["text"], "ef");
    }

    // As vLLM tells it, without repeating.
    let asked = json!({"echo": false, "logprobs": null, "prompt_logprobs": 2, "max_tokens": 1});
    let told = http
        .post("/v1/completions", with(body.clone(), asked.clone()))
        .await
        .json();
    let told = &told["choices"][0];
    assert!(told["logprobs"].is_null());
    let prompt = told["prompt_logprobs"].as_array().expect("a list");
    assert_eq!(prompt[0], Value::Null);
    let second = prompt[1].as_object().expect("by token id");
    assert!((2..=3).contains(&second.len()), "{second:?}");
    let streamed = with(with(body, asked), json!({"stream": true}));
    let refused = http.post("/v1/completions", streamed).await;
    assert_eq!(
        (refused.status, refused.json()["error"]["param"].as_str()),
        (400, Some("prompt_logprobs"))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_score_is_what_is_told_of_prompt_and_completion_together() {
    let http = Http::start(Config::default()).await;
    // Longer than the budget: what is scored is what the cache holds.
    let prompt = "hello there, and good day to you all. ".repeat(6);
    let completions = [" the end", "!", " hello hello hello"];
    let kv = json!({"kv_budget": 60, "kv_policy": "window", "latent_memory": "none"});
    let body = json!({"model": "tiny", "prompt": prompt, "completions": completions});
    let scored = http.post("/v1/score", with(body, kv.clone())).await;
    assert_eq!(scored.status, 200, "{scored:?}");
    let scored = scored.json();
    for (index, completion) in completions.iter().enumerate() {
        let body = json!({
            "model": "tiny", "prompt": format!("{prompt}{completion}"), "echo": true,
            "logprobs": 1, "max_tokens": 0,
        });
        let told = http.post("/v1/completions", with(body, kv.clone())).await;
        let told = &told.json()["choices"][0]["logprobs"];
        let one = &scored["data"][index];
        let tokens = one["tokens"].as_array().expect("a list").len();
        let end = |name: &str| {
            let list = told[name].as_array().expect("a list");
            list[list.len() - tokens..].to_vec()
        };
        assert_eq!(one["tokens"], json!(end("tokens")));
        // One writes the shortest digits of an f32, the other those of an f64.
        let numbers = |list: &[Value]| -> Vec<f32> {
            let numbers = list
                .iter()
                .map(|one| one.as_f64().expect("a number") as f32);
            numbers.collect()
        };
        let scores = one["token_logprobs"].as_array().expect("a list");
        assert_eq!(numbers(scores), numbers(&end("token_logprobs")));
        let sum: f64 = end("token_logprobs").iter().filter_map(Value::as_f64).sum();
        assert!((one["score"].as_f64().expect("a number") - sum).abs() < 1e-4);
        let is_best = |(own, top): (&Value, &Value)| {
            let best = top.as_object().and_then(|top| top.values().next());
            best.and_then(Value::as_f64) <= own.as_f64()
        };
        let (logprobs, top) = (end("token_logprobs"), end("top_logprobs"));
        let is_greedy = logprobs.iter().zip(&top).all(is_best);
        assert_eq!(one["is_greedy"], is_greedy);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn texts_become_embeddings_in_both_encodings() {
    let http = Http::start(Config::default()).await;
    let body = json!({"model": "tiny", "input": ["hello there", "hello there", "something else"]});
    let found = http.post("/v1/embeddings", body.clone()).await;
    assert_eq!(found.status, 200, "{found:?}");
    let found = found.json();
    let data = found["data"].as_array().expect("a list");
    let indices: Vec<_> = data.iter().map(|one| one["index"].as_u64()).collect();
    assert_eq!(indices, [Some(0), Some(1), Some(2)]);
    assert_eq!(data[0]["embedding"], data[1]["embedding"]);
    assert_ne!(data[0]["embedding"], data[2]["embedding"]);
    let values: Vec<f32> = serde_json::from_value(data[0]["embedding"].clone()).expect("numbers");
    let length: f32 = values.iter().map(|x| x * x).sum();
    assert!((length - 1.0).abs() < 1e-4, "{length}");
    assert_eq!(
        found["usage"]["prompt_tokens"],
        found["usage"]["total_tokens"]
    );

    let coded = with(body.clone(), json!({"encoding_format": "base64"}));
    let coded = http.post("/v1/embeddings", coded).await.json();
    let text = coded["data"][0]["embedding"].as_str().expect("a text");
    assert_eq!(text.len(), (4 * values.len()).div_ceil(3) * 4);
    let last = with(body.clone(), json!({"pooling": "last"}));
    let last = http.post("/v1/embeddings", last).await.json();
    assert_ne!(last["data"][0]["embedding"], found["data"][0]["embedding"]);

    let many: Vec<String> = (0..40).map(|i| format!("text {i}")).collect();
    let many = http
        .post("/v1/embeddings", json!({"input": many}))
        .await
        .json();
    assert_eq!(many["data"].as_array().map(Vec::len), Some(40));
    for (extra, param) in [
        (json!({"dimensions": 7}), "dimensions"),
        (json!({"input": []}), "input"),
        (json!({"kv_budget": 1}), "kv_budget"),
    ] {
        let refused = http.post("/v1/embeddings", with(body.clone(), extra)).await;
        assert_eq!(refused.status, 400, "{refused:?}");
        assert_eq!(refused.json()["error"]["param"], param);
    }
}
