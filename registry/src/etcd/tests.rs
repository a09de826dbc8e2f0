//! Against a real etcd, which is started here. Skipped, and said so, where there is none.

use std::process::{Command, Stdio};

use self::process::{EtcdProcess, free_url};
use super::*;
use crate::{RankEvent, conformance};

#[path = "../../../tests/src/etcd.rs"]
mod process;

/// A running etcd.
struct Etcd(EtcdProcess);

impl Etcd {
    /// An empty etcd, or `None` where the program is not installed.
    async fn start() -> Option<Self> {
        let etcd = Self::spawn(free_url(), &[])?;
        etcd.await_clients(etcd.options()).await;
        Some(etcd)
    }

    fn spawn(url: String, more: &[&str]) -> Option<Self> {
        EtcdProcess::spawn(url, more).map(Self)
    }

    async fn await_clients(&self, options: EtcdOptions) {
        let started = Instant::now();
        while let Err(error) = EtcdRegistry::connect(options.clone()).await {
            assert!(
                started.elapsed() < Duration::from_secs(30),
                "etcd does not start: {error}"
            );
            sleep(Duration::from_millis(50)).await;
        }
    }

    fn options(&self) -> EtcdOptions {
        EtcdOptions {
            endpoints: vec![self.0.url.clone()],
            ..EtcdOptions::default()
        }
    }

    /// Whether etcdctl does this.
    fn ctl(&self, line: &str) -> bool {
        let mut command = Command::new("etcdctl");
        command
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &self.0.url])
            .args(line.split(' '))
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    }

    /// Has etcd ask for users: root, and one who may do what this program does and nothing else.
    /// `false`, and said so, where there is no etcdctl.
    fn ask_for_users(&self) -> bool {
        if !self.ctl("user add root:secret") {
            eprintln!("SKIPPED: no etcdctl here; `cargo xtask test` installs Debian's etcd-client");
            return false;
        }
        // As the book has it.
        for line in [
            "user grant-role root root",
            "role add palimpsest",
            "role grant-permission palimpsest --prefix=true readwrite /palimpsest/v1/",
            "user add palimpsest:secret",
            "user grant-role palimpsest palimpsest",
            "auth enable",
        ] {
            assert!(self.ctl(line), "{line}");
        }
        true
    }

    async fn registry(&self) -> EtcdRegistry {
        EtcdRegistry::connect(self.options())
            .await
            .expect("etcd is there")
    }
}

#[tokio::test]
async fn conforms() {
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    conformance::run(&etcd.registry().await).await;
}

#[tokio::test]
async fn nobody_there_is_said_in_time() {
    let options = EtcdOptions {
        endpoints: vec![free_url()],
        ..EtcdOptions::default()
    };
    let started = Instant::now();
    let error = EtcdRegistry::connect(options)
        .await
        .expect_err("nobody listens");
    assert!(
        matches!(&error, RegistryError::Unreachable { .. }),
        "{error}"
    );
    assert!(
        started.elapsed() < 3 * ANSWER_LIMIT,
        "{:?}",
        started.elapsed()
    );
}

/// Leases of outages in tests.
const SHORT_LEASE: Duration = Duration::from_secs(2);

/// A rank whose lease ran out and whose key another process has claimed is told who has it, and
/// leaves that one alone.
#[tokio::test]
async fn a_rank_that_another_process_took_is_told() {
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let registry = EtcdRegistry::connect(EtcdOptions {
        lease: SHORT_LEASE,
        ..etcd.options()
    })
    .await
    .expect("etcd");
    let claim = registry
        .claim("g", RankRecord::new(1, 2, "10.0.0.1:1".into()), LEASE)
        .await
        .expect("a free rank");
    let lost = tokio::spawn(claim.lost());
    // What an outage does to a lease, and who came first after it.
    let mut kv = registry.client.kv_client();
    let found = kv.get(registry.key("g", 1), None).await.expect("an answer");
    let other = RankRecord::new(1, 2, "10.0.0.9:1".into());
    let value = serde_json::to_vec(&other).expect("JSON");
    registry
        .client
        .lease_client()
        .revoke(found.kvs()[0].lease())
        .await
        .expect("a lease");
    kv.put(registry.key("g", 1), value, None)
        .await
        .expect("a put");
    let error = timeout(5 * SHORT_LEASE, lost)
        .await
        .expect("told in time")
        .expect("no panic");
    assert_eq!(
        error,
        RegistryError::RankTaken {
            group: "g".into(),
            rank: 1,
            address: other.address.clone()
        }
    );
    claim.release().await;
    assert_eq!(registry.ranks("g").await, Ok(vec![other]));
}

