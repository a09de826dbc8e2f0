//! OpenAI's responses: a conversation that the service keeps, turn by turn.
//!
//! | route | answer |
//! |---|---|
//! | `POST /v1/responses` | a response, whole or as server-sent events |
//! | `GET /v1/responses/{id}` | one that is kept |
//! | `DELETE /v1/responses/{id}` | it is forgotten; those that go on from it stay |
//! | `GET /v1/responses/{id}/input_items` | the messages before its answer, in pages |
//! | `POST /v1/responses/{id}/cancel` | refused: none runs in the background |

mod events;
mod object;
mod page;
mod refusal;
mod run;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{Query, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response as HttpResponse};
use palimpsest_proto::v1::generate_request::Input;
use palimpsest_proto::v1::{Chat, ChatMessage};
use serde_json::{Value, json};
use tokio::time::Instant;

use self::object::{Response, Stage, write_json};
use self::page::Page;
use self::refusal::{in_fields_of_responses, not_found, refused, unknown_parameter};
use self::run::Run;
use super::error::HttpError;
use super::generate::{Caller, answers};
use super::path::Name;
use super::wire::{PARSE_SPEED, ResponseBody, ResponseRequest};
use crate::budget::{Charge, held};
use crate::keys::Tenant;
use crate::responses::{Error, Message, Pinned, Record, ResponseId, TenantKey};
use crate::service::Service;

/// Name of the field that a request goes on by.
const PREVIOUS: &str = "previous_response_id";
/// Parameters of a query, as they come.
type Parameters = Query<Vec<(String, String)>>;

/// Answers a request whose body was read.
///
/// # Errors
/// What is wrong with the request, or why it is not taken now. A failure later in a stream is an
/// event of it.
pub async fn create(
    service: &Service,
    caller: Caller,
    body: ResponseBody,
) -> Result<HttpResponse, HttpError> {
    let answered = answer(service, caller, body.asked()?).await;
    answered.map_err(in_fields_of_responses)
}

async fn answer(
    service: &Service,
    caller: Caller,
    asked: ResponseRequest,
) -> Result<HttpResponse, HttpError> {
    let of = Whose {
        tenant: tenant_key(caller.call.tenant.as_ref()),
        charge: caller.call.charge.clone(),
    };
    // Before a conversation is read, which may be long.
    service.check_room(&caller.call, asked.request.priority)?;
    let (parent, mut messages) = match asked.previous {
        None => (None, Vec::new()),
        Some(id) => {
            let conversation = go_on(service, &of, id).await?;
            (Some(conversation.pinned), conversation.messages)
        }
    };
    let mut record = Record::begin(
        of.tenant,
        parent.as_ref().map(Pinned::id),
        service.responses.now(),
        service.model.name().to_owned(),
        asked.asked,
    );
    if record.asked.store {
        record.input.clone_from(&asked.input);
    }
    messages.extend(asked.input.into_iter().map(chat_message));
    if let Some(instructions) = &record.asked.instructions {
        let instructions = Message {
            role: "system".into(),
            text: instructions.clone(),
        };
        messages.insert(0, chat_message(instructions));
    }
    let mut request = asked.request;
    request.request_id.clone_from(&caller.id);
    request.input = Some(Input::Chat(Chat {
        messages,
        ..Default::default()
    }));
    let answer = service.generate_for(&caller.call, request).await?;
    // What the request held until it was admitted is given back.
    drop((caller, of));
    let run = Run {
        answer: answers(answer),
        parent: parent.filter(|_| record.asked.store),
        record,
        responses: service.responses.clone(),
        most: service.config.max_answer_bytes,
    };
    if asked.stream {
        Ok(run.stream())
    } else {
        run.whole().await
    }
}

/// Whose responses are meant, and what the request holds until it is admitted or answered.
struct Whose {
    tenant: TenantKey,
    charge: Option<Charge>,
}

/// What a request goes on from.
struct Conversation {
    pinned: Pinned,
    messages: Vec<ChatMessage>,
}

/// The messages of all turns so far.
async fn go_on(
    service: &Service,
    of: &Whose,
    id: Option<ResponseId>,
) -> Result<Conversation, HttpError> {
    let failed = |error: Error| refused(&error, Some(PREVIOUS));
    let id = id.ok_or_else(|| failed(Error::Unknown))?;
    let pinned = service
        .responses
        .go_on(of.tenant, id)
        .await
        .map_err(failed)?;
    check_length(service, &pinned)?;
    let messages = |records: Vec<Record>| {
        let mut messages = Vec::new();
        for record in records {
            messages.extend(record.input.into_iter().map(chat_message));
            messages.push(ChatMessage::new("assistant", record.output));
        }
        messages
    };
    let messages = turns(service, of, &pinned, Some(PREVIOUS), messages).await?;
    Ok(Conversation { pinned, messages })
}

/// Refuses a conversation that no request could bring as a whole.
fn check_length(service: &Service, pinned: &Pinned) -> Result<(), HttpError> {
    let (bytes, most) = (pinned.bytes(), service.message_limit() as u64);
    if bytes <= most {
        return Ok(());
    }
    let message = format!(
        "the conversation takes {bytes} bytes, over the limit of {most} for one request: begin a \
         new one"
    );
    let mut error = HttpError::invalid(PREVIOUS, message);
    error.body.code = "too_long";
    Err(error)
}

