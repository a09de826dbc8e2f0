//! What every API offers: a request in, an answer out. The APIs only translate.

mod guides;
mod parts;
mod pins;
mod score;
mod sessions;
mod tokenize;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use opentelemetry::trace::SpanContext;
use palimpsest_proto::contract::Contract;
use palimpsest_proto::error::{Reason, RequestError};
use palimpsest_proto::v1::generate_request::Input;
use palimpsest_proto::v1::{GenerateRequest, GetModelResponse, Guide, Pooling, ToolMode};
use palimpsest_tls::Network;
use tokio::time::Instant;

pub use self::parts::Prompted;
use self::parts::{CheckedPrompt, Choice, Rules, SharedPrompt};
pub use self::pins::DriverPins;
pub use self::score::MAX_COMPLETIONS;
use crate::admission::Asker;
use crate::answer::Answer;
use crate::budget::{Budget, Charge};
use crate::config::Config;
use crate::driver::DriverHandle;
use crate::flow::Flow;
use crate::keys::{Tenant, TenantPermit};
use crate::metrics::Metrics;
use crate::model::ServedModel;
use crate::pool::Pool;
use crate::ranks::Ranks;
use crate::request::{self, Cut, Marked, ValidRequest};
use crate::responses::Responses;
use crate::scheduler::Reuse;
use crate::sessions::{Opening, Sessions, Turn};
use crate::snapshots::{Chain, Salt};
use crate::trace::RequestSpan;

/// Bytes of a body that take as much as what a choice holds of one token's bias: an entry of two
/// hash tables.
const BIAS_BYTES: usize = 3;

/// Texts of one call that are read beside each other at most.
const AT_ONCE: usize = 8;

/// Of whom a request is, and what it holds until it is admitted.
#[derive(Debug, Default)]
pub struct Call {
    /// The span that it names.
    pub parent: Option<SpanContext>,
    /// The transport's deadline, counted from now.
    pub timeout: Option<Duration>,
    /// Its share of [`Service::budget`]; none for calls within this process.
    pub charge: Option<Charge>,
    /// Whose key it shows, where keys are asked for.
    pub tenant: Option<Arc<Tenant>>,
    /// Where it comes from; none for calls within this process.
    pub network: Option<Network>,
    /// It was counted: a call whose texts come in parts is one request.
    pub has_arrived: AtomicBool,
}

impl Call {
    /// Whom it counts for.
    pub(crate) fn flow(&self) -> Flow {
        match (&self.tenant, self.network) {
            (Some(tenant), _) => Flow::Tenant(tenant.name().clone()),
            (None, Some(network)) => Flow::Network(network),
            (None, None) => Flow::Local,
        }
    }
}

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
    /// What requests hold before they are admitted.
    pub budget: Budget,
    /// Where long texts are parsed and tokenised.
    pub pool: Pool,
    /// Token logs that clients go on from.
    pub sessions: Sessions,
    /// Responses that are kept.
    pub responses: Responses,
    /// Who computes.
    pub ranks: Ranks,
}

impl Call {
    /// Counts a request that comes now to its tenant.
    fn arrive(&self) -> Result<(), RequestError> {
        if self.has_arrived.swap(true, Ordering::Relaxed) {
            return Ok(());
        }
        self.tenant
            .as_ref()
            .map_or(Ok(()), |tenant| tenant.arrive())
    }

    /// Counts what every choice but the first holds for itself: a body names biases, a guide and a
    /// suffix once, and each choice or prompt has a copy.
    fn hold_copies(&self, asked: &[Prompted]) -> Result<(), RequestError> {
        let Some(charge) = &self.charge else {
            return Ok(());
        };
        let copy = |request: &GenerateRequest| {
            let sampling = request.sampling.as_ref();
            let biases = sampling.map_or(0, |sampling| sampling.logit_bias.len());
            let guide = request.guide.as_ref().map_or(0, Guide::bytes);
            biases.saturating_mul(BIAS_BYTES).saturating_add(guide)
        };
        let choices = asked.iter().flat_map(|asked| &asked.choices);
        let copies = choices.skip(1).map(copy);
        let suffixes = asked.iter().skip(1).map(|one| match &one.input {
            Some(Input::Infill(infill)) => infill.suffix.len(),
            _ => 0,
        });
        charge.take(copies.chain(suffixes).fold(0, usize::saturating_add))
    }
}

