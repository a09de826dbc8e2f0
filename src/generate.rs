//! `palimpsest generate`: a client of the public API.

use std::io::{Read, Write};
use std::time::Duration;

use anyhow::{Context, bail};
use palimpsest_proto::error::REASON_KEY;
use palimpsest_proto::v1::generate_event::Event;
use palimpsest_proto::v1::generate_request::Input;
use palimpsest_proto::v1::inference_client::InferenceClient;
use palimpsest_proto::v1::{self};
use palimpsest_tls::{ClientTls, Connector};
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::args::{ClientTlsArgs, GenerateArgs};

/// Largest event taken from a server: a retention report of a long request.
const MAX_EVENT_BYTES: usize = 256 << 20;

/// Sends the request and prints what comes back.
pub async fn run(args: GenerateArgs) -> anyhow::Result<()> {
    let request = request(&args)?;
    let client = connect(&args.server, &args.tls).await?;
    let mut request = tonic::Request::new(request);
    if let Some(seconds) = args.timeout {
        request
            .set_timeout(Duration::try_from_secs_f64(seconds).context("--timeout is not a time")?);
    }
    if let Some(key) = &args.api_key {
        let mut value: AsciiMetadataValue = format!("Bearer {key}")
            .parse()
            .context("the API key has characters that no header can carry")?;
        value.set_sensitive(true);
        request.metadata_mut().insert("authorization", value);
    }
    let finished = stream(client, request, args.json).await?;
    if !args.json {
        let usage = finished.usage.unwrap_or_default();
        eprintln!("{}", summary(&usage));
    }
    Ok(())
}

/// Opens a channel to a server for its requests.
pub async fn connect(
    server: &str,
    tls: &ClientTlsArgs,
) -> anyhow::Result<InferenceClient<Channel>> {
    Ok(
        InferenceClient::new(channel(server, tls).await?)
            .max_decoding_message_size(MAX_EVENT_BYTES),
    )
}

/// Opens a channel to a server.
pub async fn channel(server: &str, tls: &ClientTlsArgs) -> anyhow::Result<Channel> {
    let wrong = || format!("`{server}` is not an address such as http://127.0.0.1:50051");
    let uri: Uri = server.parse().with_context(wrong)?;
    let (tls, port) = match uri.scheme_str() {
        Some("https") => (Some(ClientTls::open(tls.files())?), 443),
        Some("http") if tls.ca.is_some() || tls.cert.is_some() => {
            bail!("--ca and --cert are for servers at https://, and {server} is none");
        }
        Some("http") => (None, 80),
        _ => bail!(wrong()),
    };
    let host = uri.host().with_context(wrong)?;
    // The connector speaks TLS, so that the certificates are ours to choose.
    let address = format!("http://{host}:{}", uri.port_u16().unwrap_or(port));
    Endpoint::from_shared(address)
        .with_context(wrong)?
        .connect_timeout(Duration::from_secs(5))
        .connect_with_connector(Connector::new(tls))
        .await
        .map_err(|error| anyhow::anyhow!("{}", cause(&error)))
        .with_context(|| {
            format!("no server answers at {server}; start one with `palimpsest serve`")
        })
}

fn request(args: &GenerateArgs) -> anyhow::Result<v1::GenerateRequest> {
    let mut text = match &args.prompt_file {
        Some(path) if path.as_os_str() == "-" => {
            let mut text = String::new();
            std::io::stdin()
                .read_to_string(&mut text)
                .context("standard input is not UTF-8 text")?;
            text
        }
        Some(path) => std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {} as UTF-8 text", path.display()))?,
        None => String::new(),
    };
    if let Some(prompt) = &args.prompt {
        if !text.is_empty() {
            text.push_str("\n\n");
        }
        text.push_str(prompt);
    }
    let input = if args.raw {
        Input::Text(text)
    } else {
        Input::Chat(question(text, &args.answer_prefix))
    };
    Ok(v1::GenerateRequest {
        input: Some(input),
        sampling: Some(v1::Sampling {
            temperature: args.temperature,
            top_k: args.top_k,
            top_p: args.top_p,
            seed: args.seed,
            ..Default::default()
        }),
        stopping: Some(v1::Stopping {
            max_tokens: args.max_tokens,
            stop: args.stop.clone(),
            ignore_eos: false,
        }),
        kv: Some(args.kv.wire()),
        ..Default::default()
    })
}

/// One user message.
pub fn question(content: String, answer_prefix: &str) -> v1::Chat {
    let message = v1::ChatMessage {
        role: "user".into(),
        content,
    };
    v1::Chat {
        messages: vec![message],
        answer_prefix: answer_prefix.into(),
    }
}

