//! A rank that hears what a test says, in place of a socket: how whoever connects is met, and the
//! rounds that follow, over any cut of any bytes.

use std::collections::VecDeque;
use std::io::{Error, ErrorKind, Result};
use std::net::{TcpListener, TcpStream};
use std::sync::OnceLock;

use super::meeting::{Card, Peer, Reception};
use super::{HEADER, Transfer};
use crate::communicator::CollectiveError;
use crate::link::{Link, Secure, Side};
use crate::place::Place;

/// Bytes of the token that a rank shows to whom it calls.
pub const TOKEN_BYTES: usize = super::meeting::TOKEN;

/// What a connection said, as this rank understood it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Heard {
    /// The rank that it was taken for.
    pub rank: Option<usize>,
    /// What it sent in each of its rounds that are complete.
    pub rounds: Vec<Vec<u8>>,
    /// Whether a round was given up because it was not the one that this rank is in.
    pub mismatch: bool,
}

/// What this rank expects of who connects.
#[derive(Clone, Copy, Debug)]
pub struct Expected<'a> {
    /// This rank, and the number of ranks.
    pub place: Place,
    /// The token that this rank left in the store.
    pub token: [u8; TOKEN_BYTES],
    /// Bytes that come in each round, headers not counted.
    pub rounds: &'a [usize],
}

/// Hears one connection to its end: `pieces` come one by one, and then nothing more.
///
/// # Errors
/// When this machine has no loopback.
pub fn hear(expected: &Expected<'_>, pieces: &[&[u8]]) -> Result<Heard> {
    let Sockets { listener, stream } = sockets()?;
    let script = Script {
        pieces: pieces.iter().map(|piece| piece.to_vec()).collect(),
    };
    let peer = Peer {
        stream: stream.try_clone()?,
        link: Box::new(script),
    };
    let mut peers: Vec<Option<Peer>> = (0..expected.place.world_size).map(|_| None).collect();
    let mut reception = Reception::new(listener, expected.token, &Nobody);
    reception.open(peer, stream.local_addr()?);
    while reception.is_opening() {
        reception.hear(&[true], &mut peers, expected.place);
    }
    let mut heard = Heard::default();
    let taken = peers.into_iter().enumerate();
    let Some((rank, peer)) = taken.filter_map(|(rank, peer)| Some((rank, peer?))).next() else {
        return Ok(heard);
    };
    heard.rank = Some(rank);
    let mut transfer = Transfer::over(peer.link);
    for (slot, &len) in expected.rounds.iter().enumerate() {
        transfer.begin(slot as u64, &[], len);
        while !transfer.has_received() {
            match transfer.hear(stream, rank, slot as u64) {
                Ok(()) => {}
                Err(CollectiveError::Mismatch(_)) => {
                    heard.mismatch = true;
                    return Ok(heard);
                }
                Err(_) => return Ok(heard),
            }
        }
        heard.rounds.push(transfer.into[HEADER..].to_vec());
    }
    Ok(heard)
}

/// Reads the card that a rank leaves in the store for those that call it: its host and its port.
///
/// # Errors
/// When it is none.
pub fn address(card: &[u8]) -> Result<(String, u16)> {
    Card::parse(card).map(|card| (card.host.to_owned(), card.port))
}

/// Sockets that nothing is read from or written to: a rank polls one, and a script speaks.
struct Sockets {
    listener: TcpListener,
    stream: TcpStream,
}

fn sockets() -> Result<&'static Sockets> {
    static SOCKETS: OnceLock<Option<Sockets>> = OnceLock::new();
    let open = || {
        let listener = TcpListener::bind(("127.0.0.1", 0)).ok()?;
        let stream = TcpStream::connect(listener.local_addr().ok()?).ok()?;
        Some(Sockets { listener, stream })
    };
    SOCKETS
        .get_or_init(open)
        .as_ref()
        .ok_or_else(|| Error::other("there is no loopback"))
}

/// Nobody else connects.
struct Nobody;

impl Secure for Nobody {
    fn link(&self, _: Side) -> Result<Box<dyn Link>> {
        Err(ErrorKind::Unsupported.into())
    }
}

/// Says its pieces one at a time, and then ends the connection.
struct Script {
    pieces: VecDeque<Vec<u8>>,
}

impl Link for Script {
    fn write(&mut self, _: &TcpStream, bytes: &[u8]) -> Result<usize> {
        Ok(bytes.len())
    }

