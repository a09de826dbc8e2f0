//! The page that is made of runs on disk: two directories with the same questions under two seeds,
//! one of which has prose as well.

use std::path::PathBuf;

use palimpsest_eval::report::{Detail, markdown};

fn runs(names: &[&str]) -> Vec<PathBuf> {
    let fixtures = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    names.iter().map(|name| fixtures.join(name)).collect()
}

/// The row of a table that begins so.
fn row<'t>(table: &'t str, begins: &str) -> &'t str {
    let mut rows = table.lines().filter(|line| line.starts_with(begins));
    let found = rows.next();
    found.unwrap_or_else(|| panic!("no row {begins} in\n{table}"))
}

#[test]
fn runs_with_the_same_tasks_are_one_table_with_counts_and_intervals() {
    let page = markdown(&runs(&["first", "second"]), Detail::Means).expect("two runs");
    let both = page.split("### ").nth(1).expect("a table");
    assert!(both.starts_with("Mean over single_2, multikey_1: 2048 tokens, agnostic\n"));
    // Ten samples, although one of the full cache's is in both directories.
    let full = row(both, "| full | all | 10 |");
    assert!(full.contains("| 0 | 100 | 0 | 100.0 % |"), "{full}");

    // Tasks weigh alike: (3/5 + 3.25/5) / 2 against (4/5 + 3.75/5) / 2.
    let retention = row(both, "| retention/column | 25 % | 10 |");
    let cells: Vec<&str> = retention.split('|').map(str::trim).collect();
    assert!(cells[4].starts_with("62 ["), "{retention}");
    assert!(cells[5].starts_with("-15 [-"), "{retention}");
    assert!(cells[6].starts_with("81 ["), "{retention}");
    assert_eq!(cells[7], "-0.05 [-0.05, -0.05]");
    assert_eq!(cells[8], "25.0 %");
}

#[test]
fn a_cache_that_lacks_a_task_stands_beside_the_full_cache_on_the_others() {
    let page = markdown(&runs(&["first"]), Detail::Means).expect("a run");
    assert_eq!(page.matches("### ").count(), 2);
    let alone = page.split("### ").nth(2).expect("a second table");
    assert!(
        alone.starts_with("Mean over single_2: 2048 tokens"),
        "{alone}"
    );
    row(alone, "| full | all | 3 |");
    let keydiff = row(alone, "| keydiff | 25 % | 3 |");
    assert!(keydiff.contains("| 0 [0, 0] | -67 ["), "{keydiff}");
}

#[test]
fn prose_is_compared_window_by_window() {
    let page = markdown(&runs(&["second"]), Detail::Means).expect("a run");
    let prose = page.split("### Next-token loss").nth(1).expect("a table");
    row(prose, "| cache | budget | n | 0-256 | 256-512 |");
    assert_eq!(row(prose, "| full"), "| full | all | 3 | 3.000 | 3.200 |");
    // 0.1, 0.2 and 0.3 above: Student's t of two degrees of freedom, 4.303, times 0.0577.
    assert_eq!(
        row(prose, "| window"),
        "| window | 128 entries | 3 | +0.000 [+0.000, +0.000] | +0.200 [-0.048, +0.448] |"
    );
}

#[test]
fn tasks_are_shown_by_themselves_when_asked_for() {
    let page = markdown(&runs(&["first"]), Detail::ByTask).expect("a run");
    assert!(page.contains("### multikey_1 2048, agnostic\n"), "{page}");
    assert!(row(&page, "| keydiff |").contains("0 ["));
}

#[test]
fn a_directory_without_a_run_is_named() {
    let error = markdown(&runs(&["first", "none"]), Detail::Means).expect_err("no such run");
    assert!(error.to_string().contains("none holds no run"), "{error}");
}
