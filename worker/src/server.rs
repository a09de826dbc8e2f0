//! A rank as a process: its gRPC server, its device thread, and its place in the epochs of its
//! group.
//!
//! ```text
//! coordinator ─GetRank·Join·Execute·Watch─▶ RankServer ─commands─▶ device thread (Runner)
//!                                                                      └─Collective─▶ other ranks
//! ```
//! A rank joins epochs when its coordinator says so, each later than the last. Joining ends
//! whatever is under way: the step is abandoned at its next layer, and the old communicator is
//! aborted from here while the device thread waits in it. If even that does not free the thread, or
//! the device fails, or its thread panics, the server ends with [`ServeError::Device`]: only a new
//! process can be that rank again.

mod rendezvous;
mod secured;
mod standing;
mod transport;

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::{Duration, Instant};

use palimpsest_collective::{Collective, CollectiveError, Place, Store};
use palimpsest_proto::internal::v1::rendezvous_server::RendezvousServer;
use palimpsest_proto::internal::v1::worker_server::{Worker, WorkerServer};
use palimpsest_proto::internal::v1::{
    Beat, GetRankRequest, JoinRequest, JoinResponse, RankInfo, StepOutput, StepPlan, WatchRequest,
};
use palimpsest_tls::{Connector, Incoming, Role, only};
use tokio::sync::{Mutex, Notify, mpsc, watch};
use tokio::task::{JoinError, JoinSet};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use self::rendezvous::{EpochStore, RemoteStore, RendezvousService};
pub use self::secured::Secured;
use self::standing::Standing;
use self::transport::Meeting;
pub use self::transport::Transport;
use crate::device::{Device, DeviceEnd, Seen};

/// Name under which probes ask whether the model is loaded.
pub const SERVICE_NAME: &str = "palimpsest.internal.v1.Worker";
/// Time between two beats.
pub const BEAT: Duration = Duration::from_millis(250);
/// Time that a device thread has to come out of an aborted step.
const ABORT_LIMIT: Duration = Duration::from_secs(10);
/// Time that ranks have to meet, at most.
const MAX_JOIN: Duration = Duration::from_secs(120);
/// Largest plan: the pieces of all sequences and their contracts.
const MAX_PLAN_BYTES: usize = 64 << 20;
/// Time in which answers still go out that were under way when the device ended.
const LAST_ANSWERS: Duration = Duration::from_millis(500);

