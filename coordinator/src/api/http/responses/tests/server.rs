//! A service over a fake rank that notes what it reads, and requests to it.

use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::Request;
use axum::http::StatusCode;
use serde_json::{Value, json};
use tonic::codegen::Service as _;

use super::super::super::{HttpLimits, router};
use crate::executor::ChannelExecutor;
use crate::executor::fake::{FakeRank, IM_END, Script};
use crate::{Config, Coordinator};

pub struct Server {
    pub coordinator: Coordinator,
    router: Router,
    prompts: Arc<Mutex<Vec<Vec<u32>>>>,
}

#[derive(Debug)]
pub struct Reply {
    pub status: StatusCode,
    pub text: String,
}

impl Reply {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Status, code and parameter of an error.
    pub fn error(&self) -> (u16, Value, Value) {
        let error = &self.json()["error"];
        (
            self.status.as_u16(),
            error["code"].clone(),
            error["param"].clone(),
        )
    }

    /// The objects of server-sent events, each under the name that stands in it.
    pub fn events(&self) -> Vec<Value> {
        let events = self.text.split_terminator("\n\n").map(|event| {
            let (name, data) = event.split_once('\n').expect("two lines");
            let data = data.strip_prefix("data: ").expect("data");
            let data: Value = serde_json::from_str(data).expect("JSON");
            assert_eq!(name.strip_prefix("event: "), data["type"].as_str());
            data
        });
        let events: Vec<_> = events.collect();
        for (number, event) in events.iter().enumerate() {
            assert_eq!(event["sequence_number"], number);
        }
        events
    }
}

impl Server {
    /// A model that says `text`.
    pub async fn saying(text: &'static str, config: Config) -> Self {
        Self::with(text, config, |script| script).await
    }

    pub async fn with(
        text: &'static str,
        config: Config,
        change: impl FnOnce(Script) -> Script,
    ) -> Self {
        let prompts: Arc<Mutex<Vec<Vec<u32>>>> = Arc::default();
        let noted = prompts.clone();
        let answer = move |tokens: &[u32], prompt: usize| {
            if tokens.len() == prompt {
                let mut noted = noted.lock().unwrap_or_else(PoisonError::into_inner);
                noted.push(tokens.to_vec());
            }
            let byte = text.as_bytes().get(tokens.len() - prompt);
            byte.map_or(IM_END, |&byte| u32::from(byte))
        };
        let script = change(Script::answering(Arc::new(answer), 0, 1));
        let rank = FakeRank::new(script);
        let executor = Box::new(ChannelExecutor::new(vec![rank.spawn()], config.step_limit));
        let coordinator = Coordinator::build(config, executor, vec![rank.info()]).unwrap();
        assert!(coordinator.ready().await);
        prompts.lock().unwrap().clear();
        let router = router(coordinator.service().clone(), HttpLimits::default());
        Self {
            coordinator,
            router,
            prompts,
        }
    }

    /// The prompts that the rank has read, as text.
    pub fn prompts(&self) -> Vec<String> {
        let tokenizer = &self.coordinator.service().model.tokenizer;
        let text = |ids: &Vec<u32>| {
            let bytes = ids.iter().flat_map(|&id| tokenizer.bytes(id)).collect();
            String::from_utf8(bytes).unwrap()
        };
        self.prompts.lock().unwrap().iter().map(text).collect()
    }

    /// Responses that are kept.
    pub fn kept(&self) -> usize {
        self.coordinator.service().responses.held().0
    }

    pub async fn open(&self, request: Request) -> axum::response::Response {
        let mut router = self.router.clone();
        router.call(request).await.expect("it is infallible")
    }

    pub async fn send(&self, request: Request) -> Reply {
        let (parts, body) = self.open(request).await.into_parts();
        let bytes = to_bytes(body, usize::MAX).await.unwrap();
        // A service that waits for nobody holds nothing of a request that was answered.
        assert_eq!(self.coordinator.service().budget.held(), 0);
        Reply {
            status: parts.status,
            text: String::from_utf8(bytes.to_vec()).unwrap(),
        }
    }

    /// `POST /v1/responses`.
    pub async fn create(&self, body: Value) -> Reply {
        self.send(post_of(&body, "")).await
    }

    pub async fn call(&self, method: &str, path: &str) -> Reply {
        let request = Request::builder().method(method).uri(path);
        self.send(request.body(Body::empty()).unwrap()).await
    }

    /// A response that was answered with 200, and its name.
    pub async fn created(&self, body: Value) -> (String, Value) {
        let reply = self.create(body).await;
        assert_eq!(reply.status, StatusCode::OK, "{reply:?}");
        let response = reply.json();
        (response["id"].as_str().unwrap().to_owned(), response)
    }
}

/// A request for a response, with a key if it is not empty.
pub fn post_of(body: &Value, key: &str) -> Request {
    let mut request = Request::post("/v1/responses");
    if !key.is_empty() {
        request = request.header("authorization", format!("Bearer {key}"));
    }
    request.body(Body::from(body.to_string())).unwrap()
}

/// A body that goes on from a response.
pub fn after(previous: &str, input: &str) -> Value {
    json!({"input": input, "previous_response_id": previous})
}
