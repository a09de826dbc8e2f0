//! The tables of EVALUATION.md are what the records beside it give.
//!
//! A block between `<!-- eval report DIR: begin -->` and `<!-- eval report: end -->` is the output
//! of `palimpsest eval report DIR`. `UPDATE_TABLES=1` writes the blocks anew.

use std::fs;
use std::path::{Path, PathBuf};

use palimpsest_eval::report::{Detail, markdown};

const BEGIN: &str = "<!-- eval report ";
const BEGUN: &str = ": begin -->\n";
const END: &str = "<!-- eval report: end -->";

/// A page whose blocks are made anew, and how many there are.
fn remade(page: &str, root: &Path) -> (String, usize) {
    let mut blocks = page.split(BEGIN);
    let mut made = blocks.next().unwrap_or_default().to_owned();
    let mut count = 0;
    for block in blocks {
        let (folder, rest) = block.split_once(BEGUN).expect("a block names its folder");
        let (_, after) = rest
            .split_once(END)
            .unwrap_or_else(|| panic!("{folder} has no end"));
        let table = markdown(&[root.join(folder)], Detail::Means).expect("a run");
        made += &format!("{BEGIN}{folder}{BEGUN}\n{}\n\n{END}{after}", table.trim());
        count += 1;
    }
    (made, count)
}

#[test]
fn the_tables_of_the_page_are_those_of_its_records() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    let path = root.join("EVALUATION.md");
    let page = fs::read_to_string(&path).expect("the page");
    let (made, count) = remade(&page, &root);
    assert!(count > 0, "no table of the page is made of records");
    if std::env::var_os("UPDATE_TABLES").is_some() {
        fs::write(&path, &made).expect("the page can be written");
    } else {
        let message = "EVALUATION.md differs from its records: run this test with UPDATE_TABLES=1";
        assert!(made == page, "{message}");
    }
}
