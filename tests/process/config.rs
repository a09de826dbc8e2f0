//! Options from a configuration file, the environment and the command line.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use palimpsest_tests::tiny_model;
use serde_json::Value;
use tempfile::TempDir;

use crate::serving::Serving;

/// Runs the program in a directory of its own with a configuration file.
fn run(file: &str, args: &[&str], env: &[(&str, &str)]) -> Output {
    let dir = directory(file);
    Command::new("timeout")
        .args(["60", env!("CARGO_BIN_EXE_palimpsest")])
        .args(args)
        .current_dir(dir.path())
        .env("XDG_CONFIG_HOME", dir.path().join("none"))
        .envs(env.iter().copied())
        .stdin(Stdio::null())
        .output()
        .expect("the program runs")
}

fn directory(file: &str) -> TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    fs::write(dir.path().join("palimpsest.toml"), file).expect("a file");
    dir
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn values_come_from_flag_environment_file_and_default_in_this_order() {
    let file = "kv-budget = 300\nmax-running = 3\n[serve]\nthreads = 2\nmax-queued = 9\n";
    let args = ["config", "show", "--json", "serve", "--max-queued", "7"];
    let env = [("PALIMPSEST_MAX_RUNNING", "5")];
    let output = run(file, &args, &env);
    assert!(output.status.success(), "{}", said(&output));
    let shown: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let serve = &shown["services"]["serve"];
    let of = |key: &str| {
        let entry = &serve[key];
        let text = |name: &str| entry[name].as_str().expect("text").to_owned();
        (text("value"), text("source"))
    };
    let expected = |value: &str, source: &str| (value.to_owned(), source.to_owned());
    assert_eq!(of("max-queued"), expected("7", "flag"));
    assert_eq!(of("max-running"), expected("5", "environment"));
    assert_eq!(serve["max-running"]["variable"], "PALIMPSEST_MAX_RUNNING");
    assert_eq!(of("kv-budget"), expected("300", "file"));
    assert_eq!(serve["threads"]["line"], 4);
    assert_eq!(of("stride"), expected("256", "default"));

    let output = run(file, &["config", "show", "worker"], &[]);
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(text.starts_with("[worker]\n"), "{text}");
    let budget = text
        .lines()
        .find(|line| line.starts_with("kv-budget "))
        .expect("a line");
    assert!(
        budget.contains("= 300 ") && budget.ends_with("# palimpsest.toml:1"),
        "{budget}"
    );
}

#[test]
fn a_key_that_is_no_option_is_refused_with_the_nearest_one() {
    for (file, expected, commands) in [
        (
            "kv-bugdet = 1\n",
            "palimpsest.toml:1:1: `kv-bugdet` is no option; did you mean",
            &["serve", "coordinator"][..],
        ),
        (
            "[serve]\nhttp = 'nowhere'\n",
            "palimpsest.toml:2:8: ",
            &["serve"][..],
        ),
        (
            "[serve\n",
            "palimpsest.toml:1:",
            &["serve", "coordinator"][..],
        ),
    ] {
        for command in commands {
            let output = run(file, &[*command], &[]);
            assert_eq!(output.status.code(), Some(2), "{}", said(&output));
            assert!(
                said(&output).contains(expected),
                "{file}: {}",
                said(&output)
            );
        }
        // Commands that are typed do not look at it.
        let output = run(file, &["inspect", "/nope"], &[]);
        assert!(said(&output).contains("No such file"), "{}", said(&output));
        // Nor does whoever says so.
        let output = run(
            file,
            &["config", "show", "serve"],
            &[("PALIMPSEST_CONFIG", "")],
        );
        assert!(output.status.success(), "{}", said(&output));
    }
}

#[test]
fn a_service_starts_as_its_file_says() {
    let model = tiny_model(1);
    let file = "[serve]\nserved-model-name = 'from-a-file'\nkv-budget = 200\n";
    let dir = directory(file);
    let path = dir.path().join("palimpsest.toml");
    let serving = Serving::start_over(
        model.path(),
        &[("PALIMPSEST_CONFIG", path.to_str().expect("UTF-8"))],
        &["--policy", "window"],
    );
    let models = serving.send("GET", "/v1/models", "", "");
    assert!(models.contains("from-a-file"), "{models}");
    let log = serving.stop();
    assert!(log.contains("budget 200"), "{log}");
    assert!(
        log.contains(&format!("configuration: {}", path.display())),
        "{log}"
    );
}

#[test]
fn a_budget_that_cannot_be_is_refused_by_the_name_of_its_flag() {
    let model = tiny_model(1);
    let model: &Path = model.path();
    let model = model.to_str().expect("UTF-8");
    let start = [
        "--http",
        "localhost:0",
        "--listen",
        "localhost:0",
        "--model",
        model,
    ];
    for (more, code, expected) in [
        (
            &["--kv-budget", "1"][..],
            1,
            "--kv-budget is 1, the least is",
        ),
        (&["--kv-budget", "0"][..], 2, "--kv-budget"),
        (&["--kv-budget", "-5"][..], 2, "--kv-budget"),
        (&["--kv-budget", "1k"][..], 2, "--kv-budget"),
        (&["--kv-budget", "99999999999"][..], 2, "--kv-budget"),
        (
            &["--policy", "windwo"][..],
            1,
            "policy `windwo` is not one of",
        ),
        (&["--http", "localhost"][..], 2, "give a host and a port"),
    ] {
        // The last of a flag that is given twice would be an error of its own.
        let others = start.chunks(2).filter(|pair| pair[0] != more[0]).flatten();
        let args: Vec<&str> = ["serve"]
            .iter()
            .chain(others)
            .chain(more)
            .copied()
            .collect();
        let output = run("", &args, &[]);
        let said = said(&output);
        assert_eq!(output.status.code(), Some(code), "{more:?}: {said}");
        assert!(said.contains(expected), "{more:?}: {said}");
    }
}
