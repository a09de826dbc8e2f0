//! Clients that others have made, unchanged, against this service: Anthropic's over HTTP, Triton's
//! over gRPC. `cargo xtask test` installs them and says where by the variables named below; without
//! them the tests say that they are skipped.

use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;

use palimpsest_coordinator::Config;
use palimpsest_coordinator::keys::ApiKeys;
use palimpsest_tests::service::{TestService, serve};
use palimpsest_tests::tiny_model;
use tokio::net::TcpListener;

/// A service that asks for the key `secret`.
async fn started() -> TestService {
    // sha256("secret")
    let line = "a:2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";
    let keys = Some(Arc::new(ApiKeys::parse(line).expect("a key")));
    let config = Config {
        keys,
        ..Config::default()
    };
    serve(tiny_model(1).path(), None, 16 << 20, config).await
}

/// Serves HTTP as well.
async fn http(service: &TestService) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let coordinator = service.coordinator.clone();
    tokio::spawn(async move {
        coordinator
            .serve_http(listener, std::future::pending())
            .await
    });
    address
}

/// Runs a script of `oracle` with the packages that `variable` names, which must end with "ok".
async fn run(variable: &str, script: &str, server: String) {
    let packages = std::env::var_os(variable).expect("it was looked at");
    let script = format!("{}/oracle/{script}", env!("CARGO_MANIFEST_DIR"));
    let mut python = Command::new("python3");
    python.arg(script).arg(server).env("PYTHONPATH", packages);
    let ran = tokio::task::spawn_blocking(move || python.output());
    let ran = ran.await.expect("no panic").expect("python runs");
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

/// Whether the packages of a test are there.
fn is_installed(variable: &str) -> bool {
    let is_installed = std::env::var_os(variable).is_some();
    if !is_installed {
        eprintln!(
            "SKIPPED: set {variable} to a directory with the Python package, or run `cargo xtask \
             test`"
        );
    }
    is_installed
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn anthropics_client_is_served_unchanged() {
    const VARIABLE: &str = "PALIMPSEST_TEST_ANTHROPIC";
    if !is_installed(VARIABLE) {
        return;
    }
    let service = started().await;
    let url = format!("http://{}", http(&service).await);
    run(VARIABLE, "anthropic_client.py", url).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tritons_client_is_served_unchanged() {
    const VARIABLE: &str = "PALIMPSEST_TEST_TRITON";
    if !is_installed(VARIABLE) {
        return;
    }
    let service = started().await;
    let address = service.server.address.to_string();
    run(VARIABLE, "triton_client.py", address).await;
}
