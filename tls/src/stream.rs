//! A connection that was taken.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

use crate::pace::Pace;
use crate::places::Place;
use crate::{Limits, Peer, Requests};

/// A connection of either kind. While it lives it has one of the port's places, and its reads and
/// writes fail when its peer has had its time.
#[derive(Debug)]
pub struct ServerStream {
    io: Io,
    peer: Peer,
    pace: Pace,
    place: Place,
}

#[derive(Debug)]
enum Io {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// How the connections of a port are kept.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terms {
    pub(crate) limits: Limits,
    /// Whether the server tells of its requests.
    pub(crate) counts_requests: bool,
}

impl ServerStream {
    pub(crate) fn plain(stream: TcpStream, place: Place, terms: Terms) -> Self {
        let peer = Peer::plain(stream.peer_addr().ok());
        Self::new(Io::Plain(stream), peer, place, terms)
    }

    pub(crate) fn encrypted(
        stream: TlsStream<TcpStream>,
        address: Option<SocketAddr>,
        place: Place,
        terms: Terms,
    ) -> Self {
        let (_, session) = stream.get_ref();
        let shown = session.peer_certificates().and_then(<[_]>::first);
        let peer = Peer::encrypted(address, shown);
        Self::new(Io::Tls(Box::new(stream)), peer, place, terms)
    }

    fn new(io: Io, peer: Peer, place: Place, terms: Terms) -> Self {
        let requests = terms.counts_requests.then(|| peer.requests());
        Self {
            io,
            pace: Pace::silent(terms.limits, requests),
            peer,
            place,
        }
    }

    /// What its peer has under way.
    pub fn requests(&self) -> Requests {
        self.peer.requests()
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
        let this = &mut *self;
        let before = buf.filled().len();
        let read = match &mut this.io {
            Io::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Io::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        };
        let came = &buf.filled()[before..];
        if !came.is_empty() {
            this.place.keep();
            this.pace.came(came);
        }
        if read.is_ready() {
            return read;
        }
        if this.pace.is_silent() && this.place.poll_lost(cx).is_ready() {
            let why = "another connection took the place of one that had sent nothing";
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionAborted, why)));
        }
        let late = ready!(this.pace.poll_late(cx));
        Poll::Ready(Err(late))
    }
}

impl AsyncWrite for ServerStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let written = match &mut this.io {
            Io::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Io::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        };
        this.pace.wrote(written, cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let written = match &mut this.io {
            Io::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Io::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        };
        this.pace.wrote(written, cx)
    }

    fn is_write_vectored(&self) -> bool {
        match &self.io {
            Io::Plain(stream) => stream.is_write_vectored(),
            Io::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        match &mut this.io {
            // Always done, whatever the peer has taken.
            Io::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Io::Tls(stream) => {
                let flushed = Pin::new(stream).poll_flush(cx);
                this.pace.wrote(flushed, cx)
            }
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let shut = match &mut this.io {
            Io::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Io::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        };
        this.pace.wrote(shut, cx)
    }
}
