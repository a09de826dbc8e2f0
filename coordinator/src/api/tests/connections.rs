//! Connections that rest, stall or dawdle, over both APIs. The times are short and the clock's.

use std::net::SocketAddr;
use std::time::Instant;

use palimpsest_tls::{Incoming, Limits};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};

use super::*;

/// Longer than anything here takes, on a machine that does much else.
const PATIENCE: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(300);

/// Limits that nothing meets.
fn unlimited() -> Limits {
    let never = Duration::from_secs(3600);
    Limits {
        first_byte_time: never,
        handshake_time: never,
        head_time: never,
        idle_time: never,
        stall_time: never,
        ..Limits::default()
    }
}

struct Ports {
    _coordinator: Coordinator,
    grpc: SocketAddr,
    http: SocketAddr,
}

/// A service whose rank takes 5 ms for each token.
async fn serve(limits: Limits) -> Ports {
    let rank = FakeRank::new(Script::endless(0, 1).with_step_time(Duration::from_millis(5)));
    let executor = Box::new(ChannelExecutor::new(vec![rank.spawn()], PATIENCE));
    let coordinator = Coordinator::build(Config::default(), executor, vec![rank.info()]).unwrap();
    assert!(coordinator.ready().await);
    let (grpc, http) = (
        TcpListener::bind("127.0.0.1:0").await.unwrap(),
        TcpListener::bind("127.0.0.1:0").await.unwrap(),
    );
    let ports = Ports {
        grpc: grpc.local_addr().unwrap(),
        http: http.local_addr().unwrap(),
        _coordinator: coordinator.clone(),
    };
    let (grpc, http) = (
        Incoming::new(grpc, None, limits),
        Incoming::new(http, None, limits),
    );
    let other = coordinator.clone();
    tokio::spawn(async move { coordinator.serve(grpc, std::future::pending()).await });
    tokio::spawn(async move { other.serve_http(http, std::future::pending()).await });
    ports
}

async fn connect(address: SocketAddr) -> TcpStream {
    TcpStream::connect(address).await.unwrap()
}

/// Time until the other side closes the connection.
async fn closed_after(stream: &mut TcpStream) -> Duration {
    let since = Instant::now();
    let mut bytes = Vec::new();
    // A reset closes it as well.
    let _ = timeout(PATIENCE, stream.read_to_end(&mut bytes))
        .await
        .expect("it is closed");
    since.elapsed()
}

/// Asks for the health of the service and reads the answer; the connection stays.
async fn is_healthy(stream: &mut TcpStream) -> bool {
    let request = b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n";
    if stream.write_all(request).await.is_err() {
        return false;
    }
    let mut answer = Vec::new();
    let mut part = [0; 1024];
    while !answer.ends_with(b"\r\n\r\nok") {
        match timeout(PATIENCE, stream.read(&mut part))
            .await
            .expect("an end")
        {
            Ok(count @ 1..) => answer.extend(&part[..count]),
            _ => return false,
        }
    }
    true
}

/// A post for a stream without an end.
fn endless() -> String {
    let body = r#"{"prompt": "a", "max_tokens": 100000, "stream": true, "ignore_eos": true}"#;
    let head = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length";
    format!("{head}: {}\r\n\r\n{body}", body.len())
}

/// Guards against detection of the protocol, which waited for ever for the second letter.
#[tokio::test]
async fn a_head_that_does_not_come_is_not_waited_for() {
    let ports = serve(Limits {
        head_time: SHORT,
        ..unlimited()
    })
    .await;
    for address in [ports.http, ports.grpc] {
        for part in ["P", "PRI * HT", "GET /health HTTP/1.1\r\nhost"] {
            let mut stream = connect(address).await;
            stream.write_all(part.as_bytes()).await.unwrap();
            let after = closed_after(&mut stream).await;
            // gRPC takes what is not HTTP/2 for an error at once.
            let is_grpc = address == ports.grpc;
            assert!(is_grpc || after >= SHORT / 2, "{part:?}: {after:?}");
        }
    }
}

