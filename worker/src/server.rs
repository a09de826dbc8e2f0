//! A rank as a process: its gRPC server, its device thread, and its place in the epochs of its
//! group.
//!
//! ```text
//! coordinator ─GetRank·Join·Execute·Watch─▶ RankServer ─commands─▶ device thread (Runner) ─Collective─▶ other ranks
//! ```
//! A rank joins epochs when its coordinator says so, each later than the last. Joining ends
//! whatever is under way: the old communicator is aborted from here while the device thread waits
//! in it. If even that does not free the thread, the process ends, and its supervisor starts it
//! anew.
#![forbid(unsafe_code)]

mod device;
mod rendezvous;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use palimpsest_collective::nccl::NcclCollective;
use palimpsest_collective::nccl::library::Library;
use palimpsest_collective::tcp::TcpCollective;
use palimpsest_collective::{Collective, CollectiveError, MemoryStore, Place, Store};
use palimpsest_proto::internal::v1::rendezvous_server::RendezvousServer;
use palimpsest_proto::internal::v1::worker_server::{Worker, WorkerServer};
use palimpsest_proto::internal::v1::{
    Beat, GetRankRequest, JoinRequest, JoinResponse, Lead, RankInfo, StepOutput, StepPlan,
    WatchRequest,
};
use palimpsest_tls::{Connector, Incoming, Role, only};
use tokio::sync::{Mutex, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

pub use self::device::{Activity, Device, DeviceGone};
use self::rendezvous::{RemoteStore, RendezvousService};

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
/// Exit code that tells a supervisor that the process gave itself up.
pub const STALLED: i32 = 75;

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

/// What ranks that are processes exchange tensors over; the same on all ranks of a group.
#[derive(Clone)]
pub enum Transport {
    /// TCP between hosts, for CPUs.
    Tcp,
    /// Gloo over TCP, for CPUs. Needs the feature `gloo`.
    Gloo,
    /// NCCL between GPUs.
    Nccl(Arc<Library>),
}

impl std::fmt::Debug for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Gloo => "gloo",
            Self::Nccl(_) => "nccl",
        })
    }
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
    store: Arc<MemoryStore>,
}

/// The incarnation of the group that this rank is in.
#[derive(Default)]
struct Epoch {
    standing: Standing,
    collective: Option<Arc<dyn Collective>>,
}

/// Which epoch this rank joined last, and whose.
#[derive(Clone, Debug, Default)]
struct Standing {
    epoch: u64,
    lead: Lead,
}

impl Standing {
    /// Whether `request` may end this epoch: it is of whoever leads, and of a later epoch.
    fn check(&self, rank: usize, request: &JoinRequest) -> Result<(), Status> {
        let (known, asked) = (&self.lead, request.lead.clone().unwrap_or_default());
        if asked.term < known.term
            || (asked.term == known.term && asked.leader != known.leader && known.term > 0)
        {
            let message = format!(
                "rank {rank} follows another coordinator, of term {}; this is term {}",
                known.term, asked.term
            );
            return Err(Status::failed_precondition(message));
        }
        if request.epoch <= self.epoch {
            let message = format!(
                "rank {rank} is in epoch {}; epoch {} is stale",
                self.epoch, request.epoch
            );
            return Err(Status::failed_precondition(message));
        }
        Ok(())
    }
}

/// Serves until `shutdown`. `loaded` turns up when the model is there; before that the rank beats
/// and says that it loads.
///
/// # Errors
/// If the transport fails.
pub async fn serve(
    incoming: Incoming,
    mut options: ServerOptions,
    loaded: watch::Receiver<Option<Loaded>>,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), tonic::transport::Error> {
    let probes = options.probes.take();
    let store = Arc::new(MemoryStore::default());
    let server = RankServer {
        options,
        loaded,
        epoch: Arc::default(),
        standing: Arc::new(watch::channel(Standing::default()).0),
        store: store.clone(),
    };
    let epoch = server.epoch.clone();
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
    Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(10)))
        .add_service(InterceptedService::new(worker, only(Role::Coordinator)))
        .add_service(health)
        .add_service(InterceptedService::new(rendezvous, only(Role::Worker)))
        .serve_with_incoming_shutdown(incoming.into_stream(), shutdown)
        .await?;
    tasks.shutdown().await;
    // The others must not wait for a rank that leaves.
    if let Some(collective) = epoch.lock().await.collective.take() {
        collective.abort();
    }
    Ok(())
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

    /// Meets the other ranks.
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
            self.store.retain(|key| {
                key.strip_prefix(&prefix)
                    .is_some_and(|rest| rest.starts_with('/'))
            });
            self.store.clone()
        } else {
            Arc::new(RemoteStore::new(
                &request.rendezvous,
                limit,
                self.options.ranks.clone(),
            )?)
        };
        let host = self.options.host.clone();
        let deadline = Instant::now() + limit;
        let transport = self.options.transport.clone();
        let connect = move || match transport {
            Transport::Tcp => {
                let tcp = TcpCollective::connect(place, &host, &*store, &prefix, deadline)?;
                Ok(Arc::new(tcp) as Arc<dyn Collective>)
            }
            Transport::Gloo => connect_gloo(place, &host, store, &prefix, deadline),
            Transport::Nccl(library) => {
                let nccl = NcclCollective::connect(library, place, &*store, &prefix, deadline)?;
                Ok(Arc::new(nccl) as Arc<dyn Collective>)
            }
        };
        tokio::task::spawn_blocking(connect)
            .await
            .map_err(|_| CollectiveError::Aborted)?
            .map(Some)
    }
}

#[cfg(feature = "gloo")]
fn connect_gloo(
    place: Place,
    host: &str,
    store: Arc<dyn Store>,
    prefix: &str,
    deadline: Instant,
) -> Result<Arc<dyn Collective>, CollectiveError> {
    let gloo =
        palimpsest_collective::gloo::GlooCollective::connect(place, host, store, prefix, deadline)?;
    Ok(Arc::new(gloo))
}

#[cfg(not(feature = "gloo"))]
fn connect_gloo(
    _: Place,
    _: &str,
    _: Arc<dyn Store>,
    _: &str,
    _: Instant,
) -> Result<Arc<dyn Collective>, CollectiveError> {
    let why = "this build has no gloo: build with --features gloo, or use tcp".into();
    Err(CollectiveError::Unsupported { name: "gloo", why })
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
            tracing::error!(
                rank,
                epoch = request.epoch,
                "the device thread does not come out of an aborted step"
            );
            std::process::exit(STALLED);
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
                let (steps, busy) = activity.unwrap_or_default();
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
