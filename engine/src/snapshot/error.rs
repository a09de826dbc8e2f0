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
    /// The bytes are no snapshot file.
    #[error("not a snapshot file: {0}")]
    NotOne(String),
    /// The file ends too early, or goes on behind its end.
    #[error("the snapshot file has {bytes} bytes, which is not what its header says: {what}")]
    Length {
        /// Bytes that there are.
        bytes: usize,
        /// What the header says.
        what: String,
    },
    /// A later version of this program wrote the file.
    #[error(
        "the snapshot file is of version {found}, this program reads up to {known}: use the one \
         that wrote it, or let the tokens be read again"
    )]
    Future {
        /// Version of the file.
        found: u64,
        /// The last one that is known.
        known: u64,
    },
    /// The file is not what was written: its checksum is another.
    #[error("the snapshot file is damaged: its checksum is {found}, its header says {expected}")]
    Checksum {
        /// What the bytes have.
        found: String,
        /// What the header says.
        expected: String,
    },
    /// The file is what was written, and holds no state that can be.
    #[error("the snapshot holds no state that can be: {0}")]
    Impossible(String),
    /// It holds more than its contract allows.
    #[error("the snapshot holds {found} {what}; its contract allows {most}")]
    TooLarge {
        /// What there is too much of.
        what: &'static str,
        /// How many there are.
        found: u64,
        /// How many there may be.
        most: u64,
    },
    /// The parts that were given do not cover a rank's heads.
    #[error(
        "no part of the snapshot has query head {query_head} of KV head {kv_head}: a rank has not \
         written its file yet, or it was removed"
    )]
    Missing {
        /// KV head of the model.
        kv_head: usize,
        /// Query head, among those of the KV head.
        query_head: usize,
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

/// Checks something that holds of every state.
pub(super) fn possible(holds: bool, what: impl FnOnce() -> String) -> Result<(), SnapshotError> {
    if holds {
        Ok(())
    } else {
        Err(SnapshotError::Impossible(what()))
    }
}
