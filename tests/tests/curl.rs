//! curl against the HTTP API, held against transcripts in `fixtures/curl`: a command as a reader
//! would type it, and what it prints.
//!
//! A transcript is comment lines (`# `), one command (`$ `, and `> ` before each further line of
//! it), then its output. The server of the test listens elsewhere than at the address that the
//! command names; times and lengths are masked, and decimals beyond the third. Everything else must
//! be equal, the text that the tiny model writes too. `PALIMPSEST_UPDATE_TRANSCRIPTS=1 cargo test
//! -p palimpsest-tests --test curl` writes the outputs anew.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use palimpsest_coordinator::Config;
use palimpsest_coordinator::keys::ApiKeys;
use palimpsest_tests::service::{TestService, serve};
use palimpsest_tests::tiny_model;
use tokio::net::TcpListener;

/// Where the transcripts say that the server is.
const ADDRESS: &str = "127.0.0.1:8000";
/// Longest body, low enough for a transcript.
const BODY_LIMIT: usize = 64 << 10;
/// sha256("secret")
const KEY: &str = "docs:2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";

/// The transcript with what its command prints now, where the server is at `address`.
fn replay(transcript: &str, address: &str) -> String {
    let typed = |line: &&str| ["# ", "$ ", "> "].iter().any(|mark| line.starts_with(mark));
    let input: Vec<&str> = transcript.lines().take_while(typed).collect();
    let command = input
        .iter()
        .filter_map(|line| line.strip_prefix("$ ").or_else(|| line.strip_prefix("> ")));
    let command = command
        .collect::<Vec<_>>()
        .join("\n")
        .replace(ADDRESS, address);
    let ran = Command::new("sh")
        .args(["-c", &command])
        .output()
        .expect("sh runs");
    let printed = String::from_utf8(ran.stdout).expect("text");
    assert!(
        ran.status.success(),
        "{command}: {}, {}{printed}",
        ran.status,
        String::from_utf8_lossy(&ran.stderr)
    );
    let mut replayed = input.join("\n") + "\n";
    for line in printed.lines() {
        let is = |name: &str| {
            line.get(..name.len())
                .is_some_and(|start| start.eq_ignore_ascii_case(name))
        };
        let masked = ["date:", "content-length:"]
            .into_iter()
            .find(|name| is(name));
        replayed.push_str(&masked.map_or_else(|| rounded(line), |name| format!("{name} …")));
        replayed.push('\n');
    }
    mask(&mask(&replayed, "\"created\":"), "_seconds\":")
}

/// The number behind each `name` as `…`, unless it is 0.
fn mask(text: &str, name: &str) -> String {
    let mut parts = text.split(name);
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |masked, part| {
        let rest = part.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
        let number = &part[..part.len() - rest.len()];
        masked + name + if number == "0" { "0" } else { "…" } + rest
    })
}

/// Without the digits behind the third decimal: logarithms differ there between systems.
fn rounded(line: &str) -> String {
    let mut decimals = None;
    let keep = |c: &char| {
        decimals = match (*c, decimals) {
            ('.', _) => Some(0),
            ('0'..='9', Some(count)) => Some(count + 1),
            _ => None,
        };
        decimals.is_none_or(|count| count <= 3)
    };
    line.chars().filter(keep).collect()
}

fn transcripts() -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/curl");
    let entries = std::fs::read_dir(directory).expect("a directory");
    let mut found: Vec<PathBuf> = entries
        .map(|entry| entry.expect("an entry").path())
        .collect();
    found.sort();
    found
}

async fn started() -> (TestService, String) {
    let keys = Some(Arc::new(ApiKeys::parse(KEY).expect("a key")));
    let config = Config {
        keys,
        max_message_bytes: BODY_LIMIT,
        ..Config::default()
    };
    let model = tiny_model(1);
    let service = serve(model.path(), None, 16 << 20, config).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    let coordinator = service.coordinator.clone();
    tokio::spawn(async move {
        coordinator
            .serve_http(listener, std::future::pending())
            .await
    });
    (service, address)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn curl_prints_what_the_transcripts_show() {
    if Command::new("curl").arg("--version").output().is_err() {
        eprintln!("SKIPPED: curl is not installed; `cargo xtask test` installs it");
        return;
    }
    let updating = std::env::var_os("PALIMPSEST_UPDATE_TRANSCRIPTS").is_some();
    let (_service, address) = started().await;
    let compared = tokio::task::spawn_blocking(move || {
        let mut differ = Vec::new();
        let all = transcripts();
        for file in &all {
            let transcript = std::fs::read_to_string(file).expect("text");
            let replayed = replay(&transcript, &address);
            if updating {
                std::fs::write(file, &replayed).expect("a writable file");
            } else if replayed != transcript {
                differ.push(format!(
                    "{}:\n{transcript}--- it is now:\n{replayed}",
                    file.display()
                ));
            }
        }
        assert!(differ.is_empty(), "{}", differ.join("\n"));
        all.len()
    });
    assert!(compared.await.expect("no difference") >= 10);
}
