//! The whole command against servers on a local socket that stream, refuse, stall and speak
//! nonsense.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use clap::Parser;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::tcp::OwnedWriteHalf;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;

use super::*;

const MS: Duration = Duration::from_millis(1);

/// How the server behaves towards completions.
#[derive(Debug, Clone, Copy)]
enum Behaviour {
    /// Prefill, then a token every gap, as many as were asked for.
    Streams { prefill: Duration, gap: Duration },
    /// 429 with an OpenAI error.
    Busy,
    /// One token, then silence.
    Stalls,
    /// A stream of events that are not completions.
    Garbage,
    /// Bytes that are not HTTP.
    NotHttp,
    /// JSON instead of a stream.
    NotAStream,
    /// Two tokens, then the connection closes.
    BreaksOff,
    /// Two tokens, then an error event.
    FailsMidway,
}

/// What clients asked: the request's head and its body.
type Asked = Arc<Mutex<Vec<(String, Value)>>>;

async fn server(behaviour: Behaviour) -> (SocketAddr, Asked) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let asked = Asked::default();
    let record = Arc::clone(&asked);
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(serve(socket, behaviour, Arc::clone(&record)));
        }
    });
    (address, asked)
}

/// One connection, kept for several requests. A client that gives up closes it, which ends the
/// task.
async fn serve(socket: TcpStream, behaviour: Behaviour, asked: Asked) -> std::io::Result<()> {
    socket.set_nodelay(true)?;
    let (read, mut write) = socket.into_split();
    let mut read = BufReader::new(read);
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if read.read_line(&mut head).await? == 0 {
                return Ok(());
            }
        }
        let lowercase = head.to_ascii_lowercase();
        let length = lowercase
            .lines()
            .find_map(|line| line.strip_prefix("content-length: ")?.trim().parse().ok());
        let mut body = vec![0; length.unwrap_or(0)];
        read.read_exact(&mut body).await?;
        if head.starts_with("GET /v1/models ") {
            let models = json!({"object": "list", "data": [{"id": "tiny"}, {"id": "other"}]});
            whole(
                &mut write,
                "200 OK",
                "application/json",
                &models.to_string(),
            )
            .await?;
            continue;
        }
        assert!(head.starts_with("POST /v1/completions "), "{head}");
        let body: Value = serde_json::from_slice(&body).unwrap();
        asked.lock().unwrap().push((head, body.clone()));
        if !answer(&mut write, behaviour, &body).await? {
            return Ok(());
        }
    }
}

async fn whole(
    write: &mut OwnedWriteHalf,
    status: &str,
    kind: &str,
    body: &str,
) -> std::io::Result<()> {
    let length = body.len();
    let head =
        format!("HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\n\r\n");
    write.write_all(format!("{head}{body}").as_bytes()).await
}

async fn event(write: &mut OwnedWriteHalf, data: &str) -> std::io::Result<()> {
    let event = format!("data: {data}\n\n");
    let chunk = format!("{:x}\r\n{event}\r\n", event.len());
    // Cut in the middle, so that the reader has something to put together.
    let (first, second) = chunk.as_bytes().split_at(chunk.len() / 2);
    write.write_all(first).await?;
    write.write_all(second).await
}

async fn tokens(write: &mut OwnedWriteHalf, count: u64, gap: Duration) -> std::io::Result<()> {
    for i in 0..count {
        if i > 0 {
            sleep(gap).await;
        }
        event(
            write,
            &json!({"choices": [{"index": 0, "text": format!(" w{i}"), "finish_reason": null}]})
                .to_string(),
        )
        .await?;
    }
    Ok(())
}

