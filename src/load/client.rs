//! One streamed request to an OpenAI-compatible server, timed.

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::{Request, Uri, header};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use std::time::{Duration, Instant};

/// Longest line of a stream: anything longer is no answer.
const MAX_LINE: usize = 16 << 20;

/// A server to ask; clones share its connections.
#[derive(Clone)]
pub struct Server {
    client: Client<HttpConnector, Full<Bytes>>,
    base: String,
    key: Option<String>,
}

/// What one request was like.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Timed {
    /// From the moment it was due to its first text.
    pub first_token: Option<Duration>,
    /// Between pieces of text.
    pub gaps: Vec<Duration>,
    /// From the moment it was due to its end.
    pub total: Duration,
    /// Tokens of the prompt, as the server counts them.
    pub prompt_tokens: u64,
    /// Tokens of the answer, as the server counts them; pieces of text where it does not.
    pub output_tokens: u64,
    /// What went wrong, in one word or status.
    pub error: Option<String>,
}

impl Server {
    /// A server at `base`, such as `http://127.0.0.1:8000`.
    ///
    /// # Errors
    /// When that is no address of plain HTTP.
    pub fn new(base: &str, key: Option<String>) -> anyhow::Result<Self> {
        let uri: Uri = base.parse()?;
        anyhow::ensure!(
            uri.scheme_str() == Some("http") && uri.host().is_some(),
            "{base} is not of the form http://host:port"
        );
        let client = Client::builder(TokioExecutor::new()).build_http();
        Ok(Self { client, base: base.trim_end_matches('/').trim_end_matches("/v1").to_owned(), key })
    }

    fn request(&self, path: &str, body: Option<&Value>) -> anyhow::Result<Request<Full<Bytes>>> {
        let method = if body.is_some() { "POST" } else { "GET" };
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.base));
        if let Some(key) = &self.key {
            request = request.header(header::AUTHORIZATION, format!("Bearer {key}"));
        }
        let bytes = body.map(Value::to_string).unwrap_or_default();
        Ok(request.header(header::CONTENT_TYPE, "application/json").body(Full::new(Bytes::from(bytes)))?)
    }

    /// Name of the first model that the server lists.
    ///
    /// # Errors
    /// When nobody answers, or not as OpenAI does.
    pub async fn model(&self) -> anyhow::Result<String> {
        let response = self.client.request(self.request("/v1/models", None)?).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        anyhow::ensure!(status.is_success(), "{}/v1/models answers {status}", self.base);
        let models: Value = serde_json::from_slice(&body)?;
        let name = models["data"][0]["id"].as_str().map(str::to_owned);
        name.ok_or_else(|| anyhow::anyhow!("{}/v1/models lists no model: name one with --model", self.base))
    }

    /// Sends a completion and reads its stream. Time counts from `due`, however late it is sent: a server that keeps its
    /// clients waiting must not look better for it.
    pub async fn complete(&self, body: &Value, due: Instant) -> Timed {
        let mut timed = Timed::default();
        if let Err(error) = self.stream(body, due, &mut timed).await {
            timed.error = Some(error);
        }
        timed.total = due.elapsed();
        timed
    }

    async fn stream(&self, body: &Value, due: Instant, timed: &mut Timed) -> Result<(), String> {
        let request = self.request("/v1/completions", Some(body)).map_err(|_| "bad request".to_owned())?;
        let response = self.client.request(request).await.map_err(|_| "connection".to_owned())?;
        if !response.status().is_success() {
            return Err(response.status().as_u16().to_string());
        }
        let mut body = response.into_body();
        let (mut lines, mut last, mut pieces) = (Lines::default(), None, 0);
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| "broken stream".to_owned())?;
            let Some(data) = frame.data_ref() else { continue };
            for event in lines.push(data)? {
                if event == "[DONE]" {
                    timed.output_tokens = timed.output_tokens.max(pieces);
                    return Ok(());
                }
                let event: Value = serde_json::from_str(&event).map_err(|_| "garbled event".to_owned())?;
                if event.get("error").is_some() {
                    return Err("error in stream".into());
                }
                if let Some(usage) = event.get("usage").filter(|usage| !usage.is_null()) {
                    timed.prompt_tokens = usage["prompt_tokens"].as_u64().unwrap_or(0);
                    timed.output_tokens = usage["completion_tokens"].as_u64().unwrap_or(0);
                }
                if event["choices"][0]["text"].as_str().is_some_and(|text| !text.is_empty()) {
                    let now = Instant::now();
                    match last.replace(now) {
                        None => timed.first_token = Some(now - due),
                        Some(before) => timed.gaps.push(now - before),
                    }
                    pieces += 1;
                }
            }
        }
        Err("stream without end".into())
    }
}

