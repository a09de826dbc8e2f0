//! A rank without a model: the twin of a worker for tests and for measuring the coordinator alone.
//!
//! It checks every plan against the contract between coordinator and ranks, keeps count of what a
//! bounded cache would hold, and answers with tokens that are a pure function of the sequence so
//! far. It can be told to fail.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use palimpsest_proto::contract::Contract;
use palimpsest_proto::internal::v1::worker_server::Worker;
use palimpsest_proto::internal::v1::{
    Beat, CacheState, GetRankRequest, JoinRequest, JoinResponse, Lead, ModelInfo, RankInfo,
    SequenceInit, SequenceOutput, SequenceStep, StepOutput, StepPlan, WatchRequest,
};
use palimpsest_proto::kv::Geometry;
use palimpsest_proto::v1::{HeadRetention, KvContract, RetentionReport, TokenLogprob};
use tokio::sync::{mpsc, oneshot};
use tokio::time::sleep;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::RankChannel;
use crate::scheduler::{Capacity, Cost};

/// Token ids below this are the bytes of the fake model's tokenizer.
pub const BYTE_TOKENS: u32 = 256;
/// Id of `<|im_start|>`.
pub const IM_START: u32 = 266;
/// Id of `<|im_end|>`, the end of sequence.
pub const IM_END: u32 = 267;
/// Size of the vocabulary.
pub const VOCABULARY: u64 = 268;

/// The next token from all tokens so far and the length of the prompt.
pub type Answer = Arc<dyn Fn(&[u32], usize) -> u32 + Send + Sync>;

/// A way to fail, in a given step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The step fails as a whole.
    Error,
    /// No answer ever comes.
    Hang,
    /// Another digest than that of the other ranks.
    Diverge,
    /// The rank ends.
    Vanish,
    /// The first sequence of the step fails alone.
    FailSequence,
    /// The answer is one of another step.
    WrongStep,
}

/// What a fake rank does.
#[derive(Clone)]
pub struct Script {
    /// Model and arena, as the rank reports them.
    pub rank: RankInfo,
    /// The model.
    pub answer: Answer,
    /// Duration of a step.
    pub step_time: Duration,
    /// Faults by the number of plans that the rank has had, from 0.
    pub faults: HashMap<usize, Fault>,
}

impl Script {
    /// A rank of a group of `world_size` whose model repeats the bytes of `text` and then ends.
    pub fn saying(text: &str, rank: u32, world_size: u32) -> Self {
        let text = text.as_bytes().to_vec();
        let answer = move |tokens: &[u32], prompt: usize| {
            text.get(tokens.len() - prompt)
                .map_or(IM_END, |&byte| u32::from(byte))
        };
        Self::answering(Arc::new(answer), rank, world_size)
    }

    /// A rank whose model writes letters that depend on all tokens before, and never ends.
    pub fn endless(rank: u32, world_size: u32) -> Self {
        let letters = |tokens: &[u32], _: usize| {
            let hash = tokens.iter().fold(17u32, |hash, &token| {
                hash.wrapping_mul(31).wrapping_add(token + 1)
            });
            u32::from(b'a') + (hash >> 8) % 26
        };
        Self::answering(Arc::new(letters), rank, world_size)
    }

    /// A rank with this model.
    pub fn answering(answer: Answer, rank: u32, world_size: u32) -> Self {
        let rank = RankInfo {
            rank,
            world_size,
            model: Some(model()),
            kv_arena_bytes: 64 << 20,
            kv_latent_bytes: 8 << 20,
            device: "fake".into(),
            digest: b"fake"[..].into(),
            epoch: 0,
            lead: None,
        };
        Self {
            rank,
            answer,
            step_time: Duration::ZERO,
            faults: HashMap::new(),
        }
    }

    /// The same with a fault in plan number `plan`, from 0.
    #[must_use]
    pub fn with_fault(mut self, plan: usize, fault: Fault) -> Self {
        self.faults.insert(plan, fault);
        self
    }

    /// The same with steps that take this long.
    #[must_use]
    pub const fn with_step_time(mut self, step_time: Duration) -> Self {
        self.step_time = step_time;
        self
    }
}

