//! Whole responses, and the routes of those that are kept.

use async_openai::types::responses as openai;
use serde_json::{Value, json};

use super::server::Server;
use crate::Config;
use crate::executor::fake::Fault;

/// The object without what differs from run to run.
fn masked(mut response: Value) -> Value {
    let id = response["id"].as_str().unwrap().to_owned();
    let digits = id.strip_prefix("resp_").unwrap().to_owned();
    for time in ["created_at", "completed_at"] {
        if response[time].is_u64() {
            response[time] = json!(7);
        }
    }
    let text = response.to_string().replace(&digits, "X");
    serde_json::from_str(&text).unwrap()
}

#[tokio::test]
async fn a_response_is_openais_object_and_is_found_again_as_it_was() {
    let server = Server::saying("Hello", Config::default()).await;
    let body = json!({
        "input": "Hi", "instructions": "Be brief", "metadata": {"a": "b"}, "user": "me",
        "temperature": 0.25, "max_output_tokens": 9,
    });
    let (id, response) = server.created(body).await;
    let mut shown = masked(response.clone());
    let kv = shown["usage"]
        .as_object_mut()
        .unwrap()
        .remove("kv")
        .unwrap();
    assert!(kv["held_bytes"].as_u64().unwrap() > 0, "{kv}");
    let message = json!({
        "id": "msg_X", "type": "message", "status": "completed", "role": "assistant",
        "content": [
            {"type": "output_text", "text": "Hello", "annotations": [], "logprobs": []},
        ],
    });
    let prompt = server
        .coordinator
        .service()
        .model
        .tokenizer
        .encode(&server.prompts()[0], false);
    let prompt = prompt.unwrap().len();
    let expected = json!({
        "id": "resp_X", "object": "response", "created_at": 7, "completed_at": 7,
        "status": "completed", "background": false, "error": null, "incomplete_details": null,
        "instructions": "Be brief", "max_output_tokens": 9, "model": "fake", "output": [message],
        "parallel_tool_calls": true, "previous_response_id": null,
        "reasoning": {"effort": null, "summary": null}, "service_tier": "default", "store": true,
        "temperature": 0.25, "text": {"format": {"type": "text"}}, "tool_choice": "auto",
        "tools": [], "top_logprobs": 0, "top_p": 1.0, "truncation": "disabled",
        "usage": {
            "input_tokens": prompt, "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": 6, "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": prompt + 6,
        },
        "user": "me", "metadata": {"a": "b"},
    });
    assert_eq!(shown, expected);
    let found = server.call("GET", &format!("/v1/responses/{id}")).await;
    assert_eq!(
        (found.status.as_u16(), found.json()),
        (200, response.clone())
    );
    // A published implementation of OpenAI's types takes it for one.
    let typed: openai::Response = serde_json::from_value(response).unwrap();
    assert_eq!((typed.id, typed.status), (id, openai::Status::Completed));
}

#[tokio::test]
async fn an_answer_that_meets_its_limit_is_incomplete() {
    let server = Server::saying("Hello", Config::default()).await;
    let (id, response) = server
        .created(json!({"input": "Hi", "max_output_tokens": 3}))
        .await;
    let found = server
        .call("GET", &format!("/v1/responses/{id}"))
        .await
        .json();
    for response in [response, found] {
        assert_eq!(response["status"], "incomplete");
        assert_eq!(
            response["incomplete_details"],
            json!({"reason": "max_output_tokens"})
        );
        assert_eq!(response["output"][0]["status"], "incomplete");
        assert_eq!(response["output"][0]["content"][0]["text"], "Hel");
        assert_eq!(response["completed_at"], Value::Null);
        serde_json::from_value::<openai::Response>(response).unwrap();
    }
}

#[tokio::test]
async fn what_is_not_to_be_stored_is_not() {
    let server = Server::saying("Hello", Config::default()).await;
    let (id, response) = server.created(json!({"input": "Hi", "store": false})).await;
    assert_eq!((&response["store"], server.kept()), (&json!(false), 0));
    let found = server.call("GET", &format!("/v1/responses/{id}")).await;
    assert_eq!(
        found.error(),
        (404, json!("response_not_found"), Value::Null)
    );
}

#[tokio::test]
async fn a_request_that_fails_keeps_nothing() {
    let faulty = |script: crate::executor::fake::Script| script.with_fault(3, Fault::FailSequence);
    let server = Server::with("Hello", Config::default(), faulty).await;
    let failed = server.create(json!({"input": "Hi"})).await;
    assert_eq!(
        (failed.status.as_u16(), server.kept()),
        (503, 0),
        "{failed:?}"
    );
    // An answer that is too large is one, too.
    let server = Server::saying(
        "Hello",
        Config {
            max_answer_bytes: 4,
            ..Config::default()
        },
    )
    .await;
    let failed = server.create(json!({"input": "Hi"})).await;
    assert_eq!(
        failed.error(),
        (400, json!("answer_too_large"), Value::Null)
    );
    assert_eq!(server.kept(), 0);
}

