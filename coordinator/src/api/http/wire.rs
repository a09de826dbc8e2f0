//! OpenAI's request bodies, and what they mean here.
//!
//! A field that we know is honoured, or ignored with a warning, or refused by name where it would
//! change the answer (`table`). One that nobody knows is ignored with a warning, because no answer
//! may change in silence; a strict server refuses it.
//!
//! A body is read field by field: what is not read is skipped, and lists are held no longer than
//! they may be, so that a body takes a bounded multiple of its own bytes.

mod anthropic;
mod chat;
mod embeddings;
mod fields;
mod guide;
mod kv;
mod lists;
mod messages;
mod names;
mod read;
mod responses;
mod score;
mod sessions;
mod table;
#[cfg(test)]
mod tests;
mod tokenize;

use palimpsest_proto::v1::generate_request::Input;
use palimpsest_proto::v1::{GenerateRequest, Infill, Sampling, Stopping};
use serde::Deserialize;
use serde::de::MapAccess;

pub use self::anthropic::{CALL_PREFIX, CountBody, MessagesBody};
use self::chat::ChatFields;
pub use self::embeddings::{EmbeddingBody, EmbeddingsAsked, Encoding};
use self::fields::Rest;
use self::guide::GuideFields;
use self::kv::{KvBody, KvNames, MAX_NAME_BYTES, contract};
use self::lists::{Biases, MAX_CHOICES, Object, Positions, Prompts, StopIds, Stops};
use self::names::{CHAT, COMMON};
use self::read::read_field;
pub use self::read::{PARSE_SPEED, RequestBody, Unreadable, read_body};
pub use self::responses::{ResponseBody, ResponseRequest};
pub use self::score::ScoreBody;
pub use self::sessions::{
    AppendBody, CloseSessionBody, CreateSessionBody, ForkBody, OpenSessionBody,
};
use self::table::Route;
pub use self::tokenize::{TokenizeAsked, TokenizeBody};
use super::error::{HttpError, Named};
use crate::ids::RequestId;
use crate::service::Prompted;

/// Alternatives per token at most, as in OpenAI's API.
const MAX_TOP_LOGPROBS: u32 = 20;

/// What both kinds of request have.
#[derive(Debug, Clone, Default)]
pub struct Common {
    model: String,
    max_tokens: Option<i64>,
    max_completion_tokens: Option<i64>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    n: Option<usize>,
    stop: Option<Stops>,
    seed: Option<i64>,
    frequency_penalty: Option<f32>,
    presence_penalty: Option<f32>,
    logit_bias: Option<Biases>,
    /// Whether the answer comes as server-sent events.
    pub stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    top_k: Option<i64>,
    min_p: Option<f32>,
    repetition_penalty: Option<f32>,
    ignore_eos: Option<bool>,
    priority: Option<i32>,
    min_tokens: Option<u32>,
    stop_token_ids: Option<StopIds>,
    include_stop_str_in_output: Option<bool>,
    skip_special_tokens: Option<bool>,
    return_token_ids: Option<bool>,
    truncate_prompt_tokens: Option<i64>,
    best_of: Option<usize>,
    request_id: Option<String>,
    kv: Option<Object<KvBody>>,
    kv_budget: Option<u32>,
    kv_policy: Option<String>,
    latent_memory: Option<String>,
    cache_salt: Option<String>,
    snapshot_at: Option<Positions>,
    session_id: Option<String>,
    prompt_logprobs: Option<u32>,
    retention_map: Option<bool>,
    guide: GuideFields,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct StreamOptions {
    #[serde(default)]
    include_usage: bool,
}

/// Body of `/v1/chat/completions`.
#[derive(Debug, Clone, Default)]
pub struct ChatRequest {
    /// What both kinds have.
    pub common: Common,
    fields: ChatFields,
    logprobs: Option<bool>,
    top_logprobs: Option<u32>,
    rest: Rest,
}

/// Body of `/v1/completions`.
#[derive(Debug, Clone, Default)]
pub struct CompletionRequest {
    /// What both kinds have.
    pub common: Common,
    prompt: Prompts<MAX_CHOICES>,
    suffix: Option<String>,
    logprobs: Option<u32>,
    echo: Option<bool>,
    rest: Rest,
}

/// A request as the service takes it.
#[derive(Debug, Clone, PartialEq)]
pub struct Choices {
    /// The prompts, each with its choices, in the order of their indices.
    pub prompts: Vec<Prompted>,
    /// Choices of one prompt: usage counts a prompt once.
    pub per_prompt: usize,
    /// Whether an answer begins with its prompt.
    pub echoes: bool,
    /// Whether an answer has `prompt_logprobs`.
    pub tells_prompt: bool,
    /// Whether a stream ends with usage.
    pub include_usage: bool,
    /// The field that the answers' guide comes from.
    pub guided_by: Option<&'static str>,
    /// The request's name, where the body has one.
    pub request_id: Option<String>,
    /// What the client is told of fields that do nothing.
    pub warnings: Vec<String>,
    /// By which names it sent the KV contract.
    pub named: Named,
}

impl Choices {
    /// Answers that are asked for, over all prompts.
    pub fn count(&self) -> usize {
        self.prompts.iter().map(|asked| asked.choices.len()).sum()
    }

