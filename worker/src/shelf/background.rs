//! The threads that write to a store and read from it.
//!
//! One writes and removes, in the order of the plans, one snapshot after the other, because packing
//! one takes a core. Others read, so that what somebody waits for never waits behind what nobody
//! waits for; they are several because a store far away is slow to answer and not busy.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, TrySendError, channel, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use palimpsest_engine::kept::Kept;
use palimpsest_engine::snapshot::Snapshot;
use palimpsest_proto::internal::v1::SnapshotReport;
use palimpsest_proto::internal::v1::snapshot_report::Event;
use palimpsest_store::Store;
use tokio::runtime::Runtime;

use super::files::{FileError, RankFiles, StoredSnapshot};
use super::report::report;

/// Snapshots that may wait for each thread. Those that wait to be written stay in memory meanwhile.
pub(super) const WAITING: usize = 256;

/// Threads that read.
pub(super) const READERS: usize = 4;

/// Time that a snapshot may wait until it is read. Behind a store that is slow for many, whoever
/// waits for one does better to read its text.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// What changes the store.
enum Write {
    Store {
        name: Bytes,
        snapshot: Arc<Snapshot>,
    },
    Erase {
        name: Bytes,
    },
}

/// What reads it.
enum Read {
    Fetch {
        name: Bytes,
        since: Instant,
    },
    List {
        done: SyncSender<Result<Vec<StoredSnapshot>, FileError>>,
    },
}

/// Handles on the threads, which end with them.
pub(super) struct Background {
    writes: SyncSender<Write>,
    reads: SyncSender<Read>,
    reports: Receiver<SnapshotReport>,
}

impl Background {
    /// Starts the threads.
    pub(super) fn start(kept: Kept, store: Store, files: RankFiles) -> std::io::Result<Self> {
        Self::with_patience(kept, store, files, PATIENCE)
    }

    /// The same, where a snapshot waits no longer than `patience` until it is read.
    pub(super) fn with_patience(
        kept: Kept,
        store: Store,
        files: RankFiles,
        patience: Duration,
    ) -> std::io::Result<Self> {
        let (told, reports) = channel();
        // Connections live on it, whichever thread asks.
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("snapshot-store")
            .enable_all()
            .build()?;
        let worker = Worker {
            kept,
            store,
            files: Arc::new(files),
            told,
            patience,
            runtime: Arc::new(runtime),
        };
        Ok(Self {
            writes: spawn("snapshot-writer", 1, &worker, Worker::write)?,
            reads: spawn("snapshot-reader", READERS, &worker, Worker::read)?,
            reports,
        })
    }

    /// Has a snapshot written.
    ///
    /// # Errors
    /// Says why it is not taken.
    pub(super) fn store(&self, name: Bytes, snapshot: Arc<Snapshot>) -> Result<(), &'static str> {
        hand(&self.writes, Write::Store { name, snapshot })
    }

    /// Has a snapshot removed.
    ///
    /// # Errors
    /// As [`Self::store`].
    pub(super) fn erase(&self, name: Bytes) -> Result<(), &'static str> {
        hand(&self.writes, Write::Erase { name })
    }

    /// Has a snapshot read into memory.
    ///
    /// # Errors
    /// As [`Self::store`].
    pub(super) fn fetch(&self, name: Bytes) -> Result<(), &'static str> {
        let since = Instant::now();
        hand(&self.reads, Read::Fetch { name, since })
    }

    /// What is in the store. Waits for it, but no longer than `limit`.
    ///
    /// # Errors
    /// Says why it is not known.
    pub(super) fn list(&self, limit: Duration) -> Result<Vec<StoredSnapshot>, String> {
        let (done, answer) = sync_channel(1);
        hand(&self.reads, Read::List { done })?;
        match answer.recv_timeout(limit) {
            Ok(listed) => listed.map_err(|error| error.to_string()),
            Err(_) => Err(format!("no answer within {} s", limit.as_secs_f64())),
        }
    }

    /// The next thing that is done, if that is within `limit`.
    pub(super) fn next_report(&self, limit: Duration) -> Option<SnapshotReport> {
        self.reports.recv_timeout(limit).ok()
    }

    /// What was done since the last call.
    pub(super) fn reports(&self) -> impl Iterator<Item = SnapshotReport> + '_ {
        self.reports.try_iter()
    }
}

