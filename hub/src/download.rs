//! One file of a repository into the cache: gone on with where it broke off, compared with what its
//! content must hash to, and renamed into place. A file under its final name is therefore whole.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::thread::sleep;

use reqwest::StatusCode;
use reqwest::blocking::Response;
use reqwest::header::CONTENT_RANGE;
use sha1::Sha1;
use sha2::{Digest, Sha256};

use crate::cache::{RepositoryCache, plain};
use crate::error::HubError;
use crate::http::{Ask, Http};
use crate::listing::{Entry, Hash};

const BUFFER_BYTES: usize = 1 << 18;

/// A file to fetch.
pub(crate) struct Download<'a> {
    pub(crate) http: &'a Http,
    pub(crate) cache: &'a RepositoryCache,
    pub(crate) repository: &'a str,
    pub(crate) revision: &'a str,
    pub(crate) commit: &'a str,
    pub(crate) entry: &'a Entry,
    /// What it must hash to.
    pub(crate) hash: &'a Hash,
    /// Hears how many bytes of the file are there.
    pub(crate) on_bytes: &'a dyn Fn(u64),
}

impl Download<'_> {
    /// Brings the content into the cache, unless it is there.
    pub(crate) fn run(&self) -> Result<(), HubError> {
        if self.is_there() {
            return Ok(());
        }
        let _lock = self.cache.lock(self.hash, &self.entry.path)?;
        // Somebody else may have brought it while this one waited.
        if self.is_there() {
            return Ok(());
        }
        let mut partial = Partial::open(self)?;
        let was_begun = partial.have > 0;
        self.complete(&mut partial)?;
        let mut actual = partial.sum.hex();
        if actual != self.hash.digits() && was_begun {
            tracing::warn!(
                path = self.entry.path,
                "what was there of this file is damaged"
            );
            partial.restart()?;
            self.complete(&mut partial)?;
            actual = partial.sum.hex();
        }
        if actual == self.hash.digits() {
            return partial.keep(&self.cache.blob(self.hash));
        }
        partial.discard();
        Err(HubError::Checksum {
            host: self.http.endpoint(),
            path: self.entry.path.clone(),
            expected: self.hash.digits().to_owned(),
            actual,
        })
    }

    /// Whether the content is there with the right size. Its name says the rest.
    fn is_there(&self) -> bool {
        is_whole(self.cache, self.entry, self.hash)
    }

    /// Asks until all bytes are there. Whatever brings some of them is progress.
    fn complete(&self, partial: &mut Partial) -> Result<(), HubError> {
        let mut barren = 0;
        while partial.have < self.entry.bytes {
            let before = partial.have;
            let broke = self.receive(partial)?;
            if partial.have >= self.entry.bytes {
                break;
            }
            barren = if partial.have > before { 0 } else { barren + 1 };
            if barren >= self.http.attempts() {
                return Err(HubError::Network {
                    host: self.http.endpoint(),
                    what: self.entry.path.clone(),
                    reason: broke,
                });
            }
            tracing::warn!(
                path = self.entry.path,
                bytes = partial.have,
                reason = broke,
                "a download broke off and goes on"
            );
            sleep(self.http.pause(barren));
        }
        Ok(())
    }

    /// Adds what one answer brings; returns why it ended.
    fn receive(&self, partial: &mut Partial) -> Result<String, HubError> {
        let path = format!(
            "{}/resolve/{}/{}",
            self.repository,
            self.commit,
            escaped(&self.entry.path)
        );
        let mut response = self.http.get(&Ask {
            path: &path,
            repository: self.repository,
            revision: self.revision,
            what: &self.entry.path,
            from: partial.have,
            attempts: self.http.attempts(),
        })?;
        match response.status() {
            StatusCode::PARTIAL_CONTENT if begins_at(&response, partial.have) => {}
            // The whole file, to who asked for its end.
            StatusCode::OK if partial.have > 0 => partial.restart()?,
            StatusCode::OK => {}
            _ => {
                partial.restart()?;
                return Ok("it was answered with other bytes than were asked for".to_owned());
            }
        }
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            let count = match response.read(&mut buffer) {
                Ok(0) => return Ok("the answer ended early".to_owned()),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Ok(cause(&error)),
            };
            if partial.have + count as u64 > self.entry.bytes {
                partial.discard();
                return Err(HubError::TooLong {
                    host: self.http.endpoint(),
                    path: self.entry.path.clone(),
                    expected: self.entry.bytes,
                });
            }
            partial.push(&buffer[..count])?;
            (self.on_bytes)(partial.have);
        }
    }
}

/// Whether a file's content is in the cache.
pub(crate) fn is_whole(cache: &RepositoryCache, entry: &Entry, hash: &Hash) -> bool {
    fs::metadata(cache.blob(hash)).is_ok_and(|meta| meta.is_file() && meta.len() == entry.bytes)
}

