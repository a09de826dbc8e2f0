//! Reading one answer: a stream of completions with the time of every piece of text, or why there
//! is none.

use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::Response;
use hyper::body::{Bytes, Incoming};
use hyper::header::CONTENT_TYPE;
use serde::Deserialize;
use serde_json::Value;
use tokio::time::Instant;

use crate::sse::{self, EventReader};

/// Of an answer that is not a stream: errors, lists of models.
const MAX_BODY_BYTES: usize = 1 << 20;
/// What an error may say in a report.
const MAX_MESSAGE_CHARS: usize = 160;
/// Why a request has no complete answer. The kinds are the rows of the report.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// Nobody listens, or the handshake failed.
    #[error("cannot connect: {0}")]
    Connect(String),
    /// The server refused the request.
    #[error("HTTP {status}: {message}")]
    Status {
        /// HTTP's status.
        status: u16,
        /// What the server's error object says.
        message: String,
    },
    /// The stream held an error.
    #[error("the server ended the stream with an error: {0}")]
    Stream(String),
    /// The connection ended too early.
    #[error("the answer broke off before `[DONE]`: {0}")]
    Truncated(String),
    /// The answer is something else.
    #[error("not a stream of completions: {0}")]
    Protocol(String),
    /// The deadline passed.
    #[error("no complete answer within the time limit")]
    Timeout,
    /// The generator's own bound was reached.
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
    /// Tokens of the answer, as the server counted them; absent as `prompt_tokens` may be.
    pub output_tokens: Option<u64>,
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

/// Reads a stream of completions to its end.
pub(crate) async fn read_stream(response: Response<Incoming>) -> Result<Completion, Failure> {
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

/// What an answer says whose status is not 200.
pub(crate) async fn refused(response: Response<Incoming>) -> Failure {
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

/// The whole body of an answer that is not a stream.
pub(crate) async fn collect(body: Incoming) -> Result<Bytes, Failure> {
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

/// The innermost cause: hyper's own texts are layers of "client error (Connect)", and the last one
/// says what happened.
pub(crate) fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    shortened(&cause.to_string())
}
