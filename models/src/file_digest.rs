//! Digests of whole files: what tells a half-copied model from a whole one. A digest is kept in the
//! cache directory until its file changes, so that a model is hashed once and not at every start.

use std::fs::{self, File, Metadata};
use std::io::{self, Write};
use std::num::NonZero;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, SystemTime};

use xxhash_rust::xxh3::{Xxh3, xxh3_128};

use crate::no_follow;

/// What threads take at a time. Part of what a digest means: it is a digest of those of pieces.
const PIECE: usize = 16 << 20;
/// Beyond this many threads memory is the limit.
const MOST_THREADS: usize = 8;
/// A record is one line of numbers.
const MOST_RECORD: u64 = 512;
/// A file that was written this recently may be written again within the same tick of its
/// filesystem's clock, which nobody would see.
const SETTLED: Duration = Duration::from_secs(2);

/// Where digests are kept between starts.
#[derive(Debug, Clone, Default)]
pub struct DigestCache {
    directory: Option<PathBuf>,
}

impl DigestCache {
    /// Keeps them nowhere: every file is hashed.
    pub fn nowhere() -> Self {
        Self::default()
    }

    /// Keeps them in `directory`, which is made when there is something to keep. One that cannot be
    /// written to costs the time of hashing and nothing else.
    pub fn within(directory: PathBuf) -> Self {
        Self {
            directory: Some(directory),
        }
    }

    /// Digest of an open file at `path`, whose content is `bytes`.
    pub(crate) fn digest(&self, path: &Path, file: &File, bytes: &[u8]) -> u128 {
        self.digest_at(path, file, bytes, SystemTime::now())
    }

    fn digest_at(&self, path: &Path, file: &File, bytes: &[u8], now: SystemTime) -> u128 {
        let Some(record) = self.record_of(path) else {
            return digest(bytes);
        };
        let Some(before) = stamp(file, now) else {
            return digest(bytes);
        };
        if let Some(kept) = read(&record, &before) {
            return kept;
        }
        let found = digest(bytes);
        // What was written to meanwhile is hashed again at the next start.
        if stamp(file, now).as_ref() == Some(&before)
            && let Err(error) = write(&record, &before, found)
        {
            tracing::debug!(%error, record = %record.display(), "a digest was not kept");
        }
        found
    }

    fn record_of(&self, path: &Path) -> Option<PathBuf> {
        let path = path.canonicalize().ok()?;
        let name = xxh3_128(path.as_os_str().as_bytes());
        Some(self.directory.as_ref()?.join(format!("{name:032x}")))
    }
}

/// Digest of bytes: of their number and of the digests of their pieces, which threads share.
fn digest(bytes: &[u8]) -> u128 {
    let pieces: Vec<&[u8]> = bytes.chunks(PIECE).collect();
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            match pieces.get(index) {
                Some(piece) => done.push((index, xxh3_128(piece))),
                None => return done,
            }
        }
    };
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    let threads = cores.min(MOST_THREADS).min(pieces.len());
    let mut digests = thread::scope(|scope| {
        let others: Vec<_> = (1..threads)
            // Where the system gives no thread, the others do its part.
            .filter_map(|_| thread::Builder::new().spawn_scoped(scope, work).ok())
            .collect();
        let mut done = work();
        for other in others {
            // A digest without some of its pieces would be kept for a true one.
            done.extend(other.join().unwrap_or_else(|panic| resume_unwind(panic)));
        }
        done
    });
    digests.sort_unstable();
    let mut hash = Xxh3::new();
    hash.update(&(bytes.len() as u64).to_le_bytes());
    for (_, piece) in digests {
        hash.update(&piece.to_le_bytes());
    }
    hash.digest128()
}

/// What differs once a file was written to or replaced, as it stands in a record. `None` for one
/// that was written just now.
fn stamp(file: &File, now: SystemTime) -> Option<String> {
    let meta = file.metadata().ok()?;
    let changed = changed(&meta)?;
    now.duration_since(changed)
        .is_ok_and(|age| age >= SETTLED)
        .then(|| {
            format!(
                "palimpsest file digest 1: device {} inode {} bytes {} written {}.{:09} changed \
                 {}.{:09} ",
                meta.dev(),
                meta.ino(),
                meta.len(),
                meta.mtime(),
                meta.mtime_nsec(),
                meta.ctime(),
                meta.ctime_nsec()
            )
        })
}

/// When a file was last written or changed in any way.
fn changed(meta: &Metadata) -> Option<SystemTime> {
    let seconds = u64::try_from(meta.mtime().max(meta.ctime())).ok()?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds + 1))
}

fn read(record: &Path, stamp: &str) -> Option<u128> {
    let text = no_follow::read_own(record, MOST_RECORD).ok()?;
    let digits = text.strip_prefix(stamp)?.strip_suffix('\n')?;
    u128::from_str_radix(digits, 16)
        .ok()
        .filter(|_| digits.len() == 32)
}

