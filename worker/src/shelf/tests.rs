use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::throttle::{ThrottleConfig, ThrottledStore};
use palimpsest_engine::decoder::Arena;
use palimpsest_engine::device_memory::CacheBytes;
use palimpsest_engine::kv::{Contract, SequenceCache};
use palimpsest_engine::policy::Full;
use palimpsest_engine::shard::HeadLayout;
use palimpsest_engine::snapshot::{Extent, Snapshot};
use palimpsest_kernels::cpu::{CpuBackend, CpuOptions};
use palimpsest_kernels::{Cache, KvType, PageShape};

use super::*;

const DIM: usize = 8;
const SHAPE: PageShape = PageShape {
    head_dim: DIM,
    dtype: KvType::F16,
};
const MODEL: &[u8] = b"a model";

/// Some KV heads of a model of three, in two layers.
fn layout(kv_heads: Range<usize>) -> HeadLayout {
    HeadLayout {
        kv_heads,
        ..HeadLayout::alone(2, 3)
    }
}

/// The state of these heads after `tokens` tokens, none of which is evicted.
fn snapshot(kv_heads: Range<usize>, tokens: usize) -> Arc<Snapshot> {
    let backend = CpuBackend::new(CpuOptions {
        threads: Some(1),
        ..CpuOptions::default()
    });
    let bytes = CacheBytes {
        pages: 6 * (tokens / PageShape::SLOTS + 1) * SHAPE.cost(),
        latent: 0,
    };
    let mut arena = Arena::new(&backend, DIM, SHAPE.dtype, bytes).expect("an arena");
    let layout = layout(kv_heads);
    let mut cache = SequenceCache::new(layout, Contract::Full, Arc::new(Full), None);
    cache.grow(tokens, &mut arena.pool).expect("room");
    for (index, head) in cache.heads.iter().enumerate() {
        let (layer, kv_head) = (cache.layout.layer_of(index), cache.layout.kv_head_of(index));
        let value = |i: usize| (100 * layer + 10 * kv_head) as f32 + i as f32 / 512.0;
        let values: Vec<f32> = (0..tokens * DIM).map(value).collect();
        backend
            .write_slots(&mut arena.pages, head.view(tokens), 0, &values, &values)
            .expect("slots");
    }
    Arc::new(Snapshot::take(&backend, &arena, &cache).expect("a snapshot"))
}

fn hex(bytes: &[u8]) -> String {
    palimpsest_engine::snapshot::file::to_hex(bytes)
}

fn files(kv_heads: Range<usize>, model: &[u8]) -> RankFiles {
    RankFiles {
        model: model.to_vec(),
        stride: 16,
        shape: SHAPE,
        extent: Extent::of(&layout(kv_heads)),
    }
}

/// A rank's shelf over a store.
struct Rank {
    kept: Kept,
    shelf: Shelf,
    /// Reports that came together with one that was waited for.
    told: VecDeque<SnapshotReport>,
}

impl Rank {
    fn new(store: &Store, kv_heads: Range<usize>) -> Self {
        Self::with_room(store, kv_heads, 1 << 20)
    }

    fn with_room(store: &Store, kv_heads: Range<usize>, room: u64) -> Self {
        let kept = Kept::new(room);
        let files = files(kv_heads, MODEL);
        let shelf = Shelf::with_store(kept.clone(), store.clone(), files).expect("threads");
        Self {
            kept,
            shelf,
            told: VecDeque::new(),
        }
    }

