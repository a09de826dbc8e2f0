//! What a request may take before it is admitted, and of an answer: the routes over a fake rank,
//! without sockets.

mod console;
mod fields;
mod maps;
mod scores;
mod sessions;
mod tools;
mod web;

use std::sync::atomic::Ordering;

use axum::BoxError;
use axum::body::to_bytes;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codegen::Service as _;

use super::*;
use crate::budget::BODY_WEIGHT;
use crate::executor::ChannelExecutor;
use crate::executor::fake::{FakeRank, Script};
use crate::keys::ApiKeys;
use crate::{Config, Coordinator};

struct Server {
    coordinator: Coordinator,
    router: Router,
}

struct Reply {
    status: StatusCode,
    headers: axum::http::HeaderMap,
    json: Value,
}

impl Server {
    async fn start(config: Config) -> Self {
        let server = Self::waiting(config);
        assert!(server.coordinator.ready().await);
        server
    }

    /// A server whose group has not passed a step yet.
    fn waiting(config: Config) -> Self {
        Self::scripted(config, Script::endless(0, 1))
    }

    /// A server of a model that says this, with this chat template.
    async fn saying(text: &str, template: Option<&str>, config: Config) -> Self {
        let mut script = Script::saying(text, 0, 1);
        let model = script.rank.model.as_mut().expect("it has one");
        if let Some(template) = template {
            model.chat_template = template.into();
        }
        let server = Self::scripted(config, script);
        assert!(server.coordinator.ready().await);
        server
    }

    fn scripted(config: Config, script: Script) -> Self {
        let rank = FakeRank::new(script);
        let executor = Box::new(ChannelExecutor::new(vec![rank.spawn()], config.step_limit));
        let coordinator = Coordinator::build(config, executor, vec![rank.info()]).unwrap();
        let router = router(coordinator.service().clone(), HttpLimits::default());
        Self {
            coordinator,
            router,
        }
    }

    fn service(&self) -> &Service {
        self.coordinator.service()
    }

    fn send(&self, request: Request) -> impl Future<Output = Reply> + Send + use<> {
        let mut router = self.router.clone();
        async move {
            let response = router.call(request).await.expect("it is infallible");
            let (parts, body) = response.into_parts();
            let bytes = to_bytes(body, usize::MAX).await.unwrap();
            Reply {
                status: parts.status,
                headers: parts.headers,
                json: serde_json::from_slice(&bytes).unwrap_or(Value::Null),
            }
        }
    }

    fn post(&self, path: &str, body: &Value) -> impl Future<Output = Reply> + Send + use<> {
        self.send(post_of(path, Body::from(body.to_string())))
    }

    /// The objects of an answer that comes as events.
    async fn events(&self, path: &str, body: &Value) -> Vec<Value> {
        let mut router = self.router.clone();
        let request = post_of(path, Body::from(body.to_string()));
        let response = router.call(request).await.expect("it is infallible");
        let bytes = to_bytes(response.into_body(), usize::MAX).await.unwrap();
        let text = String::from_utf8(bytes.into()).unwrap();
        let objects = text
            .split("\n\n")
            .filter_map(|event| event.strip_prefix("data: "));
        let objects = objects.filter(|object| *object != "[DONE]");
        objects
            .map(|object| serde_json::from_str(object).unwrap())
            .collect()
    }

    fn spawn(&self, path: &str, body: &Value) -> JoinHandle<Reply> {
        tokio::spawn(self.post(path, body))
    }

    async fn health(&self) -> StatusCode {
        let request = Request::get("/health").body(Body::empty()).unwrap();
        self.send(request).await.status
    }

    fn has_figure(&self, line: &str) {
        let figures = self.service().metrics.encode();
        assert!(
            figures.lines().any(|found| found == line),
            "{line} is missing in\n{figures}"
        );
    }

    fn held(&self) -> u64 {
        self.service().budget.held()
    }

    fn tokenised(&self) -> usize {
        self.service()
            .model
            .tokenizer
            .encoded
            .load(Ordering::Relaxed)
    }
}

fn post_of(path: &str, body: Body) -> Request {
    Request::post(path).body(body).unwrap()
}

fn completion(extra: Value) -> Value {
    let mut body = json!({"prompt": "hello", "max_tokens": 2});
    let fields = extra.as_object().unwrap().clone();
    body.as_object_mut().unwrap().extend(fields);
    body
}

/// Other tasks run until nothing is left to do but to wait.
async fn settle(server: &Server, held: u64) {
    while server.held() != held {
        tokio::task::yield_now().await;
    }
}

