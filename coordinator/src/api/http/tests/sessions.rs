//! Sessions over HTTP.

use axum::http::Method;

use super::*;

impl Server {
    fn ask(&self, method: Method, path: &str) -> impl Future<Output = Reply> + Send + use<> {
        let request = Request::builder().method(method).uri(path);
        self.send(request.body(Body::empty()).unwrap())
    }
}

fn field<'a>(reply: &'a Reply, name: &str) -> &'a Value {
    assert_eq!(reply.status, StatusCode::OK, "{}", reply.json);
    &reply.json[name]
}

fn code(reply: &Reply) -> (u16, &str) {
    let code = reply.json["error"]["code"].as_str();
    (reply.status.as_u16(), code.unwrap())
}

#[tokio::test]
async fn a_session_is_a_resource() {
    let server = Server::start(Config::default()).await;
    let made = json!({"session_id": "s", "ttl_seconds": 60, "kv_budget": 40});
    let made = server.post("/v1/sessions", &made).await;
    assert_eq!(field(&made, "state"), "idle");
    assert_eq!(made.json["kv"]["budget"], 40);
    let drawn = server.post("/v1/sessions", &json!({})).await;
    assert_eq!(field(&drawn, "session_id").as_str().unwrap().len(), 32);

    let messages = json!([{"role": "user", "content": "hi"}]);
    let read = server
        .post("/v1/sessions/s/append", &json!({"messages": messages}))
        .await;
    let tokens = field(&read, "tokens").as_u64().unwrap();
    assert_eq!(read.json["usage"]["prompt_tokens"], tokens);
    let body = json!({"session_id": "s", "messages": [], "max_tokens": 3});
    let said = server.post("/v1/chat/completions", &body).await;
    let prompt = field(&said, "usage")["prompt_tokens"].as_u64().unwrap();
    let shown = server.ask(Method::GET, "/v1/sessions/s").await;
    assert_eq!(*field(&shown, "tokens"), prompt + 3);
    assert_eq!(shown.json["messages"], 2);

    let copy = server
        .post("/v1/sessions/s/fork", &json!({"session_id": "t"}))
        .await;
    assert_eq!(field(&copy, "tokens"), &shown.json["tokens"]);
    let moved = server.ask(Method::POST, "/v1/sessions/t/suspend").await;
    assert_eq!(field(&moved, "state"), "suspended");
    assert_eq!(moved.json["moved_bytes"], 0);
    let moved = server.ask(Method::POST, "/v1/sessions/t/resume").await;
    assert_eq!(field(&moved, "state"), "idle");
    let page = server.ask(Method::GET, "/v1/sessions?limit=2").await;
    assert_eq!(field(&page, "data").as_array().unwrap().len(), 2);
    assert_eq!(page.json["has_more"], true);
    let after = format!(
        "/v1/sessions?after={}",
        page.json["last_id"].as_str().unwrap()
    );
    let page = server.ask(Method::GET, &after).await;
    assert_eq!(field(&page, "data").as_array().unwrap().len(), 1);
    assert_eq!(page.json["has_more"], false);

    let gone = server.ask(Method::DELETE, "/v1/sessions/s").await;
    assert_eq!(field(&gone, "deleted"), true);
    let again = server.ask(Method::DELETE, "/v1/sessions/s").await;
    assert_eq!(code(&again), (404, "session_unknown"));
    assert_eq!(again.json["error"]["param"], "session_id");
}

#[tokio::test]
async fn sessions_of_text_go_on_in_completions_and_streams() {
    let server = Server::start(Config::default()).await;
    server
        .post("/v1/sessions", &json!({"session_id": "s"}))
        .await;
    let whole = server
        .post("/v1/completions", &completion(json!({"session_id": "s"})))
        .await;
    assert_eq!(field(&whole, "usage")["completion_tokens"], 2);
    let body = completion(json!({"session_id": "s", "stream": true}));
    let streamed = server.post("/v1/completions", &body).await;
    assert_eq!(streamed.status, StatusCode::OK);
    let shown = server.ask(Method::GET, "/v1/sessions/s").await;
    // `hello` is one token.
    assert_eq!(field(&shown, "tokens"), 6);

    let ids = json!({"token_ids": [1, 2]});
    let read = server.post("/v1/sessions/s/append", &ids).await;
    assert_eq!(field(&read, "tokens"), 8);
    for (body, param) in [
        (completion(json!({"session_id": "s", "n": 2})), "n"),
        (
            completion(json!({"session_id": "s", "prompt": ["a", "b"]})),
            "prompt",
        ),
        (
            completion(json!({"session_id": "s", "kv_budget": 99})),
            "kv_budget",
        ),
        (
            completion(json!({"session_id": "s".repeat(2000)})),
            "session_id",
        ),
    ] {
        let refused = server.post("/v1/completions", &body).await;
        assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{}", refused.json);
        assert_eq!(refused.json["error"]["param"], param);
    }
    let nothing = server.post("/v1/sessions/s/append", &json!({})).await;
    assert_eq!(nothing.json["error"]["param"], "text");
    let other = server
        .post("/v1/sessions/s/append", &json!({"txet": "x"}))
        .await;
    assert_eq!(code(&other), (400, "invalid_body"));
}

#[tokio::test]
async fn a_client_of_sglang_opens_and_closes_sessions() {
    let server = Server::start(Config::default()).await;
    let open = json!({"capacity_of_str_len": 1000, "session_id": null, "streaming": true});
    let opened = server.post("/open_session", &open).await;
    let id = opened.json.as_str().unwrap().to_owned();
    let named = json!({"capacity_of_str_len": 1000, "session_id": "s", "timeout": 2.5});
    assert_eq!(server.post("/open_session", &named).await.json, "s");
    let shown = server.ask(Method::GET, "/v1/sessions/s").await;
    let lives = |name| field(&shown, name).as_u64().unwrap();
    assert_eq!(lives("expires") - lives("created"), 3);
    let again = server.post("/open_session", &named).await;
    assert_eq!(code(&again), (409, "session_exists"));
    let late = json!({"capacity_of_str_len": 1, "timeout": -1.0});
    let late = server.post("/open_session", &late).await;
    assert_eq!(late.json["error"]["param"], "timeout");
    let closed = server
        .post("/close_session", &json!({"session_id": id}))
        .await;
    assert_eq!((closed.status, closed.json), (StatusCode::OK, Value::Null));
    let closed = server
        .post("/close_session", &json!({"session_id": id}))
        .await;
    assert_eq!(code(&closed), (404, "session_unknown"));
}
