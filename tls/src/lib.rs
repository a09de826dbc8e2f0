//! TLS of every link, over rustls: clients to coordinator, coordinator to ranks, both to etcd.
//!
//! ```text
//! PEM files ─▶ Reloading: looked at again once a second, when somebody connects
//!                 │
//!                 ▼  rustls configuration
//! listener ─▶ Incoming: bounded, time for the handshake, plain text answered
//!                 └─▶ ServerStream + Peer (who it is)
//! Connector: TCP, handshake, and what went wrong in words ─▶ ClientStream
//! ```
//! The links inside a cluster are mutual and private: both ends show a certificate of the cluster's
//! own CA, whose DNS name says the [`Role`] and not the host, because ranks have addresses that
//! nobody knows beforehand.
#![forbid(unsafe_code)]

mod client;
mod error;
mod files;
mod reload;
mod server;

pub use self::client::{ClientStream, ClientTls, Connector};
pub use self::error::{TlsError, explain};
pub use self::files::{ClientFiles, ClusterFiles, IdentityFiles, ServerFiles};
pub use self::server::{Incoming, Limits, Peer, ServerStream, ServerTls, only};

/// What a process is within a cluster, as its certificate says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Drives ranks.
    Coordinator,
    /// Is a rank.
    Worker,
}

impl Role {
    /// The DNS name that the certificate of this role holds.
    pub const fn dns_name(self) -> &'static str {
        match self {
            Self::Coordinator => "coordinator.palimpsest.internal",
            Self::Worker => "worker.palimpsest.internal",
        }
    }
}
