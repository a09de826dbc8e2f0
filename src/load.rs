//! `palimpsest bench load`: an open-loop load on any server that speaks OpenAI's completions.
//!
//! ```text
//! schedule ── arrivals ──▶ measure::drive ── at their times ──▶ client ── sse ──▶ Outcome ──▶ Measurement ──▶ report
//! ```
//!
//! Absent on purpose: closed loops (a fixed number of users), which hide queueing; chat templates.

mod client;
mod corpus;
mod measure;
mod report;
mod schedule;
mod sse;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use client::{ApiKey, Ask, Client};
use corpus::Corpus;
use measure::{Measurement, Objective};
use report::{Report, Setting};
use schedule::{Arrival, Plan, Tokens};
use tokio::time::Instant;

use crate::args::ClientTlsArgs;
use crate::term;

/// The text without --text.
const DEFAULT_TEXT: &str = include_str!("../assets/gpl-3.0.txt");
/// Words of the first request, which finds out how many tokens a word has.
const PROBE_WORDS: usize = 200;

/// What was typed.
#[derive(Debug, Args)]
pub struct LoadArgs {
    /// Server to load; completions go to /v1/completions below it.
    #[arg(long, env = "PALIMPSEST_URL", default_value = "http://127.0.0.1:8000")]
    pub url: String,
    /// Model to ask for; the first that the server lists when not given.
    #[arg(long)]
    pub model: Option<String>,
    /// Mean arrivals per second, a Poisson process.
    #[arg(long, default_value_t = 1.0)]
    pub rate: f64,
    /// Requests to send.
    #[arg(long, required_unless_present = "duration")]
    pub requests: Option<usize>,
    /// Seconds in which requests arrive.
    #[arg(long, value_parser = seconds)]
    pub duration: Option<Duration>,
    /// Prompt lengths: fixed:N, uniform:A-B or lognormal:MEDIAN,SIGMA.
    #[arg(long, default_value = "lognormal:512,0.8")]
    pub prompt_tokens: Tokens,
    /// Answer lengths, as above; a model may end an answer earlier.
    #[arg(long, default_value = "lognormal:128,0.5")]
    pub output_tokens: Tokens,
    /// Text that prompts are cut from; the GPL when not given.
    #[arg(long)]
    pub text: Option<PathBuf>,
    /// Tokens of a word of the text; asked of the server with a first small request when not
    /// given.
    #[arg(long)]
    pub tokens_per_word: Option<f64>,
    /// A good request has its first token within this many milliseconds of its scheduled time.
    #[arg(long)]
    pub slo_ttft_ms: Option<f64>,
    /// A good request has at most this mean time between its tokens, in milliseconds.
    #[arg(long)]
    pub slo_itl_ms: Option<f64>,
    /// JSON object merged into each request, such as '{"kv_budget":1024}'.
    #[arg(long)]
    pub body: Option<String>,
    /// Sent as a bearer token.
    #[arg(long, env = "PALIMPSEST_API_KEY", hide_env_values = true)]
    pub api_key: Option<ApiKey>,
    #[command(flatten)]
    pub tls: ClientTlsArgs,
    /// Seconds after which a request is given up.
    #[arg(long, value_parser = seconds, default_value = "300")]
    pub timeout: Duration,
    /// Requests in flight at most; more are counted as not sent.
    #[arg(long, default_value_t = 4096)]
    pub max_in_flight: usize,
    /// Seed of times, lengths and prompts.
    #[arg(long, default_value_t = 7)]
    pub seed: u64,
    /// One JSON object instead of a table.
    #[arg(long)]
    pub json: bool,
}

/// A positive number of seconds.
fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text
        .trim_end_matches('s')
        .parse()
        .map_err(|_| "not a number of seconds".to_string())?;
    let duration = Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())?;
    if duration.is_zero() {
        Err("must be more than 0".into())
    } else {
        Ok(duration)
    }
}

/// Runs the load and prints the report.
pub async fn run(args: &LoadArgs) -> anyhow::Result<()> {
    let (setting, measured) = load(args, stop_signal()).await?;
    let report = Report {
        setting: &setting,
        measured: &measured,
    };
    if args.json {
        println!("{}", report.json());
        report
            .warnings()
            .iter()
            .for_each(|warning| eprintln!("warning: {warning}"));
    } else {
        print!("{}", report.text());
    }
    Ok(())
}

