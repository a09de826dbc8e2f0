//! Something built from files, built again when they change. Kubernetes replaces the files of a
//! secret while a process runs.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::TlsError;

/// Files are looked at this often at most.
const PAUSE: Duration = Duration::from_secs(1);

type Build<T> = Box<dyn Fn() -> Result<T, TlsError> + Send + Sync>;

/// The newest that could be built.
pub(crate) struct Reloading<T> {
    files: Vec<PathBuf>,
    build: Build<T>,
    state: Mutex<State<T>>,
}

struct State<T> {
    current: Arc<T>,
    stamps: Vec<Option<Stamp>>,
    looked: Instant,
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

impl<T> Reloading<T> {
    pub(crate) fn new(
        files: Vec<PathBuf>,
        build: impl Fn() -> Result<T, TlsError> + Send + Sync + 'static,
    ) -> Result<Self, TlsError> {
        // Before they are read: a change in between is found later.
        let stamps = stamps(&files);
        let state = State {
            current: Arc::new(build()?),
            stamps,
            looked: Instant::now(),
        };
        Ok(Self {
            files,
            build: Box::new(build),
            state: Mutex::new(state),
        })
    }

    /// What is in force. Files that cannot be used leave what was there before, and a warning.
    pub(crate) fn get(&self) -> Arc<T> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.looked.elapsed() >= PAUSE {
            state.looked = Instant::now();
            let found = stamps(&self.files);
            if found != state.stamps {
                state.stamps = found;
                match (self.build)() {
                    Ok(built) => {
                        tracing::info!(files = ?self.files, "certificates were read again");
                        state.current = Arc::new(built);
                    }
                    // Halfway through a replacement, certificate and key differ; the next look
                    // finds both.
                    Err(error) => {
                        tracing::warn!(
                            %error,
                            "changed certificates cannot be used; the former stay in use"
                        );
                    }
                }
            }
        }
        state.current.clone()
    }
}
