//! The side that connects.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use std::{fmt, io};

use hyper::Uri;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;

use crate::files::role_name;
use crate::reload::Reloading;
use crate::{ClientFiles, ClusterFiles, Role, TlsError, explain};

const HTTP2: &[u8] = b"h2";
/// A server's first bytes are waited for this long.
const GREETING_TIME: Duration = Duration::from_secs(1);
/// One of several addresses has this long for TCP, handshake and first bytes; then the next one is
/// tried. Less than callers wait for all of them.
const DIAL_TIME: Duration = Duration::from_secs(1);

/// Whom a client trusts and what it shows, read again when the files change.
#[derive(Clone)]
pub struct ClientTls {
    config: Arc<Reloading<ClientConfig, TlsError>>,
    /// Must stand in the server's certificate; `None`: the host that is connected to.
    name: Option<ServerName<'static>>,
    /// Servers of HTTP/2 speak first.
    awaits_greeting: bool,
}

impl ClientTls {
    /// A client of gRPC, over HTTP/2.
    ///
    /// # Errors
    /// [`TlsError`]: files that are missing, do not fit each other, or are out of date.
    pub fn open(files: ClientFiles) -> Result<Self, TlsError> {
        Self::with_protocol(files, HTTP2)
    }

    /// A client of HTTP/1.1.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn http1(files: ClientFiles) -> Result<Self, TlsError> {
        Self::with_protocol(files, b"http/1.1")
    }

    fn with_protocol(files: ClientFiles, protocol: &'static [u8]) -> Result<Self, TlsError> {
        let config = Reloading::new("certificates", files.paths(), move || {
            files.config(protocol)
        })?;
        Ok(Self {
            config: Arc::new(config),
            name: None,
            awaits_greeting: protocol == HTTP2,
        })
    }

    /// A process of a cluster, in the role `own`, which connects to one in the role `other`,
    /// wherever that is.
    ///
    /// # Errors
    /// As [`Self::open`]; also when others would not accept this certificate for `own`.
    pub fn cluster(files: ClusterFiles, own: Role, other: Role) -> Result<Self, TlsError> {
        let client = files.client();
        let build = move || files.check(own).and_then(|()| files.client().config(HTTP2));
        let config = Reloading::new("certificates", client.paths(), build)?;
        Ok(Self {
            config: Arc::new(config),
            name: Some(role_name(other)),
            awaits_greeting: true,
        })
    }
}

impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientTls")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// Connects for tonic's and hyper's clients: TCP, and TLS where there is any, whatever the scheme
/// of the address. Give tonic addresses of `http://`, so that it leaves TLS to this.
#[derive(Debug, Clone, Default)]
pub struct Connector {
    tls: Option<ClientTls>,
    targets: Option<Arc<Targets>>,
}

#[derive(Debug)]
struct Targets {
    addresses: Vec<(String, u16)>,
    next: AtomicUsize,
}

impl Connector {
    /// Connects to the host of each request.
    pub fn new(tls: Option<ClientTls>) -> Self {
        Self { tls, targets: None }
    }

    /// Connects to the first of `addresses` that answers, whatever the request says; after a
    /// failure, or a second of silence, to the one behind it.
    pub fn to_any_of(addresses: Vec<(String, u16)>, tls: Option<ClientTls>) -> Self {
        Self {
            tls,
            targets: Some(Arc::new(Targets {
                addresses,
                next: AtomicUsize::new(0),
            })),
        }
    }

