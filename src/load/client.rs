//! One streamed completion over HTTP, with the time of every piece of text.

use std::fmt;

use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioExecutor;
use palimpsest_tls::{ClientTls, Connector, TlsError};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::time::{Instant, timeout_at};

use super::sse::{self, EventReader};
use crate::args::ClientTlsArgs;

/// Of an answer that is not a stream: errors, lists of models.
const MAX_BODY_BYTES: usize = 1 << 20;
/// What an error may say in a report.
const MAX_MESSAGE_CHARS: usize = 160;
/// Fields that decide what is measured; `--body` may not change them.
const OWN_FIELDS: [&str; 5] = ["model", "prompt", "max_tokens", "stream", "stream_options"];

/// Why a client cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("`{0}` is not an address such as http://127.0.0.1:8000")]
    Url(String),
    #[error("only http:// and https:// are spoken, not `{0}`")]
    Scheme(String),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("the API key has characters that no HTTP header can carry")]
    Key,
    #[error("--body must be a JSON object: {0}")]
    Body(String),
    #[error("--body cannot set `{0}`: the generator does")]
    OwnField(&'static str),
}

/// Why a request has no complete answer. The kinds are the rows of the report.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    #[error("cannot connect: {0}")]
    Connect(String),
    #[error("HTTP {status}: {message}")]
    Status { status: u16, message: String },
    #[error("the server ended the stream with an error: {0}")]
    Stream(String),
    #[error("the answer broke off before `[DONE]`: {0}")]
    Truncated(String),
    #[error("not a stream of completions: {0}")]
    Protocol(String),
    #[error("no complete answer within the time limit")]
    Timeout,
    #[error("not sent: too many requests were in flight")]
    NotSent,
}

impl Failure {
    /// The row of the report.
    pub fn kind(&self) -> String {
        match self {
            Self::Connect(_) => "connect".into(),
            Self::Status { status, .. } => format!("http_{status}"),
            Self::Stream(_) => "stream_error".into(),
            Self::Truncated(_) => "truncated".into(),
            Self::Protocol(_) => "protocol".into(),
            Self::Timeout => "timeout".into(),
            Self::NotSent => "not_sent".into(),
        }
    }
}

impl From<sse::Error> for Failure {
    fn from(error: sse::Error) -> Self {
        Self::Protocol(error.to_string())
    }
}

/// A complete answer.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Completion {
    /// When each piece of text came, in order. A piece is one token, or several that the server
    /// sent together. An answer without text has the time of its end.
    pub pieces: Vec<Instant>,
    /// When the stream ended.
    pub ended: Option<Instant>,
    /// As the server counted them; absent from servers that do not know `stream_options`.
    pub prompt_tokens: Option<u64>,
    /// As above.
    pub output_tokens: Option<u64>,
}

/// What to ask for.
#[derive(Debug, Clone)]
pub struct Ask {
    pub prompt: String,
    pub max_tokens: u32,
    pub deadline: Instant,
}

/// A secret that prints as stars.
#[derive(Clone)]
pub struct ApiKey(String);

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(***)")
    }
}

impl From<String> for ApiKey {
    fn from(key: String) -> Self {
        Self(key)
    }
}

type Http = hyper_util::client::legacy::Client<Connector, Full<Bytes>>;

/// Connections to one endpoint; clones share them.
#[derive(Debug, Clone)]
pub struct Client {
    http: Http,
    base: String,
    authorization: Option<HeaderValue>,
    extra: Map<String, Value>,
}

impl Client {
    /// A client of the server at `url`; `extra` is merged into the body of each completion.
    ///
    /// # Errors
    /// When an argument cannot be used; nothing is sent.
    pub fn new(
        url: &str,
        key: Option<&ApiKey>,
        extra: Option<&str>,
        tls: &ClientTlsArgs,
    ) -> Result<Self, ConfigError> {
        let base = url
            .trim_end_matches('/')
            .trim_end_matches("/v1")
            .to_string();
        let uri: Uri = base.parse().map_err(|_| ConfigError::Url(url.into()))?;
        let tls = match uri.scheme_str() {
            Some("http") if uri.authority().is_some() => None,
            Some("https") if uri.authority().is_some() => Some(ClientTls::http1(tls.files())?),
            Some(other) if !other.starts_with("http") => {
                return Err(ConfigError::Scheme(other.into()));
            }
            _ => return Err(ConfigError::Url(url.into())),
        };
        let authorization = key.map(|ApiKey(key)| {
            let mut value =
                HeaderValue::from_str(&format!("Bearer {key}")).map_err(|_| ConfigError::Key)?;
            value.set_sensitive(true);
            Ok::<_, ConfigError>(value)
        });
        let extra: Map<String, Value> = serde_json::from_str(extra.unwrap_or("{}"))
            .map_err(|error| ConfigError::Body(error.to_string()))?;
        if let Some(field) = OWN_FIELDS.iter().find(|field| extra.contains_key(**field)) {
            return Err(ConfigError::OwnField(field));
        }
        let http = hyper_util::client::legacy::Client::builder(TokioExecutor::new())
            .build(Connector::new(tls));
        Ok(Self {
            http,
            base,
            authorization: authorization.transpose()?,
            extra,
        })
    }