/// What `made` makes of the turns of a conversation, the oldest first. Their bytes count as those
/// of a body do.
async fn turns<T: Send + 'static>(
    service: &Service,
    of: &Whose,
    pinned: &Pinned,
    param: Option<&'static str>,
    made: impl FnOnce(Vec<Record>) -> T + Send + 'static,
) -> Result<T, HttpError> {
    let bytes = usize::try_from(pinned.bytes()).unwrap_or(usize::MAX);
    if let Some(charge) = &of.charge {
        charge.take(bytes)?;
    }
    let records = pinned
        .read()
        .await
        .map_err(|error| refused(&error, param))?;
    let tenant = of.tenant;
    let work = move || {
        let parsed = records.iter().map(|bytes| Record::parse(bytes, tenant));
        let parsed: Result<Vec<_>, Error> = parsed.collect();
        Ok(parsed.map(made))
    };
    let deadline = Instant::now() + service.config.request_limit;
    let weight = bytes / PARSE_SPEED;
    let done = service.pool.run(weight, deadline, of.charge.clone(), work);
    done.await?.map_err(|error| refused(&error, param))
}

/// A response that is kept.
///
/// # Errors
/// If there is none of this name, or the store fails.
pub async fn retrieve(
    State(service): State<Service>,
    Name(id): Name,
    Query(parameters): Parameters,
    request: Request,
) -> Result<HttpResponse, HttpError> {
    check_parameters(&parameters)?;
    let (of, pinned) = find(&service, &id, request).await?;
    if let Some(charge) = &of.charge {
        let bytes = usize::try_from(pinned.own_bytes()).unwrap_or(usize::MAX);
        charge.take(bytes)?;
    }
    let bytes = pinned
        .read_own()
        .await
        .map_err(|error| refused(&error, None))?;
    let tenant = of.tenant;
    let weight = bytes.len() / PARSE_SPEED;
    let work = move || {
        let record = Record::parse(&bytes, tenant);
        Ok(record.map(|record| write_json(&Response::of(&record, &Stage::Ended))))
    };
    let deadline = Instant::now() + service.config.request_limit;
    let pool = &service.pool;
    let written = pool.run(weight, deadline, of.charge.clone(), work).await?;
    let written = written.map_err(|error| refused(&error, None))?;
    Ok(json_answer(written, of.charge))
}

/// The messages before an answer, in pages.
///
/// # Errors
/// As [`retrieve`], and names the parameter that is wrong.
pub async fn input_items(
    State(service): State<Service>,
    Name(id): Name,
    Query(parameters): Parameters,
    request: Request,
) -> Result<HttpResponse, HttpError> {
    let page = Page::parse(&parameters)?;
    let (of, pinned) = find(&service, &id, request).await?;
    let made = move |records: Vec<Record>| page.write(&records);
    let written = turns(&service, &of, &pinned, None, made).await??;
    Ok(json_answer(written, of.charge))
}

/// Forgets a response.
///
/// # Errors
/// As [`retrieve`].
pub async fn delete(
    State(service): State<Service>,
    Name(id): Name,
    request: Request,
) -> Result<Json<Value>, HttpError> {
    let of = whose(request);
    let failed = |error: Error| not_found(&error, &id);
    let name = ResponseId::parse(&id).ok_or_else(|| failed(Error::Unknown))?;
    let deleted = service.responses.delete(of.tenant, name).await;
    deleted.map_err(failed)?;
    Ok(Json(
        json!({"id": name, "object": "response", "deleted": true}),
    ))
}

/// Refuses to cancel a response: none is made in the background.
///
/// # Errors
/// Always.
pub async fn cancel(
    State(service): State<Service>,
    Name(id): Name,
    request: Request,
) -> Result<HttpResponse, HttpError> {
    find(&service, &id, request).await?;
    let message = "only a response in the background can be cancelled, and none is made there: to \
                   cancel a request close its connection";
    Err(HttpError::protocol(
        StatusCode::BAD_REQUEST,
        "not_in_background",
        message,
    ))
}

/// The response of this name, and whose it is.
async fn find(service: &Service, id: &str, request: Request) -> Result<(Whose, Pinned), HttpError> {
    let of = whose(request);
    let failed = |error: Error| not_found(&error, id);
    let name = ResponseId::parse(id).ok_or_else(|| failed(Error::Unknown))?;
    let pinned = service.responses.pin(of.tenant, name).await;
    Ok((of, pinned.map_err(failed)?))
}

fn whose(request: Request) -> Whose {
    let (mut parts, _) = request.into_parts();
    Whose {
        tenant: tenant_key(parts.extensions.get::<Arc<Tenant>>()),
        charge: parts.extensions.remove::<Charge>(),
    }
}

fn tenant_key(tenant: Option<&Arc<Tenant>>) -> TenantKey {
    TenantKey::of(tenant.map(|tenant| &**tenant.name()))
}

/// A response is not streamed again; what else a client may ask of it changes nothing here.
fn check_parameters(parameters: &[(String, String)]) -> Result<(), HttpError> {
    let is_true = |value: &str| value.eq_ignore_ascii_case("true");
    for (name, value) in parameters {
        match name.as_str() {
            "stream" if is_true(value) => {
                let message = "a response that is kept comes whole: leave `stream` out";
                return Err(HttpError::invalid("stream", message));
            }
            "stream" | "include" | "include[]" | "starting_after" | "include_obfuscation" => {}
            other => return Err(unknown_parameter(other)),
        }
    }
    Ok(())
}

fn chat_message(message: Message) -> ChatMessage {
    ChatMessage::new(message.role, message.text)
}

/// An answer that is about as large as what was read for it.
fn json_answer(json: Vec<u8>, charge: Option<Charge>) -> HttpResponse {
    let body = held(Body::from(json), charge);
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
}
