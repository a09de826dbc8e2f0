//! Sending completions over HTTP.

use std::fmt;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioExecutor;
use palimpsest_tls::{ClientFiles, ClientTls, Connector, TlsError};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::time::{Instant, timeout_at};

use crate::answer::{Completion, Failure, collect, read_stream, refused, root_cause};

/// Fields that decide what is measured; `--body` may not change them.
const OWN_FIELDS: [&str; 5] = ["model", "prompt", "max_tokens", "stream", "stream_options"];

/// Why a client cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Not an address.
    #[error("`{0}` is not an address such as http://127.0.0.1:8000")]
    Url(String),
    /// Neither of the two schemes.
    #[error("only http:// and https:// are spoken, not `{0}`")]
    Scheme(String),
    /// The certificates cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A key that is no header.
    #[error("the API key has characters that no HTTP header can carry")]
    Key,
    /// Not an object of JSON.
    #[error("--body must be a JSON object: {0}")]
    Body(String),
    /// A field that decides what is measured.
    #[error("--body cannot set `{0}`: the generator does")]
    OwnField(&'static str),
}

/// What to ask for.
#[derive(Debug, Clone)]
pub struct Ask {
    /// Text to complete.
    pub prompt: String,
    /// Tokens of the answer at most.
    pub max_tokens: u32,
    /// When the request is given up.
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
        tls: &ClientFiles,
    ) -> Result<Self, ClientError> {
        let base = url
            .trim_end_matches('/')
            .trim_end_matches("/v1")
            .to_string();
        let uri: Uri = base.parse().map_err(|_| ClientError::Url(url.into()))?;
        let tls = match uri.scheme_str() {
            Some("http") if uri.authority().is_some() => None,
            Some("https") if uri.authority().is_some() => Some(ClientTls::http1(tls.clone())?),
            Some(other) if !other.starts_with("http") => {
                return Err(ClientError::Scheme(other.into()));
            }
            _ => return Err(ClientError::Url(url.into())),
        };
        let authorization = key.map(|ApiKey(key)| {
            let mut value =
                HeaderValue::from_str(&format!("Bearer {key}")).map_err(|_| ClientError::Key)?;
            value.set_sensitive(true);
            Ok::<_, ClientError>(value)
        });
        let extra: Map<String, Value> = serde_json::from_str(extra.unwrap_or("{}"))
            .map_err(|error| ClientError::Body(error.to_string()))?;
        if let Some(field) = OWN_FIELDS.iter().find(|field| extra.contains_key(**field)) {
            return Err(ClientError::OwnField(field));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_that_cannot_be_used_are_refused_before_anything_is_sent() {
        let refused = |url, extra| {
            Client::new(url, None, extra, &ClientFiles::default())
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
            Client::new("http://host", Some(&newline), None, &ClientFiles::default()),
            Err(ClientError::Key)
        ));
    }

    #[test]
    fn keys_do_not_print() {
        let key = ApiKey::from("secret".to_string());
        let client =
            Client::new("http://host/v1/", Some(&key), None, &ClientFiles::default()).unwrap();
        assert!(!format!("{key:?} {client:?}").contains("secret"));
        assert_eq!(client.base, "http://host");
    }

    #[test]
    fn the_body_has_what_was_asked_and_what_was_merged() {
        let client = Client::new(
            "http://host",
            None,
            Some(r#"{"kv_budget":512,"temperature":0}"#),
            &ClientFiles::default(),
        )
        .unwrap();
        let ask = Ask {
            prompt: "a \"b\"".into(),
            max_tokens: 9,
            deadline: Instant::now(),
        };
        let body: Value = serde_json::from_str(&client.body("m", &ask)).unwrap();
        let expected = json!({
            "kv_budget": 512, "temperature": 0, "model": "m", "prompt": "a \"b\"", "max_tokens": 9,
            "stream": true,
            "stream_options": {"include_usage": true},
        });
        assert_eq!(body, expected);
    }
}
