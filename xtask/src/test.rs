//! `cargo xtask test`: every test of the workspace, and one closing line with the counts.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::process::{cargo, cargo_with, output, run, run_and_read, succeeds};
use crate::{clients, crates, tools};

/// Path of the real model, for the tests that need one; without it they print that they are
/// skipped.
pub const MODEL_VARIABLE: &str = "PALIMPSEST_TEST_MODEL";

/// Directory with OpenAI's Python client, for the test that it be served unchanged.
const OPENAI_VARIABLE: &str = "PALIMPSEST_TEST_OPENAI";

/// Directories with the Python clients of Anthropic and of Triton, for the tests that they be
/// served unchanged.
const ANTHROPIC_VARIABLE: &str = "PALIMPSEST_TEST_ANTHROPIC";
const TRITON_VARIABLE: &str = "PALIMPSEST_TEST_TRITON";

/// Directory with moto, an implementation of S3 that is not ours.
const MOTO_VARIABLE: &str = "PALIMPSEST_TEST_MOTO";

/// Directory with gRPC for Python, for the documents and examples that use it.
const GRPC_VARIABLE: &str = "PALIMPSEST_TEST_GRPC";

/// Directory with schemathesis, which makes requests from the OpenAPI document.
const FUZZER_VARIABLE: &str = "PALIMPSEST_TEST_SCHEMATHESIS";

/// The browser that the console is tried in, a program.
pub const CHROMIUM_VARIABLE: &str = "PALIMPSEST_TEST_CHROMIUM";
/// Its name among programs.
pub const CHROMIUM: &str = "chromium";

/// Features that need system packages, clusters and the emulated CUDA device (a C++ compiler), and
/// training and the clients of clouds, which a newcomer's build leaves out.
pub const CLUSTER: [&str; 2] = [
    "--features",
    "palimpsest/cluster,palimpsest/calibrate,palimpsest/cloud,palimpsest-tests/cloud,\
     palimpsest-tests/emulate",
];

/// How much is tested.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Extent {
    /// All tests, doc tests and the real model included.
    All,
    /// Without doc tests and without the real model.
    Fast,
}

/// Tests counted in the output of a runner.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Counts {
    passed: u64,
    failed: u64,
}

/// Runs the tests and prints `N passed, N failed` last.
///
/// # Errors
/// When a test fails, when something does not compile, or when no test was executed.
fn run_suites(suites: &mut [Command]) -> Result<()> {
    let mut total = Counts::default();
    let mut broken = Vec::new();
    for suite in suites {
        let (success, lines) = run_and_read(suite)?;
        let counts = lines
            .iter()
            .filter_map(|line| parse_counts(line))
            .fold(Counts::default(), Counts::plus);
        total = total.plus(counts);
        if !success {
            broken.push(crate::process::display(suite));
        }
    }
    println!("\n{} passed, {} failed", total.passed, total.failed);
    ensure!(broken.is_empty(), "failed: {}", broken.join("; "));
    ensure!(
        total.failed == 0 && total.passed > 0,
        "no test was executed, or a failure went unreported"
    );
    Ok(())
}

/// The subcommand: installs what is missing, fetches the model, runs all suites.
///
/// # Errors
/// As [`run_suites`], and when something the tests need cannot be installed.
pub fn run_all(extent: Extent) -> Result<()> {
    let mut suites = vec![main_suite(extent)];
    if extent == Extent::Fast {
        // Tests run the examples, and not every runner builds them as programs.
        run(&mut cargo_with(&["build", "--examples", "--locked"]))?;
    }
    if extent == Extent::All {
        tools::install_system_packages()?;
        // With the features of the main suite: its crates are not built a second time.
        let mut doc_tests = cargo_with(&["test", "--workspace", "--doc", "--locked"]);
        doc_tests.args(CLUSTER);
        suites.push(doc_tests);
        let model = fetch_model()?;
        println!("    {MODEL_VARIABLE}={}", model.display());
        let openai = tools::python_packages("openai")?;
        let anthropic = tools::python_packages("anthropic")?;
        let triton = tools::python_packages("triton")?;
        let grpc = tools::python_packages("grpc")?;
        let moto = tools::python_packages("moto")?;
        let fuzzer = tools::python_packages("schemathesis")?;
        for suite in &mut suites {
            suite
                .env(MODEL_VARIABLE, &model)
                .env(OPENAI_VARIABLE, &openai)
                .env(ANTHROPIC_VARIABLE, &anthropic)
                .env(TRITON_VARIABLE, &triton)
                .env(GRPC_VARIABLE, &grpc)
                .env(MOTO_VARIABLE, &moto)
                .env(FUZZER_VARIABLE, &fuzzer)
                .env(CHROMIUM_VARIABLE, CHROMIUM);
        }
        let program = crates::target_directory()?.join("debug/palimpsest");
        suites.push(clients::quick_suite(&program)?);
    }
    run_suites(&mut suites)
}

