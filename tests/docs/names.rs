//! What documents name: files that the repository holds, and nothing that a reader cannot open.

use std::path::{Path, PathBuf};
use std::process::Command;

use palimpsest_proto::error::Reason;

use crate::session::repository;

/// Folders of the repository's root that a path in a document may begin with.
const ROOTS: [&str; 23] = [
    "assets",
    "benches",
    "calibrate",
    "collective",
    "coordinator",
    "deploy",
    "docs",
    "engine",
    "eval",
    "examples",
    "guide",
    "hub",
    "kernels",
    "load",
    "models",
    "proto",
    "registry",
    "src",
    "tests",
    "tls",
    "worker",
    "xtask",
    ".ci",
];

#[test]
fn files_that_documents_name_are_there() {
    let mut missing = Vec::new();
    for document in documents() {
        let text = std::fs::read_to_string(&document).expect("text");
        let folder = document.parent().expect("a folder");
        for name in named_files(&text) {
            if !repository().join(&name).exists() && !folder.join(&name).exists() {
                missing.push(format!("{}: {name}", document.display()));
            }
        }
        for target in links(&text) {
            if !folder.join(&target).exists() {
                missing.push(format!("{}: link to {target}", document.display()));
            }
        }
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}

/// An issue is known to those who have the tracker; a reader of the repository has not.
#[test]
fn documents_cite_no_issues() {
    for document in documents() {
        let text = std::fs::read_to_string(&document).expect("text");
        let cites = |word: &str| {
            text.match_indices(word).any(|(at, _)| {
                let rest = text[at + word.len()..].trim_start_matches([' ', '#']);
                rest.starts_with(|c: char| c.is_ascii_digit())
            })
        };
        assert!(!cites("issue "), "{}", document.display());
    }
}

/// A reader who has an error finds its reason, with the status that he saw.
#[test]
fn troubleshooting_has_every_reason() {
    let path = repository().join("docs/src/troubleshooting.md");
    let page = std::fs::read_to_string(path).expect("text");
    for reason in Reason::ALL {
        let row = format!("| `{}` | ", reason.tag());
        let found = page.lines().find(|line| line.starts_with(&row));
        let line = found.unwrap_or_else(|| panic!("{} is not explained", reason.tag()));
        let status = format!(", {} |", reason.class().http());
        assert!(line.contains(&status), "{line}: expected {status}");
    }
}

/// The table of failures names the test that shows each.
#[test]
fn tests_that_the_architecture_names_exist() {
    let page = std::fs::read_to_string(repository().join("ARCHITECTURE.md")).expect("text");
    let is_name = |word: &&str| {
        let letters = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        word.matches('_').count() > 2 && word.chars().all(letters)
    };
    let names: Vec<&str> = page.split('`').skip(1).step_by(2).filter(is_name).collect();
    assert!(names.len() > 15, "{names:?}");
    for name in names {
        let found = Command::new("git")
            .current_dir(repository())
            .args([
                "grep",
                "--quiet",
                "--fixed-strings",
                &format!("fn {name}("),
                "--",
                "*.rs",
            ])
            .status();
        assert!(
            found.expect("git runs").success(),
            "no test is called {name}"
        );
    }
}

/// All Markdown files that git tracks, or would.
fn documents() -> Vec<PathBuf> {
    let listed = Command::new("git")
        .current_dir(repository())
        .args([
            "ls-files",
            "--cached",
            "--others",
            "--exclude-standard",
            "*.md",
        ])
        .output();
    let listed = listed.expect("git runs").stdout;
    let names = String::from_utf8(listed).expect("UTF-8");
    let documents: Vec<PathBuf> = names
        .lines()
        .map(|name| repository().join(name))
        .filter(|path| path.is_file())
        // What changed may name what is gone.
        .filter(|path| !path.ends_with("CHANGELOG.md"))
        .collect();
    assert!(documents.len() > 10, "{documents:?}");
    documents
}

/// Words in backticks that are paths below one of the repository's folders.
fn named_files(text: &str) -> Vec<String> {
    let prose = without_blocks(text);
    let words = prose.split('`').skip(1).step_by(2);
    words
        .filter(|word| {
            let root = word.split('/').next().unwrap_or_default();
            let is_path = word.contains('/')
                && !word.contains(|c: char| c.is_whitespace() || "*{…<".contains(c));
            is_path && ROOTS.contains(&root)
        })
        .map(str::to_owned)
        .collect()
}

/// Targets of relative links, without their anchors.
fn links(text: &str) -> Vec<String> {
    let prose = without_blocks(text);
    let targets = prose.split("](").skip(1);
    targets
        .filter_map(|rest| rest.split_once(')'))
        .map(|(target, _)| target.split('#').next().unwrap_or_default().to_owned())
        .filter(|target| !target.is_empty() && !target.contains("://"))
        .collect()
}

/// The text without its fenced blocks.
fn without_blocks(text: &str) -> String {
    let mut inside = false;
    let prose = text.lines().filter(|line| {
        let fence = line.trim_start().starts_with("```");
        inside ^= fence;
        !fence && !inside
    });
    prose.collect::<Vec<_>>().join("\n")
}

/// The documents themselves are short of nothing that this looks for.
#[test]
fn paths_and_links_are_found_in_prose_alone() {
    let text =
        "See `src/main.rs`, `a/b`, `src/*.rs` and [one](docs/a.md#b).\n```sh\n`src/x`\n```\n";
    assert_eq!(named_files(text), ["src/main.rs"]);
    assert_eq!(links(text), ["docs/a.md"]);
    assert!(Path::new(repository()).join("Cargo.toml").is_file());
}