    /// Waits for the next report of something under way.
    fn report(&mut self) -> SnapshotReport {
        let since = Instant::now();
        loop {
            self.told.extend(self.shelf.reports());
            if let Some(report) = self.told.pop_front() {
                return report;
            }
            assert!(since.elapsed().as_secs() < 20, "nothing is reported");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn keep(&self, name: &'static str, snapshot: Arc<Snapshot>) {
        assert!(self.kept.insert(name.into(), snapshot), "room");
    }

    fn order(&mut self, change: impl FnOnce(&mut SnapshotOrders)) {
        let mut orders = SnapshotOrders::default();
        change(&mut orders);
        self.shelf.obey(&orders);
    }

    fn store(&mut self, name: &'static str) -> SnapshotReport {
        self.order(|orders| orders.store.push(name.into()));
        self.report()
    }

    fn fetch(&mut self, name: &'static str) -> SnapshotReport {
        self.order(|orders| orders.fetch.push(name.into()));
        self.report()
    }

    fn erase(&mut self, name: &'static str) -> SnapshotReport {
        self.order(|orders| orders.erase.push(name.into()));
        self.report()
    }

    /// Names and bytes of what is in the store.
    fn list(&mut self) -> Vec<(Bytes, u64)> {
        self.order(|orders| orders.list = true);
        let reports = self.shelf.reports().into_iter();
        let stored = reports.filter(|report| report.event() == Event::InStore);
        stored.map(|report| (report.name, report.bytes)).collect()
    }
}

fn assert_done(report: &SnapshotReport, event: Event) {
    assert_eq!(
        (report.event(), &report.error[..]),
        (event, ""),
        "{report:?}"
    );
    assert!(report.bytes > 0, "{report:?}");
}

fn assert_erased(report: &SnapshotReport) {
    assert_eq!((report.event(), &report.error[..]), (Event::Erased, ""));
}

fn assert_failed(report: &SnapshotReport, event: Event, why: &str) {
    assert_eq!(report.event(), event, "{report:?}");
    assert!(report.error.contains(why), "{report:?}");
}

#[test]
fn what_was_stored_comes_back_after_the_process() {
    let directory = tempfile::tempdir().expect("a directory");
    let place = directory.path().display().to_string();
    let open = || Store::open(&place).expect("a store");
    let state = snapshot(0..3, 40);
    let mut first = Rank::new(&open(), 0..3);
    first.keep("one", state.clone());
    // In one plan: it is written though it is dropped.
    first.order(|orders| {
        orders.store.push("one".into());
        orders.drop.push("one".into());
    });
    let stored = first.report();
    assert_done(&stored, Event::Stored);
    assert!(first.kept.get(b"one").is_none());
    drop(first);

    let mut second = Rank::new(&open(), 0..3);
    assert_eq!(second.list(), [("one".into(), stored.bytes)]);
    let fetched = second.fetch("one");
    assert_done(&fetched, Event::Fetched);
    assert_eq!(fetched.bytes, state.bytes() as u64);
    assert!(*second.kept.get(b"one").expect("kept") == *state);

    assert_erased(&second.erase("one"));
    assert_failed(&second.fetch("two"), Event::Fetched, "no part");
    // Writes and removals are done in order.
    second.store("one");
    assert_eq!(second.list().len(), 1);
    assert_erased(&second.erase("one"));
    assert!(second.list().is_empty(), "it says so when it is gone");
    assert_erased(&second.erase("one"));
    assert_failed(
        &second.store("none"),
        Event::Stored,
        "not in this rank's memory",
    );
}

#[test]
fn other_numbers_of_ranks_read_what_these_wrote() {
    let store = Store::memory();
    for heads in [0..1, 1..2, 2..3] {
        let mut rank = Rank::new(&store, heads.clone());
        // A rank that knows only its own part lists nothing yet, or what is whole for it.
        rank.keep("one", snapshot(heads, 40));
        assert_done(&rank.store("one"), Event::Stored);
    }
    for heads in [0..3, 0..2, 2..3] {
        let mut rank = Rank::new(&store, heads.clone());
        assert_eq!(rank.list().len(), 1);
        assert_done(&rank.fetch("one"), Event::Fetched);
        let kept = rank.kept.get(b"one").expect("kept");
        assert!(*kept == *snapshot(heads.clone(), 40), "{heads:?}");
    }

    // Without one of the files a part of it is missing.
    let mut part = Rank::new(&store, 0..1);
    assert_erased(&part.erase("one"));
    let mut whole = Rank::new(&store, 0..3);
    assert!(whole.list().is_empty());
    assert_failed(&whole.fetch("one"), Event::Fetched, "no part");
    // A rank removes what begins with its own heads, and leaves what other ranks write.
    let mut rest = Rank::new(&store, 1..3);
    assert_eq!(rest.list().len(), 1, "the others' files are there");
    assert_erased(&whole.erase("one"));
    whole.keep("three", snapshot(0..3, 40));
    assert_done(&whole.store("three"), Event::Stored);
    let names: Vec<Bytes> = rest.list().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["three"]);
}

#[test]
fn a_damaged_or_foreign_file_is_never_kept() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = Store::open(&directory.path().display().to_string()).expect("a store");
    let mut rank = Rank::new(&store, 0..3);
    rank.keep("one", snapshot(0..3, 40));
    rank.store("one");
    rank.order(|orders| orders.drop.push("one".into()));
    let folder = directory.path().join("snapshots");
    let own = folder.join(hex(MODEL));
    let path = own.join("6f6e65/0-3.safetensors");
    let whole = std::fs::read(&path).expect("the file");

