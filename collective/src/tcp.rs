//! Ranks that are processes on CPUs: TCP between every two of them.
//!
//! The caller's thread itself writes to all sockets and then sleeps until one of them has
//! something: a sum costs a write and a wake-up for each other rank, and no thread stands between.
//!
//! Each message is a header (number of the round, length; 8 bytes each, little-endian) and its
//! bytes, so that ranks that do not make the same calls are found out. A rank that connects shows a
//! token of whom it connects to, found in the store. All of it goes over a [`Link`], in the clear
//! or secured. A link may hold bytes of the next round, and bytes that the socket did not take: a
//! round begins with the first and ends after the second.

mod meeting;
#[cfg(any(test, feature = "testing"))]
pub mod scripted;
mod wait;

use std::io::ErrorKind;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags};

use self::meeting::{Card, Peer, Reception, call, new_token};
use self::wait::{go_on, wait};
use crate::communicator::CollectiveError;
use crate::link::{Clear, Link, Secure};
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
struct Transfer {
    /// Nothing goes over that of the rank itself.
    link: Box<dyn Link>,
    out: Vec<u8>,
    sent: usize,
    into: Vec<u8>,
    received: usize,
}

/// Signs that the other end is closed.
const HUNG_UP: PollFlags = PollFlags::RDHUP.union(PollFlags::HUP).union(PollFlags::ERR);
const HEADER: usize = 16;

impl TcpCollective {
    /// Joins the group of `place`, whose ranks find each other in `store` under `prefix`, which no
    /// other group has used. `host` is a name or address of this machine that the other ranks
    /// reach. `secure` makes the links: the same kind on all ranks.
    ///
    /// # Errors
    /// [`CollectiveError::Deadline`] with who is missing, [`CollectiveError::PeerGone`] with who
    /// cannot be reached or does not take this rank for one of its group,
    /// [`CollectiveError::Unsupported`] when this machine cannot be reached at `host`.
    pub fn connect(
        place: Place,
        host: &str,
        store: &dyn Store,
        prefix: &str,
        secure: &dyn Secure,
        deadline: Instant,
    ) -> Result<Self, CollectiveError> {
        let here = |error: std::io::Error| CollectiveError::Unsupported {
            name: "tcp",
            why: format!("other ranks cannot reach this one at {host}: {error}"),
        };
        let listener = TcpListener::bind((host, 0)).map_err(here)?;
        let (port, token) = (listener.local_addr().map_err(here)?.port(), new_token());
        let key = |rank: usize| format!("{prefix}/tcp/{rank}");
        let card = Card { token, host, port };
        store.set(&key(place.rank), &card.to_bytes())?;
        let mut met: Vec<Option<Peer>> = (0..place.world_size).map(|_| None).collect();
        // Each connects to those before it and waits for those after it.
        for (rank, peer) in met.iter_mut().enumerate().take(place.rank) {
            let card = store.get(&key(rank), deadline)?;
            let called = call(&card, place.rank, secure, deadline);
            *peer = Some(called.map_err(|error| unanswered(rank, &error))?);
        }
        Reception::new(&listener, token, secure).receive(&mut met, place, deadline)?;
        let mut peers = Vec::with_capacity(met.len());
        let mut transfers = Vec::with_capacity(met.len());
        for peer in met {
            let (stream, link) = peer.map(|Peer { stream, link }| (stream, link)).unzip();
            peers.push(stream);
            transfers.push(Transfer::over(link.unwrap_or_else(|| Box::new(Clear))));
        }
        let transfers = Mutex::new(transfers);
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

fn gone(rank: usize, error: &std::io::Error) -> CollectiveError {
    CollectiveError::PeerGone(format!("rank {rank}: {error}"))
}

/// What went wrong while a rank was called.
fn unanswered(rank: usize, error: &std::io::Error) -> CollectiveError {
    match error.kind() {
        ErrorKind::TimedOut => CollectiveError::Deadline {
            operation: "rendezvous",
            missing: format!("rank {rank}"),
        },
        _ => gone(rank, error),
    }
}

impl Transfer {
    fn over(link: Box<dyn Link>) -> Self {
        Self {
            link,
            out: Vec::new(),
            sent: 0,
            into: Vec::new(),
            received: 0,
        }
    }

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
        self.sent == self.out.len() && !self.link.has_unsent()
    }

    fn has_received(&self) -> bool {
        self.received == self.into.len()
    }

    fn is_done(&self) -> bool {
        self.has_sent() && self.has_received()
    }

    /// Writes as much as the socket takes.
    fn write(&mut self, stream: &TcpStream) -> std::io::Result<()> {
        let (link, out) = (&mut self.link, &self.out);
        go_on(&mut self.sent, out.len(), ErrorKind::WriteZero, |from| {
            link.write(stream, &out[from..])
        })?;
        self.link.flush(stream)
    }

    /// Reads as much as there is, never beyond this round.
    fn read(&mut self, stream: &TcpStream) -> std::io::Result<()> {
        let (link, into) = (&mut self.link, &mut self.into);
        go_on(
            &mut self.received,
            into.len(),
            ErrorKind::UnexpectedEof,
            |from| link.read(stream, &mut into[from..]),
        )
    }

    /// Reads as [`Self::read`] does, and finds out whether `rank` does the same as this one: what
    /// has come says more than that no more will.
    fn hear(&mut self, stream: &TcpStream, rank: usize, slot: u64) -> Result<(), CollectiveError> {
        let read = self.read(stream);
        self.check(rank, slot)?;
        read.map_err(|error| gone(rank, &error))
    }

    /// Finds out whether `rank` does the same as this one.
    fn check(&self, rank: usize, slot: u64) -> Result<(), CollectiveError> {
        match self.mismatch(slot) {
            Some(what) => Err(CollectiveError::Mismatch(format!("rank {rank}: {what}"))),
            None => Ok(()),
        }
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
            let transfer = &mut transfers[rank];
            transfer.write(stream).map_err(|error| gone(rank, &error))?;
            // The socket would not tell of it.
            if transfer.link.has_unread() {
                transfer.hear(stream, rank, round.slot)?;
            }
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
                transfer.write(stream).map_err(|error| gone(rank, &error))?;
                transfer.hear(stream, rank, round.slot)?;
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
