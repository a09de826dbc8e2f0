//! The HTTP API over a real engine on a tiny model: what OpenAI's clients send and read.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use palimpsest_coordinator::Config;
use palimpsest_coordinator::keys::ApiKeys;
use palimpsest_proto::v1::generate_request::Input;
use palimpsest_proto::v1::{GenerateRequest, Sampling, Stopping};
use palimpsest_tests::service::{TestService, ask, serve};
use palimpsest_tests::tiny_model;
use serde_json::{Value, json};
use tokio::net::TcpListener;

/// A response, whole.
#[derive(Debug)]
struct Reply {
    status: u16,
    head: String,
    body: String,
}

impl Reply {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The objects of server-sent events, which end in `[DONE]`.
    fn events(&self) -> Vec<Value> {
        let data: Vec<&str> = self
            .body
            .lines()
            .filter_map(|line| line.strip_prefix("data: "))
            .collect();
        let (last, events) = data.split_last().expect("events");
        assert_eq!(*last, "[DONE]");
        events
            .iter()
            .map(|event| serde_json::from_str(event).expect("an object"))
            .collect()
    }
}

/// HTTP/1.0, so that the body ends with the connection.
fn send(address: SocketAddr, method: &str, path: &str, headers: &str, body: &[u8]) -> Reply {
    let mut stream = TcpStream::connect(address).expect("a connection");
    let head = format!(
        "{method} {path} HTTP/1.0\r\nhost: test\r\ncontent-length: {}\r\n{headers}\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).expect("a request");
    // A server may answer before it has read a body that is too long.
    let _ = stream.write_all(body);
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes);
    let text = String::from_utf8(bytes).expect("text");
    let (head, body) = text
        .split_once("\r\n\r\n")
        .unwrap_or_else(|| panic!("no head: {text:?}"));
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok())
        .expect("a status");
    Reply {
        status,
        head: head.to_lowercase(),
        body: body.to_owned(),
    }
}

struct Http {
    service: TestService,
    address: SocketAddr,
}

impl Http {
    async fn start(config: Config) -> Self {
        let model = tiny_model(1);
        let service = serve(model.path(), None, 16 << 20, config).await;
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let coordinator = service.coordinator.clone();
        tokio::spawn(async move {
            coordinator
                .serve_http(listener, std::future::pending())
                .await
        });
        Self { service, address }
    }

    async fn send(
        &self,
        method: &'static str,
        path: &'static str,
        headers: &'static str,
        body: Value,
    ) -> Reply {
        let address = self.address;
        let body = if body.is_null() {
            Vec::new()
        } else {
            body.to_string().into_bytes()
        };
        tokio::task::spawn_blocking(move || send(address, method, path, headers, &body))
            .await
            .expect("a reply")
    }

    async fn post(&self, path: &'static str, body: Value) -> Reply {
        self.send("POST", path, "", body).await
    }
}

fn question() -> Value {
    json!({
        "model": "tiny", "messages": [{"role": "user", "content": "hello there"}], "max_tokens": 12, "temperature": 0,
        "ignore_eos": true,
    })
}

