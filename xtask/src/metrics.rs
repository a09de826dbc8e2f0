//! Sizes of the code and of its texts, printed on every CI run so that the house rules stay real.

mod columns;
mod rules;

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use rules::{
    FOREIGN_SIGNATURES, MAX_ARGUMENTS, MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_TUPLE,
    MAX_USUAL_FILE_LINES, Rule, UNSAFE_ALLOWED,
};

use crate::process::output;
use crate::rust_source::{code_only, find_word, functions, line_of, signatures};

/// Places shown for each rule.
const MAX_SHOWN: usize = 30;

/// What breaks the rules in one tree, and the figures behind it.
#[derive(Debug, Default)]
struct Report {
    /// Lines of each source file.
    file_lines: BTreeMap<String, usize>,
    num_functions: usize,
    /// Where each rule is broken.
    findings: BTreeMap<Rule, Vec<String>>,
}

/// Measures every source file and Markdown text that git tracks or would track, prints the figures,
/// and fails when a rule is broken.
///
/// # Errors
/// When a rule is broken, or git or a file cannot be read.
pub fn check() -> Result<()> {
    println!("==> house rules");
    let mut list = Command::new("git");
    list.args(["ls-files", "--cached", "--others", "--exclude-standard"]);
    list.args(["--deduplicate", "-z", "--"]);
    let paths = output(list.args([
        "*.rs", "*.cu", "*.cuh", "*.cpp", "*.cc", "*.h", "*.py", "*.proto", "*.md",
    ]))?;
    let mut report = Report::default();
    for path in paths.split('\0').filter(|path| !path.is_empty()) {
        // A file removed from the work tree and not yet from the index.
        let Ok(bytes) = fs::read(path) else { continue };
        let source = String::from_utf8(bytes).with_context(|| format!("{path} is not UTF-8"))?;
        report.add(path, &source);
    }
    report.measure_usual_length();
    print!("{}", report.summary());
    let broken = report.broken_rules();
    ensure!(
        broken.is_empty(),
        "house rules broken, see CONTRIBUTING.md:\n{}",
        broken.join("\n")
    );
    Ok(())
}

impl Report {
    fn add(&mut self, path: &str, source: &str) {
        if path.ends_with(".md") {
            for line in columns::wide_prose(source) {
                self.found(Rule::WideText, format!("{path}:{line}"));
            }
            return;
        }
        let lines = source.lines().count();
        self.file_lines.insert(path.to_owned(), lines);
        if lines > MAX_FILE_LINES {
            self.found(Rule::LongFile, format!("{path} ({lines} lines)"));
        }
        if !path.ends_with(".rs") {
            for line in columns::wide_lines(source) {
                self.found(Rule::WideForeignLine, format!("{path}:{line}"));
            }
            return;
        }
        for line in columns::wide_code(source) {
            self.found(Rule::WideLine, format!("{path}:{line}"));
        }
        self.add_name(path);
        self.add_code(path, &code_only(source));
    }

    /// `foo.rs` with its folder `foo/`; its tests, when they stand apart, are `foo/tests.rs`.
    fn add_name(&mut self, path: &str) {
        let name = path.rsplit('/').next().unwrap_or(path);
        // A folder of tests that cargo builds is a program of its own: `tests/cluster/main.rs`.
        if name == "mod.rs" || name.ends_with("_tests.rs") || name.ends_with("_test.rs") {
            self.found(Rule::FileName, path.to_owned());
        }
    }

    fn add_code(&mut self, path: &str, code: &str) {
        for function in functions(code) {
            self.num_functions += 1;
            if function.num_lines > MAX_FUNCTION_LINES {
                let (line, name, lines) = (function.line, function.name, function.num_lines);
                let place = format!("{path}:{line} {name} ({lines} lines)");
                self.found(Rule::LongFunction, place);
            }
        }
        for signature in signatures(code) {
            let place = format!("{path}:{} {}", signature.line, signature.name);
            let is_foreign = FOREIGN_SIGNATURES.contains(&path);
            if signature.arguments.len() > MAX_ARGUMENTS && !is_foreign {
                let count = signature.arguments.len();
                self.found(Rule::ManyArguments, format!("{place} ({count})"));
            }
            if signature.longest_tuple() > MAX_TUPLE {
                self.found(Rule::LongTuple, place);
            }
        }
        let may_be_unsafe = |allowed: &&str| path.starts_with(*allowed);
        if !UNSAFE_ALLOWED.iter().any(may_be_unsafe) {
            for at in find_word(code, "unsafe") {
                let place = format!("{path}:{}", line_of(code, at));
                self.found(Rule::StrayUnsafe, place);
            }
        }
    }

    /// The 90th percentile of file lengths is known when all files are.
    fn measure_usual_length(&mut self) {
        let usual = self.quantile(90);
        if usual > MAX_USUAL_FILE_LINES {
            self.found(Rule::UsualLength, format!("{usual} lines"));
        }
    }

    fn found(&mut self, rule: Rule, place: String) {
        self.findings.entry(rule).or_default().push(place);
    }

    /// Lines that `percent` of the files do not exceed.
    fn quantile(&self, percent: usize) -> usize {
        let mut lines: Vec<usize> = self.file_lines.values().copied().collect();
        lines.sort_unstable();
        lines.get(lines.len() * percent / 100).copied().unwrap_or(0)
    }

    fn summary(&self) -> String {
        let mut text = format!(
            "    {} files, {} lines; file length: median {}, 90th percentile {}, longest {}\n    \
             {} functions\n",
            self.file_lines.len(),
            self.file_lines.values().sum::<usize>(),
            self.quantile(50),
            self.quantile(90),
            self.file_lines.values().max().unwrap_or(&0),
            self.num_functions,
        );
        for rule in Rule::ALL {
            let places = self.findings.get(&rule).map_or(&[][..], Vec::as_slice);
            text += &format!("    {:>5} {}\n", places.len(), rule.counts());
            for place in places.iter().take(MAX_SHOWN) {
                text += &format!("          {place}\n");
            }
            if places.len() > MAX_SHOWN {
                text += &format!("          and {} more\n", places.len() - MAX_SHOWN);
            }
        }
        text
    }

    fn broken_rules(&self) -> Vec<String> {
        self.findings
            .iter()
            .flat_map(|(rule, places)| {
                places
                    .iter()
                    .map(|place| format!("  {place}: {}", rule.says()))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests;
