//! Who is in the worker group, and keeping it together.
//!
//! ```text
//! members (addresses) ─▶ form: GetRank ▸ agree? ▸ Join an epoch ▸ streams ─▶ driver
//!        ▲                                                                     │
//!        └── keep: a rank is gone, hangs, or fails a step ◀─ beats · executor ─┘
//! ```
//! Members are looked up only when a group forms. Whether a rank lives is told by its beats, not by
//! the registry: a registry that is away harms no running group, and what it told last is enough to
//! form another.

mod form;
mod keep;
mod lead;
mod leadership;
mod registry;
mod succession;

use async_trait::async_trait;
use palimpsest_registry::GroupRecord;

pub use self::form::{FormError, Formed, Watchers, form};
pub use self::keep::{Kept, keep};
pub use self::lead::Lead;
pub use self::leadership::{Candidacy, Candidate, Deposed, LeadError, Leader};
pub use self::registry::RegistryMembers;
pub use self::succession::Implausible;

/// Looks up the ranks of a group.
#[async_trait]
pub trait Members: Send + Sync + 'static {
    /// Addresses (`host:port`) of all ranks, in rank order. `None` for a rank that nobody has
    /// claimed.
    ///
    /// # Errors
    /// When the registry cannot be asked.
    async fn addresses(&self) -> Result<Vec<Option<String>>, MembersError>;

    /// The last epoch of the group that anyone announced, as far as that is known; 0 otherwise.
    /// Waits for nobody.
    fn last_epoch(&self) -> u64;

    /// Is told that the group has formed. Waits for nobody.
    fn formed(&self, group: GroupRecord);
}

/// Why members cannot be looked up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MembersError {
    /// The registry does not answer.
    #[error("the registry does not answer: {0}")]
    Unreachable(String),
    /// The registry answers, and what it holds or says is of no use.
    #[error("the registry cannot be used: {0}")]
    Refused(String),
}

/// Ranks whose addresses are given once and for all.
#[derive(Debug, Clone)]
pub struct StaticMembers(Vec<String>);

impl StaticMembers {
    /// Ranks at `addresses` (`host:port`), in rank order.
    pub fn new(addresses: Vec<String>) -> Self {
        Self(addresses)
    }
}

#[async_trait]
impl Members for StaticMembers {
    async fn addresses(&self) -> Result<Vec<Option<String>>, MembersError> {
        Ok(self.0.iter().cloned().map(Some).collect())
    }

    /// Only the ranks know.
    fn last_epoch(&self) -> u64 {
        0
    }

    /// There is nobody else to tell.
    fn formed(&self, _: GroupRecord) {}
}

#[cfg(test)]
mod tests;
