//! Ranks that sum on a GPU, through NCCL. Two of them share one GPU, each a process of its own:
//! this program, started again.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::{Duration, Instant};

use palimpsest_collective::local::LocalGroup;
use palimpsest_collective::nccl::NcclCollective;
use palimpsest_collective::nccl::api::Api;
use palimpsest_collective::nccl::library::Library;
use palimpsest_collective::{Collective, CollectiveError, MemoryStore, Place, Store, conformance};
use palimpsest_engine::error::Error;
use palimpsest_engine::kv::{Contract, HeadBudget};
use palimpsest_engine::runner::Runner;
use palimpsest_kernels::KvType;
use palimpsest_kernels::cuda::CudaBackend;
use palimpsest_kernels::cuda::driver::Driver;
use palimpsest_tests::devices::answer;
use palimpsest_tests::{EngineOptions, contract, engine_on, tiny_indexer, tiny_model};

use super::gpu;

const TOKENS: usize = 24;
/// Tokens that a rank says before it dies: enough for graphs to be replayed.
const LAST_WORDS: usize = 8;
/// For a group to meet and to answer.
const LIMIT: Duration = Duration::from_secs(60);
/// The first NCCL that takes two ranks on one GPU.
const LEAST_VERSION: u32 = 23_003;

/// What a child is told.
const RANK: &str = "PALIMPSEST_TEST_RANK";
const FOLDER: &str = "PALIMPSEST_TEST_FOLDER";
const FIRST_EPOCH: &str = "PALIMPSEST_TEST_EPOCH";
const DIES: &str = "PALIMPSEST_TEST_DIES";

/// Values in files: what processes of one machine find each other by.
struct Folder(PathBuf);

impl Folder {
    fn file(&self, key: &str) -> PathBuf {
        self.0.join(key.replace('/', "."))
    }
}

fn unreachable_store(error: std::io::Error) -> CollectiveError {
    CollectiveError::PeerGone(error.to_string())
}

impl Store for Folder {
    fn set(&self, key: &str, value: &[u8]) -> Result<(), CollectiveError> {
        let partial = self.0.join(format!(
            "{}-{}.partial",
            key.replace('/', "."),
            std::process::id()
        ));
        fs::write(&partial, value).map_err(unreachable_store)?;
        fs::rename(partial, self.file(key)).map_err(unreachable_store)
    }

