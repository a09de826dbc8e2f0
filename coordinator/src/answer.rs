//! From sampled tokens to the events of a request. It runs in the request's own task, not in the
//! driver's.

mod delivery;
mod map;

use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};

use palimpsest_proto::error::{Reason, RequestError};
use palimpsest_proto::internal::v1::CacheState;
use palimpsest_proto::v1::generate_event::Event;
use palimpsest_proto::v1::{
    FinishReason, Finished, GenerateEvent, PromptLogprobs, RetentionMap, RetentionReport, Started,
    TokenLogprob, Usage,
};
use tokio::time::Instant;

use self::delivery::{Delivery, decoder};
use self::map::shares;
use crate::ids::RequestId;
use crate::keys::TenantPermit;
use crate::metrics::Metrics;
use crate::model::ServedModel;
use crate::request::ValidRequest;
use crate::scheduler::Ending;
use crate::sessions::Turn;
use crate::stream::{Item, Reader, Reading, Token};
use crate::text::Detokenizer;
use crate::text::StopStrings;
use crate::trace::{Ended, RequestSpan};

/// The events of one request: `Started`, deltas, `Finished`. Dropping it cancels the request.
#[derive(Debug)]
pub struct Answer {
    request: ValidRequest,
    model: Arc<ServedModel>,
    reader: Option<Reader>,
    detokenizer: Detokenizer,
    stop: StopStrings,
    ready: VecDeque<Event>,
    /// What the answer begins with before its first token; it comes behind what is told of the
    /// prompt.
    begun: Option<Event>,
    sent: u64,
    delivery: Delivery,
    seen: Seen,
    metrics: Metrics,
    /// How it ended, once it has.
    outcome: Option<&'static str>,
    /// Why whoever holds it gave it up, if they said so.
    given_up: GivenUp,
    failed: bool,
    /// When its first step began, once its reader is gone.
    started: Option<Instant>,
    /// If it is traced.
    span: Option<RequestSpan>,
    /// The place that its tenant has for it.
    tenant: Option<TenantPermit>,
    /// The session that goes on with it.
    turn: Option<Turn>,
}

/// Says of an answer that is about to be dropped why it is: without a word its client has gone.
#[derive(Debug, Clone, Default)]
pub struct GivenUp(Arc<OnceLock<Reason>>);

impl GivenUp {
    /// The answer is dropped for this reason, unless it has ended before.
    pub fn because_of(&self, reason: Reason) {
        // The first word counts.
        let _ = self.0.set(reason);
    }
}

/// The last report of what is retained.
#[derive(Debug)]
struct Reported {
    report: RetentionReport,
    /// Tokens that the sequence had been fed then.
    fed: u64,
}

/// What the tokens so far said about the sequence.
#[derive(Debug, Default)]
struct Seen {
    /// With the end of a prompt that has no answer.
    tokens: u64,
    generated: u64,
    first: Option<Instant>,
    last: Option<Instant>,
    cache: CacheState,
    retention: Option<Reported>,
    /// Tokens of the prompt that were not read.
    cached: u64,
}

impl Answer {
    /// The answer to a submitted request whose tokens come from `reader`.
    pub(crate) fn new(
        request: ValidRequest,
        model: Arc<ServedModel>,
        reader: Reader,
        metrics: Metrics,
        span: Option<RequestSpan>,
    ) -> Self {
        let started = Event::Started(Started {
            request_id: request.id.to_string(),
            model: model.name().to_owned(),
            seed: request.sampling.seed(),
            prompt_tokens: request.prompt.len() as u64,
            kv: Some((&request.kv).into()),
            reserved_bytes: request.cost.bytes(),
            prompt_token_ids: if request.show.token_ids {
                request.prompt.to_vec()
            } else {
                Vec::new()
            },
        });
        let (delivery, begun) = Delivery::new(request.format.as_deref());
        let begun = begun.map(Event::Delta);
        let (now, later) = match request.sampling.prompt_logprobs {
            Some(_) => (None, begun),
            None => (begun, None),
        };
        Self {
            detokenizer: decoder(&request, &model.tokenizer),
            stop: StopStrings::new(request.end.stop.clone()),
            ready: [started].into_iter().chain(now).collect(),
            begun: later,
            sent: 0,
            delivery,
            seen: Seen::default(),
            metrics,
            outcome: None,
            given_up: GivenUp::default(),
            failed: false,
            started: None,
            span,
            tenant: None,
            turn: None,
            reader: Some(reader),
            request,
            model,
        }
    }

