//! The cache directory of `huggingface_hub`, in its layout:
//!
//! ```text
//! models--owner--name/refs/main                    the commit of a branch
//! models--owner--name/blobs/HASH                   content, named by what it hashes to
//! models--owner--name/blobs/HASH.incomplete        what has come of it so far
//! models--owner--name/snapshots/COMMIT/a/b.gguf    a link: ../../../blobs/HASH
//! .locks/models--owner--name/HASH.lock             held by whoever fetches it
//! ```

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::OFlags;

use crate::choice::{Choice, choices, choose};
use crate::error::HubError;
use crate::listing::Hash;
use crate::name::{ModelName, is_commit};

/// Folders below a snapshot that are looked into.
const DEEPEST: usize = 4;
/// Bytes of a file that names a commit.
const LONGEST_REF: u64 = 256;

/// A model that was fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// A GGUF file, of one in parts the first, or a directory with `config.json`.
    pub path: PathBuf,
    /// The indexer that its repository has for it.
    pub indexer: Option<PathBuf>,
    /// The commit of the repository.
    pub commit: String,
}

/// A repository's part of the cache.
#[derive(Debug, Clone)]
pub(crate) struct RepositoryCache {
    folder: PathBuf,
    locks: PathBuf,
}

impl RepositoryCache {
    pub(crate) fn of(cache: &Path, name: &ModelName) -> Self {
        let folder = name.folder();
        Self {
            locks: cache.join(".locks").join(&folder),
            folder: cache.join(folder),
        }
    }

    pub(crate) fn blob(&self, hash: &Hash) -> PathBuf {
        self.folder.join("blobs").join(hash.digits())
    }

    pub(crate) fn incomplete(&self, hash: &Hash) -> PathBuf {
        let name = format!("{}.incomplete", hash.digits());
        self.folder.join("blobs").join(name)
    }

    pub(crate) fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    /// Makes the directories of content and locks.
    pub(crate) fn prepare(&self) -> Result<(), HubError> {
        for directory in [&self.folder.join("blobs"), &self.locks] {
            let made = fs::create_dir_all(directory);
            made.map_err(HubError::io("make the directory", directory))?;
        }
        Ok(())
    }

    /// Waits until nobody else fetches this content. The lock ends with the file. Where the
    /// filesystem has no locks it holds nothing, and two may do the same work.
    pub(crate) fn lock(&self, hash: &Hash, path: &str) -> Result<File, HubError> {
        let at = self.locks.join(format!("{}.lock", hash.digits()));
        let file = plain(
            &at,
            OpenOptions::new().write(true).create(true).truncate(false),
        );
        let file = file.map_err(HubError::io("open the lock", &at))?;
        if matches!(file.try_lock(), Err(fs::TryLockError::WouldBlock)) {
            tracing::warn!(path, "another process fetches this file: waiting for it");
            let _ = file.lock();
        }
        Ok(file)
    }

    /// The commit of a branch or tag when it was last fetched.
    fn commit_of(&self, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return Some(revision.to_owned());
        }
        let path = self.folder.join("refs").join(revision);
        if fs::metadata(&path).ok()?.len() > LONGEST_REF {
            return None;
        }
        let commit = fs::read_to_string(path).ok()?.trim().to_owned();
        is_commit(&commit).then_some(commit)
    }

    /// Notes the commit of a branch or tag.
    pub(crate) fn note(&self, revision: &str, commit: &str) -> Result<(), HubError> {
        if is_commit(revision) {
            return Ok(());
        }
        let path = self.folder.join("refs").join(revision);
        let staged = self.folder.join(staged_name("ref"));
        let write = || {
            fs::create_dir_all(path.parent().unwrap_or(&self.folder))?;
            fs::write(&staged, commit)?;
            fs::rename(&staged, &path)
        };
        write().map_err(HubError::io("write", &path))
    }

    /// Links a path of a commit to its content.
    pub(crate) fn link(&self, commit: &str, path: &str, hash: &Hash) -> Result<(), HubError> {
        let at = self.snapshot(commit).join(path);
        let up = "../".repeat(2 + path.matches('/').count());
        let target = PathBuf::from(format!("{up}blobs/{}", hash.digits()));
        if fs::read_link(&at).is_ok_and(|old| old == target) {
            return Ok(());
        }
        let directory = at.parent().unwrap_or(&self.folder);
        let staged = directory.join(staged_name("link"));
        let link = || {
            fs::create_dir_all(directory)?;
            match fs::remove_file(&staged) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => symlink(&target, &staged)?,
            }
            fs::rename(&staged, &at)
        };
        link().map_err(HubError::io("link", &at))
    }

    /// A model of this repository, if the cache has it whole.
    pub(crate) fn find(&self, name: &ModelName) -> Option<Fetched> {
        let commit = self.commit_of(name.revision())?;
        let snapshot = self.snapshot(&commit);
        let files = files(&snapshot, DEEPEST);
        let paths: Vec<&str> = files.iter().map(|file| file.path.as_str()).collect();
        let choice = choose(&paths, name.tag.as_deref()).ok()?;
        Some(self.fetched(&commit, &choice))
    }

    pub(crate) fn fetched(&self, commit: &str, choice: &Choice) -> Fetched {
        let snapshot = self.snapshot(commit);
        Fetched {
            path: if choice.is_directory {
                snapshot.clone()
            } else {
                snapshot.join(&choice.files[0])
            },
            indexer: choice.indexer.as_ref().map(|name| snapshot.join(name)),
            commit: commit.to_owned(),
        }
    }
}