    fn get(&self, key: &str, deadline: Instant) -> Result<Vec<u8>, CollectiveError> {
        loop {
            match fs::read(self.file(key)) {
                Ok(value) => return Ok(value),
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(unreachable_store(error));
                }
                Err(_) if Instant::now() >= deadline => {
                    return Err(CollectiveError::Deadline {
                        operation: "store",
                        missing: key.into(),
                    });
                }
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }
}

fn soon() -> Instant {
    Instant::now() + LIMIT
}

fn evicting() -> Contract {
    contract("retention", HeadBudget::Column, 12)
}

fn engine(place: Place) -> Option<Runner<CudaBackend<Driver>>> {
    let options = EngineOptions {
        kv: KvType::F32,
        place,
        ..EngineOptions::default()
    };
    Some(engine_on(
        gpu()?,
        tiny_model(1).path(),
        options,
        Some(&tiny_indexer(5)),
    ))
}

fn library() -> Option<Arc<Library>> {
    match Library::open(0) {
        Ok(library) => Some(Arc::new(library)),
        Err(error) => {
            println!("SKIPPED: {error:?}");
            None
        }
    }
}

/// Sums of one rank inside captured graphs, in two epochs: the first is ended while its graphs are
/// still there. The bits are those of sums on the host.
#[test]
fn nccl_of_one_rank_sums_inside_graphs() {
    let (Some(mut host), Some(library)) = (engine(Place::ALONE), library()) else {
        return;
    };
    let end = LocalGroup::new(1)
        .into_iter()
        .next()
        .expect("a group of one");
    host.join(1, Some(Arc::new(end)));
    let want = answer(&mut host, &evicting(), TOKENS).expect("an answer");
    let Some(mut runner) = engine(Place::ALONE) else {
        return;
    };
    for epoch in 1..=2 {
        let store = MemoryStore::default();
        let end = NcclCollective::connect(library.clone(), Place::ALONE, &store, "alone", soon())
            .expect("one rank");
        let end: Arc<dyn Collective> = Arc::new(end);
        runner.join(epoch, Some(end.clone()));
        assert!(runner.decoder().peers().sums_on_device());
        assert!(
            answer(&mut runner, &evicting(), TOKENS).expect("an answer") == want,
            "epoch {epoch}"
        );
        end.abort();
        let after = answer(&mut runner, &evicting(), 1).expect_err("the epoch was ended");
        assert!(
            matches!(after, Error::Collective(CollectiveError::Aborted)),
            "{after}"
        );
    }
}

/// One rank of a group of two, a process that [`Ranks::start`] starts; where nobody asks for one,
/// nothing.
#[test]
fn one_of_them() {
    let Ok(rank) = std::env::var(RANK) else {
        return;
    };
    let told = |name: &str| std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set"));
    let (rank, store) = (
        rank.parse().expect("a rank"),
        Arc::new(Folder(told(FOLDER).into())),
    );
    let place = Place {
        rank,
        world_size: 2,
    };
    let (Some(mut runner), Some(library)) = (engine(place), library()) else {
        panic!("no GPU, or no NCCL")
    };
    for epoch in told(FIRST_EPOCH).parse().expect("an epoch")..=2u64 {
        let prefix = format!("epoch-{epoch}");
        let end = NcclCollective::connect(library.clone(), place, &*store, &prefix, soon())
            .expect("two ranks");
        let end: Arc<dyn Collective> = Arc::new(end);
        runner.join(epoch, Some(end.clone()));
        // As a coordinator would: who notices a death ends the epoch.
        let (watched, over) = (store.clone(), format!("{prefix}/over"));
        std::thread::spawn(move || watched.get(&over, soon()).map(|_| end.abort()));
        if std::env::var_os(DIES).is_some() {
            answer(&mut runner, &evicting(), LAST_WORDS).expect("last words");
            std::process::abort();
        }
        match answer(&mut runner, &evicting(), TOKENS) {
            Ok(told) => {
                let tokens: Vec<u8> = told
                    .iter()
                    .flat_map(|(token, _)| token.to_le_bytes())
                    .collect();
                store
                    .set(&format!("{prefix}/answer-{rank}"), &tokens)
                    .expect("a folder");
                return;
            }
            Err(Error::Collective(error)) => println!("rank {rank}, epoch {epoch}: {error}"),
            Err(error) => panic!("rank {rank}: {error}"),
        }
    }
    panic!("no epoch was left");
}

/// Processes of a group, and where they meet. What is left of them ends with this.
struct Ranks {
    folder: tempfile::TempDir,
    children: Vec<Child>,
}

impl Ranks {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().expect("a folder"),
            children: Vec::new(),
        }
    }

    fn start(&mut self, rank: usize, first_epoch: u64, dies: bool) -> usize {
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.args(["--exact", "ranks::one_of_them", "--nocapture"]);
        command
            .env("NCCL_MULTI_RANK_GPU_ENABLE", "1")
            .env(RANK, rank.to_string());
        command
            .env(FOLDER, self.folder.path())
            .env(FIRST_EPOCH, first_epoch.to_string());
        if dies {
            command.env(DIES, "1");
        }
        self.children
            .push(command.spawn().expect("this program starts"));
        self.children.len() - 1
    }

    /// Whether a process ended well.
    fn wait(&mut self, child: usize) -> bool {
        let end = Instant::now() + 2 * LIMIT;
        while Instant::now() < end {
            if let Some(status) = self.children[child].try_wait().expect("a child") {
                return status.success();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("process {child} does not end");
    }

    fn answer(&self, epoch: u64, rank: usize) -> Vec<u32> {
        let bytes =
            fs::read(store(self.folder.path()).file(&format!("epoch-{epoch}/answer-{rank}")))
                .expect("an answer");
        bytes
            .chunks_exact(4)
            .map(|bytes| u32::from_le_bytes(bytes.try_into().expect("four")))
            .collect()
    }
}

impl Drop for Ranks {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn store(folder: &Path) -> Folder {
    Folder(folder.to_owned())
}

/// What one rank says; `None` where two cannot be tried.
fn said_by_one() -> Option<Vec<u32>> {
    let (mut runner, library) = (engine(Place::ALONE)?, library()?);
    let version = library.version().expect("a version");
    if version < LEAST_VERSION {
        println!("SKIPPED: NCCL {version} takes no two ranks on one GPU, {LEAST_VERSION} does");
        return None;
    }
    let told = answer(&mut runner, &evicting(), TOKENS).expect("an answer");
    Some(told.into_iter().map(|(token, _)| token).collect())
}

#[test]
fn two_ranks_answer_as_one() {
    let Some(want) = said_by_one() else { return };
    let mut ranks = Ranks::new();
    let both = [0, 1].map(|rank| ranks.start(rank, 1, false));
    assert!(both.iter().all(|&rank| ranks.wait(rank)), "a rank failed");
    assert_eq!(
        [0, 1].map(|rank| ranks.answer(1, rank)),
        [want.clone(), want]
    );
}

/// A rank dies between two steps. The other hangs in a sum on the GPU, is told, and joins the next
/// epoch with a new one.
#[test]
fn two_ranks_form_anew_after_a_death() {
    let Some(want) = said_by_one() else { return };
    let mut ranks = Ranks::new();
    let (survivor, dying) = (ranks.start(0, 1, false), ranks.start(1, 1, true));
    assert!(!ranks.wait(dying), "it was to die");
    store(ranks.folder.path())
        .set("epoch-1/over", b"")
        .expect("a folder");
    let other = ranks.start(1, 2, false);
    assert!(
        [survivor, other].iter().all(|&rank| ranks.wait(rank)),
        "a rank failed"
    );
    assert_eq!(
        [0, 1].map(|rank| ranks.answer(2, rank)),
        [want.clone(), want]
    );
}

/// Without a GPU too: what processes meet by keeps a store's contract.
#[test]
fn a_folder_is_a_store() {
    let folder = tempfile::tempdir().expect("a folder");
    conformance::run_store(&store(folder.path()));
}