    /// Name of the first model that the server lists.
    ///
    /// # Errors
    /// When the server does not list models before `deadline`.
    pub async fn first_model(&self, deadline: Instant) -> Result<String, Failure> {
        #[derive(Deserialize)]
        struct Models {
            data: Vec<Model>,
        }
        #[derive(Deserialize)]
        struct Model {
            id: String,
        }
        let exchange = async {
            let response = self.send(Method::GET, "/v1/models", Bytes::new()).await?;
            if response.status() != StatusCode::OK {
                return Err(refused(response).await);
            }
            let body = collect(response.into_body()).await?;
            let models: Models =
                serde_json::from_slice(&body).map_err(|e| Failure::Protocol(e.to_string()))?;
            let first = models.data.into_iter().next();
            first
                .map(|model| model.id)
                .ok_or_else(|| Failure::Protocol("the list of models is empty".into()))
        };
        timeout_at(deadline, exchange)
            .await
            .unwrap_or(Err(Failure::Timeout))
    }

    /// Streams one completion to its end.
    ///
    /// # Errors
    /// When there is no complete answer before the deadline.
    pub async fn complete(&self, model: &str, ask: &Ask) -> Result<Completion, Failure> {
        let body = self.body(model, ask);
        let exchange = async {
            let response = self
                .send(Method::POST, "/v1/completions", body.into())
                .await?;
            if response.status() != StatusCode::OK {
                return Err(refused(response).await);
            }
            read_stream(response).await
        };
        timeout_at(ask.deadline, exchange)
            .await
            .unwrap_or(Err(Failure::Timeout))
    }

    fn body(&self, model: &str, ask: &Ask) -> String {
        let mut body = self.extra.clone();
        let own = [
            ("model", json!(model)),
            ("prompt", json!(ask.prompt)),
            ("max_tokens", json!(ask.max_tokens)),
            ("stream", json!(true)),
            ("stream_options", json!({"include_usage": true})),
        ];
        body.extend(own.map(|(name, value)| (name.to_string(), value)));
        Value::Object(body).to_string()
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Response<Incoming>, Failure> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base));
        request = request.header(CONTENT_TYPE, "application/json");
        if let Some(value) = &self.authorization {
            request = request.header(AUTHORIZATION, value);
        }
        let request = request
            .body(Full::new(body))
            .map_err(|error| Failure::Protocol(error.to_string()))?;
        self.http.request(request).await.map_err(|error| {
            let text = root_cause(&error);
            if error.is_connect() {
                Failure::Connect(text)
            } else {
                Failure::Protocol(text)
            }
        })
    }
}

/// Of a chunk only what is measured is read.
#[derive(Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Vec<Choice>,
    usage: Option<Usage>,
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    text: String,
}

#[derive(Deserialize)]
struct Usage {
    prompt_tokens: u64,
    completion_tokens: u64,
}

async fn read_stream(response: Response<Incoming>) -> Result<Completion, Failure> {
    let kind = response
        .headers()
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or("no content type");
    if !kind.starts_with("text/event-stream") {
        return Err(Failure::Protocol(format!(
            "the answer is {}",
            shortened(kind)
        )));
    }
    let mut body = response.into_body();
    let mut events = EventReader::default();
    let mut completion = Completion::default();
    while let Some(frame) = body.frame().await {
        let now = Instant::now();
        let frame = frame.map_err(|error| Failure::Truncated(root_cause(&error)))?;
        let Ok(bytes) = frame.into_data() else {
            continue;
        };
        let mut had_text = false;
        for data in events.push(&bytes)? {
            if data == "[DONE]" {
                completion.ended = Some(now);
                if completion.pieces.is_empty() {
                    completion.pieces.push(now);
                }
                return Ok(completion);
            }
            had_text |= completion.add(&data)?;
        }
        // Events that came in one packet are one piece: no reader saw time pass between them.
        if had_text {
            completion.pieces.push(now);
        }
    }
    Err(Failure::Truncated("end of the stream".into()))
}

