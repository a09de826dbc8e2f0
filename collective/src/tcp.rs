//! Ranks that are processes on CPUs: TCP between every two of them.
//!
//! The caller's thread itself writes to all sockets and then sleeps until one of them has
//! something: a sum costs a write and a wake-up for each other rank, and no thread stands between.
//!
//! Each message is a header (number of the round, length; 8 bytes each, little-endian) and its
//! bytes, so that ranks that do not make the same calls are found out. A rank that connects shows a
//! token of whom it connects to, found in the store.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream, ToSocketAddrs};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::communicator::CollectiveError;
use crate::mesh::{Incoming, Mesh, MeshCollective, Round};
use crate::place::Place;
use crate::store::Store;

/// A rank's end of a group of processes.
pub type TcpCollective = MeshCollective<TcpMesh>;

/// Connections with the other ranks.
pub struct TcpMesh {
    /// By rank; `None` for the rank itself.
    peers: Vec<Option<TcpStream>>,
    aborted: AtomicBool,
    transfers: Mutex<Vec<Transfer>>,
}

/// What goes to a rank in a round, and what comes from it, headers included.
#[derive(Default)]
struct Transfer {
    out: Vec<u8>,
    sent: usize,
    into: Vec<u8>,
    received: usize,
}

/// Signs that the other end is closed.
const HUNG_UP: PollFlags = PollFlags::RDHUP.union(PollFlags::HUP).union(PollFlags::ERR);
const HEADER: usize = 16;
const TOKEN: usize = 16;
/// Longest wait for the first bytes of whoever connects: it may be a stranger.
const GREETING: Duration = Duration::from_secs(1);

impl TcpCollective {
    /// Joins the group of `place`, whose ranks find each other in `store` under `prefix`, which no
    /// other group has used. `host` is a name or address of this machine that the other ranks
    /// reach.
    ///
    /// # Errors
    /// [`CollectiveError::Deadline`] with who is missing, [`CollectiveError::PeerGone`] with who
    /// cannot be reached, [`CollectiveError::Unsupported`] when this machine cannot be reached at
    /// `host`.
    pub fn connect(
        place: Place,
        host: &str,
        store: &dyn Store,
        prefix: &str,
        deadline: Instant,
    ) -> Result<Self, CollectiveError> {
        let here = |error: std::io::Error| CollectiveError::Unsupported {
            name: "tcp",
            why: format!("other ranks cannot reach this one at {host}: {error}"),
        };
        let listener = TcpListener::bind((host, 0)).map_err(here)?;
        let (port, token) = (listener.local_addr().map_err(here)?.port(), new_token());
        let key = |rank: usize| format!("{prefix}/tcp/{rank}");
        let mut card = token.to_vec();
        card.extend_from_slice(&port.to_le_bytes());
        card.extend_from_slice(host.as_bytes());
        store.set(&key(place.rank), &card)?;
        let mut peers: Vec<Option<TcpStream>> = (0..place.world_size).map(|_| None).collect();
        // Each connects to those before it and waits for those after it.
        for (rank, peer) in peers.iter_mut().enumerate().take(place.rank) {
            let card = store.get(&key(rank), deadline)?;
            *peer = Some(call(&card, place.rank, deadline).map_err(|error| gone(rank, &error))?);
        }
        accept(&listener, &token, &mut peers, place, deadline)?;
        for (rank, peer) in peers.iter().enumerate() {
            let ready = peer.as_ref().map_or(Ok(()), |peer| {
                peer.set_nodelay(true).and(peer.set_nonblocking(true))
            });
            ready.map_err(|error| gone(rank, &error))?;
        }
        let transfers = Mutex::new((0..place.world_size).map(|_| Transfer::default()).collect());
        Ok(Self::new(
            place,
            TcpMesh {
                peers,
                aborted: AtomicBool::new(false),
                transfers,
            },
        ))
    }
}

/// Not to be guessed by who does not see the store. The standard library's hashers have random
/// keys.
fn new_token() -> [u8; TOKEN] {
    let draw = || RandomState::new().build_hasher().finish().to_le_bytes();
    let mut token = [0; TOKEN];
    token[..8].copy_from_slice(&draw());
    token[8..].copy_from_slice(&draw());
    token
}

fn gone(rank: usize, error: &std::io::Error) -> CollectiveError {
    CollectiveError::PeerGone(format!("rank {rank}: {error}"))
}

/// Time until `deadline`, never none.
fn left(deadline: Instant) -> Duration {
    deadline
        .saturating_duration_since(Instant::now())
        .max(Duration::from_millis(1))
}

