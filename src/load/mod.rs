//! `palimpsest bench load`: an open loop of requests against any OpenAI-compatible server.
//!
//! Requests are sent when they are due, whether or not earlier ones have been answered, as users do. Latency counts from the
//! moment a request was due, so that a server which stalls cannot hide it by holding the next ones back.

mod client;
mod report;
mod schedule;

use self::client::{Server, Timed};
use self::report::{Report, Slo};
use self::schedule::{Arrival, Lengths, poisson};
use crate::term;
use anyhow::Context;
use clap::Args;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// A document that may be copied verbatim.
const TEXT: &str = include_str!("../../assets/gpl-3.0.txt");
/// Words per token of English text, about.
const WORDS_PER_TOKEN: f64 = 0.75;

#[derive(Debug, Args)]
pub struct LoadArgs {
    /// Server to ask.
    #[arg(long, default_value = "http://127.0.0.1:8000")]
    url: String,
    /// Model to name; the first one that the server lists when not given.
    #[arg(long)]
    model: Option<String>,
    /// Requests per second, on average; they arrive at random.
    #[arg(long, default_value_t = 1.0)]
    rate: f64,
    /// Requests in all.
    #[arg(long, default_value_t = 20)]
    requests: usize,
    /// Tokens of prompts, about: 512, 100-2000 or lognormal:512,0.8
    #[arg(long, default_value = "512")]
    prompt_tokens: Lengths,
    /// Tokens of answers.
    #[arg(long, default_value = "32")]
    output_tokens: Lengths,
    /// Text that prompts are cut from.
    #[arg(long)]
    text: Option<PathBuf>,
    /// Milliseconds to the first token that a good request keeps to.
    #[arg(long, default_value_t = 2000)]
    slo_ttft_ms: u64,
    /// Mean milliseconds between tokens that a good request keeps to.
    #[arg(long, default_value_t = 200)]
    slo_itl_ms: u64,
    /// Fields for every request's body, such as '{"kv_budget": 512}'.
    #[arg(long, default_value = "{}")]
    body: String,
    /// Seed of arrivals and lengths.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// One JSON object instead of a table.
    #[arg(long)]
    json: bool,
}

/// Runs the load and prints what it was like. A key is read from PALIMPSEST_API_KEY.
pub async fn run(args: LoadArgs) -> anyhow::Result<()> {
    anyhow::ensure!(args.rate > 0.0 && args.rate.is_finite(), "--rate must be positive");
    let extra: Value = serde_json::from_str(&args.body).context("--body is no JSON")?;
    anyhow::ensure!(extra.is_object(), "--body must be a JSON object");
    let server = Server::new(&args.url, std::env::var("PALIMPSEST_API_KEY").ok())?;
    let model = match &args.model {
        Some(model) => model.clone(),
        None => server.model().await.with_context(|| format!("no server at {}", args.url))?,
    };
    let text = match &args.text {
        Some(path) => std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?,
        None => TEXT.to_owned(),
    };
    let words: Vec<&str> = text.split_whitespace().collect();
    anyhow::ensure!(!words.is_empty(), "the text has no words");
    let arrivals = poisson(args.rate, args.requests, (args.prompt_tokens, args.output_tokens), args.seed);
    let bodies: Vec<Value> =
        arrivals.iter().enumerate().map(|(i, arrival)| body(&model, &words, i, arrival, &extra)).collect();
    let started = Instant::now();
    let (timed, latest) = send(&server, &arrivals, bodies).await;
    let slo = Slo {
        first_token: Duration::from_millis(args.slo_ttft_ms),
        inter_token: Duration::from_millis(args.slo_itl_ms),
    };
    let mut report = Report::new(&timed, started.elapsed().as_secs_f64(), slo)?;
    report.latest = latest;
    if args.json {
        println!("{}", report.json());
    } else {
        print!("{}", report.table());
    }
    Ok(())
}

/// A request whose prompt is some part of the text, another one each time.
fn body(model: &str, words: &[&str], index: usize, arrival: &Arrival, extra: &Value) -> Value {
    let count = (f64::from(arrival.prompt_tokens) * WORDS_PER_TOKEN).ceil() as usize;
    let start = index.wrapping_mul(7919) % words.len();
    let prompt: Vec<&str> = words.iter().cycle().skip(start).take(count.max(1)).copied().collect();
    let mut body = json!({
        "model": model, "prompt": prompt.join(" "), "max_tokens": arrival.output_tokens, "temperature": 0, "stream": true,
        "stream_options": {"include_usage": true},
    });
    for (key, value) in extra.as_object().into_iter().flatten() {
        body[key] = value.clone();
    }
    body
}

/// Sends every request when it is due; returns what they were like, and by how much the latest was sent late.
async fn send(server: &Server, arrivals: &[Arrival], bodies: Vec<Value>) -> (Vec<Timed>, Duration) {
    let bar = term::progress(arrivals.len() as u64, "answered");
    let (started, mut latest) = (Instant::now(), Duration::ZERO);
    let mut running = JoinSet::new();
    for (arrival, body) in arrivals.iter().zip(bodies) {
        let due = started + arrival.at;
        tokio::time::sleep_until(due.into()).await;
        latest = latest.max(due.elapsed());
        let (server, bar) = (server.clone(), bar.clone());
        running.spawn(async move {
            let timed = server.complete(&body, due).await;
            bar.inc(1);
            timed
        });
    }
    let timed = running.join_all().await;
    bar.finish_and_clear();
    (timed, latest)
}
