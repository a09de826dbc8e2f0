//! Responses event by event.

use async_openai::types::responses as openai;
use futures::StreamExt;
use serde_json::{Value, json};

use super::server::{Server, post_of};
use crate::Config;
use crate::executor::fake::{Fault, Script};

/// One event a line, without what differs from run to run.
fn lines(events: &[Value]) -> String {
    let id = events[0]["response"]["id"].as_str().unwrap();
    let digits = id.strip_prefix("resp_").unwrap().to_owned();
    let line = |event: &Value| {
        let mut event = event.clone();
        if let Some(response) = event.get_mut("response") {
            for time in ["created_at", "completed_at"] {
                if response[time].is_u64() {
                    response[time] = json!(7);
                }
            }
            if let Some(usage) = response["usage"].as_object_mut() {
                usage.remove("kv");
            }
        }
        format!("{}\n", event.to_string().replace(&digits, "X"))
    };
    events.iter().map(line).collect()
}

/// Deltas that came together are told apart: how tokens are cut into texts is not of this page.
fn assert_golden(events: &[Value], golden: &str) {
    let found = lines(events);
    assert_eq!(found, golden, "the events are\n{found}");
    for event in events {
        // A published implementation of OpenAI's types knows each of them.
        serde_json::from_value::<openai::ResponseStreamEvent>(event.clone()).unwrap();
    }
}

#[tokio::test]
async fn events_come_in_openais_order() {
    let server = Server::saying("Hi!", Config::default()).await;
    let body = json!({"input": "a", "stream": true});
    let reply = server.create(body).await;
    assert_golden(&reply.events(), include_str!("completed.events"));
    assert_eq!(server.kept(), 1);
    // The last event has what is kept.
    let events = reply.events();
    let response = &events.last().unwrap()["response"];
    let id = response["id"].as_str().unwrap();
    let found = server.call("GET", &format!("/v1/responses/{id}")).await;
    assert_eq!(found.json(), *response);
}

#[tokio::test]
async fn a_stream_that_meets_its_limit_ends_as_incomplete() {
    let server = Server::saying("Hi!", Config::default()).await;
    let body = json!({"input": "a", "stream": true, "max_output_tokens": 1, "store": false});
    let events = server.create(body).await.events();
    let kinds: Vec<_> = events
        .iter()
        .map(|event| event["type"].as_str().unwrap())
        .collect();
    assert_eq!(
        kinds,
        [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.content_part.added",
            "response.output_text.delta",
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.incomplete",
        ]
    );
    assert_eq!(events[5]["text"], "H");
    assert_eq!(server.kept(), 0);
}

/// An answer without text has an empty one.
#[tokio::test]
async fn an_empty_answer_has_all_events_but_deltas() {
    let server = Server::saying("", Config::default()).await;
    let events = server
        .create(json!({"input": "a", "stream": true}))
        .await
        .events();
    let kinds: Vec<_> = events
        .iter()
        .map(|event| event["type"].as_str().unwrap())
        .collect();
    assert_eq!(
        kinds[2..5],
        [
            "response.output_item.added",
            "response.content_part.added",
            "response.output_text.done",
        ]
    );
    assert_eq!(
        events.last().unwrap()["response"]["output"][0]["content"][0]["text"],
        ""
    );
}

#[tokio::test]
async fn a_stream_that_fails_says_why_and_keeps_nothing() {
    // Before the first token, and behind some.
    for (plan, code) in [(3, "rank_failed"), (9, "group_lost")] {
        let faulty = |script: Script| script.with_fault(plan, Fault::FailSequence);
        let server = Server::with("a long answer", Config::default(), faulty).await;
        let body = json!({"input": "a", "stream": true});
        let events = server.create(body).await.events();
        let [.., error, failed] = &events[..] else {
            panic!("{events:?}")
        };
        assert_eq!(
            (&error["type"], &error["code"]),
            (&json!("error"), &json!(code))
        );
        assert_eq!(failed["type"], "response.failed");
        let response = &failed["response"];
        assert_eq!(
            (&response["status"], &response["output"]),
            (&json!("failed"), &json!([]))
        );
        assert_eq!(response["error"]["code"], "server_error");
        for event in &events {
            serde_json::from_value::<openai::ResponseStreamEvent>(event.clone()).unwrap();
        }
        let deltas = events
            .iter()
            .filter(|event| event["type"] == "response.output_text.delta");
        assert_eq!(deltas.count() > 0, plan == 9);
        assert_eq!(server.kept(), 0);
    }
}

/// What is wrong with a request is said before a stream begins.
#[tokio::test]
async fn a_refused_stream_is_no_stream() {
    let server = Server::saying("Hi!", Config::default()).await;
    let reply = server
        .create(json!({"input": "a", "stream": true, "temperature": -1}))
        .await;
    assert_eq!(
        reply.error(),
        (400, json!("bad_sampling"), json!("temperature"))
    );
}

#[tokio::test]
async fn a_client_that_goes_away_cancels_its_request_and_keeps_nothing() {
    let server = Server::with("Hi!", Config::default(), |script| {
        script.with_step_time(std::time::Duration::from_millis(20))
    })
    .await;
    let body = json!({"input": "a", "stream": true, "ignore_eos": true, "max_output_tokens": 400});
    let response = server.open(post_of(&body, "")).await;
    let mut body = response.into_body().into_data_stream();
    body.next().await.unwrap().unwrap();
    drop(body);
    let metrics = || server.coordinator.service().metrics.encode();
    while !metrics().contains("palimpsest_requests_running 0") {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    assert!(
        metrics().contains("outcome=\"cancelled\"} 1"),
        "{}",
        metrics()
    );
    assert_eq!(server.kept(), 0);
}
