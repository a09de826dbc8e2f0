//! The official Python client of OpenAI, unchanged, against this service. `cargo xtask test`
//! installs it and says where by PALIMPSEST_TEST_OPENAI; without it the test says that it is
//! skipped.

use std::process::Command;
use std::sync::Arc;

use palimpsest_coordinator::Config;
use palimpsest_coordinator::keys::ApiKeys;
use palimpsest_tests::service::serve;
use palimpsest_tests::tiny_model;
use tokio::net::TcpListener;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_official_client_is_served_unchanged() {
    let Some(packages) = std::env::var_os("PALIMPSEST_TEST_OPENAI") else {
        eprintln!(
            "SKIPPED: set PALIMPSEST_TEST_OPENAI to a directory with the Python package, or run \
             `cargo xtask test`"
        );
        return;
    };
    // sha256("secret")
    let line = "a:2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";
    let keys = Some(Arc::new(ApiKeys::parse(line).expect("a key")));
    let model = tiny_model(1);
    let service = serve(
        model.path(),
        None,
        16 << 20,
        Config {
            keys,
            ..Config::default()
        },
    )
    .await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}/v1", listener.local_addr().expect("an address"));
    let coordinator = service.coordinator.clone();
    tokio::spawn(async move {
        coordinator
            .serve_http(listener, std::future::pending())
            .await
    });
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/oracle/openai_client.py");
    let mut python = Command::new("python3");
    python.arg(script).arg(url).env("PYTHONPATH", packages);
    let ran = tokio::task::spawn_blocking(move || python.output())
        .await
        .expect("no panic")
        .expect("python runs");
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&ran.stdout),
        String::from_utf8_lossy(&ran.stderr)
    );
    assert!(
        ran.status.success() && said.trim_end().ends_with("ok"),
        "{said}"
    );
}