/// Answers one completion; whether the connection stays open.
async fn answer(
    write: &mut OwnedWriteHalf,
    behaviour: Behaviour,
    body: &Value,
) -> std::io::Result<bool> {
    let refused = json!({"error": {"message": "the queue is full", "type": "rate_limit_error", "code": "queue_full"}});
    match behaviour {
        Behaviour::Busy => {
            whole(
                write,
                "429 Too Many Requests",
                "application/json",
                &refused.to_string(),
            )
            .await?;
            return Ok(true);
        }
        Behaviour::NotAStream => {
            whole(
                write,
                "200 OK",
                "application/json",
                r#"{"choices":[{"text":"x"}]}"#,
            )
            .await?;
            return Ok(true);
        }
        Behaviour::NotHttp => {
            write
                .write_all(b"\x00\x01 hello, this is no web server\r\n\r\n")
                .await?;
            return Ok(false);
        }
        _ => {}
    }
    let head =
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
    write.write_all(head.as_bytes()).await?;
    match behaviour {
        Behaviour::Garbage => event(write, "{\"choices\": [").await?,
        Behaviour::BreaksOff => {
            tokens(write, 2, MS).await?;
            return Ok(false);
        }
        Behaviour::FailsMidway => {
            tokens(write, 2, MS).await?;
            event(write, &refused.to_string()).await?;
        }
        Behaviour::Stalls => {
            tokens(write, 1, MS).await?;
            sleep(Duration::from_secs(3600)).await;
        }
        Behaviour::Streams { prefill, gap } => {
            sleep(prefill).await;
            let count = body["max_tokens"].as_u64().unwrap();
            tokens(write, count, gap).await?;
            let words = body["prompt"].as_str().unwrap().split_whitespace().count();
            // Two tokens a word, so that the generator has something to find out.
            let usage =
                json!({"prompt_tokens": 2 * words, "completion_tokens": count, "total_tokens": 0});
            event(write, &json!({"choices": [], "usage": usage}).to_string()).await?;
            event(write, "[DONE]").await?;
        }
        Behaviour::Busy | Behaviour::NotAStream | Behaviour::NotHttp => {
            unreachable!("answered above")
        }
    }
    write.write_all(b"0\r\n\r\n").await?;
    Ok(true)
}

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    load: LoadArgs,
}

fn args(line: &[&str]) -> LoadArgs {
    Line::try_parse_from(std::iter::once(&"load").chain(line))
        .map(|line| line.load)
        .unwrap()
}

/// A run against a server of `behaviour`, with `extra` arguments.
async fn run_against(
    behaviour: Behaviour,
    extra: &[&str],
) -> anyhow::Result<(Setting, Measurement, Asked)> {
    let (address, asked) = server(behaviour).await;
    let url = format!("http://{address}");
    let mut line = vec!["--url", &url, "--rate", "100", "--requests", "20"];
    line.extend(["--prompt-tokens", "fixed:30", "--output-tokens", "fixed:5"]);
    line.extend(extra);
    let (setting, measured) = load(&args(&line), std::future::pending()).await?;
    Ok((setting, measured, asked))
}