/// etcd hangs for longer than a lease: the claim is there again when it is back, and nobody is told
/// that the rank died.
#[tokio::test]
async fn a_claim_outlives_an_outage() {
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let registry = EtcdRegistry::connect(EtcdOptions {
        lease: SHORT_LEASE,
        ..etcd.options()
    })
    .await
    .expect("etcd");
    let record = RankRecord::new(1, 2, "10.0.0.1:1".into());
    let claim = registry
        .claim("g", record.clone(), LEASE)
        .await
        .expect("a free rank");
    let (lost, mut told) = (
        tokio::spawn(claim.lost()),
        registry.watch("g").await.expect("a watch"),
    );
    assert_eq!(
        told.next().await,
        Some(crate::RankEvent::All(vec![record.clone()]))
    );
    etcd.0.signal("STOP");
    let error = registry.ranks("g").await.expect_err("etcd is stopped");
    assert!(
        matches!(error, RegistryError::Unreachable { .. }),
        "{error}"
    );
    sleep(SHORT_LEASE + Duration::from_secs(2)).await;
    etcd.0.signal("CONT");
    let back = Instant::now();
    // Its lease has run out meanwhile, so for a moment it may be missing.
    let mut steady = 0;
    while steady < 10 {
        assert!(
            back.elapsed() < Duration::from_secs(30),
            "the claim does not come back"
        );
        steady = if registry.ranks("g").await == Ok(vec![record.clone()]) {
            steady + 1
        } else {
            0
        };
        sleep(Duration::from_millis(200)).await;
    }
    assert!(
        !lost.is_finished(),
        "a claim that is made again is not lost"
    );
    claim.release().await;
    assert_eq!(registry.ranks("g").await, Ok(Vec::new()));
    // However often it was told meanwhile, in the end it is told that nobody is there.
    let mut known = [(1, record)].into();
    while !std::collections::BTreeMap::is_empty(&known) {
        timeout(5 * SHORT_LEASE, told.next())
            .await
            .expect("an event in time")
            .expect("an event")
            .apply(&mut known);
    }
}

#[tokio::test]
async fn a_wrong_password_is_a_denial() {
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    if !etcd.ask_for_users() {
        return;
    }
    for (user, expected) in [
        (Some("wrong"), false),
        (None, false),
        (Some("secret"), true),
    ] {
        let user = user.map(|password| EtcdUser {
            name: "root".to_owned(),
            password: password.to_owned(),
        });
        let found = EtcdRegistry::connect(EtcdOptions {
            user: user.clone(),
            ..etcd.options()
        })
        .await;
        match found {
            Ok(_) => assert!(expected, "{user:?} is let in"),
            Err(error) => assert!(
                !expected && matches!(error, RegistryError::Denied(_)),
                "{user:?}: {error}"
            ),
        }
    }
}

/// etcd forgets who somebody is after some minutes without a word, which is how long a group may
/// run without a change. This one does after a second.
#[tokio::test]
async fn a_user_whom_etcd_has_forgotten_is_let_in_again() {
    let Some(etcd) = Etcd::spawn(free_url(), &["--auth-token-ttl", "1"]) else {
        return;
    };
    etcd.await_clients(etcd.options()).await;
    if !etcd.ask_for_users() {
        return;
    }
    let options = EtcdOptions {
        user: Some(EtcdUser {
            name: "palimpsest".to_owned(),
            password: "secret".to_owned(),
        }),
        ..etcd.options()
    };
    let registry = EtcdRegistry::connect(options).await.expect("let in");
    let record = RankRecord::new(0, 1, "10.0.0.1:1".into());
    let claim = registry.claim("g", record.clone(), LEASE).await;
    let claim = claim.expect("a free rank");
    sleep(Duration::from_secs(3)).await;
    assert_eq!(registry.ranks("g").await, Ok(vec![record]));
    sleep(Duration::from_secs(3)).await;
    claim.release().await;
    assert_eq!(registry.ranks("g").await, Ok(Vec::new()));
    // Nothing else is this user's.
    let elsewhere = EtcdRegistry {
        options: EtcdOptions {
            root: "/other".into(),
            ..registry.options.clone()
        },
        ..registry
    };
    let denied = elsewhere.ranks("g").await;
    assert!(
        matches!(denied, Err(RegistryError::Denied(_))),
        "{denied:?}"
    );
}

