//! An open-loop load on any server that speaks OpenAI's completions: requests arrive at random,
//! whether or not the ones before them were answered.
//!
//! ```text
//! schedule ─ arrivals ─▶ drive ─ at their times ─▶ client ─▶ answer (sse) ─▶ measure ─▶ report
//! ```
//!
//! Absent on purpose: closed loops (a fixed number of users), which hide queueing; chat templates.
#![forbid(unsafe_code)]

pub mod answer;
pub mod client;
mod corpus;
mod drive;
pub mod measure;
pub mod report;
pub mod schedule;
pub mod sse;
#[cfg(test)]
mod tests;

use std::time::Duration;

use palimpsest_tls::ClientFiles;
use tokio::time::Instant;

pub use self::answer::Failure;
pub use self::client::ApiKey;
use self::client::{Ask, Client, ClientError};
use self::corpus::Corpus;
use self::measure::{Measurement, Objective};
pub use self::report::{Report, Setting};
use self::schedule::Arrival;
pub use self::schedule::{Plan, Tokens};

/// Words of the first request, which finds out how many tokens a word has.
const PROBE_WORDS: usize = 200;

/// What to load, and with what.
#[derive(Debug, Clone)]
pub struct Config {
    /// Server; completions go to `/v1/completions` below it.
    pub url: String,
    /// Model to ask for; the first that the server lists when `None`.
    pub model: Option<String>,
    /// When requests arrive, and how long they are.
    pub plan: Plan,
    /// Text that prompts are cut from.
    pub text: String,
    /// Tokens of a word of the text; asked of the server with a first small request when `None`.
    pub tokens_per_word: Option<f64>,
    /// What a good request keeps to.
    pub objective: Objective,
    /// JSON object that is merged into each request.
    pub body: Option<String>,
    /// Sent as a bearer token.
    pub api_key: Option<ApiKey>,
    /// What is trusted and shown where the server speaks TLS.
    pub tls: ClientFiles,
    /// Time after which a request is given up.
    pub timeout: Duration,
    /// Requests in flight at most, at least 1; more are counted as not sent.
    pub max_in_flight: usize,
}

/// Why nothing was measured.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The schedule cannot be.
    #[error(transparent)]
    Schedule(#[from] schedule::Error),
    /// The client cannot be made.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// There is nothing to cut prompts from.
    #[error("the text of --text has no words")]
    NoWords,
    /// Nobody listens, found out before the run.
    #[error("no server answers at {url}")]
    NoServer {
        /// The server.
        url: String,
        /// What the system said.
        source: Failure,
    },
    /// The server was to name a model.
    #[error("{url} does not name a model; give one with --model")]
    NoModel {
        /// The server.
        url: String,
        /// What it did instead.
        source: Failure,
    },
    /// Not a length of words.
    #[error("--tokens-per-word must be a positive number, not {0}")]
    TokensPerWord(f64),
    /// The first request failed, which finds out how long words are.
    #[error("a first small request failed; --tokens-per-word leaves it out")]
    Probe(#[source] Failure),
    /// The server was to count the tokens of the first request.
    #[error("the server counted no tokens in the first prompt; give --tokens-per-word")]
    Uncounted,
}

/// How far a run is.
#[derive(Debug, Clone, Copy)]
pub struct Progress {
    /// Requests whose outcome is known.
    pub finished: u64,
    /// Requests of the schedule.
    pub scheduled: u64,
}

/// A run that has ended.
#[derive(Debug)]
pub struct Finished {
    /// What was asked of the generator.
    pub setting: Setting,
    /// What it found.
    pub measured: Measurement,
}

impl Finished {
    /// The run in words and figures.
    pub fn report(&self) -> Report<'_> {
        Report {
            setting: &self.setting,
            measured: &self.measured,
        }
    }
}

