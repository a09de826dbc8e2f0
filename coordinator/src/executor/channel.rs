//! Ranks in this process: plans go over channels to their runner threads.

use std::future::Future;
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::{FuturesUnordered, StreamExt};
use palimpsest_proto::internal::v1::{StepOutput, StepPlan};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::{Executor, ExecutorError, merge};

/// The coordinator's end of a rank in this process. The runner answers each plan through the sender
/// that came with it.
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
            let gone = move || ExecutorError::RankGone {
                rank,
                message: "its runner has ended".into(),
            };
            async move {
                let (reply, answer) = oneshot::channel();
                let exchange = async {
                    channel
                        .plans
                        .send((plan, reply))
                        .await
                        .map_err(|_| gone())?;
                    answer.await.map_err(|_| gone())
                };
                timeout_at(deadline, exchange)
                    .await
                    .unwrap_or(Err(ExecutorError::Timeout {
                        rank,
                        step,
                        seconds,
                    }))
            }
        });
        let outputs = settle(answers).await?;
        merge(&plan, outputs)
    }
}

/// After one rank's error, time for the others to tell theirs: the first to speak was mostly
/// waiting for the one at fault.
const GRACE: Duration = Duration::from_millis(200);

/// All answers in rank order, or the error that explains most. Does not wait for ranks that wait
/// for a failed one.
pub(super) async fn settle<F>(
    answers: impl Iterator<Item = F>,
) -> Result<Vec<StepOutput>, ExecutorError>
where
    F: Future<Output = Result<StepOutput, ExecutorError>>,
{
    let mut pending: FuturesUnordered<_> = answers
        .enumerate()
        .map(|(rank, answer)| async move { (rank, answer.await) })
        .collect();
    let mut outputs: Vec<Option<StepOutput>> = (0..pending.len()).map(|_| None).collect();
    let mut failure: Option<ExecutorError> = None;
    let mut give_up = None;
    loop {
        let grace = async {
            match give_up {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let (rank, answer) = tokio::select! {
            biased;
            answer = pending.next() => match answer {
                Some(answer) => answer,
                None => break,
            },
            () = grace => break,
        };
        let error = match answer {
            Ok(StepOutput { error, step, .. }) if !error.is_empty() => ExecutorError::RankError {
                rank,
                step,
                message: error,
            },
            Ok(output) => {
                outputs[rank] = Some(output);
                continue;
            }
            Err(error) => error,
        };
        give_up.get_or_insert(Instant::now() + GRACE);
        if failure
            .as_ref()
            .is_none_or(|found| weight(&error) > weight(found))
        {
            failure = Some(error);
        }
    }
    match failure {
        Some(error) => Err(error),
        None => Ok(outputs.into_iter().flatten().collect()),
    }
}

/// How much an error explains: a rank that is late or cut off was mostly waiting for another.
const fn weight(error: &ExecutorError) -> u8 {
    match error {
        ExecutorError::Timeout { .. } => 0,
        ExecutorError::RankError { .. } => 1,
        _ => 2,
    }
}