/// The fake model: 2 layers, 2 KV heads, stride 16, byte-level vocabulary, a ChatML template.
pub fn model() -> ModelInfo {
    let template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content \
                    }}<|im_end|>\n{% endfor %}{% if add_generation_prompt \
                    %}<|im_start|>assistant\n{% endif %}";
    ModelInfo {
        name: "fake".into(),
        architecture: "fake".into(),
        context_length: 512,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim: 8,
        vocabulary: VOCABULARY,
        parameters: 0,
        kv_element_bytes: 2,
        kv_scale_bytes: 0,
        stride: 16,
        tokenizer: byte_level_tokenizer().into(),
        chat_template: template.into(),
        bos_token: "<|im_start|>".into(),
        eos_token: "<|im_end|>".into(),
        eos_ids: vec![IM_END],
        policies: ["full", "window", "random", "retention"]
            .map(String::from)
            .into(),
        memories: ["none", "associative"].map(String::from).into(),
        default_kv: Some(KvContract {
            budget: 64,
            policy: "window".into(),
            memory: "none".into(),
            ..Default::default()
        }),
    }
}

/// A `tokenizer.json`: byte-level BPE in which id = byte, a few merges from [`BYTE_TOKENS`] on, two
/// control tokens.
pub fn byte_level_tokenizer() -> Vec<u8> {
    let mut next = 0x100;
    let mut alphabet: Vec<String> = Vec::new();
    for byte in 0..=u8::MAX {
        let plain = matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
        let code = if plain { u32::from(byte) } else { next };
        next += u32::from(!plain);
        alphabet.extend(char::from_u32(code).map(String::from));
    }
    let merges = [
        ("t", "h"),
        ("th", "e"),
        ("Ġ", "the"),
        ("h", "e"),
        ("l", "l"),
        ("he", "ll"),
        ("hell", "o"),
        ("Ã", "©"),
    ];
    let merged = merges
        .iter()
        .map(|(a, b)| format!("{a}{b}"))
        .chain(["<pad>".into(), "<unused>".into()]);
    let vocab: serde_json::Map<_, _> = alphabet
        .iter()
        .cloned()
        .chain(merged)
        .zip((0..).map(|id: u32| id.into()))
        .collect();
    let control = |id: u32, content: &str| {
        serde_json::json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    };
    let byte_level = serde_json::json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let merges: Vec<_> = merges.iter().map(|(a, b)| format!("{a} {b}")).collect();
    let file = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [control(IM_START, "<|im_start|>"), control(IM_END, "<|im_end|>")],
        "normalizer": null, "pre_tokenizer": byte_level, "post_processor": null, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": merges},
    });
    file.to_string().into_bytes()
}

/// A rank without a model.
#[derive(Clone)]
pub struct FakeRank {
    script: Arc<Script>,
    log: Arc<Mutex<Vec<StepPlan>>>,
    epoch: Arc<AtomicU64>,
    lead: Arc<Mutex<Option<Lead>>>,
    silent: Arc<AtomicBool>,
    hang_ups: Arc<AtomicU64>,
}

impl FakeRank {
    /// A rank that follows `script`.
    pub fn new(script: Script) -> Self {
        Self {
            script: Arc::new(script),
            log: Arc::default(),
            epoch: Arc::default(),
            lead: Arc::default(),
            silent: Arc::default(),
            hang_ups: Arc::default(),
        }
    }

    /// What the rank reports of itself.
    pub fn info(&self) -> RankInfo {
        let lead = self
            .lead
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        RankInfo {
            epoch: self.epoch.load(Ordering::SeqCst),
            lead,
            ..self.script.rank.clone()
        }
    }

    /// Whether the rank's beats stop, as those of a process that hangs.
    pub fn set_silent(&self, silent: bool) {
        self.silent.store(silent, Ordering::SeqCst);
    }

    /// Ends the next `count` streams of beats as soon as they are asked for.
    pub fn hang_up(&self, count: u64) {
        self.hang_ups.store(count, Ordering::SeqCst);
    }

