//! How ranks come to be connected: one calls, shows the token of whom it calls, and is welcomed.
//!
//! Whoever connects may be a stranger. Strangers are heard beside each other, each for a while, and
//! no more than [`MOST_OPENING`] at once; so none of them keeps a rank from being heard.

use std::fmt::Write as _;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{Error, ErrorKind, Result};
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};

use super::wait::{go_on, left, wait};
use crate::communicator::CollectiveError;
use crate::link::{Link, Secure, Side};
use crate::place::Place;

pub(super) const TOKEN: usize = 16;
/// A token, and the number of the rank that shows it.
const GREETING: usize = TOKEN + 4;
/// Who connects has this long to say who it is: as long as a handshake has on other links.
const GREETING_TIME: Duration = Duration::from_secs(10);
/// Connections that have not said who they are; one more ends the oldest.
const MOST_OPENING: usize = 128;
/// So many refusals are logged while ranks meet: strangers must not fill the log.
const MOST_TOLD: usize = 16;
/// What a rank that is welcome is told.
const WELCOME: u8 = 1;

/// A connection with another rank, and this rank's end of it.
pub(super) struct Peer {
    pub stream: TcpStream,
    pub link: Box<dyn Link>,
}

impl Peer {
    fn new(stream: TcpStream, secure: &dyn Secure, side: Side) -> Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        let link = secure.link(side)?;
        Ok(Self { stream, link })
    }

    /// What to wait for besides what comes.
    fn flags(&self) -> PollFlags {
        let mut flags = PollFlags::IN;
        flags.set(PollFlags::OUT, self.link.has_unsent());
        flags
    }
}

/// What a rank leaves in the store for those that call it.
pub(super) struct Card<'a> {
    /// Shown to it by who calls.
    pub token: [u8; TOKEN],
    /// Name or address of its machine.
    pub host: &'a str,
    pub port: u16,
}

impl<'a> Card<'a> {
    pub fn to_bytes(&self) -> Vec<u8> {
        [
            &self.token[..],
            &self.port.to_le_bytes(),
            self.host.as_bytes(),
        ]
        .concat()
    }

    pub fn parse(bytes: &'a [u8]) -> Result<Self> {
        let (&token, rest) = bytes.split_first_chunk().ok_or_else(Self::bad)?;
        let (port, host) = rest.split_first_chunk().ok_or_else(Self::bad)?;
        Ok(Self {
            token,
            host: std::str::from_utf8(host).map_err(|_| Self::bad())?,
            port: u16::from_le_bytes(*port),
        })
    }

    fn bad() -> Error {
        Error::new(
            ErrorKind::InvalidData,
            "what it left in the rendezvous is no address",
        )
    }
}

/// Not to be guessed by who does not see the store. The standard library's hashers have random
/// keys.
pub(super) fn new_token() -> [u8; TOKEN] {
    let draw = || RandomState::new().build_hasher().finish().to_le_bytes();
    let mut token = [0; TOKEN];
    token[..8].copy_from_slice(&draw());
    token[8..].copy_from_slice(&draw());
    token
}