    /// The same, counted to its tenant until it is dropped.
    pub(crate) fn of_tenant(mut self, tenant: Option<TenantPermit>) -> Self {
        self.tenant = tenant;
        self
    }

    /// The same, written down in its session before the client is told that it has finished.
    pub(crate) fn of_session(mut self, turn: Option<Turn>) -> Self {
        self.turn = turn;
        self
    }

    /// To say why it is dropped, by who no longer holds it itself.
    pub fn given_up(&self) -> GivenUp {
        self.given_up.clone()
    }

    /// The token ids of its prompt.
    pub fn prompt(&self) -> Arc<[u32]> {
        self.request.prompt.clone()
    }

    /// For logs and metadata.
    pub fn request_id(&self) -> &RequestId {
        &self.request.id
    }

    /// The next event; `None` behind `Finished` or an error.
    pub async fn next(&mut self) -> Option<Result<GenerateEvent, RequestError>> {
        while self.ready.is_empty() {
            match self.reader.as_mut()?.next().await {
                Ok(Some(Item::Token(token))) => self.take(token),
                Ok(Some(Item::Reading(Reading {
                    fed,
                    cache,
                    retention,
                }))) => {
                    self.tell_map(fed, &cache, &retention);
                }
                Ok(None) => return None,
                Err(error) => {
                    self.started = self.reader.take().and_then(|reader| reader.started());
                    self.outcome = Some(error.reason.tag());
                    self.failed = true;
                    return Some(Err(error));
                }
            }
        }
        let event = self.ready.pop_front();
        if matches!(event, Some(Event::Finished(_)))
            && let Some(turn) = self.turn.take()
            && let Err(error) = turn.commit().await
        {
            self.outcome = Some(error.reason.tag());
            self.failed = true;
            return Some(Err(error));
        }
        let sequence_number = self.sent;
        self.sent += 1;
        Some(Ok(GenerateEvent {
            event,
            sequence_number,
        }))
    }

    fn take(&mut self, mut token: Token) {
        if let Some(last) = self.seen.last {
            self.metrics
                .inter_token(token.at.saturating_duration_since(last));
        }
        self.seen.take(&token);
        self.take_report(token.retention.take());
        if self.request.sampling.prompt_logprobs.is_some() && self.seen.tokens == 1 {
            self.tell_prompt(token.prompt_logprobs);
            self.ready.extend(self.begun.take());
        }
        if token.ended == Some(Ending::Read) {
            self.ready.extend(token.embedding.map(Event::Embedding));
            return self.finish(FinishReason::Read, String::new());
        }
        let Token {
            id, logprob, ended, ..
        } = token;
        let logprob = logprob.map(|logprob| self.with_bytes(logprob));
        let shown = self.request.show.token_ids.then_some(id);
        self.delivery.hold(logprob, shown);
        // The end-of-sequence token is no text, whatever the tokenizer thinks of it.
        let mut text = if ended == Some(Ending::Eos) && !self.request.show.stop {
            String::new()
        } else {
            self.detokenizer.push(id)
        };
        if let Some(turn) = &mut self.turn
            && ended != Some(Ending::Eos)
        {
            turn.made(id, text.len(), self.detokenizer.is_whole());
        }
        if ended.is_some() {
            text.push_str(&self.detokenizer.finish());
        }
        let may_stop = self.seen.generated > u64::from(self.request.end.min_tokens);
        let searched = if may_stop {
            self.stop.push(&text)
        } else {
            Ok(text)
        };
        match (searched, ended) {
            (Err(found), _) => {
                let mut text = found.before;
                if self.request.show.stop {
                    text.push_str(&found.stop);
                }
                self.delta(text, true);
                self.finish(FinishReason::Stop, found.stop);
            }
            (Ok(free), None) => self.delta(free, false),
            (Ok(mut free), Some(ending)) => {
                free.push_str(&self.stop.finish());
                self.delta(free, true);
                let is_own = self.model.info.eos_ids.contains(&id);
                let reason = match ending {
                    Ending::Eos if !is_own => FinishReason::Stop,
                    Ending::Eos => FinishReason::Eos,
                    Ending::Length => FinishReason::Length,
                    Ending::Read => FinishReason::Read,
                };
                self.finish(reason, String::new());
            }
        }
    }

