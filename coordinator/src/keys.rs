//! API keys: who may ask, and for how much.
//!
//! A file has one line per key: `tenant:sha256`, the digest in hexadecimal digits of the key as
//! clients send it, and behind it what the key may ask for ([`KeyOptions`]): `expires=YYYY-MM-DD`,
//! `max-requests=N`, `max-requests-per-minute=N`, `max-tokens=N`, `max-priority=N`. Keys themselves
//! are nowhere stored. Lines that are empty or begin with `#` are skipped. Keys are looked up by
//! their digest: how long that takes says something of digests at most, and a digest leads to no
//! key.
//!
//! The file is read again when it changes. One that cannot be read, or not as a whole, leaves the
//! keys that were there before.

mod options;
mod rate;
mod table;
mod tenant;

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;
use std::{fmt, iter};

use palimpsest_tls::Reloading;
use sha2::{Digest, Sha256};

pub use self::options::{BadOption, KeyOptions};
pub use self::table::{BadLine, LineFault};
use self::table::{KeyDigest, Table, Uses};
pub use self::tenant::{Tenant, TenantPermit};

/// Longest file of keys, in bytes: a hundred thousand lines.
const MAX_FILE: u64 = 16 << 20;

/// Why a file of keys cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeysError {
    /// It cannot be read.
    #[error("cannot read {} as UTF-8 text: {why}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        why: String,
    },
    /// It holds no key: a service that asks for keys would let nobody in. A file that is being
    /// written looks like that as well.
    #[error("{} holds no key: a line is `tenant:sha256`", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// One of its lines is no key.
    #[error("{}: {bad}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Which, and why.
        bad: BadLine,
    },
}

/// Why a request has no tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denied {
    /// There is no key, or none that is known.
    Unknown,
    /// The key's time is over.
    Expired,
}

/// The keys of a service.
pub struct ApiKeys {
    source: Source,
    clock: Box<dyn Fn() -> SystemTime + Send + Sync>,
}

enum Source {
    Fixed(Arc<Table>),
    File(Reloading<Table, KeysError>),
}

impl fmt::Debug for ApiKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ApiKeys({})", self.table().len())
    }
}

impl ApiKeys {
    /// Keys that stay, from the text of a file.
    ///
    /// # Errors
    /// [`BadLine`], the first one.
    pub fn parse(text: &str) -> Result<Self, BadLine> {
        let table = Table::parse(text, &Uses::default())?;
        Ok(Self::of(Source::Fixed(Arc::new(table))))
    }

    /// Keys of a file, which is read again when it changes.
    ///
    /// # Errors
    /// [`KeysError`]: a file that cannot be read now.
    pub fn open(path: &Path) -> Result<Self, KeysError> {
        let read = {
            let path = path.to_owned();
            move || read(&path)
        };
        Ok(Self::of(Source::File(reloading(path, read)?)))
    }

    fn of(source: Source) -> Self {
        Self {
            source,
            clock: Box::new(SystemTime::now),
        }
    }

    fn table(&self) -> Arc<Table> {
        match &self.source {
            Source::Fixed(table) => table.clone(),
            Source::File(file) => file.get(),
        }
    }

    /// Whose key this is.
    ///
    /// # Errors
    /// [`Denied`].
    pub fn tenant(&self, key: &str) -> Result<Arc<Tenant>, Denied> {
        let digest: KeyDigest = Sha256::digest(key.as_bytes()).into();
        let tenant = self.table().get(&digest).cloned().ok_or(Denied::Unknown)?;
        match tenant.options().expires {
            Some(expires) if (self.clock)() >= expires => Err(Denied::Expired),
            _ => Ok(tenant),
        }
    }

    /// Whose key stands in an `authorization` header.
    ///
    /// # Errors
    /// [`Denied`].
    pub fn bearer(&self, header: Option<&str>) -> Result<Arc<Tenant>, Denied> {
        let (scheme, key) = header
            .and_then(|header| header.split_once(' '))
            .ok_or(Denied::Unknown)?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Err(Denied::Unknown);
        }
        self.tenant(key.trim())
    }
}

impl Denied {
    /// What a client is told: `how` to send a key.
    pub fn message(self, how: &str) -> String {
        match self {
            Self::Unknown => format!("no valid API key: send {how}"),
            Self::Expired => "this API key has expired: ask the operator for another".to_owned(),
        }
    }
}

/// A table that is made anew of what `read` gives when the file at `path` changes.
fn reloading(
    path: &Path,
    read: impl Fn() -> io::Result<String> + Send + Sync + 'static,
) -> Result<Reloading<Table, KeysError>, KeysError> {
    let (files, uses) = (iter::once(path.to_owned()).collect(), Uses::default());
    let path = path.to_owned();
    let build = move || {
        let text = read().map_err(|error| KeysError::Read {
            path: path.clone(),
            why: error.to_string(),
        })?;
        let table = Table::parse(&text, &uses).map_err(|bad| KeysError::Line {
            path: path.clone(),
            bad,
        })?;
        if table.len() == 0 {
            return Err(KeysError::Empty { path: path.clone() });
        }
        Ok(table)
    };
    Reloading::new("API keys", files, build)
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?
        .take(MAX_FILE + 1)
        .read_to_string(&mut text)?;
    if text.len() as u64 > MAX_FILE {
        return Err(io::Error::other(format!("more than {MAX_FILE} bytes")));
    }
    Ok(text)
}

#[cfg(test)]
mod tests;
