//! How likely completions are behind a prompt.
//!
//! Each completion is a request of its own: the tokens of the prompt and of the completion, of
//! which the ranks tell the log-probabilities of the latter, and no answer. The state of the prompt
//! is kept at its last boundary, where states are kept at all, so that the others need not read it
//! again. What is kept is what would be read: the scores are the same either way.

use std::sync::Arc;
use std::time::Duration;

use palimpsest_proto::error::{Reason, RequestError};
use palimpsest_proto::v1::generate_event::Event;
use palimpsest_proto::v1::generate_request::Input;
use palimpsest_proto::v1::{
    Completion, GenerateRequest, Sampling, Score, ScoreRequest, ScoreResponse, Stopping, TokenIds,
    TokenLogprob, completion, score_request,
};
use tokio::time::Instant;

use super::{Call, Prompted, Service};
use crate::answer::Answer;
use crate::config::Config;
use crate::ids::RequestId;
use crate::model::ServedModel;
use crate::request::{self, answer_bytes, too_large};

/// Completions of one request at most.
pub const MAX_COMPLETIONS: usize = 128;
/// Tokens that are told of beside each of a completion: the likeliest one.
const BEST: u32 = 1;

/// What is to be scored, in token ids.
#[derive(Debug)]
struct Asked {
    prompt: Arc<[u32]>,
    /// None of them empty.
    completions: Vec<Vec<u32>>,
}

/// What became of one completion.
#[derive(Debug)]
struct Told {
    tokens: Vec<TokenLogprob>,
    warnings: Vec<String>,
}

impl Service {
    /// How likely each completion is behind the prompt.
    ///
    /// # Errors
    /// What is wrong with the request, or why it is not taken or fails now; then none is scored.
    pub async fn score(
        &self,
        call: &Call,
        request: ScoreRequest,
    ) -> Result<ScoreResponse, RequestError> {
        let arrived = Instant::now();
        let limit = self.score_limit(call, request.deadline_ms);
        let mut request = request;
        let count = |error: &RequestError| self.count_refusal(call, error);
        let asked = self.asked(call, &mut request, arrived + limit).await;
        let Asked {
            prompt,
            completions,
        } = asked.inspect_err(count)?;
        let id = RequestId::parse(&request.request_id).ok_or_else(bad_id);
        let id = id.inspect_err(count)?;
        let mut response = ScoreResponse {
            request_id: id.to_string(),
            model: self.model.name().to_owned(),
            prompt_tokens: prompt.len() as u64,
            ..Default::default()
        };
        let template = template(&request, &prompt, completions.len());
        let mut bytes = 0;
        let mut left = completions.into_iter().enumerate();
        loop {
            let some: Vec<_> = left.by_ref().take(self.at_once(call)).collect();
            if some.is_empty() {
                return Ok(response);
            }
            let deadline_ms = left_ms(arrived, limit).inspect_err(count)?;
            let prompted = |(index, completion): (usize, Vec<u32>)| Prompted {
                input: Some(Input::TokenIds(TokenIds {
                    ids: [&*prompt, &completion].concat(),
                })),
                choices: vec![GenerateRequest {
                    request_id: RequestId::of_choice(id.as_str(), index),
                    deadline_ms,
                    ..template.clone()
                }],
                ..Prompted::default()
            };
            let some = some.into_iter().map(prompted).collect();
            for answer in self.generate_all(call, some).await? {
                let Told { tokens, warnings } = told(answer).await?;
                bytes += score_bytes(&tokens);
                if bytes > self.config.max_answer_bytes {
                    return Err(too_large(self.config.max_answer_bytes));
                }
                for warning in warnings {
                    if !response.warnings.contains(&warning) {
                        response.warnings.push(warning);
                    }
                }
                response.scores.push(score(tokens));
            }
        }
    }

    /// Time for all completions together.
    fn score_limit(&self, call: &Call, deadline_ms: u64) -> Duration {
        let asked = (deadline_ms > 0).then(|| Duration::from_millis(deadline_ms));
        let limits = [call.timeout, asked];
        let most = self.config.request_limit;
        limits.into_iter().flatten().fold(most, Duration::min)
    }

    /// Checks what takes no time, and tokenises where that may take some.
    async fn asked(
        &self,
        call: &Call,
        request: &mut ScoreRequest,
        deadline: Instant,
    ) -> Result<Asked, RequestError> {
        call.arrive()?;
        self.model.check_name(&request.model)?;
        let input = request.prompt.take().map(|prompt| match prompt {
            score_request::Prompt::Text(text) => Input::Text(text),
            score_request::Prompt::Chat(chat) => Input::Chat(chat),
            score_request::Prompt::TokenIds(ids) => Input::TokenIds(ids),
        });
        request::check_input(input.as_ref())?;
        let completions = std::mem::take(&mut request.completions);
        let count = completions.len();
        if count == 0 || count > MAX_COMPLETIONS {
            let message = format!("completions has {count} of them: send 1 to {MAX_COMPLETIONS}");
            return Err(bad(message));
        }
        self.check_room(call, request.priority)?;
        let bytes = completions.iter().map(weight).sum::<usize>();
        let bytes = bytes.saturating_add(input.as_ref().map_or(0, request::weight));
        let (model, config) = (self.model.clone(), self.config.clone());
        let work = move || tokenized(input, completions, &model, &config);
        let charge = call.charge.clone();
        self.pool.run(bytes, deadline, charge, work).await
    }
}

