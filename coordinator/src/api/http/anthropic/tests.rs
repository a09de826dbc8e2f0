//! Messages over a fake rank.

mod tools;

use std::sync::Arc;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode};
use serde_json::{Value, json};
use tonic::codegen::Service as _;

use super::super::{HttpLimits, router};
use crate::executor::ChannelExecutor;
use crate::executor::fake::{FakeRank, Fault, Script};
use crate::keys::ApiKeys;
use crate::{Config, Coordinator};

struct Server {
    coordinator: Coordinator,
    router: Router,
}

#[derive(Debug)]
struct Reply {
    status: StatusCode,
    headers: HeaderMap,
    text: String,
}

impl Reply {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Status, class and code of an error, and the field at fault.
    fn error(&self) -> (u16, Value, Value, Value) {
        let json = self.json();
        assert_eq!(json["type"], "error", "{json}");
        assert_eq!(
            json["request_id"],
            self.headers["request-id"].to_str().unwrap()
        );
        let error = &json["error"];
        let field = |name: &str| error[name].clone();
        (
            self.status.as_u16(),
            field("type"),
            field("code"),
            field("param"),
        )
    }

    /// The objects of server-sent events, each under the name that stands in it.
    fn events(&self) -> Vec<Value> {
        let event = |event: &str| {
            let (name, data) = event.split_once('\n').expect("two lines");
            let data: Value = serde_json::from_str(&data["data: ".len()..]).expect("JSON");
            assert_eq!(name.strip_prefix("event: "), data["type"].as_str());
            data
        };
        self.text.split_terminator("\n\n").map(event).collect()
    }
}

impl Server {
    async fn start(script: Script, config: Config) -> Self {
        let rank = FakeRank::new(script);
        let executor = Box::new(ChannelExecutor::new(vec![rank.spawn()], config.step_limit));
        let coordinator = Coordinator::build(config, executor, vec![rank.info()]).unwrap();
        assert!(coordinator.ready().await);
        let router = router(coordinator.service().clone(), HttpLimits::default());
        Self {
            coordinator,
            router,
        }
    }

    async fn saying(text: &str) -> Self {
        Self::start(Script::saying(text, 0, 1), Config::default()).await
    }

    /// A server of a model with this chat template.
    async fn templated(text: &str, template: &str) -> Self {
        let mut script = Script::saying(text, 0, 1);
        let model = script.rank.model.as_mut().expect("it has one");
        model.chat_template = template.into();
        Self::start(script, Config::default()).await
    }

    async fn send(&self, request: Request) -> Reply {
        let mut router = self.router.clone();
        let response = router.call(request).await.expect("it is infallible");
        let (parts, body) = response.into_parts();
        let bytes = to_bytes(body, usize::MAX).await.unwrap();
        // A service that waits for nobody holds nothing of a request that was answered.
        assert_eq!(self.coordinator.service().budget.held(), 0);
        Reply {
            status: parts.status,
            headers: parts.headers,
            text: String::from_utf8(bytes.to_vec()).unwrap(),
        }
    }

    /// A question with further or other fields.
    async fn ask(&self, extra: Value) -> Reply {
        let body = asking(extra).to_string();
        let request = Request::post("/v1/messages").header("x-request-id", "r");
        let request = request.header("anthropic-version", "2023-06-01");
        self.send(request.body(Body::from(body)).unwrap()).await
    }

    async fn count(&self, body: Value) -> Reply {
        let request = Request::post("/v1/messages/count_tokens");
        self.send(request.body(Body::from(body.to_string())).unwrap())
            .await
    }
}

fn asking(extra: Value) -> Value {
    let messages = json!([{"role": "user", "content": "hello"}]);
    let mut body = json!({"model": "fake", "max_tokens": 40, "messages": messages});
    let fields = extra.as_object().expect("an object").clone();
    body.as_object_mut().expect("an object").extend(fields);
    body
}

