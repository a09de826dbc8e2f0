//! The blocks of code of a page, and what is to be done with each.

use std::path::Path;

/// What is done with a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Run by the shell.
    Shell,
    /// Run by the shell, which is left running: its last command is a server.
    Server,
    /// Run by Python.
    Python,
    /// Lines of a script of `tests/clients`, which `cargo xtask clients` runs.
    OfClient,
    /// Commands that are not run.
    NotRun,
    /// No commands.
    Other,
}

/// How a block of the book begins that shows lines of a file: its path, a colon, and the name of
/// the lines.
pub const INCLUDED: &str = "{{#include ../../";

/// A fenced block of a page.
#[derive(Debug, Clone)]
pub struct Block {
    /// What is done with it.
    pub kind: Kind,
    /// What stands between the fences.
    pub text: String,
    /// The line above the block.
    pub above: String,
    /// Number of its first line, from 1.
    pub line: usize,
}

/// All blocks of the page at `path`, in order.
///
/// # Panics
/// When the page cannot be read, or a fence is not closed.
pub fn blocks_of(path: &Path) -> Vec<Block> {
    let page = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut blocks = Vec::new();
    let mut above = "";
    let mut lines = page.lines().enumerate();
    while let Some((number, line)) = lines.next() {
        let Some(language) = line.strip_prefix("```") else {
            above = line;
            continue;
        };
        let mut text = String::new();
        loop {
            let (_, line) = lines.next().unwrap_or_else(|| {
                panic!("{}:{}: the fence is not closed", path.display(), number + 1)
            });
            if line == "```" {
                break;
            }
            text.push_str(line);
            text.push('\n');
        }
        blocks.push(Block {
            kind: kind(language, &text),
            text,
            above: above.to_owned(),
            line: number + 2,
        });
        above = "";
    }
    blocks
}

fn kind(language: &str, text: &str) -> Kind {
    if text.starts_with(INCLUDED) {
        return Kind::OfClient;
    }
    match language {
        "sh" if ends_with_a_server(text) => Kind::Server,
        "sh" => Kind::Shell,
        "python" => Kind::Python,
        "console" => Kind::NotRun,
        _ => Kind::Other,
    }
}

/// Whether the last command serves until it is ended.
fn ends_with_a_server(text: &str) -> bool {
    let last = text.lines().last().unwrap_or_default();
    let serves = ["palimpsest serve", "palimpsest coordinator"]
        .iter()
        .any(|command| last.starts_with(command));
    serves && !last.contains("--help")
}
