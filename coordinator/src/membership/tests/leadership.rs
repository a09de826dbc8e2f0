//! Who leads a group, who stands by, and how a lead ends.

use std::sync::Mutex;

use palimpsest_registry::{Claim, GroupRecord, MemoryRegistry, RankRecord, Registry};
use tokio::time::timeout;

use super::*;

/// Time for what takes milliseconds.
const SOON: Duration = Duration::from_secs(10);

async fn announce(registry: &MemoryRegistry, processes: &[Process]) -> Vec<Claim> {
    let mut claims = Vec::new();
    for (rank, process) in processes.iter().enumerate() {
        let record = RankRecord::new(rank as u32, processes.len() as u32, process.address.clone());
        let claim = registry.claim("g", record, Duration::ZERO).await;
        claims.push(claim.expect("a free rank"));
    }
    claims
}

fn candidacy(address: &str) -> Candidacy {
    Candidacy {
        group: "g".into(),
        world_size: 2,
        address: address.into(),
    }
}

async fn leading(mut candidate: Candidate) -> Leader {
    let group = candidate.first_group(&config(), SOON, |_| {}).await;
    let leader = candidate.lead(group.expect("a group"), config());
    let leader = leader.expect("a model");
    assert!(leader.coordinator().ready().await);
    leader
}

#[tokio::test]
async fn a_standby_leads_as_soon_as_the_lead_is_given_back() {
    let ranks = [FakeRank::new(script(0)), FakeRank::new(script(1))];
    let processes: Vec<_> = ranks.iter().map(|rank| start(rank, ANYWHERE)).collect();
    let registry = MemoryRegistry::default();
    let _claims = announce(&registry, &processes).await;

    let claim = Candidate::claim(Arc::new(registry.clone()), candidacy("first:1"), |_| {});
    let first = leading(claim.await.expect("a free lead")).await;
    let answer = text(first.coordinator(), "a").await;
    assert_eq!(answer.expect("an answer"), ANSWER);

    let (say, mut said) = tokio::sync::mpsc::unbounded_channel();
    let tell = move |reason: &str| say.send(reason.to_owned()).expect("it is heard");
    let claim = Candidate::claim(Arc::new(registry.clone()), candidacy("second:1"), tell);
    let standby = tokio::spawn(claim);
    // It said so after half a minute.
    let reason = timeout(SOON, said.recv()).await.expect("a word");
    let reason = reason.expect("it stands by");
    assert!(
        reason.starts_with("standing by: the coordinator at first:1"),
        "{reason}"
    );
    assert!(!standby.is_finished(), "the first one leads");

    first.coordinator().service().driver.drain().await;
    first.resign().await;
    let second = timeout(SOON, standby).await.expect("the lead is free");
    let second = second.expect("no panic").expect("a claim");
    let second = leading(second).await;
    let answer = text(second.coordinator(), "b").await;
    assert_eq!(answer.expect("an answer"), ANSWER);
}

#[tokio::test]
async fn a_leader_whose_ranks_follow_another_is_told_so_and_has_no_group() {
    let ranks = [FakeRank::new(script(0)), FakeRank::new(script(1))];
    let processes: Vec<_> = ranks.iter().map(|rank| start(rank, ANYWHERE)).collect();
    let addresses: Vec<_> = processes.iter().map(|p| p.address.clone()).collect();
    let mut former = leading(Candidate::for_ranks(addresses.clone())).await;
    let _next = leading(Candidate::for_ranks(addresses)).await;
    let deposed = timeout(SOON, former.deposed()).await.expect("it is told");
    assert!(
        matches!(
            deposed,
            Deposed::Superseded(FormError::Superseded { term: 2 })
        ),
        "{deposed:?}"
    );
    settles(former.coordinator(), Readiness::Lost).await;
}

#[tokio::test]
async fn a_first_group_that_does_not_come_in_time_is_told_of_and_given_up() {
    let mut candidate = Candidate::for_ranks(vec!["127.0.0.1:1".into()]);
    let mut told = Vec::new();
    let limit = Duration::from_millis(600);
    let formed = candidate
        .first_group(&config(), limit, |reason| told.push(reason.to_owned()))
        .await;
    assert!(
        matches!(formed, Err(LeadError::TooLate { .. })),
        "{formed:?}"
    );
    assert_eq!(told.len(), 1, "said once: {told:?}");
    assert!(told[0].starts_with("waiting: the group is not complete"));
}

/// The epoch after the largest number was 0, which no rank takes for a later one: written once, it
/// stopped the group until all of its ranks and their registry were made anew.
#[tokio::test]
async fn an_epoch_that_cannot_be_is_refused_until_an_operator_deletes_it() {
    let ranks = [FakeRank::new(script(0)), FakeRank::new(script(1))];
    let processes: Vec<_> = ranks.iter().map(|rank| start(rank, ANYWHERE)).collect();
    let registry = MemoryRegistry::default();
    let _claims = announce(&registry, &processes).await;
    let record = GroupRecord {
        epoch: u64::MAX,
        world_size: 2,
        model: "m".into(),
        digest: "00".into(),
        policies: Vec::new(),
    };
    registry.announce("g", record).await.expect("it is taken");

    let claim = Candidate::claim(Arc::new(registry.clone()), candidacy("first:1"), |_| {});
    let mut candidate = claim.await.expect("a free lead");
    let reasons = Mutex::new(Vec::new());
    let tell = |reason: &str| {
        reasons.lock().expect("no panic").push(reason.to_owned());
        registry.forget("g");
    };
    let formed = candidate.first_group(&config(), SOON, tell).await;
    assert_eq!(formed.expect("a group").epoch.0, 1);
    let reasons = reasons.into_inner().expect("no panic");
    assert!(
        reasons.len() == 1
            && reasons[0]
                .contains("the registry says that the last epoch was 18446744073709551615")
            && reasons[0].contains("delete the key `epoch`"),
        "{reasons:?}"
    );
}
