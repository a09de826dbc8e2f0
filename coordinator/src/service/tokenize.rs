//! Token ids of a text, for clients that count or cut it.

use palimpsest_proto::error::{Reason, RequestError};
use palimpsest_proto::v1::generate_request::Input;
use palimpsest_proto::v1::{TokenizeRequest, TokenizeResponse, tokenize_request};
use tokio::time::Instant;

use super::{Call, Service};
use crate::request;

impl Service {
    /// What `made` makes of the token ids of a text, as `Generate` would see it, where it may take
    /// time and memory. All tokens together have about as many bytes as the text.
    ///
    /// # Errors
    /// `RateLimited`, `EmptyPrompt`, `TooLong`, `BadChat`, `DeadlineInQueue`.
    pub async fn tokenize_as<T: Send + 'static>(
        &self,
        call: &Call,
        request: TokenizeRequest,
        made: impl FnOnce(TokenizeResponse) -> T + Send + 'static,
    ) -> Result<T, RequestError> {
        call.arrive().inspect_err(|error| {
            let tenant = call.tenant.as_ref().map(|tenant| tenant.name());
            self.metrics.refused(tenant, error.reason.tag());
        })?;
        let special = request.add_special.unwrap_or(true);
        let input = match request.input {
            Some(tokenize_request::Input::Text(text)) => Input::Text(text),
            Some(tokenize_request::Input::Chat(chat)) => Input::Chat(chat),
            None => return Err(RequestError::new(Reason::EmptyPrompt, "send text or chat")),
        };
        let bytes = request::weight(&input);
        let (model, config) = (self.model.clone(), self.config.clone());
        let limit = call.timeout.unwrap_or(config.request_limit);
        let deadline = Instant::now() + limit.min(config.request_limit);
        let work = move || {
            let ids = match input {
                Input::Text(text) if !special => {
                    request::encode_text(&text, false, &model, &config)?
                }
                input => request::encode(input, &model, &config)?.ids.to_vec(),
            };
            let piece = |&id| String::from_utf8_lossy(&model.tokenizer.bytes(id)).into_owned();
            let pieces = ids.iter().map(piece).collect();
            Ok(made(TokenizeResponse { ids, pieces }))
        };
        self.pool
            .run(bytes, deadline, call.charge.clone(), work)
            .await
    }
}
