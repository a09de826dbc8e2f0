//! Who else can reach a store.

use std::path::PathBuf;

/// Who else can reach a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// This process alone: its memory.
    Private,
    /// Processes of this machine, at this directory.
    Directory(PathBuf),
    /// Any machine.
    Shared,
}
