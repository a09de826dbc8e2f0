//! A rank without a model: the twin of a worker for tests and for measuring the coordinator alone.
//!
//! It checks every plan against the contract between coordinator and ranks, keeps count of what a
//! bounded cache would hold, and answers with tokens that are a pure function of the sequence so
//! far. It can be told to fail.

mod model;
mod script;
mod sequences;
mod service;
mod snapshots;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use palimpsest_proto::internal::v1::{Lead, RankInfo, SequenceOutput, StepOutput, StepPlan};
use tokio::sync::{mpsc, oneshot};
use tonic::Status;

pub use self::model::{BYTE_TOKENS, IM_END, IM_START, VOCABULARY, byte_level_tokenizer, model};
pub use self::script::{Answer, Fault, Script};
use self::sequences::Sequences;
use self::snapshots::SharedSnapshots;
use super::RankChannel;

/// A rank without a model.
#[derive(Clone)]
pub struct FakeRank {
    script: Arc<Script>,
    log: Arc<Mutex<Vec<StepPlan>>>,
    epoch: Arc<AtomicU64>,
    lead: Arc<Mutex<Option<Lead>>>,
    silent: Arc<AtomicBool>,
    hang_ups: Arc<AtomicU64>,
    snapshots: SharedSnapshots,
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
            snapshots: SharedSnapshots::default(),
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

    /// Forgets every plan so far, and counts anew for faults.
    pub fn forget_plans(&self) {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        log.clear();
    }

    /// Starts the rank in this process and returns the coordinator's end. It ends when that is
    /// dropped.
    pub fn spawn(&self) -> RankChannel {
        let (plans, mut inbox) = mpsc::channel::<(StepPlan, oneshot::Sender<StepOutput>)>(1);
        let rank = self.clone();
        tokio::spawn(async move {
            let mut held = Sequences::beside(rank.snapshots.clone());
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
        let tokens = || plan.sequences.iter().flat_map(|step| &step.tokens);
        let count = u32::try_from(tokens().count()).unwrap_or(u32::MAX);
        let time = self.script.step_time + self.script.token_time * count;
        if !time.is_zero() {
            tokio::time::sleep(time).await;
        }
        let is_poisoned = tokens().any(|&token| self.script.poison == Some(token));
        let fault = if is_poisoned {
            Some(Fault::Error)
        } else {
            self.script.faults.get(&number).copied()
        };
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
            Some(by @ (Fault::FailSequence | Fault::FailGuide)) => {
                if let Some(first) = output.sequences.first_mut() {
                    *first = SequenceOutput {
                        sequence: first.sequence,
                        error: "scripted".into(),
                        guide_failed: by == Fault::FailGuide,
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