    /// Every plan so far.
    pub fn plans(&self) -> Vec<StepPlan> {
        self.log
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Starts the rank in this process and returns the coordinator's end. It ends when that is
    /// dropped.
    pub fn spawn(&self) -> RankChannel {
        let (plans, mut inbox) = mpsc::channel::<(StepPlan, oneshot::Sender<StepOutput>)>(1);
        let rank = self.clone();
        tokio::spawn(async move {
            let mut state = State::default();
            while let Some((plan, reply)) = inbox.recv().await {
                match rank.step(&mut state, plan).await {
                    // The coordinator may have given up waiting.
                    Ok(output) => drop(reply.send(output)),
                    Err(_) => break,
                }
            }
        });
        RankChannel { plans }
    }

    async fn step(&self, state: &mut State, plan: StepPlan) -> Result<StepOutput, Status> {
        let number = {
            let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
            log.push(plan.clone());
            log.len() - 1
        };
        if !self.script.step_time.is_zero() {
            tokio::time::sleep(self.script.step_time).await;
        }
        let fault = self.script.faults.get(&number).copied();
        let (epoch, step) = (plan.epoch, plan.step);
        let failed = |error: String| StepOutput {
            epoch,
            step,
            error,
            ..Default::default()
        };
        match fault {
            Some(Fault::Error) => return Ok(failed("scripted error".into())),
            Some(Fault::Hang) => std::future::pending().await,
            Some(Fault::Vanish) => return Err(Status::unavailable("scripted end")),
            _ => {}
        }
        let mut output = match state.execute(&self.script, &plan) {
            Ok(output) => output,
            Err(broken) => return Ok(failed(format!("the plan breaks the contract: {broken}"))),
        };
        match fault {
            Some(Fault::Diverge) => output.digest ^= 1,
            Some(Fault::WrongStep) => output.step += 1,
            Some(Fault::FailSequence) => {
                if let Some(first) = output.sequences.first_mut() {
                    *first = SequenceOutput {
                        sequence: first.sequence,
                        error: "scripted".into(),
                        ..Default::default()
                    };
                    state.held.remove(&first.sequence);
                }
            }
            _ => {}
        }
        Ok(output)
    }
}

struct Held {
    init: SequenceInit,
    contract: Contract,
    tokens: Vec<u32>,
}

#[derive(Default)]
struct State {
    held: BTreeMap<u64, Held>,
    last: (u64, u64),
}

impl State {
    fn execute(&mut self, script: &Script, plan: &StepPlan) -> Result<StepOutput, String> {
        if (plan.epoch, plan.step) <= self.last {
            return Err(format!(
                "step {} of epoch {} after {:?}",
                plan.step, plan.epoch, self.last
            ));
        }
        self.last = (plan.epoch, plan.step);
        for id in &plan.release {
            self.held
                .remove(id)
                .ok_or(format!("release of {id}, which holds nothing"))?;
        }
        let mut digest = plan.step;
        let mut sequences = Vec::new();
        for step in &plan.sequences {
            let output = self.advance(script, step)?;
            digest = digest.wrapping_mul(0x9E37_79B9_7F4A_7C15)
                ^ (step.sequence << 32)
                ^ u64::from(output.token());
            sequences.push(output);
        }
        let geometry = geometry(&script.rank);
        let mut capacity = Capacity::new(Cost {
            pages: script.rank.kv_arena_bytes,
            latent: script.rank.kv_latent_bytes,
        });
        if let Some(held) = self
            .held
            .values()
            .find(|held| !capacity.take(cost(held, &geometry)))
        {
            return Err(format!(
                "{:?} does not fit beside {} bytes reserved",
                held.contract,
                capacity.reserved_bytes()
            ));
        }
        Ok(StepOutput {
            epoch: plan.epoch,
            step: plan.step,
            sequences,
            digest,
            error: String::new(),
            seconds: 0.0,
        })
    }

