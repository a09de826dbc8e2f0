//! Ranks in this process: plans go over channels to their runner threads.

use std::time::Duration;

use async_trait::async_trait;
use futures::future::join_all;
use palimpsest_proto::internal::v1::{StepOutput, StepPlan};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, timeout_at},
};

use super::{Executor, ExecutorError, merge};

/// The coordinator's end of a rank in this process. The runner answers each plan through the sender that came with it.
#[derive(Debug, Clone)]
pub struct RankChannel {
    /// One plan at a time; a capacity of 1 is enough.
    pub plans: mpsc::Sender<(StepPlan, oneshot::Sender<StepOutput>)>,
}

/// Executes on ranks in this process.
#[derive(Debug)]
pub struct ChannelExecutor {
    ranks: Vec<RankChannel>,
    step_limit: Duration,
}

impl ChannelExecutor {
    /// A group of these ranks, in rank order; at least one.
    pub fn new(ranks: Vec<RankChannel>, step_limit: Duration) -> Self {
        assert!(!ranks.is_empty(), "a group has at least one rank");
        Self { ranks, step_limit }
    }
}

#[async_trait]
impl Executor for ChannelExecutor {
    async fn execute(&mut self, plan: StepPlan) -> Result<StepOutput, ExecutorError> {
        let deadline = Instant::now() + self.step_limit;
        let seconds = self.step_limit.as_secs_f64();
        let step = plan.step;
        let answers = self.ranks.iter().enumerate().map(|(rank, channel)| {
            let plan = plan.clone();
            let gone = move || ExecutorError::RankGone { rank, message: "its runner has ended".into() };
            async move {
                let (reply, answer) = oneshot::channel();
                let exchange = async {
                    channel.plans.send((plan, reply)).await.map_err(|_| gone())?;
                    answer.await.map_err(|_| gone())
                };
                timeout_at(deadline, exchange).await.unwrap_or(Err(ExecutorError::Timeout { rank, step, seconds }))
            }
        });
        let outputs = settle(join_all(answers).await)?;
        merge(&plan, outputs)
    }
}

/// All answers, or the error that explains most: a rank that is only late was mostly waiting for the one at fault.
pub(super) fn settle(answers: Vec<Result<StepOutput, ExecutorError>>) -> Result<Vec<StepOutput>, ExecutorError> {
    let mut late = None;
    let mut reported = None;
    let mut outputs = Vec::with_capacity(answers.len());
    for (rank, answer) in answers.into_iter().enumerate() {
        match answer {
            Ok(StepOutput { error, step, .. }) if !error.is_empty() => {
                reported = reported.or(Some(ExecutorError::RankError { rank, step, message: error }));
            }
            Ok(output) => outputs.push(output),
            Err(error @ ExecutorError::Timeout { .. }) => late = late.or(Some(error)),
            Err(gone) => return Err(gone),
        }
    }
    match reported.or(late) {
        Some(error) => Err(error),
        None => Ok(outputs),
    }
}
