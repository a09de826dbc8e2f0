//! How what two ranks tell each other is written to their socket: in the clear, or by who secures
//! it.

use std::io::{self, Read, Write};
use std::net::TcpStream;

/// Which end of a connection a rank is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Side {
    /// The one that connects.
    Connects,
    /// The one that is connected to.
    Accepts,
}

/// Makes the links of a mesh.
pub trait Secure: Send + Sync {
    /// A rank's end of a new connection. Nothing is sent yet: whatever the ends have to find out
    /// about each other, reads and writes do.
    ///
    /// # Errors
    /// What keeps this rank from securing connections.
    fn link(&self, side: Side) -> io::Result<Box<dyn Link>>;
}

/// A rank's end of a connection. The socket never blocks, stays with the caller, who waits for it,
/// and is shut down there: so a link that is in use needs no lock to be ended. A failed link is of
/// no more use.
pub trait Link: Send {
    /// Takes bytes for the other end, and sends what the socket takes. Says how many were taken.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when none can be taken; what the socket says; why the other
    /// end is not to be talked to.
    fn write(&mut self, socket: &TcpStream, bytes: &[u8]) -> io::Result<usize>;

    /// Reads from the other end; none means that it has ended the connection. Nothing comes from
    /// an end that is not known to be a rank.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when nothing is there; as [`Self::write`].
    fn read(&mut self, socket: &TcpStream, into: &mut [u8]) -> io::Result<usize>;

    /// Sends what was taken before, as far as the socket takes it.
    ///
    /// # Errors
    /// What the socket says; never [`io::ErrorKind::WouldBlock`].
    fn flush(&mut self, socket: &TcpStream) -> io::Result<()>;

    /// Whether something waits for the socket to take it.
    fn has_unsent(&self) -> bool;

    /// Whether something is read already: the socket does not tell of it any more.
    fn has_unread(&self) -> bool;
}

/// Links in the clear.
#[derive(Clone, Copy, Debug)]
pub struct Clear;

impl Secure for Clear {
    fn link(&self, _: Side) -> io::Result<Box<dyn Link>> {
        Ok(Box::new(Self))
    }
}

impl Link for Clear {
    fn write(&mut self, mut socket: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
        socket.write(bytes)
    }

    fn read(&mut self, mut socket: &TcpStream, into: &mut [u8]) -> io::Result<usize> {
        socket.read(into)
    }

    fn flush(&mut self, _: &TcpStream) -> io::Result<()> {
        Ok(())
    }

    fn has_unsent(&self) -> bool {
        false
    }

    fn has_unread(&self) -> bool {
        false
    }
}
