//! `bench load`.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use palimpsest_load::measure::Objective;
use palimpsest_load::{ApiKey, Config, Plan, Tokens};

use super::ClientTlsArgs;
use crate::{load, texts};

/// A load on a server.
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

impl LoadArgs {
    /// What was typed, as the rest of the program takes it, with the text that was named.
    pub fn config(self) -> anyhow::Result<load::Config> {
        let text = match &self.text {
            Some(path) => texts::read(path)?,
            None => texts::GPL.to_owned(),
        };
        let load = Config {
            plan: Plan {
                rate: self.rate,
                requests: self.requests,
                duration: self.duration,
                prompt_tokens: self.prompt_tokens,
                output_tokens: self.output_tokens,
                seed: self.seed,
            },
            objective: Objective {
                first_token: milliseconds(self.slo_ttft_ms)?,
                inter_token: milliseconds(self.slo_itl_ms)?,
            },
            tls: self.tls.files(),
            url: self.url,
            model: self.model,
            text,
            tokens_per_word: self.tokens_per_word,
            body: self.body,
            api_key: self.api_key,
            timeout: self.timeout,
            max_in_flight: self.max_in_flight,
        };
        Ok(load::Config {
            load,
            json: self.json,
        })
    }
}

fn milliseconds(limit: Option<f64>) -> anyhow::Result<Option<Duration>> {
    limit
        .map(|ms| {
            Duration::try_from_secs_f64(ms / 1e3)
                .with_context(|| format!("{ms} ms is no time limit"))
        })
        .transpose()
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

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        load: LoadArgs,
    }

    #[test]
    fn a_run_must_end() {
        assert!(Line::try_parse_from(["load"]).is_err());
        assert!(Line::try_parse_from(["load", "--duration", "0"]).is_err());
        let line = Line::try_parse_from(["load", "--duration", "1.5s"]).unwrap();
        assert_eq!(line.load.duration, Some(Duration::from_millis(1500)));
    }
}
