//! Guides over gRPC, against a real engine on a tiny model.

use palimpsest_coordinator::Config;
use palimpsest_proto::error::REASON_KEY;
use palimpsest_proto::v1::generate_request::Input;
use palimpsest_proto::v1::guide::Kind;
use palimpsest_proto::v1::{FinishReason, GenerateRequest, Guide, Sampling, Stopping};
use palimpsest_tests::service::{TestService, ask, serve};
use palimpsest_tests::tiny_model;
use serde_json::{Value, json};
use tonic::Code;

/// Whether a text is what a guide asks for.
type IsRight<'a> = &'a dyn Fn(&str) -> bool;

async fn start() -> TestService {
    let model = tiny_model(31);
    serve(model.path(), None, 16 << 20, Config::default()).await
}

fn request(guide: Guide, max_tokens: u32) -> GenerateRequest {
    GenerateRequest {
        input: Some(Input::Text("tell me".into())),
        sampling: Some(Sampling {
            temperature: Some(1.0),
            seed: Some(3),
            ..Default::default()
        }),
        stopping: Some(Stopping {
            max_tokens: Some(max_tokens),
            ..Default::default()
        }),
        guide: Some(guide),
        ..Default::default()
    }
}

fn schema(schema: &Value) -> Guide {
    Guide::of_schema(schema.to_string())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_are_what_their_guides_say_and_end_there() {
    let service = start().await;
    let object = schema(&json!({
        "type": "object", "additionalProperties": false, "required": ["b", "a"],
        "properties": {"b": {"type": "string", "maxLength": 5}, "a": {"type": "boolean"}},
    }));
    let texts = Guide::of_texts(vec!["yes".into(), "no, never".into()]);
    let regex = Kind::Regex("[a-f]{4}-[0-9]{2}".into()).into();
    let grammar = Kind::Grammar("start: \"<\" WORD \">\"\nWORD: /[a-z]{1,4}/".into()).into();
    let is_object = |text: &str| {
        let value: Value = serde_json::from_str(text).expect("JSON");
        let object = value.as_object().expect("an object");
        let names: Vec<&str> = object.keys().map(String::as_str).collect();
        names == ["b", "a"] && value["a"].is_boolean()
    };
    let is_text = |text: &str| ["yes", "no, never"].contains(&text);
    let is_code = |text: &str| {
        let (letters, digits) = text.split_once('-').expect("a code");
        letters.chars().all(|c| ('a'..='f').contains(&c)) && digits.parse::<u8>().is_ok()
    };
    let is_word = |text: &str| text.starts_with('<') && text.ends_with('>') && text.len() < 7;
    let cases: [(Guide, IsRight<'_>); 4] = [
        (object, &is_object),
        (texts, &is_text),
        (regex, &is_code),
        (grammar, &is_word),
    ];
    for (guide, is_right) in cases {
        let answer = ask(&service.client, request(guide, 200)).await;
        let answer = answer.expect("an answer");
        assert!(is_right(&answer.text), "{}", answer.text);
        assert_eq!(answer.finished.reason(), FinishReason::Eos);
    }
    service.server.shut_down().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_is_cut_is_the_beginning_of_one() {
    let service = start().await;
    let guide = schema(&json!({"type": "array", "minItems": 50, "items": {"type": "integer"}}));
    let answer = ask(&service.client, request(guide, 9)).await;
    let answer = answer.expect("an answer");
    assert_eq!(answer.finished.reason(), FinishReason::Length);
    assert!(answer.text.starts_with('['), "{}", answer.text);
    service.server.shut_down().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_left_out_of_a_guide_is_a_warning() {
    let service = start().await;
    let guide = Guide {
        lenient: true,
        ..schema(
            &json!({"type": "array", "maxItems": 2, "items": {"const": 1}, "uniqueItems": true}),
        )
    };
    let answer = ask(&service.client, request(guide, 100)).await;
    let warnings = answer
        .expect("an answer")
        .finished
        .usage
        .expect("usage")
        .warnings;
    let found = warnings
        .iter()
        .find(|warning| warning.contains("uniqueItems"));
    let found = found.unwrap_or_else(|| panic!("{warnings:?}"));
    assert!(found.starts_with("guide.json_schema: "), "{found}");
    service.server.shut_down().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guides_that_cannot_be_used_are_refused_with_the_reason_and_the_place() {
    let service = start().await;
    let refused = |request: GenerateRequest| {
        let client = service.client.clone();
        async move {
            let status = ask(&client, request).await.expect_err("it is refused");
            assert_eq!(status.code(), Code::InvalidArgument);
            let reason = status.metadata().get(REASON_KEY).expect("a reason");
            (
                reason.to_str().expect("a tag").to_owned(),
                status.message().to_owned(),
            )
        }
    };
    for (guide, said) in [
        (
            schema(&json!({"type": "array", "uniqueItems": true})),
            "guide.json_schema: ",
        ),
        (
            Guide::of_texts(Vec::new()),
            "guide.choice: a choice needs at least one text",
        ),
        (Kind::Regex("(".into()).into(), "guide.regex: "),
        (
            Kind::Grammar("start: nothing".into()).into(),
            "guide.grammar: ",
        ),
        (Guide::default(), "guide: a guide is one of"),
        (
            Kind::Regex("a".repeat(70_000)).into(),
            "70000 bytes, over the limit of 65536",
        ),
    ] {
        let (reason, message) = refused(request(guide, 5)).await;
        assert_eq!(reason, "bad_guide", "{message}");
        assert!(message.contains(said), "{message}");
    }
    let mut endless = request(Guide::of_texts(vec!["a".into()]), 5);
    endless.stopping.as_mut().expect("it stops").ignore_eos = true;
    let (reason, message) = refused(endless).await;
    assert_eq!(reason, "bad_stopping");
    assert!(message.contains("ignore_eos"), "{message}");
    service.server.shut_down().await;
}
