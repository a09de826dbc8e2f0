//! A client of the public gRPC API.

mod event;

use std::time::Duration;

use anyhow::{Context, bail};
use palimpsest_proto::error::REASON_KEY;
use palimpsest_proto::v1;
use palimpsest_proto::v1::generate_event::Event;
use palimpsest_proto::v1::inference_client::InferenceClient;
use palimpsest_proto::v1::sessions_client::SessionsClient;
use palimpsest_tls::{ClientFiles, ClientTls, Connector};
use tonic::codegen::http::uri::InvalidUri;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::{Channel, Endpoint, Uri};

use self::event::event_json;
pub use self::event::{contract_json, usage_json};
use crate::{term, wording};

/// Largest event taken from a server: a retention report of a long request.
const MAX_EVENT_BYTES: usize = 256 << 20;

/// Where a server is, and how to be let in.
#[derive(Debug, Clone, Default)]
pub struct Server {
    /// `http://host:port`, `https://host:port`, or `host:port` alone.
    pub address: String,
    /// What is trusted and shown where the server speaks TLS.
    pub tls: ClientFiles,
}

/// Opens a channel to a server for its requests.
pub async fn connect(server: &Server) -> anyhow::Result<InferenceClient<Channel>> {
    let client = InferenceClient::new(channel(server).await?);
    Ok(client.max_decoding_message_size(MAX_EVENT_BYTES))
}

/// Opens a channel to a server for what concerns its sessions.
pub async fn sessions(server: &Server) -> anyhow::Result<SessionsClient<Channel>> {
    let client = SessionsClient::new(channel(server).await?);
    Ok(client.max_decoding_message_size(MAX_EVENT_BYTES))
}

/// A message with the client's key, if it has one.
pub fn keyed<T>(message: T, key: Option<&str>) -> anyhow::Result<tonic::Request<T>> {
    let mut request = tonic::Request::new(message);
    if let Some(key) = key {
        let mut value: AsciiMetadataValue = format!("Bearer {key}")
            .parse()
            .context("the API key has characters that no header can carry")?;
        value.set_sensitive(true);
        request.metadata_mut().insert("authorization", value);
    }
    Ok(request)
}

/// Opens a channel to a server.
pub async fn channel(server: &Server) -> anyhow::Result<Channel> {
    let Server { address, tls } = server;
    let wrong = || format!("`{address}` is not an address such as http://127.0.0.1:50051");
    let uri = parse(address).with_context(wrong)?;
    let (tls, port) = match uri.scheme_str() {
        Some("https") => (Some(ClientTls::open(tls.clone())?), 443),
        Some("http") if tls.ca.is_some() || tls.identity.is_some() => {
            bail!("--ca and --cert are for servers at https://, and {address} is none");
        }
        Some("http") => (None, 80),
        _ => bail!(wrong()),
    };
    let host = uri.host().with_context(wrong)?;
    // The connector speaks TLS, so that the certificates are ours to choose.
    let endpoint = format!("http://{host}:{}", uri.port_u16().unwrap_or(port));
    Endpoint::from_shared(endpoint)
        .with_context(wrong)?
        .connect_timeout(Duration::from_secs(5))
        .connect_with_connector(Connector::new(tls))
        .await
        .map_err(|error| anyhow::anyhow!("{}", cause(&error)))
        .with_context(|| {
            format!("no server answers at {address}; start one with `palimpsest serve`")
        })
}

/// An address, with http:// where no scheme was given.
fn parse(address: &str) -> Result<Uri, InvalidUri> {
    if address.contains("://") {
        address.parse()
    } else {
        format!("http://{address}").parse()
    }
}

/// One user message.
pub fn question(content: String, answer_prefix: &str) -> v1::Chat {
    v1::Chat {
        messages: vec![v1::ChatMessage::new("user", content)],
        answer_prefix: answer_prefix.into(),
        ..Default::default()
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
    while let Some(event) = events.message().await.map_err(explain)? {
        if json {
            term::emit(&format!("{}\n", event_json(&event)))?;
        }
        match event.event {
            Some(Event::Delta(delta)) if !json => {
                term::emit(&delta.text)?;
            }
            Some(Event::Finished(finished)) => {
                if !json {
                    term::emit("\n")?;
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

/// What a server refused, or why the connection ended.
pub fn explain(status: tonic::Status) -> anyhow::Error {
    // The connection failed, which says nothing of the request.
    if let Some(why) = palimpsest_tls::explain(&status) {
        return anyhow::anyhow!("the connection ended: {why}");
    }
    // The first bytes of an answer of HTTP/1, taken for the head of a message of gRPC.
    if status.message().contains("invalid compression flag") {
        return anyhow::anyhow!(
            "the server does not speak gRPC at this port; give the one that `palimpsest serve` \
             calls gRPC, 50051 unless it was told otherwise"
        );
    }
    let reason = status
        .metadata()
        .get(REASON_KEY)
        .and_then(|v| v.to_str().ok())
        .unwrap_or("unclassified");
    let message = wording::with_flags(status.message());
    anyhow::anyhow!("{message} [{reason}, {:?}]", status.code())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scheme_of_an_address_may_be_left_out() {
        for (typed, meant) in [
            ("127.0.0.1:50051", "http://127.0.0.1:50051/"),
            ("host:9", "http://host:9/"),
            ("http://host:9", "http://host:9/"),
            ("https://host", "https://host/"),
            ("[::1]:50051", "http://[::1]:50051/"),
        ] {
            assert_eq!(
                parse(typed).map(|uri| uri.to_string()).ok(),
                Some(meant.into())
            );
        }
        assert!(parse("http://").is_err());
    }
}
