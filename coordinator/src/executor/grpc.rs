//! Ranks in other processes: one open bidirectional stream per rank.
//!
//! A step ends when all ranks have answered, when its time is over, or when whoever watches the
//! ranks says that one of them is gone, whichever comes first.

use std::time::Duration;

use async_trait::async_trait;
use futures::future::join_all;
use palimpsest_proto::internal::v1::worker_client::WorkerClient;
use palimpsest_proto::internal::v1::{StepOutput, StepPlan};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

use super::channel::settle;
use super::{Executor, ExecutorError, merge};

/// Largest answer of a rank: log-probabilities and retention reports of a full batch.
const MAX_ANSWER_BYTES: usize = 256 << 20;

/// Executes on ranks over gRPC.
#[derive(Debug)]
pub struct GrpcExecutor {
    ranks: Vec<Rank>,
    step_limit: Duration,
    failure: Failure,
}

/// Says when a rank was found dead or hung outside of a step. A sender that is dropped says
/// nothing.
pub type Failure = watch::Receiver<Option<ExecutorError>>;

#[derive(Debug)]
struct Rank {
    plans: mpsc::Sender<StepPlan>,
    outputs: Streaming<StepOutput>,
}

impl GrpcExecutor {
    /// Opens the streams to all ranks, whose channels come in rank order; at least one. What
    /// `failure` says ends a step at once.
    ///
    /// # Errors
    /// [`ExecutorError::RankGone`] if a rank does not take the stream within the step's limit.
    pub async fn connect(
        channels: Vec<Channel>,
        step_limit: Duration,
        failure: Failure,
    ) -> Result<Self, ExecutorError> {
        assert!(!channels.is_empty(), "a group has at least one rank");
        let open = channels
            .into_iter()
            .enumerate()
            .map(|(rank, channel)| async move {
                let mut client =
                    WorkerClient::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES);
                let (plans, stream) = mpsc::channel(1);
                let gone = |message: String| ExecutorError::RankGone { rank, message };
                let answer = timeout(step_limit, client.execute(ReceiverStream::new(stream)))
                    .await
                    .map_err(|_| gone("it does not take the stream of plans".into()))?;
                let outputs = answer
                    .map_err(|status| gone(status.message().to_owned()))?
                    .into_inner();
                Ok(Rank { plans, outputs })
            });
        let ranks = join_all(open).await.into_iter().collect::<Result<_, _>>()?;
        Ok(Self {
            ranks,
            step_limit,
            failure,
        })
    }
}

/// Waits until a failure is told.
async fn told(failure: &mut Failure) -> ExecutorError {
    let found = failure
        .wait_for(Option::is_some)
        .await
        .ok()
        .and_then(|found| found.clone());
    match found {
        Some(error) => error,
        None => std::future::pending().await,
    }
}

#[async_trait]
impl Executor for GrpcExecutor {
    async fn execute(&mut self, plan: StepPlan) -> Result<StepOutput, ExecutorError> {
        let deadline = Instant::now() + self.step_limit;
        let seconds = self.step_limit.as_secs_f64();
        let step = plan.step;
        let answers = self.ranks.iter_mut().enumerate().map(|(index, rank)| {
            let plan = plan.clone();
            let gone = move |message: String| ExecutorError::RankGone {
                rank: index,
                message,
            };
            async move {
                let exchange = async {
                    // A closed stream explains itself by its status, which comes as the next
                    // output.
                    let _ = rank.plans.send(plan).await;
                    match rank.outputs.message().await {
                        Ok(Some(output)) => Ok(output),
                        Ok(None) => Err(gone("it closed the stream".into())),
                        Err(status) => {
                            Err(gone(format!("{}: {}", status.code(), status.message())))
                        }
                    }
                };
                let late = ExecutorError::Timeout {
                    rank: index,
                    step,
                    seconds,
                };
                timeout_at(deadline, exchange).await.unwrap_or(Err(late))
            }
        });
        let outputs = tokio::select! {
            biased;
            outputs = settle(answers) => outputs?,
            error = told(&mut self.failure) => return Err(error),
        };
        merge(&plan, outputs)
    }
}