    /// Takes what a token's step says of what is retained.
    fn take_report(&mut self, report: Option<RetentionReport>) {
        let Some(report) = report else {
            return;
        };
        let fed = self.seen.fed(self.request.prompt.len() as u64);
        let cache = self.seen.cache;
        self.tell_map(fed, &cache, &report);
        if self.request.retention_report {
            self.seen.retention = Some(Reported { report, fed });
        }
    }

    /// Tells how much is retained of each of the first `fed` tokens, if that is asked for.
    fn tell_map(&mut self, fed: u64, cache: &CacheState, report: &RetentionReport) {
        if self.request.map_every == 0 {
            return;
        }
        let heads = self.model.all_heads();
        self.ready.push_back(Event::RetentionMap(RetentionMap {
            shares: shares(report, fed).into(),
            held_slots: (cache.held_entries + heads / 2) / heads,
            held_bytes: cache.held_bytes,
            full_cache_bytes: fed * self.model.token_bytes(),
        }));
    }

    /// Tells of the prompt, with the first token of the answer or at its end.
    fn tell_prompt(&mut self, known: Vec<TokenLogprob>) {
        // The first token of a prompt follows nothing.
        let is_told = self.request.sampling.prompt_logprobs_from == 0;
        let first = self.request.prompt.first().filter(|_| is_told);
        let first = first.map(|&id| TokenLogprob {
            id,
            logprob: f32::NAN,
            ..Default::default()
        });
        let tokens = first.into_iter().chain(known);
        let tokens = tokens.map(|token| self.with_bytes(token)).collect();
        self.ready
            .push_back(Event::PromptLogprobs(PromptLogprobs { tokens }));
    }

    fn delta(&mut self, text: String, last: bool) {
        if let Some(turn) = &mut self.turn {
            turn.delivered(&text);
        }
        let delta = self.delivery.delta(text, last);
        self.ready.extend(delta.map(Event::Delta));
    }

    fn with_bytes(&self, mut logprob: TokenLogprob) -> TokenLogprob {
        for one in logprob.top.iter_mut() {
            one.bytes = self.model.tokenizer.bytes(one.id).into();
        }
        logprob.bytes = self.model.tokenizer.bytes(logprob.id).into();
        logprob
    }

    /// Ends the answer, and with it the sequence if that still runs.
    fn finish(&mut self, reason: FinishReason, stop: String) {
        let reason = match reason {
            FinishReason::Eos | FinishReason::Stop if self.delivery.has_calls() => {
                FinishReason::ToolCalls
            }
            reason => reason,
        };
        let reader = self.reader.take();
        let started = reader.as_ref().and_then(Reader::started);
        self.started = started;
        if let Some(reader) = reader {
            reader.done();
        }
        let usage = self.seen.usage(&self.request, &self.model, started);
        self.metrics.usage(&usage);
        self.outcome = Some(match reason {
            FinishReason::Eos => "eos",
            FinishReason::Stop => "stop",
            FinishReason::Read => "read",
            FinishReason::ToolCalls => "tool_calls",
            FinishReason::Length | FinishReason::Unspecified => "length",
        });
        let fed = self.seen.fed(self.request.prompt.len() as u64);
        let retention = self
            .seen
            .retention
            .take()
            .map(|reported| reported.grown(fed));
        self.ready.push_back(Event::Finished(Finished {
            reason: reason.into(),
            usage: Some(usage),
            stop,
            retention,
        }));
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        let given_up = self.given_up.0.get().map(|reason| reason.tag());
        let outcome = self.outcome.or(given_up).unwrap_or("cancelled");
        self.metrics.ended(outcome);
        let tenant = self.tenant.as_ref().map(|permit| permit.tenant().name());
        self.metrics.tenant_ended(tenant, outcome);
        self.metrics.tenant_tokens(tenant, self.seen.generated);
        let Seen {
            generated,
            first,
            last,
            ..
        } = self.seen;
        let ended = Ended {
            request: self.request.id.as_str(),
            model: self.model.name(),
            outcome,
            failed: self.failed,
            prompt_tokens: self.request.prompt.len() as u64,
            generated_tokens: generated,
            budget: self.request.kv.budget().unwrap_or(0),
            policy: self.request.kv.policy(),
            arrived: self.request.arrived,
            started: self
                .started
                .or_else(|| self.reader.as_ref().and_then(Reader::started)),
            first,
            last,
        };
        tracing::info!(
            request = %self.request.id,
            tenant = tenant.map(|name| &**name),
            outcome,
            generated_tokens = generated,
            "ended"
        );
        if let Some(span) = &self.span {
            ended.record(span);
        }
    }
}

