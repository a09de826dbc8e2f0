//! Requests that go on from a session.

use palimpsest_proto::error::{Reason, RequestError};
use palimpsest_proto::v1::generate_event::Event;
use palimpsest_proto::v1::generate_request::Input;
use palimpsest_proto::v1::{
    AppendRequest, AppendResponse, CreateSessionRequest, GenerateRequest, Session, append_request,
};
use tokio::time::{Instant, timeout};

use super::{Call, Prompted, Service};
use crate::request::{self, Prompt};
use crate::sessions::{NewSession, Opening, TenantName, Turn};

/// What a record takes beside its bytes: it is read into messages and rendered.
const RECORD_SHARE: usize = 4;

impl Call {
    /// Whose sessions it may ask for.
    pub fn tenant_name(&self) -> TenantName<'_> {
        self.tenant.as_ref().map(|tenant| tenant.name())
    }
}

impl Service {
    /// Makes an empty session.
    ///
    /// # Errors
    /// `BadSession`, `BadContract`, `SessionExists`, `SessionLimit`, `StoreUnavailable`.
    pub async fn create_session(
        &self,
        call: &Call,
        asked: CreateSessionRequest,
    ) -> Result<Session, RequestError> {
        let kv = asked.kv.unwrap_or_default();
        let contract = request::contract(&kv, &self.model, &self.config)?;
        let new = NewSession {
            id: asked.session_id,
            contract,
            ttl_seconds: asked.ttl_seconds,
        };
        self.sessions.create(call.tenant_name(), new).await
    }

    /// Reads an input without answering.
    ///
    /// # Errors
    /// As [`Service::generate`], and what is wrong with the session.
    pub async fn append(
        &self,
        call: &Call,
        asked: AppendRequest,
    ) -> Result<AppendResponse, RequestError> {
        let id = asked.session_id.clone();
        if id.is_empty() {
            let message = "session_id is empty: name the session";
            let error = RequestError::new(Reason::BadSession, message);
            return Err(error.in_field("session_id"));
        }
        let input = asked.input.map(|input| match input {
            append_request::Input::Text(text) => Input::Text(text),
            append_request::Input::Chat(chat) => Input::Chat(chat),
            append_request::Input::TokenIds(ids) => Input::TokenIds(ids),
        });
        request::check_input(input.as_ref())?;
        let request = GenerateRequest {
            deadline_ms: asked.deadline_ms,
            request_id: asked.request_id,
            priority: asked.priority,
            session_id: asked.session_id,
            ..Default::default()
        };
        let asked = Prompted {
            input,
            choices: vec![request],
            cuts: Vec::new(),
        };
        let mut usage = None;
        let answers = self.start_all(call, vec![asked], Opening::Nothing).await?;
        for mut answer in answers {
            while let Some(event) = answer.next().await {
                if let Some(Event::Finished(finished)) = event?.event {
                    usage = finished.usage;
                }
            }
        }
        let session = self.sessions.show(call.tenant_name(), &id).await?;
        Ok(AppendResponse {
            session: Some(session),
            usage: Some(usage.unwrap_or_default()),
        })
    }

    /// Begins the turn of a request that names a session, and gives the request the session's
    /// contract.
    pub(super) async fn begin_turn(
        &self,
        call: &Call,
        asked: &mut [Prompted],
    ) -> Result<Option<Turn>, RequestError> {
        let mut choices = asked.iter().flat_map(|one| &one.choices);
        let Some(named) = choices.find(|choice| !choice.session_id.is_empty()) else {
            return Ok(None);
        };
        let id = named.session_id.clone();
        let bad = |field, message| RequestError::new(Reason::BadSession, message).in_field(field);
        let [Prompted { input, choices, .. }] = asked else {
            let message = "a session takes one prompt at a time: send one";
            return Err(bad("prompt", message));
        };
        let [request] = choices.as_mut_slice() else {
            let message = "a session goes on in one way: leave n out, or fork the session";
            return Err(bad("n", message));
        };
        if !request.cache_salt.is_empty() {
            let message = "a session's kept states are its own already: leave cache_salt out";
            return Err(bad("cache_salt", message));
        }
        self.check_room(call, request.priority)?;
        let limit = request::time_limit(request.deadline_ms, call.timeout, &self.config)?;
        let begun = self.sessions.begin(call.tenant_name(), &id);
        let late = |_| {
            let message = "the deadline passed while the session was moved or its record was read";
            RequestError::new(Reason::DeadlineInQueue, message)
        };
        let turn = timeout(limit, begun).await.map_err(late)??;
        if let Some(charge) = &call.charge {
            charge.take(turn.weight() / RECORD_SHARE)?;
        }
        request.kv = Some(turn.contract(&request.kv.take().unwrap_or_default())?);
        if matches!(input, Some(Input::Chat(chat)) if chat.messages.is_empty()
            && chat.answer_prefix.is_empty() && chat.tools.is_empty())
        {
            *input = None;
        }
        Ok(Some(turn))
    }

    /// Makes the prompt of a turn, where it may take time.
    pub(super) async fn extend_turn(
        &self,
        call: &Call,
        mut turn: Turn,
        input: Option<Input>,
        opening: Opening,
        deadline: Instant,
    ) -> Result<(Turn, Prompt), RequestError> {
        // A conversation is rendered whole, and tokenised whole at worst.
        let bytes = input.as_ref().map_or(0, request::weight) + turn.weight();
        let (model, config) = (self.model.clone(), self.config.clone());
        let work = move || {
            let prompt = turn.extend(input, opening, &model, &config)?;
            Ok((turn, prompt))
        };
        self.pool
            .run(bytes, deadline, call.charge.clone(), work)
            .await
    }
}
