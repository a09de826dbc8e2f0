//! What was tried against a running service, as whoever reaches its ports can try it again. Each
//! test plays an attack that once worked, and holds the service to what everyone else sees of it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use palimpsest_tests::tiny_model;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tonic::transport::Endpoint;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::group::{Process, ask, await_that, free, is_ok};
use crate::serving::Serving;

/// What an answer may take that has nothing to wait for: it takes milliseconds, on a machine that
/// does nothing else.
const AT_ONCE: Duration = Duration::from_secs(1);
/// More than the 4,096 that a port has places for.
const SILENT: u64 = 5000;
/// Fewer than the 1,024 that one address may have.
const PER_ADDRESS: u64 = 1000;

/// Asks for as many descriptors as the attack takes, and returns the connections that it can make.
pub fn silent_connections() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let wanted = SILENT + 1000;
    let current = limit.maximum.map_or(wanted, |most| most.min(wanted));
    let raised = Rlimit {
        current: Some(current.max(limit.current.unwrap_or(current))),
        ..limit
    };
    setrlimit(Resource::Nofile, raised).expect("below the maximum");
    let count = SILENT.min(current.saturating_sub(1000));
    assert!(
        count > 4096,
        "{current} descriptors are too few: raise ulimit -Hn"
    );
    count
}

/// Connections that say nothing, from several addresses of this machine.
pub async fn connect_silently(address: SocketAddr, count: u64) -> Vec<TcpStream> {
    let mut silent = Vec::new();
    for number in 0..count {
        let socket = TcpSocket::new_v4().expect("a socket");
        let host = 2 + (number / PER_ADDRESS) as u8;
        let source = IpAddr::V4(Ipv4Addr::new(127, 0, 0, host));
        socket.bind((source, 0).into()).expect("an address");
        silent.push(socket.connect(address).await.expect("a connection"));
    }
    silent
}

/// What comes of `work`, which must not take long.
async fn at_once<T>(what: &str, work: impl Future<Output = T>) -> T {
    let since = Instant::now();
    let result = tokio::time::timeout(Duration::from_secs(30), work).await;
    let took = since.elapsed();
    println!("{what}: {:.1} ms", took.as_secs_f64() * 1e3);
    assert!(took < AT_ONCE, "{what} took {took:?}");
    result.expect("in time")
}

/// An answer over HTTP to a request of a thread of its own.
async fn http(
    address: &str,
    method: &'static str,
    path: &'static str,
    body: &'static str,
) -> String {
    let address = address.to_owned();
    let kind = "content-type: application/json\r\n";
    let answer = tokio::task::spawn_blocking(move || ask(&address, method, path, kind, body));
    answer.await.expect("no panic").unwrap_or_default()
}

const SHORT: &str = r#"{"prompt": "a", "max_tokens": 2}"#;

/// Idle connections, without a key or a byte, shut a port: 4,100 of them left `/health` without an
/// answer for 40 s.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_connections_shut_no_port() {
    let count = silent_connections();
    let probes = free();
    let serving = Serving::start_with(&[], &["--health", &probes]);
    let before = serving.resident_kib();
    let silent = connect_silently(serving.http.parse().expect("an address"), count).await;
    for _ in 0..5 {
        let answer = at_once("/health", http(&serving.http, "GET", "/health", "")).await;
        assert!(answer.ends_with("ok"), "{answer}");
        let answer = http(&serving.http, "POST", "/v1/completions", SHORT);
        let answer = at_once("a completion", answer).await;
        assert!(answer.starts_with("HTTP/1.0 200"), "{answer}");
        let answer = at_once("the probes' port", http(&probes, "GET", "/readyz", "")).await;
        assert!(answer.ends_with("ready"), "{answer}");
    }
    let grown = serving.resident_kib().saturating_sub(before);
    println!("{count} silent connections add {grown} KiB");
    assert!(grown < 64 << 10, "{grown} KiB");
    drop(silent);
    let silent = connect_silently(serving.grpc.parse().expect("an address"), count).await;
    let health = async {
        let endpoint = Endpoint::from_shared(format!("http://{}", serving.grpc));
        let endpoint = endpoint.expect("an address");
        let mut client = HealthClient::new(endpoint.connect().await.expect("a connection"));
        let request = HealthCheckRequest::default();
        client.check(request).await.expect("an answer")
    };
    at_once("gRPC's health", health).await;
    drop(silent);
    let log = serving.stop();
    assert!(!log.contains("panicked"), "{log}");
}

/// How an answer begins.
async fn first_bytes(stream: &mut TcpStream) -> [u8; 12] {
    let mut bytes = [0; 12];
    stream.read_exact(&mut bytes).await.expect("an answer");
    bytes
}

