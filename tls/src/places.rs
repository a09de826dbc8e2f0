//! How many connections a port has, and who must go for another one.
//!
//! A connection that has sent nothing costs its peer nothing, so it has no right to its place: it
//! goes when somebody else needs it. One that has sent something stays.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::sync::oneshot;

use crate::{Limits, Network};

/// The places of a port.
#[derive(Debug, Clone)]
pub(crate) struct Places(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    connections: usize,
    per_address: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    next: u64,
    /// Where each connection comes from, by the order in which they came.
    open: HashMap<u64, Network>,
    of_network: HashMap<Network, usize>,
    /// Those that have sent nothing, the oldest first. To drop an entry is to tell its connection.
    silent: BTreeMap<u64, oneshot::Sender<()>>,
}

/// Why there is no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Full {
    /// All places are taken.
    Port,
    /// All places of one address are.
    Address,
}

impl Places {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self(Arc::new(Shared {
            connections: limits.connections.max(1),
            per_address: limits.connections_per_address.max(1),
            taken: Mutex::default(),
        }))
    }

    /// A place for a connection from `address`, which may be that of a silent one.
    pub(crate) fn take(&self, address: IpAddr) -> Result<Place, Full> {
        let network = Network::from(address);
        let mut taken = self.0.lock();
        let of_network = taken.of_network.get(&network).copied().unwrap_or(0);
        if of_network >= self.0.per_address && !taken.evict(|from| from == network) {
            return Err(Full::Address);
        }
        if taken.open.len() >= self.0.connections && !taken.evict(|_| true) {
            return Err(Full::Port);
        }
        let (keep, lost) = oneshot::channel();
        let id = taken.next;
        taken.next += 1;
        taken.open.insert(id, network);
        *taken.of_network.entry(network).or_default() += 1;
        taken.silent.insert(id, keep);
        Ok(Place {
            shared: self.0.clone(),
            id,
            lost: Some(lost),
        })
    }

    /// Closes the oldest silent connection, for the sake of its descriptor. False if there is none.
    pub(crate) fn free_one(&self) -> bool {
        self.0.lock().evict(|_| true)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taken {
    fn evict(&mut self, of: impl Fn(Network) -> bool) -> bool {
        let open = &self.open;
        let oldest = self.silent.keys().copied();
        let Some(id) = oldest
            .into_iter()
            .find(|id| open.get(id).is_some_and(|&from| of(from)))
        else {
            return false;
        };
        self.leave(id);
        true
    }

    fn leave(&mut self, id: u64) {
        self.silent.remove(&id);
        let Some(network) = self.open.remove(&id) else {
            return;
        };
        if let Some(count) = self.of_network.get_mut(&network) {
            *count -= 1;
            if *count == 0 {
                self.of_network.remove(&network);
            }
        }
    }
}

/// A connection's place, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    shared: Arc<Shared>,
    id: u64,
    /// Ready when another connection has this place; `None` once it cannot be lost.
    lost: Option<oneshot::Receiver<()>>,
}

impl Place {
    /// The peer has sent something: the place is its own from now on.
    pub(crate) fn keep(&mut self) {
        if self.lost.take().is_some() {
            self.shared.lock().silent.remove(&self.id);
        }
    }

    /// Whether another connection has this place now.
    pub(crate) fn poll_lost(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(lost) = &mut self.lost else {
            return Poll::Pending;
        };
        // A sender that is gone has told as well.
        let _ = ready!(Pin::new(lost).poll(cx));
        // It must not be asked again.
        self.lost = None;
        Poll::Ready(())
    }

    /// Waits until another connection has this place.
    pub(crate) async fn lost(&mut self) {
        std::future::poll_fn(|cx| self.poll_lost(cx)).await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.shared.lock().leave(self.id);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn places(connections: usize, connections_per_address: usize) -> Places {
        Places::new(&Limits {
            connections,
            connections_per_address,
            ..Limits::default()
        })
    }

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn the_oldest_silent_connection_goes_and_one_that_spoke_stays() {
        let places = places(3, 3);
        let here = address("10.0.0.1");
        let mut spoke = places.take(here).expect("room");
        spoke.keep();
        let mut old = places.take(here).expect("room");
        let mut young = places.take(here).expect("room");
        let mut third = places.take(here).expect("the place of the oldest");
        assert!(old.lost().now_or_never().is_some());
        assert!(spoke.lost().now_or_never().is_none());
        assert!(young.lost().now_or_never().is_none());
        // What was given away is not given back a second time.
        drop(old);
        young.keep();
        third.keep();
        assert_eq!(places.take(here).err(), Some(Full::Address));
        assert!(!places.free_one());
        drop(spoke);
        assert!(places.take(here).is_ok());
    }

    #[test]
    fn an_address_takes_no_more_than_its_share() {
        let places = places(10, 2);
        let take = |from: &str| {
            let mut place = places.take(address(from))?;
            place.keep();
            Ok::<_, Full>(place)
        };
        let mut held = vec![
            take("10.0.0.1").expect("room"),
            take("10.0.0.1").expect("room"),
        ];
        assert_eq!(take("10.0.0.1").err(), Some(Full::Address));
        // The same address in the other notation, and a network of IPv6.
        assert_eq!(take("::ffff:10.0.0.1").err(), Some(Full::Address));
        held.push(take("2001:db8::1").expect("room"));
        held.push(take("2001:db8::2").expect("room"));
        assert_eq!(take("2001:db8::3").err(), Some(Full::Address));
        assert!(take("2001:db8:0:1::3").is_ok());
        assert!(take("10.0.0.2").is_ok());
        held.clear();
        assert!(places.0.lock().of_network.is_empty() && places.0.lock().open.is_empty());
    }

    #[test]
    fn a_silent_connection_of_another_address_keeps_its_place_from_an_address_that_is_full() {
        let places = places(10, 1);
        let mut other = places.take(address("10.0.0.2")).expect("room");
        let mut first = places.take(address("10.0.0.1")).expect("room");
        let _second = places.take(address("10.0.0.1")).expect("its own place");
        assert!(first.lost().now_or_never().is_some());
        assert!(other.lost().now_or_never().is_none());
    }
}