#[tokio::test]
async fn a_message_is_whole_and_says_how_it_ended_and_what_it_took() {
    let server = Server::saying("Hé there").await;
    let reply = server
        .ask(json!({"system": "Be brief", "temperature": 0}))
        .await;
    assert_eq!(reply.status, StatusCode::OK, "{reply:?}");
    assert_eq!(
        (&reply.headers["request-id"], &reply.headers["x-request-id"]),
        (
            &axum::http::HeaderValue::from_static("r"),
            &axum::http::HeaderValue::from_static("r"),
        )
    );
    let message = reply.json();
    let prompt = "<|im_start|>system\nBe brief<|im_end|>\n<|im_start|>user\nhello<|im_end|>\n\
                  <|im_start|>assistant\n";
    let tokenizer = &server.coordinator.service().model.tokenizer;
    let prompt = tokenizer.encode(prompt, false).unwrap().len();
    assert_eq!(
        (
            &message["id"],
            &message["type"],
            &message["role"],
            &message["model"]
        ),
        (
            &json!("msg_r"),
            &json!("message"),
            &json!("assistant"),
            &json!("fake")
        )
    );
    assert_eq!(
        message["content"],
        json!([{"type": "text", "text": "Hé there"}])
    );
    assert_eq!(message["stop_reason"], "end_turn");
    assert_eq!(message["stop_sequence"], Value::Null);
    let usage = &message["usage"];
    assert_eq!(usage["input_tokens"], prompt);
    assert_eq!(usage["cache_read_input_tokens"], 0);
    // A byte each, and the end of the sequence.
    assert_eq!(usage["output_tokens"], 10);
    assert!(usage["kv"]["held_bytes"].as_u64().unwrap() > 0, "{usage}");

    let counted = json!({
        "system": [{"type": "text", "text": "Be brief"}], "model": "fake",
        "messages": [{"role": "user", "content": "hello"}],
    });
    assert_eq!(
        server.count(counted).await.json(),
        json!({"input_tokens": prompt})
    );
}

#[tokio::test]
async fn the_reason_of_an_end_is_named_as_anthropic_does() {
    let server = Server::saying("one, two, three").await;
    let ended = async |extra| {
        let message = server.ask(extra).await.json();
        let text = message["content"][0]["text"].clone();
        (
            text,
            message["stop_reason"].clone(),
            message["stop_sequence"].clone(),
        )
    };
    assert_eq!(
        ended(json!({"stop_sequences": ["x", ", thr"]})).await,
        (json!("one, two"), json!("stop_sequence"), json!(", thr"))
    );
    assert_eq!(
        ended(json!({"max_tokens": 3})).await,
        (json!("one"), json!("max_tokens"), Value::Null)
    );
    // An answer goes on from what its beginning says.
    let begun = json!([
        {"role": "user", "content": "hello"}, {"role": "assistant", "content": "zero, "},
    ]);
    assert_eq!(
        ended(json!({"messages": begun})).await,
        (json!("one, two, three"), json!("end_turn"), Value::Null)
    );
}

#[tokio::test]
async fn a_stream_has_anthropics_events_in_their_order() {
    let server = Server::saying("Hé\n").await;
    let reply = server.ask(json!({"stream": true})).await;
    assert_eq!(reply.headers["content-type"], "text/event-stream");
    assert_eq!(reply.headers["request-id"], "r");
    let events = reply.events();
    let kinds: Vec<&str> = events
        .iter()
        .map(|event| event["type"].as_str().unwrap())
        .collect();
    assert_eq!(kinds[..3], ["message_start", "ping", "content_block_start"]);
    let (deltas, end) = kinds[3..].split_at(kinds.len() - 6);
    assert!(
        deltas.iter().all(|kind| *kind == "content_block_delta"),
        "{kinds:?}"
    );
    assert_eq!(end, ["content_block_stop", "message_delta", "message_stop"]);
    let begun = &events[0]["message"];
    assert_eq!(
        (&begun["content"], &begun["stop_reason"]),
        (&json!([]), &Value::Null)
    );
    assert_eq!(begun["usage"]["output_tokens"], 0);
    let text: String = events
        .iter()
        .filter_map(|event| event["delta"]["text"].as_str())
        .collect();
    assert_eq!(text, "Hé\n");
    let last = &events[events.len() - 2];
    assert_eq!(
        last["delta"],
        json!({"stop_reason": "end_turn", "stop_sequence": null})
    );
    let whole = server.ask(json!({})).await.json();
    assert_eq!(last["usage"], whole["usage"]);
    assert_eq!(
        begun["usage"]["input_tokens"],
        whole["usage"]["input_tokens"]
    );
}

