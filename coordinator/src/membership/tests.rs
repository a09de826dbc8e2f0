use std::{sync::Arc, time::Duration};

use palimpsest_proto::{
    internal::v1::worker_server::WorkerServer,
    v1::{GenerateRequest, Stopping, generate_event::Event, generate_request::Input},
};
use tokio::{
    net::TcpListener,
    task::JoinHandle,
    time::{Instant, sleep},
};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;

use super::*;
use crate::{
    Coordinator,
    config::Config,
    executor::fake::{FakeRank, Fault, Script},
};

fn config() -> Config {
    Config {
        beat_limit: Duration::from_millis(300),
        join_limit: Duration::from_secs(5),
        step_limit: Duration::from_secs(5),
        regroup_limit: Duration::from_secs(20),
        ..Config::default()
    }
}

/// A rank's process: killing it closes its connections.
struct Process {
    address: String,
    server: JoinHandle<()>,
}

async fn start(rank: &FakeRank, address: &str) -> Process {
    let listener = TcpListener::bind(address).await.expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    let server = Server::builder().add_service(WorkerServer::new(rank.clone()));
    let serve = async move { server.serve_with_incoming(TcpListenerStream::new(listener)).await.expect("a server") };
    Process { address, server: tokio::spawn(serve) }
}

const ANYWHERE: &str = "127.0.0.1:0";

async fn serve(ranks: &[FakeRank]) -> (Coordinator, Vec<Process>) {
    let mut processes = Vec::new();
    for rank in ranks {
        processes.push(start(rank, ANYWHERE).await);
    }
    let members = Arc::new(StaticMembers::new(processes.iter().map(|p| p.address.clone()).collect()));
    let Formed { epoch, executor, ranks, watchers } = form(&*members, &config()).await.expect("a group");
    let config = Config { first_epoch: epoch.0, ..config() };
    let coordinator = Coordinator::build(config.clone(), Box::new(executor), ranks).expect("a model");
    tokio::spawn(keep(coordinator.clone(), members, config, watchers));
    assert!(coordinator.ready().await);
    (coordinator, processes)
}

async fn text(coordinator: &Coordinator, prompt: &str) -> Result<String, palimpsest_proto::error::RequestError> {
    let stopping = Some(Stopping { max_tokens: Some(60), ..Default::default() });
    let request = GenerateRequest { input: Some(Input::Text(prompt.into())), stopping, ..Default::default() };
    let mut answer = coordinator.service().generate(request, None).await?;
    let mut text = String::new();
    while let Some(event) = answer.next().await {
        if let Some(Event::Delta(delta)) = event?.event {
            text.push_str(&delta.text);
        }
    }
    Ok(text)
}

const ANSWER: &str = "it goes on as if nothing had happened";

fn script(rank: u32) -> Script {
    Script::saying(ANSWER, rank, 2).with_step_time(Duration::from_millis(10))
}

#[tokio::test]
async fn a_rank_that_dies_and_comes_back_costs_no_request() {
    let ranks = [FakeRank::new(script(0)), FakeRank::new(script(1))];
    let (coordinator, mut processes) = serve(&ranks).await;
    let asked = {
        let coordinator = coordinator.clone();
        tokio::spawn(async move { text(&coordinator, "go on").await })
    };
    sleep(Duration::from_millis(120)).await;
    let dead = processes.pop().expect("two ranks");
    dead.server.abort();
    let _ = dead.server.await;
    sleep(Duration::from_millis(300)).await;
    let again = FakeRank::new(script(1));
    let _process = start(&again, &dead.address).await;
    assert_eq!(asked.await.expect("no panic").expect("an answer"), ANSWER);
    assert!(again.plans().iter().all(|plan| plan.epoch == again.info().epoch && plan.epoch > 1));
}

#[tokio::test]
async fn a_rank_that_hangs_is_found_by_its_silence() {
    let ranks = [FakeRank::new(script(0)), FakeRank::new(script(1))];
    let (coordinator, _processes) = serve(&ranks).await;
    assert_eq!(text(&coordinator, "a").await.expect("an answer"), ANSWER);
    let epoch = ranks[0].info().epoch;
    ranks[1].set_silent(true);
    let begin = Instant::now();
    while ranks[0].info().epoch == epoch {
        assert!(begin.elapsed() < Duration::from_secs(10), "nobody noticed");
        sleep(Duration::from_millis(20)).await;
    }
    assert!(begin.elapsed() >= Duration::from_millis(200), "a beat may be late");
    ranks[1].set_silent(false);
    assert!(coordinator.ready().await);
    assert_eq!(text(&coordinator, "b").await.expect("an answer"), ANSWER);
}