/// PEM files of a CA and of a certificate for 127.0.0.1.
fn certificates(directory: &std::path::Path) -> [std::path::PathBuf; 3] {
    let mut params = rcgen::CertificateParams::new(Vec::new()).expect("no names");
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let issuer =
        rcgen::CertifiedIssuer::self_signed(params, rcgen::KeyPair::generate().expect("a key"))
            .expect("a CA");
    let params = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("an address");
    let key = rcgen::KeyPair::generate().expect("a key");
    let certificate = params.signed_by(&key, &issuer).expect("a certificate");
    [
        ("ca", issuer.pem()),
        ("crt", certificate.pem()),
        ("key", key.serialize_pem()),
    ]
    .map(|(name, text)| {
        let path = directory.join(name);
        std::fs::write(&path, text).expect("a writable directory");
        path
    })
}

#[tokio::test]
async fn with_tls_it_conforms_and_strangers_are_refused() {
    use palimpsest_tls::{ClientFiles, IdentityFiles};
    let directory = tempfile::tempdir().expect("a directory");
    let [ca, cert, key] = certificates(directory.path());
    let [ca_arg, cert_arg, key_arg] = [&ca, &cert, &key].map(|path| path.to_str().expect("UTF-8"));
    let url = free_url().replace("http://", "https://");
    let extra = [
        "--cert-file",
        cert_arg,
        "--key-file",
        key_arg,
        "--trusted-ca-file",
        ca_arg,
        "--client-cert-auth",
    ];
    let Some(etcd) = Etcd::spawn(url, &extra) else {
        return;
    };
    let with = |files: ClientFiles| {
        let tls = Some(ClientTls::open(files).expect("certificates"));
        // The first endpoint is nobody: the next one is taken.
        let endpoints = vec![
            free_url().replace("http://", "https://"),
            etcd.0.url.clone(),
        ];
        EtcdOptions {
            endpoints,
            tls,
            ..EtcdOptions::default()
        }
    };
    let ours = ClientFiles {
        ca: Some(ca.clone()),
        identity: Some(IdentityFiles { cert, key }),
    };
    etcd.await_clients(with(ours.clone())).await;
    conformance::run(
        &EtcdRegistry::connect(with(ours))
            .await
            .expect("etcd is there"),
    )
    .await;
    let strangers = tempfile::tempdir().expect("a directory");
    let [other, ..] = certificates(strangers.path());
    for (ca, expected) in [
        (ca, "certificate that it was shown"),
        (other, "not signed by the CA"),
    ] {
        let files = ClientFiles {
            ca: Some(ca),
            identity: None,
        };
        let error = EtcdRegistry::connect(with(files))
            .await
            .expect_err("a stranger")
            .to_string();
        assert!(
            error.contains(expected) || error.contains("asks for a client certificate"),
            "{error}"
        );
    }
}

/// A listener that takes connections and never says a word is what a cut-off host looks like.
/// Without a time of its own for each dial, the first of these held every answer up for ever: who
/// asked gave up before the dial had failed, and the next one began with the same address.
#[tokio::test]
async fn endpoints_that_never_answer_are_left_for_the_one_that_does() {
    use palimpsest_tls::ClientFiles;
    let directory = tempfile::tempdir().expect("a directory");
    let [ca, cert, key] = certificates(directory.path());
    let [cert, key] = [&cert, &key].map(|path| path.to_str().expect("UTF-8"));
    let secure = || free_url().replace("http://", "https://");
    let Some(etcd) = Etcd::spawn(secure(), &["--cert-file", cert, "--key-file", key]) else {
        return;
    };
    let tls = || {
        let files = ClientFiles {
            ca: Some(ca.clone()),
            identity: None,
        };
        Some(ClientTls::open(files).expect("certificates"))
    };
    let with = |endpoints| EtcdOptions {
        endpoints,
        tls: tls(),
        ..EtcdOptions::default()
    };
    etcd.await_clients(with(vec![etcd.0.url.clone()])).await;
    // Their backlogs take connections; nobody accepts them.
    let silent = [(); 2].map(|()| std::net::TcpListener::bind("127.0.0.1:0").expect("a port"));
    let [first, second] = silent.each_ref().map(|listener| {
        let address = listener.local_addr().expect("an address");
        format!("https://{address}")
    });
    let started = Instant::now();
    EtcdRegistry::connect(with(vec![first, second, etcd.0.url.clone()]))
        .await
        .expect("the third endpoint answers");
    assert!(started.elapsed() < ANSWER_LIMIT, "{:?}", started.elapsed());
}

