mod leadership;

use std::sync::Arc;
use std::time::Duration;

use palimpsest_proto::internal::v1::worker_server::WorkerServer;
use palimpsest_proto::v1::generate_event::Event;
use palimpsest_proto::v1::generate_request::Input;
use palimpsest_proto::v1::{GenerateRequest, Stopping};
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;

use super::*;
use crate::Coordinator;
use crate::config::Config;
use crate::driver::Readiness;
use crate::executor::fake::{FakeRank, Fault, Script};

fn config() -> Config {
    Config {
        beat_limit: Duration::from_millis(300),
        join_limit: Duration::from_secs(5),
        step_limit: Duration::from_secs(5),
        regroup_limit: Duration::from_secs(20),
        ..Config::default()
    }
}

/// A rank's process, that is a runtime of its own: killing it closes its connections.
struct Process {
    address: String,
    runtime: Option<Runtime>,
}

impl Process {
    /// Where it was.
    fn kill(self) -> String {
        self.address.clone()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.runtime
            .take()
            .into_iter()
            .for_each(Runtime::shutdown_background);
    }
}

fn start(rank: &FakeRank, address: &str) -> Process {
    let listener = std::net::TcpListener::bind(address).expect("a port");
    listener.set_nonblocking(true).expect("a socket");
    let address = listener.local_addr().expect("an address").to_string();
    let server = Server::builder().add_service(WorkerServer::new(rank.clone()));
    let runtime = Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a thread");
    runtime.spawn(async move {
        let listener = TcpListener::from_std(listener).expect("a listener");
        server
            .serve_with_incoming(TcpListenerStream::new(listener))
            .await
            .expect("a server")
    });
    Process {
        address,
        runtime: Some(runtime),
    }
}

const ANYWHERE: &str = "127.0.0.1:0";

async fn serve(ranks: &[FakeRank]) -> (Coordinator, Vec<Process>) {
    let mut processes = Vec::new();
    for rank in ranks {
        processes.push(start(rank, ANYWHERE));
    }
    let (coordinator, _) = lead(&processes).await;
    (coordinator, processes)
}

/// A coordinator that takes the lead of ranks, and its keeper.
async fn lead(processes: &[Process]) -> (Coordinator, JoinHandle<Result<(), FormError>>) {
    let members = Arc::new(StaticMembers::new(
        processes.iter().map(|p| p.address.clone()).collect(),
    ));
    let mut lead = Lead::new();
    let Formed {
        epoch,
        executor,
        ranks,
        watchers,
    } = form(&*members, &config(), &mut lead)
        .await
        .expect("a group");
    let config = Config {
        first_epoch: epoch.0,
        ..config()
    };
    let coordinator =
        Coordinator::build(config.clone(), Box::new(executor), ranks).expect("a model");
    let keeper = tokio::spawn(keep(
        coordinator.clone(),
        config,
        Kept {
            members,
            lead,
            watchers,
        },
    ));
    assert!(coordinator.ready().await);
    (coordinator, keeper)
}

async fn text(
    coordinator: &Coordinator,
    prompt: &str,
) -> Result<String, palimpsest_proto::error::RequestError> {
    let stopping = Some(Stopping {
        max_tokens: Some(60),
        ..Default::default()
    });
    let request = GenerateRequest {
        input: Some(Input::Text(prompt.into())),
        stopping,
        ..Default::default()
    };
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
    let address = processes.pop().expect("two ranks").kill();
    sleep(Duration::from_millis(300)).await;
    let again = FakeRank::new(script(1));
    let _process = start(&again, &address);
    assert_eq!(asked.await.expect("no panic").expect("an answer"), ANSWER);
    assert!(!again.plans().is_empty(), "the group has the new rank");
    assert!(
        again
            .plans()
            .iter()
            .all(|plan| plan.epoch == again.info().epoch && plan.epoch > 1)
    );
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
    assert!(
        begin.elapsed() >= Duration::from_millis(200),
        "a beat may be late"
    );
    ranks[1].set_silent(false);
    settles(&coordinator, Readiness::Ready).await;
    assert_eq!(text(&coordinator, "b").await.expect("an answer"), ANSWER);
}

#[tokio::test]
async fn a_slow_rank_is_not_dead() {
    let slow = Script::saying(ANSWER, 1, 2).with_step_time(Duration::from_millis(700));
    let ranks = [FakeRank::new(script(0)), FakeRank::new(slow)];
    let (coordinator, _processes) = serve(&ranks).await;
    let stopping = Some(Stopping {
        max_tokens: Some(2),
        ..Default::default()
    });
    let request = GenerateRequest {
        input: Some(Input::Text("a".into())),
        stopping,
        ..Default::default()
    };
    let mut answer = coordinator
        .service()
        .generate(request, None)
        .await
        .expect("admitted");
    while let Some(event) = answer.next().await {
        event.expect(
            "no failure: steps of 700 ms outlast the limit of 300 ms for beats, which go on",
        );
    }
    assert_eq!(ranks[0].info().epoch, 1);
}

#[tokio::test]
async fn an_incomplete_group_names_who_is_missing_and_an_odd_one_who_is_odd() {
    let here = start(&FakeRank::new(script(0)), ANYWHERE);
    let nobody = {
        let listener = std::net::TcpListener::bind(ANYWHERE).expect("a port");
        listener.local_addr().expect("an address").to_string()
    };
    let members = StaticMembers::new(vec![here.address.clone(), nobody.clone()]);
    let error = form(&members, &config(), &mut Lead::new())
        .await
        .expect_err("rank 1 is missing")
        .to_string();
    assert!(
        error.contains(&format!("rank 1 ({nobody})")) && error.contains("refused"),
        "{error}"
    );
    let odd = start(&FakeRank::new(Script::saying("x", 1, 3)), ANYWHERE);
    let members = StaticMembers::new(vec![here.address.clone(), odd.address.clone()]);
    let error = form(&members, &config(), &mut Lead::new())
        .await
        .expect_err("rank 1 is of a group of 3")
        .to_string();
    assert!(error.contains("rank 1 of 3"), "{error}");
}

