//! What clients may take of a port.

use std::time::Duration;

/// What clients may take of a port, however little they say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Connections at once. One more takes the place of the oldest that has sent nothing; where all
    /// have, it is refused at once.
    pub connections: usize,
    /// Connections of one address at once, with the same rule. An address of IPv6 stands for its
    /// network of 64 bits. Proxies and this machine are one address each.
    pub connections_per_address: usize,
    /// Time for the first byte of a connection, and behind TLS for the first one after the
    /// handshake.
    pub first_byte_time: Duration,
    /// Time for a handshake, from its first byte.
    pub handshake_time: Duration,
    /// Time for the head of a request, from its first byte. HTTP/1 alone, where the server counts
    /// requests.
    pub head_time: Duration,
    /// Time that a connection may be open without a request under way, where the server counts
    /// them. A request whose peer takes none of its answer is not under way.
    pub idle_time: Duration,
    /// Time that a peer may take no byte while there are some for it.
    pub stall_time: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 4096,
            connections_per_address: 1024,
            first_byte_time: Duration::from_secs(5),
            handshake_time: Duration::from_secs(10),
            head_time: Duration::from_secs(10),
            idle_time: Duration::from_secs(75),
            stall_time: Duration::from_secs(30),
        }
    }
}
