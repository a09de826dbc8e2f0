//! What every [`Registry`] must do, as one suite that all implementations run.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use crate::{GroupRecord, RankEvent, RankRecord, RankWatch, Registry, RegistryError};

const PATIENCE: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(300);

/// Runs the suite on a registry without groups.
///
/// # Panics
/// With what is wrong.
pub async fn run(registry: &dyn Registry) {
    claims_are_found_and_given_back(registry).await;
    one_of_many_claimants_has_the_rank(registry).await;
    a_rank_that_is_given_back_goes_to_who_waits(registry).await;
    groups_are_apart_and_named_soberly(registry).await;
    who_follows_is_told_of_each_change(registry).await;
    who_is_slow_is_told_all_anew(registry).await;
    of_two_epochs_the_later_stands(registry).await;
}

fn record(rank: u32) -> RankRecord {
    RankRecord::new(rank, 3, format!("10.0.0.{rank}:50061"))
}

async fn claims_are_found_and_given_back(registry: &dyn Registry) {
    assert_eq!(registry.ranks("a").await, Ok(Vec::new()));
    let (zero, two) = (record(0), record(2));
    // Out of order on purpose.
    let second = registry
        .claim("a", two.clone(), SHORT)
        .await
        .expect("a free rank");
    let first = registry
        .claim("a", zero.clone(), SHORT)
        .await
        .expect("a free rank");
    assert_eq!(registry.ranks("a").await, Ok(vec![zero, two.clone()]));
    first.release().await;
    assert_eq!(registry.ranks("a").await, Ok(vec![two]));
    drop(second);
    let dropped = Instant::now();
    while registry.ranks("a").await != Ok(Vec::new()) {
        assert!(
            dropped.elapsed() < PATIENCE,
            "a dropped claim is given back"
        );
        sleep(Duration::from_millis(20)).await;
    }
}

async fn one_of_many_claimants_has_the_rank(registry: &dyn Registry) {
    let claimants = (0..16).map(|i| RankRecord::new(1, 3, format!("10.0.1.{i}:1")));
    let mut won = Vec::new();
    let mut taken = Vec::new();
    let claims = claimants.map(|record| async move { registry.claim("b", record, SHORT).await });
    for result in join_all(claims).await {
        match result {
            Ok(claim) => won.push(claim),
            Err(error) => taken.push(error),
        }
    }
    assert_eq!((won.len(), taken.len()), (1, 15));
    let holder = registry
        .ranks("b")
        .await
        .expect("an answer")
        .remove(0)
        .address;
    for error in taken {
        assert_eq!(
            error,
            RegistryError::RankTaken {
                group: "b".into(),
                rank: 1,
                address: holder.clone()
            }
        );
    }
    won.remove(0).release().await;
}

async fn a_rank_that_is_given_back_goes_to_who_waits(registry: &dyn Registry) {
    let (old, new) = (record(0), record(0));
    let held = registry.claim("c", old, SHORT).await.expect("a free rank");
    let wait = registry.claim("c", new.clone(), PATIENCE);
    let free = async {
        sleep(SHORT).await;
        held.release().await;
    };
    let (claimed, ()) = tokio::join!(wait, free);
    let claimed = claimed.expect("the rank became free");
    assert_eq!(registry.ranks("c").await, Ok(vec![new]));
    claimed.release().await;
}

async fn groups_are_apart_and_named_soberly(registry: &dyn Registry) {
    let longer = registry
        .claim("d.2", record(0), SHORT)
        .await
        .expect("a free rank");
    assert_eq!(registry.ranks("d").await, Ok(Vec::new()), "d is not d.2");
    longer.release().await;
    for bad in ["", "a/b", "a b", "é", &"x".repeat(129)] {
        assert_eq!(
            registry.ranks(bad).await,
            Err(RegistryError::BadGroup(bad.to_owned()))
        );
    }
}

async fn told(watch: &mut RankWatch) -> RankEvent {
    timeout(PATIENCE, watch.next())
        .await
        .expect("told in time")
        .expect("a registry that is there")
}

