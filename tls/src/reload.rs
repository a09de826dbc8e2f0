//! Something built from files, built again when they change. Kubernetes replaces the files of a
//! secret while a process runs.

use std::fmt::{self, Display};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Files are looked at this often at most where nothing else is said.
const PAUSE: Duration = Duration::from_secs(1);

type Build<T, E> = Box<dyn Fn() -> Result<T, E> + Send + Sync>;

/// The newest that could be built. What the wall clock says has no part in it: files are looked at
/// by a clock that only goes on, and any other stamp is a change.
pub struct Reloading<T, E> {
    what: &'static str,
    files: Vec<PathBuf>,
    build: Build<T, E>,
    pause: Duration,
    state: Mutex<State<T>>,
}

struct State<T> {
    current: Arc<T>,
    stamps: Vec<Option<Stamp>>,
    looked: Instant,
    /// Whether the files as they are could not be used.
    failed: bool,
}

/// Differs when a file was written or replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    bytes: u64,
    written_seconds: i64,
    written_nanoseconds: i64,
}

/// One for each file; `None` where there is none.
fn stamps(files: &[PathBuf]) -> Vec<Option<Stamp>> {
    let stamp = |path: &PathBuf| {
        let meta = fs::metadata(path).ok()?;
        Some(Stamp {
            inode: meta.ino(),
            bytes: meta.len(),
            written_seconds: meta.mtime(),
            written_nanoseconds: meta.mtime_nsec(),
        })
    };
    files.iter().map(stamp).collect()
}

impl<T, E: Display> Reloading<T, E> {
    /// Builds `what`, as the log names it, and again when one of `files` changes.
    ///
    /// # Errors
    /// Of the first `build`.
    pub fn new(
        what: &'static str,
        files: Vec<PathBuf>,
        build: impl Fn() -> Result<T, E> + Send + Sync + 'static,
    ) -> Result<Self, E> {
        // Before they are read: a change in between is found later.
        let stamps = stamps(&files);
        let state = State {
            current: Arc::new(build()?),
            stamps,
            looked: Instant::now(),
            failed: false,
        };
        Ok(Self {
            what,
            files,
            build: Box::new(build),
            pause: PAUSE,
            state: Mutex::new(state),
        })
    }

    /// Looks at the files this often at most, instead of once a second.
    #[must_use]
    pub fn looking_every(self, pause: Duration) -> Self {
        Self { pause, ..self }
    }

    /// What is in force. Files that cannot be used leave what was there before, and one warning;
    /// they are tried again, because reading may have failed for a reason of its own.
    pub fn get(&self) -> Arc<T> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.looked.elapsed() < self.pause {
            return state.current.clone();
        }
        state.looked = Instant::now();
        let found = stamps(&self.files);
        let changed = found != state.stamps;
        if changed || state.failed {
            state.stamps = found;
            let built = (self.build)();
            state.failed = built.is_err();
            match built {
                Ok(built) => {
                    tracing::info!(files = ?self.files, "{} were read again", self.what);
                    state.current = Arc::new(built);
                }
                // Halfway through a replacement, files do not fit each other; the next look finds
                // all of them.
                Err(error) if changed => {
                    tracing::warn!(
                        %error,
                        "changed {} cannot be used; the former stay in use",
                        self.what
                    );
                }
                Err(_) => {}
            }
        }
        state.current.clone()
    }
}

impl<T, E> fmt::Debug for Reloading<T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reloading")
            .field("what", &self.what)
            .field("files", &self.files)
            .finish_non_exhaustive()
    }
}
