//! Ranks that are killed while requests run.

use std::time::{Duration, Instant};

use palimpsest_proto::v1::GenerateRequest;
use palimpsest_proto::v1::inference_client::InferenceClient;
use palimpsest_tests::random;
use palimpsest_tests::service::{Answered, ask};
use tokio::task::JoinHandle;
use tonic::Status;
use tonic::transport::Channel;

use crate::cluster::{Cluster, Tiny};
use crate::requests::request;

/// Rounds of kill -9; `PALIMPSEST_TEST_KILLS` asks for more.
const KILLS: usize = 6;

type Asking = JoinHandle<Result<Answered, Status>>;

fn ask_all(client: &InferenceClient<Channel>, asked: &[GenerateRequest]) -> Vec<Asking> {
    asked
        .iter()
        .map(|one| {
            let (client, one) = (client.clone(), one.clone());
            tokio::spawn(async move { ask(&client, one).await })
        })
        .collect()
}

/// Waits for the answers to a round's requests: as if nothing had been killed.
async fn check_answers(
    cluster: &Cluster,
    victim: usize,
    streams: Vec<Asking>,
    expected: &[Vec<u32>],
) {
    for (stream, expected) in streams.into_iter().zip(expected) {
        let answered = tokio::time::timeout(Duration::from_secs(60), stream).await;
        let answered = answered.unwrap_or_else(|_| {
            panic!(
                "a request hangs: {}\n{}",
                cluster.coordinator_log(),
                cluster.rank_log(victim)
            )
        });
        let answered = answered.expect("no panic").expect("an answer, by replay");
        assert_eq!(answered.tokens, *expected, "the answer after a replay");
    }
}

/// Kills one rank at some moment of three requests and returns the time until the group is ready
/// again.
async fn kill_one(
    cluster: &mut Cluster,
    victim: usize,
    moment: Duration,
    asked: &[GenerateRequest],
    expected: &[Vec<u32>],
) -> Duration {
    let streams = ask_all(&cluster.client, asked);
    tokio::time::sleep(moment).await;
    let loads: Vec<usize> = (0..3).map(|rank| cluster.loads(rank)).collect();
    cluster.kill(victim);
    let killed = Instant::now();
    cluster.start_rank(victim);
    check_answers(cluster, victim, streams, expected).await;

    // Where all was answered before it died, it may be loading still.
    while cluster.loads(victim) == loads[victim] {
        assert!(
            killed.elapsed() < Duration::from_secs(60),
            "rank {victim} does not come back"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    cluster.wait_until_ready().await;
    let recovered = killed.elapsed();
    for survivor in (0..3).filter(|&rank| rank != victim) {
        assert_eq!(
            cluster.loads(survivor),
            loads[survivor],
            "survivors keep their weights"
        );
    }
    cluster.assert_alive();
    recovered
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_ranks_cost_no_request() {
    let kills = std::env::var("PALIMPSEST_TEST_KILLS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(KILLS);
    let tiny = Tiny::new();
    let mut cluster = Cluster::start(&tiny, 3).await;
    let asked: Vec<_> = (0..3).map(|i| request(100 + i, 200, 120)).collect();
    let (begin, mut expected) = (Instant::now(), Vec::new());
    for stream in ask_all(&cluster.client, &asked) {
        expected.push(stream.await.expect("no panic").expect("an answer").tokens);
    }
    let whole = begin.elapsed();

    let mut recoveries = Vec::new();
    for round in 0..kills {
        // Some moment between the first prefill and the last token.
        let share = random(7 + round as u64, 1)[0].abs();
        let moment = whole.mul_f32(0.01 + 0.8 * share);
        let recovered = kill_one(&mut cluster, round % 3, moment, &asked, &expected).await;
        eprintln!("round {round}: ready again after {recovered:.2?}");
        recoveries.push(recovered);
    }
    recoveries.sort();
    let at = |share: f64| recoveries[((recoveries.len() - 1) as f64 * share) as usize];
    eprintln!(
        "{kills} kills: all requests answered and the group ready after {:.2?} (median), {:.2?} \
         (p90), {:.2?} (slowest)",
        at(0.5),
        at(0.9),
        at(1.0)
    );
}