/// Connects to the rank whose card this is.
fn call(card: &[u8], rank: usize, deadline: Instant) -> std::io::Result<TcpStream> {
    let bad = || {
        std::io::Error::new(
            ErrorKind::InvalidData,
            "what it left in the rendezvous is no address",
        )
    };
    let (token, rest) = card.split_at_checked(TOKEN).ok_or_else(bad)?;
    let (port, host) = rest.split_first_chunk::<2>().ok_or_else(bad)?;
    let host = std::str::from_utf8(host).map_err(|_| bad())?;
    let mut last = bad();
    for address in (host, u16::from_le_bytes(*port)).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, left(deadline)) {
            Ok(mut stream) => {
                stream.set_write_timeout(Some(left(deadline)))?;
                stream.write_all(token)?;
                stream.write_all(&(rank as u32).to_le_bytes())?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Waits for the ranks after this one; whoever does not show the token is none of them.
fn accept(
    listener: &TcpListener,
    token: &[u8; TOKEN],
    peers: &mut [Option<TcpStream>],
    place: Place,
    deadline: Instant,
) -> Result<(), CollectiveError> {
    let broken =
        |error: std::io::Error| CollectiveError::PeerGone(format!("listening failed: {error}"));
    listener.set_nonblocking(true).map_err(broken)?;
    loop {
        let absent = (place.rank + 1..place.world_size).filter(|&rank| peers[rank].is_none());
        let missing = absent
            .map(|rank| format!("rank {rank}"))
            .collect::<Vec<_>>()
            .join(", ");
        if missing.is_empty() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(CollectiveError::Deadline {
                operation: "rendezvous",
                missing,
            });
        }
        wait(&mut [PollFd::new(listener, PollFlags::IN)], deadline).map_err(broken)?;
        // It may have gone already.
        let Ok((stream, _)) = listener.accept() else {
            continue;
        };
        if let Some(rank) = greeted(&stream, token, deadline)
            .filter(|&rank| place.rank < rank && rank < peers.len())
        {
            peers[rank].get_or_insert(stream);
        }
    }
}

/// The rank that whoever connected says it is.
fn greeted(mut stream: &TcpStream, token: &[u8; TOKEN], deadline: Instant) -> Option<usize> {
    let mut greeting = [0; TOKEN + 4];
    stream.set_nonblocking(false).ok()?;
    stream
        .set_read_timeout(Some(GREETING.min(left(deadline))))
        .ok()?;
    stream.read_exact(&mut greeting).ok()?;
    let (shown, rank) = greeting.split_first_chunk::<TOKEN>()?;
    (shown == token).then(|| u32::from_le_bytes(rank.try_into().unwrap_or_default()) as usize)
}

/// Sleeps until one of them is ready or `deadline` has passed.
fn wait(fds: &mut [PollFd<'_>], deadline: Instant) -> std::io::Result<()> {
    let limit = Timespec::try_from(left(deadline)).map_err(|_| ErrorKind::InvalidInput)?;
    match poll(fds, Some(&limit)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

impl Transfer {
    fn begin(&mut self, slot: u64, bytes: &[u8], expected: usize) {
        self.out.clear();
        self.out.extend_from_slice(&slot.to_le_bytes());
        self.out
            .extend_from_slice(&(bytes.len() as u64).to_le_bytes());
        self.out.extend_from_slice(bytes);
        self.into.resize(HEADER + expected, 0);
        (self.sent, self.received) = (0, 0);
    }

    fn has_sent(&self) -> bool {
        self.sent == self.out.len()
    }

    fn has_received(&self) -> bool {
        self.received == self.into.len()
    }

    fn is_done(&self) -> bool {
        self.has_sent() && self.has_received()
    }

    /// Writes as much as the socket takes.
    fn write(&mut self, mut stream: &TcpStream) -> std::io::Result<()> {
        let out = &self.out;
        go_on(&mut self.sent, out.len(), ErrorKind::WriteZero, |from| {
            stream.write(&out[from..])
        })
    }

    /// Reads as much as there is, never beyond this round.
    fn read(&mut self, mut stream: &TcpStream) -> std::io::Result<()> {
        let into = &mut self.into;
        go_on(
            &mut self.received,
            into.len(),
            ErrorKind::UnexpectedEof,
            |from| stream.read(&mut into[from..]),
        )
    }

    /// What the other rank does, when it is something else than this one.
    fn mismatch(&self, slot: u64) -> Option<String> {
        if self.received < HEADER {
            return None;
        }
        let number = |at: usize| {
            self.into[at..at + 8]
                .iter()
                .rev()
                .fold(0, |n, &byte| n << 8 | u64::from(byte))
        };
        let (found, expected) = (
            (number(0), number(8)),
            (slot, (self.into.len() - HEADER) as u64),
        );
        let (round, bytes) = found;
        (found != expected).then(|| {
            format!(
                "it sends {bytes} bytes in round {round}, expected {} in round {}",
                expected.1, expected.0
            )
        })
    }
}

/// Goes on from byte `done` to byte `end` as far as a socket that does not block lets it. `step`
/// moves bytes from one on and says how many; none at all means `over`.
fn go_on(
    done: &mut usize,
    end: usize,
    over: ErrorKind,
    mut step: impl FnMut(usize) -> std::io::Result<usize>,
) -> std::io::Result<()> {
    while *done < end {
        match step(*done) {
            Ok(0) => return Err(over.into()),
            Ok(count) => *done += count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

impl TcpMesh {
    /// The other ranks that are connected.
    fn others(&self) -> impl Iterator<Item = (usize, &TcpStream)> {
        self.peers
            .iter()
            .enumerate()
            .filter_map(|(rank, peer)| Some((rank, peer.as_ref()?)))
    }

    fn run(&self, transfers: &mut [Transfer], round: &Round<'_>) -> Result<(), CollectiveError> {
        for (rank, stream) in self.others() {
            transfers[rank]
                .write(stream)
                .map_err(|error| gone(rank, &error))?;
        }
        loop {
            let mut waiting = Vec::with_capacity(transfers.len());
            let mut fds = Vec::with_capacity(transfers.len());
            for (rank, stream) in self.others() {
                let mut flags = PollFlags::empty();
                flags.set(PollFlags::RDHUP, !transfers[rank].is_done());
                flags.set(PollFlags::OUT, !transfers[rank].has_sent());
                flags.set(PollFlags::IN, !transfers[rank].has_received());
                if !flags.is_empty() {
                    waiting.push((rank, stream));
                    fds.push(PollFd::new(stream, flags));
                }
            }
            if fds.is_empty() {
                return Ok(());
            }
            if Instant::now() >= round.deadline {
                let missing = waiting
                    .iter()
                    .map(|(rank, _)| format!("rank {rank}"))
                    .collect::<Vec<_>>()
                    .join(", ");
                return Err(CollectiveError::Deadline {
                    operation: round.operation,
                    missing,
                });
            }
            wait(&mut fds, round.deadline)
                .map_err(|error| CollectiveError::PeerGone(error.to_string()))?;
            for ((rank, stream), fd) in waiting
                .into_iter()
                .zip(&fds)
                .filter(|(_, fd)| !fd.revents().is_empty())
            {
                let transfer = &mut transfers[rank];
                transfer
                    .write(stream)
                    .and_then(|()| transfer.read(stream))
                    .map_err(|error| gone(rank, &error))?;
                if let Some(what) = transfer.mismatch(round.slot) {
                    return Err(CollectiveError::Mismatch(format!("rank {rank}: {what}")));
                }
                // What it sent before it gave up may be all there; its epoch is over all the same.
                if fd.revents().intersects(HUNG_UP) {
                    return Err(gone(rank, &ErrorKind::UnexpectedEof.into()));
                }
            }
        }
    }

    /// Tells the other ends, and whoever waits here.
    fn close(&self) {
        for (_, stream) in self.others() {
            // One that is closed already is what we want.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Mesh for TcpMesh {
    const NAME: &'static str = "tcp";

    fn exchange(&self, mut round: Round<'_>) -> Result<(), CollectiveError> {
        let mut transfers = self
            .transfers
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        for (rank, _) in self.others() {
            let span = round.out.spans[rank];
            let bytes = &round.out.bytes[span.start..span.start + span.len];
            transfers[rank].begin(round.slot, bytes, round.into.spans[rank].len);
        }
        if let Err(error) = self.run(&mut transfers, &round) {
            self.close();
            return Err(if self.aborted.load(Ordering::SeqCst) {
                CollectiveError::Aborted
            } else {
                error
            });
        }
        let Incoming { bytes, spans } = &mut round.into;
        for (rank, _) in self.others() {
            bytes[spans[rank].start..][..spans[rank].len]
                .copy_from_slice(&transfers[rank].into[HEADER..]);
        }
        Ok(())
    }

    fn abort(&self) {
        self.aborted.store(true, Ordering::SeqCst);
        self.close();
    }
}

#[cfg(test)]
mod tests;
