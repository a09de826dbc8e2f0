//! The figures of EVALUATION.md are those of the raw records beside it.

use std::path::Path;

use palimpsest_eval::report::{self, Detail};

/// The text between `<!-- NAME: begin -->` and `<!-- NAME: end -->`.
fn block<'a>(document: &'a str, name: &str) -> &'a str {
    let after = document
        .split_once(&format!("<!-- {name}: begin -->\n"))
        .expect("the block begins")
        .1;
    after
        .split_once(&format!("<!-- {name}: end -->"))
        .expect("the block ends")
        .0
}

#[test]
fn the_headline_is_printed_from_its_records() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let document = std::fs::read_to_string(root.join("EVALUATION.md")).expect("it is there");
    let runs = [root.join("eval/results/headline")];
    let printed = report::markdown(&runs, Detail::Means).expect("the records are sound");
    assert_eq!(
        block(&document, "headline").trim(),
        printed.trim(),
        "print it again: palimpsest eval report eval/results/headline"
    );
}
