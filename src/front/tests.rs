//! The front over a rank without a model, when what clients ask keeps all its threads.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use palimpsest_coordinator::executor::fake::{FakeRank, Script};
use palimpsest_coordinator::membership::{Candidate, Deposed};
use palimpsest_proto::internal::v1::worker_server::WorkerServer;
use palimpsest_worker::device::DeviceEnd;
use tonic::transport::Server;

use super::*;

const PATIENCE: Duration = Duration::from_secs(30);
/// Longer than ranks may be silent.
const BLOCKED: Duration = Duration::from_secs(3);
/// What a probe may take: a small part of that, on a machine that does much else.
const AT_ONCE: Duration = Duration::from_secs(1);

const ANYWHERE: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

fn config() -> FrontConfig {
    FrontConfig {
        listen: ANYWHERE,
        http: Some(ANYWHERE),
        health: Some(ANYWHERE),
        api_keys_file: None,
        insecure_no_keys: false,
        allowed_hosts: Vec::new(),
        cors: Vec::new(),
        console: true,
        served_names: Vec::new(),
        max_connections: 100,
        max_connections_per_address: 100,
        tls: None,
        max_running: 2,
        max_queued: 2,
        strict: false,
        snapshot_store_bytes: 0,
        share_snapshots: false,
        intake: Intake {
            max_inflight_bytes: 64 << 20,
            max_message_bytes: 0,
            tokenizer_threads: 2,
        },
        company: Company::default(),
        sessions: SessionConfig {
            place: None,
            ttl: None,
            max_ttl: PATIENCE,
            suspend_after: PATIENCE,
            max_sessions: 2,
            max_tenant_sessions: None,
            max_tenant_bytes: None,
            max_bytes: None,
            max_record_bytes: 1 << 20,
            max_tokens: 0,
        },
        responses: ResponseConfig {
            place: None,
            ttl: PATIENCE,
            max_responses: None,
            max_bytes: None,
            max_turns: 2,
        },
    }
}

/// Serves a rank on threads of its own.
async fn serve_rank(threads: &Background) -> SocketAddr {
    let listener = bind(threads, ANYWHERE, "--listen").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let rank = WorkerServer::new(FakeRank::new(Script::endless(0, 1)));
    let server = Server::builder().add_service(rank);
    threads.spawn(server.serve_with_incoming(Incoming::from(listener).into_stream()));
    address
}

/// The last word of an answer, and how long it took.
fn probe(address: SocketAddr, path: &str) -> (String, Duration) {
    let since = Instant::now();
    let mut stream = TcpStream::connect(address).expect("a connection");
    stream.set_read_timeout(Some(PATIENCE)).expect("a limit");
    let request = format!("GET {path} HTTP/1.0\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("a request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let last = answer.rsplit("\r\n").next().unwrap_or_default().to_owned();
    (last, since.elapsed())
}

/// Guards against tokenisation, or any fault, on threads that listen to ranks as well: two requests
/// made a coordinator believe that its rank was gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blocked_threads_of_clients_delay_neither_beats_nor_probes() {
    let rank_threads = Background::start("rank", 1).expect("a thread");
    let rank = serve_rank(&rank_threads).await;
    let mut front = Front::open(config()).await.expect("ports");
    let port = |port: &Option<Incoming>| {
        let port = port.as_ref().expect("a port");
        port.local_addr().expect("an address")
    };
    let (probes, http) = (port(&front.probes), port(&front.http));
    let limits = Config {
        beat_limit: BLOCKED / 3,
        ..front.config()
    };
    let forming = async {
        let mut candidate = Candidate::for_ranks(vec![rank.to_string()]);
        let group = candidate.first_group(&limits, PATIENCE, |_| ()).await?;
        candidate.lead(group, limits.clone())
    };
    let leader = front.wait_for(forming).await.expect("a group");
    let coordinator = leader.coordinator().clone();
    assert!(coordinator.ready().await);
    // More than there are threads.
    for _ in 0..2 * CLIENT_THREADS {
        front.client_threads.spawn(async { thread::sleep(BLOCKED) });
    }
    let end = async {
        let probed = tokio::task::spawn_blocking(move || {
            let since = Instant::now();
            while since.elapsed() < BLOCKED {
                for (path, word) in [("/health", "ok"), ("/readyz", "ready")] {
                    let (last, took) = probe(probes, path);
                    assert_eq!(last, word);
                    assert!(took < AT_ONCE, "{path} took {took:?}");
                }
                thread::sleep(Duration::from_millis(50));
            }
            // The threads of clients were blocked indeed, and serve again when they are not.
            let (last, took) = probe(http, "/health");
            assert_eq!(last, "ok");
            took
        });
        assert!(probed.await.expect("probes are answered") > AT_ONCE);
        Ok(())
    };
    front.serve_until(&coordinator, end).await.expect("a drain");
    let figures = coordinator.service().metrics.encode();
    assert!(
        figures
            .lines()
            .any(|line| line == "palimpsest_group_epoch 1"),
        "the group was lost: {figures}"
    );
    leader.resign().await;
}

/// A port whose acceptor is dead takes connections for as long as its backlog has room, and answers
/// none of them.
#[tokio::test]
async fn a_process_whose_acceptor_panics_ends_for_its_supervisor() {
    let threads = Background::start("clients", 1).expect("a thread");
    let served = threads.spawn(async { panic!("a fault of this test") });
    let error = done(Some(served)).await.expect_err("a failure");
    assert!(crate::has_given_up(&error), "{error:#}");
    for error in [
        anyhow::Error::from(Deposed::DriverLost).context("this process can serve no longer"),
        anyhow::Error::from(DeviceEnd::Stalled),
    ] {
        assert!(crate::has_given_up(&error), "{error:#}");
    }
    // Whoever starts it anew would find the same.
    assert!(!crate::has_given_up(&anyhow::anyhow!("no model")));
}
