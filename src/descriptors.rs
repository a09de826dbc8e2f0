//! Descriptors of this process: one for each connection.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Files, sockets to ranks and to etcd, and what else is no client's.
const OWN: u64 = 512;

/// Lets the process open `connections` at once, as far as the system lets it: many begin with 1,024
/// descriptors, and programs have to ask for the rest.
pub fn allow(connections: usize) {
    let needed = (connections as u64).saturating_add(OWN);
    let limit = getrlimit(Resource::Nofile);
    let Some(current) = limit.current.filter(|current| *current < needed) else {
        return;
    };
    let wanted = limit.maximum.map_or(needed, |most| most.min(needed));
    let raised = Rlimit {
        current: Some(wanted.max(current)),
        ..limit
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, current, "the limit of descriptors cannot be raised");
    } else if wanted < needed {
        tracing::warn!(
            wanted,
            needed,
            "the system allows fewer descriptors than connections: raise its limit (ulimit -n), \
             or lower --max-connections"
        );
    }
}