    let mut flipped = whole.clone();
    let middle = flipped.len() - 100;
    flipped[middle] ^= 4;
    for (bytes, why) in [
        (&flipped[..], "damaged"),
        (&whole[..999], "header"),
        (&[], "bytes"),
    ] {
        std::fs::write(&path, bytes).expect("written");
        assert_failed(&rank.fetch("one"), Event::Fetched, why);
        assert!(rank.kept.get(b"one").is_none());
    }
    std::fs::write(&path, &whole).expect("written");
    // Models have folders of their own; a file that lies in another one's is refused all the same.
    let other = files(0..3, b"another model");
    let theirs = folder.join(hex(b"another ")).join("6f6e65");
    std::fs::create_dir_all(&theirs).expect("a directory");
    std::fs::write(theirs.join("0-3.safetensors"), &whole).expect("written");
    let kept = Kept::new(1 << 20);
    let shelf = Shelf::with_store(kept.clone(), store.clone(), other).expect("threads");
    let mut foreign = Rank {
        kept,
        shelf,
        told: VecDeque::new(),
    };
    assert_failed(&foreign.fetch("one"), Event::Fetched, "another model");

    // Somebody else's file under this name.
    let elsewhere = own.join("74776f");
    std::fs::create_dir(&elsewhere).expect("a directory");
    std::fs::write(elsewhere.join("0-3.safetensors"), &whole).expect("written");
    assert_failed(&rank.fetch("two"), Event::Fetched, "another name");
    let mut small = Rank::with_room(&store, 0..3, 1000);
    assert_failed(&small.fetch("one"), Event::Fetched, "no room");
    assert_done(&rank.fetch("one"), Event::Fetched);
}

#[test]
fn a_store_that_fails_is_told_of_and_harms_nothing_else() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = Store::open(&directory.path().display().to_string()).expect("a store");
    let mut rank = Rank::new(&store, 0..3);
    rank.keep("one", snapshot(0..3, 40));
    // No directory can be made here: so looks a disk that is full or gone.
    let blocked = directory.path().join("snapshots");
    std::fs::write(&blocked, b"in the way").expect("written");
    assert_failed(&rank.store("one"), Event::Stored, "failed");
    assert!(rank.kept.get(b"one").is_some());
    std::fs::remove_file(blocked).expect("removed");
    assert_done(&rank.store("one"), Event::Stored);

    // What cannot be removed in time is told of as well.
    let slow = ThrottledStore::new(InMemory::new(), ThrottleConfig::default());
    let slow = Arc::new(slow);
    let store = Store::over(slow.clone(), Path::default(), "slow");
    let mut rank = Rank::new(&store.with_limit(Duration::from_millis(50)), 0..3);
    rank.keep("one", snapshot(0..3, 40));
    assert_done(&rank.store("one"), Event::Stored);
    slow.config_mut(|config| config.wait_delete_per_call = Duration::from_secs(60));
    assert_failed(&rank.erase("one"), Event::Erased, "did not answer");
    slow.config_mut(|config| *config = ThrottleConfig::default());
    assert_erased(&rank.erase("one"));
    assert!(rank.list().is_empty());

    // A store that cannot be listed is not taken for an empty one.
    slow.config_mut(|config| config.wait_list_per_call = Duration::from_secs(60));
    rank.order(|orders| orders.list = true);
    let told = rank.shelf.reports();
    assert_failed(
        told.last().expect("a report"),
        Event::NotListed,
        "did not answer",
    );
}

