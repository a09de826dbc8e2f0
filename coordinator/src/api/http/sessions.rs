//! Sessions over HTTP, as resources and by the names that SGLang's clients use.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use palimpsest_proto::v1::{self, SessionState};
use serde_json::{Value, json};

use super::error::HttpError;
use super::generate::Caller;
use super::path::Name;
use super::wire::{
    AppendBody, CloseSessionBody, CreateSessionBody, ForkBody, OpenSessionBody, RequestBody,
};
use crate::keys::Tenant;
use crate::service::{Call, Service};

/// Whose key a request without a body shows.
type Key = Option<Extension<Arc<Tenant>>>;

/// A request about sessions that has a body.
pub trait SessionBody: RequestBody + Send + 'static {
    /// Does what is asked, of the session `id` where the route names one.
    fn answer(
        self,
        service: &Service,
        caller: Caller,
        id: String,
    ) -> impl Future<Output = Result<Response, HttpError>> + Send;
}

impl SessionBody for CreateSessionBody {
    async fn answer(
        self,
        service: &Service,
        caller: Caller,
        _: String,
    ) -> Result<Response, HttpError> {
        let made = service.create_session(&caller.call, self.request()).await?;
        Ok(Json(object(&made)).into_response())
    }
}

impl SessionBody for AppendBody {
    async fn answer(
        self,
        service: &Service,
        caller: Caller,
        id: String,
    ) -> Result<Response, HttpError> {
        let asked = v1::AppendRequest {
            request_id: caller.id,
            ..self.request(id)?
        };
        let done = service.append(&caller.call, asked).await?;
        let mut session = object(&done.session.unwrap_or_default());
        let usage = done.usage.unwrap_or_default();
        session["usage"] = json!({
            "prompt_tokens": usage.prompt_tokens,
            "prefill_seconds": usage.prefill_seconds,
            "warnings": usage.warnings,
        });
        Ok(Json(session).into_response())
    }
}

impl SessionBody for ForkBody {
    async fn answer(
        self,
        service: &Service,
        caller: Caller,
        id: String,
    ) -> Result<Response, HttpError> {
        let copy = self.session_id.unwrap_or_default();
        let tenant = caller.call.tenant_name();
        let copied = service.sessions.fork(tenant, &id, &copy).await?;
        Ok(Json(object(&copied)).into_response())
    }
}

impl SessionBody for OpenSessionBody {
    /// SGLang answers with the name alone.
    async fn answer(
        self,
        service: &Service,
        caller: Caller,
        _: String,
    ) -> Result<Response, HttpError> {
        let asked = self.request()?;
        let made = service.create_session(&caller.call, asked).await?;
        Ok(Json(made.session_id).into_response())
    }
}

impl SessionBody for CloseSessionBody {
    /// SGLang answers with nothing.
    async fn answer(
        self,
        service: &Service,
        caller: Caller,
        _: String,
    ) -> Result<Response, HttpError> {
        let tenant = caller.call.tenant_name();
        service.sessions.delete(tenant, &self.session_id).await?;
        Ok(StatusCode::OK.into_response())
    }
}

/// The caller of a request without a body.
fn call(key: Key) -> Call {
    Call {
        tenant: key.map(|Extension(tenant)| tenant),
        ..Call::default()
    }
}

/// `GET /v1/sessions`.
pub async fn list(
    State(service): State<Service>,
    uri: Uri,
    key: Key,
) -> Result<Json<Value>, HttpError> {
    let Asked { after, limit } = asked(uri.query().unwrap_or_default())?;
    let call = call(key);
    let page = service.sessions.list(call.tenant_name(), &after, limit);
    let page = page.await?;
    let data: Vec<Value> = page.sessions.iter().map(object).collect();
    Ok(Json(json!({
        "object": "list", "data": data, "has_more": page.next.is_some(), "last_id": page.next,
    })))
}

/// `GET /v1/sessions/{id}`.
pub async fn show(
    State(service): State<Service>,
    Name(id): Name,
    key: Key,
) -> Result<Json<Value>, HttpError> {
    let shown = service.sessions.show(call(key).tenant_name(), &id).await?;
    Ok(Json(object(&shown)))
}

/// `DELETE /v1/sessions/{id}`.
pub async fn delete(
    State(service): State<Service>,
    Name(id): Name,
    key: Key,
) -> Result<Json<Value>, HttpError> {
    service
        .sessions
        .delete(call(key).tenant_name(), &id)
        .await?;
    let gone = json!({"object": "session.deleted", "session_id": id, "deleted": true});
    Ok(Json(gone))
}

/// `POST /v1/sessions/{id}/suspend`.
pub async fn suspend(
    State(service): State<Service>,
    Name(id): Name,
    key: Key,
) -> Result<Json<Value>, HttpError> {
    let moved = service
        .sessions
        .suspend(call(key).tenant_name(), &id)
        .await?;
    Ok(Json(moved_object(moved)))
}

/// `POST /v1/sessions/{id}/resume`.
pub async fn resume(
    State(service): State<Service>,
    Name(id): Name,
    key: Key,
) -> Result<Json<Value>, HttpError> {
    let moved = service
        .sessions
        .resume(call(key).tenant_name(), &id)
        .await?;
    Ok(Json(moved_object(moved)))
}

/// What a list is asked for.
#[derive(Debug, Default, PartialEq)]
struct Asked {
    after: String,
    limit: usize,
}

fn asked(query: &str) -> Result<Asked, HttpError> {
    let mut asked = Asked::default();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        match pair.split_once('=') {
            // Names have no characters that need another spelling.
            Some(("after", id)) => asked.after = id.to_owned(),
            Some(("limit", number)) => {
                let bad = |_| HttpError::invalid("limit", "limit must be a number, 1 to 1000");
                asked.limit = number.parse().map_err(bad)?;
            }
            _ => {
                let message = "a list of sessions takes `after` and `limit`";
                return Err(HttpError::invalid("query", message));
            }
        }
    }
    Ok(asked)
}

fn moved_object(moved: v1::MovedResponse) -> Value {
    let mut session = object(&moved.session.unwrap_or_default());
    session["moved_bytes"] = moved.moved_bytes.into();
    session
}

/// A session as JSON. The command line prints the same.
fn object(session: &v1::Session) -> Value {
    let state = match session.state() {
        SessionState::Running => "running",
        SessionState::Suspended => "suspended",
        SessionState::Damaged => "damaged",
        SessionState::Idle | SessionState::Unspecified => "idle",
    };
    let kv = session.kv.as_ref().map(|kv| {
        json!({
            "budget": kv.budget, "policy": kv.policy, "memory": kv.memory,
            "head_budget": kv.head_budget, "sinks": kv.sinks, "window": kv.window,
            "positions": kv.positions, "memory_slots": kv.memory_slots,
        })
    });
    json!({
        "object": "session", "session_id": session.session_id, "state": state, "kv": kv,
        "tokens": session.tokens, "messages": session.messages, "created": session.created,
        "used": session.used, "expires": session.expires, "record_bytes": session.record_bytes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_asked_for_by_name_and_number() {
        let found = |query| asked(query).map(|asked| (asked.after, asked.limit));
        assert_eq!(found(""), Ok((String::new(), 0)));
        assert_eq!(found("limit=7&after=a-b"), Ok(("a-b".into(), 7)));
        for (bad, field) in [
            ("limit=x", "limit"),
            ("limit=-1", "limit"),
            ("a=b", "query"),
        ] {
            let error = asked(bad).unwrap_err();
            assert_eq!(error.body.param.as_deref(), Some(field));
        }
    }
}
