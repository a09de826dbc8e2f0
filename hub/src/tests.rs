//! Whole fetches against a stub of a hub.

mod bad;
mod cached;
mod refusals;
mod resume;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::stub::{COMMIT, Repository, Stub, git, sha256};
use crate::{Fetched, Hub, HubError, INDEXER, Patience, Progress, Settings, Token};

/// A hub, and a cache beside it.
struct Bench {
    stub: Stub,
    settings: Settings,
    dir: tempfile::TempDir,
}

impl Bench {
    fn new(repositories: impl IntoIterator<Item = (&'static str, Repository)>) -> Self {
        let stub = Stub::start(repositories);
        let dir = tempfile::tempdir().expect("a directory");
        let settings = Settings {
            endpoint: stub.endpoint(),
            token: None,
            cache: dir.path().join("hub"),
            offline: false,
            patience: Patience {
                attempts: 3,
                first_wait: Duration::from_millis(1),
                longest_wait: Duration::from_secs(2),
                silence: Duration::from_secs(20),
            },
        };
        Self {
            stub,
            settings,
            dir,
        }
    }

    fn with_token(mut self, token: &str) -> Self {
        self.settings.token = Token::new(token);
        self
    }

    fn fetch(&self, name: &str) -> Result<Fetched, HubError> {
        let name = name.parse().expect("a name");
        Hub::new(self.settings.clone()).fetch(&name, &|_: Progress<'_>| {})
    }

    fn refusal(&self, name: &str) -> String {
        match self.fetch(name) {
            Err(error) => error.to_string(),
            Ok(fetched) => panic!("{name}: {fetched:?}"),
        }
    }

    /// A path within the cache.
    fn at(&self, path: &str) -> PathBuf {
        self.dir.path().join("hub").join(path)
    }

    /// Paths of requests since the last call.
    fn asked(&self) -> Vec<String> {
        self.stub.seen().into_iter().map(|seen| seen.path).collect()
    }
}

/// Bytes that differ from each other.
fn bytes(count: usize) -> Vec<u8> {
    (0..count).map(|index| (index * 7 % 251) as u8).collect()
}

fn directory() -> Repository {
    Repository::new()
        .small("README.md", "words")
        .small("config.json", "{}")
        .small("tokenizer.json", "{\"a\": 1}")
        .large("model.safetensors", bytes(1000))
        .large(INDEXER, bytes(50))
}

fn quantised() -> Repository {
    Repository::new()
        .small("README.md", "words")
        .large("X-Q4_K_M.gguf", bytes(2000))
        .large("X-Q8_0.gguf", bytes(3000))
        .large("parts/X-BF16-00001-of-00002.gguf", bytes(700))
        .large("parts/X-BF16-00002-of-00002.gguf", bytes(800))
}

fn read(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn a_directory_comes_in_the_layout_that_others_share() {
    let bench = Bench::new([("org/model", directory())]);
    let fetched = bench.fetch("org/model").expect("a model");
    let snapshot = bench.at(&format!("models--org--model/snapshots/{COMMIT}"));
    assert_eq!(fetched.path, snapshot);
    assert_eq!(fetched.indexer, Some(snapshot.join(INDEXER)));
    assert_eq!(read(&snapshot.join("model.safetensors")), bytes(1000));
    assert!(!snapshot.join("README.md").exists(), "nobody needs it");
    // As huggingface_hub reads it.
    let link = |name: &str| fs::read_link(snapshot.join(name)).expect("a link");
    let large = format!("../../blobs/{}", sha256(&bytes(1000)));
    assert_eq!(link("model.safetensors"), Path::new(&large));
    let small = format!("../../blobs/{}", git(b"{}"));
    assert_eq!(link("config.json"), Path::new(&small));
    let main = bench.at("models--org--model/refs/main");
    assert_eq!(read(&main), COMMIT.as_bytes());
    assert!(bench.at(".locks/models--org--model").is_dir());

    bench.asked();
    assert_eq!(bench.fetch("org/model").expect("a model"), fetched);
    let asked = bench.asked();
    assert_eq!(asked.len(), 1, "only what there is: {asked:?}");
    assert!(asked[0].contains("/revision/main"));
    // A commit never changes.
    let pinned = format!("org/model@{COMMIT}");
    assert_eq!(bench.fetch(&pinned).expect("a model"), fetched);
    assert!(bench.asked().is_empty());
}

#[test]
fn a_tag_names_the_file_and_all_parts_of_it() {
    let bench = Bench::new([("org/x-GGUF", quantised())]);
    let fetched = bench.fetch("org/x-GGUF").expect("a model");
    assert!(fetched.path.ends_with("X-Q4_K_M.gguf"), "{fetched:?}");
    let fetched = bench.fetch("org/x-GGUF:Q8_0").expect("a model");
    assert_eq!(read(&fetched.path), bytes(3000));
    let fetched = bench.fetch("org/x-GGUF:bf16@v1").expect("a model");
    assert!(fetched.path.ends_with("parts/X-BF16-00001-of-00002.gguf"));
    let second = fetched.path.with_file_name("X-BF16-00002-of-00002.gguf");
    assert_eq!(read(&second), bytes(800));
    let link = fs::read_link(&second).expect("a link");
    assert!(link.starts_with("../../../blobs"), "{}", link.display());
    assert_eq!(
        read(&bench.at("models--org--x-GGUF/refs/v1")),
        COMMIT.as_bytes()
    );
}

#[test]
fn the_token_is_shown_to_the_hub_and_to_nobody_else() {
    let bench = Bench::new([("org/model", directory())]).with_token("secret");
    bench.fetch("org/model").expect("a model");
    for seen in bench.stub.seen() {
        let is_elsewhere = seen.path.starts_with("/cdn/");
        let expected = (!is_elsewhere).then(|| "secret".to_owned());
        assert_eq!(seen.token, expected, "{}", seen.path);
    }
}

#[test]
fn progress_counts_the_bytes_of_what_is_missing() {
    let bench = Bench::new([("org/model", directory())]);
    let heard = std::sync::Mutex::new(Vec::new());
    let on_progress = |progress: Progress<'_>| {
        let mut heard = heard.lock().expect("no panic");
        heard.push((progress.file.to_owned(), progress.done, progress.total));
    };
    let name = "org/model".parse().expect("a name");
    let hub = Hub::new(bench.settings.clone());
    hub.fetch(&name, &on_progress).expect("a model");
    let heard = heard.into_inner().expect("no panic");
    let total = 2 + 8 + 1000 + 50;
    assert!(
        heard.iter().all(|(_, done, of)| done <= of && *of == total),
        "{heard:?}"
    );
    assert!(heard.is_sorted_by_key(|(_, done, _)| *done), "{heard:?}");
    assert_eq!(heard.last().map(|(_, done, _)| *done), Some(total));
}

/// The client waits for a runtime of its own.
#[tokio::test]
async fn a_fetch_may_be_called_within_a_runtime() {
    let bench = Bench::new([("org/model", directory())]);
    bench.fetch("org/model").expect("a model");
}