#[test]
fn a_slow_store_keeps_nobody_waiting() {
    let wait = Duration::from_millis(300);
    let config = ThrottleConfig {
        wait_put_per_call: wait,
        wait_get_per_call: wait,
        ..ThrottleConfig::default()
    };
    let slow = ThrottledStore::new(InMemory::new(), config);
    let store = Store::over(Arc::new(slow), Path::default(), "slow");
    let mut rank = Rank::new(&store, 0..3);
    rank.keep("one", snapshot(0..3, 40));
    let since = Instant::now();
    for _ in 0..2 * background::WAITING {
        rank.order(|orders| orders.store.push("one".into()));
    }
    assert!(since.elapsed() < wait, "{:?}", since.elapsed());
    // Those that found no room are told of at once.
    let refused = rank.shelf.reports();
    assert!(
        refused.len() >= background::WAITING - 1,
        "{}",
        refused.len()
    );
    assert_failed(&refused[0], Event::Stored, "too much waits");
    assert_done(&rank.report(), Event::Stored);
    // Reading does not wait for what is still to be written.
    rank.order(|orders| orders.fetch.push("one".into()));
    let mut written = 0;
    let fetched = loop {
        let report = rank.report();
        if report.event() == Event::Fetched {
            break report;
        }
        written += 1;
    };
    assert_done(&fetched, Event::Fetched);
    assert!(written < background::WAITING / 2, "{written} came before");

    // Whoever has waited too long behind others is told to read the text.
    let (kept, patience) = (Kept::new(1 << 20), 3 * wait);
    let files = files(0..3, MODEL);
    let reads = background::Background::with_patience(kept, store.clone(), files, patience);
    let reads = reads.expect("threads");
    let asked = 8 * background::READERS;
    for _ in 0..asked {
        reads.fetch("one".into()).expect("there is room");
    }
    let next = || {
        reads
            .next_report(Duration::from_secs(20))
            .expect("a report")
    };
    let told: Vec<SnapshotReport> = (0..asked).map(|_| next()).collect();
    let waited = told
        .iter()
        .filter(|report| report.error.contains("slow"))
        .count();
    assert_done(&told[0], Event::Fetched);
    assert!(waited > 0 && waited < asked, "{waited} of {asked}");
    assert!(
        told.iter()
            .all(|report| report.error.is_empty() || report.error.contains("slow"))
    );

    let store = store.with_limit(Duration::from_millis(20));
    let mut rank = Rank::new(&store, 0..3);
    assert_failed(&rank.fetch("one"), Event::Fetched, "did not answer");
}

#[test]
fn without_a_store_orders_for_one_are_refused() {
    let kept = Kept::new(1 << 20);
    let mut shelf = Shelf::in_memory(kept.clone());
    assert!(!shelf.has_store());
    kept.insert("one".into(), snapshot(0..3, 40));
    shelf.obey(&SnapshotOrders {
        store: vec!["one".into()],
        fetch: vec!["two".into()],
        erase: vec!["three".into()],
        list: true,
        ..SnapshotOrders::default()
    });
    let reports = shelf.reports();
    assert_failed(&reports[0], Event::Erased, "no store");
    assert_failed(&reports[1], Event::Stored, "no store");
    assert_failed(&reports[2], Event::Fetched, "no store");
    assert_done(&reports[3], Event::InMemory);
    assert_eq!(reports.len(), 4);
}
