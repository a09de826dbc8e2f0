//! Answers of the default model to schemas of many shapes. `cargo xtask test` fetches the model and
//! sets PALIMPSEST_TEST_MODEL; without it this test says that it is skipped. It asks once for each
//! schema; PALIMPSEST_GUIDED_ANSWERS=1000 asks a thousand times in all.

use std::path::PathBuf;
use std::sync::Arc;

use palimpsest_coordinator::Config;
use palimpsest_proto::v1::generate_request::Input;
use palimpsest_proto::v1::{
    Chat, ChatMessage, FinishReason, GenerateRequest, Guide, KvContract, Sampling, Stopping,
};
use palimpsest_tests::service::{TestService, ask, serve};
use serde_json::Value;
use tokio::sync::Semaphore;

/// Answers at a time.
const TOGETHER: usize = 8;
/// No answer here is as long.
const MOST_TOKENS: u32 = 1500;

fn schemas() -> Vec<Value> {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/data/schemas.json");
    let text = std::fs::read_to_string(file).expect("a file of the repository");
    serde_json::from_str(&text).expect("a list")
}

fn request(schema: &Value, seed: u64) -> GenerateRequest {
    let content = format!(
        "Answer in JSON with {}.",
        schema["name"].as_str().expect("a name")
    );
    let message = ChatMessage {
        role: "user".into(),
        content,
        ..Default::default()
    };
    GenerateRequest {
        input: Some(Input::Chat(Chat {
            messages: vec![message],
            ..Default::default()
        })),
        sampling: Some(Sampling {
            temperature: Some(1.0),
            seed: Some(seed),
            ..Default::default()
        }),
        stopping: Some(Stopping {
            max_tokens: Some(MOST_TOKENS),
            ..Default::default()
        }),
        kv: Some(KvContract {
            policy: "full".into(),
            ..Default::default()
        }),
        guide: Some(Guide::of_schema(schema["schema"].to_string())),
        ..Default::default()
    }
}

/// What is wrong with an answer.
fn problem(schema: &Value, text: &str) -> Option<String> {
    let value: Value = match serde_json::from_str(text) {
        Ok(value) => value,
        Err(error) => return Some(format!("no JSON ({error})")),
    };
    let options = jsonschema::options().should_validate_formats(true);
    let validator = options.build(&schema["schema"]).expect("a schema");
    let errors: Vec<String> = validator
        .iter_errors(&value)
        .map(|it| it.to_string())
        .collect();
    (!errors.is_empty()).then(|| errors.join("; "))
}

async fn answer(service: &TestService, schema: &Value, seed: u64) -> Option<String> {
    let answer = ask(&service.client, request(schema, seed)).await;
    let answer = match answer {
        Ok(answer) => answer,
        Err(status) => return Some(status.to_string()),
    };
    let reason = answer.finished.reason();
    let cut = (reason != FinishReason::Eos).then(|| format!("it ended by {reason:?}"));
    let problem = cut.or_else(|| problem(schema, &answer.text))?;
    Some(format!("{problem}: {}", answer.text))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_answer_parses_and_validates() {
    let Some(path) = std::env::var_os("PALIMPSEST_TEST_MODEL").map(PathBuf::from) else {
        eprintln!("SKIPPED: set PALIMPSEST_TEST_MODEL, or run `cargo xtask test`");
        return;
    };
    let schemas: Arc<Vec<Value>> = Arc::new(schemas());
    assert!(schemas.len() >= 60, "{} schemas", schemas.len());
    let asked = std::env::var("PALIMPSEST_GUIDED_ANSWERS");
    let count: usize = asked.map_or(schemas.len(), |count| count.parse().expect("a number"));
    let service = Arc::new(serve(&path, None, 768 << 20, Config::default()).await);
    let places = Arc::new(Semaphore::new(TOGETHER));
    let asked: Vec<_> = (0..count)
        .map(|number| {
            let (service, schemas) = (service.clone(), schemas.clone());
            let places = places.clone();
            tokio::spawn(async move {
                let _place = places.acquire().await.expect("it is open");
                let schema = &schemas[number % schemas.len()];
                let problem = answer(&service, schema, number as u64).await?;
                Some(format!("{number}, {}: {problem}", schema["name"]))
            })
        })
        .collect();
    let mut problems = Vec::new();
    for asked in asked {
        problems.extend(asked.await.expect("no panic"));
    }
    for line in service.coordinator.service().metrics.encode().lines() {
        if line.contains("mask_wait") || line.contains("steps_total") {
            println!("{line}");
        }
    }
    assert!(
        problems.is_empty(),
        "{} of {count}:\n{}",
        problems.len(),
        problems.join("\n")
    );
}
