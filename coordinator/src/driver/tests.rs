//! The driver with everything above and below it, over fake ranks, under paused time.

mod answers;
mod groups;
mod guides;
mod limits;
mod pace;
mod reuse;
mod suspects;

use std::time::Duration;

use palimpsest_proto::error::RequestError;
use palimpsest_proto::v1::generate_event::Event;
use palimpsest_proto::v1::generate_request::Input;
use palimpsest_proto::v1::{
    FinishReason, Finished, GenerateEvent, GenerateRequest, KvContract, Sampling, Started,
    Stopping, TokenIds,
};
use tokio::time::{Instant, sleep, timeout};

use super::*;
use crate::Coordinator;
use crate::admission::Queued;
use crate::answer::Answer;
use crate::executor::ChannelExecutor;
use crate::executor::fake::{FakeRank, Fault, Script};

const STEP: Duration = Duration::from_millis(10);

fn config() -> Config {
    Config {
        step_limit: Duration::from_secs(5),
        ring_tokens: 8,
        ..Config::default()
    }
}

fn executor(ranks: &[FakeRank], config: &Config) -> Box<dyn Executor> {
    Box::new(ChannelExecutor::new(
        ranks.iter().map(FakeRank::spawn).collect(),
        config.step_limit,
    ))
}

async fn start_with(config: Config, scripts: Vec<Script>) -> (Coordinator, Vec<FakeRank>) {
    let ranks = scripts
        .into_iter()
        .map(|script| FakeRank::new(script.with_step_time(STEP)))
        .collect();
    start_on(config, ranks).await
}

async fn start_on(config: Config, ranks: Vec<FakeRank>) -> (Coordinator, Vec<FakeRank>) {
    let infos = ranks.iter().map(FakeRank::info).collect();
    let coordinator = Coordinator::build(config.clone(), executor(&ranks, &config), infos).unwrap();
    assert!(coordinator.ready().await);
    (coordinator, ranks)
}

fn prompt(tokens: u32, max_tokens: u32) -> GenerateRequest {
    let ids = (0..tokens).map(|i| 97 + i % 26).collect();
    let stopping = Stopping {
        max_tokens: Some(max_tokens),
        ..Default::default()
    };
    let input = Some(Input::TokenIds(TokenIds { ids }));
    GenerateRequest {
        input,
        stopping: Some(stopping),
        ..Default::default()
    }
}

struct Whole {
    started: Started,
    text: String,
    finished: Finished,
}

async fn events(answer: &mut Answer) -> Result<Vec<GenerateEvent>, RequestError> {
    let mut events = Vec::new();
    while let Some(event) = answer.next().await {
        events.push(event?);
    }
    Ok(events)
}

async fn whole(answer: &mut Answer) -> Result<Whole, RequestError> {
    let events = events(answer).await?;
    let (mut started, mut text, mut finished) = (None, String::new(), None);
    for (number, event) in events.into_iter().enumerate() {
        assert_eq!(event.sequence_number, number as u64);
        match event.event.unwrap() {
            Event::Started(event) => assert!(started.replace(event).is_none() && number == 0),
            Event::PromptLogprobs(_) | Event::Embedding(_) | Event::RetentionMap(_) => {}
            Event::Delta(delta) => text.push_str(&delta.text),
            Event::Finished(event) => assert!(finished.replace(event).is_none()),
        }
    }
    Ok(Whole {
        started: started.unwrap(),
        text,
        finished: finished.unwrap(),
    })
}

async fn generate(
    coordinator: &Coordinator,
    request: GenerateRequest,
) -> Result<Whole, RequestError> {
    whole(&mut coordinator.service().generate(request, None).await?).await
}

async fn first_delta(answer: &mut Answer) {
    loop {
        if let Some(Event::Delta(_)) = answer.next().await.unwrap().unwrap().event {
            return;
        }
    }
}

/// Starts a request that is taken.
async fn ask(coordinator: &Coordinator, request: GenerateRequest) -> Answer {
    let answer = coordinator.service().generate(request, None).await;
    answer.unwrap()
}

/// Why an answer ended early.
async fn failure(answer: &mut Answer) -> Reason {
    whole(answer).await.err().unwrap().reason
}

/// Why a request came to nothing, before it started or after.
async fn refusal(coordinator: &Coordinator, request: GenerateRequest) -> Reason {
    generate(coordinator, request).await.err().unwrap().reason
}

/// Gives the coordinator a group of one rank, in `epoch`.
async fn take_over(coordinator: &Coordinator, rank: &FakeRank, epoch: u64) {
    let executor = executor(std::slice::from_ref(rank), &config());
    let taken = coordinator.replace(executor, vec![rank.info()], epoch);
    taken.await.unwrap();
}

/// Waits until the coordinator has no group.
async fn until_lost(coordinator: &Coordinator) {
    let mut readiness = coordinator.service().driver.readiness();
    let lost = readiness.wait_for(|readiness| *readiness == Readiness::Lost);
    lost.await.unwrap();
}