impl Seen {
    fn take(&mut self, token: &Token) {
        self.cached = token.cached;
        self.tokens += 1;
        self.generated += u64::from(token.ended != Some(Ending::Read));
        self.first.get_or_insert(token.at);
        self.last = Some(token.at);
        self.cache = token.cache;
    }

    /// Tokens that the ranks have seen: all but the last sampled one.
    const fn fed(&self, prompt: u64) -> u64 {
        prompt + self.generated.saturating_sub(1)
    }

    fn usage(
        &self,
        request: &ValidRequest,
        model: &ServedModel,
        started: Option<Instant>,
    ) -> Usage {
        let heads = model.all_heads();
        let mean = |entries: u64| (entries + heads / 2) / heads;
        let between = |from: Option<Instant>, to: Option<Instant>| match (from, to) {
            (Some(from), Some(to)) => to.saturating_duration_since(from).as_secs_f64(),
            _ => 0.0,
        };
        let prompt_tokens = request.prompt.len() as u64;
        Usage {
            prompt_tokens,
            generated_tokens: self.generated,
            evicted_tokens: mean(self.cache.evicted_entries),
            held_slots: mean(self.cache.held_entries),
            held_bytes: self.cache.held_bytes,
            full_cache_bytes: self.fed(prompt_tokens) * model.token_bytes(),
            queue_seconds: between(Some(request.arrived), started),
            prefill_seconds: between(started, self.first),
            decode_seconds: between(self.first, self.last),
            first_token_seconds: between(Some(request.arrived), self.first),
            warnings: request.warnings_after(self.fed(prompt_tokens), model),
            cached_tokens: self.cached,
        }
    }
}

impl Reported {
    /// The report as it stands after `fed` tokens: between boundaries every head keeps every new
    /// position.
    fn grown(mut self, fed: u64) -> RetentionReport {
        let since = (self.fed..fed).map(|position| u32::try_from(position).unwrap_or(u32::MAX));
        for head in &mut self.report.heads {
            head.positions.extend(since.clone());
        }
        self.report
    }
}

#[cfg(test)]
mod tests {
    use palimpsest_proto::v1::generate_request::Input;
    use palimpsest_proto::v1::{GenerateRequest, Sampling, Stopping};

    use super::*;
    use crate::executor::ChannelExecutor;
    use crate::executor::fake::{FakeRank, IM_START, Script};
    use crate::{Config, Coordinator};

    /// Control tokens have no text to wait for: their log-probabilities were held to the end of the
    /// answer.
    #[tokio::test]
    async fn log_probabilities_of_tokens_without_text_are_not_held_for_ever() {
        let answer = Arc::new(|_: &[u32], _: usize| IM_START);
        let rank = FakeRank::new(Script::answering(answer, 0, 1));
        let config = Config::default();
        let executor = Box::new(ChannelExecutor::new(vec![rank.spawn()], config.step_limit));
        let coordinator = Coordinator::build(config, executor, vec![rank.info()]).unwrap();
        assert!(coordinator.ready().await);
        let request = GenerateRequest {
            input: Some(Input::Text("x".into())),
            sampling: Some(Sampling {
                logprobs: Some(0),
                ..Default::default()
            }),
            stopping: Some(Stopping {
                max_tokens: Some(600),
                ..Default::default()
            }),
            ..Default::default()
        };
        let mut answer = coordinator.service().generate(request, None).await.unwrap();
        let mut sizes = Vec::new();
        while let Some(event) = answer.next().await {
            if let Some(Event::Delta(delta)) = event.unwrap().event {
                assert_eq!(delta.text, "");
                sizes.push(delta.tokens.len());
            }
        }
        assert_eq!(sizes, [256, 256, 88]);
    }
}
