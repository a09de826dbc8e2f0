//! What every API offers: a request in, an answer out. The APIs only translate.

use std::sync::Arc;
use std::time::Duration;

use opentelemetry::trace::SpanContext;
use palimpsest_proto::error::{Reason, RequestError};
use palimpsest_proto::v1::{
    GenerateRequest, GetModelResponse, TokenizeRequest, TokenizeResponse, generate_request,
    tokenize_request,
};
use tokio::time::Instant;
use tracing::Instrument;

use crate::answer::Answer;
use crate::config::Config;
use crate::driver::DriverHandle;
use crate::keys::Tenant;
use crate::metrics::Metrics;
use crate::model::ServedModel;
use crate::request::{ValidRequest, encode_chat, text_error, validate};
use crate::trace::RequestSpan;

/// Texts up to this many bytes are tokenised in place; longer ones on a thread that may block.
const INLINE_BYTES: usize = 4096;

/// The coordinator as its APIs see it; cheap to clone.
#[derive(Debug, Clone)]
pub struct Service {
    /// What is served.
    pub model: Arc<ServedModel>,
    /// Limits.
    pub config: Arc<Config>,
    /// Where requests go.
    pub driver: DriverHandle,
    /// What dashboards want to know.
    pub metrics: Metrics,
}

impl Service {
    /// Starts a request. `timeout` is the transport's deadline, counted from now. Dropping the
    /// answer cancels it.
    ///
    /// # Errors
    /// What is wrong with the request, or why it is not taken now.
    pub async fn generate(
        &self,
        request: GenerateRequest,
        timeout: Option<Duration>,
    ) -> Result<Answer, RequestError> {
        self.generate_for(None, None, request, timeout).await
    }

    /// Starts a request as a part of its caller's trace, within what its tenant may ask for.
    ///
    /// # Errors
    /// As [`Self::generate`].
    pub async fn generate_for(
        &self,
        caller: Option<&SpanContext>,
        tenant: Option<&Arc<Tenant>>,
        request: GenerateRequest,
        timeout: Option<Duration>,
    ) -> Result<Answer, RequestError> {
        let started = self.start(caller, tenant, request, timeout).await;
        if let Err(error) = &started {
            // An answer counts its own end; there is none.
            let (outcome, tenant) = (error.reason.tag(), tenant.map(|tenant| tenant.name()));
            self.metrics.ended(outcome);
            self.metrics.tenant_ended(tenant, outcome);
            tracing::info!(
                tenant = tenant.map(|name| &**name),
                reason = outcome,
                "refused"
            );
        }
        started
    }

    async fn start(
        &self,
        caller: Option<&SpanContext>,
        tenant: Option<&Arc<Tenant>>,
        request: GenerateRequest,
        timeout: Option<Duration>,
    ) -> Result<Answer, RequestError> {
        let arrived = Instant::now();
        // Before anything is done for it; its place is given back whatever happens below.
        let mut permit = tenant
            .map(|tenant| tenant.begin(request.priority))
            .transpose()?;
        let bytes = match &request.input {
            Some(generate_request::Input::Text(text)) => text.len(),
            Some(generate_request::Input::Chat(chat)) => chat
                .messages
                .iter()
                .map(|message| message.content.len())
                .sum(),
            Some(generate_request::Input::TokenIds(_)) | None => 0,
        };
        let (model, config) = (self.model.clone(), self.config.clone());
        let mut request = blocking(bytes, move || {
            validate(request, timeout, arrived, &model, &config)
        })
        .await?;
        if let Some(permit) = &mut permit {
            permit.reserve(request.max_total_tokens())?;
        }
        let traced = RequestSpan::begin(caller, arrived);
        request.trace = traced.as_ref().map(RequestSpan::parent);
        let tenant = tenant.map(|tenant| &**tenant.name());
        let span = tracing::info_span!("generate", request = %request.id, tenant);
        async {
            match self.driver.submit(request.clone()) {
                Ok(reader) => {
                    log_accepted(&request, caller);
                    Ok(Answer::new(
                        request,
                        self.model.clone(),
                        reader,
                        self.metrics.clone(),
                        traced,
                    )
                    .of_tenant(permit))
                }
                Err(error) => {
                    if let Some(traced) = traced {
                        traced.refused(error.reason.tag());
                    }
                    Err(error)
                }
            }
        }
        .instrument(span)
        .await
    }

    /// Token ids of a text, as `Generate` would see it.
    ///
    /// # Errors
    /// `EmptyPrompt`, `BadChat`.
    pub async fn tokenize(
        &self,
        request: TokenizeRequest,
    ) -> Result<TokenizeResponse, RequestError> {
        let Some(input) = request.input else {
            return Err(RequestError::new(Reason::EmptyPrompt, "send text or chat"));
        };
        let model = self.model.clone();
        blocking(usize::MAX, move || {
            let ids = match input {
                tokenize_request::Input::Text(text) => {
                    model.tokenizer.encode(&text, true).map_err(text_error)?
                }
                tokenize_request::Input::Chat(chat) => encode_chat(&chat, &model)?,
            };
            let pieces = ids
                .iter()
                .map(|&id| String::from_utf8_lossy(&model.tokenizer.bytes(id)).into_owned())
                .collect();
            Ok(TokenizeResponse { ids, pieces })
        })
        .await
    }

    /// What is served and what a request may ask of it.
    pub fn describe(&self) -> GetModelResponse {
        let info = &self.model.info;
        GetModelResponse {
            name: info.name.clone(),
            architecture: info.architecture.clone(),
            context_length: info.context_length,
            layers: info.layers,
            heads: info.heads,
            kv_heads: info.kv_heads,
            head_dim: info.head_dim,
            vocabulary: info.vocabulary,
            parameters: info.parameters,
            kv_bytes_per_token: self.model.token_bytes(),
            stride: info.stride,
            world_size: self.model.world_size,
            policies: info.policies.clone(),
            memories: info.memories.clone(),
            default_kv: Some((&self.model.default_contract).into()),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}

fn log_accepted(request: &ValidRequest, caller: Option<&SpanContext>) {
    tracing::info!(
        prompt_tokens = request.prompt.len(),
        max_tokens = request.max_tokens,
        budget = request.kv.budget(),
        policy = request.kv.policy(),
        reserved_bytes = request.cost.bytes(),
        "accepted"
    );
    if let Some(caller) = caller {
        tracing::info!(request = %request.id, trace_id = %caller.trace_id(), "traced");
    }
}

/// Runs work on `bytes` of text where it does not hold other requests up.
async fn blocking<T: Send + 'static>(
    bytes: usize,
    work: impl FnOnce() -> Result<T, RequestError> + Send + 'static,
) -> Result<T, RequestError> {
    if bytes <= INLINE_BYTES {
        return work();
    }
    let failed = |_| RequestError::new(Reason::Internal, "tokenisation failed: see the log");
    tokio::task::spawn_blocking(work).await.map_err(failed)?
}