#[tokio::test]
async fn a_stream_that_fails_ends_with_the_error() {
    let script = Script::endless(0, 1).with_fault(6, Fault::FailSequence);
    let server = Server::start(script, Config::default()).await;
    let reply = server.ask(json!({"stream": true})).await;
    let events = reply.events();
    let last = events.last().expect("an event");
    assert_eq!(
        (&last["type"], &last["request_id"]),
        (&json!("error"), &json!("r"))
    );
    assert_eq!(last["error"]["type"], "api_error", "{last}");
}

#[tokio::test]
async fn refusals_have_anthropics_shape_and_names() {
    let server = Server::saying("x").await;
    let image = json!([{"type": "text", "text": "see"}, {"type": "image", "source": {}}]);
    let used = json!([{"type": "tool_use", "id": "t", "name": "f", "input": {}}]);
    let of = |content: &Value| json!({"messages": [{"role": "user", "content": content}]});
    let long = json!({"stop_sequences": ["x".repeat(257)]});
    for (extra, param) in [
        (json!({"max_tokens": null}), "max_tokens"),
        (json!({"max_tokens": 0}), "max_tokens"),
        (json!({"temperature": "hot"}), "temperature"),
        (json!({"temperature": -1}), "temperature"),
        (long, "stop_sequences"),
        (of(&image), "messages[0].content[1].type"),
        (of(&used), "messages[0].content[0].type"),
        (json!({"tools": [{"name": "f"}]}), "tools[0].input_schema"),
        (json!({"tool_choice": {"type": "any"}}), "tools"),
        (
            json!({"tools": [{"name": "a b", "input_schema": {}}]}),
            "tools",
        ),
        (
            json!({"tools": [{"name": "f", "input_schema": {}}],
                   "tool_choice": {"type": "tool", "name": "g"}}),
            "tool_choice",
        ),
        (json!({"thinking": {"type": "deep"}}), "thinking.type"),
        (json!({"temprature": 1}), "temprature"),
        (json!({"kv_budget": 3}), "kv_budget"),
    ] {
        let reply = server.ask(extra.clone()).await;
        let (status, kind, _, named) = reply.error();
        assert_eq!((status, named), (400, json!(param)), "{extra}");
        assert_eq!(kind, "invalid_request_error", "{extra}");
        let error = &reply.json()["error"];
        let last = param.rsplit('.').next().unwrap();
        let message = error["message"].as_str().unwrap();
        assert!(message.contains(last), "{message}: {param}");
        assert_eq!(reply.headers["content-type"], "application/json");
    }
    let other = server.ask(json!({"model": "other"})).await;
    let expected = (
        404,
        json!("not_found_error"),
        json!("model_not_found"),
        json!("model"),
    );
    assert_eq!(other.error(), expected);
}

#[tokio::test]
async fn what_is_refused_before_or_behind_a_body_has_anthropics_shape_too() {
    let server = Server::saying("x").await;
    let counted = server
        .count(json!({"model": "other", "messages": []}))
        .await;
    assert_eq!(counted.error().0, 404);
    let counted = server.count(json!({"messages": [], "max_tokens": 3})).await;
    assert_eq!(counted.error().3, "max_tokens");
    let counted = server.count(json!({"messages": []})).await;
    assert_eq!(counted.error().2, "empty_prompt");
    let broken = Request::post("/v1/messages").body(Body::from("{")).unwrap();
    assert_eq!(server.send(broken).await.error().2, "invalid_body");
    let get = Request::get("/v1/messages").body(Body::empty()).unwrap();
    let get = server.send(get).await;
    assert_eq!(
        (get.error().0, &get.headers["allow"]),
        (405, &axum::http::HeaderValue::from_static("POST"),)
    );
    server.coordinator.service().driver.drain().await;
    let late = server.ask(json!({})).await;
    assert_eq!(late.error().1, "overloaded_error");
    assert_eq!(late.headers["retry-after"], "1");
}

