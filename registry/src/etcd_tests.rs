//! Against a real etcd, which is started here. Skipped, and said so, where there is none.

use std::process::{Child, Command, Stdio};

use super::*;
use crate::conformance;

struct Etcd {
    child: Child,
    url: String,
    _data: tempfile::TempDir,
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_url() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    format!("http://{}", listener.local_addr().expect("an address"))
}

impl Etcd {
    /// An empty etcd, or `None` where the program is not installed.
    async fn start() -> Option<Self> {
        let (url, peers, data) = (free_url(), free_url(), tempfile::tempdir().expect("a directory"));
        let mut command = Command::new("etcd");
        command.arg("--data-dir").arg(data.path());
        command.args(["--listen-client-urls", &url, "--advertise-client-urls", &url, "--listen-peer-urls", &peers]);
        command.args(["--initial-advertise-peer-urls", &peers, "--initial-cluster", &format!("default={peers}")]);
        let spawned = command.stdout(Stdio::null()).stderr(Stdio::null()).stdin(Stdio::null()).spawn();
        let Ok(child) = spawned else {
            eprintln!("SKIPPED: no etcd here; `cargo xtask test` installs Debian's etcd-server");
            return None;
        };
        let etcd = Self { child, url, _data: data };
        let started = Instant::now();
        while EtcdRegistry::connect(etcd.options()).await.is_err() {
            assert!(started.elapsed() < Duration::from_secs(30), "etcd does not start");
            sleep(Duration::from_millis(50)).await;
        }
        Some(etcd)
    }

    fn options(&self) -> EtcdOptions {
        EtcdOptions { endpoints: vec![self.url.clone()], ..EtcdOptions::default() }
    }

    async fn registry(&self) -> EtcdRegistry {
        EtcdRegistry::connect(self.options()).await.expect("etcd is there")
    }

    fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([&format!("-{signal}"), &self.child.id().to_string()]).status();
        assert!(sent.expect("kill runs").success());
    }
}

#[tokio::test]
async fn conforms() {
    let Some(etcd) = Etcd::start().await else { return };
    conformance::run(&etcd.registry().await).await;
}

#[tokio::test]
async fn nobody_there_is_said_in_time() {
    let options = EtcdOptions { endpoints: vec![free_url()], ..EtcdOptions::default() };
    let started = Instant::now();
    let error = EtcdRegistry::connect(options).await.expect_err("nobody listens");
    assert!(matches!(&error, RegistryError::Unreachable { .. }), "{error}");
    assert!(started.elapsed() < 3 * ANSWER_LIMIT, "{:?}", started.elapsed());
}

/// etcd hangs for longer than a lease: the claim is there again when it is back, and nobody is told that the rank died.
#[tokio::test]
async fn a_claim_outlives_an_outage() {
    let Some(etcd) = Etcd::start().await else { return };
    let registry = etcd.registry().await;
    let record = RankRecord::new(1, 2, "10.0.0.1:1".into());
    let claim = registry.claim("g", record.clone(), LEASE).await.expect("a free rank");
    etcd.signal("STOP");
    let error = registry.ranks("g").await.expect_err("etcd is stopped");
    assert!(matches!(error, RegistryError::Unreachable { .. }), "{error}");
    sleep(LEASE + Duration::from_secs(2)).await;
    etcd.signal("CONT");
    let back = Instant::now();
    // Its lease has run out meanwhile, so for a moment it may be missing.
    let mut steady = 0;
    while steady < 10 {
        assert!(back.elapsed() < Duration::from_secs(30), "the claim does not come back");
        steady = if registry.ranks("g").await == Ok(vec![record.clone()]) { steady + 1 } else { 0 };
        sleep(Duration::from_millis(200)).await;
    }
    claim.release().await;
    assert_eq!(registry.ranks("g").await, Ok(Vec::new()));
}

#[tokio::test]
async fn a_wrong_password_is_a_denial() {
    let Some(etcd) = Etcd::start().await else { return };
    let ctl = |args: &[&str]| {
        let mut command = Command::new("etcdctl");
        command.env("ETCDCTL_API", "3").args(["--endpoints", &etcd.url]).args(args);
        command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
    };
    if !ctl(&["user", "add", "root:secret"]) {
        eprintln!("SKIPPED: no etcdctl here; `cargo xtask test` installs Debian's etcd-client");
        return;
    }
    assert!(ctl(&["user", "grant-role", "root", "root"]) && ctl(&["auth", "enable"]));
    for (user, expected) in [(Some("wrong"), false), (None, false), (Some("secret"), true)] {
        let user = user.map(|password| ("root".to_owned(), password.to_owned()));
        let found = EtcdRegistry::connect(EtcdOptions { user: user.clone(), ..etcd.options() }).await;
        match found {
            Ok(_) => assert!(expected, "{user:?} is let in"),
            Err(error) => assert!(!expected && matches!(error, RegistryError::Denied(_)), "{user:?}: {error}"),
        }
    }
}

#[tokio::test]
async fn what_others_wrote_is_named_not_guessed() {
    let Some(etcd) = Etcd::start().await else { return };
    let registry = etcd.registry().await;
    let key = registry.key("g", 0);
    registry.client.kv_client().put(key.clone(), "not ours", None).await.expect("a put");
    let error = registry.ranks("g").await.expect_err("not a record");
    assert!(matches!(&error, RegistryError::Corrupt { key: found, .. } if *found == key), "{error}");
}
