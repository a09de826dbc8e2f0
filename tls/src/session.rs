//! TLS between two processes of one role, over a socket that its owner waits for: ranks that
//! exchange tensors have no tasks.

use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::{
    self, ClientConfig, ClientConnection, Connection, ServerConfig, ServerConnection,
};

use crate::error::in_words;
use crate::files::role_name;
use crate::{ClusterFiles, Peer, Reloading, Role, TlsError};

/// What is spoken behind it. A client of another protocol is refused, and no answer of another
/// server can be taken for a rank's.
const PROTOCOL: &[u8] = b"palimpsest-ranks";
/// So many bytes are asked of the socket at once. rustls alone asks for 4 KiB.
const READ_BYTES: usize = 64 << 10;

/// Certificates of processes of one role that connect to each other, read again when their files
/// change: a new session has those of the last second.
#[derive(Clone)]
pub struct SessionTls {
    role: Role,
    client: Arc<Reloading<ClientConfig, TlsError>>,
    server: Arc<Reloading<ServerConfig, TlsError>>,
}

impl SessionTls {
    /// Reads the files.
    ///
    /// # Errors
    /// [`TlsError`]: files that are missing, do not fit each other, or are out of date; also when
    /// others would not accept this certificate for `role`.
    pub fn cluster(files: ClusterFiles, role: Role) -> Result<Self, TlsError> {
        let (of_client, of_server) = (files.clone(), files.clone());
        let client = move || {
            of_client.check(role)?;
            let mut config = of_client.client().config(PROTOCOL)?;
            // A session lasts as long as its epoch, and the next one asks for certificates anew.
            config.resumption = Resumption::disabled();
            Ok(config)
        };
        let server = move || {
            of_server.check(role)?;
            let mut config = of_server.server().config()?;
            config.alpn_protocols = vec![PROTOCOL.to_vec()];
            config.send_tls13_tickets = 0;
            Ok(config)
        };
        let paths = || files.client().paths();
        Ok(Self {
            role,
            client: Arc::new(Reloading::new("certificates", paths(), client)?),
            server: Arc::new(Reloading::new("certificates", paths(), server)?),
        })
    }

    /// The session of who connects.
    ///
    /// # Errors
    /// When there are no random numbers.
    pub fn connect(&self) -> io::Result<Session> {
        let name = role_name(self.role);
        let client = ClientConnection::new(self.client.get(), name).map_err(failed)?;
        Ok(Session::new(client.into(), self.role))
    }

    /// The session of who is connected to.
    ///
    /// # Errors
    /// When there are no random numbers.
    pub fn accept(&self) -> io::Result<Session> {
        let server = ServerConnection::new(self.server.get()).map_err(failed)?;
        Ok(Session::new(server.into(), self.role))
    }
}

impl fmt::Debug for SessionTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionTls")
            .field("role", &self.role)
            .finish_non_exhaustive()
    }
}

/// One end of a connection. Reads and writes do the handshake first, as far as the socket lets
/// them. No byte comes from, and none goes to, an end that has not shown a certificate of the
/// cluster's CA for its role. After an error it is of no more use.
#[derive(Debug)]
pub struct Session {
    tls: Connection,
    role: Role,
    /// Whether the other end has shown who it is.
    is_known: bool,
    /// What came from the socket and was not given to `tls`, from `next` on.
    came: Vec<u8>,
    next: usize,
    /// Bytes that `tls` has decrypted and nobody has read.
    unread: usize,
}

impl Session {
    fn new(tls: Connection, role: Role) -> Self {
        Self {
            tls,
            role,
            is_known: false,
            came: Vec::new(),
            next: 0,
            unread: 0,
        }
    }

    /// Takes bytes for the other end, and sends what the socket takes. Says how many were taken.
    ///
    /// # Errors
    /// [`ErrorKind::WouldBlock`] when none can be taken; what the socket says.
    pub fn write(&mut self, socket: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
        let mut taken = self.tls.writer().write(bytes)?;
        self.flush(socket)?;
        if taken == 0 {
            // What waited may have left room.
            taken = self.tls.writer().write(bytes)?;
            self.flush(socket)?;
        }
        if taken == 0 && !bytes.is_empty() {
            return Err(ErrorKind::WouldBlock.into());
        }
        Ok(taken)
    }

    /// Reads what the other end wrote; none means that it has ended the session.
    ///
    /// # Errors
    /// [`ErrorKind::WouldBlock`] when nothing is there; what the socket says; in words, why the
    /// other end is not to be talked to, or does not talk to this one.
    pub fn read(&mut self, socket: &TcpStream, into: &mut [u8]) -> io::Result<usize> {
        loop {
            if self.is_known {
                match self.tls.reader().read(into) {
                    Ok(count) => {
                        self.unread -= count.min(self.unread);
                        return Ok(count);
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(0),
                    Err(error) => return Err(error),
                }
            }
            if !self.go_on(socket)? {
                return Ok(0);
            }
        }
    }

    /// Gives `tls` what the socket has, and the socket what `tls` answers. False at its end.
    fn go_on(&mut self, mut socket: &TcpStream) -> io::Result<bool> {
        self.flush(socket)?;
        if self.next == self.came.len() {
            self.came.resize(READ_BYTES, 0);
            let read = socket.read(&mut self.came);
            self.came.truncate(*read.as_ref().unwrap_or(&0));
            self.next = 0;
            if read? == 0 {
                return Ok(false);
            }
        }
        let mut rest = &self.came[self.next..];
        let given = self.tls.read_tls(&mut rest)?;
        self.next += given;
        match self.tls.process_new_packets() {
            Ok(state) => self.unread = state.plaintext_bytes_to_read(),
            Err(error) => {
                // The other end is told why, if it can be.
                let _ = self.flush(socket);
                return Err(failed(error));
            }
        }
        self.check()?;
        self.flush(socket)?;
        // After the other end's farewell nothing more is taken.
        Ok(given > 0)
    }

    /// Finds out who is at the other end, once the handshake is done.
    fn check(&mut self) -> io::Result<()> {
        if self.is_known || self.tls.is_handshaking() {
            return Ok(());
        }
        let shown = self.tls.peer_certificates().and_then(<[_]>::first);
        if !Peer::encrypted(None, shown).is(self.role) {
            let name = self.role.dns_name();
            let why = format!("its certificate does not hold the DNS name {name}");
            return Err(io::Error::new(ErrorKind::PermissionDenied, why));
        }
        self.is_known = true;
        Ok(())
    }

    /// Sends what was taken before, as far as the socket takes it.
    ///
    /// # Errors
    /// What the socket says; never [`ErrorKind::WouldBlock`].
    pub fn flush(&mut self, mut socket: &TcpStream) -> io::Result<()> {
        while self.tls.wants_write() {
            match self.tls.write_tls(&mut socket) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Whether something waits for the socket to take it.
    pub fn has_unsent(&self) -> bool {
        self.tls.wants_write()
    }

    /// Whether something has come from the socket that was not read: the socket does not tell of
    /// it any more.
    pub fn has_unread(&self) -> bool {
        self.unread > 0 || self.next < self.came.len()
    }
}

fn failed(error: rustls::Error) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, in_words(&error))
}