impl Completion {
    /// Takes the data of one event and says whether it had text.
    fn add(&mut self, data: &str) -> Result<bool, Failure> {
        // serde_json's message has a position and no content, so nothing that was generated gets
        // into a report.
        let chunk: Chunk =
            serde_json::from_str(data).map_err(|error| Failure::Protocol(error.to_string()))?;
        if let Some(error) = chunk.error {
            return Err(Failure::Stream(message_of(&error)));
        }
        if let Some(usage) = chunk.usage {
            self.prompt_tokens = Some(usage.prompt_tokens);
            self.output_tokens = Some(usage.completion_tokens);
        }
        Ok(chunk.choices.iter().any(|choice| !choice.text.is_empty()))
    }
}

async fn refused(response: Response<Incoming>) -> Failure {
    let status = response.status().as_u16();
    let message = match collect(response.into_body()).await {
        Ok(body) => match serde_json::from_slice::<Value>(&body) {
            Ok(value) => message_of(value.get("error").unwrap_or(&value)),
            Err(_) => "without a JSON error".into(),
        },
        Err(_) => "without a readable body".into(),
    };
    Failure::Status { status, message }
}

/// `message` of an OpenAI error object, shortened.
fn message_of(error: &Value) -> String {
    shortened(
        error
            .get("message")
            .and_then(Value::as_str)
            .unwrap_or("no message"),
    )
}

fn shortened(text: &str) -> String {
    text.chars()
        .filter(|c| !c.is_control())
        .take(MAX_MESSAGE_CHARS)
        .collect()
}

async fn collect(body: Incoming) -> Result<Bytes, Failure> {
    let collected = Limited::new(body, MAX_BODY_BYTES).collect().await;
    collected
        .map(http_body_util::Collected::to_bytes)
        .map_err(|error| {
            if error.is::<LengthLimitError>() {
                Failure::Protocol(format!("an answer of more than {MAX_BODY_BYTES} bytes"))
            } else {
                Failure::Truncated(error.to_string())
            }
        })
}

/// hyper's own texts are layers of "client error (Connect)"; the last one says what happened.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    shortened(&cause.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_that_cannot_be_used_are_refused_before_anything_is_sent() {
        let refused = |url, extra| {
            Client::new(url, None, extra, &ClientTlsArgs::default())
                .expect_err("refused")
                .to_string()
        };
        assert!(refused("ftp://host", None).contains("only http://"));
        assert!(
            refused("127.0.0.1:8000", None).contains("http://"),
            "{}",
            refused("127.0.0.1:8000", None)
        );
        assert!(refused("http://host", Some("[]")).contains("object"));
        assert!(refused("http://host", Some(r#"{"stream":false}"#)).contains("`stream`"));
        let newline = ApiKey::from("a\nb".to_string());
        assert!(matches!(
            Client::new(
                "http://host",
                Some(&newline),
                None,
                &ClientTlsArgs::default()
            ),
            Err(ConfigError::Key)
        ));
    }

    #[test]
    fn keys_do_not_print() {
        let key = ApiKey::from("secret".to_string());
        let client = Client::new(
            "http://host/v1/",
            Some(&key),
            None,
            &ClientTlsArgs::default(),
        )
        .unwrap();
        assert!(!format!("{key:?} {client:?}").contains("secret"));
        assert_eq!(client.base, "http://host");
    }

    #[test]
    fn the_body_has_what_was_asked_and_what_was_merged() {
        let client = Client::new(
            "http://host",
            None,
            Some(r#"{"kv_budget":512,"temperature":0}"#),
            &ClientTlsArgs::default(),
        )
        .unwrap();
        let ask = Ask {
            prompt: "a \"b\"".into(),
            max_tokens: 9,
            deadline: Instant::now(),
        };
        let body: Value = serde_json::from_str(&client.body("m", &ask)).unwrap();
        let expected = json!({
            "kv_budget": 512, "temperature": 0, "model": "m", "prompt": "a \"b\"", "max_tokens": 9, "stream": true,
            "stream_options": {"include_usage": true},
        });
        assert_eq!(body, expected);
    }
}
