//! Real processes that are killed, stopped and started again: what a cluster's worst days look
//! like, on a tiny model.

mod cluster;
mod etcd;
mod hosts;
mod kills;
mod lead;
mod process;
mod requests;
mod secured;

use std::time::{Duration, Instant};

use cluster::{Cluster, Tiny};
use hosts::Hosts;
use palimpsest_tests::service::ask;
use requests::request;
use tonic::Code;

/// A hung rank must be noticed within this.
const NOTICED: Duration = Duration::from_secs(3);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_processes_answer_as_one() {
    let tiny = Tiny::new();
    let alone = Cluster::start(&tiny, 1).await;
    let groups = [
        Cluster::start_over("tcp", &tiny, 3).await,
        Cluster::start_over("gloo", &tiny, 3).await,
    ];
    for (seed, group) in (0..4).flat_map(|seed| groups.iter().map(move |group| (seed, group))) {
        let asked = request(seed, 30 + 60 * seed as usize, 40);
        let one = ask(&alone.client, asked.clone()).await.expect("an answer");
        let three = ask(&group.client, asked).await.expect("an answer");
        assert_eq!(three.tokens, one.tokens, "request {seed}");
        let usage = |answered: &palimpsest_tests::service::Answered| {
            let usage = answered.finished.usage.clone().expect("usage");
            (
                usage.held_slots,
                usage.evicted_tokens,
                usage.full_cache_bytes,
            )
        };
        assert_eq!(usage(&three), usage(&one), "request {seed}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_rank_is_noticed_and_a_slow_one_is_not_dead() {
    let tiny = Tiny::new();
    let cluster = Cluster::start(&tiny, 3).await;
    let asked = request(5, 100, 400);
    let expected = ask(&cluster.client, asked.clone())
        .await
        .expect("an answer")
        .tokens;
    // Slow: stopped for a third of the time, never for as long as a beat may be late.
    let slow = tokio::spawn({
        let (client, asked) = (cluster.client.clone(), asked.clone());
        async move { ask(&client, asked).await }
    });
    while !slow.is_finished() {
        cluster.signal(1, "STOP");
        tokio::time::sleep(Duration::from_millis(100)).await;
        cluster.signal(1, "CONT");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert_eq!(
        slow.await.expect("no panic").expect("an answer").tokens,
        expected
    );
    assert_eq!(
        cluster.losses(),
        0,
        "a slow rank was declared dead: {}",
        cluster.coordinator_log()
    );
    // Stopped for good, until someone wakes it.
    let client = cluster.client.clone();
    let stream = tokio::spawn(async move { ask(&client, asked).await });
    tokio::time::sleep(Duration::from_millis(50)).await;
    cluster.signal(1, "STOP");
    let stopped = Instant::now();
    while cluster.losses() == 0 {
        assert!(
            stopped.elapsed() < NOTICED,
            "not noticed within {NOTICED:?}: {}",
            cluster.coordinator_log()
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    eprintln!("a stopped rank was noticed after {:.2?}", stopped.elapsed());
    assert!(
        cluster
            .coordinator_log()
            .contains("rank 1 is gone: no beat"),
        "{}",
        cluster.coordinator_log()
    );
    cluster.signal(1, "CONT");
    let answered = tokio::time::timeout(Duration::from_secs(60), stream)
        .await
        .expect("no request hangs");
    assert_eq!(
        answered
            .expect("no panic")
            .expect("an answer, by replay")
            .tokens,
        expected
    );
}

/// The text between two marks, wherever they follow each other.
fn between<'a>(text: &'a str, (before, after): (&'a str, &'a str)) -> Vec<&'a str> {
    text.split(before)
        .skip(1)
        .filter_map(|rest| rest.split_once(after))
        .map(|(found, _)| found)
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rank_that_computes_otherwise_is_named_within_the_step() {
    let tiny = Tiny::new();
    // Once, while the first request is answered: it goes on as if nothing had happened.
    let mut once = Cluster::start_diverging(&tiny, 3, 1, "40").await;
    let asked = request(31, 200, 120);
    let replayed = ask(&once.client, asked.clone())
        .await
        .expect("an answer, by replay")
        .tokens;
    let whole = ask(&once.client, asked.clone())
        .await
        .expect("an answer")
        .tokens;
    assert_eq!(
        replayed, whole,
        "nothing of the diverged step reached the client"
    );
    assert_eq!(once.losses(), 1, "{}", once.coordinator_log());
    let (told, log) = (once.rank_log(1), once.coordinator_log());
    let diverged = between(&told, ("diverging in epoch 1, step ", ","));
    assert_eq!(diverged.len(), 1, "{told}");
    assert_eq!(
        between(&log, ("rank 1 diverged in step ", ":")),
        diverged,
        "{log}"
    );
    once.assert_alive();
    // Again and again: what ran on it is given up with a reason, and the group is well again
    // afterwards.
    let steps: Vec<String> = (10..60).step_by(4).map(|step| step.to_string()).collect();
    let often = Cluster::start_diverging(&tiny, 3, 2, &steps.join(",")).await;
    let error = ask(&often.client, asked.clone())
        .await
        .expect_err("no group carries it to the end");
    assert!(
        [Code::Unavailable, Code::Aborted].contains(&error.code()),
        "{error}"
    );
    let reached = Instant::now();
    while often.rank_log(2).matches("diverging in").count() < steps.len() {
        assert!(
            reached.elapsed() < Duration::from_secs(60),
            "{}",
            often.rank_log(2)
        );
        // It may meet what is left of the faults, too.
        let _ = ask(&often.client, asked.clone()).await;
    }
    let log = often.coordinator_log();
    assert_eq!(
        log.matches("rank 2 diverged in step").count(),
        steps.len(),
        "{log}"
    );
    assert!(
        !log.contains("rank 0 diverged") && !log.contains("rank 1 diverged"),
        "{log}"
    );
    assert_eq!(
        ask(&often.client, asked).await.expect("an answer").tokens,
        whole
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_that_are_cut_off_come_back() {
    let Some(hosts) = Hosts::new(3) else { return };
    let tiny = Tiny::new();
    let mut cluster = Cluster::start_on(&tiny, &hosts).await;
    let asked = request(9, 100, 300);
    let expected = ask(&cluster.client, asked.clone())
        .await
        .expect("an answer")
        .tokens;
    let (client, again) = (cluster.client.clone(), asked.clone());
    let stream = tokio::spawn(async move { ask(&client, again).await });
    tokio::time::sleep(Duration::from_millis(50)).await;
    hosts.cut(1);
    let cut = Instant::now();
    while cluster.losses() == 0 {
        assert!(
            cut.elapsed() < NOTICED,
            "not noticed within {NOTICED:?}: {}",
            cluster.coordinator_log()
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!stream.is_finished(), "a request waits for its group");
    hosts.heal(1);
    let answered = tokio::time::timeout(Duration::from_secs(60), stream)
        .await
        .expect("no request hangs");
    assert_eq!(
        answered
            .expect("no panic")
            .expect("an answer, by replay")
            .tokens,
        expected
    );
    cluster.assert_alive();
    if !hosts.delay(2) {
        eprintln!("SKIPPED: this kernel delays no packets (no netem)");
        return;
    }
    let losses = cluster.losses();
    let short = request(9, 100, 20);
    let far = ask(&cluster.client, short)
        .await
        .expect("an answer, over a slow network");
    assert_eq!(far.tokens, expected[..20]);
    assert_eq!(cluster.losses(), losses, "a slow network is no failure");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ranks_that_do_not_fit_are_refused_by_name() {
    let (tiny, other) = (Tiny::new(), Tiny::with_seed(2));
    let error = Cluster::start_mixed(&[&tiny, &tiny, &other])
        .await
        .map(|_| ())
        .expect_err("rank 2 is odd");
    assert!(error.contains("rank 2 holds another model"), "{error}");
    let refused = cluster::palimpsest(&["worker", "--rank", "3", "--tp", "3"]);
    assert!(
        refused.contains("rank 3 is out of range: a group of 3 has ranks 0 to 2"),
        "{refused}"
    );
    let nccl = [
        "worker",
        "--rank",
        "0",
        "--tp",
        "2",
        "--listen",
        "127.0.0.1:0",
        "--collective",
        "nccl",
    ];
    let refused = cluster::palimpsest(&nccl);
    assert!(
        refused.contains("--collective nccl is for GPUs"),
        "{refused}"
    );
    let refused = cluster::palimpsest(&[
        "worker",
        "--rank",
        "0",
        "--tp",
        "2",
        "--listen",
        "0.0.0.0:0",
        "--insecure",
    ]);
    assert!(refused.contains("--advertise"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_on_a_ranks_port_harms_nobody() {
    use std::io::Write;
    let tiny = Tiny::new();
    let cluster = Cluster::start(&tiny, 2).await;
    let expected = ask(&cluster.client, request(3, 50, 20))
        .await
        .expect("an answer")
        .tokens;
    for rank in 0..2 {
        for garbage in [
            &b"GET / HTTP/1.1\r\n\r\n"[..],
            &[0xff; 5000],
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\xff\x04",
        ] {
            let mut stream = std::net::TcpStream::connect(cluster.address(rank)).expect("a port");
            // It may be closed on us in mid-write.
            let _ = stream.write_all(garbage);
        }
    }
    let answered = ask(&cluster.client, request(3, 50, 20))
        .await
        .expect("an answer");
    assert_eq!(answered.tokens, expected);
    assert_eq!(cluster.losses(), 0, "{}", cluster.coordinator_log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coordinator_without_ranks_lives_and_is_not_ready() {
    let (child, http) = cluster::coordinator_alone();
    let started = Instant::now();
    let health = loop {
        if let Some(answer) = process::get(&http, "/health") {
            break answer;
        }
        assert!(started.elapsed() < Duration::from_secs(20), "no HTTP");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert!(health.starts_with("HTTP/1.0 200"), "{health}");
    for path in ["/readyz", "/v1/models"] {
        let answer = process::get(&http, path).expect("an answer");
        assert!(answer.starts_with("HTTP/1.0 503"), "{path}: {answer}");
    }
    assert!(cluster::ends_on_term(child), "SIGTERM ends it, and well");
}
