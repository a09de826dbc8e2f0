//! The endpoints under generated and malformed requests: no panic, no server error, nobody let in
//! without a key, and as many requests running and bytes reserved afterwards as before. Everything
//! is on loopback and bounded in number and time.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use palimpsest_coordinator::Config;
use palimpsest_coordinator::keys::ApiKeys;
use palimpsest_tests::service::{TestService, serve};
use palimpsest_tests::{random, tiny_model};
use tokio::net::TcpListener;

/// A client of garbage waits no longer for more.
const SILENCE: Duration = Duration::from_millis(200);
const PATIENCE: Duration = Duration::from_secs(20);

struct Target {
    service: TestService,
    grpc: SocketAddr,
    http: SocketAddr,
    panics: Arc<AtomicUsize>,
}

impl Target {
    async fn start() -> Self {
        let panics = Arc::new(AtomicUsize::new(0));
        let (counter, previous) = (panics.clone(), std::panic::take_hook());
        std::panic::set_hook(Box::new(move |info| {
            counter.fetch_add(1, Ordering::SeqCst);
            previous(info);
        }));
        // sha256("secret")
        let line = "a:2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";
        let keys = Some(Arc::new(ApiKeys::parse(line).expect("a key")));
        let config = Config {
            keys,
            max_total_tokens: 96,
            default_max_tokens: 4,
            max_message_bytes: 1 << 20,
            ..Config::default()
        };
        let service = serve(tiny_model(1).path(), None, 16 << 20, config).await;
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let http = listener.local_addr().expect("an address");
        let coordinator = service.coordinator.clone();
        tokio::spawn(async move {
            coordinator
                .serve_http(listener, std::future::pending())
                .await
        });
        Self {
            grpc: service.server.address,
            service,
            http,
            panics,
        }
    }

