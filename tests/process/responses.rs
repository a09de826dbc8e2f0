//! Responses that outlive the process that made them.

use std::process::Command;

use serde_json::{Value, json};

use crate::serving::Serving;

fn start(place: &str) -> Serving {
    Serving::start_with(&[], &["--response-store", place])
}

/// An answer's status and object.
fn ask(serving: &Serving, method: &str, path: &str, body: &Value) -> (u16, Value) {
    let body = match body {
        Value::Null => String::new(),
        body => body.to_string(),
    };
    let answer = serving.send(method, path, "", &body);
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok());
    (
        status.expect("a status"),
        serde_json::from_str(body).expect("JSON"),
    )
}

fn create(serving: &Serving, input: &str, previous: &Value) -> Value {
    let body = json!({
        "input": input, "previous_response_id": previous, "max_output_tokens": 4,
        "temperature": 0, "ignore_eos": true,
    });
    let (status, response) = ask(serving, "POST", "/v1/responses", &body);
    assert_eq!(status, 200, "{response}");
    response
}

/// Each process is killed as soon as its client has an answer.
#[test]
fn a_conversation_goes_on_through_processes_that_are_killed() {
    let directory = tempfile::tempdir().expect("a directory");
    let place = directory.path().to_str().expect("UTF-8");
    let mut last = Value::Null;
    let mut made = Vec::new();
    for turn in 0..4 {
        let serving = start(place);
        for response in &made {
            let response: &Value = response;
            let path = format!("/v1/responses/{}", response["id"].as_str().expect("a name"));
            let (status, found) = ask(&serving, "GET", &path, &Value::Null);
            assert_eq!((status, &found), (200, response));
        }
        let response = create(&serving, &format!("turn {turn}"), &last);
        serving.signal("KILL");
        last = response["id"].clone();
        made.push(response);
    }
    let serving = start(place);
    let path = format!(
        "/v1/responses/{}/input_items?order=asc",
        last.as_str().expect("a name")
    );
    let (_, items) = ask(&serving, "GET", &path, &Value::Null);
    let items = items["data"].as_array().expect("items").iter();
    let texts: Vec<_> = items.map(|item| &item["content"][0]["text"]).collect();
    let said = |turn: usize| &made[turn]["output"][0]["content"][0]["text"];
    let asked: Vec<_> = (0..4).map(|turn| json!(format!("turn {turn}"))).collect();
    let expected = [
        &asked[0],
        said(0),
        &asked[1],
        said(1),
        &asked[2],
        said(2),
        &asked[3],
    ];
    assert_eq!(texts, expected);
}

#[test]
fn a_place_of_responses_that_another_process_has_is_refused_by_its_name() {
    let directory = tempfile::tempdir().expect("a directory");
    let place = directory.path().to_str().expect("UTF-8");
    let _first = start(place);
    let model = palimpsest_tests::tiny_model(1);
    let second = Command::new(env!("CARGO_BIN_EXE_palimpsest"))
        .args(["serve", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"])
        .args([
            "--response-store",
            place,
            "--kv-memory-mib",
            "64",
            "--model",
        ])
        .arg(model.path())
        .output()
        .expect("the program runs");
    let said = String::from_utf8_lossy(&second.stderr);
    assert_eq!(second.status.code(), Some(1), "{said}");
    assert!(
        said.contains("--response-store") && said.contains("process "),
        "{said}"
    );
}
