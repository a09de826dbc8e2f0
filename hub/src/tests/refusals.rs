//! What a hub refuses, told apart.

use super::*;
use crate::stub::{Door, Fault};

fn doors() -> Bench {
    Bench::new([
        ("org/gated", directory().behind(Door::Gated("member"))),
        ("org/hidden", directory().behind(Door::Private("owner"))),
        ("org/model-large", directory()),
    ])
}

#[test]
fn a_gated_repository_is_told_from_one_that_is_missing() {
    let bench = doors();
    let gated = bench.refusal("org/gated");
    assert!(
        gated.contains("accept its terms at http://127.0.0.1"),
        "{gated}"
    );
    assert!(
        gated.contains("set HF_TOKEN to a token of that account"),
        "{gated}"
    );
    let missing = bench.refusal("org/nothing-like-it");
    assert!(
        missing.contains("has no model `org/nothing-like-it` that everybody"),
        "{missing}"
    );
    assert!(
        missing.contains("set HF_TOKEN if it is a private one"),
        "{missing}"
    );
    let hidden = bench.refusal("org/hidden");
    assert!(
        hidden.contains("has no model `org/hidden`"),
        "a stranger is not told: {hidden}"
    );

    let stranger = doors().with_token("stranger");
    let gated = stranger.refusal("org/gated");
    assert!(gated.contains("with the account of this token"), "{gated}");
    let missing = stranger.refusal("org/nothing-like-it");
    assert!(missing.contains("that this token may see"), "{missing}");
    assert!(!missing.contains("HF_TOKEN"), "{missing}");

    doors()
        .with_token("member")
        .fetch("org/gated")
        .expect("let in");
    doors()
        .with_token("owner")
        .fetch("org/hidden")
        .expect("let in");
}

#[test]
fn a_typing_error_is_answered_with_the_nearest_names() {
    let bench = doors();
    let said = bench.refusal("org/model-lagre");
    assert!(said.contains("did you mean org/model-large?"), "{said}");
    let said = bench.refusal("ogr/model-large:Q4_K_M");
    assert!(said.contains("did you mean org/model-large?"), "{said}");
    // A hub that does not say what it has is no worse than that.
    bench.stub.plan("author=", Fault::Status(500, 0), 9);
    bench.stub.plan("search=", Fault::Status(404, 0), 9);
    let said = bench.refusal("org/model-lagre");
    assert!(
        said.contains("that everybody may see; check the name"),
        "{said}"
    );
}

#[test]
fn revisions_that_are_not_there_are_named() {
    let said = doors().refusal("org/model-large@v9");
    assert!(
        said.contains("`org/model-large` has no revision `v9`"),
        "{said}"
    );
    doors().fetch("org/model-large@refs/pr/1").expect("a model");
}

#[test]
fn a_hub_that_takes_no_more_requests_is_left_alone() {
    let bench = doors();
    bench.stub.plan("/api/", Fault::Status(429, 3600), 1);
    let said = bench.refusal("org/model-large");
    assert!(
        said.contains("takes no more requests from here for now (3600 s)"),
        "{said}"
    );
    assert!(said.contains("the cache has no model"), "{said}");
    assert_eq!(bench.asked().len(), 1, "nobody waits for an hour unasked");
    bench.stub.plan("/api/", Fault::Status(429, 0), 9);
    let said = bench.refusal("org/model-large");
    assert!(said.contains("HF_TOKEN, which is allowed more"), "{said}");
    assert_eq!(bench.asked().len(), 3, "as many attempts as there may be");
}

#[test]
fn other_refusals_name_their_status() {
    let bench = doors();
    bench.stub.plan("/api/", Fault::Status(418, 0), 1);
    let said = bench.refusal("org/model-large");
    assert!(said.contains("418"), "{said}");
    bench.stub.plan("/api/", Fault::Lie, 1);
    let said = bench.refusal("org/model-large");
    assert!(said.contains("its list of files cannot be read"), "{said}");
}