/// Texts beside contents were tokenised on the threads of connections, beats and probes: three of
/// 0.8 MB delayed `/health` by 3 s.
#[tokio::test]
async fn names_in_a_large_chat_wait_for_a_thread_and_health_does_not() {
    let server = Server::start(Config {
        request_limit: Duration::from_secs(5),
        ..Config::default()
    })
    .await;
    let paused = server.service().pool.pause().await;
    let role = "x".repeat(10_000);
    let long = json!({"role": "user", "name": role});
    let roles = json!({"messages": vec![long; 3], "max_tokens": 1});
    let many = json!({"messages": vec![json!({"role": "user"}); 1000], "max_tokens": 1});
    let text = json!({"prompt": role, "max_tokens": 1});
    let ids = json!({"prompt": vec![1; 10_000], "max_tokens": 1});
    let waiting = [
        server.spawn("/v1/chat/completions", &roles),
        server.spawn("/v1/chat/completions", &many),
        server.spawn("/v1/completions", &text),
        server.spawn("/v1/completions", &ids),
        server.spawn("/tokenize", &json!({"prompt": role})),
    ];
    let bodies = [roles, many, text, ids, json!({"prompt": role})];
    let bytes: usize = bodies.iter().map(|body| body.to_string().len()).sum();
    settle(&server, bytes as u64 * BODY_WEIGHT).await;
    for _ in 0..100 {
        assert_eq!(server.health().await, StatusCode::OK);
    }
    assert!(waiting.iter().all(|request| !request.is_finished()));
    assert_eq!(server.tokenised(), 0);
    // A short one does not wait for them.
    let short = server.post("/v1/completions", &completion(json!({}))).await;
    assert_eq!(short.status, StatusCode::OK);
    drop(paused);
    for request in waiting {
        assert_eq!(request.await.unwrap().status, StatusCode::OK);
    }
    assert_eq!(server.held(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_text_whose_turn_does_not_come_is_given_up_at_its_deadline() {
    let server = Server::start(Config {
        request_limit: Duration::from_secs(5),
        ..Config::default()
    })
    .await;
    let _paused = server.service().pool.pause().await;
    let text = json!({"prompt": "x".repeat(10_000), "max_tokens": 1});
    let late = server.post("/v1/completions", &text).await;
    assert_eq!(late.status, StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(late.json["error"]["code"], "deadline_in_queue");
    assert_eq!(server.held(), 0);
}

/// 16 choices of 2 MB were tokenised 16 times and held 198 MiB.
#[tokio::test]
async fn choices_of_one_prompt_are_tokenised_once() {
    let server = Server::start(Config::default()).await;
    let reply = server
        .post("/v1/completions", &completion(json!({"n": 16})))
        .await;
    assert_eq!(reply.json["choices"].as_array().unwrap().len(), 16);
    assert_eq!(server.tokenised(), 1);
    let two = completion(json!({"n": 3, "prompt": ["a", "bc"]}));
    let reply = server.post("/v1/completions", &two).await;
    assert_eq!(reply.json["choices"].as_array().unwrap().len(), 6);
    assert_eq!(reply.json["usage"]["prompt_tokens"], 3);
    assert_eq!(server.tokenised(), 3);
}

#[tokio::test]
async fn a_closed_gate_is_seen_before_a_prompt_is_tokenised() {
    let server = Server::start(Config::default()).await;
    server.service().driver.drain().await;
    let reply = server.post("/v1/completions", &completion(json!({}))).await;
    assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(reply.json["error"]["code"], "draining");
    assert_eq!(server.tokenised(), 0);
}

/// A client that sends `size` bytes of a body and no more.
struct Client {
    reply: JoinHandle<Reply>,
    more: mpsc::Sender<Result<Bytes, BoxError>>,
}

async fn half_a_body(server: &Server, size: usize) -> Client {
    let (more, chunks) = mpsc::channel(1);
    let body = Body::from_stream(ReceiverStream::new(chunks));
    let reply = tokio::spawn(server.send(post_of("/v1/completions", body)));
    let before = server.held();
    more.send(Ok(Bytes::from(vec![b' '; size]))).await.unwrap();
    settle(server, before + size as u64 * BODY_WEIGHT).await;
    Client { reply, more }
}

#[tokio::test]
async fn bodies_beyond_the_budget_are_refused_and_room_comes_back() {
    let server = Server::start(Config {
        max_inflight_bytes: 10_000 * BODY_WEIGHT,
        ..Config::default()
    })
    .await;
    let first = half_a_body(&server, 6000).await;
    let second = half_a_body(&server, 3000).await;
    let body = completion(json!({"user": "x".repeat(2000)}));
    let refused = server.post("/v1/completions", &body).await;
    assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(refused.json["error"]["code"], "intake_full");
    assert_eq!(refused.json["error"]["type"], "rate_limit_error");
    assert_eq!(refused.headers[header::RETRY_AFTER], "1");
    let figures = server.service().metrics.encode();
    let counted = "palimpsest_requests_total{outcome=\"intake_full\"} 1";
    assert!(figures.contains(counted), "{figures}");
    assert_eq!(
        server.held(),
        9000 * BODY_WEIGHT,
        "the refused one holds nothing"
    );
    // The first client goes away: its connection drops whoever reads its body.
    first.reply.abort();
    settle(&server, 3000 * BODY_WEIGHT).await;
    let taken = server.post("/v1/completions", &body).await;
    assert_eq!(taken.status, StatusCode::OK);
    // The second breaks off, and is answered.
    let broken = second.more.send(Err("reset".into())).await;
    broken.unwrap();
    let reply = second.reply.await.unwrap();
    assert_eq!(reply.status, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(server.held(), 0);
}

#[tokio::test]
async fn a_long_body_is_refused_by_its_announcement_and_by_its_bytes() {
    let server = Server::start(Config {
        max_message_bytes: 1000,
        ..Config::default()
    })
    .await;
    let (_more, chunks) = mpsc::channel::<Result<Bytes, BoxError>>(1);
    let body = Body::from_stream(ReceiverStream::new(chunks));
    let mut announced = post_of("/v1/completions", body);
    let length = HeaderValue::from_static("1001");
    announced
        .headers_mut()
        .insert(header::CONTENT_LENGTH, length);
    let reply = server.send(announced).await;
    assert_eq!(reply.status, StatusCode::PAYLOAD_TOO_LARGE);
    let long = completion(json!({"user": "x".repeat(1000)}));
    let reply = server.post("/v1/completions", &long).await;
    assert_eq!(reply.json["error"]["code"], "body_too_large");
    assert_eq!(server.held(), 0);
}

/// Its answer is about as large as its body, and a client may read it as slowly as it likes.
#[tokio::test]
async fn an_answer_of_token_ids_counts_until_it_is_read() {
    let server = Server::start(Config::default()).await;
    let text = json!({"prompt": "hello é\n".repeat(1000)}).to_string();
    let room = text.len() as u64 * BODY_WEIGHT;
    let mut router = server.router.clone();
    let response = router.call(post_of("/tokenize", Body::from(text))).await;
    let response = response.expect("it is infallible");
    assert_eq!(server.held(), room);
    let bytes = to_bytes(response.into_body(), usize::MAX).await.unwrap();
    assert_eq!(server.held(), 0);
    assert!((bytes.len() as u64) < room, "{} bytes", bytes.len());
    let json: Value = serde_json::from_slice(&bytes).unwrap();
    let pieces = json["token_strs"].as_array().unwrap();
    assert_eq!(json["count"], pieces.len());
    assert_eq!(json["max_model_len"], 512);
}

#[tokio::test]
async fn a_long_request_id_and_several_choices_go_together() {
    let server = Server::start(Config::default()).await;
    let id = "x".repeat(128);
    let mut request = post_of(
        "/v1/completions",
        Body::from(completion(json!({"n": 2})).to_string()),
    );
    let value = HeaderValue::from_str(&id).unwrap();
    request.headers_mut().insert(REQUEST_ID, value);
    let reply = server.send(request).await;
    assert_eq!(reply.status, StatusCode::OK, "{}", reply.json);
    assert_eq!(reply.headers[REQUEST_ID], id);
}

/// Log-probabilities of an answer that is not streamed are held to its end.
#[tokio::test]
async fn a_whole_answer_is_refused_where_it_could_not_be_held() {
    let server = Server::start(Config {
        max_answer_bytes: 100_000,
        ..Config::default()
    })
    .await;
    let ask =
        |stream| completion(json!({"n": 4, "max_tokens": 16, "logprobs": 20, "stream": stream}));
    let refused = server.post("/v1/completions", &ask(false)).await;
    assert_eq!(refused.status, StatusCode::BAD_REQUEST);
    let error = &refused.json["error"];
    assert_eq!(
        (&error["code"], &error["param"]),
        (&json!("answer_too_large"), &json!("max_tokens"))
    );
    assert_eq!(server.tokenised(), 0);
    let streamed = server.post("/v1/completions", &ask(true)).await;
    assert_eq!(streamed.status, StatusCode::OK);
}

#[tokio::test]
async fn a_whole_answer_ends_where_it_can_no_longer_be_held() {
    let server = Server::start(Config {
        max_answer_bytes: 1000,
        ..Config::default()
    })
    .await;
    let ask = |tokens| completion(json!({"max_tokens": tokens, "ignore_eos": true}));
    let fits = server.post("/v1/completions", &ask(100)).await;
    assert_eq!(fits.status, StatusCode::OK, "{}", fits.json);
    let refused = server.post("/v1/completions", &ask(50_000)).await;
    assert_eq!(refused.json["error"]["code"], "answer_too_large");
    assert_eq!(refused.status, StatusCode::BAD_REQUEST);
    // It counted as a client that had gone.
    server.has_figure("palimpsest_requests_total{outcome=\"answer_too_large\"} 1");
    server.has_figure("palimpsest_requests_total{outcome=\"length\"} 1");
    assert!(!server.service().metrics.encode().contains("cancelled"));
}

/// Keys of the tenant `research`, whose key is `secret`.
fn with_key(options: &str) -> Config {
    // sha256("secret")
    let digest = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";
    let keys = ApiKeys::parse(&format!("research:{digest} {options}")).unwrap();
    Config {
        keys: Some(Arc::new(keys)),
        ..Config::default()
    }
}

fn with_secret(mut request: Request) -> Request {
    let value = HeaderValue::from_static("Bearer secret");
    request.headers_mut().insert(header::AUTHORIZATION, value);
    request
}

/// A key's quotas bounded what was under way, and nothing over time.
#[tokio::test(start_paused = true)]
async fn requests_of_a_key_in_a_minute_are_refused_beyond_its_rate() {
    let server = Server::start(with_key("max-requests-per-minute=2")).await;
    let ask = |path: &str, body: Value| {
        server.send(with_secret(post_of(path, Body::from(body.to_string()))))
    };
    let all = ask("/v1/completions", completion(json!({"n": 4}))).await;
    assert_eq!(all.status, StatusCode::OK, "{}", all.json);
    let tokens = ask("/tokenize", json!({"prompt": "hello"})).await;
    assert_eq!(tokens.status, StatusCode::OK, "{}", tokens.json);
    for (path, body) in [
        ("/v1/completions", completion(json!({}))),
        ("/tokenize", json!({"prompt": "hello"})),
    ] {
        let refused = ask(path, body).await;
        assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS, "{path}");
        assert_eq!(refused.json["error"]["code"], "rate_limited");
        assert_eq!(refused.headers[header::RETRY_AFTER], "30");
    }
    let labels = "tenant=\"research\",outcome=\"rate_limited\"";
    server.has_figure(&format!("palimpsest_tenant_requests_total{{{labels}}} 2"));
    tokio::time::advance(Duration::from_secs(30)).await;
    let later = ask("/v1/completions", completion(json!({}))).await;
    assert_eq!(later.status, StatusCode::OK, "{}", later.json);
}

#[tokio::test]
async fn bodies_that_find_no_room_are_counted_to_their_tenant() {
    let server = Server::start(Config {
        max_inflight_bytes: 1000 * BODY_WEIGHT,
        ..with_key("")
    })
    .await;
    let body = completion(json!({"user": "x".repeat(2000)}));
    let request = post_of("/v1/completions", Body::from(body.to_string()));
    let refused = server.send(with_secret(request)).await;
    assert_eq!(refused.json["error"]["code"], "intake_full");
    let labels = "tenant=\"research\",outcome=\"intake_full\"";
    server.has_figure(&format!("palimpsest_tenant_requests_total{{{labels}}} 1"));
}

/// A body names its biases once, and each choice has a copy.
#[tokio::test]
async fn biases_of_choices_are_charged() {
    let biases: serde_json::Map<String, Value> =
        (0..250).map(|id: u32| (id.to_string(), json!(1))).collect();
    let ask = |n| completion(json!({"logit_bias": biases, "n": n}));
    let bytes = ask(1).to_string().len() as u64;
    let server = Server::start(Config {
        // A third of it is for one of its size, and small ones have an eighth alone.
        max_inflight_bytes: 3 * bytes * BODY_WEIGHT,
        ..Config::default()
    })
    .await;
    let one = server.post("/v1/completions", &ask(1)).await;
    assert_eq!(one.status, StatusCode::OK, "{}", one.json);
    let many = server.post("/v1/completions", &ask(16)).await;
    assert_eq!(many.json["error"]["code"], "intake_full", "{}", many.json);
    settle(&server, 0).await;
}
