//! How ranks that are processes meet, and what they exchange tensors over.

use std::sync::Arc;
use std::time::Instant;

use palimpsest_collective::link::{Clear, Secure};
use palimpsest_collective::nccl::NcclCollective;
use palimpsest_collective::nccl::library::Library;
use palimpsest_collective::tcp::TcpCollective;
use palimpsest_collective::{Collective, CollectiveError, Place, Store};
use palimpsest_tls::SessionTls;

use super::secured::Secured;

/// What ranks that are processes exchange tensors over; the same on all ranks of a group.
#[derive(Clone)]
pub enum Transport {
    /// TCP between hosts, for CPUs; encrypted where there are certificates.
    Tcp(Option<SessionTls>),
    /// Gloo over TCP, for CPUs, always in the clear. Needs the feature `gloo`.
    Gloo,
    /// NCCL between GPUs, always in the clear.
    Nccl(Arc<Library>),
}

impl std::fmt::Debug for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Tcp(None) => "tcp",
            Self::Tcp(Some(_)) => "tcp over tls",
            Self::Gloo => "gloo",
            Self::Nccl(_) => "nccl",
        })
    }
}

/// Where and until when the ranks of an epoch meet.
pub(super) struct Meeting {
    pub place: Place,
    /// Host name or address at which the other ranks reach this one.
    pub host: String,
    /// Where they find each other.
    pub store: Arc<dyn Store>,
    /// What this epoch's keys in the store begin with.
    pub prefix: String,
    pub deadline: Instant,
}

impl Transport {
    /// Meets the other ranks. Blocks until they are there or the deadline passes.
    pub(super) fn connect(self, meeting: Meeting) -> Result<Arc<dyn Collective>, CollectiveError> {
        let Meeting {
            place,
            host,
            store,
            prefix,
            deadline,
        } = meeting;
        match self {
            Self::Tcp(tls) => {
                let secured = tls.map(Secured);
                let secure: &dyn Secure = match &secured {
                    Some(secured) => secured,
                    None => &Clear,
                };
                let tcp = TcpCollective::connect(place, &host, &*store, &prefix, secure, deadline)?;
                Ok(Arc::new(tcp))
            }
            Self::Gloo => connect_gloo(place, &host, store, &prefix, deadline),
            Self::Nccl(library) => {
                let nccl = NcclCollective::connect(library, place, &*store, &prefix, deadline)?;
                Ok(Arc::new(nccl))
            }
        }
    }
}

#[cfg(feature = "gloo")]
fn connect_gloo(
    place: Place,
    host: &str,
    store: Arc<dyn Store>,
    prefix: &str,
    deadline: Instant,
) -> Result<Arc<dyn Collective>, CollectiveError> {
    let gloo =
        palimpsest_collective::gloo::GlooCollective::connect(place, host, store, prefix, deadline)?;
    Ok(Arc::new(gloo))
}

#[cfg(not(feature = "gloo"))]
fn connect_gloo(
    _: Place,
    _: &str,
    _: Arc<dyn Store>,
    _: &str,
    _: Instant,
) -> Result<Arc<dyn Collective>, CollectiveError> {
    let why = "this build has no gloo: build with --features gloo, or use tcp".into();
    Err(CollectiveError::Unsupported { name: "gloo", why })
}
