//! Object stores by URL, against an implementation of S3 that is not ours: moto, on loopback.
#![forbid(unsafe_code)]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use palimpsest_store::{Error, Store, conformance};
use palimpsest_tests::objects::{Between, ObjectStore, PAGE, Way};

/// Never repeated by an error.
const SECRET: &str = "the-secret-key-of-this-test";

/// A bucket of the S3 at `address`, or a folder of it.
fn bucket(address: SocketAddr, place: &str) -> Store {
    let endpoint = format!("http://{address}");
    let variables = [
        ("AWS_ACCESS_KEY_ID", "an-identity"),
        ("AWS_SECRET_ACCESS_KEY", SECRET),
        ("AWS_REGION", "us-east-1"),
        ("AWS_ALLOW_HTTP", "true"),
        ("AWS_ENDPOINT_URL", &endpoint),
    ];
    let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
    Store::open_with(&format!("s3://{place}"), variables.into()).expect("a store")
}

/// One server for all of it: it takes longer to start than all that is asked of it.
#[tokio::test]
async fn s3_does_what_every_store_does() {
    let Some(server) = ObjectStore::s3() else {
        return;
    };
    let address = server.address;
    for name in ["states", "claimed"] {
        server.make_bucket(name);
    }
    let suite = async {
        conformance::run(bucket(address, "states")).await;
        conformance::run(bucket(address, "states/a/folder")).await;
        let found = bucket(address, "states").list("a").await.expect("a list");
        let keys: Vec<_> = found.iter().map(|entry| &entry.key[..]).collect();
        assert!(keys.contains(&"a/folder/a/c"), "{keys:?}");
        find_all_pages(&bucket(address, "states")).await;
        refuse_without_a_bucket(&bucket(address, "nowhere")).await;
    };
    // The second one watches the first for a beat of its lease.
    let claims = async {
        let store = bucket(address, "claimed");
        let first = store.claim("first").await.expect("nobody has it");
        let second = bucket(address, "claimed").claim("second").await;
        let is_refused = matches!(&second, Err(Error::Taken { owner, .. }) if owner == "first");
        assert!(is_refused, "{second:?}");
        first.release().await.expect("given back");
    };
    tokio::join!(suite, claims);
}

async fn find_all_pages(store: &Store) {
    let count = 2 * PAGE + 1;
    for number in 0..count {
        let put = store.put(&format!("many/{number:04}"), vec![1]).await;
        put.expect("room");
    }
    assert_eq!(store.list("many").await.expect("a list").len(), count);
}

/// A bucket that is not there is no empty store.
async fn refuse_without_a_bucket(store: &Store) {
    let claimed = store.claim("somebody").await.map(|_| ());
    for error in [
        store.put("key", vec![1]).await.expect_err("no bucket"),
        store.get("key", 9).await.expect_err("no bucket"),
        store.list("a").await.expect_err("no bucket"),
        claimed.expect_err("no bucket"),
    ] {
        assert!(error.to_string().contains("NoSuchBucket"), "{error}");
    }
}

#[tokio::test]
async fn what_fails_on_the_way_to_s3_is_said_in_time_and_leaves_nothing_half_done() {
    let Some(server) = ObjectStore::s3() else {
        return;
    };
    server.make_bucket("states");
    let between = Between::before(server.address);
    let store = bucket(between.address, "states");
    store.put("key", vec![1]).await.expect("room");
    for (status, code) in [
        (500, "InternalError"),
        (403, "AccessDenied"),
        (507, "InsufficientStorage"),
    ] {
        between.set(Way::Refused { status, code });
        refuse(&store, &status.to_string(), code).await;
    }
    pass_over_a_moment(&store, &between).await;
    cut(&store, &between, server.address).await;

    between.set(Way::Silence);
    let limit = Duration::from_millis(300);
    let late = store.clone().with_limit(limit).get("key", 9).await;
    assert!(matches!(late, Err(Error::Late { .. })), "{late:?}");
    between.set(Way::Through);
    assert_eq!(store.get("key", 9).await.expect("kept"), &[1][..]);
}

/// All calls say what the store says, without what must not be repeated, and before a caller's
/// patience ends.
async fn refuse(store: &Store, status: &str, code: &str) {
    let limit = Duration::from_secs(10);
    let store = store.clone().with_limit(limit);
    let begun = Instant::now();
    let (put, get, list, delete) = tokio::join!(
        store.put("key", vec![2]),
        store.get("key", 9),
        store.list("a"),
        store.delete("key"),
    );
    assert!(begun.elapsed() < limit, "{:?}", begun.elapsed());
    for error in [put.err(), get.err(), list.err(), delete.err()] {
        let error = error.expect("it is refused");
        let said = error.to_string();
        assert!(matches!(error, Error::Failed { .. }), "{error:?}");
        assert!(said.contains(status) && said.contains(code), "{said}");
        let secrets = [SECRET, "a-secret-of-the-store"];
        assert!(
            !secrets.iter().any(|secret| said.contains(secret)),
            "{said}"
        );
    }
}

/// What fails twice and then goes well is nobody's trouble.
async fn pass_over_a_moment(store: &Store, between: &Between) {
    between.set(Way::Refused {
        status: 503,
        code: "SlowDown",
    });
    let own = between.clone();
    std::thread::spawn(move || {
        while own.requests() < 2 {
            std::thread::sleep(Duration::from_millis(1));
        }
        own.set(Way::Through);
    });
    let put = store.put("moment", vec![1]).await;
    put.expect("one of the next attempts");
}

/// Nothing of an object is taken for the whole of it.
async fn cut(store: &Store, between: &Between, address: SocketAddr) {
    let bytes: Vec<u8> = (0..8_000_000u32).map(|i| (i >> 7) as u8).collect();
    store.put("state", bytes.clone()).await.expect("room");
    between.set(Way::CutAnswer);
    let got = store.get("state", 1 << 30).await.map(|bytes| bytes.len());
    assert!(matches!(got, Err(Error::Failed { .. })), "{got:?}");
    between.set(Way::CutRequest);
    let put = store.put("state", vec![1; 3000]).await;
    assert!(matches!(put, Err(Error::Failed { .. })), "{put:?}");
    let kept = bucket(address, "states").get("state", 1 << 30).await;
    assert!(kept.expect("kept") == bytes);
    between.set(Way::Through);
}
