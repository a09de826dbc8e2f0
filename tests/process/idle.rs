//! What a stream costs that waits.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::serving::Serving;

const STREAMS: usize = 1000;
/// KiB that all of them may add to the resident set: 50 MB.
const LIMIT_KIB: u64 = 50_000_000 / 1024;
/// More descriptors than the streams take, here and in the program, which inherits the limit.
const DESCRIPTORS: u64 = 4096;

/// Sends a request for a stream and reads up to its first event: it is accepted, and waits or runs.
fn open(address: &str) -> BufReader<TcpStream> {
    let body = r#"{"messages": [{"role": "user", "content": "a"}], "max_tokens": 100000,
        "ignore_eos": true, "stream": true, "kv_policy": "window"}"#;
    let mut stream = TcpStream::connect(address).expect("a connection");
    stream
        .set_read_timeout(Some(Duration::from_secs(60)))
        .expect("a connection");
    let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length";
    stream
        .write_all(format!("{head}: {}\r\n\r\n{body}", body.len()).as_bytes())
        .expect("a request");
    let mut lines = BufReader::new(stream);
    let mut line = String::new();
    while !line.starts_with("data: ") {
        line.clear();
        assert!(
            lines.read_line(&mut line).expect("text") > 0,
            "it closed the connection"
        );
        assert!(!line.contains("error"), "{line}");
    }
    lines
}

#[test]
fn a_thousand_streams_that_wait_cost_less_than_50_mb() {
    let limit = getrlimit(Resource::Nofile);
    let current = limit
        .maximum
        .map_or(DESCRIPTORS, |most| most.min(DESCRIPTORS));
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: Some(current),
            ..limit
        },
    )
    .expect("below the maximum");
    // One runs, so that all others wait in the queue.
    let serving = Serving::start_with(&[], &["--max-running", "1", "--max-queued", "2000"]);
    // What the first requests need once is not what a stream costs.
    let mut streams: Vec<_> = (0..10).map(|_| open(&serving.http)).collect();
    let before = serving.resident_kib();
    let started = Instant::now();
    streams.extend((0..STREAMS).map(|_| open(&serving.http)));
    let grown = serving.resident_kib().saturating_sub(before);
    println!(
        "{STREAMS} waiting streams add {grown} KiB to {before} KiB, {:.1} KiB each; opened in \
         {:.1} s",
        grown as f64 / STREAMS as f64,
        started.elapsed().as_secs_f64()
    );
    assert!(
        grown < LIMIT_KIB,
        "{grown} KiB, the limit is {LIMIT_KIB} KiB"
    );
    // The gauge is as old as the running step.
    let all_wait = || {
        serving
            .send("GET", "/metrics", "", "")
            .lines()
            .any(|line| line == "palimpsest_requests_queued 1009")
    };
    let deadline = Instant::now() + Duration::from_secs(30);
    while !all_wait() {
        assert!(Instant::now() < deadline, "not all of them wait");
        std::thread::sleep(Duration::from_millis(50));
    }
    drop(streams);
    let log = serving.stop();
    assert!(!log.contains("panicked"), "{log}");
}