async fn who_follows_is_told_of_each_change(registry: &dyn Registry) {
    let held = registry
        .claim("e", record(1), SHORT)
        .await
        .expect("a free rank");
    let mut watch = registry.watch("e").await.expect("a watch");
    let RankEvent::All(before) = told(&mut watch).await else {
        panic!("all come first")
    };
    assert_eq!(Ok(before), registry.ranks("e").await);
    let (new, other) = (record(0), record(0));
    let claimed = registry
        .claim("e", new.clone(), SHORT)
        .await
        .expect("a free rank");
    let elsewhere = registry
        .claim("e.2", other, SHORT)
        .await
        .expect("a free rank");
    assert_eq!(told(&mut watch).await, RankEvent::Claimed(new));
    held.release().await;
    assert_eq!(
        told(&mut watch).await,
        RankEvent::Freed(1),
        "nothing of other groups"
    );
    claimed.release().await;
    assert_eq!(told(&mut watch).await, RankEvent::Freed(0));
    elsewhere.release().await;
    assert_eq!(
        registry.watch("a/b").await.map(|_| ()),
        Err(RegistryError::BadGroup("a/b".into()))
    );
}

async fn who_is_slow_is_told_all_anew(registry: &dyn Registry) {
    let mut watch = registry.watch("f").await.expect("a watch");
    assert_eq!(told(&mut watch).await, RankEvent::All(Vec::new()));
    // More than may wait, and nobody reads.
    for _ in 0..crate::follow::WAITING {
        registry
            .claim("f", record(0), SHORT)
            .await
            .expect("a free rank")
            .release()
            .await;
    }
    let last = record(2);
    let held = registry
        .claim("f", last.clone(), SHORT)
        .await
        .expect("a free rank");
    let (mut known, mut anew) = (BTreeMap::new(), 0);
    while known != BTreeMap::from([(2, last.clone())]) {
        let event = told(&mut watch).await;
        anew += usize::from(matches!(event, RankEvent::All(_)));
        event.apply(&mut known);
    }
    assert!(anew > 0, "the gap is visible");
    held.release().await;
    assert_eq!(
        told(&mut watch).await,
        RankEvent::Freed(2),
        "and from there it goes on"
    );
}

async fn of_two_epochs_the_later_stands(registry: &dyn Registry) {
    let formed = |epoch, digest: &str| GroupRecord {
        epoch,
        world_size: 3,
        model: "m".into(),
        digest: digest.into(),
        policies: vec!["window".into()],
    };
    assert_eq!(registry.group("h").await, Ok(None));
    for epoch in [1, 4] {
        assert_eq!(registry.announce("h", formed(epoch, "a")).await, Ok(()));
        assert_eq!(registry.group("h").await, Ok(Some(formed(epoch, "a"))));
    }
    assert_eq!(
        registry.announce("h", formed(4, "a")).await,
        Ok(()),
        "the same once more"
    );
    for epoch in [3, 4] {
        let stale = RegistryError::StaleEpoch {
            group: "h".into(),
            epoch,
            found: 4,
        };
        assert_eq!(registry.announce("h", formed(epoch, "b")).await, Err(stale));
    }
    assert_eq!(registry.group("h").await, Ok(Some(formed(4, "a"))));
    // Of all that come at once, the latest.
    let announced = join_all((5..21).map(|epoch| registry.announce("h", formed(epoch, "c")))).await;
    assert!(announced.iter().any(Result::is_ok));
    assert_eq!(registry.group("h").await, Ok(Some(formed(20, "c"))));
    assert_eq!(registry.group("h.2").await, Ok(None));
}

/// All at once, in order of the futures.
async fn join_all<F: Future>(futures: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut pending: Vec<_> = futures.map(|future| (Box::pin(future), None)).collect();
    std::future::poll_fn(|context| {
        let mut all = true;
        for (future, output) in pending.iter_mut().filter(|(_, output)| output.is_none()) {
            match future.as_mut().poll(context) {
                std::task::Poll::Ready(value) => *output = Some(value),
                std::task::Poll::Pending => all = false,
            }
        }
        if all {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    })
    .await;
    pending
        .into_iter()
        .filter_map(|(_, output)| output)
        .collect()
}
