//! Why a snapshot cannot be used.

/// A snapshot that cannot be restored, or bytes that are none. Whoever meets one reads the tokens
/// again: a snapshot is never needed for an answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// A snapshot is restored into an empty sequence.
    #[error("a snapshot is restored into an empty sequence; this one has read {seen} tokens")]
    NotEmpty {
        /// Tokens that the sequence has read.
        seen: u64,
    },
    /// The snapshot is of something else than what is asked for.
    #[error("the snapshot is of another {what}: {found}; expected {expected}")]
    Foreign {
        /// What differs.
        what: &'static str,
        /// What the snapshot is of.
        found: String,
        /// What is asked for.
        expected: String,
    },
}

/// Checks that a snapshot is of what is asked for.
pub(super) fn same<T: PartialEq>(
    what: &'static str,
    found: &T,
    expected: &T,
    show: impl Fn(&T) -> String,
) -> Result<(), SnapshotError> {
    if found == expected {
        return Ok(());
    }
    Err(SnapshotError::Foreign {
        what,
        found: show(found),
        expected: show(expected),
    })
}
