//! Executing a plan on a worker group: the same [`StepPlan`] to every rank, one [`StepOutput`]
//! back.
//!
//! ```text
//!                ┌─▶ rank 0 ─┐
//! StepPlan ──────┼─▶ rank 1 ─┼──▶ all answers of one step ──▶ equal digests ──▶ one StepOutput
//!                └─▶ rank n ─┘      (within the step's limit)
//! ```
//! Ranks never decide, so an error of any rank is the group's: after it the executor is of no more
//! use.

mod channel;
#[cfg(any(test, feature = "testing"))]
pub mod fake;
mod grpc;

use std::collections::HashMap;

use async_trait::async_trait;
use palimpsest_proto::internal::v1::{SequenceOutput, StepOutput, StepPlan};
use palimpsest_proto::v1::RetentionReport;

pub use self::channel::{ChannelExecutor, RankChannel};
pub use self::grpc::{Failure, GrpcExecutor};

/// Executes steps, one at a time.
#[async_trait]
pub trait Executor: Send + 'static {
    /// Carries one plan out on every rank. The output has one entry for each sequence of the plan,
    /// in its order; cache figures are sums over the ranks.
    ///
    /// # Errors
    /// See [`ExecutorError`]. After any error, or when the future is dropped, the group's state is
    /// unknown and the executor must not be used again.
    async fn execute(&mut self, plan: StepPlan) -> Result<StepOutput, ExecutorError>;
}

/// Why a group could not carry out a step.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ExecutorError {
    /// A rank cannot be reached any more.
    #[error("rank {rank} is gone: {message}")]
    RankGone {
        /// The rank.
        rank: usize,
        /// What the transport said.
        message: String,
    },
    /// A rank reported an error for the whole step.
    #[error("rank {rank} failed in step {step}: {message}")]
    RankError {
        /// The rank.
        rank: usize,
        /// The step.
        step: u64,
        /// What the rank said.
        message: String,
    },
    /// A rank did not answer in time.
    #[error("rank {rank} did not answer step {step} within {seconds} s")]
    Timeout {
        /// The first rank without an answer.
        rank: usize,
        /// The step.
        step: u64,
        /// The limit of a step.
        seconds: f64,
    },
    /// A rank decided otherwise than the others.
    #[error(
        "rank {rank} diverged in step {step}: digest {found:#018x}, the others have \
         {expected:#018x}"
    )]
    Diverged {
        /// The rank in the minority; the higher one of two.
        rank: usize,
        /// The step.
        step: u64,
        /// Its digest.
        found: u64,
        /// The digest of the majority.
        expected: u64,
    },
    /// A rank's answer does not fit the plan.
    #[error("rank {rank} broke the protocol in step {step}: {message}")]
    Protocol {
        /// The rank.
        rank: usize,
        /// The step.
        step: u64,
        /// What is wrong with the answer.
        message: String,
    },
}

/// Checks the answers of all ranks, in rank order and none of them an error, against the plan and
/// one another and makes one of them.
fn merge(plan: &StepPlan, outputs: Vec<StepOutput>) -> Result<StepOutput, ExecutorError> {
    let step = plan.step;
    for (rank, output) in outputs.iter().enumerate() {
        check(plan, output).map_err(|message| ExecutorError::Protocol {
            rank,
            step,
            message,
        })?;
    }
    agree(step, &outputs)?;
    let mut outputs = outputs.into_iter();
    let mut merged = outputs.next().expect("a group has at least one rank");
    for (rank, output) in (1..).zip(outputs) {
        merged.seconds = merged.seconds.max(output.seconds);
        merged.snapshots.extend(output.snapshots);
        for (one, other) in merged.sequences.iter_mut().zip(output.sequences) {
            if !says_the_same(one, &other) {
                let message = format!(
                    "sequence {}: another token or error than rank 0, under one digest",
                    one.sequence
                );
                return Err(ExecutorError::Protocol {
                    rank,
                    step,
                    message,
                });
            }
            add(one, other);
        }
    }
    Ok(merged)
}

/// Whether two ranks say the same of a sequence, as far as that is the same on all ranks.
fn says_the_same(one: &SequenceOutput, other: &SequenceOutput) -> bool {
    one.token == other.token
        && one.awaits_guide == other.awaits_guide
        && one.error.is_empty() == other.error.is_empty()
}

/// Whether an output answers the plan.
fn check(plan: &StepPlan, output: &StepOutput) -> Result<(), String> {
    if (output.epoch, output.step) != (plan.epoch, plan.step) {
        return Err(format!(
            "it answered epoch {} step {}",
            output.epoch, output.step
        ));
    }
    let asked: Vec<_> = plan.sequences.iter().map(|s| s.sequence).collect();
    let answered: Vec<_> = output.sequences.iter().map(|s| s.sequence).collect();
    if asked != answered {
        return Err(format!(
            "asked for sequences {asked:?}, it answered {answered:?}"
        ));
    }
    for (asked, answered) in plan.sequences.iter().zip(&output.sequences) {
        let has_answer = answered.token.is_some() != answered.awaits_guide;
        if answered.error.is_empty() && asked.sample != has_answer {
            return Err(format!(
                "sequence {}: a token was expected: {}",
                asked.sequence, asked.sample
            ));
        }
    }
    Ok(())
}

/// Names the rank whose digest is not that of the majority.
fn agree(step: u64, outputs: &[StepOutput]) -> Result<(), ExecutorError> {
    let mut votes: HashMap<u64, usize> = HashMap::new();
    for output in outputs {
        *votes.entry(output.digest).or_default() += 1;
    }
    let first = outputs.first().map_or(0, |output| output.digest);
    let expected = votes
        .into_iter()
        .max_by_key(|&(digest, count)| (count, digest == first))
        .map_or(0, |vote| vote.0);
    match outputs
        .iter()
        .enumerate()
        .find(|(_, output)| output.digest != expected)
    {
        Some((rank, output)) => Err(ExecutorError::Diverged {
            rank,
            step,
            found: output.digest,
            expected,
        }),
        None => Ok(()),
    }
}

/// Adds what another rank holds of a sequence. A snapshot is kept if every rank keeps its part; its
/// bytes are those of the fullest.
fn add(one: &mut SequenceOutput, other: SequenceOutput) {
    one.kept_bytes = match one.kept_bytes.min(other.kept_bytes) {
        0 => 0,
        _ => one.kept_bytes.max(other.kept_bytes),
    };
    if let Some(cache) = other.cache {
        let sum = one.cache.get_or_insert_default();
        sum.held_entries += cache.held_entries;
        sum.evicted_entries += cache.evicted_entries;
        sum.held_bytes += cache.held_bytes;
    }
    if let Some(RetentionReport { heads }) = other.retention {
        let all = &mut one.retention.get_or_insert_default().heads;
        all.extend(heads);
        all.sort_by_key(|head| (head.layer, head.kv_head));
    }
}

#[cfg(test)]
mod tests;