    /// How tokens are chosen, which all choices have in common but for the seed.
    pub fn sampling(&self) -> Option<&Sampling> {
        let first = self.prompts.first()?.choices.first()?;
        first.sampling.as_ref()
    }
}

impl RequestBody for ChatRequest {
    const OWN: &'static [&'static str] = &CHAT;
    const SHARED: &'static [&'static str] = &COMMON;
    const NEEDED: Option<&'static str> = Some("messages");

    fn read<'de, A: MapAccess<'de>>(
        &mut self,
        field: &'static str,
        values: &mut A,
    ) -> Result<(), A::Error> {
        if !Self::OWN.contains(&field) {
            return self.common.read(field, values);
        }
        match field {
            "logprobs" => self.logprobs = values.next_value()?,
            "top_logprobs" => self.top_logprobs = values.next_value()?,
            _ => self.fields.read(field, values)?,
        }
        Ok(())
    }

    fn read_other<'de, A: MapAccess<'de>>(
        &mut self,
        name: &str,
        values: &mut A,
    ) -> Result<(), A::Error> {
        self.rest.read(Route::Chat, name, values)
    }
}

impl RequestBody for CompletionRequest {
    const OWN: &'static [&'static str] = &["prompt", "suffix", "logprobs", "echo"];
    const SHARED: &'static [&'static str] = &COMMON;
    const NEEDED: Option<&'static str> = Some("prompt");

    fn read<'de, A: MapAccess<'de>>(
        &mut self,
        field: &'static str,
        values: &mut A,
    ) -> Result<(), A::Error> {
        if !Self::OWN.contains(&field) {
            return self.common.read(field, values);
        }
        read_field!(self, field, values; prompt, suffix, logprobs, echo);
        Ok(())
    }

    fn read_other<'de, A: MapAccess<'de>>(
        &mut self,
        name: &str,
        values: &mut A,
    ) -> Result<(), A::Error> {
        self.rest.read(Route::Completion, name, values)
    }
}

impl ChatRequest {
    /// What is asked of the service.
    ///
    /// # Errors
    /// Names the field that is wrong or not supported.
    pub fn choices(self, is_strict: bool) -> Result<Choices, HttpError> {
        let warnings = self.rest.warnings(is_strict)?;
        let chat = self.fields.chat()?;
        let logprobs = match (self.logprobs.unwrap_or(false), self.top_logprobs) {
            (true, top) => Some(check_top("top_logprobs", top.unwrap_or(0))?),
            (false, None | Some(0)) => None,
            (false, Some(_)) => {
                return Err(HttpError::invalid(
                    "top_logprobs",
                    "top_logprobs needs logprobs: true",
                ));
            }
        };
        let count = 1;
        let tells_prompt = self.common.tells_prompt()?;
        let choices = self
            .common
            .choices(vec![Input::Chat(chat)], count, logprobs)?;
        Ok(Choices {
            tells_prompt,
            warnings,
            ..choices
        })
    }
}

impl CompletionRequest {
    /// What is asked of the service.
    ///
    /// # Errors
    /// Names the field that is wrong or not supported.
    pub fn choices(self, is_strict: bool) -> Result<Choices, HttpError> {
        let warnings = self.rest.warnings(is_strict)?;
        let logprobs = self
            .logprobs
            .map(|top| check_top("logprobs", top))
            .transpose()?;
        let Prompts { inputs, count } = self.prompt;
        let inputs = match self.suffix.filter(|suffix| !suffix.is_empty()) {
            Some(suffix) => before(inputs, &suffix)?,
            None => inputs,
        };
        let echoes = self.echo.unwrap_or(false);
        let mut common = self.common;
        let tells_prompt = common.tells_prompt()?;
        if echoes {
            // What is repeated is told of like the rest.
            common.prompt_logprobs = common.prompt_logprobs.max(logprobs);
        }
        let choices = common.choices(inputs, count, logprobs)?;
        Ok(Choices {
            echoes,
            tells_prompt,
            warnings,
            ..choices
        })
    }
}