/// As above, without a first small request: all fail, in one way.
async fn failures_of(behaviour: Behaviour, extra: &[&str]) -> (String, u64, String) {
    let mut line = vec!["--model", "tiny", "--tokens-per-word", "1"];
    line.extend(extra);
    let (_, measured, _) = run_against(behaviour, &line).await.unwrap();
    assert_eq!(
        (measured.completed, measured.good, measured.finished()),
        (0, 0, 20)
    );
    assert_eq!(measured.failures.len(), 1, "{:?}", measured.failures);
    let (kind, (count, first)) = measured.failures.into_iter().next().unwrap();
    (kind, count, first)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_streams_is_measured() {
    let behaviour = Behaviour::Streams {
        prefill: 60 * MS,
        gap: 20 * MS,
    };
    // The second limit is twice the gap; loose bounds, since the machine may be busy.
    let extra = [
        "--slo-ttft-ms",
        "2000",
        "--slo-itl-ms",
        "1000",
        "--body",
        r#"{"kv_budget":512}"#,
    ];
    let (setting, measured, asked) = run_against(behaviour, &extra).await.unwrap();
    assert_eq!(
        (setting.model.as_str(), setting.tokens_per_word),
        ("tiny", 2.0)
    );
    assert_eq!(
        (measured.completed, measured.good, measured.failures.len()),
        (20, 20, 0)
    );
    assert_eq!(
        (
            measured.output_tokens,
            measured.prompt_tokens,
            measured.uncounted
        ),
        (100, 600, 0)
    );
    let asked = asked.lock().unwrap();
    assert_eq!(asked.len(), 21, "a first small request and twenty");
    assert!(
        asked
            .iter()
            .all(|(_, body)| body["kv_budget"] == 512 && body["model"] == "tiny")
    );
    let first = measured.first_token.percentile_ms(50.0).unwrap();
    assert!((60.0..1000.0).contains(&first), "{first}");
    // Mean, not median: a delayed packet shortens the gap after it.
    let gap = measured.inter_token.mean_ms().unwrap();
    assert!((18.0..400.0).contains(&gap), "{gap}");
    assert!(measured.end_to_end.percentile_ms(50.0).unwrap() >= first + 4.0 * 18.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_too_slow_are_complete_and_not_good() {
    let behaviour = Behaviour::Streams {
        prefill: 30 * MS,
        gap: 5 * MS,
    };
    let (_, measured, _) = run_against(behaviour, &["--slo-ttft-ms", "10"])
        .await
        .unwrap();
    assert_eq!((measured.completed, measured.good), (20, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn arrivals_do_not_wait_for_answers() {
    let behaviour = Behaviour::Streams {
        prefill: 400 * MS,
        gap: MS,
    };
    let (setting, measured, _) =
        run_against(behaviour, &["--model", "tiny", "--tokens-per-word", "2"])
            .await
            .unwrap();
    // One after the other would take 20 * 0.4 s.
    let limit = setting.last_arrival_seconds + 4.0;
    assert!(
        measured.elapsed.as_secs_f64() < limit,
        "{:?}",
        measured.elapsed
    );
    assert_eq!(measured.completed, 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_busy_server_is_counted_with_its_reason() {
    let (kind, count, first) = failures_of(Behaviour::Busy, &[]).await;
    assert_eq!(
        (kind.as_str(), count, first.as_str()),
        ("http_429", 20, "HTTP 429: the queue is full")
    );
    let error = run_against(Behaviour::Busy, &[])
        .await
        .map(|_| ())
        .expect_err("the first small request fails");
    assert!(
        format!("{error:#}").contains("--tokens-per-word"),
        "{error:#}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stalls_does_not_stall_the_run() {
    let started = Instant::now();
    let (kind, count, _) = failures_of(Behaviour::Stalls, &["--timeout", "0.3"]).await;
    assert_eq!((kind.as_str(), count), ("timeout", 20));
    assert!(started.elapsed() < Duration::from_secs(20));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nonsense_has_a_name() {
    for (behaviour, expected) in [
        (Behaviour::Garbage, "protocol"),
        (Behaviour::NotHttp, "protocol"),
        (Behaviour::NotAStream, "protocol"),
        (Behaviour::BreaksOff, "truncated"),
        (Behaviour::FailsMidway, "stream_error"),
    ] {
        let (kind, count, first) = failures_of(behaviour, &[]).await;
        assert_eq!(
            (kind.as_str(), count),
            (expected, 20),
            "{behaviour:?}: {first}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_listening_is_found_before_the_run() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let line = ["--url", &url, "--requests", "1"];
    let error = load(&args(&line), std::future::pending())
        .await
        .map(|_| ())
        .expect_err("nobody listens");
    assert!(format!("{error:#}").contains("cannot connect"), "{error:#}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_is_sent_and_stopping_reports_what_there_is() {
    let (address, asked) = server(Behaviour::Streams {
        prefill: MS,
        gap: MS,
    })
    .await;
    let url = format!("http://{address}/v1");
    let mut line = vec![
        "--url",
        &url,
        "--model",
        "tiny",
        "--tokens-per-word",
        "2",
        "--api-key",
        "k-1",
    ];
    line.extend([
        "--rate",
        "20",
        "--requests",
        "2000",
        "--output-tokens",
        "fixed:2",
    ]);
    let (setting, measured) = load(&args(&line), sleep(Duration::from_secs(1)))
        .await
        .unwrap();
    assert_eq!(setting.requests, 2000);
    assert!(
        (1..1000).contains(&measured.completed),
        "{}",
        measured.completed
    );
    assert!(measured.failures.is_empty(), "{:?}", measured.failures);
    assert!(
        asked
            .lock()
            .unwrap()
            .iter()
            .all(|(head, _)| head.contains("authorization: Bearer k-1"))
    );
}

#[test]
fn a_run_must_end() {
    assert!(Line::try_parse_from(["load"]).is_err());
    assert!(Line::try_parse_from(["load", "--duration", "0"]).is_err());
    assert_eq!(args(&["--duration", "1.5s"]).duration, Some(1500 * MS));
}