/// Connects to the rank whose card this is, and waits until that takes this one, `rank`, for one
/// of its group.
pub(super) fn call(
    card: &[u8],
    rank: usize,
    secure: &dyn Secure,
    deadline: Instant,
) -> Result<Peer> {
    let Card { token, host, port } = Card::parse(card)?;
    let greeting = [&token[..], &(rank as u32).to_le_bytes()].concat();
    let mut last = Card::bad();
    for address in (host, port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, left(deadline)) {
            Ok(stream) => {
                let peer = Peer::new(stream, secure, Side::Connects)?;
                return greet(peer, &greeting, deadline);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Shows who this rank is, and waits to be welcomed.
fn greet(mut peer: Peer, greeting: &[u8], deadline: Instant) -> Result<Peer> {
    let (mut sent, mut heard, mut welcome) = (0, 0, [0]);
    loop {
        let Peer { stream, link } = &mut peer;
        go_on(&mut sent, GREETING, ErrorKind::WriteZero, |from| {
            link.write(stream, &greeting[from..])
        })?;
        link.flush(stream)?;
        go_on(&mut heard, 1, ErrorKind::ConnectionRefused, |_| {
            link.read(stream, &mut welcome)
        })?;
        if heard == 1 {
            return Ok(peer);
        }
        if Instant::now() >= deadline {
            return Err(Error::new(ErrorKind::TimedOut, "it does not answer"));
        }
        let flags = peer.flags();
        wait(&mut [PollFd::new(&peer.stream, flags)], deadline)?;
    }
}

/// A connection that has not said yet who it is.
struct Opening {
    peer: Peer,
    address: SocketAddr,
    greeting: [u8; GREETING],
    received: usize,
    until: Instant,
}

impl Opening {
    /// Reads what there is of the greeting: the rank that it is, once that is known.
    fn go_on(&mut self, token: &[u8; TOKEN]) -> Result<Option<usize>> {
        let Peer { stream, link } = &mut self.peer;
        link.flush(stream)?;
        let greeting = &mut self.greeting;
        go_on(
            &mut self.received,
            GREETING,
            ErrorKind::UnexpectedEof,
            |from| link.read(stream, &mut greeting[from..]),
        )?;
        if self.received < GREETING {
            return Ok(None);
        }
        let (shown, rank) = self.greeting.split_at(TOKEN);
        if shown != token {
            return Err(Error::other("it does not show the token of this rank"));
        }
        Ok(Some(
            u32::from_le_bytes(rank.try_into().unwrap_or_default()) as usize,
        ))
    }

    /// Tells it that it is taken for the rank that it says it is.
    fn welcome(mut self) -> Result<Peer> {
        let Peer { stream, link } = &mut self.peer;
        link.write(stream, &[WELCOME])?;
        link.flush(stream)?;
        Ok(self.peer)
    }
}

/// Who was not taken for a rank, and why: whoever waits for a rank in vain wants to know.
#[derive(Default)]
struct Refusals {
    count: usize,
    last: Option<String>,
}

impl Refusals {
    fn add(&mut self, address: SocketAddr, why: &Error) {
        self.count += 1;
        self.last = Some(format!("{address}: {why}"));
        if self.count <= MOST_TOLD {
            tracing::warn!(peer = %address, %why, "a connection for tensors is refused");
        }
    }
}

/// Waits for the ranks after this one.
pub(super) struct Reception<'a> {
    listener: &'a TcpListener,
    token: [u8; TOKEN],
    secure: &'a dyn Secure,
    opening: Vec<Opening>,
    refusals: Refusals,
}

impl<'a> Reception<'a> {
    pub(super) fn new(
        listener: &'a TcpListener,
        token: [u8; TOKEN],
        secure: &'a dyn Secure,
    ) -> Self {
        Self {
            listener,
            token,
            secure,
            opening: Vec::new(),
            refusals: Refusals::default(),
        }
    }

    /// Fills `peers` with the ranks after this one.
    ///
    /// # Errors
    /// [`CollectiveError::Deadline`] with who is missing and who was refused last,
    /// [`CollectiveError::PeerGone`] when the listener fails.
    pub(super) fn receive(
        mut self,
        peers: &mut [Option<Peer>],
        place: Place,
        deadline: Instant,
    ) -> std::result::Result<(), CollectiveError> {
        let broken = |error: Error| CollectiveError::PeerGone(format!("listening failed: {error}"));
        self.listener.set_nonblocking(true).map_err(broken)?;
        loop {
            let absent = (place.rank + 1..place.world_size).filter(|&rank| peers[rank].is_none());
            let mut missing = absent
                .map(|rank| format!("rank {rank}"))
                .collect::<Vec<_>>()
                .join(", ");
            if missing.is_empty() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                if let Some(last) = &self.refusals.last {
                    // Writing to a string cannot fail.
                    let _ = write!(missing, " (refused {}, last {last})", self.refusals.count);
                }
                return Err(CollectiveError::Deadline {
                    operation: "rendezvous",
                    missing,
                });
            }
            let ready = self.wait(deadline).map_err(broken)?;
            self.hear(&ready, peers, place);
            self.accept();
        }
    }

    /// Sleeps until somebody connects, says something, or has had its time. Which of those that
    /// are opening have something.
    fn wait(&self, deadline: Instant) -> Result<Vec<bool>> {
        let until = self.opening.iter().map(|it| it.until).min();
        let until = until.map_or(deadline, |until| until.min(deadline));
        let mut fds = vec![PollFd::new(self.listener, PollFlags::IN)];
        let opening = self.opening.iter();
        fds.extend(opening.map(|it| PollFd::new(&it.peer.stream, it.peer.flags())));
        wait(&mut fds, until)?;
        Ok(fds[1..].iter().map(|fd| !fd.revents().is_empty()).collect())
    }

    /// Hears those that have something to say, and lets go of those whose time is over.
    pub(super) fn hear(&mut self, ready: &[bool], peers: &mut [Option<Peer>], place: Place) {
        let now = Instant::now();
        for (mut opening, &is_ready) in std::mem::take(&mut self.opening).into_iter().zip(ready) {
            let address = opening.address;
            let heard = match is_ready {
                true => opening.go_on(&self.token),
                false => Ok(None),
            };
            let taken = match heard {
                Ok(None) if opening.until > now => {
                    self.opening.push(opening);
                    continue;
                }
                Ok(None) => Err(Error::new(ErrorKind::TimedOut, "it did not say who it is")),
                Ok(Some(rank)) if rank <= place.rank || rank >= place.world_size => {
                    Err(Error::other(format!("rank {rank} has no business here")))
                }
                Ok(Some(rank)) if peers[rank].is_some() => {
                    Err(Error::other(format!("rank {rank} is here already")))
                }
                Ok(Some(rank)) => opening.welcome().map(|peer| peers[rank] = Some(peer)),
                Err(error) => Err(error),
            };
            if let Err(why) = taken {
                self.refusals.add(address, &why);
            }
        }
    }

    /// Takes one more connection, if there is one.
    fn accept(&mut self) {
        // It may have gone already.
        let Ok((stream, address)) = self.listener.accept() else {
            return;
        };
        if self.opening.len() >= MOST_OPENING {
            let oldest = self.opening.remove(0);
            let why = Error::other("others took the place of one that had not said who it is");
            self.refusals.add(oldest.address, &why);
        }
        match Peer::new(stream, self.secure, Side::Accepts) {
            Ok(peer) => self.open(peer, address),
            Err(why) => self.refusals.add(address, &why),
        }
    }

    /// Hears from now on who connected from `address`.
    pub(super) fn open(&mut self, peer: Peer, address: SocketAddr) {
        self.opening.push(Opening {
            peer,
            address,
            greeting: [0; GREETING],
            received: 0,
            until: Instant::now() + GREETING_TIME,
        });
    }

    /// Whether somebody has not said yet who it is.
    #[cfg(any(test, feature = "testing"))]
    pub(super) fn is_opening(&self) -> bool {
        !self.opening.is_empty()
    }
}
