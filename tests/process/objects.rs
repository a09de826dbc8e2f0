//! States that are kept in an object store, and what the service does when that store fails.

use palimpsest_store::Store;
use palimpsest_tests::objects::{Between, ObjectStore, Way};
use palimpsest_tests::{STRIDE, tiny_model};
use serde_json::{Value, json};

use crate::serving::Serving;
use crate::sessions::{json as session, refusal};

/// How the service reaches the store.
fn variables(between: &Between) -> Vec<(String, String)> {
    [
        ("AWS_ACCESS_KEY_ID", "an-identity"),
        ("AWS_SECRET_ACCESS_KEY", "a-secret"),
        ("AWS_REGION", "us-east-1"),
        ("AWS_ENDPOINT_URL", &format!("http://{}", between.address)),
        ("AWS_ALLOW_HTTP", "true"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into()
}

fn serve(model: &tempfile::TempDir, between: &Between, sessions: &str) -> Serving {
    let variables = variables(between);
    let env: Vec<_> = variables
        .iter()
        .map(|(name, value)| (&name[..], &value[..]))
        .collect();
    let stores = ["--snapshot-store", "s3://states/kept"];
    let args = [&stores[..], &["--session-store", sessions]].concat();
    Serving::start_over(model.path(), &env, &args)
}

/// Asks on a session, and returns the text and how many tokens were not read.
fn ask(serving: &Serving, session: &str, prompt: &str) -> (String, u64) {
    let body = json!({
        "session_id": session, "prompt": prompt, "max_tokens": 4, "temperature": 0,
    });
    let answer = serving.send("POST", "/v1/completions", "", &body.to_string());
    let (_, body) = answer.split_once("\r\n\r\n").expect("a body");
    let body: Value = serde_json::from_str(body).unwrap_or_else(|_| panic!("{answer}"));
    let text = body["choices"][0]["text"].as_str();
    let cached = &body["usage"]["prompt_tokens_details"]["cached_tokens"];
    (
        text.unwrap_or_else(|| panic!("{answer}")).to_owned(),
        cached.as_u64().unwrap_or(0),
    )
}

/// Keys of all kept states.
fn kept(between: &Between) -> Vec<String> {
    let runtime = tokio::runtime::Runtime::new().expect("threads");
    let store = Store::open_with("s3://states/kept", variables(between)).expect("a store");
    let listed = runtime.block_on(store.list("snapshots")).expect("a list");
    listed.into_iter().map(|entry| entry.key).collect()
}

#[test]
fn a_store_that_fails_in_the_middle_of_a_suspend_loses_nothing_and_gets_the_state_later() {
    let Some(server) = ObjectStore::s3() else {
        return;
    };
    server.make_bucket("states");
    let between = Between::before(server.address);
    let (model, sessions) = (tiny_model(1), tempfile::tempdir().expect("a directory"));
    let sessions = sessions.path().display().to_string();
    let serving = serve(&model, &between, &sessions);
    let document = "Once upon a time there was a king. ".repeat(4);

    // What a request leaves is written when it ends: it must not be there before the suspend.
    let refused = |status, code| Way::Refused { status, code };
    between.set_for("PUT", refused(500, "InternalError"));
    session(&serving, &["create", "doc"]);
    session(&serving, &["append", "doc", "--raw", "--prompt", &document]);
    for way in [
        refused(500, "InternalError"),
        refused(403, "AccessDenied"),
        Way::CutRequest,
    ] {
        between.set_for("PUT", way);
        let said = refusal(&serving, &["suspend", "doc"]);
        assert!(said.contains("store_unavailable"), "{way:?}: {said}");
        assert!(!said.contains("a-secret"), "{said}");
        assert!(between.requests() > 0, "{way:?}: the store was asked");
        let shown = session(&serving, &["show", "doc"]);
        assert_eq!(shown["state"], "idle", "{way:?}");
    }
    between.set(Way::Through);
    assert!(kept(&between).is_empty(), "half a state is none");
    session(&serving, &["fork", "doc", "copy"]);
    let (first, cached) = ask(&serving, "copy", "And then");
    assert!(cached >= STRIDE, "it stayed in memory: {cached} tokens");

    let moved = session(&serving, &["suspend", "doc"]);
    assert!(moved["moved_bytes"].as_u64() > Some(0), "{moved}");
    assert!(!kept(&between).is_empty());
    serving.signal("KILL");
    serving.ended();

    let serving = serve(&model, &between, &sessions);
    session(&serving, &["resume", "doc"]);
    let (again, cached) = ask(&serving, "doc", "And then");
    assert_eq!(again, first);
    assert!(cached >= STRIDE, "{cached} tokens were kept");
    // A client that is told that a session is deleted is told that nothing of it is left.
    for id in ["copy", "doc"] {
        session(&serving, &["delete", id]);
    }
    assert_eq!(kept(&between), Vec::<String>::new());
    serving.stop();
}
