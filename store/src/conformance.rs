//! What every store does, whatever keeps its bytes.

use crate::{Entry, Error, Store};

/// Runs the suite over an empty store.
///
/// # Panics
/// If the store does not conform.
pub async fn run(store: Store) {
    let missing = |key: &str| Error::Missing { key: key.into() };
    assert_eq!(store.get("a/b", 9).await, Err(missing("a/b")));
    store.delete("a/b").await.expect("nothing to delete");
    assert_eq!(store.list("a").await, Ok(Vec::new()));

    store.put("a/b", vec![1, 2, 3]).await.expect("room");
    store.put("a/c", vec![4]).await.expect("room");
    store.put("ab", vec![5]).await.expect("room");
    store.put("empty", Vec::new()).await.expect("room");
    assert_eq!(store.get("a/b", 3).await.expect("kept"), &[1, 2, 3][..]);
    assert!(store.get("empty", 3).await.expect("kept").is_empty());
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
