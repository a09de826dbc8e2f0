//! What is on its way out of every tier, and what has ended.

use super::super::chain::Name;

/// What ranks are removing from the store.
#[derive(Debug, Default)]
pub(super) struct Erasing {
    /// Answers that are awaited. A state may be written and removed again before all have come.
    pub(super) answers: u32,
    /// Of its files on the fullest rank.
    pub(super) bytes: u64,
    /// Why a rank could not.
    pub(super) error: Option<String>,
}

/// Something that was doomed, at its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Erased {
    /// Of which snapshot.
    pub name: Name,
    /// Why it is still in the store; `None`: it is gone.
    pub error: Option<String>,
}