/// Loads a server until every request has an outcome or `stop` resolves. `on_progress` hears of
/// every outcome.
///
/// # Errors
/// When the configuration cannot be used or the server does not answer before the run. A request
/// of the run that fails is no error: it is counted.
pub async fn run(
    config: &Config,
    stop: impl Future<Output = ()>,
    mut on_progress: impl FnMut(Progress),
) -> Result<Finished, Error> {
    let arrivals = config.plan.arrivals()?;
    let client = Client::new(
        &config.url,
        config.api_key.as_ref(),
        config.body.as_deref(),
        &config.tls,
    )?;
    let corpus = Corpus::new(config.text.clone()).ok_or(Error::NoWords)?;
    let model = model(config, &client).await?;
    let tokens_per_word = match config.tokens_per_word {
        Some(ratio) if ratio.is_finite() && ratio > 0.0 => ratio,
        Some(ratio) => return Err(Error::TokensPerWord(ratio)),
        None => probe(&client, &model, &corpus, config.timeout).await?,
    };

    let send = |arrival: Arrival| {
        let (client, model, timeout) = (client.clone(), model.clone(), config.timeout);
        let words = (f64::from(arrival.prompt_tokens) / tokens_per_word).round() as usize;
        let prompt = corpus.prompt(arrival.text_offset, words);
        async move {
            let ask = Ask {
                prompt,
                max_tokens: arrival.output_tokens,
                deadline: Instant::now() + timeout,
            };
            client.complete(&model, &ask).await
        }
    };
    let scheduled = arrivals.len() as u64;
    let measured = drive::drive(
        &arrivals,
        config.max_in_flight.max(1),
        config.objective,
        send,
        stop,
        |measured| {
            on_progress(Progress {
                finished: measured.finished(),
                scheduled,
            });
        },
    )
    .await;
    Ok(Finished {
        setting: setting(config, &model, tokens_per_word, &arrivals),
        measured,
    })
}

/// The model to ask for.
async fn model(config: &Config, client: &Client) -> Result<String, Error> {
    if let Some(model) = &config.model {
        return Ok(model.clone());
    }
    let listed = client.first_model(Instant::now() + config.timeout).await;
    listed.map_err(|source| {
        let url = config.url.clone();
        match source {
            Failure::Connect(_) => Error::NoServer { url, source },
            _ => Error::NoModel { url, source },
        }
    })
}

/// Tokens per word of the text, by the server's own tokenizer. The request also warms the server up
/// and finds a wrong address before the run.
async fn probe(
    client: &Client,
    model: &str,
    corpus: &Corpus,
    timeout: Duration,
) -> Result<f64, Error> {
    let ask = Ask {
        prompt: corpus.prompt(0, PROBE_WORDS),
        max_tokens: 1,
        deadline: Instant::now() + timeout,
    };
    let completion = client.complete(model, &ask).await.map_err(Error::Probe)?;
    match completion.prompt_tokens {
        Some(tokens) if tokens > 0 => Ok(tokens as f64 / PROBE_WORDS as f64),
        _ => Err(Error::Uncounted),
    }
}

fn setting(config: &Config, model: &str, tokens_per_word: f64, arrivals: &[Arrival]) -> Setting {
    let Config {
        plan, objective, ..
    } = config;
    let milliseconds = |limit: Duration| limit.as_nanos() as f64 / 1e6;
    Setting {
        url: config.url.clone(),
        model: model.into(),
        rate: plan.rate,
        requests: arrivals.len(),
        last_arrival_seconds: arrivals
            .last()
            .map_or(0.0, |arrival| arrival.at.as_secs_f64()),
        seed: plan.seed,
        prompt_tokens: plan.prompt_tokens.to_string(),
        output_tokens: plan.output_tokens.to_string(),
        tokens_per_word,
        slo_ttft_ms: objective.first_token.map(milliseconds),
        slo_itl_ms: objective.inter_token.map(milliseconds),
        body: config.body.clone(),
    }
}