/// Server-sent events out of bytes, wherever they are cut.
#[derive(Debug, Default)]
struct Lines {
    rest: Vec<u8>,
}

impl Lines {
    /// Data of the events whose lines are complete now.
    fn push(&mut self, bytes: &[u8]) -> Result<Vec<String>, String> {
        self.rest.extend_from_slice(bytes);
        let mut events = Vec::new();
        while let Some(end) = self.rest.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            let line = String::from_utf8(line).map_err(|_| "garbled event".to_owned())?;
            if let Some(data) = line.trim_end().strip_prefix("data:") {
                events.push(data.trim_start().to_owned());
            }
        }
        if self.rest.len() > MAX_LINE { Err("endless line".into()) } else { Ok(events) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    #[test]
    fn events_are_found_wherever_the_bytes_are_cut() {
        let text = "data: {\"a\":\"é\"}\n\n: comment\n\ndata:[DONE]\r\n\r\n";
        for cut in 0..text.len() {
            let mut lines = Lines::default();
            let mut events = lines.push(&text.as_bytes()[..cut]).unwrap();
            events.extend(lines.push(&text.as_bytes()[cut..]).unwrap());
            assert_eq!(events, ["{\"a\":\"é\"}", "[DONE]"], "cut at {cut}");
        }
    }

    /// Answers one connection with these pieces, so many milliseconds apart.
    async fn answering(pieces: &'static [&'static str], pause: u64) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Server::new(&format!("http://{}/v1", listener.local_addr().unwrap()), None).unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut buffer = [0; 4096];
            let _ = stream.read(&mut buffer).await;
            for piece in pieces {
                stream.write_all(piece.as_bytes()).await.unwrap();
                tokio::time::sleep(Duration::from_millis(pause)).await;
            }
        });
        server
    }

    const HEAD: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";

    #[tokio::test]
    async fn a_stream_is_timed_from_the_moment_it_was_due() {
        let pieces = &[
            HEAD,
            "data: {\"choices\":[{\"text\":\"a\"}]}\n\n",
            "data: {\"choices\":[{\"text\":\"b\"}]}\n\n",
            "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":9}}\n\ndata: [DONE]\n\n",
        ];
        let server = answering(pieces, 30).await;
        let due = Instant::now().checked_sub(Duration::from_millis(500)).unwrap();
        let timed = server.complete(&serde_json::json!({}), due).await;
        assert_eq!((timed.error, timed.prompt_tokens, timed.output_tokens), (None, 3, 9));
        let first = timed.first_token.unwrap();
        assert!(first >= Duration::from_millis(525) && first < timed.total, "{first:?}");
        assert_eq!(timed.gaps.len(), 1);
        assert!(timed.gaps[0] >= Duration::from_millis(20), "{:?}", timed.gaps);
    }

    #[tokio::test]
    async fn failures_are_told_apart() {
        let cases: [(&'static [&'static str], &str); 5] = [
            (&["HTTP/1.1 429 Too Many Requests\r\ncontent-length: 0\r\n\r\n"], "429"),
            (&[HEAD, "data: {\"choices\":[{\"text\":\"a\"}]}\n\n"], "stream without end"),
            (&[HEAD, "data: nonsense\n\n"], "garbled event"),
            (&[HEAD, "data: {\"error\":{\"message\":\"x\"}}\n\n"], "error in stream"),
            (&["nonsense"], "connection"),
        ];
        for (pieces, expected) in cases {
            let timed = answering(pieces, 1).await.complete(&serde_json::json!({}), Instant::now()).await;
            assert_eq!(timed.error.as_deref(), Some(expected));
        }
        assert!(Server::new("ftp://x", None).is_err() && Server::new("x", None).is_err());
    }
}