/// Why a rank serves no longer.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The transport failed.
    #[error("the rank's server failed")]
    Transport(#[from] tonic::transport::Error),
    /// The process should end with [`EXIT_CODE`](crate::device::EXIT_CODE).
    #[error("this process cannot be a rank any longer")]
    Device(#[source] DeviceEnd),
    /// A task that the rank cannot do without has ended; so should the process.
    #[error("a task of this rank has ended: standard error says why")]
    Task(#[source] JoinError),
}

/// How a rank is reached.
#[derive(Debug)]
pub struct ServerOptions {
    /// Its place in the group.
    pub place: Place,
    /// Host name or address at which the other ranks reach this one for collectives.
    pub host: String,
    /// What ranks exchange tensors over.
    pub transport: Transport,
    /// How it connects to rank 0.
    pub ranks: Connector,
    /// A port without TLS that answers probes and nothing else: kubelets show no certificate.
    pub probes: Option<Incoming>,
}

/// What is there once the model is loaded.
#[derive(Clone)]
pub struct Loaded {
    /// What the coordinator is told.
    pub info: RankInfo,
    /// The device thread.
    pub device: Device,
}

struct RankServer {
    options: ServerOptions,
    loaded: watch::Receiver<Option<Loaded>>,
    epoch: Arc<Mutex<Epoch>>,
    /// What was joined last, for those who must not wait for a join under way.
    standing: Arc<watch::Sender<Standing>>,
    store: Arc<EpochStore>,
    /// Told when the device thread does not come out of a step.
    stalled: Arc<Notify>,
}

/// The incarnation of the group that this rank is in.
#[derive(Default)]
struct Epoch {
    standing: Standing,
    collective: Option<Arc<dyn Collective>>,
}

/// Serves until `shutdown`. `loaded` turns up when the model is there; before that the rank beats
/// and says that it loads.
///
/// # Errors
/// If the transport fails, or the device can be used no more.
pub async fn serve(
    incoming: Incoming,
    mut options: ServerOptions,
    loaded: watch::Receiver<Option<Loaded>>,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), ServeError> {
    let probes = options.probes.take();
    let store = Arc::new(EpochStore::default());
    let server = RankServer {
        options,
        loaded,
        epoch: Arc::default(),
        standing: Arc::new(watch::channel(Standing::default()).0),
        store: store.clone(),
        stalled: Arc::default(),
    };
    let (epoch, loaded) = (server.epoch.clone(), server.loaded.clone());
    let device = device_ended(server.loaded.clone(), server.stalled.clone());
    let (reporter, health) = tonic_health::server::health_reporter();
    let mut tasks = JoinSet::new();
    tasks.spawn(report(reporter, server.loaded.clone()));
    if let Some(probes) = probes {
        let server = Server::builder()
            .add_service(health.clone())
            .serve_with_incoming(probes.into_stream());
        tasks.spawn(async move {
            // Incoming never fails.
            let _ = server.await;
        });
    }
    let worker = WorkerServer::new(server).max_decoding_message_size(MAX_PLAN_BYTES);
    let rendezvous = RendezvousServer::new(RendezvousService(store));
    let serving = Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(10)))
        .add_service(InterceptedService::new(worker, only(Role::Coordinator)))
        .add_service(health)
        .add_service(InterceptedService::new(rendezvous, only(Role::Worker)))
        .serve_with_incoming_shutdown(incoming.into_stream(), shutdown);
    let mut serving = pin!(serving);
    let served = tokio::select! {
        served = &mut serving => served.map_err(ServeError::Transport),
        end = device => {
            tracing::error!(%end, "the process must end, to be started anew");
            // The step that found it out is answered, and its coordinator forms another group.
            let _ = timeout(LAST_ANSWERS, serving).await;
            Err(ServeError::Device(end))
        }
        broken = panicked(&mut tasks) => Err(ServeError::Task(broken)),
    };
    tasks.shutdown().await;
    if let Some(Loaded { device, .. }) = &*loaded.borrow() {
        device.cancel();
    }
    // The others must not wait for a rank that leaves. A join under way has its own deadline.
    if let Ok(mut epoch) = epoch.try_lock()
        && let Some(collective) = epoch.collective.take()
    {
        collective.abort();
    }
    served
}

/// Waits until one of the tasks panics: probes would be told for ever what was true last.
async fn panicked(tasks: &mut JoinSet<()>) -> JoinError {
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = ended {
            return error;
        }
    }
    std::future::pending().await
}