/// Everything but the printing.
async fn load(
    args: &LoadArgs,
    stop: impl Future<Output = ()>,
) -> anyhow::Result<(Setting, Measurement)> {
    let arrivals = plan(args).arrivals()?;
    let client = Client::new(
        &args.url,
        args.api_key.as_ref(),
        args.body.as_deref(),
        &args.tls,
    )?;
    let objective = Objective {
        first_token: limit(args.slo_ttft_ms)?,
        inter_token: limit(args.slo_itl_ms)?,
    };
    let corpus = open_corpus(args)?;
    let model = match &args.model {
        Some(model) => model.clone(),
        None => {
            let listed = client.first_model(Instant::now() + args.timeout).await;
            listed.with_context(|| {
                format!("{} does not name a model; give one with --model", args.url)
            })?
        }
    };
    let tokens_per_word = match args.tokens_per_word {
        Some(ratio) if ratio.is_finite() && ratio > 0.0 => ratio,
        Some(ratio) => anyhow::bail!("--tokens-per-word must be a positive number, not {ratio}"),
        None => probe(&client, &model, &corpus, args.timeout).await?,
    };
    let setting = setting(args, &model, tokens_per_word, &arrivals);
    let bar = term::progress(arrivals.len() as u64, "load");
    let timeout = args.timeout;
    let send = |arrival: Arrival| {
        let (client, model) = (client.clone(), model.clone());
        let words = (f64::from(arrival.prompt_tokens) / tokens_per_word).round() as usize;
        let prompt = corpus.prompt(arrival.text_offset, words);
        async move {
            let deadline = Instant::now() + timeout;
            client
                .complete(
                    &model,
                    &Ask {
                        prompt,
                        max_tokens: arrival.output_tokens,
                        deadline,
                    },
                )
                .await
        }
    };
    let grows = |measured: &Measurement| bar.set_position(measured.finished());
    let measured = measure::drive(
        &arrivals,
        args.max_in_flight.max(1),
        objective,
        send,
        stop,
        grows,
    )
    .await;
    bar.finish_and_clear();
    Ok((setting, measured))
}

fn plan(args: &LoadArgs) -> Plan {
    Plan {
        rate: args.rate,
        requests: args.requests,
        duration: args.duration,
        prompt_tokens: args.prompt_tokens,
        output_tokens: args.output_tokens,
        seed: args.seed,
    }
}

fn limit(ms: Option<f64>) -> anyhow::Result<Option<Duration>> {
    ms.map(|ms| {
        Duration::try_from_secs_f64(ms / 1e3).with_context(|| format!("{ms} ms is no time limit"))
    })
    .transpose()
}

fn open_corpus(args: &LoadArgs) -> anyhow::Result<Corpus> {
    let text = match &args.text {
        Some(path) => std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {}", path.display()))?,
        None => DEFAULT_TEXT.to_string(),
    };
    Corpus::new(text).context("the text of --text has no words")
}

fn setting(args: &LoadArgs, model: &str, tokens_per_word: f64, arrivals: &[Arrival]) -> Setting {
    Setting {
        url: args.url.clone(),
        model: model.into(),
        rate: args.rate,
        requests: arrivals.len(),
        last_arrival_seconds: arrivals
            .last()
            .map_or(0.0, |arrival| arrival.at.as_secs_f64()),
        seed: args.seed,
        prompt_tokens: args.prompt_tokens.to_string(),
        output_tokens: args.output_tokens.to_string(),
        tokens_per_word,
        slo_ttft_ms: args.slo_ttft_ms,
        slo_itl_ms: args.slo_itl_ms,
        body: args.body.clone(),
    }
}

/// Tokens per word of the text, by the server's own tokenizer. It also warms the server up and
/// finds a wrong address before the run.
async fn probe(
    client: &Client,
    model: &str,
    corpus: &Corpus,
    timeout: Duration,
) -> anyhow::Result<f64> {
    let prompt = corpus.prompt(0, PROBE_WORDS);
    let ask = Ask {
        prompt,
        max_tokens: 1,
        deadline: Instant::now() + timeout,
    };
    let answer = client.complete(model, &ask).await;
    let completion =
        answer.context("a first small request failed; --tokens-per-word leaves it out")?;
    let tokens = completion
        .prompt_tokens
        .context("the server does not count tokens; give --tokens-per-word")?;
    anyhow::ensure!(
        tokens > 0,
        "the server counted no tokens in the first prompt; give --tokens-per-word"
    );
    Ok(tokens as f64 / PROBE_WORDS as f64)
}

/// Ctrl-C ends the run early and prints what was measured.
async fn stop_signal() {
    if tokio::signal::ctrl_c().await.is_err() {
        std::future::pending::<()>().await;
    }
}
