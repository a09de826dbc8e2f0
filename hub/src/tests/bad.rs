//! What a hub may send instead of a model.

use super::*;
use crate::stub::Fault;

#[test]
fn other_content_than_was_promised_is_not_kept() {
    let bench = Bench::new([("org/model", directory())]);
    bench.stub.plan("/cdn/", Fault::Lie, 1);
    let said = bench.refusal("org/model");
    assert!(
        said.contains("checksum mismatch in `model.safetensors`"),
        "{said}"
    );
    assert!(said.contains(&sha256(&bytes(1000))), "{said}");
    assert!(!bench.at("models--org--model/snapshots").exists());
    let blobs = std::fs::read_dir(bench.at("models--org--model/blobs")).expect("a directory");
    for blob in blobs {
        let name = blob
            .expect("an entry")
            .file_name()
            .into_string()
            .expect("UTF-8");
        assert!([git(b"{}"), git(b"{\"a\": 1}")].contains(&name), "{name}");
    }
    bench.fetch("org/model").expect("the next time it is true");
    // Small files are compared as well.
    let bench = Bench::new([("org/model", directory())]);
    bench.stub.plan("config.json", Fault::Lie, 1);
    let said = bench.refusal("org/model");
    assert!(
        said.contains("checksum mismatch in `config.json`"),
        "{said}"
    );
}

#[test]
fn more_bytes_than_were_promised_are_not_kept() {
    let bench = Bench::new([("org/model", directory())]);
    bench.stub.plan("model.safetensors?", Fault::Longer, 1);
    let said = bench.refusal("org/model");
    assert!(
        said.contains("`model.safetensors` is longer than the 1000 bytes"),
        "{said}"
    );
}

#[test]
fn a_model_that_has_no_room_is_not_begun() {
    let huge = Repository::new().claiming("x.gguf", 1 << 60);
    let bench = Bench::new([("org/x", huge)]);
    let said = bench.refusal("org/x");
    assert!(
        said.contains("not enough space in") && said.contains("HF_HUB_CACHE"),
        "{said}"
    );
    assert_eq!(bench.asked().len(), 1, "no byte of it was asked for");
}

#[test]
fn a_repository_without_a_usable_file_says_what_it_has() {
    let pickled = Repository::new()
        .small("README.md", "")
        .large("pytorch_model.bin", bytes(9));
    let half = Repository::new().large("x-00001-of-00002.gguf", bytes(9));
    let bare = Repository::new()
        .small("config.json", "{}")
        .large("model.safetensors", bytes(9));
    let bench = Bench::new([
        ("org/pickled", pickled),
        ("org/half", half),
        ("org/bare", bare),
        ("org/x-GGUF", quantised()),
    ]);
    for (name, expected) in [
        ("org/pickled", "it has README.md, pytorch_model.bin"),
        ("org/half", "part 2 of 2 of `x` is missing"),
        ("org/bare", "no tokenizer.json"),
        ("org/x-GGUF:Q4_K_N", "did you mean `Q4_K_M`?"),
    ] {
        let said = bench.refusal(name);
        assert!(said.contains(expected), "{name}: {said}");
        assert!(said.contains("org/"), "{said}");
    }
    assert!(
        bench.asked().iter().all(|path| path.starts_with("/api/")),
        "nothing was fetched"
    );
}

#[test]
fn redirects_end() {
    let bench = Bench::new([("org/model", directory())]);
    bench.stub.plan("/resolve/", Fault::Loop, 100);
    let said = bench.refusal("org/model");
    assert!(said.contains("sent on from 127.0.0.1"), "{said}");
}

#[test]
fn an_address_that_is_none_is_refused_by_the_name_of_its_variable() {
    let mut bench = Bench::new([]);
    for endpoint in ["", "hub", "ftp://hub", "http://"] {
        bench.settings.endpoint = endpoint.to_owned();
        let said = bench.refusal("org/model");
        assert!(said.contains("HF_ENDPOINT"), "{endpoint}: {said}");
    }
}