/// One address that takes all it can get leaves places for others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_address_takes_no_more_than_its_share() {
    let args = ["--max-connections-per-address", "20"];
    let serving = Serving::start_with(&[], &args);
    let address: SocketAddr = serving.http.parse().expect("an address");
    let connect = async || {
        let socket = TcpSocket::new_v4().expect("a socket");
        let source = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 9));
        socket.bind((source, 0).into()).expect("an address");
        socket.connect(address).await.expect("a connection")
    };
    let mut held = Vec::new();
    for _ in 0..20 {
        let mut stream = connect().await;
        // Who has asked once keeps its place.
        let request = b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n";
        stream.write_all(request).await.expect("a request");
        assert_eq!(first_bytes(&mut stream).await, *b"HTTP/1.1 200");
        held.push(stream);
    }
    for _ in 0..10 {
        assert_eq!(first_bytes(&mut connect().await).await, *b"HTTP/1.1 503");
    }
    let answer = at_once("/health", http(&serving.http, "GET", "/health", "")).await;
    assert!(answer.ends_with("ok"), "{answer}");
    drop(held);
    let log = serving.stop();
    assert!(log.contains("too many connections"), "{log}");
}

/// Tokenising so many parts takes longer than ranks may be silent; a build without optimisation
/// takes as long for a twentieth.
const ROLE_PARTS: usize = if cfg!(debug_assertions) {
    4_000
} else {
    80_000
};

/// Roles of some MB, which were tokenised on the threads that listen to ranks: two such requests
/// lost the group.
#[test]
fn large_chats_lose_no_group() {
    let model = tiny_model(1);
    let rank_at = free();
    let _rank = Process::loaded_rank(&rank_at, model.path().to_str().expect("UTF-8"), &[]);
    let (grpc, http, probes) = (free(), free(), free());
    let mut args = vec!["coordinator", "--ranks", &rank_at, "--listen", &grpc];
    args.extend(["--http", &http, "--health", &probes]);
    let coordinator = Process::start(&args, &[]);
    await_that(Instant::now(), || is_ok(&probes, "/readyz"));
    let role = "the role of a message ".repeat(ROLE_PARTS);
    let message = format!(r#"{{"role": "{role}", "content": "a"}}"#);
    let body = format!(r#"{{"messages": [{message}], "max_tokens": 1}}"#);
    let slowest = std::thread::scope(|threads| {
        let chats: Vec<_> = (0..4)
            .map(|_| threads.spawn(|| ask(&http, "POST", "/v1/chat/completions", "", &body)))
            .collect();
        let mut slowest = Duration::ZERO;
        while !chats.iter().all(|chat| chat.is_finished()) {
            let since = Instant::now();
            assert!(is_ok(&probes, "/health"));
            slowest = slowest.max(since.elapsed());
            std::thread::sleep(Duration::from_millis(5));
        }
        for chat in chats {
            let answer = chat.join().expect("no panic").unwrap_or_default();
            for code in ["body_too_large", "intake_full", "invalid_body"] {
                assert!(!answer.contains(code), "{answer}");
            }
        }
        slowest
    });
    println!(
        "the slowest probe took {:.1} ms",
        slowest.as_secs_f64() * 1e3
    );
    assert!(slowest < AT_ONCE, "{slowest:?}");
    let figures = ask(&probes, "GET", "/metrics", "", "").expect("metrics");
    assert!(
        figures
            .lines()
            .any(|line| line == "palimpsest_group_epoch 1"),
        "{figures}"
    );
    coordinator.stop();
}

/// The status and the code of the answer to a post with these headers.
fn post(serving: &Serving, headers: &str) -> (u16, String) {
    let answer = ask(&serving.http, "POST", "/v1/completions", headers, SHORT).expect("an answer");
    let status = answer
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok());
    let code = answer.split("\"code\":\"").nth(1);
    let code = code.and_then(|rest| rest.split('"').next());
    (
        status.expect("a status"),
        code.unwrap_or_default().to_owned(),
    )
}

/// DNS rebinding, and posts from pages of other sites, against a service without keys.
#[test]
fn pages_of_other_sites_cannot_ask() {
    let serving = Serving::start_with(&[], &["--allowed-host", "llm.example"]);
    let json = "content-type: application/json\r\n";
    for (headers, status, code) in [
        ("host: localhost:8000\r\n", 200, ""),
        ("host: llm.example\r\n", 200, ""),
        ("host: evil.example\r\n", 403, "host_not_allowed"),
        (
            "host: evil.example:8000\r\norigin: http://evil.example:8000\r\n",
            403,
            "host_not_allowed",
        ),
        (
            "host: localhost\r\norigin: https://evil.example\r\n",
            403,
            "origin_not_allowed",
        ),
        (
            "host: localhost\r\norigin: null\r\n",
            403,
            "origin_not_allowed",
        ),
        ("host: localhost\r\norigin: http://localhost\r\n", 200, ""),
        (
            "host: localhost\r\norigin: https://llm.example\r\n",
            200,
            "",
        ),
    ] {
        let found = post(&serving, &format!("{headers}{json}"));
        assert_eq!(found, (status, code.to_owned()), "{headers}");
    }
    let simple = "host: localhost\r\norigin: http://localhost\r\ncontent-type: text/plain\r\n";
    let refused = (415, "unsupported_content_type".to_owned());
    assert_eq!(post(&serving, simple), refused);
    // Probes have no secrets and may be asked by any name.
    let probe = ask(&serving.http, "GET", "/readyz", "host: any.example\r\n", "");
    assert!(probe.is_some_and(|answer| answer.starts_with("HTTP/1.0 200")));
    serving.stop();
}
