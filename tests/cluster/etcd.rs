//! A real etcd, and clusters that find their ranks in it.

use std::time::{Duration, Instant};

use palimpsest_registry::{EtcdOptions, EtcdRegistry, RankRecord, Registry};
use palimpsest_tests::etcd::{EtcdProcess, free_url};
use palimpsest_tests::service::ask;

use crate::cluster::{Cluster, Tiny};
use crate::process::post;
use crate::requests::request;

/// Leases of the tests: outages are longer.
pub const LEASE: Duration = Duration::from_secs(2);
/// Seconds without etcd; `PALIMPSEST_TEST_ETCD_OUTAGE` asks for more.
const OUTAGE: u64 = 6;
pub const GROUP: &str = "main";
/// Where the claim to lead it stands, in base64, as etcd's gateway for JSON wants it.
const LEAD_KEY: &str = "L3BhbGltcHNlc3QvdjEvZ3JvdXBzL21haW4ubGVhZC9yYW5rcy8wMDAwMA==";

/// An etcd, and a client of it.
pub struct Etcd {
    process: EtcdProcess,
    pub registry: EtcdRegistry,
}

impl Etcd {
    /// An empty etcd, or `None`, and said so, where the program is not installed.
    pub async fn start() -> Option<Self> {
        let process = EtcdProcess::spawn(free_url(), &[])?;
        let started = Instant::now();
        let registry = loop {
            let options = EtcdOptions {
                endpoints: vec![process.url.clone()],
                ..EtcdOptions::default()
            };
            match EtcdRegistry::connect(options).await {
                Ok(registry) => break registry,
                Err(error) => assert!(
                    started.elapsed() < Duration::from_secs(30),
                    "etcd does not start: {error}"
                ),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        Some(Self { process, registry })
    }

    /// host:port of its clients.
    fn address(&self) -> &str {
        self.process.url.trim_start_matches("http://")
    }

    /// What tells a process of a cluster where etcd is.
    pub fn arguments(&self) -> Vec<String> {
        let seconds = LEASE.as_secs().to_string();
        [
            "--etcd",
            &self.process.url,
            "--group",
            GROUP,
            "--etcd-lease-seconds",
            &seconds,
        ]
        .map(String::from)
        .to_vec()
    }

    /// Who has claimed a rank of the group, and who leads it.
    async fn claims(&self) -> Vec<RankRecord> {
        let mut claims = self.registry.ranks(GROUP).await.unwrap_or_default();
        claims.extend(
            self.registry
                .ranks(&format!("{GROUP}.lead"))
                .await
                .unwrap_or_default(),
        );
        claims
    }

    /// Who leads the group.
    pub async fn leader(&self) -> Option<RankRecord> {
        self.registry
            .ranks(&format!("{GROUP}.lead"))
            .await
            .expect("etcd answers")
            .pop()
    }

    /// Ends the lease of whoever leads the group, as if etcd had lost it.
    pub fn revoke_lead(&self) {
        let lead = post(
            self.address(),
            "/v3/kv/range",
            &format!(r#"{{"key": "{LEAD_KEY}"}}"#),
        )
        .expect("etcd answers");
        let lease = lead
            .split_once(r#""lease":""#)
            .and_then(|(_, rest)| rest.split_once('"'))
            .expect("a lease")
            .0;
        let revoked = post(
            self.address(),
            "/v3/lease/revoke",
            &format!(r#"{{"ID": "{lease}"}}"#),
        );
        assert!(
            revoked.expect("etcd answers").contains(" 200 "),
            "lease {lease} is not revoked"
        );
    }

    /// Waits until `claims` stand there, and stand for longer than a lease.
    async fn await_claims(&self, claims: &[RankRecord]) -> Duration {
        let (begin, mut since) = (Instant::now(), None);
        loop {
            assert!(
                begin.elapsed() < Duration::from_secs(30),
                "the claims do not come back: {:?}",
                self.claims().await
            );
            if self.claims().await == claims {
                let since = *since.get_or_insert_with(Instant::now);
                if since.elapsed() > 2 * LEASE {
                    return since - begin;
                }
            } else {
                since = None;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// The answer of a group that may have to form first.
async fn answer_of(cluster: &Cluster) -> Vec<u32> {
    let asked = ask(&cluster.client, request(41, 120, 60));
    let answer = tokio::time::timeout(Duration::from_secs(60), asked).await;
    answer.expect("no request hangs").expect("an answer").tokens
}

/// Asks over three streams for as long as `outage` and returns how often; all is answered.
async fn ask_during(cluster: &Cluster, outage: Duration, expected: &[u32]) -> usize {
    let begin = Instant::now();
    let streams: Vec<_> = (0..3)
        .map(|_| {
            let (client, expected) = (cluster.client.clone(), expected.to_vec());
            tokio::spawn(async move {
                let mut answered = 0;
                while begin.elapsed() < outage {
                    let answer = ask(&client, request(41, 120, 60))
                        .await
                        .expect("an answer without etcd");
                    assert_eq!(answer.tokens, expected);
                    answered += 1;
                }
                answered
            })
        })
        .collect();
    let mut answered = 0;
    for stream in streams {
        answered += stream.await.expect("no panic");
    }
    answered
}

/// etcd hangs for longer than any lease while requests run: nobody notices, and afterwards all
/// claims are there again, of the same processes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_of_etcd_fails_nothing() {
    let seconds = std::env::var("PALIMPSEST_TEST_ETCD_OUTAGE")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(OUTAGE);
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let tiny = Tiny::new();
    let mut cluster = Cluster::start_in(&etcd, &tiny, 3).await;
    let claims = etcd.claims().await;
    assert_eq!(
        claims.len(),
        4,
        "three ranks and who leads them: {claims:?}"
    );
    let expected = ask(&cluster.client, request(41, 120, 60))
        .await
        .expect("an answer")
        .tokens;
    etcd.process.signal("STOP");
    let outage = Duration::from_secs(seconds);
    let answered = ask_during(&cluster, outage, &expected).await;
    assert!(etcd.claims().await.is_empty(), "etcd does not answer");
    assert_eq!(cluster.losses(), 0, "{}", cluster.coordinator_log());

    // Even a group that is lost meanwhile forms anew, of the ranks that etcd told of last.
    cluster.signal(1, "STOP");
    let lost = Instant::now();
    while cluster.losses() == 0 {
        assert!(
            lost.elapsed() < Duration::from_secs(10),
            "{}",
            cluster.coordinator_log()
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    cluster.signal(1, "CONT");
    assert_eq!(answer_of(&cluster).await, expected, "without etcd");

    etcd.process.signal("CONT");
    let back = etcd.await_claims(&claims).await;
    let announced = etcd
        .registry
        .group(GROUP)
        .await
        .expect("etcd is back")
        .expect("a group was announced");
    assert_eq!(
        (announced.epoch, announced.world_size),
        (2, 3),
        "the group that formed without etcd"
    );
    eprintln!(
        "{seconds} s without etcd, leases of {LEASE:?}: {answered} requests answered, none \
         failed; claims back after {back:.2?}"
    );

    // A group that is lost later is found in etcd as ever.
    cluster.kill(1);
    cluster.start_rank(1);
    assert_eq!(answer_of(&cluster).await, expected, "by replay");
}

/// A rank that was away for longer than its lease finds another process in its place, says who, and
/// leaves it alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rank_that_was_replaced_while_it_hung_gives_up() {
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let tiny = Tiny::new();
    let mut cluster = Cluster::start_in(&etcd, &tiny, 2).await;
    let expected = ask(&cluster.client, request(43, 60, 30))
        .await
        .expect("an answer")
        .tokens;
    cluster.signal(1, "STOP");
    let mut former = cluster.double(1);
    let asked = ask(&cluster.client, request(43, 60, 30));
    let answer = tokio::time::timeout(Duration::from_secs(60), asked)
        .await
        .expect("no request hangs");
    assert_eq!(answer.expect("an answer of the new group").tokens, expected);
    let losses = cluster.losses();
    former.signal("CONT");
    assert!(
        former.fails_within(Duration::from_secs(20)),
        "{}",
        cluster.rank_log(1)
    );
    let said = format!(
        "rank 1 of group {GROUP} is held by the process at {}",
        cluster.address(1)
    );
    assert!(
        cluster.rank_log(1).contains(&said),
        "{}",
        cluster.rank_log(1)
    );
    assert_eq!(
        ask(&cluster.client, request(43, 60, 30))
            .await
            .expect("an answer")
            .tokens,
        expected
    );
    assert_eq!(
        cluster.losses(),
        losses,
        "the former rank disturbs nobody: {}",
        cluster.coordinator_log()
    );
    cluster.assert_alive();
}
