//! The side that is connected to.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, Stream};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;

use crate::farewell::{HTTP2_SIGN, refuse_full, refuse_plain};
use crate::places::{Full, Place, Places};
use crate::refused::{Refusal, Refused, Told};
use crate::reload::Reloading;
use crate::stream::{ServerStream, Terms};
use crate::{ClusterFiles, Limits, Role, ServerFiles, TlsError, explain};

/// First byte of every TLS connection: a handshake record.
const HANDSHAKE_RECORD: u8 = 22;
/// Pause after a failure to accept, which mostly means that the system is out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// The same where a connection goes to make room for another.
const FREED_PAUSE: Duration = Duration::from_millis(1);

/// Certificates of a server, read again when they change.
#[derive(Clone)]
pub struct ServerTls(Arc<Reloading<ServerConfig, TlsError>>);

impl ServerTls {
    /// Reads the files.
    ///
    /// # Errors
    /// [`TlsError`]: files that are missing, do not fit each other, or are out of date.
    pub fn open(files: ServerFiles) -> Result<Self, TlsError> {
        Ok(Self(Arc::new(Reloading::new(
            "certificates",
            files.paths(),
            move || files.config(),
        )?)))
    }

    /// For a process that only others of its cluster may reach: each must show a certificate of the
    /// cluster's CA.
    ///
    /// # Errors
    /// As [`Self::open`]; also when others would not accept this certificate for `role`.
    pub fn cluster(files: ClusterFiles, role: Role) -> Result<Self, TlsError> {
        let server = files.server();
        let build = move || files.check(role).and_then(|()| files.server().config());
        Ok(Self(Arc::new(Reloading::new(
            "certificates",
            server.paths(),
            build,
        )?)))
    }
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServerTls")
    }
}

/// Connections of a port, with or without TLS. A slow handshake holds nobody else up, and who says
/// nothing costs a socket and a timer for a while.
#[derive(Debug)]
pub struct Incoming {
    listener: TcpListener,
    tls: Option<ServerTls>,
    terms: Terms,
    places: Places,
    /// Connections whose first byte or whose handshake has not come.
    opening: JoinSet<Option<ServerStream>>,
    refused: Refused,
    told: Told,
}

impl From<TcpListener> for Incoming {
    fn from(listener: TcpListener) -> Self {
        Self::new(listener, None, Limits::default())
    }
}

impl Incoming {
    /// Connections of `listener`, behind TLS if there is any.
    pub fn new(listener: TcpListener, tls: Option<ServerTls>, limits: Limits) -> Self {
        Self {
            listener,
            tls,
            terms: Terms {
                limits,
                counts_requests: false,
            },
            places: Places::new(&limits),
            opening: JoinSet::new(),
            refused: Refused::default(),
            told: Told::default(),
        }
    }

    /// For a server that counts the requests of its connections, with [`Counted`](crate::Counted):
    /// those without any have their time as well.
    pub fn counting_requests(mut self) -> Self {
        self.terms.counts_requests = true;
        self
    }

    /// Where it listens.
    ///
    /// # Errors
    /// The system's.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Counts of the connections that came to nothing.
    pub fn refused(&self) -> Refused {
        self.refused.clone()
    }

    /// Whether it speaks TLS.
    pub fn is_encrypted(&self) -> bool {
        self.tls.is_some()
    }

