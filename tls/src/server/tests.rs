//! Ports under clients that say nothing, read nothing, or come in numbers. Limits are short, and
//! times are the clock's: sockets know no other.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Instant;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;
use tokio::task::JoinHandle;

use super::*;

/// Longer than anything here takes, on a machine that does much else.
const PATIENCE: Duration = Duration::from_secs(20);

/// Limits that nothing meets.
fn unlimited() -> Limits {
    let never = Duration::from_secs(3600);
    Limits {
        connections: 1000,
        connections_per_address: 1000,
        first_byte_time: never,
        handshake_time: never,
        head_time: never,
        idle_time: never,
        stall_time: never,
    }
}

async fn listen(limits: Limits) -> (Incoming, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let incoming = Incoming::new(listener, None, limits).counting_requests();
    let address = incoming.local_addr().expect("an address");
    (incoming, address)
}

/// Takes every connection and answers each byte with itself.
fn echo(mut incoming: Incoming) -> JoinHandle<()> {
    tokio::spawn(async move {
        loop {
            let stream = incoming.accept().await;
            tokio::spawn(async move {
                let (mut read, mut write) = tokio::io::split(stream);
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    })
}

async fn connect(address: SocketAddr) -> TcpStream {
    TcpStream::connect(address).await.expect("a connection")
}

/// From another address of this machine.
async fn connect_from(source: Ipv4Addr, address: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket
        .bind(SocketAddrV4::new(source, 0).into())
        .expect("an address");
    socket.connect(address).await.expect("a connection")
}

/// Whether a byte comes back; false where the connection is closed.
async fn echoes(stream: &mut TcpStream) -> bool {
    let mut answer = [0];
    let echoed = async {
        stream.write_all(b"a").await?;
        stream.read_exact(&mut answer).await
    };
    timeout(PATIENCE, echoed).await.expect("an end").is_ok()
}

/// What comes until the connection is closed.
async fn until_closed(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    // A reset closes it as well.
    let _ = timeout(PATIENCE, stream.read_to_end(&mut bytes))
        .await
        .expect("it is closed");
    bytes
}

/// Guards against a port that idle connections shut: more of them than there are places, and
/// whoever speaks is answered.
#[tokio::test]
async fn silent_connections_take_no_place_from_one_that_speaks() {
    let (incoming, address) = listen(Limits {
        connections: 64,
        ..unlimited()
    })
    .await;
    let refused = incoming.refused();
    let server = echo(incoming);
    let mut speaks = connect(address).await;
    assert!(echoes(&mut speaks).await);
    let mut silent = Vec::new();
    for _ in 0..300 {
        silent.push(connect(address).await);
    }
    let mut late = connect(address).await;
    assert!(echoes(&mut late).await, "one more is served");
    assert!(echoes(&mut speaks).await, "one that spoke is kept");
    for stream in silent.iter_mut().take(200) {
        assert_eq!(until_closed(stream).await, b"", "the oldest are closed");
    }
    assert!(echoes(&mut silent[299]).await, "the youngest are not");
    assert!(refused.of(Refusal::Displaced) >= 200);
    assert_eq!(refused.of(Refusal::PortFull), 0);
    server.abort();
}

#[tokio::test]
async fn a_connection_that_says_nothing_is_closed_in_its_time() {
    let (incoming, address) = listen(Limits {
        first_byte_time: Duration::from_millis(200),
        ..unlimited()
    })
    .await;
    let refused = incoming.refused();
    let server = echo(incoming);
    let since = Instant::now();
    let (mut silent, mut speaks) = (connect(address).await, connect(address).await);
    assert!(echoes(&mut speaks).await);
    assert_eq!(until_closed(&mut silent).await, b"");
    assert!(since.elapsed() >= Duration::from_millis(200));
    assert!(echoes(&mut speaks).await, "one that spoke is kept");
    assert_eq!(refused.of(Refusal::Silent), 1);
    server.abort();
}

/// A connection that waits in the backlog looks like a server that hangs.
#[tokio::test]
async fn where_all_have_spoken_one_more_is_told_so_at_once() {
    let (incoming, address) = listen(Limits {
        connections: 2,
        ..unlimited()
    })
    .await;
    let refused = incoming.refused();
    let server = echo(incoming);
    let (mut first, mut second) = (connect(address).await, connect(address).await);
    assert!(echoes(&mut first).await && echoes(&mut second).await);
    let answer = until_closed(&mut connect(address).await).await;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    assert!(
        answer.starts_with("HTTP/1.1 503 ") && answer.contains("too_many_connections"),
        "{answer:?}"
    );
    assert_eq!(refused.of(Refusal::PortFull), 1);
    drop(first);
    // Its place is free when the server has seen it go.
    let served = async {
        while !echoes(&mut connect(address).await).await {
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(PATIENCE, served).await.expect("a free place");
    server.abort();
}

#[tokio::test]
async fn an_address_that_has_its_share_leaves_room_for_others() {
    let (incoming, address) = listen(Limits {
        connections: 10,
        connections_per_address: 3,
        ..unlimited()
    })
    .await;
    let counts = incoming.refused();
    let server = echo(incoming);
    let mut held = Vec::new();
    for _ in 0..3 {
        let mut stream = connect(address).await;
        assert!(echoes(&mut stream).await);
        held.push(stream);
    }
    let refused = until_closed(&mut connect(address).await).await;
    assert!(refused.starts_with(b"HTTP/1.1 503 "));
    assert_eq!(counts.of(Refusal::AddressFull), 1);
    let mut other = connect_from(Ipv4Addr::new(127, 0, 0, 2), address).await;
    assert!(echoes(&mut other).await);
    server.abort();
}

/// Guards against a client that asks for much and reads nothing: its answer stays in memory for as
/// long as it likes.
#[tokio::test]
async fn a_peer_that_takes_nothing_is_closed_in_the_stall_time() {
    let (mut incoming, address) = listen(Limits {
        stall_time: Duration::from_millis(200),
        ..unlimited()
    })
    .await;
    let mut client = connect(address).await;
    client.write_all(b"a").await.expect("a connection");
    let mut stream = incoming.accept().await;
    let request = stream.requests().begin();
    let endless = async {
        loop {
            if let Err(error) = stream.write_all(&[0; 64 << 10]).await {
                return error;
            }
        }
    };
    let error = timeout(PATIENCE, endless).await.expect("an end");
    assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{error}");
    drop((client, request));
}

/// A slow reader is no stalled one.
#[tokio::test]
async fn a_peer_that_reads_slowly_is_not_closed() {
    let (mut incoming, address) = listen(Limits {
        stall_time: Duration::from_millis(500),
        ..unlimited()
    })
    .await;
    let mut client = connect(address).await;
    client.write_all(b"a").await.expect("a connection");
    let mut stream = incoming.accept().await;
    let _request = stream.requests().begin();
    let reader = tokio::spawn(async move {
        let mut buffer = vec![0; 1 << 20];
        let mut read = 0;
        while read < 24 << 20 {
            sleep(Duration::from_millis(50)).await;
            read += client.read(&mut buffer).await.expect("bytes");
        }
    });
    let since = Instant::now();
    for _ in 0..24 << 4 {
        stream.write_all(&[0; 64 << 10]).await.expect("it is read");
    }
    reader.await.expect("no panic");
    assert!(since.elapsed() > Duration::from_millis(500));
}

#[tokio::test]
async fn a_connection_at_rest_is_closed_in_its_time_and_one_with_a_request_is_not() {
    let idle_time = Duration::from_millis(200);
    let (mut incoming, address) = listen(Limits {
        idle_time,
        ..unlimited()
    })
    .await;
    let mut client = connect(address).await;
    client.write_all(b"a").await.expect("a connection");
    let mut stream = incoming.accept().await;
    let mut byte = [0];
    stream.read_exact(&mut byte).await.expect("the first byte");
    let request = stream.requests().begin();
    let waited = timeout(2 * idle_time, stream.read(&mut byte)).await;
    assert!(waited.is_err(), "a request is under way");
    drop(request);
    let since = Instant::now();
    let closed = timeout(PATIENCE, stream.read(&mut byte)).await;
    let error = closed.expect("an end").expect_err("its time is over");
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    assert!(since.elapsed() >= idle_time);
}

/// The servers wait for connections and for their own end at once, so that a wait is dropped often.
#[tokio::test]
async fn a_dropped_wait_loses_no_connection() {
    let (mut incoming, address) = listen(unlimited()).await;
    let clients = tokio::spawn(async move {
        let mut clients = Vec::new();
        for _ in 0..50 {
            let mut client = connect(address).await;
            client.write_all(b"a").await.expect("a connection");
            clients.push(client);
        }
        clients
    });
    let mut taken = Vec::new();
    let since = Instant::now();
    while taken.len() < 50 {
        assert!(since.elapsed() < PATIENCE, "{} of 50 came", taken.len());
        if let Ok(stream) = timeout(Duration::from_micros(50), incoming.accept()).await {
            taken.push(stream);
        }
    }
    drop(clients.await.expect("no panic"));
}
