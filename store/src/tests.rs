//! One suite for every store, and what each place means.

use std::time::Duration;

use super::*;

#[tokio::test]
async fn memory_conforms() {
    conformance::run(Store::memory()).await;
    conformance::run(Store::open("memory:").expect("a store")).await;
}

#[tokio::test]
async fn a_directory_conforms_and_outlives_its_handle() {
    let directory = tempfile::tempdir().expect("a directory");
    let place = directory.path().join("new").display().to_string();
    conformance::run(Store::open(&place).expect("a store")).await;
    let again = Store::open(&format!("file://{place}")).expect("the same store");
    assert_eq!(again.get("ab", 9).await.expect("kept"), &[5][..]);
}

#[tokio::test]
async fn a_damaged_record_is_never_returned() {
    let store = Store::memory();
    let whole = sealed::seal(b"record");
    for at in 0..whole.len() {
        let mut flipped = whole.clone();
        flipped[at] ^= 1;
        store.put("r", flipped).await.expect("room");
        let read = store.get_sealed("r", 99).await;
        assert!(
            matches!(read, Err(Error::Damaged { .. })),
            "byte {at}: {read:?}"
        );
        store.put("r", whole[..at].to_vec()).await.expect("room");
        let read = store.get_sealed("r", 99).await;
        assert!(
            matches!(read, Err(Error::Damaged { .. })),
            "cut at {at}: {read:?}"
        );
    }
}

#[test]
fn places_that_name_no_store_are_refused_without_secrets() {
    for place in ["", "file://host/a", "nonsense://x", "s3://"] {
        assert!(
            matches!(Store::open(place), Err(Error::Place { .. })),
            "{place}"
        );
    }
    let error = Store::open("other://user:secret@host/path?token=secret").expect_err("no store");
    assert!(!error.to_string().contains("secret"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_does_not_answer_is_late() {
    use object_store::throttle::{ThrottleConfig, ThrottledStore};
    let config = ThrottleConfig {
        wait_get_per_call: Duration::from_secs(60),
        ..ThrottleConfig::default()
    };
    let slow = ThrottledStore::new(InMemory::new(), config);
    let store = Store::over(Arc::new(slow), Path::default(), "slow").with_limit(CALL_LIMIT);
    let late = store.get("key", 1).await;
    assert!(matches!(late, Err(Error::Late { .. })), "{late:?}");
}
