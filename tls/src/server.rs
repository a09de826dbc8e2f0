//! The side that is connected to.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use std::{fmt, io};

use futures::stream::{self, Stream};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::client::verify_server_name;
use tokio_rustls::rustls::server::ParsedCertificate;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;
use tonic::{Request, Status};

use crate::error::SPEAKS_TLS;
use crate::files::role_name;
use crate::reload::Reloading;
use crate::{ClusterFiles, Role, ServerFiles, TlsError, explain};

/// First byte of every TLS connection: a handshake record.
const HANDSHAKE_RECORD: u8 = 22;
/// Begin of every HTTP/2 connection.
const HTTP2_PREFACE: &[u8] = b"PRI ";
/// Pause after a failure to accept, which mostly means that the system is out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Time between the connection and the first request of a client of HTTP/2.
const REQUEST_TIME: Duration = Duration::from_millis(200);
/// Time and bytes that a client of plain text has to take its answer.
const FAREWELL: Duration = Duration::from_secs(1);
const FAREWELL_BYTES: u64 = 64 << 10;

/// Certificates of a server, read again when they change.
#[derive(Clone)]
pub struct ServerTls(Arc<Reloading<ServerConfig>>);

impl ServerTls {
    /// Reads the files.
    ///
    /// # Errors
    /// [`TlsError`]: files that are missing, do not fit each other, or are out of date.
    pub fn open(files: ServerFiles) -> Result<Self, TlsError> {
        Ok(Self(Arc::new(Reloading::new(files.paths(), move || {
            files.config()
        })?)))
    }

    /// For a process that only others of its cluster may reach: each must show a certificate of the
    /// cluster's CA.
    ///
    /// # Errors
    /// As [`Self::open`]; also when others would not accept this certificate for `role`.
    pub fn cluster(files: ClusterFiles, role: Role) -> Result<Self, TlsError> {
        let server = files.server();
        let build = move || files.check(role).and_then(|()| files.server().config());
        Ok(Self(Arc::new(Reloading::new(server.paths(), build)?)))
    }
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServerTls")
    }
}

/// What clients may take of a port before they have said anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Connections at once, handshakes among them; more wait to be accepted.
    pub connections: usize,
    /// Time for a handshake.
    pub handshake_time: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 4096,
            handshake_time: Duration::from_secs(10),
        }
    }
}

/// Connections of a port, with or without TLS. A slow handshake holds nobody else up.
#[derive(Debug)]
pub struct Incoming {
    listener: TcpListener,
    tls: Option<ServerTls>,
    limits: Limits,
    places: Arc<Semaphore>,
    handshakes: JoinSet<Option<ServerStream>>,
}

impl From<TcpListener> for Incoming {
    fn from(listener: TcpListener) -> Self {
        Self::new(listener, None, Limits::default())
    }
}

impl Incoming {
    /// Connections of `listener`, behind TLS if there is any.
    pub fn new(listener: TcpListener, tls: Option<ServerTls>, limits: Limits) -> Self {
        let places = Arc::new(Semaphore::new(limits.connections));
        Self {
            listener,
            tls,
            limits,
            places,
            handshakes: JoinSet::new(),
        }
    }

    /// Where it listens.
    ///
    /// # Errors
    /// The system's.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Whether it speaks TLS.
    pub fn is_encrypted(&self) -> bool {
        self.tls.is_some()
    }

    /// The next connection that is ready to be used. May be dropped while it waits: nothing is
    /// lost.
    pub async fn accept(&mut self) -> ServerStream {
        loop {
            let (place, stream) = tokio::select! {
                Some(done) = self.handshakes.join_next(), if !self.handshakes.is_empty() => {
                    match done {
                        Ok(Some(stream)) => return stream,
                        _ => continue,
                    }
                }
                accepted = next(&self.listener, &self.places) => match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        tracing::warn!(%error, "no connection can be accepted");
                        sleep(ACCEPT_PAUSE).await;
                        continue;
                    }
                },
            };
            // Tokens are small and must not wait for one another in the socket.
            let _ = stream.set_nodelay(true);
            match &self.tls {
                None => return ServerStream::plain(stream, place),
                Some(tls) => {
                    let shaken = shake(tls.clone(), stream, self.limits.handshake_time, place);
                    self.handshakes.spawn(shaken);
                }
            }
        }
    }

    /// As a stream, for tonic. It never ends and never fails.
    pub fn into_stream(self) -> impl Stream<Item = io::Result<ServerStream>> + Send {
        stream::unfold(self, |mut incoming| async move {
            Some((Ok(incoming.accept().await), incoming))
        })
    }
}