/// Sends a request and prints its deltas, or every event as JSON; returns the last event.
pub async fn stream(
    mut client: InferenceClient<Channel>,
    request: impl tonic::IntoRequest<v1::GenerateRequest>,
    json: bool,
) -> anyhow::Result<v1::Finished> {
    let mut events = client
        .generate(request)
        .await
        .map_err(explain)?
        .into_inner();
    let mut out = std::io::stdout();
    while let Some(event) = events.message().await.map_err(explain)? {
        if json {
            writeln!(out, "{}", json_event(&event))?;
        }
        match event.event {
            Some(Event::Delta(delta)) if !json => {
                write!(out, "{}", delta.text)?;
                out.flush()?;
            }
            Some(Event::Finished(finished)) => {
                if !json {
                    writeln!(out)?;
                }
                return Ok(finished);
            }
            _ => {}
        }
    }
    bail!("the server ended the stream without finishing the request")
}

/// The innermost cause, which says more than the transport's own words.
fn cause<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> &'a (dyn std::error::Error + 'static) {
    std::iter::successors(Some(error), |error| error.source())
        .last()
        .unwrap_or(error)
}

fn explain(status: tonic::Status) -> anyhow::Error {
    // The connection failed, which says nothing of the request.
    if let Some(why) = palimpsest_tls::explain(&status) {
        return anyhow::anyhow!("the connection ended: {why}");
    }
    let reason = status
        .metadata()
        .get(REASON_KEY)
        .and_then(|v| v.to_str().ok())
        .unwrap_or("unclassified");
    anyhow::anyhow!("{} [{reason}, {:?}]", status.message(), status.code())
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
        rate(usage.prompt_tokens, usage.prefill_seconds),
        usage.generated_tokens,
        rate(decoded, usage.decode_seconds),
        usage.first_token_seconds,
        crate::term::bytes(usage.held_bytes),
        crate::term::bytes(usage.full_cache_bytes),
        usage.held_slots,
        usage.evicted_tokens,
    );
    for warning in &usage.warnings {
        text.push_str("\nwarning: ");
        text.push_str(warning);
    }
    text
}

/// The stable JSON form of an event: `{"event": "started" | "delta" | "finished", ...}`.
fn json_event(event: &v1::GenerateEvent) -> serde_json::Value {
    use serde_json::json;
    let sequence_number = event.sequence_number;
    match &event.event {
        Some(Event::Started(s)) => json!({
            "event": "started", "sequence_number": sequence_number, "request_id": s.request_id, "model": s.model,
            "seed": s.seed, "prompt_tokens": s.prompt_tokens, "reserved_bytes": s.reserved_bytes,
            "kv": s.kv.as_ref().map(json_contract),
        }),
        Some(Event::Delta(d)) => {
            json!({"event": "delta", "sequence_number": sequence_number, "text": d.text})
        }
        Some(Event::Finished(f)) => json!({
            "event": "finished", "sequence_number": sequence_number, "reason": reason(f.reason()), "stop": f.stop,
            "usage": f.usage.as_ref().map(json_usage),
        }),
        None => json!({"event": "unknown", "sequence_number": sequence_number}),
    }
}

fn reason(reason: v1::FinishReason) -> &'static str {
    match reason {
        v1::FinishReason::Eos => "eos",
        v1::FinishReason::Stop => "stop",
        v1::FinishReason::Length => "length",
        v1::FinishReason::Unspecified => "unspecified",
    }
}

fn json_contract(kv: &v1::KvContract) -> serde_json::Value {
    serde_json::json!({
        "budget": kv.budget, "policy": kv.policy, "memory": kv.memory, "head_budget": kv.head_budget,
        "sinks": kv.sinks, "window": kv.window, "positions": kv.positions, "memory_slots": kv.memory_slots,
    })
}

fn json_usage(usage: &v1::Usage) -> serde_json::Value {
    serde_json::json!({
        "prompt_tokens": usage.prompt_tokens, "generated_tokens": usage.generated_tokens,
        "evicted_tokens": usage.evicted_tokens, "held_slots": usage.held_slots, "held_bytes": usage.held_bytes,
        "full_cache_bytes": usage.full_cache_bytes, "queue_seconds": usage.queue_seconds,
        "prefill_seconds": usage.prefill_seconds, "decode_seconds": usage.decode_seconds,
        "first_token_seconds": usage.first_token_seconds, "warnings": usage.warnings,
    })
}
