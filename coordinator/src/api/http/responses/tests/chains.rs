//! Requests that go on from a response.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::body::Body;
use axum::extract::Request;
use palimpsest_store::Store;
use serde_json::{Value, json};

use super::server::{Server, after, post_of};
use crate::Config;
use crate::keys::ApiKeys;
use crate::place::{Clock, Place};
use crate::responses::Limits;

fn previous_not_found() -> (u16, Value, Value) {
    (
        404,
        json!("previous_response_not_found"),
        json!("previous_response_id"),
    )
}

/// What the ranks keep of a turn can serve the next one: its prompt begins with all of it.
#[tokio::test]
async fn the_prompt_of_a_turn_begins_with_prompt_and_answer_of_the_one_before() {
    let server = Server::saying("Hello é\n", Config::default()).await;
    let (mut last, _) = server.created(json!({"input": "one"})).await;
    for (turn, text) in ["two", "three", "four"].into_iter().enumerate() {
        let (id, response) = server.created(after(&last, text)).await;
        assert_eq!(response["previous_response_id"], json!(last));
        last = id;
        let prompts = server.prompts();
        let before = format!("{}Hello é\n<|im_end|>", prompts[turn]);
        assert!(prompts[turn + 1].starts_with(&before), "{prompts:?}");
        let tokens = |text: &str| {
            let tokenizer = &server.coordinator.service().model.tokenizer;
            tokenizer.encode(text, false).unwrap()
        };
        assert!(tokens(&prompts[turn + 1]).starts_with(&tokens(&before)));
    }
    let end = "<|im_start|>user\nfour<|im_end|>\n<|im_start|>assistant\n";
    assert!(server.prompts()[3].ends_with(end));
}

/// As OpenAI has it: instructions are not carried over.
#[tokio::test]
async fn instructions_hold_for_one_turn_and_messages_for_all() {
    let server = Server::saying("x", Config::default()).await;
    let system = json!([{"role": "system", "content": "S"}, {"role": "user", "content": "a"}]);
    let (first, _) = server
        .created(json!({"input": system, "instructions": "I"}))
        .await;
    let mut second = after(&first, "b");
    second["instructions"] = json!("J");
    server.created(second).await;
    server.created(after(&first, "c")).await;
    let line = |role: &str, text: &str| format!("<|im_start|>{role}\n{text}<|im_end|>\n");
    let turn = format!("{}{}", line("system", "S"), line("user", "a"));
    let open = "<|im_start|>assistant\n";
    let said = line("assistant", "x");
    assert_eq!(
        server.prompts(),
        [
            format!("{}{turn}{open}", line("system", "I")),
            format!(
                "{}{turn}{said}{}{open}",
                line("system", "J"),
                line("user", "b")
            ),
            format!("{turn}{said}{}{open}", line("user", "c")),
        ]
    );
}

#[tokio::test]
async fn a_response_that_is_not_there_is_named() {
    let time = Arc::new(AtomicU64::new(1000));
    let clock = time.clone();
    let responses = Limits {
        clock: Clock::of(move || clock.load(Ordering::Relaxed)),
        max_turns: 3,
        ..Limits::default()
    };
    let server = Server::saying(
        "x",
        Config {
            responses,
            ..Config::default()
        },
    )
    .await;
    let never = format!("resp_{}", "0".repeat(32));
    for unknown in ["", "resp_1", "geheim", never.as_str()] {
        let reply = server.create(after(unknown, "b")).await;
        assert_eq!(reply.error(), previous_not_found(), "{unknown}");
    }
    let (kept, _) = server.created(json!({"input": "a"})).await;
    let mut unkept = after(&kept, "b");
    unkept["store"] = json!(false);
    let (unkept, _) = server.created(unkept).await;
    assert_eq!(
        server.create(after(&unkept, "c")).await.error(),
        previous_not_found()
    );

    let (second, _) = server.created(after(&kept, "b")).await;
    server
        .call("DELETE", &format!("/v1/responses/{kept}"))
        .await;
    assert_eq!(
        server.create(after(&kept, "c")).await.error(),
        previous_not_found()
    );
    // What went on from it goes on.
    let (third, _) = server.created(after(&second, "c")).await;
    let refused = server.create(after(&third, "d")).await.error();
    assert_eq!(
        refused,
        (400, json!("too_long"), json!("previous_response_id"))
    );
    time.fetch_add(Limits::TTL.as_secs(), Ordering::Relaxed);
    assert_eq!(
        server.create(after(&second, "c")).await.error(),
        previous_not_found()
    );
    assert_eq!(server.kept(), 0);
    assert_eq!(server.prompts().len(), 4);
}

