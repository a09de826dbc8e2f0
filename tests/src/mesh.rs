//! Ranks that are threads of this process and exchange tensors over TCP.

use std::sync::Arc;
use std::time::{Duration, Instant};

use palimpsest_collective::link::Secure;
use palimpsest_collective::tcp::TcpCollective;
use palimpsest_collective::{Collective, MemoryStore, Place};
use palimpsest_tls::{Role, SessionTls};
use palimpsest_worker::server::Secured;

use crate::certificates::Authority;

/// Longer than any machine takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// Links between ranks that show certificates of `authority`.
///
/// # Panics
/// When the certificates cannot be used.
pub fn secured(authority: &Authority) -> Secured {
    let tls = SessionTls::cluster(authority.cluster(Role::Worker), Role::Worker);
    Secured(tls.expect("certificates"))
}

/// A group over TCP on loopback, in rank order.
///
/// # Panics
/// When the ranks do not meet.
pub fn tcp_group(world_size: usize, secure: &dyn Secure) -> Vec<Arc<dyn Collective>> {
    let store = MemoryStore::default();
    let deadline = Instant::now() + PATIENCE;
    let join = |rank| {
        let place = Place { rank, world_size };
        let end = TcpCollective::connect(place, "127.0.0.1", &store, "epoch-1", secure, deadline);
        Arc::new(end.expect("a group")) as Arc<dyn Collective>
    };
    std::thread::scope(|scope| {
        let join = &join;
        let ranks: Vec<_> = (0..world_size)
            .map(|rank| scope.spawn(move || join(rank)))
            .collect();
        ranks
            .into_iter()
            .map(|rank| rank.join().expect("no panic"))
            .collect()
    })
}