    /// The next connection that is ready to be used. May be dropped while it waits: nothing is
    /// lost.
    pub async fn accept(&mut self) -> ServerStream {
        loop {
            let accepted = tokio::select! {
                Some(done) = self.opening.join_next(), if !self.opening.is_empty() => {
                    match done {
                        Ok(Some(stream)) => return stream,
                        _ => continue,
                    }
                }
                accepted = self.listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, address)) => self.open(stream, address),
                Err(error) => {
                    tracing::warn!(%error, "no connection can be accepted");
                    // One that has said nothing may have the descriptor that is missing.
                    let is_freed = self.places.free_one();
                    sleep(if is_freed { FREED_PAUSE } else { ACCEPT_PAUSE }).await;
                }
            }
        }
    }

    /// Gives a connection its place and waits for what it says, beside all others; or refuses it.
    fn open(&mut self, stream: TcpStream, address: SocketAddr) {
        let place = match self.places.take(address.ip()) {
            Ok(place) => place,
            Err(full) => {
                self.tell(full, address);
                if self.tls.is_none() {
                    refuse_full(stream);
                }
                return;
            }
        };
        // Tokens are small and must not wait for one another in the socket.
        let _ = stream.set_nodelay(true);
        let (tls, terms, refused) = (self.tls.clone(), self.terms, self.refused.clone());
        self.opening.spawn(async move {
            let opened = opened(tls, stream, place, terms).await;
            opened.inspect_err(|&why| refused.add(why)).ok()
        });
    }

    /// Counts a connection for which there was no place, and tells of it once in a while.
    fn tell(&mut self, full: Full, address: SocketAddr) {
        let (why, limit) = match full {
            Full::Port => (Refusal::PortFull, "connections of this port"),
            Full::Address => (Refusal::AddressFull, "connections of one address"),
        };
        self.refused.add(why);
        if let Some(refused) = self.told.next() {
            tracing::warn!(refused, last = %address.ip(), limit, "too many connections");
        }
    }

    /// As a stream, for tonic. It never ends and never fails.
    pub fn into_stream(self) -> impl Stream<Item = io::Result<ServerStream>> + Send {
        stream::unfold(self, |mut incoming| async move {
            Some((Ok(incoming.accept().await), incoming))
        })
    }
}

/// A connection whose first byte has come, and whose handshake is done where there is one.
async fn opened(
    tls: Option<ServerTls>,
    stream: TcpStream,
    mut place: Place,
    terms: Terms,
) -> Result<ServerStream, Refusal> {
    let first = tokio::select! {
        first = timeout(terms.limits.first_byte_time, first_bytes(&stream)) => first,
        () = place.lost() => return Err(Refusal::Displaced),
    };
    let Ok(Ok(first)) = first else {
        let peer = stream.peer_addr().ok();
        tracing::debug!(?peer, "a connection that said nothing is closed");
        return Err(Refusal::Silent);
    };
    let Some(tls) = tls else {
        // What came is read with the rest; here it only counts.
        return Ok(ServerStream::plain(stream, place, terms));
    };
    if first.starts_with(&[HANDSHAKE_RECORD]) {
        return shake(&tls, stream, place, terms).await;
    }
    tracing::info!(peer = ?stream.peer_addr().ok(), "a connection speaks plain text to TLS");
    refuse_plain(stream, first.starts_with(HTTP2_SIGN)).await;
    Err(Refusal::PlainText)
}

/// The first bytes, which stay in the socket; an error where the peer has closed it.
async fn first_bytes(stream: &TcpStream) -> io::Result<Vec<u8>> {
    let mut first = [0; HTTP2_SIGN.len()];
    let found = stream.peek(&mut first).await?;
    if found == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(first[..found].to_vec())
}

/// A handshake within its time; what fails is the client's affair and only logged.
async fn shake(
    tls: &ServerTls,
    stream: TcpStream,
    mut place: Place,
    terms: Terms,
) -> Result<ServerStream, Refusal> {
    let address = stream.peer_addr().ok();
    let limit = terms.limits.handshake_time;
    let shaken = tokio::select! {
        shaken = timeout(limit, TlsAcceptor::from(tls.0.get()).accept(stream)) => shaken,
        // Records of a handshake cost little to make: only who gets through one has a claim.
        () = place.lost() => return Err(Refusal::Displaced),
    };
    let why = match shaken {
        Ok(Ok(stream)) => return Ok(ServerStream::encrypted(stream, address, place, terms)),
        Ok(Err(error)) => explain(&error).unwrap_or_else(|| error.to_string()),
        Err(_) => format!("not done within {} s", limit.as_secs_f64()),
    };
    tracing::info!(peer = ?address, %why, "a TLS handshake failed");
    Err(Refusal::Handshake)
}

#[cfg(test)]
mod tests;