/// What happened since a revision that etcd has forgotten is not guessed: all is told anew.
#[tokio::test]
async fn a_watch_outlives_compaction() {
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let registry = etcd.registry().await;
    let claim = registry
        .claim("g", RankRecord::new(0, 1, "10.0.0.1:1".into()), LEASE)
        .await
        .expect("a free rank");
    let (ranks, revision) = registry
        .listed(&registry.prefix("g"))
        .await
        .expect("a list");
    registry
        .client
        .kv_client()
        .compact(revision, None)
        .await
        .expect("a compaction");
    let (events, mut told) = tokio::sync::mpsc::channel(4);
    let gap = timeout(
        ANSWER_LIMIT,
        registry.follow_from(&registry.prefix("g"), 1, &events),
    )
    .await
    .expect("it ends");
    assert!(
        told.try_recv().is_err(),
        "nothing is told of what etcd has forgotten: {gap:?}"
    );
    let mut watch = registry.watch("g").await.expect("a watch");
    assert_eq!(watch.next().await, Some(crate::RankEvent::All(ranks)));
    claim.release().await;
    assert_eq!(watch.next().await, Some(crate::RankEvent::Freed(0)));
}

/// What an operator, or another program, may leave where records of ours are.
fn garbage() -> Vec<Vec<u8>> {
    let mut found: Vec<Vec<u8>> = [
        "",
        "not ours",
        "null",
        "[]",
        r#"{"rank": 0}"#,
        r#"{"rank": -1, "world_size": 1, "address": "a:1", "session": "s"}"#,
        r#"{"rank": 0, "world_size": 99999999999, "address": "a:1", "session": "s"}"#,
        r#"{"epoch": 1.5, "world_size": 1, "model": "m", "digest": "", "policies": []}"#,
    ]
    .map(|text| text.as_bytes().to_vec())
    .into();
    found.push(vec![0xff; 64]);
    found.push("[".repeat(100_000).into_bytes());
    found
}

#[tokio::test]
async fn what_others_wrote_is_named_not_guessed() {
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let registry = etcd.registry().await;
    let (rank, lead, epoch) = (
        registry.key("g", 0),
        registry.key("g.lead", 0),
        registry.epoch_key("g"),
    );
    let names = |error: &RegistryError, key: &str| {
        let is_named = matches!(error, RegistryError::Corrupt { key: found, .. } if found == key);
        assert!(is_named, "{key}: {error}");
    };
    let record = || RankRecord::new(0, 1, "a:1".into());
    let group = GroupRecord {
        epoch: 1,
        world_size: 1,
        model: "m".into(),
        digest: "00".into(),
        policies: Vec::new(),
    };
    let mut kv = registry.client.kv_client();
    for value in garbage() {
        for key in [&rank, &lead, &epoch] {
            kv.put(key.as_str(), value.clone(), None)
                .await
                .expect("a put");
        }
        names(&registry.ranks("g").await.expect_err("no record"), &rank);
        for (of, key) in [("g", &rank), ("g.lead", &lead)] {
            let claimed = registry.claim(of, record(), Duration::ZERO).await;
            names(&claimed.expect_err("no record"), key);
        }
        names(&registry.group("g").await.expect_err("no record"), &epoch);
        let announced = registry.announce("g", group.clone()).await;
        names(&announced.expect_err("no record"), &epoch);
    }
    // Once an operator has deleted them, all goes on.
    for key in [&rank, &lead, &epoch] {
        kv.delete(key.as_str(), None).await.expect("a delete");
    }
    registry
        .claim("g", record(), Duration::ZERO)
        .await
        .expect("a free rank");
    registry
        .announce("g", group.clone())
        .await
        .expect("the first");
    assert_eq!(registry.group("g").await, Ok(Some(group)));
}

/// A watch that meets such a value tells of nothing, and goes on when it is gone.
#[tokio::test]
async fn a_watch_outlives_what_others_wrote() {
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let options = EtcdOptions {
        lease: Duration::from_secs(1),
        ..etcd.options()
    };
    let registry = EtcdRegistry::connect(options).await.expect("etcd is there");
    let mut watch = registry.watch("g").await.expect("a watch");
    assert_eq!(watch.next().await, Some(RankEvent::All(Vec::new())));
    let mut kv = registry.client.kv_client();
    let key = registry.key("g", 7);
    kv.put(key.as_str(), "not ours", None).await.expect("a put");
    let record = RankRecord::new(0, 1, "a:1".into());
    let _claim = registry
        .claim("g", record.clone(), Duration::ZERO)
        .await
        .expect("a rank");
    let quiet = timeout(Duration::from_millis(500), watch.next()).await;
    assert!(quiet.is_err(), "{quiet:?}");
    kv.delete(key.as_str(), None).await.expect("a delete");
    let told = timeout(Duration::from_secs(20), watch.next())
        .await
        .expect("a word");
    assert_eq!(told, Some(RankEvent::All(vec![record])));
}
