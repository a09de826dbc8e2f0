//! What the program says when it cannot do what was asked.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use palimpsest_tests::certificates::Authority;
use palimpsest_tests::tiny_model;
use palimpsest_tls::{ClusterFiles, Role};

use crate::group::{Process, free};
use crate::serving::Serving;

/// Seconds after which a program that should have refused counts as hanging (exit code 124).
const LIMIT: &str = "60";

fn palimpsest(args: &[&str]) -> Output {
    Command::new("timeout")
        .args([LIMIT, env!("CARGO_BIN_EXE_palimpsest")])
        .args(args)
        .stdin(Stdio::null())
        .output()
        .expect("the program runs")
}

/// What it says when it fails.
fn refusal(args: &[&str]) -> String {
    let output = palimpsest(args);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{args:?}: {said}");
    said
}

#[test]
fn a_cause_is_named_once() {
    let said = refusal(&["inspect", "/nope"]);
    assert_eq!(said.matches("No such file").count(), 1, "{said}");
}

#[test]
fn logs_that_nobody_watches_have_no_colours() {
    let keys = tempfile::NamedTempFile::new().expect("a file");
    let key = format!("me:{}\n", "0".repeat(64));
    std::fs::write(keys.path(), key).expect("a file");
    let keys = keys.path().to_str().expect("UTF-8");
    let said = refusal(&[
        "serve",
        "--listen",
        "0.0.0.0:0",
        "--no-http",
        "--api-keys-file",
        keys,
        "--model",
        "/nope",
    ]);
    assert!(
        said.contains("WARN") && said.contains("plain text"),
        "{said}"
    );
    assert!(!said.contains('\x1b'), "{said:?}");
}

#[test]
fn a_port_of_http_is_told_from_one_of_grpc() {
    let serving = Serving::start(&[]);
    let server = serving.http.clone();
    let said = refusal(&["generate", "--server", &server, "--prompt", "a"]);
    assert!(said.contains("does not speak gRPC"), "{said}");
}

#[test]
fn an_address_needs_no_scheme() {
    let serving = Serving::start(&[]);
    let server = serving.grpc.clone();
    let args = [
        "generate",
        "--server",
        &server,
        "--prompt",
        "a",
        "--max-tokens",
        "2",
    ];
    let output = palimpsest(&args);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn an_answer_that_nobody_reads_ends_quietly() {
    let serving = Serving::start(&[]);
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let ended = Command::new(env!("CARGO_BIN_EXE_palimpsest"))
        .args([
            "generate",
            "--server",
            &serving.grpc,
            "--prompt",
            "a",
            "--max-tokens",
            "9",
        ])
        .stdin(Stdio::null())
        .stdout(writer)
        .stderr(Stdio::piped())
        .output()
        .expect("it starts");
    assert_eq!(String::from_utf8_lossy(&ended.stderr), "");
    assert_eq!(ended.status.code(), Some(141));
}

/// Contracts that no request could have: the service would wait for memory for ever. A latent
/// memory is reserved whole, however short a request is.
const NEVER_FIT: [&[&str]; 3] = [
    &[
        "--kv-budget",
        "1000000",
        "--memory",
        "centroid",
        "--kv-memory-mib",
        "64",
    ],
    &["--latent-memory-mib", "64", "--kv-memory-mib", "64"],
    &["--kv-memory-mib", "0"],
];

#[test]
fn serve_refuses_a_default_contract_that_never_fits() {
    let model = tiny_model(1);
    let model = model.path().to_str().expect("UTF-8");
    for arguments in NEVER_FIT {
        let mut line = vec![
            "serve",
            "--model",
            model,
            "--threads",
            "1",
            "--stride",
            "16",
        ];
        line.extend(["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]);
        line.extend(arguments);
        let said = refusal(&line);
        assert!(
            said.contains("the default contract"),
            "{arguments:?}: {said}"
        );
    }
}

#[test]
fn a_coordinator_refuses_ranks_whose_default_contract_never_fits() {
    let model = tiny_model(1);
    let model = model.path().to_str().expect("UTF-8");
    let rank_at = free();
    let _rank = Process::loaded_rank_with(&rank_at, model, &[], NEVER_FIT[0]);
    let said = refusal(&[
        "coordinator",
        "--ranks",
        &rank_at,
        "--listen",
        &free(),
        "--no-http",
    ]);
    assert!(said.contains("the default contract"), "{said}");
}

/// A port that takes plans from whoever reaches it must not be opened by leaving a flag out.
#[test]
fn a_worker_beyond_loopback_wants_certificates_or_the_operators_word() {
    let worker = ["worker", "--rank", "0", "--listen", "0.0.0.0:0"];
    let said = refusal(&worker);
    for flag in ["--cluster-cert", "--insecure"] {
        assert!(said.contains(flag), "{said}");
    }
    let mut insecure = worker.to_vec();
    insecure.push("--insecure");
    let said = refusal(&insecure);
    assert!(said.contains("--advertise"), "the next thing: {said}");
}

/// Certificates ask for encryption, which gloo and NCCL do not have: what travels in the clear must
/// not do so unnoticed. NCCL is what GPUs take unless they are told otherwise.
#[test]
fn collectives_in_the_clear_are_refused_where_certificates_ask_for_encryption() {
    let files = Authority::new("ours");
    let ClusterFiles { cert, key, ca } = files.cluster(Role::Worker);
    let path = |path: &Path| path.to_str().expect("UTF-8").to_owned();
    let (cert, key, ca) = (path(&cert), path(&key), path(&ca));
    let rank = "worker --rank 0 --tp 2 --listen 127.0.0.1:0 --cluster-cert";
    let line: Vec<&str> = rank.split(' ').chain([&cert[..]]).collect();
    let line = [&line[..], &["--cluster-key", &key, "--cluster-ca", &ca]].concat();
    for (name, collective) in [
        ("gloo", "--collective gloo"),
        ("nccl", "--collective nccl --device cuda:0"),
        ("nccl", "--device cuda:0"),
    ] {
        let asked: Vec<&str> = collective.split(' ').collect();
        let said = refusal(&[&line[..], &asked].concat());
        let cannot = format!("{name} cannot be used");
        for word in [&cannot[..], "--collective tcp", "--clear-tensors"] {
            assert!(said.contains(word), "{collective}: {said}");
        }
        // Told that it may, it goes on: to a model that is not there, or a library.
        let told = ["--clear-tensors", "--model", "/nope"];
        let said = refusal(&[&line[..], &asked, &told].concat());
        assert!(!said.contains("in the clear"), "{collective}: {said}");
    }
}

#[test]
fn a_coordinator_sends_no_prompts_in_plain_text_to_other_machines_unasked() {
    for place in [
        ["--ranks", "127.0.0.1:1,192.0.2.1:50061"],
        ["--etcd", "http://192.0.2.1:2379"],
    ] {
        let mut line = vec!["coordinator", "--listen", "127.0.0.1:0", "--no-http"];
        line.extend(place);
        let said = refusal(&line);
        for word in ["192.0.2.1", "--cluster-cert", "--insecure"] {
            assert!(said.contains(word), "{said}");
        }
    }
}
