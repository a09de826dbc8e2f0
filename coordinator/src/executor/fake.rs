//! A rank without a model: the twin of a worker for tests and for measuring the coordinator alone.
//!
//! It checks every plan against the contract between coordinator and ranks, keeps count of what a
//! bounded cache would hold, and answers with tokens that are a pure function of the sequence so
//! far. It can be told to fail.

mod model;
mod sequences;
mod service;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use palimpsest_proto::internal::v1::{Lead, RankInfo, SequenceOutput, StepOutput, StepPlan};
use tokio::sync::{mpsc, oneshot};
use tonic::Status;

pub use self::model::{BYTE_TOKENS, IM_END, IM_START, VOCABULARY, byte_level_tokenizer, model};
use self::sequences::Sequences;
use super::RankChannel;

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
            let mut held = Sequences::default();
            while let Some((plan, reply)) = inbox.recv().await {
                match rank.step(&mut held, plan).await {
                    // The coordinator may have given up waiting.
                    Ok(output) => drop(reply.send(output)),
                    Err(_) => break,
                }
            }
        });
        RankChannel { plans }
    }

    async fn step(&self, held: &mut Sequences, plan: StepPlan) -> Result<StepOutput, Status> {
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
        let mut output = match held.execute(&self.script, &plan) {
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
                    held.forget(first.sequence);
                }
            }
            _ => {}
        }
        Ok(output)
    }
}
