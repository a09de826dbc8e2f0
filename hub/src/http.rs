//! Requests to the hub. Redirects are followed here and not by the client, so that it is plain to
//! see who gets the token.

use std::io::Read;
use std::sync::Arc;
use std::thread::sleep;
use std::time::Duration;

use reqwest::blocking::{Client, Response};
use reqwest::header::{ACCEPT_ENCODING, HeaderMap, LOCATION, RANGE, RETRY_AFTER};
use reqwest::redirect::Policy;
use reqwest::{StatusCode, Url};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto::ring};

use crate::error::HubError;
use crate::settings::{Patience, Settings, Token};

/// Redirects that one request may meet.
const MOST_REDIRECTS: usize = 10;
/// Time for a connection to stand.
const CONNECT_TIME: Duration = Duration::from_secs(10);

/// Connections to a hub.
pub(crate) struct Http {
    client: Client,
    /// The hub, whose requests carry the token.
    endpoint: Url,
    token: Option<Token>,
    patience: Patience,
}

/// What is asked for.
pub(crate) struct Ask<'a> {
    /// Path below the endpoint, with its query.
    pub(crate) path: &'a str,
    /// The repository it is about.
    pub(crate) repository: &'a str,
    /// The revision that was meant, for what is said of it.
    pub(crate) revision: &'a str,
    /// What it is called when something is said of it.
    pub(crate) what: &'a str,
    /// First byte of a file that is wanted.
    pub(crate) from: u64,
    /// Attempts at most.
    pub(crate) attempts: u32,
}

impl Http {
    pub(crate) fn new(settings: &Settings) -> Result<Self, HubError> {
        let wrong = || HubError::Endpoint {
            endpoint: settings.endpoint.clone(),
        };
        let endpoint = Url::parse(&settings.endpoint).map_err(|_| wrong())?;
        if !["http", "https"].contains(&endpoint.scheme()) || !endpoint.has_host() {
            return Err(wrong());
        }
        let mut builder = Client::builder()
            .user_agent(concat!("palimpsest/", env!("CARGO_PKG_VERSION")))
            .redirect(Policy::none())
            .connect_timeout(CONNECT_TIME)
            .timeout(settings.patience.silence)
            .tls_backend_preconfigured(tls());
        if is_loopback(&endpoint) {
            // A proxy for the world knows nothing of this machine.
            builder = builder.no_proxy();
        }
        let client = builder.build().map_err(|error| HubError::Network {
            host: settings.endpoint.clone(),
            what: "a connection".into(),
            reason: words(error),
        })?;
        Ok(Self {
            client,
            endpoint,
            token: settings.token.clone(),
            patience: settings.patience,
        })
    }

    pub(crate) fn has_token(&self) -> bool {
        self.token.is_some()
    }

    /// The hub's address, for people.
    pub(crate) fn endpoint(&self) -> String {
        self.endpoint.as_str().trim_end_matches('/').to_owned()
    }

    /// The pause after `attempts` that brought nothing.
    pub(crate) fn pause(&self, attempts: u32) -> Duration {
        let doubled = self.patience.first_wait * 2_u32.saturating_pow(attempts.saturating_sub(1));
        doubled.min(self.patience.longest_wait)
    }

    /// Attempts that a file may take without a byte of it.
    pub(crate) fn attempts(&self) -> u32 {
        self.patience.attempts
    }

    /// An answer of 200, 206 or 416. What may pass is asked for again.
    pub(crate) fn get(&self, ask: &Ask<'_>) -> Result<Response, HubError> {
        let mut attempt = 1;
        loop {
            let (failure, wait) = match self.once(ask) {
                Ok(response) => match self.judge(ask, response)? {
                    Judged::Good(response) => return Ok(response),
                    Judged::Later(failure, wait) => (failure, wait),
                },
                Err(failure @ HubError::Network { .. }) => (failure, None),
                Err(failure) => return Err(failure),
            };
            let pause = wait.unwrap_or_else(|| self.pause(attempt));
            if attempt >= ask.attempts || pause > self.patience.longest_wait {
                return Err(failure);
            }
            tracing::warn!(%failure, seconds = pause.as_secs_f32(), "asking again after a pause");
            sleep(pause);
            attempt += 1;
        }
    }

    /// The text of an answer, up to `most` bytes of it.
    pub(crate) fn text(&self, ask: &Ask<'_>, most: u64) -> Result<Vec<u8>, HubError> {
        let mut text = Vec::new();
        let read = self.get(ask)?.take(most).read_to_end(&mut text);
        read.map_err(|error| HubError::Network {
            host: self.endpoint(),
            what: ask.what.to_owned(),
            reason: error.kind().to_string(),
        })?;
        Ok(text)
    }

