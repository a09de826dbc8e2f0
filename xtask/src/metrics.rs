//! Code size and `unsafe`, printed on every CI run so that the house rules stay real.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::process::output;
use crate::rust_source::{code_only, find_word, functions, line_of};

/// A file longer than this fails.
const MAX_FILE_LINES: usize = 700;
/// What files should stay under; printed, not enforced.
const TARGET_FILE_LINES: usize = 450;
/// A function longer than this is an exception.
const MAX_FUNCTION_LINES: usize = 70;
/// Share of functions, in percent, that may be exceptions.
const MAX_EXCEPTIONS_PERCENT: usize = 2;
/// Where `unsafe` may stand: SIMD, the thread pool and kernel launches; the memory map of the
/// weights.
const UNSAFE_ALLOWED: &[&str] = &[
    "kernels/",
    "models/src/weights_file.rs",
    "collective/src/gloo.rs",
    "collective/src/nccl/library.rs",
];

/// What breaks the rules in one tree, and the figures behind it.
#[derive(Debug, Default)]
struct Report {
    file_lines: BTreeMap<String, usize>,
    num_functions: usize,
    /// `path:line name (lines)`.
    long_functions: Vec<String>,
    /// `path:line`.
    stray_unsafe: Vec<String>,
}

/// Measures every source file that git tracks or would track, prints the figures, and fails when a
/// rule is broken.
///
/// # Errors
/// When a rule is broken, or git or a file cannot be read.
pub fn check() -> Result<()> {
    println!("==> code size");
    let mut list = Command::new("git");
    list.args([
        "ls-files",
        "--cached",
        "--others",
        "--exclude-standard",
        "--deduplicate",
        "-z",
        "--",
    ]);
    let paths = output(list.args(["*.rs", "*.cu", "*.cuh", "*.py", "*.proto"]))?;
    let mut report = Report::default();
    for path in paths.split('\0').filter(|path| !path.is_empty()) {
        // A file removed from the work tree and not yet from the index.
        let Ok(bytes) = fs::read(path) else { continue };
        let source = String::from_utf8(bytes).with_context(|| format!("{path} is not UTF-8"))?;
        report.add(path, &source);
    }
    print!("{}", report.summary());
    let broken = report.broken_rules();
    ensure!(
        broken.is_empty(),
        "house rules broken:\n{}",
        broken.join("\n")
    );
    Ok(())
}

impl Report {
    fn add(&mut self, path: &str, source: &str) {
        self.file_lines
            .insert(path.to_owned(), source.lines().count());
        if !path.ends_with(".rs") {
            return;
        }
        let code = code_only(source);
        for function in functions(&code) {
            self.num_functions += 1;
            if function.num_lines > MAX_FUNCTION_LINES {
                let (line, name, lines) = (function.line, function.name, function.num_lines);
                self.long_functions
                    .push(format!("{path}:{line} {name} ({lines} lines)"));
            }
        }
        if !UNSAFE_ALLOWED
            .iter()
            .any(|allowed| path.starts_with(allowed))
        {
            self.stray_unsafe.extend(
                find_word(&code, "unsafe").map(|at| format!("{path}:{}", line_of(&code, at))),
            );
        }
    }

    fn summary(&self) -> String {
        let mut lines: Vec<usize> = self.file_lines.values().copied().collect();
        lines.sort_unstable();
        let quantile =
            |percent: usize| lines.get(lines.len() * percent / 100).copied().unwrap_or(0);
        let mut text = format!(
            "    {} files, {} lines; file length: median {}, 90th percentile {}, longest {}\n    \
             {} functions, {} over {MAX_FUNCTION_LINES} lines\n",
            lines.len(),
            lines.iter().sum::<usize>(),
            quantile(50),
            quantile(90),
            lines.last().unwrap_or(&0),
            self.num_functions,
            self.long_functions.len(),
        );
        let over_target = |(_, lines): &(&String, &usize)| **lines > TARGET_FILE_LINES;
        for (path, lines) in self.file_lines.iter().filter(over_target) {
            text += &format!("    over {TARGET_FILE_LINES} lines: {path} ({lines})\n");
        }
        for function in &self.long_functions {
            text += &format!("    long function: {function}\n");
        }
        text
    }

    fn broken_rules(&self) -> Vec<String> {
        let too_long = self
            .file_lines
            .iter()
            .filter(|(_, lines)| **lines > MAX_FILE_LINES);
        let mut broken: Vec<String> = too_long
            .map(|(path, lines)| format!("  {path}: {lines} lines, {MAX_FILE_LINES} at most"))
            .collect();
        if self.long_functions.len() * 100 > self.num_functions * MAX_EXCEPTIONS_PERCENT {
            let (long, all) = (self.long_functions.len(), self.num_functions);
            broken.push(format!(
                "  {long} of {all} functions over {MAX_FUNCTION_LINES} lines, \
                 {MAX_EXCEPTIONS_PERCENT} % at most"
            ));
        }
        broken.extend(self.stray_unsafe.iter().map(|place| {
            format!(
                "  {place}: `unsafe` outside {}; see CONTRIBUTING.md",
                UNSAFE_ALLOWED.join(", ")
            )
        }));
        broken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn function(num_lines: usize) -> String {
        format!("fn f() {{\n{}}}\n", "    g();\n".repeat(num_lines - 2))
    }

    fn broken(files: &[(&str, String)]) -> Vec<String> {
        let mut report = Report::default();
        files
            .iter()
            .for_each(|(path, source)| report.add(path, source));
        report.broken_rules()
    }

    #[test]
    fn files_may_have_700_lines() {
        assert!(broken(&[("a.rs", "\n".repeat(700))]).is_empty());
        assert_eq!(broken(&[("a.py", "\n".repeat(701))]).len(), 1);
    }

    #[test]
    fn two_percent_of_functions_may_have_more_than_70_lines() {
        assert!(broken(&[("a.rs", function(70))]).is_empty());
        assert_eq!(broken(&[("a.rs", function(71))]).len(), 1);
        let short = function(3).repeat(49);
        assert!(broken(&[("a.rs", function(71) + &short)]).is_empty());
        assert_eq!(
            broken(&[("a.rs", function(71) + &short), ("b.rs", function(71))]).len(),
            1
        );
    }

    #[test]
    fn unsafe_stays_where_it_is_allowed() {
        let source = || "#![forbid(unsafe_code)] // unsafe\nfn f() { unsafe { g() } }\n".to_owned();
        assert!(broken(&[("kernels/src/cpu/pool.rs", source())]).is_empty());
        let found = broken(&[("coordinator/src/lib.rs", source())]);
        assert_eq!(found.len(), 1);
        assert!(
            found[0].contains("coordinator/src/lib.rs:2"),
            "{}",
            found[0]
        );
    }
}