/// A name that no other thread or running process writes under.
fn staged_name(what: &str) -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!(".{what}-{}-{number}", std::process::id())
}

/// Opens a file of the cache; a link or a pipe in its place is not followed.
pub(crate) fn plain(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = options.custom_flags(flags.bits() as i32).open(path)?;
    if file.metadata()?.is_file() {
        return Ok(file);
    }
    let kind = io::ErrorKind::InvalidInput;
    Err(io::Error::new(kind, "not a regular file"))
}

/// The directory of the snapshot that a file of a cache belongs to.
pub fn snapshot_root(path: &Path) -> Option<&Path> {
    path.ancestors().find(|place| {
        let name = place.file_name().and_then(|name| name.to_str());
        let above = place.parent().and_then(Path::file_name);
        name.is_some_and(is_commit) && above.is_some_and(|above| above == "snapshots")
    })
}

/// A model in a cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cached {
    /// What brings it: `owner/name`, with the tag of a file where there are several, and with the
    /// commit where that is not the one of the main branch.
    pub name: String,
    /// Its file or directory.
    pub path: PathBuf,
    /// Bytes of its files.
    pub bytes: u64,
}

/// The models in a cache, in the order of their names.
pub fn cached(cache: &Path) -> Vec<Cached> {
    let mut found = Vec::new();
    for folder in entries(cache) {
        let Some(repository) = repository_of(&folder) else {
            continue;
        };
        let part = RepositoryCache::of(cache, &repository);
        let main = part.commit_of("main");
        for commit in entries(&part.folder.join("snapshots")) {
            if is_commit(&commit) {
                let suffix = if main.as_ref() == Some(&commit) {
                    String::new()
                } else {
                    format!("@{commit}")
                };
                let name = |tag: &str| format!("{repository}{tag}{suffix}");
                found.extend(models(&part, &commit, name));
            }
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

/// The models of one commit.
fn models(part: &RepositoryCache, commit: &str, name: impl Fn(&str) -> String) -> Vec<Cached> {
    let files = files(&part.snapshot(commit), DEEPEST);
    let paths: Vec<&str> = files.iter().map(|file| file.path.as_str()).collect();
    let cached = |tag: Option<String>, choice: &Choice| {
        let is_own = |file: &&CachedFile| choice.files.contains(&file.path);
        let tag = tag.map_or(String::new(), |tag| format!(":{tag}"));
        Cached {
            name: name(&tag),
            path: part.fetched(commit, choice).path,
            bytes: files.iter().filter(is_own).map(|file| file.bytes).sum(),
        }
    };
    let listed = choices(&paths).into_iter();
    listed.map(|(tag, choice)| cached(tag, &choice)).collect()
}

/// The repository of a folder of the cache.
fn repository_of(folder: &str) -> Option<ModelName> {
    let (owner, name) = folder.strip_prefix("models--")?.split_once("--")?;
    format!("{owner}/{name}").parse().ok()
}

fn entries(directory: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    let names = entries.flatten().map(|entry| entry.file_name());
    names.filter_map(|name| name.into_string().ok()).collect()
}

struct CachedFile {
    path: String,
    bytes: u64,
}

/// Files of a snapshot whose content is there, in the order of their paths.
fn files(snapshot: &Path, depth: usize) -> Vec<CachedFile> {
    let mut found = Vec::new();
    for name in entries(snapshot) {
        let at = snapshot.join(&name);
        let Ok(meta) = fs::metadata(&at) else {
            continue;
        };
        if meta.is_file() {
            found.push(CachedFile {
                path: name,
                bytes: meta.len(),
            });
        } else if meta.is_dir() && depth > 0 {
            let below = files(&at, depth - 1);
            found.extend(below.into_iter().map(|file| CachedFile {
                path: format!("{name}/{}", file.path),
                ..file
            }));
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}