#[tokio::test]
async fn a_connection_is_kept_between_requests_for_the_idle_time_and_no_longer() {
    let ports = serve(Limits {
        head_time: SHORT / 3,
        idle_time: 3 * SHORT,
        ..unlimited()
    })
    .await;
    let mut stream = connect(ports.http).await;
    assert!(is_healthy(&mut stream).await);
    sleep(SHORT).await;
    assert!(is_healthy(&mut stream).await, "rest is no slow head");
    let after = closed_after(&mut stream).await;
    assert!(after >= 2 * SHORT, "{after:?}");
    // HTTP/2 without a request: its preface, and an empty frame of settings.
    for address in [ports.http, ports.grpc] {
        let mut stream = connect(address).await;
        let opening = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
        stream.write_all(opening).await.unwrap();
        let after = closed_after(&mut stream).await;
        assert!(after >= 2 * SHORT, "{after:?}");
    }
}

#[tokio::test]
async fn a_stream_outlives_the_idle_time_over_both_apis() {
    let ports = serve(Limits {
        idle_time: SHORT,
        head_time: SHORT,
        ..unlimited()
    })
    .await;
    let channel = Channel::from_shared(format!("http://{}", ports.grpc)).unwrap();
    let mut client = InferenceClient::new(channel.connect().await.unwrap());
    let mut events = client
        .generate(request("x", 100_000))
        .await
        .unwrap()
        .into_inner();
    let mut stream = connect(ports.http).await;
    stream.write_all(endless().as_bytes()).await.unwrap();
    let since = Instant::now();
    let mut part = [0; 4096];
    while since.elapsed() < 4 * SHORT {
        events.message().await.unwrap().unwrap();
        assert!(stream.read(&mut part).await.unwrap() > 0);
    }
    drop(events);
    let after = closed_after(&mut stream);
    assert!(timeout(4 * SHORT, after).await.is_err(), "it goes on");
}

/// Guards against answers that stay in memory because their client reads nothing.
#[tokio::test]
async fn a_client_that_reads_nothing_is_closed_in_the_stall_time() {
    let ports = serve(Limits {
        stall_time: SHORT,
        ..unlimited()
    })
    .await;
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    // The least that the system has, so that it is full soon.
    socket.set_recv_buffer_size(1).unwrap();
    let mut stream = socket.connect(ports.http).await.unwrap();
    // More answers than all buffers hold, asked for in one go; none of them is read.
    let asks = b"GET /openapi.json HTTP/1.1\r\nhost: localhost\r\n\r\n".repeat(2000);
    let closed = async {
        while stream.write_all(&asks).await.is_ok() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, closed).await.expect("it is closed");
    // The server goes on.
    assert!(is_healthy(&mut connect(ports.http).await).await);
}

/// One that stops asking for its answer by HTTP/2's own window is no better than one that stops
/// reading the socket.
#[tokio::test]
async fn an_answer_that_its_window_holds_back_keeps_no_connection() {
    let ports = serve(Limits {
        idle_time: SHORT,
        ..unlimited()
    })
    .await;
    let mut stream = connect(ports.http).await;
    // Settings with an initial window of nothing (RFC 9113, section 6.5.2), and GET
    // /openapi.json in literals of HPACK: `:method`, `:scheme` and then `:path`, `:authority`.
    let mut opening = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    opening.extend(b"\0\0\x06\x04\0\0\0\0\0\0\x04\0\0\0\0");
    let mut head = vec![0x82, 0x86, 0x04, 13];
    head.extend(b"/openapi.json");
    head.extend([0x01, 9]);
    head.extend(b"localhost");
    opening.extend([0, 0, head.len() as u8, 1, 5, 0, 0, 0, 1]);
    opening.extend(&head);
    stream.write_all(&opening).await.unwrap();
    let since = Instant::now();
    let mut answer = Vec::new();
    let ended = timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
    assert!(ended.is_ok() && since.elapsed() >= SHORT / 2);
    let (mut kinds, mut rest) = (Vec::new(), &answer[..]);
    while let [a, b, c, kind, _, _, _, _, _, after @ ..] = rest {
        kinds.push(*kind);
        let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
        rest = after.get(length..).unwrap_or_default();
    }
    // The head of the answer (1) came, and nothing of its body (0).
    assert!(kinds.contains(&1) && !kinds.contains(&0), "{kinds:?}");
}
