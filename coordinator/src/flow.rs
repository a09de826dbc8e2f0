//! On whose behalf a request is served: what is shared fairly, is shared between flows.

use std::fmt;
use std::sync::Arc;

use palimpsest_tls::Network;

/// Whose requests count as one client's. Who has more of them is not served more.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Flow {
    /// This process, and whoever reaches it by another way than a network.
    #[default]
    Local,
    /// Where no keys are: a client's address. All clients behind one proxy are one flow.
    Network(Network),
    /// Who has the key that was shown.
    Tenant(Arc<str>),
}

/// A flow in logs says of which kind it is, and of whom only where that is no secret.
impl fmt::Debug for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local => f.write_str("Local"),
            Self::Network(_) => f.write_str("Network"),
            Self::Tenant(name) => write!(f, "Tenant({name:?})"),
        }
    }
}
