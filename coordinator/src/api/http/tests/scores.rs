//! Scores, embeddings and places that are filled. The fake rank tells the position of each token of
//! a prompt as its log-probability.

use super::*;
use crate::executor::fake::{IM_END, VOCABULARY};

const SCORE: &str = "/v1/score";
const EMBEDDINGS: &str = "/v1/embeddings";

#[tokio::test]
async fn completions_are_scored_behind_their_prompt() {
    let server = Server::start(Config::default()).await;
    let body = json!({"prompt": [1, 2, 3], "completions": [[4, 5], [6]]});
    let reply = server.post(SCORE, &body).await;
    assert_eq!(reply.status, StatusCode::OK, "{}", reply.json);
    let data = &reply.json["data"];
    assert_eq!(data[0]["token_logprobs"], json!([-3.0, -4.0]));
    assert_eq!(
        (&data[0]["score"], &data[1]["score"]),
        (&json!(-7.0), &json!(-3.0))
    );
    assert_eq!(data[1]["index"], 1);
    // The prompt counts once.
    let usage = json!({"prompt_tokens": 6, "total_tokens": 6});
    assert_eq!(reply.json["usage"], usage);

    // A text is tokenised as one that goes on.
    let body = json!({"prompt": "hello", "completions": [" the", "he", "<|im_end|>"]});
    let reply = server.post(SCORE, &body).await;
    let data = reply.json["data"].as_array().expect("a list").clone();
    let tokens: Vec<&Value> = data.iter().map(|one| &one["tokens"]).collect();
    let expected = [json!([" the"]), json!(["he"]), json!(["<|im_end|>"])];
    assert_eq!(tokens, expected.iter().collect::<Vec<_>>());
    server.has_figure("palimpsest_requests_total{outcome=\"read\"} 5");
    settle(&server, 0).await;
}

#[tokio::test]
async fn what_cannot_be_scored_is_named() {
    let server = Server::start(Config {
        max_answer_bytes: 2000,
        ..Config::default()
    })
    .await;
    let long = "x".repeat(30);
    for (body, field, code) in [
        (
            json!({"prompt": "a", "completions": ["b", ""]}),
            "completions",
            "bad_score",
        ),
        (
            json!({"prompt": "a", "completions": [[1], []]}),
            "completions",
            "bad_score",
        ),
        (
            json!({"prompt": "a", "completions": [[1], [VOCABULARY]]}),
            "completions",
            "token_out_of_range",
        ),
        (
            json!({"prompt": [VOCABULARY], "completions": ["b"]}),
            "prompt",
            "token_out_of_range",
        ),
        (
            json!({"prompt": "", "completions": ["b"]}),
            "prompt",
            "empty_prompt",
        ),
        (
            json!({"prompt": "a", "completions": [long]}),
            "completions",
            "answer_too_large",
        ),
        (
            json!({"prompt": "a", "completions": ["b"], "kv_budget": 1}),
            "kv_budget",
            "bad_contract",
        ),
        (
            json!({"prompt": "a", "completions": ["b"], "priority": 1000}),
            "priority",
            "bad_priority",
        ),
        (
            json!({"prompt": "a", "completions": ["b"], "model": "other"}),
            "model",
            "model_not_found",
        ),
    ] {
        let refused = server.post(SCORE, &body).await;
        let error = &refused.json["error"];
        assert_eq!(
            (error["param"].as_str(), error["code"].as_str()),
            (Some(field), Some(code)),
            "{body}: {error}"
        );
    }
    server.has_figure("palimpsest_requests_total{outcome=\"bad_score\"} 2");
}

/// The state of the prompt at its last boundary is kept by the first, and all others begin there.
#[tokio::test]
async fn a_prompt_that_many_completions_follow_is_read_once() {
    let script = Script::endless(0, 1).keeping(1 << 20);
    let server = Server::scripted(Config::default(), script);
    assert!(server.coordinator.ready().await);
    let prompt: Vec<u32> = (0..320).map(|i| i * 7 % 250).collect();
    let completions: Vec<[u32; 2]> = (0..20).map(|i| [i, 1]).collect();
    let body = json!({"prompt": prompt, "completions": completions});
    let reply = server.post(SCORE, &body).await;
    let data = reply.json["data"].as_array().expect("a list").clone();
    assert_eq!(data.len(), 20, "{}", reply.json);
    for one in data {
        assert_eq!(one["token_logprobs"], json!([-320.0, -321.0]));
    }
    // The last boundary before the last token of the prompt, which is read by all.
    let cached = 19 * 304;
    server.has_figure(&format!("palimpsest_cached_prompt_tokens_total {cached}"));
}

/// Eight texts at once were more than such a key may have under way.
#[tokio::test]
async fn texts_of_a_small_key_wait_for_its_places() {
    let texts: Vec<String> = (0..20).map(|i| format!("text {i}")).collect();
    let small = |options| with_key(options);
    let queue = Config {
        max_queued: 2,
        ..with_key("")
    };
    for config in [small("max-requests=3"), small("max-tokens=10"), queue] {
        let server = Server::start(config).await;
        for (path, body) in [
            (EMBEDDINGS, json!({"input": texts})),
            (SCORE, json!({"prompt": "a", "completions": texts})),
        ] {
            let request = with_secret(post_of(path, Body::from(body.to_string())));
            let reply = server.send(request).await;
            assert_eq!(reply.status, StatusCode::OK, "{path}: {}", reply.json);
            assert_eq!(reply.json["data"].as_array().map(Vec::len), Some(20));
        }
    }
}

