//! The commands of README.md and of the book.

use std::path::Path;
use std::process::{Command, Output};

use crate::block::{Block, INCLUDED, Kind, blocks_of};
use crate::session::{Session, python_packages, repository};

/// What the line above a block of commands begins with that are not run.
const NOT_RUN: &str = "<!-- not run: ";

#[test]
fn the_commands_of_the_readme_run() {
    run("README.md");
}

#[test]
fn the_commands_of_first_steps_run() {
    run("docs/src/first-steps.md");
}

#[test]
fn the_commands_of_concepts_run() {
    run("docs/src/concepts.md");
}

#[test]
fn the_commands_of_the_console_run() {
    run("docs/src/console.md");
}

#[test]
fn the_commands_of_budget_run() {
    run("docs/src/budget.md");
}

#[test]
fn the_commands_of_models_run() {
    run("docs/src/models.md");
}

#[test]
fn the_commands_of_operating_run() {
    run("docs/src/operating.md");
}

#[test]
fn the_commands_of_the_api_run() {
    run("docs/src/api.md");
}

#[test]
fn the_commands_of_reading_once_run() {
    run("docs/src/reuse.md");
}

#[test]
fn the_commands_of_sessions_run() {
    run("docs/src/sessions.md");
}

#[test]
fn the_commands_of_responses_run() {
    run("docs/src/responses.md");
}

#[test]
fn the_commands_of_other_protocols_run() {
    run("docs/src/protocols.md");
}

/// A page with commands that no test above runs would be a page that nobody checks.
#[test]
fn every_page_with_commands_is_run() {
    let this = include_str!("pages.rs");
    for page in pages() {
        let commands =
            |block: &Block| !matches!(block.kind, Kind::Other | Kind::NotRun | Kind::OfClient);
        if blocks_of(&repository().join(&page)).iter().any(commands) {
            assert!(this.contains(&format!("run(\"{page}\")")), "{page}");
        }
    }
}

#[test]
fn blocks_that_are_not_run_say_why() {
    for page in pages() {
        for block in blocks_of(&repository().join(&page)) {
            let excused = block.above.starts_with(NOT_RUN) && block.above.ends_with(" -->");
            assert_eq!(
                block.kind == Kind::NotRun,
                excused,
                "{page}:{}: {}",
                block.line,
                block.above
            );
        }
    }
}

/// The book's tool says nothing of lines that it does not find.
#[test]
fn lines_of_clients_that_pages_show_are_there() {
    let mut found = 0;
    for page in pages() {
        for block in blocks_of(&repository().join(&page)) {
            if block.kind != Kind::OfClient {
                continue;
            }
            let place = format!("{page}:{}", block.line);
            let shown = block.text.trim_end().strip_prefix(INCLUDED);
            let shown = shown.and_then(|shown| shown.strip_suffix("}}"));
            let (path, name) = shown.and_then(|shown| shown.split_once(':')).expect(&place);
            assert!(path.starts_with("tests/clients/"), "{place}: {path}");
            let script = std::fs::read_to_string(repository().join(path)).expect(path);
            for mark in ["ANCHOR", "ANCHOR_END"] {
                let mark = format!("{mark}: {name}");
                let is_mark = |line: &str| line.trim_start_matches(['#', '/', ' ']) == mark;
                let count = script.lines().filter(|line| is_mark(line)).count();
                assert_eq!(count, 1, "{place}: {path} has `{mark}` {count} times");
            }
            found += 1;
        }
    }
    assert!(found > 20, "{found}");
}

#[test]
fn every_page_of_the_book_is_in_its_summary() {
    let summary = std::fs::read_to_string(repository().join("docs/src/SUMMARY.md")).expect("text");
    for page in pages() {
        let name = page.rsplit('/').next().unwrap_or_default();
        if name != "README.md" && name != "SUMMARY.md" {
            assert!(summary.contains(&format!("]({name})")), "{name}");
        }
    }
}

/// README.md and the pages of the book, from the root of the repository.
fn pages() -> Vec<String> {
    let folder = repository().join("docs/src");
    let mut pages = vec!["README.md".to_owned()];
    for entry in std::fs::read_dir(folder).expect("the book") {
        let name = entry.expect("an entry").file_name();
        let name = name.to_string_lossy();
        if name.ends_with(".md") {
            pages.push(format!("docs/src/{name}"));
        }
    }
    pages
}

/// Runs the blocks of a page, each in the state that those before it left.
fn run(page: &str) {
    let Some(model) = std::env::var_os("PALIMPSEST_TEST_MODEL") else {
        eprintln!(
            "SKIPPED: set PALIMPSEST_TEST_MODEL to the default model, or run `cargo xtask test`"
        );
        return;
    };
    if Command::new("curl").arg("--version").output().is_err() {
        eprintln!("SKIPPED: curl is not installed; `cargo xtask test` installs it");
        return;
    }
    let mut session = Session::start();
    // The program finds the model where it was fetched to.
    let cache = Path::new(&model).parent().expect("a folder").display();
    session.set("PALIMPSEST_CACHE", cache.to_string());
    for block in blocks_of(&repository().join(page)) {
        let place = format!("{page}:{}", block.line);
        let of_python = block.kind == Kind::Python || block.text.contains("python3");
        if of_python && python_packages().is_none() {
            eprintln!("SKIPPED {place}: `cargo xtask test` installs the Python packages");
            continue;
        }
        match block.kind {
            Kind::Shell => succeeded(&place, &block, &session.shell(&block.text)),
            Kind::Python => succeeded(&place, &block, &session.python(&block.text)),
            Kind::Server => session.serve(&block.text),
            Kind::OfClient | Kind::NotRun | Kind::Other => {}
        }
    }
}

fn succeeded(place: &str, block: &Block, output: &Output) {
    let printed = String::from_utf8_lossy(&output.stdout);
    let said = String::from_utf8_lossy(&output.stderr);
    println!("{place}\n{}{printed}{said}", block.text);
    assert!(
        output.status.success(),
        "{place}: {}\n{}{printed}{said}",
        output.status,
        block.text
    );
}
