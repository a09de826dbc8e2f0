//! What URLs and variables mean, without a network.

use super::*;
use crate::error::Error;

const KEYS: [(&str, &str); 3] = [
    ("AWS_ACCESS_KEY_ID", "an-identity"),
    ("AWS_SECRET_ACCESS_KEY", "a-secret"),
    ("AWS_REGION", "eu-central-1"),
];

fn open(place: &str, variables: &[(&str, &str)]) -> Result<Store> {
    let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    Store::open_with(place, variables.iter().map(own).collect())
}

fn refusal(place: &str, variables: &[(&str, &str)]) -> String {
    match open(place, variables) {
        Err(Error::Place { what, .. }) => what,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn urls_of_all_three_clouds_are_opened() {
    let azure = [
        ("AZURE_STORAGE_ACCOUNT_NAME", "account"),
        ("AZURE_STORAGE_ACCOUNT_KEY", "a2V5a2V5a2V5"),
    ];
    let google = [("GOOGLE_SKIP_SIGNATURE", "true")];
    for (place, variables) in [
        ("s3://bucket/some/folder", &KEYS[..]),
        ("s3a://bucket", &KEYS),
        ("gs://bucket/folder", &google),
        ("az://container/folder", &azure),
        (
            "abfss://container@account.dfs.core.windows.net/folder",
            &azure,
        ),
    ] {
        let store = open(place, variables).unwrap_or_else(|error| panic!("{place}: {error}"));
        assert!(place.starts_with(store.name().split("://").next().unwrap_or("?")));
    }
}

#[test]
fn plain_text_is_refused_unless_it_is_asked_for() {
    for (place, endpoint, allow) in [
        ("s3://bucket", "AWS_ENDPOINT_URL", "AWS_ALLOW_HTTP"),
        ("s3://bucket", "AWS_ENDPOINT_URL_S3", "AWS_ALLOW_HTTP"),
        ("gs://bucket", "GOOGLE_BASE_URL", "GOOGLE_ALLOW_HTTP"),
        (
            "az://container",
            "AZURE_STORAGE_ENDPOINT",
            "AZURE_ALLOW_HTTP",
        ),
    ] {
        let plain = (endpoint, "http://127.0.0.1:9/account");
        for asked in [&[plain][..], &[plain, (allow, "false")]] {
            let said = refusal(place, asked);
            assert!(
                said.contains("plain text") && said.contains(allow),
                "{said}"
            );
        }
    }
    let plain = ("AWS_ENDPOINT_URL", "http://127.0.0.1:9");
    let asked = [&KEYS[..], &[plain, ("AWS_ALLOW_HTTP", "true")]].concat();
    open("s3://bucket", &asked).expect("it is asked for");
}

#[tokio::test]
async fn variables_without_a_vendors_prefix_mean_nothing() {
    // Each of these is an option of `object_store`.
    let others = [
        ("ENDPOINT", "http://127.0.0.1:9"),
        ("BUCKET", "another"),
        ("TIMEOUT", "soon"),
        ("ALLOW_HTTP", "perhaps"),
    ];
    open("s3://bucket", &[&KEYS[..], &others].concat()).expect("they are nobody's");
}

#[test]
fn values_that_cannot_be_are_refused_and_not_repeated() {
    let bad = (
        "AWS_VIRTUAL_HOSTED_STYLE_REQUEST",
        "a-secret-in-the-wrong-place",
    );
    let said = refusal("s3://bucket", &[&KEYS[..], &[bad]].concat());
    assert!(said.contains("AWS_") && !said.contains(bad.1), "{said}");
    let said = refusal("az://container", &[]);
    assert!(said.contains("AZURE_"), "{said}");
    for place in ["s3:///folder", "s3://", "ftp://host/folder"] {
        assert!(open(place, &KEYS).is_err(), "{place}");
    }
}
