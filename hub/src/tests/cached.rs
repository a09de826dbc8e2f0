//! What the cache has, where a hub cannot be asked.

use std::fs;

use super::*;
use crate::cached;
use crate::snapshot_root;
use crate::stub::Fault;

#[test]
fn without_a_network_the_cache_answers() {
    let mut bench = Bench::new([("org/model", directory()), ("org/x-GGUF", quantised())]);
    let fetched = bench.fetch("org/model").expect("a model");
    bench.fetch("org/x-GGUF:Q8_0").expect("a model");
    // Nobody listens at this port of its own.
    bench.settings.endpoint = "http://127.0.0.1:1".to_owned();
    assert_eq!(bench.fetch("org/model").expect("from the cache"), fetched);
    let said = bench.refusal("org/modle");
    assert!(said.contains("check the network"), "{said}");
    assert!(said.contains("did you mean org/model?"), "{said}");
    assert!(
        said.contains("the cache has org/model, org/x-GGUF:Q8_0"),
        "{said}"
    );
    bench.settings.offline = true;
    bench.settings.endpoint = "no address at all".to_owned();
    assert_eq!(bench.fetch("org/model").expect("from the cache"), fetched);
    let said = bench.refusal("org/x-GGUF:Q4_K_M");
    assert!(
        said.contains("HF_HUB_OFFLINE is set, and `org/x-GGUF:Q4_K_M`"),
        "{said}"
    );
}

#[test]
fn a_hub_that_fails_is_as_silent_as_none() {
    let bench = Bench::new([("org/model", directory())]);
    let fetched = bench.fetch("org/model").expect("a model");
    for status in [429, 500, 503] {
        bench.stub.plan("/api/", Fault::Status(status, 0), 2);
        assert_eq!(bench.fetch("org/model").expect("from the cache"), fetched);
    }
    // What it says is another matter.
    bench.stub.plan("/api/", Fault::Status(404, 0), 9);
    bench.refusal("org/model");
}

#[test]
fn half_a_model_is_none() {
    let mut bench = Bench::new([("org/model", directory())]);
    let fetched = bench.fetch("org/model").expect("a model");
    fs::remove_file(fetched.path.join("model.safetensors")).expect("a link");
    bench.settings.offline = true;
    let said = bench.refusal("org/model");
    assert!(said.contains("is not whole in"), "{said}");
    // A link whose content somebody has cleaned away is no file.
    let mut bench = Bench::new([("org/model", directory())]);
    bench.fetch("org/model").expect("a model");
    let blob = format!("models--org--model/blobs/{}", sha256(&bytes(1000)));
    fs::remove_file(bench.at(&blob)).expect("a blob");
    bench.settings.offline = true;
    bench.refusal("org/model");
}

#[test]
fn the_cache_is_listed_with_names_that_bring_each_model() {
    let bench = Bench::new([("org/model", directory()), ("org/x-GGUF", quantised())]);
    assert!(cached(&bench.settings.cache).is_empty());
    bench.fetch("org/model").expect("a model");
    bench.fetch("org/x-GGUF:Q8_0").expect("a model");
    bench.fetch("org/x-GGUF:BF16").expect("a model");
    fs::create_dir_all(bench.at("models--broken/snapshots/x")).expect("a directory");
    let listed = cached(&bench.settings.cache);
    let shown: Vec<_> = listed
        .iter()
        .map(|it| (it.name.as_str(), it.bytes))
        .collect();
    assert_eq!(
        shown,
        [
            ("org/model", 2 + 8 + 1000 + 50),
            ("org/x-GGUF:BF16", 1500),
            ("org/x-GGUF:Q8_0", 3000),
        ]
    );
    for model in listed {
        assert_eq!(bench.fetch(&model.name).expect("a model").path, model.path);
        let root = bench.at("").join("");
        let of = snapshot_root(&model.path).expect("a snapshot");
        assert!(
            of.starts_with(root) && of.ends_with(COMMIT),
            "{}",
            of.display()
        );
    }
}

/// A cache that huggingface_hub has filled.
#[test]
fn what_another_program_has_fetched_is_found() {
    let bench = Bench::new([("org/x", Repository::new().large("x.gguf", bytes(100)))]);
    let folder = bench.at("models--org--x");
    let snapshot = folder.join("snapshots").join(COMMIT);
    for directory in [&folder.join("refs"), &folder.join("blobs"), &snapshot] {
        fs::create_dir_all(directory).expect("a directory");
    }
    let blob = sha256(&bytes(100));
    fs::write(folder.join("refs/main"), COMMIT).expect("a file");
    fs::write(folder.join("blobs").join(&blob), bytes(100)).expect("a file");
    let target = format!("../../blobs/{blob}");
    std::os::unix::fs::symlink(target, snapshot.join("x.gguf")).expect("a link");
    let fetched = bench.fetch("org/x").expect("a model");
    assert_eq!(read(&fetched.path), bytes(100));
    assert_eq!(bench.asked().len(), 1, "no byte of it was fetched again");
}
