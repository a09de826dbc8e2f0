//! Models by name, from a hub with Hugging Face's interface.
//!
//! ```text
//! name ─name─▶ repository, tag, revision
//!                │ http: asks for the list of files; a token goes to the hub itself alone
//!                ▼
//! listing ─choice─▶ the files of one model ─download─▶ blobs, each checked ─cache─▶ a snapshot
//! ```
//! What is fetched lies in the cache directory of the Python library `huggingface_hub`, in its
//! layout, under its locks: what one of the two has fetched the other finds.
//!
//! The crate `hf-hub` does the same and more. It is not used because, as of its version 1.1, it
//! begins a download that broke off anew, compares no checksum of what came, and always links a
//! second client with a protocol of its own (`hf-xet`).
#![forbid(unsafe_code)]

mod cache;
mod choice;
mod download;
mod error;
mod http;
mod hub;
mod listing;
mod name;
mod near;
mod settings;
#[cfg(any(test, feature = "testing"))]
pub mod stub;
#[cfg(test)]
mod tests;

pub use self::cache::{Cached, Fetched, cached, snapshot_root};
pub use self::choice::{INDEXER, Unusable, files_of};
pub use self::error::HubError;
pub use self::hub::{Hub, Progress};
pub use self::listing::{Entry, Hash, Listing, ListingError, ids};
pub use self::name::{ModelName, NameError};
pub use self::near::nearest;
pub use self::settings::{Patience, Settings, Token};