/// The same prompts, each of which stands before a place that `suffix` stands behind.
fn before(inputs: Vec<Input>, suffix: &str) -> Result<Vec<Input>, HttpError> {
    let around = |input| match input {
        Input::Text(prefix) => Ok(Input::Infill(Infill {
            prefix,
            suffix: suffix.to_owned(),
        })),
        _ => {
            let message = "suffix goes with a prompt that is a text: send `prompt` as one, or \
                           leave suffix out";
            Err(HttpError::invalid("suffix", message))
        }
    };
    inputs.into_iter().map(around).collect()
}

impl Common {
    fn read<'de, A: MapAccess<'de>>(
        &mut self,
        field: &str,
        values: &mut A,
    ) -> Result<(), A::Error> {
        if guide::FIELDS.contains(&field) {
            return self.guide.read(field, values);
        }
        read_field!(
            self, field, values;
            model, max_tokens, max_completion_tokens, temperature, top_p, n, stop, seed,
            frequency_penalty, presence_penalty, logit_bias, stream, stream_options, top_k, min_p,
            repetition_penalty, ignore_eos, priority, min_tokens, stop_token_ids,
            include_stop_str_in_output, skip_special_tokens, return_token_ids,
            truncate_prompt_tokens, best_of, request_id, kv, kv_budget, kv_policy, latent_memory,
            cache_salt, snapshot_at, session_id, prompt_logprobs, retention_map,
        );
        Ok(())
    }

    /// Whether the answer has `prompt_logprobs`.
    fn tells_prompt(&self) -> Result<bool, HttpError> {
        let is_asked = self.prompt_logprobs.is_some();
        if is_asked && self.stream == Some(true) {
            let message = "prompt_logprobs comes with whole answers only: leave stream out";
            return Err(HttpError::invalid("prompt_logprobs", message));
        }
        Ok(is_asked)
    }

    /// What is asked of `inputs`, which are all the `prompts` there are unless those are too many.
    fn choices(
        mut self,
        inputs: Vec<Input>,
        prompts: usize,
        logprobs: Option<u32>,
    ) -> Result<Choices, HttpError> {
        let per_prompt = self.n.unwrap_or(1);
        let count = per_prompt.saturating_mul(prompts);
        if prompts == 0 {
            return Err(HttpError::invalid("prompt", "send at least one prompt"));
        }
        if count == 0 || count > MAX_CHOICES {
            let message = format!(
                "n times the number of prompts is {count}: ask for 1 to {MAX_CHOICES} choices"
            );
            return Err(HttpError::invalid("n", message));
        }
        if self.best_of.is_some_and(|best| best != per_prompt) {
            let message = "best_of must be n: all answers are sent, and none is chosen";
            return Err(HttpError::invalid("best_of", message));
        }
        self.check_map(count)?;
        let request_id = self.request_id()?;
        let named = Named {
            has_kv: self.kv.is_some(),
        };
        let include_usage = self
            .stream_options
            .as_ref()
            .is_some_and(|options| options.include_usage);
        let guided = std::mem::take(&mut self.guide).guide()?;
        let guided_by = guided.as_ref().map(|guided| guided.field);
        let request = GenerateRequest {
            guide: guided.map(|guided| guided.guide),
            ..self.request(logprobs)?
        };
        let choice = |index: usize| {
            let mut request = request.clone();
            if let Some(seed) = request
                .sampling
                .as_mut()
                .and_then(|sampling| sampling.seed.as_mut())
            {
                // Choices of one prompt differ.
                *seed = seed.wrapping_add(index as u64);
            }
            request
        };
        let prompted = |input| Prompted {
            input: Some(input),
            choices: (0..per_prompt).map(choice).collect(),
            cuts: Vec::new(),
        };
        Ok(Choices {
            prompts: inputs.into_iter().map(prompted).collect(),
            per_prompt,
            echoes: false,
            tells_prompt: false,
            include_usage,
            guided_by,
            request_id,
            warnings: Vec::new(),
            named,
        })
    }

    /// Refuses maps where nothing could carry them.
    fn check_map(&self, count: usize) -> Result<(), HttpError> {
        let why = match self.retention_map {
            Some(true) if self.stream != Some(true) => "comes in streams only: set stream",
            Some(true) if count > 1 => "tells of one answer: ask for one",
            _ => return Ok(()),
        };
        Err(HttpError::invalid(
            "retention_map",
            format!("retention_map {why}"),
        ))
    }

    /// The request's name, if it can be one.
    fn request_id(&self) -> Result<Option<String>, HttpError> {
        let Some(id) = self.request_id.as_deref().filter(|id| !id.is_empty()) else {
            return Ok(None);
        };
        if RequestId::parse(id).is_some() {
            return Ok(Some(id.to_owned()));
        }
        let most = RequestId::MAX_BYTES;
        let message = format!("request_id must be at most {most} printable ASCII characters");
        Err(HttpError::invalid("request_id", message))
    }

