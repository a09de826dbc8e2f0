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
