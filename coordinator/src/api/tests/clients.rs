//! By what clients are told from each other, where no keys are: both APIs know their addresses.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use palimpsest_tls::{Incoming, Limits};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::{sleep, timeout};
use tonic::transport::Endpoint;

use super::*;
use crate::admission::Queued;

/// Longer than anything here takes, on a machine that does much else.
const PATIENCE: Duration = Duration::from_secs(20);

/// An address of this machine.
fn host(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(127, 0, 0, number)
}

/// Posts a request for a stream without an end, from an address of this machine.
async fn post(from: Ipv4Addr, server: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((from, 0).into()).unwrap();
    let mut stream = socket.connect(server).await.unwrap();
    let body = r#"{"prompt": "a", "max_tokens": 100000, "stream": true, "ignore_eos": true}"#;
    let head = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length";
    let request = format!("{head}: {}\r\n\r\n{body}", body.len());
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

/// A client of gRPC at an address of this machine.
async fn client(from: Ipv4Addr, server: SocketAddr) -> InferenceClient<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{server}")).unwrap();
    let endpoint = endpoint.local_address(Some(IpAddr::V4(from)));
    InferenceClient::new(endpoint.connect().await.unwrap())
}

/// Waits until so many requests wait.
async fn until_waiting(coordinator: &Coordinator, requests: usize) {
    let queue = coordinator.service().driver.admission();
    let reached = async {
        while queue.waiting().requests != requests {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, reached).await.expect("so many wait");
}

#[tokio::test]
async fn clients_without_keys_are_known_by_their_addresses_over_both_apis() {
    let config = Config {
        max_running: 1,
        max_queued: 3,
        ..Config::default()
    };
    let rank = FakeRank::new(Script::endless(0, 1).with_step_time(Duration::from_millis(5)));
    let executor = Box::new(ChannelExecutor::new(vec![rank.spawn()], PATIENCE));
    let coordinator = Coordinator::build(config, executor, vec![rank.info()]).unwrap();
    assert!(coordinator.ready().await);
    let http = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = http.local_addr().unwrap();
    let http = Incoming::new(http, None, Limits::default());
    let other = coordinator.clone();
    tokio::spawn(async move { other.serve_http(http, std::future::pending()).await });
    let grpc = coordinator.serve_local().await.unwrap();

    let mut many = vec![post(host(1), address).await];
    while coordinator
        .service()
        .metrics
        .encode()
        .contains("_requests_running 0")
    {
        sleep(Duration::from_millis(5)).await;
    }
    for waiting in 1..=3 {
        many.push(post(host(1), address).await);
        until_waiting(&coordinator, waiting).await;
    }
    let mut same = client(host(1), grpc.address).await;
    let refused = same.generate(request("a", 9)).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    let mut few = client(host(2), grpc.address).await;
    let second = few.generate(request("a", 9)).await.unwrap();
    let third = post(host(3), address).await;
    // The two newest of the first client have lost their places to these.
    for lost in [3, 2] {
        let mut answer = Vec::new();
        while !String::from_utf8_lossy(&answer).contains("queue_full") {
            let read = timeout(PATIENCE, many[lost].read_buf(&mut answer));
            assert!(read.await.expect("in time").unwrap() > 0);
        }
    }
    let three = Queued {
        requests: 3,
        tokens: 3,
    };
    assert_eq!(coordinator.service().driver.admission().waiting(), three);
    drop((second, third));
}
