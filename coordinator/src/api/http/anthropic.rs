//! Anthropic's messages: the same conversations under other names.
//!
//! | route | answer |
//! |---|---|
//! | `POST /v1/messages` | a message, whole or as server-sent events |
//! | `POST /v1/messages/count_tokens` | how many tokens a conversation has |
//!
//! The version that a client names in `anthropic-version` does not matter: what is here is the same
//! in all of them. That it names one tells which shape of models and errors it reads elsewhere.

mod blocks;
mod error;
mod events;
mod object;
mod run;
#[cfg(test)]
mod tests;

use axum::Json;
use axum::extract::Request;
use axum::http::{HeaderValue, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use palimpsest_proto::error::{Reason, RequestError};
use palimpsest_proto::v1::{TokenizeRequest, tokenize_request};
use serde_json::json;

use self::object::Frame;
use self::run::Run;
use super::error::HttpError;
use super::generate::{Caller, answers};
use super::headers::{ANTHROPIC_REQUEST_ID, ANTHROPIC_VERSION, REQUEST_ID};
use super::wire::{CountBody, MessagesBody};
use crate::service::Service;

/// What the paths of these routes begin with.
const ROUTES: &str = "/v1/messages";

/// Answers a request whose body was read.
///
/// # Errors
/// What is wrong with the request, or why it is not taken now. A failure later in a stream is an
/// event of it.
pub async fn create(
    service: &Service,
    caller: Caller,
    body: MessagesBody,
) -> Result<Response, HttpError> {
    let mut asked = body.asked()?;
    for request in &mut asked.prompted.choices {
        request.request_id.clone_from(&caller.id);
    }
    let started = service.generate_all(&caller.call, vec![asked.prompted]);
    let answer = started.await?.into_iter().next();
    let answer = answer.ok_or_else(|| RequestError::new(Reason::Internal, "no answer"))?;
    let run = Run {
        frame: Frame {
            id: format!("msg_{}", caller.id),
            model: service.model.name().to_owned(),
            warnings: asked.warnings,
        },
        request_id: caller.id,
        hears_thoughts: asked.hears_thoughts,
        given_up: answer.given_up(),
        answer: answers(answer),
        most: service.config.max_answer_bytes,
    };
    // What the request held until it was admitted is given back.
    drop(caller.call);
    if asked.stream {
        Ok(run.stream())
    } else {
        run.whole().await
    }
}

/// Counts the tokens that a conversation would be read as.
///
/// # Errors
/// As [`create`].
pub async fn count(
    service: &Service,
    caller: Caller,
    body: CountBody,
) -> Result<Response, HttpError> {
    let asked = body.asked()?;
    service.model.check_name(&asked.model)?;
    let request = TokenizeRequest {
        input: Some(tokenize_request::Input::Chat(asked.chat)),
        ..Default::default()
    };
    let counted = service.tokenize_as(&caller.call, request, |found| found.ids.len());
    Ok(Json(json!({"input_tokens": counted.await?})).into_response())
}

/// Gives answers the shape that Anthropic's clients read, on these routes and to whoever names a
/// version of theirs: the request's name in their header, and errors as their objects, whoever made
/// them.
pub async fn in_their_shape(request: Request, next: Next) -> Response {
    let is_theirs = request.uri().path().starts_with(ROUTES)
        || request.headers().contains_key(ANTHROPIC_VERSION);
    if !is_theirs {
        return next.run(request).await;
    }
    let id = request.headers().get(REQUEST_ID).cloned();
    let mut response = next.run(request).await;
    if let Some(error) = response.extensions_mut().remove::<HttpError>() {
        let id = id.as_ref().and_then(|id| id.to_str().ok());
        *response.body_mut() = error::object(&error, id).to_string().into();
        let json = HeaderValue::from_static("application/json");
        response.headers_mut().insert(header::CONTENT_TYPE, json);
    }
    if let Some(id) = id {
        response.headers_mut().insert(ANTHROPIC_REQUEST_ID, id);
    }
    response
}