impl Service {
    /// A service over a driver.
    pub fn new(model: ServedModel, config: Config, driver: DriverHandle, metrics: Metrics) -> Self {
        let longest = config.message_limit(model.info.context_length);
        let limits = config.sessions.clone();
        let model = Arc::new(model);
        let pins = DriverPins::new(driver.clone(), model.clone(), config.share_snapshots);
        let sessions = Sessions::new(limits, &model, Arc::new(pins), metrics.clone());
        Self {
            sessions,
            budget: Budget::new(config.max_inflight_bytes),
            pool: Pool::new(config.tokenizer_threads, longest),
            responses: Responses::new(config.responses.clone(), metrics.clone()),
            ranks: Ranks::default(),
            model,
            config: Arc::new(config),
            driver,
            metrics,
        }
    }

    /// Largest message that a client may send, in bytes.
    pub fn message_limit(&self) -> usize {
        self.config.message_limit(self.model.info.context_length)
    }

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
        let call = Call {
            timeout,
            ..Call::default()
        };
        self.generate_for(&call, request).await
    }

    /// Starts a request of a caller.
    ///
    /// # Errors
    /// As [`Self::generate`].
    pub async fn generate_for(
        &self,
        call: &Call,
        mut request: GenerateRequest,
    ) -> Result<Answer, RequestError> {
        let asked = Prompted {
            input: request.input.take(),
            choices: vec![request],
            cuts: Vec::new(),
        };
        let answers = self.generate_all(call, vec![asked]).await?;
        let none = || RequestError::new(Reason::Internal, "a choice has no answer");
        answers.into_iter().next().ok_or_else(none)
    }

    /// Starts all choices of all prompts, in their order, or none. Each prompt is tokenised once,
    /// after all else was checked and there is room in the queue.
    ///
    /// # Errors
    /// As [`Self::generate`].
    pub async fn generate_all(
        &self,
        call: &Call,
        asked: Vec<Prompted>,
    ) -> Result<Vec<Answer>, RequestError> {
        self.start_all(call, asked, Opening::Answer).await
    }

    /// The same, where what is read may have no answer.
    async fn start_all(
        &self,
        call: &Call,
        asked: Vec<Prompted>,
        opening: Opening,
    ) -> Result<Vec<Answer>, RequestError> {
        let started = self.start(call, asked, opening).await;
        // An answer counts its own end; there is none.
        started.inspect_err(|error| self.count_refusal(call, error))
    }

    fn count_refusal(&self, call: &Call, error: &RequestError) {
        let outcome = error.reason.tag();
        let tenant = call.tenant.as_ref().map(|tenant| tenant.name());
        self.metrics.refused(tenant, outcome);
        tracing::info!(
            tenant = tenant.map(|name| &**name),
            reason = outcome,
            "refused"
        );
    }

    /// How many texts of one call are read beside each other now. The others wait where they are no
    /// load: in this call.
    pub fn at_once(&self, call: &Call) -> usize {
        let of_key = call.tenant.as_ref().and_then(|tenant| tenant.room());
        let of_key = of_key.map_or(AT_ONCE, |room| room as usize);
        let waiting = self.driver.admission().waiting().requests;
        let of_queue = self.config.max_queued.saturating_sub(waiting);
        AT_ONCE.min(of_key).min(of_queue).max(1)
    }

    async fn start(
        &self,
        call: &Call,
        mut asked: Vec<Prompted>,
        opening: Opening,
    ) -> Result<Vec<Answer>, RequestError> {
        let arrived = Instant::now();
        call.arrive()?;
        call.hold_copies(&asked)?;
        let mut turn = self.begin_turn(call, &mut asked).await?;
        // What only reads leaves no message of the assistant in a session.
        let opening = match &turn {
            Some(_) if asked.iter().all(Prompted::only_reads) => Opening::Nothing,
            _ => opening,
        };
        let checked = asked.into_iter().map(|one| {
            let needs_input = turn.is_none();
            self.check_prompt(
                call,
                one,
                Rules {
                    opening,
                    arrived,
                    needs_input,
                },
            )
        });
        let mut prompts: Vec<CheckedPrompt> = checked.collect::<Result<_, _>>()?;
        let choices = prompts.iter().flat_map(|one| &one.choices);
        let asker = Asker {
            flow: call.flow(),
            priority: choices.map(|one| one.checked.priority).max().unwrap_or(0),
        };
        self.driver.admission().check(&asker)?;
        let choices = prompts.iter_mut().flat_map(|one| &mut one.choices);
        self.compile_guides(call, choices).await?;
        let mut requests = Vec::new();
        for CheckedPrompt {
            input,
            choices,
            cuts,
        } in prompts
        {
            let Some(Choice { checked: first, .. }) = choices.first() else {
                continue;
            };
            let deadline = first.deadline;
            let mut prompt = match turn.take() {
                Some(begun) => {
                    let extended = self.extend_turn(call, begun, input, opening, deadline);
                    let (extended, prompt) = extended.await?;
                    turn = Some(extended);
                    SharedPrompt::of(prompt)
                }
                None => self.tokenize_prompt(call, input, cuts, deadline).await?,
            };
            prompt.warning = turn.as_ref().and_then(Turn::warning);
            prompt.calls = self.compile_calls(call, &prompt.prompt, &choices).await?;
            requests.extend(self.requests(call, choices, &prompt)?);
        }
        let submit = |(request, permit)| {
            let answer = self.submit(call, request)?.of_tenant(permit);
            // A session has one request.
            Ok(answer.of_session(turn.take()))
        };
        requests.into_iter().map(submit).collect()
    }

    /// Whether there is room in the queue for a request of this caller.
    ///
    /// # Errors
    /// `QueueFull`, `Draining`, `NoReadyGroup`.
    pub fn check_room(&self, call: &Call, priority: i32) -> Result<(), RequestError> {
        let flow = call.flow();
        self.driver.admission().check(&Asker { flow, priority })
    }

    /// Checks all of a prompt and of its choices that takes no time.
    fn check_prompt(
        &self,
        call: &Call,
        asked: Prompted,
        rules: Rules,
    ) -> Result<CheckedPrompt, RequestError> {
        let (model, config) = (&self.model, &self.config);
        let begin = |request: GenerateRequest| {
            // A tenant's bounds come before any work; a dropped permit gives its place back.
            let begun = |tenant: &Arc<Tenant>| tenant.begin(request.priority);
            let permit = call.tenant.as_ref().map(begun).transpose()?;
            let checked = request::check(request, call.timeout, rules.arrived, model, config)?;
            let checked = match rules.opening {
                Opening::Nothing => checked.without_answer(),
                Opening::Answer => checked,
            };
            Ok::<_, RequestError>(Choice { checked, permit })
        };
        let Prompted {
            input,
            choices,
            cuts,
        } = asked;
        let choices: Vec<_> = choices.into_iter().map(begin).collect::<Result<_, _>>()?;
        if rules.needs_input || input.is_some() {
            request::check_input(input.as_ref())?;
        }
        if let Some(Input::Chat(chat)) = &input
            && chat.tool_mode() == ToolMode::Required
            && choices.iter().any(|one| one.checked.guide.is_some())
        {
            let message = "an answer cannot be a call and follow a guide: leave one of them out";
            let error = RequestError::new(Reason::BadGuide, message);
            return Err(error.in_field("guide"));
        }
        if let Some(Input::Infill(_)) = &input {
            request::infilling(model)?;
            if choices.iter().any(|one| one.checked.truncates()) {
                let message = "the texts around a place are read whole: leave \
                               truncate_prompt_tokens out";
                let error = RequestError::new(Reason::BadInfill, message);
                return Err(error.in_field("truncate_prompt_tokens"));
            }
        }
        Ok(CheckedPrompt {
            input,
            choices,
            cuts,
        })
    }

    /// The requests of a prompt's choices, which begin with the same kept states, and their places
    /// among those of their tenant.
    fn requests(
        &self,
        call: &Call,
        choices: Vec<Choice>,
        prompt: &SharedPrompt,
    ) -> Result<Vec<(ValidRequest, Option<TenantPermit>)>, RequestError> {
        let mut requests: Vec<(ValidRequest, _)> = Vec::with_capacity(choices.len());
        for Choice {
            checked,
            mut permit,
        } in choices
        {
            let checked = checked
                .marked_at(&prompt.marks)
                .calling(prompt.calls.clone())?;
            let (model, config) = (&self.model, &self.config);
            let mut request = checked.with_prompt(prompt.prompt.clone(), model, config)?;
            request.reuse = match requests.first() {
                Some((first, _)) if request.has_states_of(first) => first.reuse.clone(),
                _ => self.reuse(call, &request),
            };
            request.flow = call.flow();
            request.warnings.extend(prompt.warning.clone());
            if let Some(permit) = &mut permit {
                permit.reserve(request.max_total_tokens())?;
            }
            requests.push((request, permit));
        }
        Ok(requests)
    }

    /// Token ids of a prompt, and how many of them its beginnings have, made where that may take
    /// time.
    async fn tokenize_prompt(
        &self,
        call: &Call,
        input: Option<Input>,
        cuts: Vec<Cut>,
        deadline: Instant,
    ) -> Result<SharedPrompt, RequestError> {
        let bytes = input.as_ref().map_or(0, request::weight);
        let (model, config) = (self.model.clone(), self.config.clone());
        // Where nothing is kept, marks mean nothing.
        let keeps = model.snapshots.memory > 0;
        let cuts = match &input {
            Some(Input::Chat(chat)) if keeps => request::all_cuts(chat, cuts, &model),
            _ => Vec::new(),
        };
        // Each beginning is tokenised as well.
        let bytes = bytes.saturating_mul(1 + cuts.len());
        let work = move || request::tokenize_marked(input, &cuts, &model, &config);
        let charge = call.charge.clone();
        let Marked { prompt, marks } = self.pool.run(bytes, deadline, charge, work).await?;
        Ok(SharedPrompt {
            marks,
            ..SharedPrompt::of(prompt)
        })
    }

    /// What of a request may be used again, by the same tenant or by anyone: that is the operator's
    /// choice.
    fn reuse(&self, call: &Call, request: &ValidRequest) -> Option<Reuse> {
        let sampling = &request.sampling;
        // What is told of a token is told while the one before it is read.
        let free = match sampling.prompt_logprobs {
            _ if request.embedding != Pooling::Unspecified => 0,
            Some(_) => sampling.prompt_logprobs_from.saturating_sub(1) as usize,
            None => request.prompt.len(),
        };
        let free = request.prompt.get(..free).unwrap_or(&request.prompt);
        if self.model.snapshots.memory == 0 || free.is_empty() {
            return None;
        }
        let tenant = call
            .tenant
            .as_ref()
            .filter(|_| !self.config.share_snapshots);
        let salt = Salt {
            tenant: tenant.map_or("", |tenant| tenant.name()),
            request: &request.caching.salt,
        };
        let root = self.model.snapshot_root(&request.kv, salt);
        Some(Reuse {
            chain: Arc::new(Chain::of(&root, free)),
            marks: request.caching.marks.clone(),
            rolls: request.kv != Contract::Full,
        })
    }

    fn submit(&self, call: &Call, mut request: ValidRequest) -> Result<Answer, RequestError> {
        let caller = call.parent.as_ref();
        let traced = RequestSpan::begin(caller, request.arrived);
        request.trace = traced.as_ref().map(RequestSpan::parent);
        let tenant = call.tenant.as_ref().map(|tenant| &**tenant.name());
        let span = tracing::info_span!("generate", request = %request.id, tenant);
        let _entered = span.enter();
        match self.driver.submit(request.clone()) {
            Ok(reader) => {
                log_accepted(&request, caller);
                Ok(Answer::new(
                    request,
                    self.model.clone(),
                    reader,
                    self.metrics.clone(),
                    traced,
                ))
            }
            Err(error) => {
                if let Some(traced) = traced {
                    traced.refused(error.reason.tag());
                }
                Err(error)
            }
        }
    }

    /// What is served and what a request may ask of it.
    pub fn describe(&self) -> GetModelResponse {
        let info = &self.model.info;
        GetModelResponse {
            name: self.model.name().to_owned(),
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
