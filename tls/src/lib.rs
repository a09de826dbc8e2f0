//! TLS of every link, over rustls: clients to coordinator, coordinator to ranks, both to etcd.
//!
//! ```text
//! PEM files ─▶ Reloading: looked at again once a second, when somebody connects
//!                 │
//!                 ▼  rustls configuration
//! listener ─▶ Incoming: places, time for the first byte and the handshake, plain text answered
//!                 └─▶ ServerStream + Peer (who it is): closed when it stalls or idles
//!                         ▲ Counted: which requests are under way
//! Connector: TCP, handshake, and what went wrong in words ─▶ ClientStream
//! ```
//! Connections between two ranks carry no requests: [`SessionTls`] makes a [`Session`] for each,
//! and the thread that owns the socket moves its bytes.
//!
//! The links inside a cluster are mutual and private: both ends show a certificate of the cluster's
//! own CA, whose DNS name says the [`Role`] and not the host, because ranks have addresses that
//! nobody knows beforehand.
#![forbid(unsafe_code)]

mod client;
mod counted;
mod error;
mod farewell;
mod files;
mod limits;
mod network;
mod pace;
mod peer;
mod places;
mod refused;
mod reload;
mod requests;
mod server;
mod session;
mod stream;

pub use self::client::{ClientStream, ClientTls, Connector};
pub use self::counted::{CountRequests, Counted, CountedBody};
pub use self::error::{TlsError, explain};
pub use self::files::{ClientFiles, ClusterFiles, IdentityFiles, ServerFiles};
pub use self::limits::Limits;
pub use self::network::Network;
pub use self::peer::{Peer, only};
pub use self::refused::{Refusal, Refused};
pub use self::reload::Reloading;
pub use self::requests::{Requests, UnderWay};
pub use self::server::{Incoming, ServerTls};
pub use self::session::{Session, SessionTls};
pub use self::stream::ServerStream;

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
