//! Two coordinators of one group: whichever way the one that leads loses the lead, the ranks follow
//! one of them at a time.

use std::time::{Duration, Instant};

use palimpsest_registry::Registry;
use palimpsest_tests::service::{Answered, ask};
use tokio::task::JoinHandle;
use tonic::{Code, Status};

use crate::cluster::{Cluster, Tiny};
use crate::etcd::{Etcd, GROUP, LEASE};
use crate::process::Coordinator;
use crate::requests::request;

/// A request that is answered long after all that happens to it.
const LONG: u32 = 4000;

/// A group of two ranks, a coordinator that leads it and is in the middle of an answer, and one
/// that stands by.
struct Scene {
    etcd: Etcd,
    cluster: Cluster,
    standby: Coordinator,
    stream: JoinHandle<Result<Answered, Status>>,
    /// The answer to a shorter request.
    expected: Vec<u32>,
}

impl Scene {
    async fn set(tiny: &Tiny) -> Option<Self> {
        let etcd = Etcd::start().await?;
        let cluster = Cluster::start_in(&etcd, tiny, 2).await;
        let standby = cluster.stand_by();
        standby.says("standing by: the coordinator at ").await;
        let expected = ask(&cluster.client, request(61, 100, 40))
            .await
            .expect("an answer")
            .tokens;
        let client = cluster.client.clone();
        let before = steps(&cluster.coordinator);
        let stream = tokio::spawn(async move { ask(&client, request(61, 100, LONG)).await });
        // Its prompt takes 7 of them.
        while steps(&cluster.coordinator) < before + 10 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(!stream.is_finished(), "it is in the middle of an answer");
        Some(Self {
            etcd,
            cluster,
            standby,
            stream,
            expected,
        })
    }

    /// Waits until the standby leads, and holds that the ranks follow it: they kept their weights,
    /// and the epoch is the second.
    async fn hand_over(self) -> Aftermath {
        let Self {
            etcd,
            mut cluster,
            standby,
            stream,
            expected,
        } = self;
        let former = cluster.follow(standby);
        let begin = Instant::now();
        cluster.wait_until_ready().await;
        eprintln!(
            "the standby serves after {:.2?}, leases of {LEASE:?}",
            begin.elapsed()
        );
        Aftermath {
            etcd,
            cluster,
            former,
            stream,
            expected,
        }
    }
}

/// Steps that a coordinator's group has done.
fn steps(coordinator: &Coordinator) -> u64 {
    let figures = coordinator.probe("/metrics").expect("probes are answered");
    let mut lines = figures.lines();
    let figure = lines.find_map(|line| line.strip_prefix("palimpsest_steps_total "));
    figure
        .and_then(|figure| figure.trim().parse().ok())
        .expect("a figure")
}

struct Aftermath {
    etcd: Etcd,
    cluster: Cluster,
    former: Coordinator,
    stream: JoinHandle<Result<Answered, Status>>,
    expected: Vec<u32>,
}

