//! What is refused, and what harms nobody.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use palimpsest_coordinator::Config;
use serde_json::{Value, json};

use crate::client::{Http, send, with};

/// A request that is refused.
struct Refusal {
    method: &'static str,
    path: &'static str,
    body: Value,
    status: u16,
    /// `code` of the error; empty: any.
    code: &'static str,
}

fn refusals() -> Vec<Refusal> {
    let refusal = |method, path, body, status, code| Refusal {
        method,
        path,
        body,
        status,
        code,
    };
    let get = |path, status, code| refusal("GET", path, Value::Null, status, code);
    let post = |path, body, status, code| refusal("POST", path, body, status, code);
    let complete = |body, status, code| post("/v1/completions", body, status, code);
    // A request that would be answered but for what it has in addition.
    let but = |extra, status, code| {
        let body = json!({"model": "tiny", "prompt": "Geheimnis", "max_tokens": 2});
        complete(with(body, extra), status, code)
    };
    let long = json!({"prompt": "x".repeat(200_000)});
    vec![
        but(json!({"model": "gpt-4"}), 404, "model_not_found"),
        but(json!({"tools": [1]}), 400, "invalid_value"),
        but(json!({"temperature": -1}), 400, "bad_sampling"),
        but(json!({"kv_policy": "nonsense"}), 400, ""),
        but(json!({"prompt": ""}), 400, "empty_prompt"),
        but(json!({"max_tokens": "Geheimnis"}), 400, "invalid_body"),
        complete(json!({"model": "tiny"}), 400, "invalid_body"),
        complete(long, 413, "body_too_large"),
        post("/tokenize", json!({}), 400, "invalid_value"),
        post("/tokenize", json!({"messages": []}), 400, "empty_prompt"),
        get("/v1/nothing", 404, "not_found"),
        get("/v1/completions", 405, "method_not_allowed"),
        get("/v1/models/other", 404, "model_not_found"),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_refusal_has_openais_shape_and_says_nothing_of_the_prompt() {
    let http = Http::start(Config {
        max_message_bytes: 100_000,
        ..Config::default()
    })
    .await;
    for case in refusals() {
        let (method, path) = (case.method, case.path);
        let reply = http
            .send(method, path, "x-request-id: mine\r\n", case.body)
            .await;
        assert_eq!(reply.status, case.status, "{path}: {reply:?}");
        let error = &reply.json()["error"];
        assert!(
            error["message"].is_string()
                && error["type"].is_string()
                && error.get("param").is_some(),
            "{error}"
        );
        let code = case.code;
        assert!(code.is_empty() || error["code"] == code, "{path}: {error}");
        assert!(!reply.body.contains("Geheimnis"), "{reply:?}");
        assert!(reply.head.contains("x-request-id: mine"), "{}", reply.head);
    }

    let broken = tokio::task::spawn_blocking({
        let address = http.address;
        move || {
            send(
                address,
                "POST",
                "/v1/completions",
                "",
                b"{\"prompt\": \"Geheimnis",
            )
        }
    });
    let broken = broken.await.expect("a reply");
    assert!(
        broken.status == 400 && !broken.body.contains("Geheimnis"),
        "{broken:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_says_when_to_come_again() {
    let http = Http::start(Config {
        max_running: 1,
        max_queued: 1,
        ..Config::default()
    })
    .await;
    let endless = json!({
        "model": "tiny", "prompt": "a", "max_tokens": 200_000, "ignore_eos": true,
        "stream": true, "kv_policy": "window",
    });
    let short = || json!({"model": "tiny", "prompt": "a", "max_tokens": 1});
    let mut streams = Vec::new();
    for gauge in [
        "palimpsest_requests_running 1",
        "palimpsest_requests_queued 1",
    ] {
        let mut stream = TcpStream::connect(http.address).expect("a connection");
        let body = endless.to_string();
        let head = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length:";
        stream
            .write_all(format!("{head} {}\r\n\r\n{body}", body.len()).as_bytes())
            .expect("a request");
        streams.push(stream);
        let waiting = Instant::now();
        while !http.metrics().await.body.lines().any(|line| line == gauge) {
            assert!(
                waiting.elapsed() < Duration::from_secs(20),
                "{gauge} never comes"
            );
        }
    }
    let refused = http.post("/v1/completions", short()).await;
    assert_eq!(refused.status, 429, "{refused:?}");
    assert_eq!(refused.json()["error"]["type"], "rate_limit_error");
    assert!(refused.head.contains("retry-after: 1"), "{}", refused.head);
    // Clients that go away make room.
    drop(streams);
    let waiting = Instant::now();
    loop {
        let reply = http.post("/v1/completions", short()).await;
        if reply.status == 200 {
            break;
        }
        assert!(waiting.elapsed() < Duration::from_secs(20), "{reply:?}");
    }
    let metrics = http.metrics().await;
    let cancelled = "palimpsest_requests_total{outcome=\"cancelled\"} 2";
    assert!(
        metrics.body.lines().any(|line| line == cancelled),
        "{}",
        metrics.body
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_and_slow_headers_harm_nobody() {
    let http = Http::start(Config::default()).await;
    let garbage: [&[u8]; 4] = [
        b"\0\0\0",
        b"GET / HTTP/9.9\r\n\r\n",
        &[0xff; 10_000],
        b"POST /v1/completions HTTP/1.1\r\n",
    ];
    let open: Vec<_> = garbage
        .iter()
        .map(|bytes| {
            let mut stream = TcpStream::connect(http.address).expect("a connection");
            let _ = stream.write_all(bytes);
            stream
        })
        .collect();
    let flood: String = (0..3000)
        .map(|i| format!("x-{i}: {}\r\n", "y".repeat(40)))
        .collect();
    let address = http.address;
    let flooded = tokio::task::spawn_blocking(move || {
        let mut stream = TcpStream::connect(address).expect("a connection");
        let _ = stream.write_all(format!("GET /health HTTP/1.0\r\n{flood}\r\n").as_bytes());
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    });
    let flooded = flooded.await.expect("no panic");
    assert!(
        !flooded.contains("200 OK"),
        "a flood of headers is refused: {flooded:.100}"
    );
    assert_eq!(
        http.send("GET", "/readyz", "", Value::Null).await.status,
        200
    );
    drop(open);
}