/// Bytes of a file that an earlier process has brought.
pub(crate) fn begun(cache: &RepositoryCache, entry: &Entry, hash: &Hash) -> u64 {
    let begun = fs::metadata(cache.incomplete(hash)).map_or(0, |meta| meta.len());
    if begun > entry.bytes { 0 } else { begun }
}

/// What of a file has come so far.
struct Partial {
    file: File,
    path: PathBuf,
    sum: Sum,
    have: u64,
    /// Bytes of the whole file, which git hashes before the content.
    of: u64,
}

impl Partial {
    /// Opens what is there and hashes it.
    fn open(download: &Download<'_>) -> Result<Self, HubError> {
        let path = download.cache.incomplete(download.hash);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let file = plain(&path, &mut options).map_err(HubError::io("open", &path))?;
        let of = download.entry.bytes;
        let sum = Sum::new(download.hash, of);
        let mut partial = Self {
            file,
            path,
            sum,
            have: 0,
            of,
        };
        let read = partial.read_again(download.on_bytes);
        read.map_err(HubError::io("read", &partial.path))?;
        if partial.have > of {
            partial.restart()?;
        }
        Ok(partial)
    }

    fn read_again(&mut self, on_bytes: &dyn Fn(u64)) -> io::Result<()> {
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            let count = self.file.read(&mut buffer)?;
            if count == 0 || self.have > self.of {
                return Ok(());
            }
            self.sum.update(&buffer[..count]);
            self.have += count as u64;
            on_bytes(self.have.min(self.of));
        }
    }

    fn push(&mut self, bytes: &[u8]) -> Result<(), HubError> {
        let written = self.file.write_all(bytes);
        written.map_err(HubError::io("write", &self.path))?;
        self.sum.update(bytes);
        self.have += bytes.len() as u64;
        Ok(())
    }

    /// Forgets what is there.
    fn restart(&mut self) -> Result<(), HubError> {
        let emptied = self.file.set_len(0);
        let emptied = emptied.and_then(|()| self.file.seek(SeekFrom::Start(0)));
        emptied.map_err(HubError::io("write", &self.path))?;
        self.sum = self.sum.anew(self.of);
        self.have = 0;
        Ok(())
    }

    /// Gives it its final name.
    fn keep(self, blob: &Path) -> Result<(), HubError> {
        let kept = self.file.sync_all();
        let kept = kept.and_then(|()| fs::rename(&self.path, blob));
        kept.map_err(HubError::io("write", blob))
    }

    /// What cannot be deleted costs space and is told from the true content later.
    fn discard(&self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// A hash in the making.
enum Sum {
    Sha256(Sha256),
    Git(Sha1),
}

impl Sum {
    fn new(hash: &Hash, bytes: u64) -> Self {
        match hash {
            Hash::Sha256(_) => Self::Sha256(Sha256::new()),
            Hash::Git(_) => Self::git(bytes),
        }
    }

    /// Git hashes the size of an object before its content.
    fn git(bytes: u64) -> Self {
        Self::Git(Sha1::new_with_prefix(format!("blob {bytes}\0")))
    }

    fn anew(&self, bytes: u64) -> Self {
        match self {
            Self::Sha256(_) => Self::Sha256(Sha256::new()),
            Self::Git(_) => Self::git(bytes),
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(sum) => sum.update(bytes),
            Self::Git(sum) => sum.update(bytes),
        }
    }

    /// Lower-case hexadecimal digits of what was hashed so far.
    fn hex(&self) -> String {
        match self {
            Self::Sha256(sum) => format!("{:x}", sum.clone().finalize()),
            Self::Git(sum) => format!("{:x}", sum.clone().finalize()),
        }
    }
}

/// Whether an answer with a part of a file begins at this byte of it.
fn begins_at(response: &Response, byte: u64) -> bool {
    let range = response.headers().get(CONTENT_RANGE);
    let range = range.and_then(|range| range.to_str().ok());
    let first = range
        .and_then(|range| range.strip_prefix("bytes "))
        .and_then(|range| range.split_once('-'))
        .and_then(|(first, _)| first.trim().parse::<u64>().ok());
    first == Some(byte)
}

/// A path within an address.
fn escaped(path: &str) -> String {
    let mut text = String::with_capacity(path.len());
    for byte in path.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                text.push(byte.into());
            }
            other => text.push_str(&format!("%{other:02X}")),
        }
    }
    text
}

/// The cause of a failure to read. Above it stands an address that may hold what only a server
/// should read.
fn cause(error: &io::Error) -> String {
    let mut text = "the answer broke off".to_owned();
    let mut next = error.get_ref().and_then(|inner| inner.source());
    while let Some(cause) = next {
        text = cause.to_string();
        next = cause.source();
    }
    text
}
