//! The fake rank as a server, for coordinators that reach their ranks over gRPC.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

use palimpsest_proto::internal::v1::worker_server::Worker;
use palimpsest_proto::internal::v1::{
    Beat, GetRankRequest, JoinRequest, JoinResponse, Lead, RankInfo, StepOutput, StepPlan,
    WatchRequest,
};
use tokio::sync::mpsc;
use tokio::time::sleep;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::FakeRank;
use super::sequences::Sequences;

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
            let mut held = Sequences::beside(rank.snapshots.clone());
            while let Some(Ok(plan)) = plans.next().await {
                let output = rank.step(&mut held, plan).await;
                let last = output.is_err();
                if outputs.send(output).await.is_err() || last {
                    break;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}
