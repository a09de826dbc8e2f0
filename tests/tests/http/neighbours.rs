//! What the tests of vLLM's and of llama.cpp's servers find on the routes that we share, found
//! here. What is known of one of them alone says whose it is.

use palimpsest_coordinator::Config;
use serde_json::{Value, json};

use crate::client::{Http, question, with};

const CHAT: &str = "/v1/chat/completions";
const COMPLETION: &str = "/v1/completions";

/// A completion of letters, so that every token is a text of its own.
fn letters(extra: Value) -> Value {
    let body = json!({
        "model": "tiny", "prompt": "hello there", "max_tokens": 5, "temperature": 0,
        "guided_regex": "[a-z]{20}",
    });
    with(body, extra)
}

fn list<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    value[name]
        .as_array()
        .unwrap_or_else(|| panic!("no list {name} in {value}"))
}

async fn answer(http: &Http, path: &'static str, body: Value) -> Value {
    let reply = http.post(path, body.clone()).await;
    assert_eq!(reply.status, 200, "{body}: {reply:?}");
    reply.json()
}

/// A request that is the client's mistake: it says so, and names the field where there is one.
async fn refused(http: &Http, path: &'static str, body: Value, param: Option<&str>) {
    let reply = http.post(path, body.clone()).await;
    assert_eq!(reply.status, 400, "{body}: {reply:?}");
    let error = &reply.json()["error"];
    assert!(
        error["message"]
            .as_str()
            .is_some_and(|text| !text.is_empty()),
        "{body}: {error}"
    );
    if let Some(param) = param {
        assert_eq!(error["param"], param, "{body}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_completion_has_as_many_log_probabilities_as_are_asked_for() {
    let http = Http::start(Config::default()).await;
    let plain = json!([104, 101, 108, 108, 111]);
    for prompt in [json!("hello there"), plain] {
        for (asked, least, most) in [(0, 1, 1), (1, 1, 2), (5, 5, 6)] {
            let body = letters(json!({"prompt": prompt, "logprobs": asked, "echo": true}));
            let told = answer(&http, COMPLETION, body).await;
            let logprobs = &told["choices"][0]["logprobs"];
            let count = told["usage"]["total_tokens"].as_u64().expect("a number") as usize;
            for name in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
                assert_eq!(list(logprobs, name).len(), count, "{name}: {told}");
            }
            // The first token of a prompt has none.
            assert!(logprobs["token_logprobs"][0].is_null(), "{told}");
            assert!(logprobs["top_logprobs"][0].is_null(), "{told}");
            for top in &list(logprobs, "top_logprobs")[1..] {
                let top = top.as_object().expect("by token");
                assert!((least..=most).contains(&top.len()), "{asked}: {top:?}");
                let finite = |value: &Value| value.as_f64().is_some_and(|value| value <= 0.0);
                assert!(top.values().all(finite), "{top:?}");
            }
        }
    }
    let told = answer(&http, COMPLETION, letters(json!({"logprobs": null}))).await;
    assert!(told["choices"][0]["logprobs"].is_null(), "{told}");
    for extra in [
        json!({"logprobs": 21}),
        json!({"logprobs": 30, "stream": true}),
    ] {
        refused(&http, COMPLETION, letters(extra), Some("logprobs")).await;
    }
    answer(&http, COMPLETION, letters(json!({}))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chat_has_as_many_log_probabilities_as_are_asked_for() {
    let http = Http::start(Config::default()).await;
    let chat = |extra: Value| {
        let letters = json!({"guided_regex": "[a-z]{20}", "ignore_eos": false});
        with(with(question(), letters), extra)
    };
    for asked in [0, 5] {
        let extra = json!({"logprobs": true, "top_logprobs": asked});
        let told = answer(&http, CHAT, chat(extra)).await;
        let choice = &told["choices"][0];
        let tokens = list(&choice["logprobs"], "content");
        assert_eq!(
            tokens.len() as u64,
            told["usage"]["completion_tokens"],
            "{told}"
        );
        for token in tokens {
            assert_eq!(list(token, "top_logprobs").len(), asked, "{token}");
            assert!(
                token["logprob"].as_f64().is_some_and(|value| value <= 0.0),
                "{token}"
            );
            assert!(token["bytes"].is_array(), "{token}");
        }
        // llama.cpp: together they are the answer.
        let text: String = tokens
            .iter()
            .filter_map(|token| token["token"].as_str())
            .collect();
        assert_eq!(choice["message"]["content"], text);
    }
    let told = answer(&http, CHAT, chat(json!({"logprobs": false}))).await;
    assert!(told["choices"][0]["logprobs"].is_null(), "{told}");
    for stream in [true, false] {
        let extra = json!({"logprobs": true, "top_logprobs": 21, "stream": stream});
        refused(&http, CHAT, chat(extra), Some("top_logprobs")).await;
    }
    answer(&http, CHAT, question()).await;
}

/// vLLM's field, beside a chat's choices and within those of completions.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_prompt_is_told_of() {
    let http = Http::start(Config::default()).await;
    let two = json!(["A robot may not", "My name is"]);
    for (asked, most) in [(0, 1), (1, 2), (2, 3)] {
        let extra = json!({"prompt": two, "prompt_logprobs": asked});
        let told = answer(&http, COMPLETION, letters(extra)).await;
        let chat = with(question(), json!({"prompt_logprobs": asked}));
        let chat = answer(&http, CHAT, chat).await;
        let prompts = list(&told, "choices").iter().chain([&chat]);
        for prompt in prompts.map(|told| list(told, "prompt_logprobs")) {
            assert!(prompt.len() > 5 && prompt[0].is_null(), "{prompt:?}");
            for token in &prompt[1..] {
                let count = token.as_object().expect("by token id").len();
                assert!((asked.max(1)..=most).contains(&count), "{asked}: {token}");
            }
        }
    }
    let told = answer(&http, COMPLETION, letters(json!({}))).await;
    assert!(
        told["choices"][0].get("prompt_logprobs").is_none(),
        "{told}"
    );
    let negative = json!({"prompt_logprobs": -1});
    refused(&http, COMPLETION, letters(negative.clone()), None).await;
    refused(&http, CHAT, with(question(), negative), None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_of_a_chat_begins_with_the_role_and_ends_once() {
    let http = Http::start(Config::default()).await;
    let whole = answer(&http, CHAT, question()).await;
    let stream = |extra: Value| with(with(question(), json!({"stream": true})), extra);
    let counted = json!({"stream_options": {"include_usage": true}});
    let events = http.post(CHAT, stream(counted)).await.events();
    let (last, chunks) = events.split_last().expect("events");
    assert_eq!(last["choices"], json!([]));
    assert_eq!(
        last["usage"]["total_tokens"],
        whole["usage"]["total_tokens"]
    );
    assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
    let mut text = String::new();
    for (i, chunk) in chunks.iter().enumerate() {
        let choice = &chunk["choices"][0];
        assert_eq!(
            (&chunk["id"], &chunk["model"]),
            (&last["id"], &whole["model"]),
            "{chunk}"
        );
        assert!(chunk.get("usage").is_none_or(Value::is_null), "{chunk}");
        assert_eq!(choice["delta"].get("role").is_some(), i == 0, "{chunk}");
        let is_last = i + 1 == chunks.len();
        assert_eq!(!choice["finish_reason"].is_null(), is_last, "{chunk}");
        text.push_str(choice["delta"]["content"].as_str().unwrap_or_default());
    }
    let ended = &chunks[chunks.len() - 1]["choices"][0];
    assert_eq!(ended["finish_reason"], whole["choices"][0]["finish_reason"]);
    assert_eq!(whole["choices"][0]["message"]["content"], text);
    for options in [json!(null), json!({}), json!({"include_usage": false})] {
        let options = json!({"stream_options": options});
        let events = http.post(CHAT, stream(options)).await.events();
        let counts = |event: &Value| event.get("usage").is_some_and(|usage| !usage.is_null());
        assert!(!events.iter().any(counts), "{events:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_to_many_prompts_are_told_apart_by_their_index() {
    let http = Http::start(Config::default()).await;
    let ids = json!([104, 105]);
    // llama.cpp: texts and token ids may stand in one list.
    for prompts in [json!(["hi", "hi"]), json!([ids, ids]), json!([ids, "hi"])] {
        let body = letters(json!({"prompt": prompts}));
        let whole = answer(&http, COMPLETION, body.clone()).await;
        let texts: Vec<&Value> = list(&whole, "choices")
            .iter()
            .map(|one| &one["text"])
            .collect();
        assert!(texts.len() == 2 && texts[0] == texts[1], "{whole}");
        let events = http
            .post(COMPLETION, with(body, json!({"stream": true})))
            .await
            .events();
        let mut streamed = [String::new(), String::new()];
        for choice in events.iter().flat_map(|event| list(event, "choices")) {
            let index = choice["index"].as_u64().expect("an index") as usize;
            streamed[index].push_str(choice["text"].as_str().unwrap_or_default());
        }
        assert!(
            texts.iter().zip(&streamed).all(|(a, b)| *a == b),
            "{streamed:?}"
        );
    }
    let many = json!({"n": 3, "temperature": 1, "seed": 42, "max_tokens": 20});
    let whole = answer(&http, COMPLETION, letters(many.clone())).await;
    let mut texts: Vec<&str> = list(&whole, "choices")
        .iter()
        .enumerate()
        .map(|(i, choice)| {
            assert_eq!(choice["index"], i);
            choice["text"].as_str().expect("a text")
        })
        .collect();
    texts.sort_unstable();
    texts.dedup();
    assert_eq!(
        texts.len(),
        3,
        "of one seed, each answer is another: {texts:?}"
    );
    let streamed = with(many, json!({"stream": true}));
    let events = http.post(COMPLETION, letters(streamed)).await.events();
    let ended = events.iter().flat_map(|event| list(event, "choices"));
    let mut ended: Vec<u64> = ended
        .filter(|choice| !choice["finish_reason"].is_null())
        .filter_map(|choice| choice["index"].as_u64())
        .collect();
    ended.sort_unstable();
    assert_eq!(ended, [0, 1, 2]);
}

/// vLLM: text may be held back because a stop string could begin in it; offsets do not notice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn offsets_of_a_stream_are_those_of_a_whole_answer() {
    let http = Http::start(Config::default()).await;
    let body = letters(json!({"logprobs": 0, "stop": ["\n\n", "zz9"], "max_tokens": 12}));
    let whole = answer(&http, COMPLETION, body.clone()).await;
    let events = http
        .post(COMPLETION, with(body, json!({"stream": true})))
        .await
        .events();
    let offsets = events.iter().flat_map(|event| list(event, "choices"));
    let offsets = offsets.filter_map(|choice| choice["logprobs"]["text_offset"].as_array());
    let offsets: Vec<Value> = offsets.flatten().cloned().collect();
    assert_eq!(
        offsets,
        list(&whole["choices"][0]["logprobs"], "text_offset")
    );
    assert_eq!(offsets.len(), 12);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forms_of_an_answer_are_those_that_neighbours_know() {
    let http = Http::start(Config::default()).await;
    let question = with(question(), json!({"ignore_eos": false}));
    let chat = |extra: Value| with(question.clone(), extra);
    let format = |format: Value| json!({"response_format": format});
    let schema = |schema: Value| json!({"type": "json_object", "schema": schema});
    let nameless = json!({"type": "json_schema", "json_schema": {"schema": {"const": "fooo"}}});
    for (extra, said) in [
        // llama.cpp: an object may be any value, if a schema says so.
        (format(schema(json!({"const": "42"}))), "\"42\""),
        (format(nameless), "\"fooo\""),
        (json!({"structured_outputs": {"choice": ["only"]}}), "only"),
    ] {
        let told = answer(&http, CHAT, chat(extra)).await;
        assert_eq!(told["choices"][0]["message"]["content"], said, "{told}");
    }
    let bad = json!({"type": "object", "properties": {"foo": "bar"}});
    for (extra, param) in [
        (
            format(json!({"type": "sound"})),
            Some("response_format.type"),
        ),
        (format(schema(json!(123))), None),
        (
            format(schema(json!({"type": 123}))),
            Some("response_format.schema"),
        ),
        (
            format(schema(json!({"type": "hiccup"}))),
            Some("response_format.schema"),
        ),
        (
            json!({"structured_outputs": {"json": bad}}),
            Some("structured_outputs.json"),
        ),
        (
            json!({"structured_outputs": {"regex": "[.*"}}),
            Some("structured_outputs.regex"),
        ),
        (json!({"structured_outputs": {"regex": {"1": "C"}}}), None),
        (
            json!({"structured_outputs": {"grammar": "root ::= x"}}),
            Some("structured_outputs.grammar"),
        ),
        // Names that fields have elsewhere, which would change the answer in silence.
        (json!({"json_schema": {"const": "42"}}), Some("json_schema")),
        (json!({"grammar": "root ::= \"a\""}), Some("grammar")),
        (json!({"regex": "a"}), Some("regex")),
        (json!({"truncation_side": "right"}), Some("truncation_side")),
    ] {
        refused(&http, CHAT, chat(extra), param).await;
    }
    let none = json!({"grammar": null, "regex": null, "truncation_side": "left"});
    let told = answer(&http, CHAT, chat(none)).await;
    assert!(told.get("warnings").is_none(), "{told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conversations_and_prompts_that_cannot_be_are_the_clients_mistake() {
    let http = Http::start(Config::default()).await;
    let message = json!({"role": "user", "content": "x"});
    for messages in [
        json!(null),
        json!("string"),
        json!([123]),
        json!([{}]),
        json!([{"role": 123}]),
        json!([{"role": "system", "content": 123}]),
        json!([message, {}]),
    ] {
        refused(&http, CHAT, json!({"messages": messages}), None).await;
    }
    for path in [CHAT, COMPLETION] {
        for body in [
            json!("{{{"),
            json!(["not", "an object"]),
            json!(42),
            json!({}),
        ] {
            refused(&http, path, body, None).await;
        }
    }
    for (extra, param) in [
        (json!({"prompt": null}), None),
        (json!({"prompt": []}), Some("prompt")),
        (json!({"prompt": [999_999]}), None),
        (json!({"prompt": [104, "text"]}), None),
        (json!({"logit_bias": {"999999": 1}}), Some("logit_bias")),
        (json!({"logit_bias": {"x": 1}}), None),
        (json!({"stop_token_ids": [999_999]}), Some("stop_token_ids")),
        (json!({"seed": 9.3e18}), None),
        (json!({"n": 0}), Some("n")),
    ] {
        refused(&http, COMPLETION, letters(extra), param).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_is_the_same_however_it_is_sent() {
    let http = Http::start(Config::default()).await;
    let say = |message: Value| with(question(), json!({"messages": [message]}));
    let plain = answer(&http, CHAT, say(json!({"role": "user", "content": "a b"}))).await;
    let parts = json!([{"type": "text", "text": "a b"}]);
    for message in [
        json!({"role": "user", "content": parts}),
        // vLLM: what nobody knows of a message is passed over.
        json!({"role": "user", "content": "a b", "extra_field": "0"}),
    ] {
        let told = answer(&http, CHAT, say(message)).await;
        assert_eq!(told["choices"], plain["choices"], "{told}");
    }
    let nothing = json!({"tools": null, "tool_choice": null, "response_format": {"type": "text"}});
    let told = answer(&http, CHAT, with(question(), nothing)).await;
    assert!(
        told["choices"][0]["message"]["content"].is_string(),
        "{told}"
    );
}

/// llama.cpp: an embedding does not depend on how its text comes, nor on what stands beside it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_embedding_is_that_of_its_tokens() {
    let http = Http::start(Config::default()).await;
    let body = json!({"model": "tiny", "input": ["hi", [104, 105], "hello there"]});
    let told = answer(&http, "/v1/embeddings", body).await;
    let data = list(&told, "data");
    assert_eq!(data.len(), 3);
    assert_eq!(data[0]["embedding"], data[1]["embedding"]);
    assert_ne!(data[0]["embedding"], data[2]["embedding"]);
    assert_eq!(
        told["usage"]["prompt_tokens"],
        told["usage"]["total_tokens"]
    );
    let alone = answer(&http, "/v1/embeddings", json!({"input": "hi"})).await;
    assert_eq!(alone["data"][0]["embedding"], data[0]["embedding"]);
    refused(&http, "/v1/embeddings", json!({"input": []}), Some("input")).await;
    refused(
        &http,
        "/v1/embeddings",
        json!({"input": {"content": "x"}}),
        None,
    )
    .await;
}