impl Aftermath {
    /// The group answers as before, in its second epoch, with the weights of its first, and has not
    /// been lost since.
    async fn assert_undisturbed(&mut self) {
        let (etcd, cluster) = (&self.etcd, &mut self.cluster);
        let answer = tokio::time::timeout(
            Duration::from_secs(60),
            ask(&cluster.client, request(61, 100, 40)),
        )
        .await;
        assert_eq!(
            answer.expect("no request hangs").expect("an answer").tokens,
            self.expected
        );
        assert_eq!(cluster.losses(), 0, "{}", cluster.coordinator_log());
        cluster.assert_alive();
        assert_eq!(
            [cluster.loads(0), cluster.loads(1)],
            [1, 1],
            "survivors keep their weights"
        );
        // It is announced behind the back of whoever asks for tokens.
        let begin = Instant::now();
        loop {
            let group = etcd
                .registry
                .group(GROUP)
                .await
                .expect("etcd answers")
                .expect("a group was announced");
            if group.epoch == 2 {
                break;
            }
            assert!(
                group.epoch < 2 && begin.elapsed() < Duration::from_secs(10),
                "{group:?}"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The former leader says that it leads no longer and ends; its clients are told so.
    async fn assert_former_gives_up(&mut self) {
        let ended = self.former.process.fails_within(Duration::from_secs(30));
        assert!(ended, "the former leader goes on: {}", self.former.log());
        assert!(
            self.former
                .log()
                .contains("this coordinator leads no longer"),
            "{}",
            self.former.log()
        );
        let error = self.failure().await;
        // Its tokens were made, and their group is another coordinator's now: no other reason would
        // tell the client what to do.
        assert_eq!(error.code(), Code::Aborted, "{error}");
        assert!(error.message().ends_with("start again"), "{error}");
    }

    /// What became of the answer that the former leader was in the middle of.
    async fn failure(&mut self) -> Status {
        let ended = tokio::time::timeout(Duration::from_secs(30), &mut self.stream).await;
        ended
            .expect("no request hangs")
            .expect("no panic")
            .expect_err("its coordinator is gone")
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_takes_over_from_a_leader_that_is_killed() {
    let tiny = Tiny::new();
    let Some(mut scene) = Scene::set(&tiny).await else {
        return;
    };
    scene.cluster.coordinator.process.kill();
    let mut after = scene.hand_over().await;
    let error = after.failure().await;
    assert!(
        [Code::Unavailable, Code::Unknown].contains(&error.code()),
        "a connection that broke: {error:?}"
    );
    after.assert_undisturbed().await;
}

/// It wakes up and believes that it leads: its ranks follow another one, and it finds out before it
/// does any harm.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_sleeps_past_its_lease_leaves_the_ranks_to_the_standby() {
    let tiny = Tiny::new();
    let Some(scene) = Scene::set(&tiny).await else {
        return;
    };
    scene.cluster.coordinator.process.signal("STOP");
    let mut after = scene.hand_over().await;
    after.assert_undisturbed().await;
    after.former.process.signal("CONT");
    after.assert_former_gives_up().await;
    after.assert_undisturbed().await;
}

/// It is awake when its group is taken from it, and has a standby that is quicker to claim the
/// lead.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_whose_lease_is_revoked_leaves_the_ranks_to_the_standby() {
    let tiny = Tiny::new();
    let Some(scene) = Scene::set(&tiny).await else {
        return;
    };
    let former = scene.etcd.leader().await.expect("a leader");
    // It would claim the lead again at once: it sleeps for as long as the standby needs for that.
    scene.cluster.coordinator.process.signal("STOP");
    scene.etcd.revoke_lead();
    let begin = Instant::now();
    while scene
        .etcd
        .leader()
        .await
        .is_none_or(|leader| leader.session == former.session)
    {
        assert!(
            begin.elapsed() < LEASE,
            "the standby does not claim the lead"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    scene.cluster.coordinator.process.signal("CONT");
    let mut after = scene.hand_over().await;
    after.assert_former_gives_up().await;
    after.assert_undisturbed().await;
}

/// Nobody asks for anything, and a rank dies: that is seen at every place where readiness is asked
/// for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_at_rest_that_loses_a_rank_is_not_ready() {
    let tiny = Tiny::new();
    let mut cluster = Cluster::start(&tiny, 2).await;
    let told = |cluster: &Cluster| {
        let probe = |path: &str| {
            cluster
                .coordinator
                .probe(path)
                .expect("probes are answered")
        };
        let metrics = probe("/metrics");
        let figure = metrics
            .lines()
            .find(|line| line.starts_with("palimpsest_group_ready "))
            .expect("a figure");
        (
            probe("/readyz").starts_with("HTTP/1.0 200"),
            figure.to_owned(),
        )
    };
    assert_eq!(told(&cluster), (true, "palimpsest_group_ready 1".into()));
    cluster.kill(1);
    let killed = Instant::now();
    while cluster.coordinator.is_ready().await {
        assert!(
            killed.elapsed() < Duration::from_secs(3),
            "{}",
            cluster.coordinator_log()
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    eprintln!(
        "not ready {:.2?} after the death of a rank",
        killed.elapsed()
    );
    assert_eq!(told(&cluster), (false, "palimpsest_group_ready 0".into()));
    cluster.start_rank(1);
    cluster.wait_until_ready().await;
    assert_eq!(told(&cluster), (true, "palimpsest_group_ready 1".into()));
}
