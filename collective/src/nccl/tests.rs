//! The suite over an NCCL without GPUs, and what a library may do wrong.

use super::fake::{Fake, connect};
use super::*;
use crate::conformance::{self, Sums};
use crate::memory_store::MemoryStore;

#[test]
fn conforms() {
    let make = |world_size| {
        let fake = Arc::new(Fake::default());
        let ends = connect(vec![fake; world_size], Duration::from_secs(10));
        ends.into_iter()
            .map(|end| Arc::new(end.expect("all came")) as Arc<dyn Collective>)
            .collect()
    };
    conformance::run(&make, Sums::SomeOrder);
    conformance::run_device_sums(&make);
}

/// The engine drops its graphs when it is told of the end, so nobody may wait for the library's
/// end before.
#[test]
fn an_end_does_not_wait_for_graphs() {
    let fake = Arc::new(Fake::default());
    let mut ends = connect(vec![fake.clone(), fake.clone()], Duration::from_secs(10)).into_iter();
    let (one, other) = (
        ends.next().expect("two").expect("joined"),
        ends.next().expect("two").expect("joined"),
    );
    let graphs = fake.graphs.lock().expect("held");
    one.abort();
    let soon = || Instant::now() + Duration::from_secs(10);
    assert_eq!(
        one.all_reduce_counts(&mut [1], soon()),
        Err(CollectiveError::Aborted)
    );
    drop(graphs);
    let told = other.all_reduce_counts(&mut [1], soon());
    assert!(
        matches!(told, Err(CollectiveError::PeerGone(_))),
        "{told:?}"
    );
}

#[test]
fn versions_that_differ_are_named() {
    let (a, b) = (
        Arc::new(Fake::default()),
        Arc::new(Fake::of_version(22_803)),
    );
    for end in connect(vec![a, b], Duration::from_secs(10)) {
        let error = end.map(|_| ()).expect_err("they differ").to_string();
        assert!(
            error.contains("2.30.3") && error.contains("2.28.3"),
            "{error}"
        );
    }
}

#[test]
fn a_rank_that_never_comes_is_waited_for_no_longer_than_the_deadline() {
    let store = MemoryStore::default();
    store
        .set("e/nccl-version-1", &Fake::default().version.to_le_bytes())
        .expect("memory");
    let place = Place {
        rank: 0,
        world_size: 2,
    };
    let deadline = Instant::now() + Duration::from_millis(100);
    let met = NcclCollective::connect(Arc::new(Fake::default()), place, &store, "e", deadline);
    let error = met.map(|_| ()).expect_err("rank 1 never came");
    assert!(
        matches!(
            error,
            CollectiveError::Deadline {
                operation: "ncclCommInitRankConfig",
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn a_machine_without_the_library_is_told_what_to_install() {
    if let Err(error) = library::Library::open(0) {
        let error = failure(error).to_string();
        assert!(
            error.contains("nccl cannot be used") && error.contains("libnccl.so.2"),
            "{error}"
        );
    }
}