    fn advance(&mut self, script: &Script, step: &SequenceStep) -> Result<SequenceOutput, String> {
        let id = step.sequence;
        if let Some(init) = &step.init {
            let kv = init.kv.as_ref().ok_or(format!("{id} without contract"))?;
            let held = Held {
                init: init.clone(),
                contract: Contract::try_from(kv).map_err(|error| error.to_string())?,
                tokens: Vec::new(),
            };
            if self.held.insert(id, held).is_some() {
                return Err(format!("{id} begins twice"));
            }
        }
        let held = self.held.get_mut(&id).ok_or(format!("{id} without init"))?;
        let stride = u64::from(script.rank.model.as_ref().map_or(1, |model| model.stride));
        let position = held.tokens.len() as u64;
        if step.position != position || step.tokens.is_empty() {
            return Err(format!(
                "{id}: {} tokens at {}, not {position}",
                step.tokens.len(),
                step.position
            ));
        }
        let end = position + step.tokens.len() as u64;
        if position / stride != (end - 1) / stride || end > held.init.max_tokens {
            return Err(format!(
                "{id}: tokens {position}..{end}, stride {stride}, at most {}",
                held.init.max_tokens
            ));
        }
        held.tokens.extend(&step.tokens);
        let token = step
            .sample
            .then(|| (script.answer)(&held.tokens, held.init.prompt_tokens as usize));
        let wanted = held
            .init
            .sampling
            .as_ref()
            .is_some_and(|sampling| sampling.logprobs.is_some());
        let logprob = token.filter(|_| wanted).map(|id| TokenLogprob {
            id,
            logprob: -0.5,
            ..Default::default()
        });
        let cache = cache(held, &script.rank, stride);
        let retention = step
            .retention_report
            .then(|| retention(held, &script.rank, stride));
        Ok(SequenceOutput {
            sequence: id,
            token,
            logprob,
            cache: Some(cache),
            retention,
            error: String::new(),
        })
    }
}

/// Positions below this, and from the other on, are what a `window` cache holds: the sinks and the
/// last of the budget at the last boundary, and the tail since.
fn held_positions(held: &Held, stride: u64) -> (u64, u64) {
    let fed = held.tokens.len() as u64;
    let boundary = fed - fed % stride;
    let Contract::Bounded(contract) = &held.contract else {
        return (fed, fed);
    };
    let budget = u64::from(contract.exact_slots());
    let sinks = u64::from(contract.sinks).min(budget);
    if boundary <= budget {
        (fed, fed)
    } else {
        (sinks, boundary - (budget - sinks))
    }
}

fn cache(held: &Held, rank: &RankInfo, stride: u64) -> CacheState {
    let geometry = geometry(rank);
    let fed = held.tokens.len() as u64;
    let (sinks, recent) = held_positions(held, stride);
    let entries = (sinks + fed - recent) * geometry.heads();
    CacheState {
        held_entries: entries,
        evicted_entries: fed * geometry.heads() - entries,
        held_bytes: entries * geometry.entry_bytes(),
    }
}

fn retention(held: &Held, rank: &RankInfo, stride: u64) -> RetentionReport {
    let geometry = geometry(rank);
    let (sinks, recent) = held_positions(held, stride);
    let positions: Vec<u32> = (0..sinks)
        .chain(recent..held.tokens.len() as u64)
        .map(|at| at as u32)
        .collect();
    let head = |layer: u64, head: u64| HeadRetention {
        layer: layer as u32,
        kv_head: rank.rank * geometry.kv_heads as u32 + head as u32,
        positions: positions.clone(),
    };
    let heads =
        (0..geometry.layers).flat_map(|layer| (0..geometry.kv_heads).map(move |kv| (layer, kv)));
    RetentionReport {
        heads: heads.map(|(layer, kv)| head(layer, kv)).collect(),
    }
}

fn cost(held: &Held, geometry: &Geometry) -> Cost {
    Cost::of(&held.contract, geometry, held.init.max_tokens)
}

fn geometry(rank: &RankInfo) -> Geometry {
    crate::model::geometry(
        rank.model.as_ref().unwrap_or(&ModelInfo::default()),
        rank.world_size,
    )
}

#[tonic::async_trait]
impl Worker for FakeRank {
    async fn get_rank(&self, _: Request<GetRankRequest>) -> Result<Response<RankInfo>, Status> {
        Ok(Response::new(self.info()))
    }

    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        let JoinRequest { epoch, lead, .. } = request.into_inner();
        let mut followed = self.lead.lock().unwrap_or_else(PoisonError::into_inner);
        let term = |lead: &Option<Lead>| lead.as_ref().map_or(0, |lead| lead.term);
        if term(&lead) < term(&followed) {
            return Err(Status::failed_precondition(
                "it follows another coordinator",
            ));
        }
        *followed = lead;
        self.epoch.store(epoch, Ordering::SeqCst);
        Ok(Response::new(JoinResponse {}))
    }

    type WatchStream = ReceiverStream<Result<Beat, Status>>;

    async fn watch(&self, _: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let (beats, stream) = mpsc::channel(1);
        let take_one = |count: u64| count.checked_sub(1);
        if self
            .hang_ups
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, take_one)
            .is_ok()
        {
            return Ok(Response::new(ReceiverStream::new(stream)));
        }
        let rank = self.clone();
        tokio::spawn(async move {
            let beat = || Beat {
                epoch: rank.epoch.load(Ordering::SeqCst),
                ..Default::default()
            };
            while !rank.silent.load(Ordering::SeqCst) && beats.send(Ok(beat())).await.is_ok() {
                sleep(Duration::from_millis(50)).await;
            }
            // A process that hangs keeps its connections.
            beats.closed().await;
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    type ExecuteStream = ReceiverStream<Result<StepOutput, Status>>;

    async fn execute(
        &self,
        plans: Request<Streaming<StepPlan>>,
    ) -> Result<Response<Self::ExecuteStream>, Status> {
        let mut plans = plans.into_inner();
        let (outputs, stream) = mpsc::channel(1);
        let rank = self.clone();
        tokio::spawn(async move {
            let mut state = State::default();
            while let Some(Ok(plan)) = plans.next().await {
                let output = rank.step(&mut state, plan).await;
                let last = output.is_err();
                if outputs.send(output).await.is_err() || last {
                    break;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}