fn with(mut body: Value, extra: Value) -> Value {
    body.as_object_mut()
        .expect("an object")
        .extend(extra.as_object().expect("an object").clone());
    body
}

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
        "model": "tiny", "prompt": "hello there", "max_tokens": 20, "temperature": 0.8, "seed": 3, "ignore_eos": true,
        "logprobs": 2,
    });
    let whole = http.post("/v1/completions", body.clone()).await;
    assert_eq!(whole.status, 200, "{whole:?}");
    let whole = whole.json();
    assert_eq!(whole["object"], "text_completion");
    assert_eq!(whole["choices"][0]["text"], expected.text);
    assert_eq!(whole["choices"][0]["finish_reason"], "length");
    assert_eq!(whole["usage"]["completion_tokens"], 20);
    assert_eq!(
        whole["choices"][0]["logprobs"]["token_logprobs"]
            .as_array()
            .map(Vec::len),
        Some(20)
    );
    assert!(
        whole["usage"]["kv"]["held_bytes"]
            .as_u64()
            .is_some_and(|bytes| bytes > 0),
        "{whole}"
    );
    let stream = http
        .post(
            "/v1/completions",
            with(
                body,
                json!({"stream": true, "stream_options": {"include_usage": true}}),
            ),
        )
        .await;
    assert!(
        stream.head.contains("content-type: text/event-stream"),
        "{}",
        stream.head
    );
    let events = stream.events();
    let text: String = events
        .iter()
        .filter_map(|event| event["choices"][0]["text"].as_str())
        .collect();
    assert_eq!(text, expected.text);
    let last = events.last().expect("usage");
    assert_eq!(
        (&last["choices"], &last["usage"]["completion_tokens"]),
        (&json!([]), &json!(20))
    );
    assert_eq!(last["usage"], whole["usage"]);
    let finishes: Vec<_> = events
        .iter()
        .filter_map(|event| event["choices"][0]["finish_reason"].as_str())
        .collect();
    assert_eq!(finishes, ["length"]);
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
    let body = json!({"model": "tiny", "prompt": ["a", "bc"], "n": 2, "max_tokens": 3, "ignore_eos": true, "seed": 1});
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_refusal_has_openais_shape_and_says_nothing_of_the_prompt() {
    let http = Http::start(Config {
        max_message_bytes: 100_000,
        ..Config::default()
    })
    .await;
    let body = || json!({"model": "tiny", "prompt": "Geheimnis", "max_tokens": 2});
    let cases = [
        (
            "POST",
            "/v1/completions",
            with(body(), json!({"model": "gpt-4"})),
            404,
            "model_not_found",
        ),
        (
            "POST",
            "/v1/completions",
            with(body(), json!({"tools": [1]})),
            400,
            "invalid_value",
        ),
        (
            "POST",
            "/v1/completions",
            with(body(), json!({"temperature": -1})),
            400,
            "bad_sampling",
        ),
        (
            "POST",
            "/v1/completions",
            with(body(), json!({"kv_policy": "nonsense"})),
            400,
            "",
        ),
        (
            "POST",
            "/v1/completions",
            with(body(), json!({"prompt": ""})),
            400,
            "empty_prompt",
        ),
        (
            "POST",
            "/v1/completions",
            with(body(), json!({"max_tokens": "Geheimnis"})),
            400,
            "invalid_body",
        ),
        (
            "POST",
            "/v1/completions",
            json!({"model": "tiny"}),
            400,
            "invalid_body",
        ),
        (
            "POST",
            "/v1/completions",
            json!({"prompt": "x".repeat(200_000)}),
            413,
            "body_too_large",
        ),
        ("POST", "/tokenize", json!({}), 400, "invalid_value"),
        (
            "POST",
            "/tokenize",
            json!({"messages": []}),
            400,
            "empty_prompt",
        ),
        ("GET", "/v1/nothing", Value::Null, 404, "not_found"),
        (
            "GET",
            "/v1/completions",
            Value::Null,
            405,
            "method_not_allowed",
        ),
        (
            "GET",
            "/v1/models/other",
            Value::Null,
            404,
            "model_not_found",
        ),
    ];
    for (method, path, body, status, code) in cases {
        let reply = http
            .send(method, path, "x-request-id: mine\r\n", body)
            .await;
        assert_eq!(reply.status, status, "{path}: {reply:?}");
        let error = &reply.json()["error"];
        assert!(
            error["message"].is_string()
                && error["type"].is_string()
                && error.get("param").is_some(),
            "{error}"
        );
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
    let http = Arc::new(
        Http::start(Config {
            max_running: 1,
            max_queued: 1,
            ..Config::default()
        })
        .await,
    );
    let body = json!({
        "model": "tiny", "prompt": "a", "max_tokens": 200_000, "ignore_eos": true, "stream": true, "kv_policy": "window",
    });
    let mut streams = Vec::new();
    for gauge in [
        "palimpsest_requests_running 1",
        "palimpsest_requests_queued 1",
    ] {
        let mut stream = TcpStream::connect(http.address).expect("a connection");
        let body = body.to_string();
        let head = "POST /v1/completions HTTP/1.1\r\nhost: t\r\ncontent-length:";
        stream
            .write_all(format!("{head} {}\r\n\r\n{body}", body.len()).as_bytes())
            .expect("a request");
        streams.push(stream);
        let waiting = Instant::now();
        while !http
            .send("GET", "/metrics", "", Value::Null)
            .await
            .body
            .lines()
            .any(|line| line == gauge)
        {
            assert!(
                waiting.elapsed() < Duration::from_secs(20),
                "{gauge} never comes"
            );
        }
    }
    let refused = http
        .post(
            "/v1/completions",
            json!({"model": "tiny", "prompt": "a", "max_tokens": 1}),
        )
        .await;
    assert_eq!(refused.status, 429, "{refused:?}");
    assert_eq!(refused.json()["error"]["type"], "rate_limit_error");
    assert!(refused.head.contains("retry-after: 1"), "{}", refused.head);
    // Clients that go away make room.
    drop(streams);
    let waiting = Instant::now();
    loop {
        let reply = http
            .post(
                "/v1/completions",
                json!({"model": "tiny", "prompt": "a", "max_tokens": 1}),
            )
            .await;
        if reply.status == 200 {
            break;
        }
        assert!(waiting.elapsed() < Duration::from_secs(20), "{reply:?}");
    }
    let metrics = http.send("GET", "/metrics", "", Value::Null).await;
    let cancelled = "palimpsest_requests_total{outcome=\"cancelled\"} 2";
    assert!(
        metrics.body.lines().any(|line| line == cancelled),
        "{}",
        metrics.body
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn probes_models_and_metrics_are_answered() {
    let http = Http::start(Config::default()).await;
    for (path, expected) in [("/health", "ok"), ("/readyz", "ready")] {
        let reply = http.send("GET", path, "", Value::Null).await;
        assert_eq!((reply.status, reply.body.as_str()), (200, expected));
    }
    let models = http.send("GET", "/v1/models", "", Value::Null).await.json();
    assert_eq!(
        (&models["object"], &models["data"][0]["id"]),
        (&json!("list"), &json!("tiny"))
    );
    assert_eq!(
        http.send("GET", "/v1/models/tiny", "", Value::Null)
            .await
            .json()["object"],
        "model"
    );
    let tokens = http
        .post("/tokenize", json!({"prompt": "abc"}))
        .await
        .json();
    assert_eq!(tokens["count"], 3);
    http.post(
        "/v1/completions",
        json!({"prompt": "abc", "max_tokens": 4, "ignore_eos": true}),
    )
    .await;
    let metrics = http.send("GET", "/metrics", "", Value::Null).await;
    assert!(
        metrics.head.contains("application/openmetrics-text"),
        "{}",
        metrics.head
    );
    for line in [
        "palimpsest_generated_tokens_total 4",
        "palimpsest_requests_total{outcome=\"length\"} 1",
        "palimpsest_inter_token_seconds_count 3",
    ] {
        assert!(
            metrics.body.lines().any(|found| found == line),
            "{line} is missing in {}",
            metrics.body
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_asked_for_on_every_api_but_not_by_probes() {
    // sha256("secret")
    let line = "a:2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";
    let keys = Some(Arc::new(ApiKeys::parse(line).expect("a key")));
    let http = Http::start(Config {
        keys,
        ..Config::default()
    })
    .await;
    let body = json!({"prompt": "abc", "max_tokens": 1});
    for headers in [
        "",
        "authorization: Bearer wrong\r\n",
        "authorization: Basic secret\r\n",
    ] {
        let reply = http
            .send("POST", "/v1/completions", headers, body.clone())
            .await;
        assert_eq!(
            (reply.status, &reply.json()["error"]["code"]),
            (401, &json!("invalid_api_key"))
        );
        assert!(
            reply.head.contains("www-authenticate: bearer"),
            "{}",
            reply.head
        );
    }
    let reply = http
        .send(
            "POST",
            "/v1/completions",
            "authorization: Bearer secret\r\n",
            body,
        )
        .await;
    assert_eq!(reply.status, 200, "{reply:?}");
    for probe in ["/health", "/readyz", "/metrics"] {
        assert_eq!(http.send("GET", probe, "", Value::Null).await.status, 200);
    }
    let request = GenerateRequest {
        input: Some(Input::Text("abc".into())),
        ..Default::default()
    };
    let refused = ask(&http.service.client, request.clone())
        .await
        .expect_err("no key");
    assert_eq!(refused.code(), tonic::Code::Unauthenticated);
    let mut keyed = tonic::Request::new(request);
    keyed
        .metadata_mut()
        .insert("authorization", "Bearer secret".parse().expect("ASCII"));
    assert!(http.service.client.clone().generate(keyed).await.is_ok());
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
