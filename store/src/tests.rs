//! One suite for every store, and what each place means.

use std::time::Duration;

use super::*;

/// What every store does.
async fn conforms(store: Store) {
    let missing = |key: &str| Error::Missing { key: key.into() };
    assert_eq!(store.get("a/b", 9).await, Err(missing("a/b")));
    store.delete("a/b").await.expect("nothing to delete");

    store.put("a/b", vec![1, 2, 3]).await.expect("room");
    store.put("a/c", vec![4]).await.expect("room");
    store.put("ab", vec![5]).await.expect("room");
    assert_eq!(store.get("a/b", 3).await.expect("kept"), &[1, 2, 3][..]);
    let too_long = Error::TooLong {
        key: "a/b".into(),
        bytes: 3,
        most: 2,
    };
    assert_eq!(store.get("a/b", 2).await, Err(too_long));

    let keys = |entries: Vec<Entry>| entries.into_iter().map(|e| e.key).collect::<Vec<_>>();
    assert_eq!(keys(store.list("a").await.expect("a list")), ["a/b", "a/c"]);

    store.put("a/b", vec![7]).await.expect("room");
    assert_eq!(store.get("a/b", 3).await.expect("kept"), &[7][..]);
    store.delete("a/b").await.expect("deleted");
    assert_eq!(store.get("a/b", 9).await, Err(missing("a/b")));

    store.put_sealed("r", b"record").await.expect("room");
    assert_eq!(
        store.get_sealed("r", 6).await.expect("whole"),
        &b"record"[..]
    );
    for key in [
        "", "/", "a//b", "../a", "a/..", ".", "a b", "\u{e9}", "a\\b",
    ] {
        let refused = Err(Error::Key { key: key.into() });
        assert_eq!(store.put(key, vec![0]).await, refused);
        assert_eq!(store.delete(key).await, refused);
    }
}

#[tokio::test]
async fn memory_conforms() {
    conforms(Store::memory()).await;
    conforms(Store::open("memory:").expect("a store")).await;
}

#[tokio::test]
async fn a_directory_conforms_and_outlives_its_handle() {
    let directory = tempfile::tempdir().expect("a directory");
    let place = directory.path().join("new").display().to_string();
    conforms(Store::open(&place).expect("a store")).await;
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
