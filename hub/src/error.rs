//! Why a model could not be fetched by its name. Each message says what to do.

use std::io;
use std::path::{Path, PathBuf};

use crate::choice::Unusable;
use crate::listing::ListingError;

/// Why a model could not be fetched.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// No variable says where the cache is.
    #[error("no cache directory for models of a hub: set HF_HUB_CACHE, HF_HOME or HOME")]
    NoCache,
    /// An address that is none.
    #[error("HF_ENDPOINT is `{endpoint}`, which is no address such as https://host")]
    Endpoint {
        /// What it is.
        endpoint: String,
    },
    /// The hub does not know the repository, or does not show it.
    #[error(
        "{endpoint} has no model `{repository}` that {whom} may see{near}; check the name{token}"
    )]
    NoRepository {
        /// The hub.
        endpoint: String,
        /// What was asked for.
        repository: String,
        /// Who asked.
        whom: &'static str,
        /// Ends the sentence with what may have been meant.
        near: String,
        /// What to do about one that is hidden.
        token: &'static str,
    },
    /// The repository is there, and its owner lets people in one by one.
    #[error(
        "`{repository}` is there, and its owner wants to be asked first: accept its terms at \
         {endpoint}/{repository}, {then}"
    )]
    Gated {
        /// The hub.
        endpoint: String,
        /// The repository.
        repository: String,
        /// What to do then.
        then: &'static str,
    },
    /// The token is not known to the hub.
    #[error("{endpoint} does not accept this token; renew HF_TOKEN or the file with it")]
    Token {
        /// The hub.
        endpoint: String,
    },
    /// No such branch, tag or commit.
    #[error("`{repository}` has no revision `{revision}`; leave it out for its main branch")]
    NoRevision {
        /// The repository.
        repository: String,
        /// What was asked for.
        revision: String,
    },
    /// The hub lists a file and does not have it.
    #[error("{endpoint} lists `{path}` of `{repository}` and does not have it; try again later")]
    NoFile {
        /// The hub.
        endpoint: String,
        /// The repository.
        repository: String,
        /// Path of the file.
        path: String,
    },
    /// Too many requests.
    #[error(
        "{endpoint} takes no more requests from here for now{wait}; try again later, or set \
         HF_TOKEN, which is allowed more"
    )]
    TooMany {
        /// The hub.
        endpoint: String,
        /// For how long, where it says so.
        wait: String,
    },
    /// Another refusal.
    #[error("{host} answered {status} to a request for `{what}`")]
    Refused {
        /// Who answered.
        host: String,
        /// Number and name of the answer.
        status: String,
        /// What was asked for.
        what: String,
    },
    /// Redirected too often, or to where nobody may be sent.
    #[error("a request for `{what}` was sent on from {host} to nowhere")]
    Redirect {
        /// Who sent it on last.
        host: String,
        /// What was asked for.
        what: String,
    },
    /// Nobody answered, or the answer broke off.
    #[error("cannot fetch `{what}` from {host}: {reason}; check the network and HTTPS_PROXY")]
    Network {
        /// Whom.
        host: String,
        /// What was asked for.
        what: String,
        /// What went wrong.
        reason: String,
    },
    /// The hub cannot be asked, and the cache has it not.
    #[error("{error}; `{name}` is not whole in {}{near}; the cache has {has}", cache.display())]
    Unreachable {
        /// Why the hub cannot be asked.
        error: Box<Self>,
        /// What was asked for.
        name: String,
        /// The cache.
        cache: PathBuf,
        /// Ends the sentence with what may have been meant.
        near: String,
        /// What there is.
        has: String,
    },
    /// An answer that is no list of files.
    #[error("{endpoint} answers about `{repository}`, but {source}")]
    Listing {
        /// The hub.
        endpoint: String,
        /// The repository.
        repository: String,
        /// What is wrong.
        source: ListingError,
    },
    /// None of its files is the model.
    #[error("`{repository}` cannot be used: {source}")]
    Unusable {
        /// The repository.
        repository: String,
        /// Why.
        source: Unusable,
    },
    /// A file of unknown content.
    #[error("{endpoint} tells no checksum of `{path}`, which is therefore not fetched")]
    NoChecksum {
        /// The hub.
        endpoint: String,
        /// Path of the file.
        path: String,
    },
    /// A file with other content than the hub promises.
    #[error(
        "checksum mismatch in `{path}`: expected {expected}, got {actual}; nothing was kept. Try \
         again; if it repeats, what is between here and {host} changes files"
    )]
    Checksum {
        /// Whom it came from.
        host: String,
        /// Path of the file.
        path: String,
        /// What it should hash to.
        expected: String,
        /// What it hashes to.
        actual: String,
    },
    /// More bytes than the hub promises.
    #[error("`{path}` is longer than the {expected} bytes that {host} promises; nothing was kept")]
    TooLong {
        /// Whom it came from.
        host: String,
        /// Path of the file.
        path: String,
        /// What was promised.
        expected: u64,
    },
    /// Not enough room.
    #[error(
        "not enough space in {}: {} MB needed, {} MB free; free some, or set HF_HUB_CACHE to a \
         directory on another disk", dir.display(), needed.div_ceil(1_000_000), free / 1_000_000
    )]
    NoSpace {
        /// The cache directory.
        dir: PathBuf,
        /// Bytes needed.
        needed: u64,
        /// Bytes free.
        free: u64,
    },
    /// Asked to stay off the network, and the cache has it not.
    #[error(
        "HF_HUB_OFFLINE is set, and `{name}` is not whole in {}{near}; the cache has {has}",
        cache.display()
    )]
    Offline {
        /// What was asked for.
        name: String,
        /// The cache.
        cache: PathBuf,
        /// Ends the sentence with what may have been meant.
        near: String,
        /// What there is.
        has: String,
    },
    /// A failure of the filesystem.
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

impl HubError {
    pub(crate) fn io<'a>(
        action: &'static str,
        path: &'a Path,
    ) -> impl Fn(io::Error) -> Self + use<'a> {
        move |source| Self::Io {
            action,
            path: path.to_owned(),
            source,
        }
    }

    /// Whether the hub could not be asked, so that a cache may answer in its place.
    pub(crate) fn is_silence(&self) -> bool {
        match self {
            Self::Network { .. } | Self::TooMany { .. } => true,
            Self::Refused { status, .. } => status.starts_with('5'),
            _ => false,
        }
    }
}