    async fn connect(self, uri: Uri) -> io::Result<TokioIo<ClientStream>> {
        let Some(targets) = &self.targets else {
            let host = uri
                .host()
                .ok_or_else(|| io::Error::other(format!("`{uri}` names no host")))?;
            let default = if uri.scheme_str() == Some("https") {
                443
            } else {
                80
            };
            return self
                .dial(
                    host.trim_matches(['[', ']']),
                    uri.port_u16().unwrap_or(default),
                )
                .await;
        };
        let mut failed = io::Error::other("there is no address to connect to");
        for _ in &targets.addresses {
            // Moved on first: a caller that gives up in the middle of a dial drops it here, and
            // the next one must not begin with the same address.
            let index = targets.next.fetch_add(1, Ordering::Relaxed);
            let (host, port) = &targets.addresses[index % targets.addresses.len()];
            match self.dial_one_of(targets.addresses.len(), host, *port).await {
                Ok(stream) => {
                    targets.next.store(index, Ordering::Relaxed);
                    return Ok(stream);
                }
                Err(error) => {
                    failed = io::Error::new(error.kind(), format!("{host}:{port}: {error}"))
                }
            }
        }
        Err(failed)
    }

    /// As [`Self::dial`]; no longer than [`DIAL_TIME`] where there is another address to try.
    async fn dial_one_of(
        &self,
        addresses: usize,
        host: &str,
        port: u16,
    ) -> io::Result<TokioIo<ClientStream>> {
        let dial = self.dial(host, port);
        if addresses == 1 {
            return dial.await;
        }
        timeout(DIAL_TIME, dial).await.unwrap_or_else(|_| {
            let why = format!("no connection within {} s", DIAL_TIME.as_secs());
            Err(io::Error::new(io::ErrorKind::TimedOut, why))
        })
    }

    async fn dial(&self, host: &str, port: u16) -> io::Result<TokioIo<ClientStream>> {
        let stream = TcpStream::connect((host, port)).await?;
        // Tokens and plans are small and must not wait for one another in the socket.
        stream.set_nodelay(true)?;
        let Some(tls) = &self.tls else {
            return Ok(TokioIo::new(ClientStream::Plain(stream)));
        };
        let name = match &tls.name {
            Some(name) => name.clone(),
            None => ServerName::try_from(host.to_owned())
                .map_err(|error| io::Error::other(error.to_string()))?,
        };
        let shaken = TlsConnector::from(tls.config.get())
            .connect(name, stream)
            .await;
        let mut stream = ClientStream::Tls(Box::new(shaken.map_err(in_words)?), Vec::new());
        if tls.awaits_greeting {
            stream.await_greeting().await.map_err(in_words)?;
        }
        Ok(TokioIo::new(stream))
    }
}

impl tower_service::Service<Uri> for Connector {
    type Response = TokioIo<ClientStream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        Box::pin(self.clone().connect(uri))
    }
}

/// A text without causes: callers look for the innermost one.
fn in_words(error: io::Error) -> io::Error {
    let why = explain(&error).unwrap_or_else(|| error.to_string());
    io::Error::new(error.kind(), format!("no TLS connection: {why}"))
}

/// A connection of either kind.
#[derive(Debug)]
pub enum ClientStream {
    /// Without TLS.
    Plain(TcpStream),
    /// With TLS, and what was read ahead of the client.
    Tls(Box<TlsStream<TcpStream>>, Vec<u8>),
}

impl ClientStream {
    /// Reads the first bytes ahead. In TLS 1.3 a client has done its part before the server has
    /// looked at its certificate; a refusal comes in place of the first bytes, and HTTP/2 would not
    /// say whose it was.
    async fn await_greeting(&mut self) -> io::Result<()> {
        let Self::Tls(stream, ahead) = self else {
            return Ok(());
        };
        let mut first = [0; 64];
        // Silence is no refusal.
        let Ok(found) = timeout(GREETING_TIME, stream.read(&mut first)).await else {
            return Ok(());
        };
        match found? {
            0 => Err(io::Error::other("the other side closed the connection")),
            length => {
                ahead.extend_from_slice(&first[..length]);
                Ok(())
            }
        }
    }
}

impl Connection for ClientStream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream, ahead) if ahead.is_empty() => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(_, ahead) => {
                let length = ahead.len().min(buf.remaining());
                buf.put_slice(&ahead[..length]);
                ahead.drain(..length);
                Poll::Ready(Ok(()))
            }
        }
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream, _) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream, _) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream, _) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