#[tokio::test]
async fn errors_name_fields_as_a_body_of_this_route_has_them() {
    let server = Server::saying("Hello", Config::default()).await;
    for (body, code, param) in [
        (
            json!({"input": "a", "max_output_tokens": 0}),
            "invalid_value",
            "max_output_tokens",
        ),
        (
            json!({"input": "a", "temperature": -1}),
            "bad_sampling",
            "temperature",
        ),
        (
            json!({"input": "a", "kv_budget": 3}),
            "bad_contract",
            "kv_budget",
        ),
        (
            json!({"input": "a", "model": "gpt"}),
            "model_not_found",
            "model",
        ),
        (json!({"input": 7}), "invalid_body", "input"),
        (
            json!({"input": "a", "stream": "yes"}),
            "invalid_body",
            "stream",
        ),
        (
            json!({"input": "a", "nonsense": 1}),
            "invalid_value",
            "nonsense",
        ),
    ] {
        let (status, found, at) = server.create(body.clone()).await.error();
        assert_eq!((found, at), (json!(code), json!(param)), "{body}");
        assert!(status == 400 || code == "model_not_found");
    }
    assert_eq!(server.kept(), 0);
}

#[tokio::test]
async fn a_response_can_be_deleted_once_and_none_can_be_cancelled() {
    let server = Server::saying("Hello", Config::default()).await;
    let (id, _) = server.created(json!({"input": "Hi"})).await;
    let path = format!("/v1/responses/{id}");
    let cancelled = server.call("POST", &format!("{path}/cancel")).await;
    assert_eq!(
        cancelled.error(),
        (400, json!("not_in_background"), Value::Null)
    );
    let streamed = server.call("GET", &format!("{path}?stream=true")).await;
    assert_eq!(
        streamed.error(),
        (400, json!("invalid_value"), json!("stream"))
    );
    let other = server.call("GET", &format!("{path}?nonsense=1")).await;
    assert_eq!(
        other.error(),
        (400, json!("invalid_value"), json!("nonsense"))
    );

    let deleted = server.call("DELETE", &path).await;
    let expected = json!({"id": id, "object": "response", "deleted": true});
    assert_eq!((deleted.status.as_u16(), deleted.json()), (200, expected));
    serde_json::from_value::<openai::DeleteResponse>(deleted.json()).unwrap();
    let unknown = (404, json!("response_not_found"), Value::Null);
    for id in [id.as_str(), "resp_1", "%20", &"x".repeat(1000)] {
        let path = format!("/v1/responses/{id}");
        for (method, path) in [
            ("GET", path.clone()),
            ("DELETE", path.clone()),
            ("GET", format!("{path}/input_items")),
            ("POST", format!("{path}/cancel")),
        ] {
            let reply = server.call(method, &path).await;
            assert_eq!(reply.error(), unknown, "{method} {path}");
            assert!(reply.text.len() < 300, "{reply:?}");
        }
    }
}

#[tokio::test]
async fn items_before_an_answer_come_in_pages() {
    let server = Server::saying("Hello", Config::default()).await;
    let messages = json!([
        {"role": "developer", "content": "a"}, {"role": "user", "content": "b"},
    ]);
    let (first, _) = server
        .created(json!({"input": messages, "instructions": "no item"}))
        .await;
    let (last, _) = server.created(super::server::after(&first, "c")).await;
    let items = |query: &str| {
        let path = format!("/v1/responses/{last}/input_items{query}");
        let server = &server;
        async move { server.call("GET", &path).await }
    };
    let texts = |list: &Value| -> Vec<String> {
        let data = list["data"].as_array().unwrap().iter();
        data.map(|item| item["content"][0]["text"].as_str().unwrap().to_owned())
            .collect()
    };
    let all = items("").await.json();
    assert_eq!(texts(&all), ["c", "Hello", "b", "a"]);
    assert_eq!(
        (&all["object"], &all["has_more"]),
        (&json!("list"), &json!(false))
    );
    serde_json::from_value::<openai::ResponseItemList>(all).unwrap();
    let page = items("?order=asc&limit=3").await.json();
    assert_eq!(
        (texts(&page), &page["has_more"]),
        (vec!["a".into(), "b".into(), "Hello".into()], &json!(true))
    );
    let kinds: Vec<_> = (0..3)
        .map(|at| page["data"][at]["content"][0]["type"].clone())
        .collect();
    assert_eq!(kinds, ["input_text", "input_text", "output_text"]);
    let after = page["last_id"].as_str().unwrap();
    assert_eq!(page["data"][2]["id"], after);
    let rest = items(&format!("?order=asc&after={after}&include[]=x"))
        .await
        .json();
    assert_eq!(
        (texts(&rest), &rest["has_more"]),
        (vec!["c".into()], &json!(false))
    );
    for (query, param) in [
        ("?limit=0", "limit"),
        ("?limit=101", "limit"),
        ("?order=up", "order"),
        ("?after=msg_1", "after"),
        ("?before=msg_1", "before"),
    ] {
        let (status, _, found) = items(query).await.error();
        assert_eq!((status, found), (400, json!(param)), "{query}");
    }
    // Nothing stands before the first message.
    let empty = items(&format!("?after={}", page["first_id"].as_str().unwrap()))
        .await
        .json();
    assert_eq!(
        (&empty["data"], &empty["first_id"]),
        (&json!([]), &Value::Null)
    );
}
