//! `/v1/score`: how likely completions are behind a prompt.

use std::time::{SystemTime, UNIX_EPOCH};

use axum::body::Body;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use palimpsest_proto::v1::{Score, ScoreResponse, TokenLogprob};
use serde::Serialize;
use serde_json::json;

use super::answers::write_json;
use super::error::HttpError;
use super::generate::Caller;
use super::wire::ScoreBody;
use crate::budget::held;
use crate::service::Service;

/// A score as JSON.
#[derive(Serialize)]
struct Entry {
    object: &'static str,
    index: usize,
    score: f64,
    is_greedy: bool,
    tokens: Vec<String>,
    // As f32: as f64 they would have twice the digits.
    token_logprobs: Vec<f32>,
}

impl Entry {
    fn of(index: usize, score: &Score) -> Self {
        let text = |token: &TokenLogprob| String::from_utf8_lossy(&token.bytes).into_owned();
        Self {
            object: "score",
            index,
            score: score.logprob,
            is_greedy: score.is_greedy,
            tokens: score.tokens.iter().map(text).collect(),
            token_logprobs: score.tokens.iter().map(|token| token.logprob).collect(),
        }
    }
}

/// Answers a request whose body was read.
///
/// # Errors
/// What is wrong with the request, or why it is not taken or fails now; nothing is answered then.
pub async fn answer(
    service: &Service,
    caller: Caller,
    body: ScoreBody,
) -> Result<Response, HttpError> {
    let asked = body.asked(caller.id)?;
    let scored = service.score(&caller.call, asked).await?;
    let body = held(Body::from(write(&scored)), None);
    Ok(([(header::CONTENT_TYPE, "application/json")], body).into_response())
}

fn write(scored: &ScoreResponse) -> Vec<u8> {
    let created = SystemTime::now().duration_since(UNIX_EPOCH);
    let created = created.map_or(0, |since| since.as_secs());
    let completions = scored.scores.iter().map(|score| score.tokens.len() as u64);
    let tokens = scored.prompt_tokens + completions.sum::<u64>();
    let mut rest = json!({
        "id": format!("score-{}", scored.request_id), "created": created,
        "model": scored.model, "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    });
    if !scored.warnings.is_empty() {
        rest["warnings"] = json!(scored.warnings);
    }
    let mut out = br#"{"object":"list","data":["#.to_vec();
    for (index, score) in scored.scores.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write_json(&mut out, &Entry::of(index, score));
    }
    out.extend_from_slice(b"],");
    out.extend_from_slice(&rest.to_string().as_bytes()[1..]);
    out
}