/// They were refused when hundreds of texts had been read.
#[tokio::test]
async fn embeddings_that_no_answer_would_hold_are_refused_before_a_text_is_read() {
    let server = Server::start(Config {
        max_answer_bytes: 200,
        ..Config::default()
    })
    .await;
    for (body, field, code) in [
        (json!({"input": vec!["x"; 9]}), "input", "answer_too_large"),
        (
            json!({"input": "x", "dimensions": 3}),
            "dimensions",
            "invalid_value",
        ),
    ] {
        let refused = server.post(EMBEDDINGS, &body).await;
        assert_eq!(refused.status, StatusCode::BAD_REQUEST);
        let error = &refused.json["error"];
        assert_eq!(
            (error["param"].as_str(), error["code"].as_str()),
            (Some(field), Some(code))
        );
    }
    assert_eq!(server.tokenised(), 0);
    let fits = json!({"input": "x", "dimensions": 2});
    let fits = server.post(EMBEDDINGS, &fits).await;
    assert_eq!(fits.status, StatusCode::OK, "{}", fits.json);
}

/// A model that says this, whose tokenizer has the tokens for places.
async fn filling(text: &str) -> Server {
    let mut script = Script::saying(text, 0, 1);
    let model = script.rank.model.as_mut().expect("it has one");
    let mut file: Value = serde_json::from_slice(&model.tokenizer).unwrap();
    let marks = ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"];
    for (id, mark) in (VOCABULARY..).zip(marks) {
        let added = json!({
            "id": id, "content": mark, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true,
        });
        file["added_tokens"].as_array_mut().unwrap().push(added);
    }
    model.tokenizer = file.to_string().into_bytes().into();
    model.vocabulary = VOCABULARY + 3;
    let server = Server::scripted(Config::default(), script);
    assert!(server.coordinator.ready().await);
    server
}

#[tokio::test]
async fn a_place_between_two_texts_is_filled() {
    let server = filling("XY").await;
    let body = |extra: Value| completion(extra);
    let asked = json!({"prompt": "a", "suffix": "z", "max_tokens": 9, "return_token_ids": true});
    let reply = server.post("/v1/completions", &body(asked.clone())).await;
    let choice = &reply.json["choices"][0];
    assert_eq!(choice["text"], "XY", "{}", reply.json);
    let prompt = [VOCABULARY, 97, VOCABULARY + 1, 122, VOCABULARY + 2];
    assert_eq!(choice["prompt_token_ids"], json!(prompt));
    // What stands before the answer is repeated, and not what stands behind it.
    for logprobs in [json!(null), json!(0)] {
        let mut asked = asked.clone();
        asked["echo"] = true.into();
        asked["logprobs"] = logprobs;
        let reply = server.post("/v1/completions", &body(asked)).await;
        let choice = &reply.json["choices"][0];
        assert_eq!(choice["text"], "aXY");
        if let Some(tokens) = choice["logprobs"]["tokens"].as_array() {
            assert_eq!(tokens[..3], ["a", "X", "Y"]);
        }
    }
    let cut = json!({"prompt": "a", "suffix": "z", "truncate_prompt_tokens": 1});
    let refused = server.post("/v1/completions", &body(cut)).await;
    let error = &refused.json["error"];
    assert_eq!(
        (&error["code"], &error["param"]),
        (&json!("bad_infill"), &json!("truncate_prompt_tokens"))
    );
}

#[tokio::test]
async fn a_place_is_not_filled_by_a_model_without_the_tokens_for_it() {
    let server = Server::start(Config::default()).await;
    let asked = completion(json!({"suffix": "z"}));
    let refused = server.post("/v1/completions", &asked).await;
    let error = &refused.json["error"];
    assert_eq!(
        (&error["code"], &error["param"]),
        (&json!("bad_infill"), &json!("suffix"))
    );
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("`<|fim_middle|>`"), "{message}");
    let asked = completion(json!({"suffix": ""}));
    let plain = server.post("/v1/completions", &asked).await;
    assert_eq!(plain.status, StatusCode::OK, "{}", plain.json);
}

/// Token ids of a text under each of its names.
#[tokio::test]
async fn neighbours_names_of_a_text_are_tokenised() {
    let server = Server::start(Config::default()).await;
    for body in [
        json!({"prompt": "hello<|im_end|>", "model": "fake"}),
        json!({"text": "hello<|im_end|>", "add_special_tokens": true}),
        json!({"content": "hello<|im_end|>", "add_special": false}),
    ] {
        let reply = server.post("/tokenize", &body).await;
        let tokens = &reply.json["tokens"];
        assert_eq!(tokens[1], IM_END, "{}", reply.json);
        assert_eq!(reply.json["count"], 2);
    }
    let other = json!({"prompt": "x", "model": "other"});
    let refused = server.post("/tokenize", &other).await;
    assert_eq!(refused.json["error"]["code"], "model_not_found");
}