    fn read(&mut self, _: &TcpStream, into: &mut [u8]) -> Result<usize> {
        let Some(mut piece) = self.pieces.pop_front() else {
            return Ok(0);
        };
        if piece.is_empty() {
            return Err(ErrorKind::WouldBlock.into());
        }
        let count = piece.len().min(into.len());
        into[..count].copy_from_slice(&piece[..count]);
        if count < piece.len() {
            self.pieces.push_front(piece.split_off(count));
        }
        Ok(count)
    }

    fn flush(&mut self, _: &TcpStream) -> Result<()> {
        Ok(())
    }

    fn has_unsent(&self) -> bool {
        false
    }

    fn has_unread(&self) -> bool {
        !self.pieces.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TOKEN: [u8; TOKEN_BYTES] = [7; TOKEN_BYTES];
    const PLACE: Place = Place {
        rank: 1,
        world_size: 4,
    };

    /// Reads the same bytes whole, by indexes.
    fn plainly(expected: &Expected<'_>, bytes: &[u8]) -> Heard {
        let mut heard = Heard::default();
        let Some((greeting, mut rest)) = bytes.split_at_checked(TOKEN_BYTES + 4) else {
            return heard;
        };
        let rank = u32::from_le_bytes(greeting[TOKEN_BYTES..].try_into().unwrap()) as usize;
        if greeting[..TOKEN_BYTES] != expected.token || !(2..4).contains(&rank) {
            return heard;
        }
        heard.rank = Some(rank);
        for (slot, &len) in expected.rounds.iter().enumerate() {
            let Some(header) = rest.get(..HEADER) else {
                break;
            };
            let number = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().unwrap());
            if (number(0), number(8)) != (slot as u64, len as u64) {
                heard.mismatch = true;
                break;
            }
            let Some(payload) = rest.get(HEADER..HEADER + len) else {
                break;
            };
            heard.rounds.push(payload.to_vec());
            rest = &rest[HEADER + len..];
        }
        heard
    }

    /// A greeting and two rounds of 5 and 0 bytes, one byte of which may be another.
    fn session(change: Option<(usize, u8)>) -> Vec<u8> {
        let mut bytes = [&TOKEN[..], &3u32.to_le_bytes()].concat();
        for (slot, payload) in [(0u64, &b"hello"[..]), (1, b"")] {
            bytes.extend(slot.to_le_bytes());
            bytes.extend((payload.len() as u64).to_le_bytes());
            bytes.extend(payload);
        }
        if let Some((at, byte)) = change {
            let at = at % bytes.len();
            bytes[at] = byte;
        }
        bytes
    }

    proptest! {
        #[test]
        fn a_connection_is_understood_however_it_is_cut(
            change in proptest::option::of((any::<usize>(), any::<u8>())),
            kept in 0..80usize,
            cuts in prop::collection::vec(0..9usize, 0..40),
        ) {
            let mut bytes = session(change);
            bytes.truncate(kept);
            let (mut pieces, mut rest) = (Vec::new(), &bytes[..]);
            for cut in cuts {
                let (piece, after) = rest.split_at(cut.min(rest.len()));
                pieces.push(piece);
                rest = after;
            }
            pieces.push(rest);
            let expected = Expected { place: PLACE, token: TOKEN, rounds: &[5, 0] };
            let heard = hear(&expected, &pieces).unwrap();
            prop_assert_eq!(heard, plainly(&expected, &bytes));
        }
    }

    /// The end of the connection hid what the other rank does.
    #[test]
    fn a_message_of_another_round_is_told_though_the_connection_ends_in_it() {
        let expected = Expected {
            place: PLACE,
            token: TOKEN,
            rounds: &[6],
        };
        let cut = &session(None)[..TOKEN_BYTES + 4 + HEADER + 2];
        let heard = hear(&expected, &[cut]).unwrap();
        assert!(heard.mismatch, "{heard:?}");
    }

    #[test]
    fn a_whole_session_is_heard() {
        let expected = Expected {
            place: PLACE,
            token: TOKEN,
            rounds: &[5, 0],
        };
        let heard = hear(&expected, &[&session(None)]).unwrap();
        let rounds = vec![b"hello".to_vec(), Vec::new()];
        assert_eq!(
            heard,
            Heard {
                rank: Some(3),
                rounds,
                mismatch: false
            }
        );
    }
}
