//! Bodies of requests about sessions.

use palimpsest_proto::v1::{
    AppendRequest, CreateSessionRequest, KvContract, TokenIds, append_request,
};
use serde::de::{Error, IgnoredAny, MapAccess};

use super::messages::Messages;
use super::read::RequestBody;
use crate::api::http::error::{HttpError, shorten};

/// Body of `POST /v1/sessions`.
#[derive(Debug, Clone, Default)]
pub struct CreateSessionBody {
    session_id: Option<String>,
    ttl_seconds: Option<u64>,
    kv_budget: Option<u32>,
    kv_policy: Option<String>,
    latent_memory: Option<String>,
}

/// Body of `POST /v1/sessions/{id}/append`.
#[derive(Debug, Clone, Default)]
pub struct AppendBody {
    text: Option<String>,
    messages: Option<Messages>,
    token_ids: Option<Vec<u32>>,
    priority: Option<i32>,
}

/// Body of `POST /v1/sessions/{id}/fork`.
#[derive(Debug, Clone, Default)]
pub struct ForkBody {
    /// Name of the copy.
    pub session_id: Option<String>,
}

/// Body of `/open_session`, as SGLang's clients send it.
#[derive(Debug, Clone, Default)]
pub struct OpenSessionBody {
    capacity_of_str_len: u64,
    session_id: Option<String>,
    streaming: Option<bool>,
    timeout: Option<f64>,
}

/// Body of `/close_session`.
#[derive(Debug, Clone, Default)]
pub struct CloseSessionBody {
    /// The session.
    pub session_id: String,
}

/// Reads a body whose fields are those of a struct, and refuses any other by name.
macro_rules! plain_body {
    ($body:ident, $needed:expr; $($name:ident),* $(,)?) => {
        impl RequestBody for $body {
            const OWN: &'static [&'static str] = &[$(stringify!($name)),*];
            const SHARED: &'static [&'static str] = &[];
            const NEEDED: Option<&'static str> = $needed;

            fn read<'de, A: MapAccess<'de>>(
                &mut self,
                field: &'static str,
                values: &mut A,
            ) -> Result<(), A::Error> {
                match field {
                    $(stringify!($name) => self.$name = values.next_value()?,)*
                    _ => _ = values.next_value::<IgnoredAny>()?,
                }
                Ok(())
            }

            fn read_other<'de, A: MapAccess<'de>>(
                &mut self,
                name: &str,
                _: &mut A,
            ) -> Result<(), A::Error> {
                let name = shorten(name);
                Err(A::Error::custom(format_args!("unknown field `{name}`")))
            }
        }
    };
}

plain_body!(CreateSessionBody, None;
    session_id, ttl_seconds, kv_budget, kv_policy, latent_memory);
plain_body!(AppendBody, None; text, messages, token_ids, priority);
plain_body!(ForkBody, None; session_id);
plain_body!(OpenSessionBody, Some("capacity_of_str_len");
    capacity_of_str_len, session_id, streaming, timeout);
plain_body!(CloseSessionBody, Some("session_id"); session_id);

impl CreateSessionBody {
    /// What is asked of the service.
    pub fn request(self) -> CreateSessionRequest {
        let kv = KvContract {
            budget: self.kv_budget.unwrap_or(0),
            policy: self.kv_policy.unwrap_or_default(),
            memory: self.latent_memory.unwrap_or_default(),
            ..Default::default()
        };
        CreateSessionRequest {
            session_id: self.session_id.unwrap_or_default(),
            kv: Some(kv),
            ttl_seconds: self.ttl_seconds.unwrap_or(0),
        }
    }
}

impl AppendBody {
    /// What is asked of the session `id`.
    ///
    /// # Errors
    /// Names the field that is wrong.
    pub fn request(self, id: String) -> Result<AppendRequest, HttpError> {
        let input = match (self.text, self.messages, self.token_ids) {
            (Some(text), None, None) => append_request::Input::Text(text),
            (None, Some(messages), None) => append_request::Input::Chat(messages.chat()?),
            (None, None, Some(ids)) => append_request::Input::TokenIds(TokenIds { ids }),
            _ => {
                let message = "send one of `text`, `messages` and `token_ids`";
                return Err(HttpError::invalid("text", message));
            }
        };
        Ok(AppendRequest {
            session_id: id,
            input: Some(input),
            priority: self.priority.unwrap_or(0),
            ..Default::default()
        })
    }
}

impl OpenSessionBody {
    /// What is asked of the service. A log has the server's limit of tokens, and grows at its end
    /// alone: so the length in characters and `streaming` ask for nothing.
    ///
    /// # Errors
    /// Names the field that is wrong.
    pub fn request(self) -> Result<CreateSessionRequest, HttpError> {
        let _ = (self.capacity_of_str_len, self.streaming);
        let ttl_seconds = match self.timeout {
            None => 0,
            Some(seconds) if seconds > 0.0 && seconds < 1e12 => seconds.ceil() as u64,
            Some(_) => {
                let message = "timeout must be a number of seconds above 0";
                return Err(HttpError::invalid("timeout", message));
            }
        };
        Ok(CreateSessionRequest {
            session_id: self.session_id.unwrap_or_default(),
            kv: None,
            ttl_seconds,
        })
    }
}