#[tokio::test]
async fn a_slow_rank_is_not_dead() {
    let slow = Script::saying(ANSWER, 1, 2).with_step_time(Duration::from_millis(700));
    let ranks = [FakeRank::new(script(0)), FakeRank::new(slow)];
    let (coordinator, _processes) = serve(&ranks).await;
    let stopping = Some(Stopping { max_tokens: Some(2), ..Default::default() });
    let request = GenerateRequest { input: Some(Input::Text("a".into())), stopping, ..Default::default() };
    let mut answer = coordinator.service().generate(request, None).await.expect("admitted");
    while let Some(event) = answer.next().await {
        event.expect("no failure: steps of 700 ms outlast the limit of 300 ms for beats, which go on");
    }
    assert_eq!(ranks[0].info().epoch, 1);
}

#[tokio::test]
async fn an_incomplete_group_names_who_is_missing_and_an_odd_one_who_is_odd() {
    let here = start(&FakeRank::new(script(0)), ANYWHERE).await;
    let nobody = {
        let listener = TcpListener::bind(ANYWHERE).await.expect("a port");
        listener.local_addr().expect("an address").to_string()
    };
    let members = StaticMembers::new(vec![here.address.clone(), nobody.clone()]);
    let error = form(&members, &config()).await.expect_err("rank 1 is missing").to_string();
    assert!(error.contains(&format!("rank 1 ({nobody})")) && error.contains("refused"), "{error}");
    let odd = start(&FakeRank::new(Script::saying("x", 1, 3)), ANYWHERE).await;
    let members = StaticMembers::new(vec![here.address, odd.address]);
    let error = form(&members, &config()).await.expect_err("rank 1 is of a group of 3").to_string();
    assert!(error.contains("rank 1 of 3"), "{error}");
}

#[tokio::test]
async fn a_step_that_fails_on_one_rank_forms_the_group_anew() {
    let ranks = [FakeRank::new(script(0)), FakeRank::new(script(1).with_fault(5, Fault::Error))];
    let (coordinator, _processes) = serve(&ranks).await;
    assert_eq!(text(&coordinator, "a").await.expect("an answer"), ANSWER);
    assert_eq!(ranks[0].info().epoch, 2);
}

/// The loss of a group that is found before its first step is over is not missed by who replaces it.
#[tokio::test]
async fn groups_that_are_lost_as_soon_as_they_form_are_replaced_until_one_lasts() {
    let ranks = [FakeRank::new(script(0)), FakeRank::new(script(1).with_fault(5, Fault::Error))];
    let (coordinator, _processes) = serve(&ranks).await;
    // The group fails in the course of the answer; the next ones are dead when they are given to the engine.
    ranks[0].hang_up(2);
    let answer = tokio::time::timeout(Duration::from_secs(20), text(&coordinator, "a")).await;
    assert_eq!(answer.expect("no request hangs").expect("an answer"), ANSWER);
    assert!(ranks[0].info().epoch >= 3, "{}", ranks[0].info().epoch);
}

#[tokio::test]
async fn a_request_that_comes_while_a_lost_group_is_replaced_waits_for_the_next() {
    let ranks = [FakeRank::new(script(0)), FakeRank::new(script(1))];
    let (coordinator, mut processes) = serve(&ranks).await;
    let dead = processes.pop().expect("two ranks");
    dead.server.abort();
    let _ = dead.server.await;
    // An idle group is found lost by its beats; a step finds it as well.
    let first = text(&coordinator, "a");
    let late = async {
        sleep(Duration::from_millis(500)).await;
        text(&coordinator, "b").await
    };
    let repair = async {
        sleep(Duration::from_millis(900)).await;
        start(&FakeRank::new(script(1)), &dead.address).await
    };
    let (first, late, _process) = tokio::join!(first, late, repair);
    assert_eq!((first.expect("an answer"), late.expect("an answer")), (ANSWER.to_owned(), ANSWER.to_owned()));
}