/// The request for each completion, but for its tokens and its name.
fn template(request: &ScoreRequest, prompt: &[u32], completions: usize) -> GenerateRequest {
    let told_from = prompt.len() as u64;
    GenerateRequest {
        model: request.model.clone(),
        sampling: Some(Sampling {
            prompt_logprobs: Some(BEST),
            prompt_logprobs_from: told_from,
            ..Default::default()
        }),
        stopping: Some(Stopping {
            max_tokens: Some(0),
            ..Default::default()
        }),
        kv: request.kv.clone(),
        priority: request.priority,
        cache_salt: request.cache_salt.clone(),
        // The first token of a completion is told of while the last one of the prompt is read.
        snapshot_at: (completions > 1)
            .then(|| told_from - 1)
            .into_iter()
            .collect(),
        ..Default::default()
    }
}

fn weight(completion: &Completion) -> usize {
    match &completion.completion {
        Some(completion::Completion::Text(text)) => text.len(),
        Some(completion::Completion::TokenIds(tokens)) => tokens.ids.len() * size_of::<u32>(),
        None => 0,
    }
}

/// Token ids of a prompt and of what may follow it.
fn tokenized(
    input: Option<Input>,
    completions: Vec<Completion>,
    model: &ServedModel,
    config: &Config,
) -> Result<Asked, RequestError> {
    let prompt = request::tokenize(input, model, config)?.ids;
    let mut tokens = 0;
    let mut tokenized = Vec::with_capacity(completions.len());
    for (index, Completion { completion }) in completions.into_iter().enumerate() {
        let ids = match completion {
            Some(completion::Completion::Text(text)) => {
                request::encode_behind(&text, model, config)?
            }
            Some(completion::Completion::TokenIds(tokens)) => {
                let checked = request::check_ids(&tokens.ids, model);
                checked.map_err(|error| error.in_field("completions"))?;
                tokens.ids
            }
            None => Vec::new(),
        };
        if ids.is_empty() {
            return Err(bad(format!(
                "completions[{index}] has no token: leave it out"
            )));
        }
        tokens += ids.len() as u64;
        tokenized.push(ids);
    }
    let needed = answer_bytes(1, tokens, u64::from(BEST));
    let most = config.max_answer_bytes as u64;
    if needed > most {
        let message = format!(
            "log-probabilities of {tokens} tokens take about {needed} bytes, over the limit of \
             {most} for one answer: send fewer completions at once"
        );
        return Err(RequestError::new(Reason::AnswerTooLarge, message).in_field("completions"));
    }
    Ok(Asked {
        prompt,
        completions: tokenized,
    })
}

/// Reads an answer to its end.
async fn told(mut answer: Answer) -> Result<Told, RequestError> {
    let (mut tokens, mut warnings) = (None, Vec::new());
    while let Some(event) = answer.next().await {
        match event?.event {
            Some(Event::PromptLogprobs(found)) => tokens = Some(found.tokens),
            Some(Event::Finished(finished)) => {
                warnings = finished.usage.unwrap_or_default().warnings
            }
            _ => {}
        }
    }
    let missing = || RequestError::new(Reason::Internal, "a completion was read and has no score");
    let tokens = tokens.ok_or_else(missing)?;
    Ok(Told { tokens, warnings })
}

fn score(tokens: Vec<TokenLogprob>) -> Score {
    let is_best = |token: &TokenLogprob| {
        let best = token.top.first();
        best.is_none_or(|best| token.logprob >= best.logprob)
    };
    Score {
        logprob: tokens.iter().map(|token| f64::from(token.logprob)).sum(),
        is_greedy: tokens.iter().all(is_best),
        tokens,
    }
}

/// What tokens that were told of take in memory.
fn score_bytes(tokens: &[TokenLogprob]) -> usize {
    let own = |token: &TokenLogprob| size_of::<TokenLogprob>() + token.bytes.len();
    let all = |token: &TokenLogprob| own(token) + token.top.iter().map(own).sum::<usize>();
    tokens.iter().map(all).sum()
}

/// Milliseconds of `limit` that are left.
fn left_ms(arrived: Instant, limit: Duration) -> Result<u64, RequestError> {
    let left = limit.saturating_sub(arrived.elapsed()).as_millis();
    match u64::try_from(left).unwrap_or(u64::MAX) {
        // As a field it would mean the server's limit.
        0 => {
            let message = "the deadline passed before all completions were scored: allow more \
                           time, or send fewer";
            Err(RequestError::new(Reason::DeadlineInExecution, message))
        }
        left => Ok(left),
    }
}

fn bad(message: String) -> RequestError {
    RequestError::new(Reason::BadScore, message).in_field("completions")
}

fn bad_id() -> RequestError {
    let message = format!(
        "request_id must be at most {} printable ASCII characters",
        RequestId::MAX_BYTES
    );
    RequestError::new(Reason::BadRequestId, message).in_field("request_id")
}