#[tokio::test]
async fn a_step_that_fails_on_one_rank_forms_the_group_anew() {
    let ranks = [
        FakeRank::new(script(0)),
        FakeRank::new(script(1).with_fault(5, Fault::Error)),
    ];
    let (coordinator, _processes) = serve(&ranks).await;
    assert_eq!(text(&coordinator, "a").await.expect("an answer"), ANSWER);
    assert_eq!(ranks[0].info().epoch, 2);
}

/// The loss of a group that is found before its first step is over is not missed by who replaces
/// it.
#[tokio::test]
async fn groups_that_are_lost_as_soon_as_they_form_are_replaced_until_one_lasts() {
    let ranks = [
        FakeRank::new(script(0)),
        FakeRank::new(script(1).with_fault(5, Fault::Error)),
    ];
    let (coordinator, _processes) = serve(&ranks).await;
    // The group fails in the course of the answer; the next ones are dead when they are given to
    // the driver.
    ranks[0].hang_up(2);
    let answer = tokio::time::timeout(Duration::from_secs(20), text(&coordinator, "a")).await;
    assert_eq!(
        answer.expect("no request hangs").expect("an answer"),
        ANSWER
    );
    assert!(ranks[0].info().epoch >= 3, "{}", ranks[0].info().epoch);
}

#[tokio::test]
async fn a_request_that_comes_while_a_lost_group_is_replaced_waits_for_the_next() {
    let ranks = [FakeRank::new(script(0)), FakeRank::new(script(1))];
    let (coordinator, mut processes) = serve(&ranks).await;
    let address = processes.pop().expect("two ranks").kill();
    // An idle group is found lost by its beats; a step finds it as well.
    let first = text(&coordinator, "a");
    let late = async {
        sleep(Duration::from_millis(500)).await;
        text(&coordinator, "b").await
    };
    let repair = async {
        sleep(Duration::from_millis(900)).await;
        start(&FakeRank::new(script(1)), &address)
    };
    let (first, late, _process) = tokio::join!(first, late, repair);
    assert_eq!(
        (first.expect("an answer"), late.expect("an answer")),
        (ANSWER.to_owned(), ANSWER.to_owned())
    );
}

async fn settles(coordinator: &Coordinator, wanted: Readiness) {
    let mut readiness = coordinator.service().driver.readiness();
    let settled = tokio::time::timeout(
        Duration::from_secs(10),
        readiness.wait_for(|now| *now == wanted),
    )
    .await;
    settled
        .unwrap_or_else(|_| panic!("not {wanted:?}"))
        .expect("a driver");
    let figure = format!(
        "palimpsest_group_ready {}",
        u8::from(wanted == Readiness::Ready)
    );
    let metrics = coordinator.service().metrics.encode();
    assert!(
        metrics.lines().any(|line| line == figure),
        "{figure} is missing in\n{metrics}"
    );
}

#[tokio::test]
async fn a_group_at_rest_that_loses_a_rank_is_not_ready_until_the_next_one_serves() {
    let ranks = [FakeRank::new(script(0)), FakeRank::new(script(1))];
    let (coordinator, mut processes) = serve(&ranks).await;
    settles(&coordinator, Readiness::Ready).await;
    let address = processes.pop().expect("two ranks").kill();
    settles(&coordinator, Readiness::Lost).await;
    let _process = start(&FakeRank::new(script(1)), &address);
    settles(&coordinator, Readiness::Ready).await;
    assert_eq!(text(&coordinator, "a").await.expect("an answer"), ANSWER);
}

#[tokio::test]
async fn a_coordinator_whose_ranks_follow_another_has_no_group_and_gives_up() {
    let ranks = [FakeRank::new(script(0)), FakeRank::new(script(1))];
    let mut processes = Vec::new();
    for rank in &ranks {
        processes.push(start(rank, ANYWHERE));
    }
    let (former, keeper) = lead(&processes).await;
    assert_eq!(text(&former, "a").await.expect("an answer"), ANSWER);
    let (next, _) = lead(&processes).await;
    let kept = tokio::time::timeout(Duration::from_secs(10), keeper)
        .await
        .expect("it gives up")
        .expect("no panic");
    assert!(
        matches!(kept, Err(FormError::Superseded { term: 2 })),
        "{kept:?}"
    );
    assert_eq!(text(&next, "b").await.expect("an answer"), ANSWER);
    assert_eq!(
        *former.service().driver.readiness().borrow(),
        Readiness::Lost
    );
    // What waits for its group is told so when it ends.
    let waiting = tokio::spawn({
        let former = former.clone();
        async move { text(&former, "c").await }
    });
    sleep(Duration::from_millis(50)).await;
    former.service().driver.drain().await;
    let error = waiting.await.expect("no panic").expect_err("no group");
    assert_eq!(error.reason, palimpsest_proto::error::Reason::Draining);
    let epochs: Vec<u64> = ranks[0].plans().iter().map(|plan| plan.epoch).collect();
    assert!(
        epochs.is_sorted() && epochs.last() == Some(&2),
        "no plan of the former group comes late: {epochs:?}"
    );
}
