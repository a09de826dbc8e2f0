//! `palimpsest generate`: asks a running server.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use palimpsest_proto::v1;
use palimpsest_proto::v1::generate_request::Input;

use crate::client::{self, Server, question};
use crate::{term, texts};

/// What to ask, and whom.
#[derive(Debug)]
pub struct Config {
    /// The server.
    pub server: Server,
    /// Sent as a bearer token.
    pub api_key: Option<String>,
    /// Prompt; with a file, the text that follows it.
    pub prompt: Option<String>,
    /// File with the prompt or its beginning, `-` for standard input.
    pub prompt_file: Option<PathBuf>,
    /// What the model is told before the prompt.
    pub system: Option<String>,
    /// Text that the answer must begin with.
    pub answer_prefix: String,
    /// Whether the text is sent without the model's chat template.
    pub raw: bool,
    /// The contract; what is unset is the server's choice.
    pub kv: v1::KvContract,
    /// How tokens are drawn.
    pub sampling: v1::Sampling,
    /// When the answer ends.
    pub stopping: v1::Stopping,
    /// Time until the request is given up.
    pub timeout: Option<Duration>,
    /// Whether every event is printed as JSON.
    pub json: bool,
    /// The session that the request goes on from, if it does.
    pub session_id: String,
}

/// Sends the request and prints what comes back.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let json = config.json;
    let message = v1::GenerateRequest {
        input: Some(input(&config)?),
        sampling: Some(config.sampling),
        stopping: Some(config.stopping),
        kv: Some(config.kv),
        session_id: config.session_id,
        ..Default::default()
    };
    let mut request = client::keyed(message, config.api_key.as_deref())?;
    if let Some(timeout) = config.timeout {
        request.set_timeout(timeout);
    }

    let client = client::connect(&config.server).await?;
    let finished = client::stream(client, request, json).await?;
    if !json {
        eprintln!("{}", summary(&finished.usage.unwrap_or_default()));
    }
    Ok(())
}

/// What is asked of the server.
fn input(config: &Config) -> anyhow::Result<Input> {
    let text = prompt(config.prompt_file.as_deref(), config.prompt.as_deref())?;
    Ok(if config.raw {
        Input::Text(text)
    } else {
        let mut chat = question(text, &config.answer_prefix);
        if let Some(system) = &config.system {
            let told = v1::ChatMessage::new("system", system.clone());
            chat.messages.insert(0, told);
        }
        Input::Chat(chat)
    })
}

/// The prompt out of file and text.
pub fn prompt(file: Option<&Path>, prompt: Option<&str>) -> anyhow::Result<String> {
    let mut text = match file {
        Some(path) if path.as_os_str() == "-" => {
            let mut text = String::new();
            std::io::stdin()
                .read_to_string(&mut text)
                .context("standard input is not UTF-8 text")?;
            text
        }
        Some(path) => texts::read(path)?,
        None => String::new(),
    };
    if let Some(prompt) = prompt {
        if !text.is_empty() {
            text.push_str("\n\n");
        }
        text.push_str(prompt);
    }
    Ok(text)
}

/// What a request cost, for people.
pub fn summary(usage: &v1::Usage) -> String {
    let rate = |tokens: u64, seconds: f64| {
        if seconds > 0.0 {
            tokens as f64 / seconds
        } else {
            0.0
        }
    };
    let decoded = usage.generated_tokens.saturating_sub(1);
    let mut text = format!(
        "{} prompt tokens in {:.2} s ({:.0}/s), {} generated ({:.0}/s), first token after {:.2} \
         s\ncache {} held, {} if nothing were evicted; {} entries per head held, {} evicted",
        usage.prompt_tokens,
        usage.prefill_seconds,
        rate(
            usage.prompt_tokens - usage.cached_tokens,
            usage.prefill_seconds
        ),
        usage.generated_tokens,
        rate(decoded, usage.decode_seconds),
        usage.first_token_seconds,
        term::bytes(usage.held_bytes),
        term::bytes(usage.full_cache_bytes),
        usage.held_slots,
        usage.evicted_tokens,
    );
    if usage.cached_tokens > 0 {
        text.push_str(&format!(
            "\n{} of the prompt tokens were not read: their state was kept",
            usage.cached_tokens
        ));
    }
    for warning in &usage.warnings {
        text.push_str("\nwarning: ");
        text.push_str(warning);
    }
    text
}