    /// How the answer ends.
    fn stopping(&mut self) -> Result<Stopping, HttpError> {
        let asked = match self.max_completion_tokens {
            Some(tokens) => ("max_completion_tokens", Some(tokens)),
            None => ("max_tokens", self.max_tokens),
        };
        let (max_tokens, fill_context) = match asked {
            (_, None) => (None, false),
            (_, Some(-1)) => (None, true),
            (field, Some(tokens)) => {
                let tokens = u32::try_from(tokens).map_err(|_| {
                    let message = format!("{field} must be -1, or 0 to {}", u32::MAX);
                    HttpError::invalid(field, message)
                })?;
                (Some(tokens), false)
            }
        };
        Ok(Stopping {
            max_tokens,
            fill_context,
            stop: self.stop.take().unwrap_or_default().strings()?,
            ignore_eos: self.ignore_eos.unwrap_or(false),
            stop_token_ids: self.stop_token_ids.take().unwrap_or_default().0,
            min_tokens: self.min_tokens.unwrap_or(0),
        })
    }

    /// Tokens of the prompt that are kept.
    fn truncation(&self) -> Result<Option<u64>, HttpError> {
        match self.truncate_prompt_tokens {
            None => Ok(None),
            Some(kept) => u64::try_from(kept).map(Some).map_err(|_| {
                let message = "truncate_prompt_tokens must be at least 1";
                HttpError::invalid("truncate_prompt_tokens", message)
            }),
        }
    }

    /// All but the input.
    fn request(mut self, logprobs: Option<u32>) -> Result<GenerateRequest, HttpError> {
        check_names([
            ("model", Some(&self.model)),
            ("cache_salt", self.cache_salt.as_ref()),
            ("session_id", self.session_id.as_ref()),
        ])?;
        let top_k = match self.top_k.unwrap_or(0) {
            // As vLLM's clients say "no limit".
            -1 => 0,
            k => u32::try_from(k)
                .map_err(|_| HttpError::invalid("top_k", "top_k must be -1, 0 or positive"))?,
        };
        // OpenAI's default; over gRPC the default is greedy.
        let temperature = self.temperature.unwrap_or(1.0);
        // No probability but the largest one's is left.
        let is_greedy = self.top_p == Some(0.0);
        let sampling = Sampling {
            temperature: Some(if is_greedy { 0.0 } else { temperature }),
            top_k,
            top_p: self.top_p.filter(|_| !is_greedy),
            min_p: self.min_p.unwrap_or(0.0),
            repetition_penalty: self.repetition_penalty,
            frequency_penalty: self.frequency_penalty.unwrap_or(0.0),
            presence_penalty: self.presence_penalty.unwrap_or(0.0),
            seed: self.seed.map(i64::cast_unsigned),
            logit_bias: self.logit_bias.take().unwrap_or_default().entries()?,
            logprobs,
            prompt_logprobs: self
                .prompt_logprobs
                .map(|top| check_top("prompt_logprobs", top))
                .transpose()?,
            ..Default::default()
        };
        let stopping = self.stopping()?;
        let truncate_prompt_tokens = self.truncation()?;
        let Object(body) = self.kv.unwrap_or_default();
        let names = KvNames {
            budget: self.kv_budget,
            policy: self.kv_policy,
            memory: self.latent_memory,
        };
        Ok(GenerateRequest {
            model: self.model,
            sampling: Some(sampling),
            stopping: Some(stopping),
            kv: Some(contract(body, names)?),
            priority: self.priority.unwrap_or(0),
            show_special_tokens: self.skip_special_tokens == Some(false),
            include_stop: self.include_stop_str_in_output.unwrap_or(false),
            return_token_ids: self.return_token_ids.unwrap_or(false),
            truncate_prompt_tokens,
            cache_salt: self.cache_salt.unwrap_or_default(),
            snapshot_at: self.snapshot_at.unwrap_or_default().0,
            session_id: self.session_id.unwrap_or_default(),
            retention_map: self.retention_map.unwrap_or(false),
            ..Default::default()
        })
    }
}

/// Refuses names that are too long, each with its field.
fn check_names<'a>(
    names: impl IntoIterator<Item = (&'static str, Option<&'a String>)>,
) -> Result<(), HttpError> {
    for (field, name) in names {
        let bytes = name.map_or(0, String::len);
        if bytes > MAX_NAME_BYTES {
            let message = format!("{field} has {bytes} bytes, the most is {MAX_NAME_BYTES}");
            return Err(HttpError::invalid(field, message));
        }
    }
    Ok(())
}

fn check_top(param: &str, top: u32) -> Result<u32, HttpError> {
    if top <= MAX_TOP_LOGPROBS {
        return Ok(top);
    }
    Err(HttpError::invalid(
        param,
        format!("{param} is {top}, the most is {MAX_TOP_LOGPROBS}"),
    ))
}