/// Anthropic's clients ask for models where OpenAI's do, and read other objects.
#[tokio::test]
async fn models_have_the_shape_that_their_client_reads() {
    let server = Server::saying("x").await;
    let get = async |path: &str, is_theirs: bool| {
        let mut request = Request::get(path);
        if is_theirs {
            request = request.header("anthropic-version", "2023-06-01");
        }
        server.send(request.body(Body::empty()).unwrap()).await
    };
    let list = get("/v1/models", true).await.json();
    assert_eq!(
        (&list["has_more"], &list["last_id"]),
        (&json!(false), &json!("fake"))
    );
    let model = &list["data"][0];
    assert_eq!(
        (&model["type"], &model["id"]),
        (&json!("model"), &json!("fake"))
    );
    assert_eq!(get("/v1/models/fake", true).await.json(), *model);
    let other = get("/v1/models/other", true).await;
    assert_eq!(other.error().1, "not_found_error");
    assert_eq!(
        get("/v1/models", false).await.json()["data"][0]["object"],
        "model"
    );
    let other = get("/v1/models/other", false).await.json();
    assert_eq!(other["error"]["type"], "invalid_request_error");
}

#[tokio::test]
async fn a_request_without_a_key_is_told_so_in_anthropics_shape() {
    // sha256("secret")
    let line = "a:2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";
    let config = Config {
        keys: Some(Arc::new(ApiKeys::parse(line).unwrap())),
        ..Config::default()
    };
    let server = Server::start(Script::saying("x", 0, 1), config).await;
    let refused = server.ask(json!({})).await;
    let (status, kind, code, _) = refused.error();
    assert_eq!(
        (status, kind, code),
        (401, json!("authentication_error"), json!("invalid_api_key"),)
    );
    let request = Request::post("/v1/messages").header("x-api-key", "secret");
    let body = Body::from(asking(json!({})).to_string());
    let taken = server.send(request.body(body).unwrap()).await;
    assert_eq!(taken.status, StatusCode::OK, "{taken:?}");
}

/// What is marked is kept from the first request on, whatever the question was.
#[tokio::test]
async fn a_marked_beginning_is_read_once() {
    let book = "A long book. ".repeat(20);
    let read = async |is_marked: bool| {
        let script = Script::saying("x", 0, 1).keeping(64 << 20);
        let server = Server::start(script, Config::default()).await;
        let mark = if is_marked {
            json!({"type": "ephemeral", "ttl": "1h"})
        } else {
            Value::Null
        };
        let mut cached = Vec::new();
        for question in ["Who wrote it, and when was that?", "Why?"] {
            let content = json!([
                {"type": "text", "text": book, "cache_control": mark},
                {"type": "text", "text": question},
            ]);
            let reply = server.ask(json!({"messages": [{"role": "user", "content": content}]}));
            let usage = reply.await.json()["usage"].clone();
            let read = usage["cache_read_input_tokens"].as_u64().unwrap();
            let all = read + usage["input_tokens"].as_u64().unwrap();
            assert!(all > 260, "{usage}");
            cached.push(read);
        }
        cached
    };
    let marked = read(true).await;
    assert_eq!(marked[0], 0);
    // The prompt up to the mark has 276 tokens or so, and strides are of 16.
    assert!(marked[1] >= 256, "{marked:?}");
    let plain = read(false).await;
    assert!(plain[1] < marked[1], "{plain:?} and {marked:?}");
}