#[tokio::test]
async fn a_conversation_longer_than_a_request_may_be_is_refused() {
    let config = Config {
        max_message_bytes: 1500,
        ..Config::default()
    };
    let server = Server::saying("x", config).await;
    let (first, _) = server.created(json!({"input": "a".repeat(300)})).await;
    let (second, _) = server.created(after(&first, &"b".repeat(300))).await;
    let refused = server.create(after(&second, "c")).await;
    assert_eq!(
        refused.error(),
        (400, json!("too_long"), json!("previous_response_id"))
    );
}

/// Another tenant's response is answered as one that never was.
#[tokio::test]
async fn responses_are_their_tenants() {
    // sha256("secret") and sha256("other")
    let keys = "a:2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b\n\
                b:d9298a10d1b0735837dc4bd85dac641b0f3cef27a47e5d53a54f2f3f5b2fcffa";
    let keys = Some(Arc::new(ApiKeys::parse(keys).unwrap()));
    let server = Server::saying(
        "x",
        Config {
            keys,
            ..Config::default()
        },
    )
    .await;
    let made = server
        .send(post_of(&json!({"input": "a"}), "secret"))
        .await
        .json();
    let id = made["id"].as_str().unwrap();
    let own = server.send(post_of(&after(id, "b"), "secret")).await;
    assert_eq!(own.status.as_u16(), 200);
    let foreign = server.send(post_of(&after(id, "b"), "other")).await;
    assert_eq!(foreign.error(), previous_not_found());
    for (method, end) in [
        ("GET", ""),
        ("DELETE", ""),
        ("GET", "/input_items"),
        ("POST", "/cancel"),
    ] {
        let request = Request::builder().method(method);
        let request = request.uri(format!("/v1/responses/{id}{end}"));
        let request = request.header("authorization", "Bearer other");
        let reply = server.send(request.body(Body::empty()).unwrap()).await;
        assert_eq!(
            reply.error(),
            (404, json!("response_not_found"), Value::Null)
        );
    }
    assert_eq!(server.kept(), 2);
}

#[tokio::test]
async fn conversations_outlive_the_service() {
    let directory = tempfile::tempdir().unwrap();
    let start = || {
        let store = Store::open(&directory.path().display().to_string()).unwrap();
        let responses = Limits {
            place: Place::over(store),
            ..Limits::default()
        };
        Server::saying(
            "x",
            Config {
                responses,
                ..Config::default()
            },
        )
    };
    let (first, shown) = start().await.created(json!({"input": "a"})).await;
    let (second, _) = start().await.created(after(&first, "b")).await;
    let server = start().await;
    assert_eq!(
        server
            .call("GET", &format!("/v1/responses/{first}"))
            .await
            .json(),
        shown
    );
    server.created(after(&second, "c")).await;
    let prompt = &server.prompts()[0];
    let said = ["a", "x", "b", "x", "c"];
    let places: Vec<_> = said
        .iter()
        .map(|text| prompt.find(&format!("\n{text}<")))
        .collect();
    assert!(places.iter().all(Option::is_some), "{prompt}");
}

/// A place that no store can write to: it is a file.
#[tokio::test]
async fn a_store_that_fails_is_named_and_costs_no_request_that_does_not_need_it() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(&directory.path().display().to_string()).unwrap();
    std::fs::write(directory.path().join("responses"), "no folder").unwrap();
    let responses = Limits {
        place: Place::over(store),
        ..Limits::default()
    };
    let server = Server::saying(
        "Hello",
        Config {
            responses,
            ..Config::default()
        },
    )
    .await;
    let failed = server.create(json!({"input": "a"})).await;
    assert_eq!(
        failed.error(),
        (503, json!("store_unavailable"), Value::Null)
    );
    assert!(
        !failed
            .text
            .contains(&directory.path().display().to_string()),
        "{failed:?}"
    );
    server.created(json!({"input": "a", "store": false})).await;
    let streamed = server.create(json!({"input": "a", "stream": true})).await;
    let events = streamed.events();
    let [.., error, last] = &events[..] else {
        panic!("{events:?}")
    };
    assert_eq!(
        (&error["type"], &error["code"]),
        (&json!("error"), &json!("store_unavailable"))
    );
    assert_eq!(last["response"]["error"]["code"], "server_error");
    assert_eq!(server.kept(), 0);
    std::fs::remove_file(directory.path().join("responses")).unwrap();
    server.created(json!({"input": "a"})).await;
    assert_eq!(server.kept(), 1);
}