async fn next(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> io::Result<(OwnedSemaphorePermit, TcpStream)> {
    let place = places
        .clone()
        .acquire_owned()
        .await
        .map_err(io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    Ok((place, stream))
}

/// A handshake within its time; what fails is the client's affair and only logged.
async fn shake(
    tls: ServerTls,
    stream: TcpStream,
    limit: Duration,
    place: OwnedSemaphorePermit,
) -> Option<ServerStream> {
    let address = stream.peer_addr().ok();
    let shaken = timeout(limit, async {
        let mut first = [0; HTTP2_PREFACE.len()];
        let found = stream.peek(&mut first).await?;
        if found > 0 && first[0] != HANDSHAKE_RECORD {
            refuse_plain(stream, first.starts_with(HTTP2_PREFACE)).await;
            return Err(io::Error::other("it speaks plain text"));
        }
        TlsAcceptor::from(tls.0.get()).accept(stream).await
    });
    let why = match shaken.await {
        Ok(Ok(stream)) => return Some(ServerStream::encrypted(stream, address, place)),
        Ok(Err(error)) => explain(&error).unwrap_or_else(|| error.to_string()),
        Err(_) => format!("not done within {} s", limit.as_secs_f64()),
    };
    tracing::info!(peer = ?address, %why, "a TLS handshake failed");
    None
}

/// Says what is wrong in the client's own protocol.
async fn refuse_plain(mut stream: TcpStream, is_http2: bool) {
    let farewell = async {
        if is_http2 {
            stream.write_all(&SETTINGS).await?;
            // A client that has sent a request by then relates the reason to it; before, it would
            // drop the reason.
            sleep(REQUEST_TIME).await;
        }
        let answer = if is_http2 { goaway() } else { bad_request() };
        stream.write_all(&answer).await?;
        stream.shutdown().await?;
        // Closed with bytes unread, a connection is reset and the answer lost.
        tokio::io::copy(&mut stream.take(FAREWELL_BYTES), &mut tokio::io::sink()).await
    };
    let _ = timeout(FAREWELL, farewell).await;
}

fn bad_request() -> Vec<u8> {
    let kind = r#""type":"invalid_request_error","param":null,"code":"plain_text""#;
    let body = format!(r#"{{"error":{{"message":"{SPEAKS_TLS}",{kind}}}}}"#);
    let length = body.len();
    let head = "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\nconnection: close";
    format!("{head}\r\ncontent-length: {length}\r\n\r\n{body}").into_bytes()
}

/// An HTTP/2 frame of settings, empty (RFC 9113, section 6.5).
const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];

/// An HTTP/2 frame that ends the connection with a reason (RFC 9113, section 6.8).
fn goaway() -> Vec<u8> {
    /// INADEQUATE_SECURITY.
    const REASON: u32 = 0xc;
    let mut bytes = vec![0, 0, 8 + SPEAKS_TLS.len() as u8, 7, 0, 0, 0, 0, 0];
    bytes.extend(0u32.to_be_bytes());
    bytes.extend(REASON.to_be_bytes());
    bytes.extend(SPEAKS_TLS.as_bytes());
    bytes
}

/// Who is at the other end of a connection. tonic puts it into the extensions of each request.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Its address.
    pub address: Option<SocketAddr>,
    /// Roles that its certificate names; `None` without TLS.
    roles: Option<Vec<Role>>,
}

impl Peer {
    /// Whether it may act in `role`. Without TLS nobody can be told from anybody, and the network
    /// decides.
    pub fn is(&self, role: Role) -> bool {
        self.roles
            .as_ref()
            .is_none_or(|roles| roles.contains(&role))
    }
}

/// Lets calls of one role through.
pub fn only(
    role: Role,
) -> impl Fn(Request<()>) -> Result<Request<()>, Status> + Clone + Send + Sync + 'static {
    move |request| match request.extensions().get::<Peer>() {
        Some(peer) if peer.is(role) => Ok(request),
        _ => Err(Status::permission_denied(format!(
            "only for who shows a certificate with the DNS name {}",
            role.dns_name()
        ))),
    }
}

/// A connection of either kind. While it lives it has one of the port's places.
#[derive(Debug)]
pub struct ServerStream {
    io: Io,
    peer: Peer,
    _place: OwnedSemaphorePermit,
}

#[derive(Debug)]
enum Io {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl ServerStream {
    fn plain(stream: TcpStream, place: OwnedSemaphorePermit) -> Self {
        let peer = Peer {
            address: stream.peer_addr().ok(),
            roles: None,
        };
        Self {
            io: Io::Plain(stream),
            peer,
            _place: place,
        }
    }

    fn encrypted(
        stream: TlsStream<TcpStream>,
        address: Option<SocketAddr>,
        place: OwnedSemaphorePermit,
    ) -> Self {
        let shown = stream
            .get_ref()
            .1
            .peer_certificates()
            .and_then(<[_]>::first);
        let parsed = shown.and_then(|shown| ParsedCertificate::try_from(shown).ok());
        let names = |role: &Role| {
            parsed
                .as_ref()
                .is_some_and(|parsed| verify_server_name(parsed, &role_name(*role)).is_ok())
        };
        let roles = [Role::Coordinator, Role::Worker]
            .into_iter()
            .filter(names)
            .collect();
        Self {
            io: Io::Tls(Box::new(stream)),
            peer: Peer {
                address,
                roles: Some(roles),
            },
            _place: place,
        }
    }
}

impl Connected for ServerStream {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for ServerStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Io::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for ServerStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.io {
            Io::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Io::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.io {
            Io::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Io::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.io {
            Io::Plain(stream) => stream.is_write_vectored(),
            Io::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Io::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Io::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
