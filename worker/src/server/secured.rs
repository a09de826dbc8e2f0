//! Connections between ranks, over the certificates of their cluster.

use std::io;
use std::net::TcpStream;

use palimpsest_collective::link::{Link, Secure, Side};
use palimpsest_tls::{Session, SessionTls};

/// Both ends show a certificate of the cluster's CA for the same role, which for ranks is
/// [`Role::Worker`](palimpsest_tls::Role::Worker).
#[derive(Clone, Debug)]
pub struct Secured(pub SessionTls);

struct SecuredLink(Session);

impl Secure for Secured {
    fn link(&self, side: Side) -> io::Result<Box<dyn Link>> {
        let session = match side {
            Side::Connects => self.0.connect(),
            Side::Accepts => self.0.accept(),
        };
        Ok(Box::new(SecuredLink(session?)))
    }
}

impl Link for SecuredLink {
    fn write(&mut self, socket: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(socket, bytes)
    }

    fn read(&mut self, socket: &TcpStream, into: &mut [u8]) -> io::Result<usize> {
        self.0.read(socket, into)
    }

    fn flush(&mut self, socket: &TcpStream) -> io::Result<()> {
        self.0.flush(socket)
    }

    fn has_unsent(&self) -> bool {
        self.0.has_unsent()
    }

    fn has_unread(&self) -> bool {
        self.0.has_unread()
    }
}