/// nextest where it is installed: it runs the tests of all crates side by side.
fn main_suite(extent: Extent) -> Command {
    let mut suite = if succeeds(cargo().args(["nextest", "--version"])) {
        cargo_with(&[
            "nextest",
            "run",
            "--workspace",
            "--locked",
            "--no-fail-fast",
            "--no-tests=warn",
        ])
    } else {
        println!("    cargo-nextest is not installed: using cargo test");
        cargo_with(&[
            "test",
            "--workspace",
            "--locked",
            "--no-fail-fast",
            "--lib",
            "--bins",
            "--tests",
        ])
    };
    // Clusters need system packages, which the fast run does not install.
    if extent == Extent::All {
        suite.args(CLUSTER);
    }
    suite
}

/// Path of the default model, fetched with the program itself. Builds the tests too: with them the
/// features of all dependencies are those of the test run, which then builds nothing again.
///
/// # Errors
/// When something does not compile, or the model cannot be fetched.
pub fn fetch_model() -> Result<PathBuf> {
    let mut build = cargo_with(&["build", "--workspace", "--bins", "--tests", "--locked"]);
    run(build.arg("--examples").args(CLUSTER))?;
    let program = crates::target_directory()?.join("debug/palimpsest");
    let stdout =
        output(Command::new(&program).arg("pull")).context("fetching the default model")?;
    let path = stdout
        .lines()
        .map(str::trim)
        .rfind(|line| !line.is_empty())
        .map(PathBuf::from);
    match path {
        Some(path) if Path::new(&path).is_file() => Ok(path),
        _ => bail!(
            "`palimpsest pull` did not print the path of a file as its last line, but {stdout:?}"
        ),
    }
}

impl Counts {
    fn plus(self, other: Self) -> Self {
        Self {
            passed: self.passed + other.passed,
            failed: self.failed + other.failed,
        }
    }
}

/// The counts in a closing line of nextest (`Summary [ 1.2s] 9 tests run: 8 passed (1 slow), 1
/// failed, 0 skipped`) or of cargo test (`test result: ok. 8 passed; 1 failed; …`). Whatever
/// nextest ran and did not pass counts as failed: it has more words for it (timed out, exec
/// failed).
fn parse_counts(line: &str) -> Option<Counts> {
    let line = strip_escapes(line);
    // Indented, it is what nextest shows of a failed test, which its own closing line counts.
    if let Some(rest) = line.strip_prefix("test result: ") {
        return Some(Counts {
            passed: number_before(rest, "passed")?,
            failed: number_before(rest, "failed")?,
        });
    }
    let rest = line.trim().strip_prefix("Summary [")?.split_once(']')?.1;
    let (head, tail) = rest.split_once(" run:")?;
    // `9/12 tests run` when the run was cut short.
    let num_run: u64 = head
        .split_whitespace()
        .next()?
        .split('/')
        .next()?
        .parse()
        .ok()?;
    let passed = number_before(tail, "passed")?;
    Some(Counts {
        passed,
        failed: num_run.saturating_sub(passed),
    })
}

/// The number right before `word`.
fn number_before(text: &str, word: &str) -> Option<u64> {
    let words: Vec<&str> = text
        .split([' ', ',', ';', '(', ')'])
        .filter(|word| !word.is_empty())
        .collect();
    let at = words.iter().position(|candidate| *candidate == word)?;
    words.get(at.checked_sub(1)?)?.parse().ok()
}

/// Removes terminal colour sequences.
fn strip_escapes(line: &str) -> String {
    let mut parts = line.split('\u{1b}');
    let mut text = parts.next().unwrap_or_default().to_owned();
    parts.for_each(|part| text.push_str(part.split_once('m').map_or("", |(_, rest)| rest)));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closing_lines_are_counted() {
        let counts = |passed, failed| Some(Counts { passed, failed });
        let nextest =
            "     Summary [   0.512s] 9 tests run: 8 passed (1 slow), 1 failed, 3 skipped";
        assert_eq!(parse_counts(nextest), counts(8, 1));
        assert_eq!(
            parse_counts("     Summary [   0.5s] 4/9 tests run: 3 passed, 1 timed out, 0 skipped"),
            counts(3, 1)
        );
        assert_eq!(
            parse_counts("Summary [ 0.0s] 1 test run: 1 passed, 0 skipped"),
            counts(1, 0)
        );
        assert_eq!(
            parse_counts("\u{1b}[32m Summary\u{1b}[0m [ 0.0s] 2 tests run: 2 passed, 0 skipped"),
            counts(2, 0)
        );
        let cargo_test =
            "test result: FAILED. 16 passed; 2 failed; 1 ignored; 0 measured; 0 filtered out";
        assert_eq!(parse_counts(cargo_test), counts(16, 2));
        assert_eq!(parse_counts(&format!("    {cargo_test}")), None);
        assert_eq!(parse_counts("test a_test ... ok"), None);
        assert_eq!(parse_counts("Summary [ nothing of the kind"), None);
    }

    #[test]
    fn a_failing_suite_fails_the_run_whatever_the_counts_say() {
        let script = |body: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", body]);
            command
        };
        let good = || script("echo 'test result: ok. 2 passed; 0 failed; 0 ignored'");
        run_suites(&mut [good(), good()]).unwrap();
        run_suites(&mut [good(), script("exit 1")]).unwrap_err();
        run_suites(&mut [script("true")]).unwrap_err();
        run_suites(&mut [script(
            "echo 'test result: ok. 2 passed; 1 failed; 0 ignored'",
        )])
        .unwrap_err();
    }
}