    /// Follows redirects to the end.
    fn once(&self, ask: &Ask<'_>) -> Result<Response, HubError> {
        let base = self.endpoint.as_str().trim_end_matches('/');
        let url = format!("{base}/{}", ask.path);
        let mut url = Url::parse(&url).map_err(|_| HubError::Endpoint {
            endpoint: base.to_owned(),
        })?;
        for _ in 0..MOST_REDIRECTS {
            let host = host(&url);
            let mut request = self.client.get(url.clone());
            // A file is wanted as it is, and its bytes are counted.
            request = request.header(ACCEPT_ENCODING, "identity");
            if ask.from > 0 {
                request = request.header(RANGE, format!("bytes={}-", ask.from));
            }
            if let Some(token) = self.token.as_ref().filter(|_| self.is_hub(&url)) {
                request = request.bearer_auth(token.secret());
            }
            let response = request.send().map_err(|error| HubError::Network {
                host: host.clone(),
                what: ask.what.to_owned(),
                reason: words(error),
            })?;
            if !response.status().is_redirection() {
                return Ok(response);
            }
            let target = response.headers().get(LOCATION);
            let target = target.and_then(|target| target.to_str().ok());
            let target = target.and_then(|target| url.join(target).ok());
            url = target
                .filter(|target| self.may_go(&url, target))
                .ok_or_else(|| HubError::Redirect {
                    host,
                    what: ask.what.to_owned(),
                })?;
        }
        Err(HubError::Redirect {
            host: host(&url),
            what: ask.what.to_owned(),
        })
    }

    /// Whether an address is the hub's own: scheme, host and port.
    fn is_hub(&self, url: &Url) -> bool {
        url.origin() == self.endpoint.origin()
    }

    /// What is asked for over TLS does not go on in plain text.
    fn may_go(&self, from: &Url, to: &Url) -> bool {
        match to.scheme() {
            "https" => true,
            "http" => from.scheme() == "http",
            _ => false,
        }
    }

    fn judge(&self, ask: &Ask<'_>, response: Response) -> Result<Judged, HubError> {
        let status = response.status();
        let refused = || HubError::Refused {
            host: host(response.url()),
            status: status.to_string(),
            what: ask.what.to_owned(),
        };
        match status {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE => {
                Ok(Judged::Good(response))
            }
            StatusCode::TOO_MANY_REQUESTS => {
                let wait = retry_after(response.headers());
                let said = wait.map_or(String::new(), |wait| format!(" ({} s)", wait.as_secs()));
                let failure = HubError::TooMany {
                    endpoint: self.endpoint(),
                    wait: said,
                };
                Ok(Judged::Later(failure, wait))
            }
            _ if status.is_server_error() => {
                Ok(Judged::Later(refused(), retry_after(response.headers())))
            }
            _ if self.is_hub(response.url()) => Err(self
                .refusal(ask, status, response.headers())
                .unwrap_or_else(refused)),
            // An address that a hub sends to is good for a while only.
            _ => Ok(Judged::Later(refused(), None)),
        }
    }

    /// What the hub means by a refusal: it says so in headers of its own.
    fn refusal(&self, ask: &Ask<'_>, status: StatusCode, headers: &HeaderMap) -> Option<HubError> {
        let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let code = header("x-error-code").unwrap_or_default();
        let repository = ask.repository.to_owned();
        let endpoint = self.endpoint();
        let is_bad_token = header("x-error-message").is_some_and(|said| {
            let said = said.to_lowercase();
            said.contains("invalid credentials") || said.contains("expired")
        });
        Some(match (code, status) {
            ("GatedRepo", _) => HubError::Gated {
                endpoint,
                repository,
                then: if self.has_token() {
                    "with the account of this token, and try again"
                } else {
                    "and set HF_TOKEN to a token of that account"
                },
            },
            ("RevisionNotFound", _) => HubError::NoRevision {
                repository,
                revision: ask.revision.to_owned(),
            },
            ("EntryNotFound", _) => HubError::NoFile {
                endpoint,
                repository,
                path: ask.what.to_owned(),
            },
            (_, StatusCode::UNAUTHORIZED) if is_bad_token => HubError::Token { endpoint },
            // A hub tells strangers nothing of what is private: it may be missing or hidden.
            ("RepoNotFound", _)
            | (_, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::NOT_FOUND) => {
                HubError::NoRepository {
                    endpoint,
                    repository,
                    whom: if self.has_token() {
                        "this token"
                    } else {
                        "everybody"
                    },
                    near: String::new(),
                    token: if self.has_token() {
                        ""
                    } else {
                        ", and set HF_TOKEN if it is a private one"
                    },
                }
            }
            _ => return None,
        })
    }
}

/// What becomes of an answer.
enum Judged {
    Good(Response),
    /// It may pass, after the time that the hub asks for.
    Later(HubError, Option<Duration>),
}

/// The certificates that this system trusts. None at all is told by the first handshake.
fn tls() -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring has the ciphers of TLS 1.2 and 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth()
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let host = host.trim_matches(['[', ']']);
    host == "localhost"
        || host
            .parse()
            .is_ok_and(|ip: std::net::IpAddr| ip.is_loopback())
}

/// Host and port of an address. Its path and query may hold what only the server should read.
fn host(url: &Url) -> String {
    let host = url.host_str().unwrap_or("?");
    url.port()
        .map_or(host.to_owned(), |port| format!("{host}:{port}"))
}

/// The seconds that a server asks for. A date is taken for none.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?;
    text.trim().parse().ok().map(Duration::from_secs)
}

/// An error of the client down to its cause, without the address.
pub(crate) fn words(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(next) = cause {
        text = next.to_string();
        cause = next.source();
    }
    text
}