/// Waits until the device of a loaded rank can be used no more.
async fn device_ended(
    mut loaded: watch::Receiver<Option<Loaded>>,
    stalled: Arc<Notify>,
) -> DeviceEnd {
    let failed = async {
        let found = loaded.wait_for(Option::is_some).await;
        let device = found
            .ok()
            .and_then(|loaded| loaded.as_ref().map(|loaded| loaded.device.clone()));
        match device {
            Some(device) => device.ended().await,
            // The model was never loaded.
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        end = failed => end,
        () = stalled.notified() => DeviceEnd::Stalled,
    }
}

/// For probes: the process lives from the start, [`SERVICE_NAME`] serves when the model is there.
async fn report(reporter: HealthReporter, mut loaded: watch::Receiver<Option<Loaded>>) {
    reporter
        .set_service_status("", ServingStatus::Serving)
        .await;
    reporter
        .set_service_status(SERVICE_NAME, ServingStatus::NotServing)
        .await;
    if loaded.wait_for(Option::is_some).await.is_ok() {
        reporter
            .set_service_status(SERVICE_NAME, ServingStatus::Serving)
            .await;
    }
}

type OutputStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl RankServer {
    fn loaded(&self) -> Result<Loaded, Status> {
        let loaded = self.loaded.borrow().clone();
        loaded.ok_or_else(|| {
            Status::unavailable(format!(
                "rank {} is loading its model",
                self.options.place.rank
            ))
        })
    }

    /// Meets the other ranks; `None` where there are none.
    async fn meet(
        &self,
        request: &JoinRequest,
    ) -> Result<Option<Arc<dyn Collective>>, CollectiveError> {
        let place = self.options.place;
        if place.world_size == 1 {
            return Ok(None);
        }
        let prefix = format!("epoch-{}", request.epoch);
        let limit = Duration::from_millis(request.limit_millis).min(MAX_JOIN);
        let store: Arc<dyn Store> = if place.rank == 0 {
            // Other ranks may have come before this one: what they set stays.
            self.store.keep_only(&prefix);
            self.store.clone()
        } else {
            Arc::new(RemoteStore::new(
                &request.rendezvous,
                limit,
                self.options.ranks.clone(),
            )?)
        };
        let meeting = Meeting {
            place,
            host: self.options.host.clone(),
            store,
            prefix,
            deadline: Instant::now() + limit,
        };
        let transport = self.options.transport.clone();
        tokio::task::spawn_blocking(move || transport.connect(meeting))
            .await
            .map_err(|_| CollectiveError::Aborted)?
            .map(Some)
    }
}

#[tonic::async_trait]
impl Worker for RankServer {
    type ExecuteStream = OutputStream<StepOutput>;
    type WatchStream = OutputStream<Beat>;

    async fn get_rank(&self, _: Request<GetRankRequest>) -> Result<Response<RankInfo>, Status> {
        let Standing { epoch, lead } = self.standing.borrow().clone();
        let lead = (lead.term > 0).then_some(lead);
        Ok(Response::new(RankInfo {
            epoch,
            lead,
            ..self.loaded()?.info
        }))
    }

    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        let request = request.into_inner();
        let Loaded { device, .. } = self.loaded()?;
        let Place { rank, world_size } = self.options.place;
        if request.world_size as usize != world_size {
            let message = format!(
                "rank {rank} is one of {world_size}, not of {}",
                request.world_size
            );
            return Err(Status::failed_precondition(message));
        }
        let mut epoch = self.epoch.try_lock().map_err(|_| {
            Status::unavailable(format!(
                "rank {rank} is joining an epoch already: try again"
            ))
        })?;
        epoch.standing.check(rank, &request)?;
        epoch.standing = Standing {
            epoch: request.epoch,
            lead: request.lead.clone().unwrap_or_default(),
        };
        self.standing.send_replace(epoch.standing.clone());
        device.cancel();
        if let Some(old) = epoch.collective.take() {
            old.abort();
        }
        let met = self.meet(&request).await;
        epoch.collective = met.map_err(|error| {
            Status::aborted(format!("rank {rank} could not meet the others: {error}"))
        })?;
        let joined = timeout(
            ABORT_LIMIT,
            device.join(request.epoch, epoch.collective.clone()),
        )
        .await;
        let Ok(joined) = joined else {
            self.stalled.notify_one();
            return Err(Status::internal(DeviceEnd::Stalled.to_string()));
        };
        joined.map_err(|error| Status::internal(error.to_string()))?;
        tracing::info!(rank, epoch = request.epoch, "joined");
        Ok(Response::new(JoinResponse {}))
    }

    async fn execute(
        &self,
        request: Request<Streaming<StepPlan>>,
    ) -> Result<Response<Self::ExecuteStream>, Status> {
        let Loaded { device, .. } = self.loaded()?;
        let mut plans = request.into_inner();
        let (outputs, stream) = mpsc::channel(1);
        tokio::spawn(async move {
            while let Some(plan) = plans.next().await {
                let output = match plan {
                    Ok(plan) => device
                        .execute(plan)
                        .await
                        .map_err(|error| Status::internal(error.to_string())),
                    Err(status) => Err(status),
                };
                let broken = output.is_err();
                // A coordinator that has gone needs no answer.
                if outputs.send(output).await.is_err() || broken {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn watch(&self, _: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let (standing, loaded) = (self.standing.subscribe(), self.loaded.clone());
        let beats = tokio_stream::wrappers::IntervalStream::new(tokio::time::interval(BEAT)).map(
            move |_| {
                let activity = loaded
                    .borrow()
                    .as_ref()
                    .map(|loaded| loaded.device.activity().now());
                let Seen { steps, busy } = activity.unwrap_or_default();
                Ok(Beat {
                    epoch: standing.borrow().epoch,
                    steps,
                    busy,
                })
            },
        );
        Ok(Response::new(Box::pin(beats)))
    }
}