    /// It serves, nothing runs, nothing is reserved, nothing panicked.
    async fn assert_sound(&self) {
        let since = Instant::now();
        loop {
            let text = self.service.coordinator.service().metrics.encode();
            let idle = [
                "requests_running 0",
                "requests_queued 0",
                "kv_reserved_bytes 0",
            ];
            if idle.iter().all(|line| {
                text.lines()
                    .any(|found| found == format!("palimpsest_{line}"))
            }) {
                break;
            }
            assert!(
                since.elapsed() < Duration::from_secs(20),
                "something is left: {text}"
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let (http, key) = (self.http, "authorization: Bearer secret\r\n");
        let body = r#"{"prompt": "a", "max_tokens": 2}"#;
        let head = format!(
            "POST /v1/completions HTTP/1.0\r\n{key}content-length: {}\r\n\r\n{body}",
            body.len()
        );
        let answer = exchange(http, head.into_bytes(), PATIENCE).await;
        assert!(answer.starts_with("HTTP/1.0 200"), "{answer}");
        assert_eq!(self.panics.load(Ordering::SeqCst), 0, "a panic");
    }
}

/// Sends bytes and reads what comes, until the end or until nothing more comes.
async fn exchange(address: SocketAddr, bytes: Vec<u8>, silence: Duration) -> String {
    let talk = move || {
        let mut stream = TcpStream::connect(address).expect("a connection");
        stream.set_read_timeout(Some(silence)).expect("a limit");
        let _ = stream.write_all(&bytes);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    };
    tokio::task::spawn_blocking(talk).await.expect("no panic")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn generated_requests_find_no_fault() {
    let Some(packages) = std::env::var_os("PALIMPSEST_TEST_SCHEMATHESIS") else {
        eprintln!(
            "SKIPPED: set PALIMPSEST_TEST_SCHEMATHESIS to a directory with it, or run `cargo \
             xtask test`"
        );
        return;
    };
    let target = Target::start().await;
    let reports = tempfile::tempdir().expect("a directory");
    let mut command = Command::new("python3");
    command
        .arg(std::path::Path::new(&packages).join("bin/schemathesis"))
        .env("PYTHONPATH", &packages);
    command.args([
        "run",
        &format!("http://{}/openapi.json", target.http),
        "--header",
        "Authorization: Bearer secret",
    ]);
    command.args([
        "--checks",
        "not_a_server_error,status_code_conformance,content_type_conformance",
    ]);
    command.args([
        "--checks",
        "response_schema_conformance,negative_data_rejection,ignored_auth,unsupported_method",
    ]);
    command.args([
        "--phases",
        "examples,coverage,fuzzing",
        "--max-examples",
        "60",
        "--continue-on-failure",
    ]);
    command.args(["--seed", "7", "--workers", "1"]);
    command.args([
        "--request-timeout",
        "20",
        "--suppress-health-check",
        "all",
        "--no-shrink",
    ]);
    command.current_dir(reports.path());
    let ran = tokio::task::spawn_blocking(move || command.output())
        .await
        .expect("no panic")
        .expect("python runs");
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&ran.stdout),
        String::from_utf8_lossy(&ran.stderr)
    );
    println!("{said}");
    assert!(ran.status.success(), "{said}");
    target.assert_sound().await;
}

/// Random bytes, and random tails behind valid beginnings, on both ports.
fn noise(target: &Target) -> Vec<(SocketAddr, Vec<u8>)> {
    let begins: [&[u8]; 5] = [
        b"",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
        b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
          content-length: 64\r\n\r\n{\"prompt\":",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n",
    ];
    let message = |round: u64| {
        let noise = random(round, 64).into_iter().flat_map(f32::to_le_bytes);
        let begin = begins[round as usize % begins.len()].iter().copied();
        let address = if round.is_multiple_of(2) {
            target.grpc
        } else {
            target.http
        };
        (address, begin.chain(noise).collect())
    };
    (0..50).map(message).collect()
}

/// Bodies and headers that are too many or too long, by what they announce and by what they are.
fn floods(target: &Target) -> Vec<(SocketAddr, Vec<u8>)> {
    let announced = |path: &str, length: u64| {
        format!(
            "POST {path} HTTP/1.0\r\nauthorization: Bearer secret\r\ncontent-length: \
             {length}\r\n\r\n"
        )
        .into_bytes()
    };
    let long = vec![b' '; 3 << 20];
    let headers = |headers: String| format!("GET /health HTTP/1.0\r\n{headers}\r\n").into_bytes();
    let many = (0..5000).map(|i| format!("x-{i}: y\r\n")).collect();
    [
        announced("/v1/completions", u64::MAX),
        [announced("/tokenize", long.len() as u64), long].concat(),
        headers(many),
        headers(format!("x: {}\r\n", "y".repeat(1 << 20))),
    ]
    .map(|bytes| (target.http, bytes))
    .into()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_messages_floods_and_slow_clients_harm_nobody() {
    let target = Target::start().await;
    let mut sent = 0;
    for (address, bytes) in noise(&target).into_iter().chain(floods(&target)) {
        let answer = exchange(address, bytes, SILENCE).await;
        assert!(
            !answer.contains(" 200 "),
            "nothing of this is a request: {answer}"
        );
        sent += 1;
    }

    // Clients that never finish a head or a body, all at once.
    let slow: Vec<TcpStream> = (0..200)
        .map(|i| {
            let mut stream = TcpStream::connect(target.http).expect("a connection");
            let part: &[u8] = if i % 2 == 0 {
                b"POST /v1/comp"
            } else {
                b"POST /tokenize HTTP/1.1\r\ncontent-length: 9\r\n\r\n{"
            };
            let _ = stream.write_all(part);
            stream
        })
        .collect();
    target.assert_sound().await;
    drop(slow);
    println!("{sent} malformed messages and floods, 200 slow clients: none served, 0 panics");
    malformed_protobuf(&target).await;
    target.assert_sound().await;
}

/// gRPC frames whose message is no message, without a key and with one.
async fn malformed_protobuf(target: &Target) {
    use tonic::codegen::http::uri::PathAndQuery;
    let mut codes = std::collections::BTreeMap::new();
    for round in 0..100u64 {
        let bytes: Vec<u8> = random(round, 1 + round as usize % 40)
            .into_iter()
            .flat_map(f32::to_le_bytes)
            .collect();
        let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{}", target.grpc))
            .expect("an address");
        let channel = endpoint.connect().await.expect("it listens");
        let mut grpc = tonic::client::Grpc::new(channel);
        grpc.ready().await.expect("ready");
        let method = ["Generate", "Tokenize", "GetModel", "Nothing"][round as usize % 4];
        let path: PathAndQuery = format!("/palimpsest.v1.Inference/{method}")
            .parse()
            .expect("a path");
        let mut request = tonic::Request::new(Raw(bytes));
        if round % 8 < 4 {
            request
                .metadata_mut()
                .insert("authorization", "Bearer secret".parse().expect("ASCII"));
        }
        let keyed = request.metadata().contains_key("authorization");
        let answer = grpc.unary::<Raw, Raw, _>(request, path, RawCodec).await;
        let code = answer.map_or_else(|status| status.code(), |_| tonic::Code::Ok);
        assert!(
            keyed || code == tonic::Code::Unauthenticated,
            "{method} without a key: {code:?}"
        );
        *codes.entry(format!("{code:?}")).or_insert(0) += 1;
    }
    println!("100 malformed protobuf messages: {codes:?}");
    assert!(
        !codes.contains_key("Unknown") && codes["Unauthenticated"] == 48,
        "{codes:?}"
    );
}

/// A message as it is on the wire.
#[derive(Debug)]
struct Raw(Vec<u8>);

struct RawCodec;

impl tonic::codec::Codec for RawCodec {
    type Encode = Raw;
    type Decode = Raw;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl tonic::codec::Encoder for RawCodec {
    type Item = Raw;
    type Error = tonic::Status;

    fn encode(
        &mut self,
        item: Raw,
        buffer: &mut tonic::codec::EncodeBuf<'_>,
    ) -> Result<(), tonic::Status> {
        prost::bytes::BufMut::put_slice(buffer, &item.0);
        Ok(())
    }
}

impl tonic::codec::Decoder for RawCodec {
    type Item = Raw;
    type Error = tonic::Status;

    fn decode(
        &mut self,
        buffer: &mut tonic::codec::DecodeBuf<'_>,
    ) -> Result<Option<Raw>, tonic::Status> {
        use prost::bytes::Buf;
        let mut bytes = vec![0; buffer.remaining()];
        buffer.copy_to_slice(&mut bytes);
        Ok(Some(Raw(bytes)))
    }
}
