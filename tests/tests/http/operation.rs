//! What operators see: probes, metrics, keys.

use std::sync::Arc;

use palimpsest_coordinator::Config;
use palimpsest_coordinator::keys::ApiKeys;
use palimpsest_proto::v1::GenerateRequest;
use palimpsest_proto::v1::generate_request::Input;
use palimpsest_tests::service::ask;
use serde_json::{Value, json};

use crate::client::Http;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn probes_models_and_metrics_are_answered() {
    let http = Http::start(Config::default()).await;
    for (path, expected) in [("/health", "ok"), ("/readyz", "ready")] {
        let reply = http.send("GET", path, "", Value::Null).await;
        assert_eq!((reply.status, reply.body.as_str()), (200, expected));
    }
    let models = http.send("GET", "/v1/models", "", Value::Null).await.json();
    assert_eq!(
        (&models["object"], &models["data"][0]["id"]),
        (&json!("list"), &json!("tiny"))
    );
    assert_eq!(
        http.send("GET", "/v1/models/tiny", "", Value::Null)
            .await
            .json()["object"],
        "model"
    );
    let tokens = http
        .post("/tokenize", json!({"prompt": "abc"}))
        .await
        .json();
    assert_eq!(tokens["count"], 3);
    http.post(
        "/v1/completions",
        json!({"prompt": "abc", "max_tokens": 4, "ignore_eos": true}),
    )
    .await;
    let metrics = http.metrics().await;
    assert!(
        metrics.head.contains("application/openmetrics-text"),
        "{}",
        metrics.head
    );
    let plain = http
        .send("GET", "/metrics", "accept: text/plain\r\n", Value::Null)
        .await;
    assert!(plain.head.contains("text/plain"), "{}", plain.head);
    assert!(!plain.body.contains("# EOF"));
    for line in [
        "palimpsest_generated_tokens_total 4",
        "palimpsest_requests_total{outcome=\"length\"} 1",
        "palimpsest_inter_token_seconds_count 3",
    ] {
        assert!(
            metrics.body.lines().any(|found| found == line),
            "{line} is missing in {}",
            metrics.body
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_asked_for_on_every_api_but_not_by_probes() {
    // sha256("secret")
    let line = "a:2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";
    let keys = Some(Arc::new(ApiKeys::parse(line).expect("a key")));
    let http = Http::start(Config {
        keys,
        ..Config::default()
    })
    .await;
    let body = json!({"prompt": "abc", "max_tokens": 1});
    for headers in [
        "",
        "authorization: Bearer wrong\r\n",
        "authorization: Basic secret\r\n",
    ] {
        let reply = http
            .send("POST", "/v1/completions", headers, body.clone())
            .await;
        assert_eq!(
            (reply.status, &reply.json()["error"]["code"]),
            (401, &json!("invalid_api_key"))
        );
        assert!(
            reply.head.contains("www-authenticate: bearer"),
            "{}",
            reply.head
        );
    }
    let reply = http
        .send(
            "POST",
            "/v1/completions",
            "authorization: Bearer secret\r\n",
            body,
        )
        .await;
    assert_eq!(reply.status, 200, "{reply:?}");
    for probe in ["/health", "/readyz", "/metrics"] {
        assert_eq!(http.send("GET", probe, "", Value::Null).await.status, 200);
    }
    let request = GenerateRequest {
        input: Some(Input::Text("abc".into())),
        ..Default::default()
    };
    let refused = ask(&http.service.client, request.clone())
        .await
        .expect_err("no key");
    assert_eq!(refused.code(), tonic::Code::Unauthenticated);
    let mut keyed = tonic::Request::new(request);
    keyed
        .metadata_mut()
        .insert("authorization", "Bearer secret".parse().expect("ASCII"));
    assert!(http.service.client.clone().generate(keyed).await.is_ok());
}

/// What a key may ask for holds over both APIs, and whose it is stands in metrics.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_asks_for_no_more_than_its_line_says() {
    // sha256("secret"), sha256("other")
    let lines = "slow:2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b \
                 max-priority=0 max-requests=1\n\
                 old:d9298a10d1b0735837dc4bd85dac641b0f3cef27a47e5d53a54f2f3f5b2fcffa \
                 expires=2001-09-09";
    let keys = Some(Arc::new(ApiKeys::parse(lines).expect("keys")));
    let http = Http::start(Config {
        keys,
        ..Config::default()
    })
    .await;
    let (secret, other) = (
        "authorization: Bearer secret\r\n",
        "authorization: Bearer other\r\n",
    );
    let post = async |key: &'static str, priority: i32| {
        let body = json!({"prompt": "abc", "max_tokens": 1, "priority": priority});
        http.send("POST", "/v1/completions", key, body).await
    };
    let expired = post(other, 0).await;
    assert_eq!(expired.status, 401);
    assert!(expired.body.contains("has expired"), "{}", expired.body);
    let error = post(secret, 1).await.json();
    assert_eq!(error["error"]["code"], "priority_not_allowed");
    assert_eq!(error["error"]["param"], "priority");
    assert_eq!(post(secret, 0).await.status, 200);
    // An answer that nobody reads to its end is under way until it is dropped.
    let mut held = tonic::Request::new(GenerateRequest {
        input: Some(Input::Text("abc".into())),
        stopping: Some(palimpsest_proto::v1::Stopping {
            max_tokens: Some(200),
            ignore_eos: true,
            ..Default::default()
        }),
        ..Default::default()
    });
    held.metadata_mut()
        .insert("authorization", "Bearer secret".parse().expect("ASCII"));
    let mut client = http.service.client.clone();
    let held = client.generate(held).await.expect("the only one");
    let refused = post(secret, 0).await;
    assert_eq!(
        (refused.status, &refused.json()["error"]["code"]),
        (429, &json!("key_limit"))
    );
    drop(held);
    while post(secret, 0).await.status != 200 {
        tokio::task::yield_now().await;
    }
    let metrics = http.metrics().await;
    for line in [
        "palimpsest_tenant_requests_total{tenant=\"slow\",outcome=\"priority_not_allowed\"} 1",
        "palimpsest_tenant_requests_total{tenant=\"slow\",outcome=\"length\"} 2",
        "palimpsest_tenant_requests_total{tenant=\"slow\",outcome=\"cancelled\"} 1",
    ] {
        assert!(
            metrics.body.lines().any(|found| found == line),
            "{line} is missing in {}",
            metrics.body
        );
    }
    assert!(!metrics.body.contains("secret"), "no key anywhere");
}
