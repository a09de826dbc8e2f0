//! Whole runs against servers on a local socket that stream, refuse, stall and speak
//! nonsense.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::tcp::OwnedWriteHalf;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;

use super::measure::Failures;
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

/// OpenAI's error of a server that is busy.
const REFUSED: &str = r#"{"error": {"message": "the queue is full", "type": "rate_limit_error",
    "code": "queue_full"}}"#;

/// Answers one completion; whether the connection stays open.
async fn answer(
    write: &mut OwnedWriteHalf,
    behaviour: Behaviour,
    body: &Value,
) -> std::io::Result<bool> {
    const JSON: &str = "application/json";
    match behaviour {
        Behaviour::Busy => whole(write, "429 Too Many Requests", JSON, REFUSED).await?,
        Behaviour::NotAStream => {
            whole(write, "200 OK", JSON, r#"{"choices":[{"text":"x"}]}"#).await?;
        }
        Behaviour::NotHttp => {
            let greeting = b"\x00\x01 hello, this is no web server\r\n\r\n";
            write.write_all(greeting).await?;
            return Ok(false);
        }
        _ => return stream(write, behaviour, body).await,
    }
    Ok(true)
}

/// Answers with a stream, or with the beginning of one; whether the connection stays open.
async fn stream(
    write: &mut OwnedWriteHalf,
    behaviour: Behaviour,
    body: &Value,
) -> std::io::Result<bool> {
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
            event(write, &REFUSED.replace('\n', "")).await?;
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
            unreachable!("answered without a stream")
        }
    }
    write.write_all(b"0\r\n\r\n").await?;
    Ok(true)
}

/// Twenty requests of 30 tokens, answers of 5, all within a fifth of a second.
fn config(url: &str) -> Config {
    Config {
        url: url.to_owned(),
        model: None,
        plan: Plan {
            rate: 100.0,
            requests: Some(20),
            duration: None,
            prompt_tokens: Tokens::Fixed(30),
            output_tokens: Tokens::Fixed(5),
            seed: 7,
        },
        text: include_str!("../../assets/gpl-3.0.txt").to_owned(),
        tokens_per_word: None,
        objective: Objective::default(),
        body: None,
        api_key: None,
        tls: ClientFiles::default(),
        timeout: Duration::from_secs(300),
        max_in_flight: 4096,
    }
}

/// A run to its end.
async fn load(config: &Config) -> Result<Finished, Error> {
    run(config, std::future::pending(), |_| ()).await
}

/// A run and what the server was asked.
struct Ran {
    setting: Setting,
    measured: Measurement,
    asked: Asked,
}

/// A run against a server of `behaviour`, with a configuration that `change` changes.
async fn run_against(behaviour: Behaviour, change: impl FnOnce(&mut Config)) -> Result<Ran, Error> {
    let (address, asked) = server(behaviour).await;
    let mut config = config(&format!("http://{address}"));
    change(&mut config);
    let Finished { setting, measured } = load(&config).await?;
    Ok(Ran {
        setting,
        measured,
        asked,
    })
}

/// Without a first small request.
fn unprobed(config: &mut Config) {
    config.model = Some("tiny".into());
    config.tokens_per_word = Some(1.0);
}

/// A run without a first small request whose requests all fail, in one way: its kind, and what
/// came of it.
async fn failures_of(behaviour: Behaviour, change: impl FnOnce(&mut Config)) -> (String, Failures) {
    let ran = run_against(behaviour, |config| {
        unprobed(config);
        change(config);
    });
    let measured = ran.await.unwrap().measured;
    assert_eq!(
        (measured.completed, measured.good, measured.finished()),
        (0, 0, 20)
    );
    assert_eq!(measured.failures.len(), 1, "{:?}", measured.failures);
    measured.failures.into_iter().next().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_streams_is_measured() {
    let behaviour = Behaviour::Streams {
        prefill: 60 * MS,
        gap: 20 * MS,
    };
    // Loose bounds, since the machine may be busy.
    let ran = run_against(behaviour, |config| {
        config.objective = Objective {
            first_token: Some(2000 * MS),
            inter_token: Some(1000 * MS),
        };
        config.body = Some(r#"{"kv_budget":512}"#.into());
    });
    let Ran {
        setting,
        measured,
        asked,
    } = ran.await.unwrap();
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
    let ran = run_against(behaviour, |config| {
        config.objective.first_token = Some(10 * MS);
    });
    let measured = ran.await.unwrap().measured;
    assert_eq!((measured.completed, measured.good), (20, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn arrivals_do_not_wait_for_answers() {
    let behaviour = Behaviour::Streams {
        prefill: 400 * MS,
        gap: MS,
    };
    let ran = run_against(behaviour, |config| {
        config.model = Some("tiny".into());
        config.tokens_per_word = Some(2.0);
    });
    let Ran {
        setting, measured, ..
    } = ran.await.unwrap();
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
    let (kind, failures) = failures_of(Behaviour::Busy, |_| ()).await;
    assert_eq!((kind.as_str(), failures.count), ("http_429", 20));
    assert_eq!(failures.first, "HTTP 429: the queue is full");
    let error = run_against(Behaviour::Busy, |_| ())
        .await
        .map(|_| ())
        .expect_err("the first small request fails");
    assert!(error.to_string().contains("--tokens-per-word"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stalls_does_not_stall_the_run() {
    let started = Instant::now();
    let (kind, failures) = failures_of(Behaviour::Stalls, |config| {
        config.timeout = 300 * MS;
    })
    .await;
    assert_eq!((kind.as_str(), failures.count), ("timeout", 20));
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
        let (kind, failures) = failures_of(behaviour, |_| ()).await;
        assert_eq!(
            (kind.as_str(), failures.count),
            (expected, 20),
            "{behaviour:?}: {}",
            failures.first
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_listening_is_found_before_the_run() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let error = load(&config(&url))
        .await
        .map(|_| ())
        .expect_err("nobody listens");
    let Error::NoServer { source, .. } = error else {
        panic!("{error}")
    };
    assert!(source.to_string().contains("cannot connect"), "{source}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_is_sent_and_stopping_reports_what_there_is() {
    let (address, asked) = server(Behaviour::Streams {
        prefill: MS,
        gap: MS,
    })
    .await;
    let mut config = config(&format!("http://{address}/v1"));
    unprobed(&mut config);
    config.api_key = Some(ApiKey::from("k-1".to_owned()));
    config.plan.rate = 20.0;
    config.plan.requests = Some(2000);
    config.plan.output_tokens = Tokens::Fixed(2);
    let stop = sleep(Duration::from_secs(1));
    let Finished { setting, measured } = run(&config, stop, |_| ()).await.unwrap();
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