/// Written beside and renamed: a record is whole or not there.
fn write(record: &Path, stamp: &str, digest: u128) -> io::Result<()> {
    let directory = record
        .parent()
        .ok_or_else(|| io::Error::other("a record has a directory"))?;
    fs::create_dir_all(directory)?;
    let mut staged = no_follow::staged(directory)?;
    staged.write_all(format!("{stamp}{digest:032x}\n").as_bytes())?;
    staged.persist(record)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    struct Dir(tempfile::TempDir);

    impl Dir {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn model(&self) -> PathBuf {
            self.0.path().join("model")
        }

        fn cache(&self) -> DigestCache {
            DigestCache::within(self.0.path().join("digests"))
        }

        /// Digest of what is there, when the file's last change is long ago.
        fn digest(&self, claimed: &[u8]) -> u128 {
            let later = SystemTime::now() + Duration::from_secs(60);
            let (path, file) = (self.model(), File::open(self.model()).unwrap());
            self.cache().digest_at(&path, &file, claimed, later)
        }

        fn records(&self) -> Vec<PathBuf> {
            let entries = fs::read_dir(self.0.path().join("digests"));
            let mut paths: Vec<_> = entries
                .map(|entries| entries.map(|entry| entry.unwrap().path()).collect())
                .unwrap_or_default();
            paths.sort();
            paths
        }
    }

    #[test]
    fn a_digest_covers_every_byte_and_the_length() {
        let whole = vec![7; 2 * PIECE + 5];
        let known = digest(&whole);
        assert_eq!(digest(&whole), known);
        for index in [0, PIECE - 1, PIECE, 2 * PIECE, 2 * PIECE + 4] {
            let mut other = whole.clone();
            other[index] ^= 1;
            assert_ne!(digest(&other), known, "byte {index}");
        }
        assert_ne!(digest(&whole[..2 * PIECE]), known);
        assert_ne!(digest(&[0]), digest(&[]));
        let (mut swapped, mut one) = (whole.clone(), whole);
        (swapped[0], one[PIECE]) = (1, 1);
        assert_ne!(digest(&swapped), digest(&one), "the order of pieces counts");
    }

    #[test]
    fn a_file_is_hashed_once_and_again_when_it_changed() {
        let dir = Dir::new();
        fs::write(dir.model(), "first").unwrap();
        let first = dir.digest(b"first");
        // Bytes that are not the file's show where the answer came from.
        assert_eq!(dir.digest(b"not looked at"), first);
        fs::write(dir.model(), "other").unwrap();
        // In another tick of the filesystem's clock.
        let another = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        let file = File::options().write(true).open(dir.model()).unwrap();
        file.set_modified(another).unwrap();
        let other = dir.digest(b"other");
        assert_ne!(other, first, "the same length and inode");
        assert_eq!(dir.records().len(), 1, "one record for a path");
        let staged = dir.0.path().join("staged");
        fs::write(&staged, "other").unwrap();
        fs::rename(&staged, dir.model()).unwrap();
        assert_eq!(dir.digest(b"replaced"), digest(b"replaced"));
    }

    /// A change within one tick of the filesystem's clock leaves the stamp as it was.
    #[test]
    fn a_file_that_was_written_just_now_is_not_remembered() {
        let dir = Dir::new();
        fs::write(dir.model(), "first").unwrap();
        let file = File::open(dir.model()).unwrap();
        for now in [SystemTime::now(), SystemTime::UNIX_EPOCH] {
            let found = dir.cache().digest_at(&dir.model(), &file, b"first", now);
            assert_eq!(found, digest(b"first"), "a clock that jumps back as well");
            assert_eq!(dir.records(), Vec::<PathBuf>::new());
        }
    }

    #[test]
    fn records_that_are_damaged_or_links_are_not_believed() {
        let dir = Dir::new();
        fs::write(dir.model(), "first").unwrap();
        let first = dir.digest(b"first");
        let record = dir.records().remove(0);
        let text = fs::read_to_string(&record).unwrap();
        for damaged in [
            "",
            "0",
            &text[..text.len() - 2],
            &text.replace("digest 1", "digest 2"),
        ] {
            fs::write(&record, damaged).unwrap();
            assert_eq!(dir.digest(b"again"), digest(b"again"), "{damaged:?}");
        }
        let elsewhere = dir.0.path().join("elsewhere");
        fs::write(&elsewhere, &text).unwrap();
        fs::remove_file(&record).unwrap();
        symlink(&elsewhere, &record).unwrap();
        assert_eq!(dir.digest(b"third"), digest(b"third"));
        assert_eq!(fs::read_to_string(&elsewhere).unwrap(), text, "left alone");
        assert_ne!(first, digest(b"third"));
    }

    #[test]
    fn a_directory_that_cannot_be_written_costs_nothing_but_time() {
        let dir = Dir::new();
        fs::write(dir.model(), "first").unwrap();
        fs::write(dir.0.path().join("digests"), "a file").unwrap();
        assert_eq!(dir.digest(b"first"), digest(b"first"));
        let file = File::open(dir.model()).unwrap();
        let nowhere = DigestCache::nowhere().digest(&dir.model(), &file, b"first");
        assert_eq!(nowhere, digest(b"first"));
    }
}