fn hand<T>(orders: &SyncSender<T>, order: T) -> Result<(), &'static str> {
    orders.try_send(order).map_err(|error| match error {
        TrySendError::Full(_) => "too much waits for the store",
        TrySendError::Disconnected(_) => "the thread for the store has ended; the log says why",
    })
}

/// Starts threads that take orders, each one after the other, until nobody can send any.
fn spawn<T: Send + 'static>(
    name: &str,
    threads: usize,
    worker: &Worker,
    act: fn(&Worker, T),
) -> std::io::Result<SyncSender<T>> {
    let (orders, inbox) = sync_channel(WAITING);
    let inbox = Arc::new(Mutex::new(inbox));
    for _ in 0..threads {
        let (worker, inbox) = (worker.clone(), inbox.clone());
        let next = move || inbox.lock().unwrap_or_else(PoisonError::into_inner).recv();
        std::thread::Builder::new()
            .name(name.into())
            .spawn(move || {
                while let Ok(order) = next() {
                    act(&worker, order);
                }
            })?;
    }
    Ok(orders)
}

/// What both threads work on.
#[derive(Clone)]
struct Worker {
    kept: Kept,
    store: Store,
    files: Arc<RankFiles>,
    told: Sender<SnapshotReport>,
    patience: Duration,
    runtime: Arc<Runtime>,
}

impl Worker {
    fn write(&self, write: Write) {
        match write {
            Write::Store { name, snapshot } => {
                let files = &self.files;
                let written = self.wait(|| files.write(&self.store, &name, &snapshot));
                self.tell(name, Event::Stored, written);
            }
            Write::Erase { name } => {
                let erased = self.wait(|| self.files.erase(&self.store, &name));
                self.tell(name, Event::Erased, erased.map(|()| 0));
            }
        }
    }

    fn read(&self, read: Read) {
        match read {
            Read::Fetch { name, since } => {
                let fetched = if since.elapsed() < self.patience {
                    self.fetch(&name)
                } else {
                    Err(FileError::Waited)
                };
                self.tell(name, Event::Fetched, fetched);
            }
            Read::List { done } => {
                // Whoever asked may have given up.
                let _ = done.send(self.wait(|| self.files.list(&self.store)));
            }
        }
    }

    /// Reads a snapshot into memory; returns its bytes there.
    fn fetch(&self, name: &Bytes) -> Result<u64, FileError> {
        let most = self.kept.room();
        let snapshot = self.wait(|| self.files.read(&self.store, name, most))?;
        let bytes = snapshot.bytes() as u64;
        if self.kept.insert(name.clone(), Arc::new(snapshot)) {
            Ok(bytes)
        } else {
            Err(FileError::NoRoom { bytes, most })
        }
    }

    /// Waits for the store. A bug in what it brings is no end of the thread.
    fn wait<T, F>(&self, call: impl FnOnce() -> F) -> Result<T, FileError>
    where
        F: Future<Output = Result<T, FileError>>,
    {
        catch_unwind(AssertUnwindSafe(|| self.runtime.block_on(call())))
            .unwrap_or(Err(FileError::Panicked))
    }

    fn tell(&self, name: Bytes, event: Event, done: Result<u64, FileError>) {
        let told = match done {
            Ok(bytes) => report(name, event, bytes, ""),
            Err(error) => {
                tracing::warn!("{}: {error}", self.store.name());
                SnapshotReport {
                    waited: matches!(error, FileError::Waited),
                    ..report(name, event, 0, &error.to_string())
                }
            }
        };
        // Nobody listens when the shelf is gone.
        let _ = self.told.send(told);
    }
}
