//! What the coordinator itself adds to a token: N concurrent streams against a rank whose steps
//! take a fixed time.
//!
//! `cargo bench -p palimpsest-coordinator --features testing --bench streams`. Prints the time per
//! token of one stream and of N: in process, over gRPC with all streams in one connection, over
//! gRPC and over HTTP (server-sent events) with a connection for each stream. Rounds of all of them
//! follow each other, and medians are printed at the end. The targets: under 1 ms added per token
//! at 64 streams, and HTTP under 0.2 ms per token above gRPC. `-- N`: N rounds.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use palimpsest_coordinator::executor::ChannelExecutor;
use palimpsest_coordinator::executor::fake::{FakeRank, Script};
use palimpsest_coordinator::service::Service;
use palimpsest_coordinator::{Config, Coordinator};
use palimpsest_proto::v1::generate_event::Event;
use palimpsest_proto::v1::generate_request::Input;
use palimpsest_proto::v1::inference_client::InferenceClient;
use palimpsest_proto::v1::{GenerateEvent, GenerateRequest, Stopping, TokenIds};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tonic::transport::{Channel, Endpoint};

const TOKENS: u32 = 200;
const STEP: Duration = Duration::from_millis(10);

#[derive(Clone)]
enum Path {
    InProcess(Arc<Service>),
    Grpc(Channel),
    GrpcEach(Box<Endpoint>),
    Http(SocketAddr),
}

fn request() -> GenerateRequest {
    let ids = b"Say something"
        .iter()
        .map(|&byte| u32::from(byte))
        .collect();
    let stopping = Stopping {
        max_tokens: Some(TOKENS),
        ..Default::default()
    };
    GenerateRequest {
        input: Some(Input::TokenIds(TokenIds { ids })),
        stopping: Some(stopping),
        ..Default::default()
    }
}

/// Seconds per token between the first and the last delta of one stream.
async fn stream(path: Path) -> f64 {
    let mut clock = Clock::default();
    match path {
        Path::InProcess(service) => {
            let mut answer = service
                .generate(request(), None)
                .await
                .expect("the request is valid");
            while let Some(event) = answer.next().await {
                clock.take(&event.expect("the fake rank does not fail"));
            }
        }
        Path::Grpc(channel) => over_grpc(channel, &mut clock).await,
        Path::GrpcEach(endpoint) => {
            over_grpc(endpoint.connect().await.expect("it listens"), &mut clock).await;
        }
        Path::Http(address) => {
            let mut connection = TcpStream::connect(address).await.expect("it listens");
            connection.set_nodelay(true).expect("a TCP connection");
            let prompt: Vec<u8> = b"Say something".to_vec();
            let body = format!(
                r#"{{"prompt":{prompt:?},"max_tokens":{TOKENS},"temperature":0,"stream":true}}"#
            );
            let head = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length";
            let request = format!("{head}: {}\r\n\r\n{body}", body.len());
            connection
                .write_all(request.as_bytes())
                .await
                .expect("it reads");
            let mut lines = BufReader::new(connection).lines();
            while let Some(line) = lines.next_line().await.expect("text") {
                match line.strip_prefix("data: ") {
                    Some("[DONE]") => break,
                    Some(chunk) if !chunk.contains(r#""text":"""#) => clock.tick(),
                    _ => {}
                }
            }
        }
    }
    clock.per_token()
}

async fn over_grpc(channel: Channel, clock: &mut Clock) {
    let call = InferenceClient::new(channel).generate(request()).await;
    let mut events = call.expect("the request is valid").into_inner();
    while let Some(event) = events.message().await.expect("the fake rank does not fail") {
        clock.take(&event);
    }
}

#[derive(Default)]
struct Clock {
    first: Option<Instant>,
    last: Option<Instant>,
    deltas: u32,
}

impl Clock {
    fn take(&mut self, event: &GenerateEvent) {
        if let Some(Event::Delta(_)) = event.event {
            self.tick();
        }
    }

    fn tick(&mut self) {
        let now = Instant::now();
        self.first.get_or_insert(now);
        self.last = Some(now);
        self.deltas += 1;
    }

    fn per_token(&self) -> f64 {
        let (first, last) = (
            self.first.expect("a token came"),
            self.last.expect("a token came"),
        );
        (last - first).as_secs_f64() / f64::from(self.deltas - 1)
    }
}

/// Mean and largest time per token over `n` concurrent streams, in seconds.
async fn streams(path: &Path, n: usize) -> (f64, f64) {
    let all: Vec<_> = (0..n).map(|_| tokio::spawn(stream(path.clone()))).collect();
    let mut times = Vec::new();
    for one in all {
        times.push(one.await.expect("a stream ends"));
    }
    (
        times.iter().sum::<f64>() / n as f64,
        times.iter().copied().fold(0.0, f64::max),
    )
}

/// Streams at once.
const COUNTS: [usize; 3] = [1, 8, 64];

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[tokio::main]
async fn main() {
    let rounds = std::env::args()
        .find_map(|arg| arg.parse().ok())
        .unwrap_or(3);
    let rank = FakeRank::new(Script::endless(0, 1).with_step_time(STEP));
    let config = Config {
        max_running: 64,
        ..Config::default()
    };
    let executor = Box::new(ChannelExecutor::new(vec![rank.spawn()], config.step_limit));
    let coordinator =
        Coordinator::build(config, executor, vec![rank.info()]).expect("the fake model is usable");
    assert!(
        coordinator.ready().await,
        "the fake rank passes its first step"
    );
    let server = coordinator.serve_local().await.expect("a free port");
    let endpoint =
        Channel::from_shared(format!("http://{}", server.address)).expect("a valid address");
    let channel = endpoint.connect().await.expect("it listens");
    let http = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let http_at = http.local_addr().expect("an address");
    let serving = coordinator.clone();
    tokio::spawn(async move { serving.serve_http(http, std::future::pending()).await });
    let paths = [
        (
            "in process",
            Path::InProcess(Arc::new(coordinator.service().clone())),
        ),
        ("gRPC, one connection", Path::Grpc(channel)),
        ("gRPC, one each", Path::GrpcEach(Box::new(endpoint))),
        ("HTTP, one each", Path::Http(http_at)),
    ];
    println!(
        "{TOKENS} tokens a stream, steps of {} ms, ms per token: mean (worst stream)",
        STEP.as_millis()
    );
    let mut means = vec![[const { Vec::new() }; COUNTS.len()]; paths.len()];
    for round in 0..rounds {
        for ((name, path), means) in paths.iter().zip(&mut means) {
            print!("round {round} {name:>20}:");
            for (n, means) in COUNTS.into_iter().zip(means) {
                let (mean, worst) = streams(path, n).await;
                means.push(mean * 1e3);
                print!("  {n} streams {:.3} ({:.3})", mean * 1e3, worst * 1e3);
            }
            println!();
        }
    }
    println!("medians of {rounds} rounds, for {COUNTS:?} streams:");
    for ((name, _), means) in paths.iter().zip(means) {
        let [one, some, many] = means.map(median);
        println!(
            "{name:>20}: {one:.3}, {some:.3}, {many:.3}; 64 over 1: {:.3}",
            many - one
        );
    }
    server.shut_down().await;
}
