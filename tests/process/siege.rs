//! All that a client without a key can do at once, beside eight clients that only want an answer.
//!
//! `PALIMPSEST_SIEGE_SECONDS` makes it longer than the few seconds of a usual run. With
//! `--nocapture` it prints what the eight clients saw, alone and under siege.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;

use crate::attack::{connect_silently, silent_connections};
use crate::group::{ask, free};
use crate::serving::Serving;

/// Length of each of the two phases where nothing else is asked for.
const USUAL: Duration = Duration::from_secs(4);
/// Clients that send a byte of a request now and then.
const SLOW: usize = 1000;
/// Bodies of the largest size, sent again and again, at once.
const BODIES: usize = 200;
/// Streams with all log-probabilities there are.
const STREAMS: usize = 64;
/// Clients that only want an answer.
const NORMAL: usize = 8;
/// Bytes of the largest message, as the service is started.
const MESSAGE_MIB: usize = 1;
/// What the documents promise of memory before admission, beside what the process has at rest, for
/// this size of message and the usual budget: 256 MiB and 320 times the message.
const PROMISED_KIB: u64 = (256 + 320 * MESSAGE_MIB as u64) << 10;
/// What connections and answers take besides.
const SPARE_KIB: u64 = 256 << 10;

fn length() -> Duration {
    let asked = std::env::var("PALIMPSEST_SIEGE_SECONDS").ok();
    let seconds = asked.and_then(|seconds| seconds.parse().ok());
    seconds.map_or(USUAL, Duration::from_secs)
}

/// Whence the clients of the siege come; silent ones have more addresses.
const BESIEGERS: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 1);
/// Whence normal clients come: without keys a client is known by its address.
const GUESTS: Ipv4Addr = Ipv4Addr::new(127, 0, 1, 1);

/// Sends a whole request from an address of this machine, and reads the whole answer.
async fn exchange(
    source: Ipv4Addr,
    address: SocketAddr,
    request: &[u8],
) -> std::io::Result<Vec<u8>> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((source, 0).into())?;
    let mut stream = socket.connect(address).await?;
    stream.write_all(request).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(answer)
}

