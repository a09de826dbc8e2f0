//! One conformance suite over every way to reach ranks.

use std::time::Duration;

use palimpsest_proto::internal::v1::worker_server::WorkerServer;
use palimpsest_proto::internal::v1::{CacheState, SequenceInit, SequenceStep};
use palimpsest_proto::v1::{HeadRetention, KvContract, Sampling};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Channel, Server};

use super::fake::{FakeRank, Fault, Script};
use super::*;

#[derive(Debug, Clone, Copy)]
enum Transport {
    Channel,
    Grpc,
}

const BOTH: [Transport; 2] = [Transport::Channel, Transport::Grpc];
const LIMIT: Duration = Duration::from_millis(400);

async fn group(transport: Transport, ranks: &[FakeRank]) -> Box<dyn Executor> {
    match transport {
        Transport::Channel => Box::new(ChannelExecutor::new(
            ranks.iter().map(FakeRank::spawn).collect(),
            LIMIT,
        )),
        Transport::Grpc => {
            let mut channels = Vec::new();
            for rank in ranks {
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                let address = format!("http://{}", listener.local_addr().unwrap());
                let server = Server::builder().add_service(WorkerServer::new(rank.clone()));
                tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
                channels.push(
                    Channel::from_shared(address)
                        .unwrap()
                        .connect()
                        .await
                        .unwrap(),
                );
            }
            Box::new(
                GrpcExecutor::connect(channels, LIMIT, watch::channel(None).1)
                    .await
                    .unwrap(),
            )
        }
    }
}

fn ranks(n: u32, fault: Option<(u32, Fault)>) -> Vec<FakeRank> {
    let script = |rank| match fault {
        Some((faulty, fault)) if faulty == rank => Script::endless(rank, n).with_fault(1, fault),
        _ => Script::endless(rank, n),
    };
    (0..n).map(|rank| FakeRank::new(script(rank))).collect()
}

fn plan(step: u64) -> StepPlan {
    let kv = KvContract {
        policy: "window".into(),
        head_budget: "uniform".into(),
        positions: "absolute".into(),
        memory: "none".into(),
        budget: 8,
        sinks: Some(0),
        window: Some(0),
        memory_slots: Some(0),
    };
    let init = SequenceInit {
        kv: Some(kv),
        sampling: Some(Sampling::default()),
        max_tokens: 40,
        prompt_tokens: 4,
        ..Default::default()
    };
    let sequence = SequenceStep {
        sequence: 7,
        init: (step == 1).then_some(init),
        tokens: if step == 1 { vec![1, 2, 3] } else { vec![9] },
        position: if step == 1 { 0 } else { step + 1 },
        sample: true,
        retention_report: step == 1,
        ..Default::default()
    };
    StepPlan {
        epoch: 3,
        step,
        sequences: vec![sequence],
        ..Default::default()
    }
}

#[tokio::test]
async fn all_ranks_get_the_plan_and_their_figures_add_up() {
    for transport in BOTH {
        let ranks = ranks(2, None);
        let mut executor = group(transport, &ranks).await;
        for step in 1..=3 {
            let output = executor.execute(plan(step)).await.unwrap();
            assert_eq!(
                (output.epoch, output.step, output.sequences.len()),
                (3, step, 1)
            );
            let one = &output.sequences[0];
            assert!(one.token.is_some());
            // 2 layers of one KV head on each of 2 ranks; no boundary yet.
            let held = CacheState {
                held_entries: 4 * (2 + step),
                evicted_entries: 0,
                held_bytes: 4 * (2 + step) * 32,
            };
            assert_eq!(one.cache, Some(held));
            if step == 1 {
                let head = |layer, kv_head| HeadRetention {
                    layer,
                    kv_head,
                    positions: vec![0, 1, 2],
                };
                let heads = vec![head(0, 0), head(0, 1), head(1, 0), head(1, 1)];
                assert_eq!(one.retention.as_ref().unwrap().heads, heads);
            }
        }
        assert_eq!(ranks[0].plans(), ranks[1].plans());
    }
}

#[tokio::test]
async fn any_ranks_failure_is_the_groups_and_names_it() {
    type Check = fn(&ExecutorError) -> bool;
    let rows: [(Fault, Check); 5] = [
        (Fault::Error, |error| {
            matches!(
                error,
                ExecutorError::RankError {
                    rank: 1,
                    step: 2,
                    ..
                }
            )
        }),
        (Fault::Hang, |error| {
            matches!(
                error,
                ExecutorError::Timeout {
                    rank: 1,
                    step: 2,
                    ..
                }
            )
        }),
        (Fault::Vanish, |error| {
            matches!(error, ExecutorError::RankGone { rank: 1, .. })
        }),
        (Fault::Diverge, |error| {
            matches!(
                error,
                ExecutorError::Diverged {
                    rank: 1,
                    step: 2,
                    ..
                }
            )
        }),
        (Fault::WrongStep, |error| {
            matches!(
                error,
                ExecutorError::Protocol {
                    rank: 1,
                    step: 2,
                    ..
                }
            )
        }),
    ];
    for transport in BOTH {
        for (fault, expected) in rows {
            let mut executor = group(transport, &ranks(3, Some((1, fault)))).await;
            executor.execute(plan(1)).await.unwrap();
            let error = executor.execute(plan(2)).await.unwrap_err();
            assert!(expected(&error), "{transport:?} {fault:?}: {error}");
        }
    }
}

#[tokio::test]
async fn a_sequence_may_fail_alone_if_it_fails_everywhere() {
    for transport in BOTH {
        let all = (0..2)
            .map(|rank| FakeRank::new(Script::endless(rank, 2).with_fault(0, Fault::FailSequence)));
        let mut executor = group(transport, &all.collect::<Vec<_>>()).await;
        let output = executor.execute(plan(1)).await.unwrap();
        assert_eq!(output.sequences[0].error, "scripted");
        let mut executor = group(transport, &ranks(2, Some((1, Fault::FailSequence)))).await;
        executor.execute(plan(1)).await.unwrap();
        let error = executor.execute(plan(2)).await.unwrap_err();
        assert!(
            matches!(error, ExecutorError::Protocol { rank: 1, .. }),
            "{error}"
        );
    }
}

#[tokio::test]
async fn a_plan_that_breaks_the_contract_is_refused_by_the_ranks() {
    let mut across = plan(1);
    across.sequences[0].tokens = vec![0; 17];
    let mut executor = group(Transport::Channel, &ranks(1, None)).await;
    let error = executor.execute(across).await.unwrap_err();
    assert!(error.to_string().contains("stride 16"), "{error}");
}

#[test]
fn the_minority_diverged_and_of_two_the_second() {
    let output = |digest| StepOutput {
        digest,
        ..Default::default()
    };
    let diverged =
        |digests: &[u64]| match agree(1, &digests.iter().map(|&d| output(d)).collect::<Vec<_>>()) {
            Err(ExecutorError::Diverged { rank, .. }) => Some(rank),
            _ => None,
        };
    assert_eq!(diverged(&[5, 5, 5]), None);
    assert_eq!(diverged(&[1, 5, 5]), Some(0));
    assert_eq!(diverged(&[5, 5, 1, 5]), Some(2));
    assert_eq!(diverged(&[5, 1]), Some(1));
}
