//! The rules of sessions, over a fake rank.

mod chat;
mod plain;
mod random;
mod rules;
mod storage;

use std::sync::Arc;
use std::time::Duration;

use palimpsest_proto::error::{Reason, RequestError};
use palimpsest_proto::v1::generate_event::Event;
use palimpsest_proto::v1::generate_request::Input;
use palimpsest_proto::v1::{
    AppendRequest, Chat, ChatMessage, CreateSessionRequest, Finished, GenerateRequest, KvContract,
    Session, SessionState, Stopping, TokenIds, append_request,
};
use palimpsest_store::Store;

use super::Limits;
use super::log::Log;
use super::record::Record;
use crate::answer::Answer;
use crate::executor::ChannelExecutor;
use crate::executor::fake::{FakeRank, Script};
use crate::keys::{ApiKeys, Tenant};
use crate::place::{Clock, Place};
use crate::service::{Call, Service};
use crate::{Config, Coordinator};

/// A service over a fake rank.
struct Server {
    coordinator: Coordinator,
}

/// What came of a request.
#[derive(Debug)]
struct Said {
    text: String,
    finished: Finished,
}

impl Server {
    async fn start(limits: Limits) -> Self {
        Self::with(Script::endless(0, 1), limits).await
    }

    async fn with(script: Script, limits: Limits) -> Self {
        let rank = FakeRank::new(script);
        let config = Config {
            sessions: limits,
            ..Config::default()
        };
        let executor = Box::new(ChannelExecutor::new(vec![rank.spawn()], config.step_limit));
        let coordinator = Coordinator::build(config, executor, vec![rank.info()]).unwrap();
        assert!(coordinator.ready().await);
        Self { coordinator }
    }

    fn service(&self) -> &Service {
        self.coordinator.service()
    }

    async fn create(&self, id: &str) -> Session {
        let asked = named(id);
        let made = self.service().create_session(&Call::default(), asked).await;
        made.unwrap()
    }

    async fn show(&self, id: &str) -> Result<Session, RequestError> {
        self.service().sessions.show(None, id).await
    }

    async fn begin(&self, request: GenerateRequest) -> Result<Answer, RequestError> {
        self.service().generate(request, None).await
    }

    async fn generate(&self, request: GenerateRequest) -> Result<Said, RequestError> {
        ended(self.begin(request).await?).await
    }

    async fn append(&self, id: &str, input: append_request::Input) -> Result<u64, RequestError> {
        let asked = AppendRequest {
            session_id: id.into(),
            input: Some(input),
            ..Default::default()
        };
        let done = self.service().append(&Call::default(), asked).await?;
        assert_eq!(done.usage.unwrap().generated_tokens, 0);
        Ok(done.session.unwrap().tokens)
    }

    /// The log as its record has it.
    async fn log(&self, id: &str) -> Log {
        self.record(id).await.log
    }

    async fn record(&self, id: &str) -> Record {
        self.service().sessions.open().await.unwrap();
        let records = &self.service().sessions.records;
        let hold = records.hold(None, id).await.unwrap();
        records.read(&hold).await.unwrap()
    }
}

/// Reads an answer to its end.
async fn ended(mut answer: Answer) -> Result<Said, RequestError> {
    let mut text = String::new();
    while let Some(event) = answer.next().await {
        match event?.event {
            Some(Event::Delta(delta)) => text.push_str(&delta.text),
            Some(Event::Finished(finished)) => return Ok(Said { text, finished }),
            _ => {}
        }
    }
    panic!("an answer without an end");
}

fn named(id: &str) -> CreateSessionRequest {
    CreateSessionRequest {
        session_id: id.into(),
        ..Default::default()
    }
}

fn request(id: &str, input: Option<Input>, max_tokens: u32) -> GenerateRequest {
    GenerateRequest {
        session_id: id.into(),
        input,
        stopping: Some(Stopping {
            max_tokens: Some(max_tokens),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn text(text: &str) -> Option<Input> {
    Some(Input::Text(text.into()))
}

fn message(role: &str, content: &str) -> ChatMessage {
    ChatMessage::new(role, content)
}

fn user(content: &str) -> Chat {
    Chat {
        messages: vec![message("user", content)],
        ..Default::default()
    }
}

fn reason<T: std::fmt::Debug>(found: Result<T, RequestError>) -> Reason {
    found.unwrap_err().reason
}

/// Token ids of a text: the fake tokenizer's are bytes, but for a few merges.
fn ids(server: &Server, text: &str) -> Vec<u32> {
    let tokenizer = &server.service().model.tokenizer;
    tokenizer.encode(text, false).unwrap()
}

/// The call of a tenant of this name.
fn of(name: &str) -> Call {
    // sha256("secret")
    let secret = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";
    let keys = ApiKeys::parse(&format!("{name}:{secret}")).unwrap();
    let tenant: Arc<Tenant> = keys.bearer(Some("Bearer secret")).unwrap();
    Call {
        tenant: Some(tenant),
        ..Call::default()
    }
}