fn post(path: &str, body: &str) -> Vec<u8> {
    let head = format!(
        "POST {path} HTTP/1.0\r\nhost: localhost\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    head.into_bytes()
}

/// What normal clients saw.
struct Seen {
    /// Seconds from request to end of the answer, in order.
    seconds: Vec<f64>,
    /// The longest wait for `/health`, in seconds.
    health: f64,
}

impl Seen {
    fn quantile(&self, share: f64) -> f64 {
        let last = self.seconds.len() - 1;
        self.seconds[(last as f64 * share).round() as usize]
    }

    fn print(&self, when: &str) {
        println!(
            "{when}: {} answers, median {:.0} ms, p99 {:.0} ms; /health {:.1} ms at most",
            self.seconds.len(),
            self.quantile(0.5) * 1e3,
            self.quantile(0.99) * 1e3,
            self.health * 1e3
        );
    }
}

/// Eight clients that stream one answer after the other, and one that asks for `/health`.
async fn normal_clients(serving: &Serving, probes: &str, length: Duration) -> Seen {
    let address: SocketAddr = serving.http.parse().expect("an address");
    let until = Instant::now() + length;
    let mut clients = JoinSet::new();
    for _ in 0..NORMAL {
        clients.spawn(async move {
            let request = post(
                "/v1/completions",
                r#"{"prompt": "a b c", "max_tokens": 16, "ignore_eos": true, "stream": true}"#,
            );
            let mut seconds = Vec::new();
            while Instant::now() < until {
                let since = Instant::now();
                let answer = exchange(GUESTS, address, &request)
                    .await
                    .expect("a connection");
                let answer = String::from_utf8_lossy(&answer).into_owned();
                assert!(answer.starts_with("HTTP/1.0 200"), "{answer}");
                assert!(answer.ends_with("data: [DONE]\n\n"), "{answer}");
                seconds.push(since.elapsed().as_secs_f64());
            }
            seconds
        });
    }
    let probes = probes.to_owned();
    let health = tokio::task::spawn_blocking(move || {
        let mut longest = 0.0_f64;
        while Instant::now() < until {
            let since = Instant::now();
            assert!(ask(&probes, "GET", "/health", "", "").is_some());
            longest = longest.max(since.elapsed().as_secs_f64());
            std::thread::sleep(Duration::from_millis(20));
        }
        longest
    });
    let mut seconds: Vec<f64> = clients.join_all().await.into_iter().flatten().collect();
    seconds.sort_by(f64::total_cmp);
    let health = health.await.expect("the port of probes answers");
    Seen { seconds, health }
}

/// Clients that mean no good, until they are dropped.
struct Siege {
    clients: JoinSet<()>,
    refused: Arc<AtomicU64>,
    is_over: Arc<AtomicBool>,
    _silent: Vec<TcpStream>,
}

impl Siege {
    async fn lay(serving: &Serving) -> Self {
        let address: SocketAddr = serving.http.parse().expect("an address");
        let silent = connect_silently(address, silent_connections()).await;
        let mut siege = Self {
            clients: JoinSet::new(),
            refused: Arc::default(),
            is_over: Arc::default(),
            _silent: silent,
        };
        for _ in 0..SLOW {
            siege.clients.spawn(slow(address));
        }
        // Digits and blanks are what takes a tokenizer longest for its bytes.
        let longest = "1 ".repeat((MESSAGE_MIB << 20) / 2 - 64);
        let body = post("/v1/completions", &format!(r#"{{"prompt": "{longest}"}}"#));
        let body: Arc<[u8]> = body.into();
        for _ in 0..BODIES {
            siege.repeat(address, body.clone());
        }
        let stream = r#"{"prompt": "a", "max_tokens": 64, "ignore_eos": true, "logprobs": 20,
                        "stream": true}"#;
        let stream: Arc<[u8]> = post("/v1/completions", stream).into();
        for _ in 0..STREAMS {
            siege.repeat(address, stream.clone());
        }
        siege
    }

    /// Sends a request whenever the last one was answered.
    fn repeat(&mut self, address: SocketAddr, request: Arc<[u8]>) {
        let (refused, is_over) = (self.refused.clone(), self.is_over.clone());
        self.clients.spawn(async move {
            while !is_over.load(Ordering::Relaxed) {
                let answer = exchange(BESIEGERS, address, &request)
                    .await
                    .unwrap_or_default();
                if !answer.starts_with(b"HTTP/1.0 200") {
                    refused.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
    }

    async fn lift(mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        self.clients.shutdown().await;
        let refused = self.refused.load(Ordering::Relaxed);
        println!("{refused} requests of the siege were refused");
        assert!(refused > 0, "bodies of the largest size found no bound");
    }
}

/// Sends a head byte by byte, and begins again when it is closed.
async fn slow(address: SocketAddr) {
    const HEAD: &[u8] = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\n";
    loop {
        if let Ok(mut stream) = TcpStream::connect(address).await {
            for byte in HEAD {
                if stream.write_all(&[*byte]).await.is_err() {
                    break;
                }
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// No normal request fails, probes are answered, and memory stays within what the documents say.
/// How much slower answers become is printed. Both sides share places, prompt tokens and the queue
/// equally, as two clients; processors they share as the system lets them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_only_want_an_answer_get_it_under_siege() {
    let probes = free();
    let message = MESSAGE_MIB.to_string();
    let args = [
        "--health",
        &probes,
        "--max-message-mib",
        &message,
        // All of the siege comes from one machine, and as many streams from its first address.
        "--max-connections-per-address",
        "2000",
    ];
    let serving = Serving::start_with(&[], &args);
    let alone = normal_clients(&serving, &probes, length()).await;
    let at_rest = serving.resident_kib();
    let siege = Siege::lay(&serving).await;
    let besieged = normal_clients(&serving, &probes, length()).await;
    let peak = serving.peak_kib();
    siege.lift().await;
    alone.print("alone");
    besieged.print("under siege");
    println!("{at_rest} KiB at rest, {peak} KiB at most");
    assert!(peak < at_rest + PROMISED_KIB + SPARE_KIB, "{peak} KiB");
    assert!(besieged.health < 1.0, "{:.3} s", besieged.health);
    let log = serving.stop();
    assert!(!log.contains("panicked"), "{log}");
    assert!(!log.contains("rank 0 is gone"), "{log}");
}
