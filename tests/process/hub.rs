//! Models by name, from a hub on loopback.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use palimpsest_hub::stub::{Door, Fault, Repository, Stub};
use palimpsest_hub::{INDEXER, cached};
use palimpsest_models::{DigestCache, Model};
use palimpsest_tests::{tiny_indexer, tiny_model};
use tempfile::TempDir;

use crate::serving::Serving;

const NAME: &str = "org/tiny";

/// A hub with the tiny model, and a home of whoever asks it.
struct Bench {
    stub: Stub,
    home: TempDir,
}

impl Bench {
    fn new(repositories: impl IntoIterator<Item = (&'static str, Repository)>) -> Self {
        Self {
            stub: Stub::start(repositories),
            home: tempfile::tempdir().expect("a directory"),
        }
    }

    fn variables(&self) -> Vec<(&'static str, String)> {
        let home = self.home.path().display();
        vec![
            ("HF_ENDPOINT", self.stub.endpoint()),
            ("HF_HOME", format!("{home}/hf")),
            ("PALIMPSEST_CACHE", format!("{home}/own")),
        ]
    }

    fn run(&self, args: &[&str], more: &[(&str, &str)]) -> Output {
        Command::new("timeout")
            .args(["60", env!("CARGO_BIN_EXE_palimpsest")])
            .args(args)
            .envs(self.variables())
            .envs(more.iter().copied())
            .stdin(Stdio::null())
            .output()
            .expect("the program runs")
    }

    fn serve(&self, more: &[(&str, &str)], args: &[&str]) -> Serving {
        let own = self.variables();
        let own = own.iter().map(|(name, value)| (*name, value.as_str()));
        let env: Vec<_> = own.chain(more.iter().copied()).collect();
        Serving::start_over(Path::new(NAME), &env, args)
    }
}

/// The tiny model as a repository has it.
fn tiny(model: &TempDir) -> Repository {
    let read = |name: &str| std::fs::read(model.path().join(name)).expect("a file");
    Repository::new()
        .small("README.md", "words")
        .small("config.json", read("config.json"))
        .small("tokenizer.json", read("tokenizer.json"))
        .small("tokenizer_config.json", read("tokenizer_config.json"))
        .large("model.safetensors", read("model.safetensors"))
}

/// With an indexer that was trained for it.
fn with_indexer(model: &TempDir) -> Repository {
    let opened = Model::open(model.path()).expect("a model");
    let weights = opened.weights().identity(&DigestCache::nowhere());
    let mut indexer = tiny_indexer(1);
    let weights = weights.expect("files").to_string();
    indexer.metadata.insert("weights".into(), weights);
    tiny(model).large(INDEXER, indexer.to_bytes().expect("an indexer"))
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_model_is_served_by_its_name_with_the_indexer_of_its_repository() {
    let model = tiny_model(1);
    let bench = Bench::new([(NAME, with_indexer(&model))]);
    bench.stub.plan("/cdn/", Fault::BreakOff(1000), 2);
    let serving = bench.serve(&[], &[]);
    let body = r#"{"model": "org/tiny", "prompt": "a", "max_tokens": 2}"#;
    let kind = "content-type: application/json\r\n";
    let answer = serving.send("POST", "/v1/completions", kind, body);
    assert!(answer.contains("200 OK"), "{answer}");
    let listed = serving.send("GET", "/v1/models/org/tiny", "", "");
    assert!(
        listed.contains("200 OK") && listed.contains("org/tiny"),
        "{listed}"
    );
    let log = serving.stop();
    assert!(log.contains("policy retention (learned)"), "{log}");
    assert!(log.contains("downloading model.safetensors: "), "{log}");
    assert!(log.contains("a download broke off and goes on"), "{log}");

    // The next start asks for nothing but the list, and without a network for nothing at all.
    bench.stub.seen();
    let log = bench.serve(&[], &[]).stop();
    assert!(!log.contains("downloading"), "{log}");
    assert_eq!(bench.stub.seen().len(), 1);
    bench.serve(&[("HF_HUB_OFFLINE", "1")], &[]).stop();
    assert!(bench.stub.seen().is_empty());
    let log = bench
        .serve(&[("HF_ENDPOINT", "http://127.0.0.1:1")], &[])
        .stop();
    assert!(
        log.contains("taking what the cache has of `org/tiny`"),
        "{log}"
    );
}

#[test]
fn without_an_indexer_the_log_says_so_and_what_serves_in_its_place() {
    let model = tiny_model(1);
    let bench = Bench::new([(NAME, tiny(&model))]);
    let log = bench.serve(&[], &[]).stop();
    assert!(
        log.contains("no indexer was found for these weights"),
        "{log}"
    );
    assert!(
        log.contains("palimpsest calibrate --fast --model org/tiny"),
        "{log}"
    );
    assert!(log.contains("policy keydiff (untrained)"), "{log}");
    let log = bench.serve(&[], &["--policy", "retention"]).stop();
    assert!(
        log.contains("the policy `retention` needs an indexer"),
        "{log}"
    );
    assert!(log.contains("policy keydiff (untrained)"), "{log}");
    let log = bench.serve(&[], &["--policy", "window"]).stop();
    assert!(!log.contains("indexer"), "nobody misses it: {log}");
    // One of other weights is named and left alone.
    let other = bench.run(&["pull", NAME], &[]);
    let snapshot = String::from_utf8(other.stdout).expect("UTF-8");
    let mut indexer = tiny_indexer(1);
    indexer.metadata.insert("weights".into(), "0".repeat(32));
    let at = Path::new(snapshot.trim()).join(INDEXER);
    std::fs::write(at, indexer.to_bytes().expect("an indexer")).expect("a file");
    let log = bench.serve(&[], &[]).stop();
    assert!(log.contains("it was trained for other weights"), "{log}");
    assert!(log.contains("policy keydiff (untrained)"), "{log}");
}

#[test]
fn an_indexer_is_fitted_at_the_first_start_and_found_at_the_next() {
    let model = tiny_model(1);
    let bench = Bench::new([(NAME, tiny(&model))]);
    let log = bench.serve(&[], &["--calibrate"]).stop();
    assert!(log.contains("the indexer is kept in"), "{log}");
    assert!(log.contains("fitting scorers: "), "{log}");
    assert!(log.contains("policy retention (learned)"), "{log}");
    let kept = std::fs::read_dir(bench.home.path().join("own/indexers")).expect("a folder");
    assert_eq!(kept.count(), 1, "the indexer alone");
    for args in [&["--calibrate"][..], &[]] {
        let log = bench.serve(&[], args).stop();
        assert!(!log.contains("fitting"), "{log}");
        assert!(log.contains("policy retention (learned)"), "{log}");
    }
}

#[test]
fn a_pull_prints_the_path_alone_and_its_progress_as_lines() {
    let model = tiny_model(1);
    let bench = Bench::new([(NAME, tiny(&model))]);
    let output = bench.run(&["pull", NAME], &[]);
    let path = String::from_utf8(output.stdout.clone()).expect("UTF-8");
    assert!(
        Path::new(path.trim()).join("config.json").is_file(),
        "{path}"
    );
    assert!(
        said(&output).contains("downloading model.safetensors: "),
        "{}",
        said(&output)
    );
    assert!(!said(&output).contains('\x1b'), "{}", said(&output));

    let output = bench.run(&["pull", "--list"], &[]);
    let list = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(
        list.contains("org/tiny") && list.contains(path.trim()),
        "{list}"
    );
    assert!(list.contains("not here yet"), "the default model: {list}");
    let output = bench.run(&["pull", "--list", "--json"], &[]);
    let list: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(list[1]["name"], "org/tiny");
    assert_eq!(cached(&bench.home.path().join("hf/hub")).len(), 1);
}

#[test]
fn what_cannot_be_fetched_is_told_apart() {
    let model = tiny_model(1);
    let bench = Bench::new([
        (NAME, tiny(&model)),
        ("org/gated", tiny(&model).behind(Door::Gated("member"))),
        ("org/words", Repository::new().small("README.md", "words")),
    ]);
    for (name, expected) in [
        ("org/tyni", "did you mean org/tiny?"),
        ("org/gated", "accept its terms at"),
        ("org/words", "it has README.md"),
        ("org/tiny@v9", "no revision `v9`"),
        ("org/tiny:Q4_K_M", "it has no GGUF file"),
        ("a/b/c", "owner/name"),
        ("/nope/x.gguf", "no file or directory /nope/x.gguf"),
        ("SmolLM2", "did you mean SmolLM2-135M-Instruct?"),
    ] {
        let output = bench.run(&["pull", name], &[]);
        assert_eq!(output.status.code(), Some(1), "{name}: {}", said(&output));
        assert!(
            said(&output).contains(expected),
            "{name}: {}",
            said(&output)
        );
        assert!(output.stdout.is_empty(), "{name}");
    }
    let output = bench.run(&["pull", "org/gated"], &[("HF_TOKEN", "member")]);
    assert!(output.status.success(), "{}", said(&output));
    let output = bench.run(&["pull", "org/tiny"], &[("HF_HUB_OFFLINE", "1")]);
    assert!(
        said(&output).contains("the cache has org/gated"),
        "{}",
        said(&output)
    );
}
