//! The coordinator: takes requests, decides what runs when, and drives the ranks of a worker group.
//!
//! ```text
//! client ─Generate─▶ api ─ValidRequest─▶ admission ─permit─▶ driver mailbox (bounded)
//!                                                                 │
//!      scheduler.plan() ─▶ StepPlan{epoch, step, sequences, release}   (no I/O, clock or lock)
//!                                                                 │
//!      executor: the same StepPlan to every rank                  ▼
//!      StepOutput{token ids, digest} ─▶ scheduler ─▶ ring of the request
//!                                                                 │
//!      answer: text, stop strings, usage ◀────────────────────────┘ ─▶ client
//! ```
//! - One owner: the [`driver`] task owns all sequences; others hold handles.
//! - Cancelling is dropping: the client's stream goes, its ring's reader goes, the next plan
//!   releases the sequence.
//! - Every queue has a bound and every wait a deadline, in [`Config`].
//! - Nothing here computes: a [`model`] is what ranks report of theirs (names, sizes, tokenizer,
//!   template), and ranks are whatever an [`executor::Executor`] reaches.
#![forbid(unsafe_code)]

pub mod admission;
pub mod answer;
pub mod api;
pub mod budget;
pub mod config;
pub mod driver;
pub mod executor;
pub mod flow;
pub mod hosts;
pub mod ids;
pub mod keys;
pub mod membership;
pub mod metrics;
pub mod model;
pub mod origins;
pub mod place;
pub mod pool;
pub mod ranks;
pub mod request;
pub mod responses;
pub mod scheduler;
pub mod service;
pub mod sessions;
pub mod snapshots;
pub mod stream;
pub mod text;
pub mod trace;

use std::future::Future;
use std::net::SocketAddr;

use palimpsest_proto::internal::v1::RankInfo;
use palimpsest_tls::Incoming;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

pub use self::config::Config;
use self::driver::Readiness;
use self::executor::Executor;
use self::ids::Epoch;
use self::metrics::Metrics;
use self::model::ServedModel;
use self::ranks::Ranks;
use self::service::Service;

/// A running coordinator. Dropping it and all its services ends the driver when its requests are
/// done.
#[derive(Debug, Clone)]
pub struct Coordinator {
    service: Service,
}

/// A server on this machine's loopback address.
#[derive(Debug)]
pub struct LocalServer {
    /// Where it listens.
    pub address: SocketAddr,
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<(), tonic::transport::Error>>,
}

impl Coordinator {
    /// Starts a coordinator over a group whose ranks reported `ranks`, in rank order. Needs a tokio
    /// runtime. It takes requests as soon as the group has passed a first step: see
    /// [`Self::ready`].
    ///
    /// # Errors
    /// If the ranks do not make a group, their model's tokenizer or template cannot be used, or
    /// the default contract has no room on them.
    pub fn build(
        config: Config,
        executor: Box<dyn Executor>,
        ranks: Vec<RankInfo>,
    ) -> Result<Self, model::Error> {
        let shown = Ranks::default();
        shown.set(&ranks);
        let model = ServedModel::new(ranks)?.called(&config.served_names);
        driver::check_room(&model)?;
        let metrics = Metrics::new();
        metrics.cache_config(u64::from(model.info.stride), model.full_cache_strides());
        let driver = driver::start(&config, &model, executor, metrics.clone());
        let service = Service {
            ranks: shown,
            ..Service::new(model, config, driver, metrics)
        };
        Ok(Self { service })
    }

    /// For calls within this process, and for other APIs.
    pub fn service(&self) -> &Service {
        &self.service
    }

    /// Waits until requests are taken. False if the group failed its first step or the driver has
    /// ended.
    pub async fn ready(&self) -> bool {
        let mut readiness = self.service.driver.readiness();
        let settled = readiness
            .wait_for(|readiness| *readiness != Readiness::Starting)
            .await;
        settled.is_ok_and(|readiness| *readiness == Readiness::Ready)
    }

    /// Waits until the driver has ended, which it does in a drain, or in a panic.
    pub async fn ended(&self) {
        let mut readiness = self.service.driver.readiness();
        // A sender that is gone has ended as well.
        let _ = readiness
            .wait_for(|readiness| *readiness == Readiness::Ended)
            .await;
    }

    /// Takes another group of the same model, which has joined `epoch`, after one was lost or in
    /// place of the present one.
    ///
    /// # Errors
    /// If the ranks do not make a group that can serve what was admitted.
    pub async fn replace(
        &self,
        executor: Box<dyn Executor>,
        ranks: Vec<RankInfo>,
        epoch: u64,
    ) -> Result<(), model::Error> {
        self.service.model.check_successor(ranks.clone())?;
        self.service.ranks.set(&ranks);
        self.service.driver.replace(executor, Epoch(epoch)).await;
        Ok(())
    }

    /// Serves gRPC until `shutdown`, then drains: new requests are refused, admitted ones finish.
    ///
    /// # Errors
    /// If the transport fails.
    pub async fn serve(
        &self,
        incoming: impl Into<Incoming>,
        shutdown: impl Future<Output = ()> + Send,
    ) -> Result<(), tonic::transport::Error> {
        let incoming = self.watched("grpc", incoming);
        api::grpc::serve(self.service.clone(), incoming, shutdown).await
    }

    /// Serves HTTP until `shutdown`, then drains as [`Self::serve`] does.
    pub async fn serve_http(
        &self,
        incoming: impl Into<Incoming>,
        shutdown: impl Future<Output = ()> + Send,
    ) {
        let incoming = self.watched("http", incoming);
        api::http::serve(
            self.service.clone(),
            incoming,
            api::http::HttpLimits::default(),
            shutdown,
        )
        .await;
    }

    /// Serves `/health`, `/readyz` and `/metrics` alone until `shutdown`, for those that show
    /// neither key nor certificate.
    pub async fn serve_probes(
        &self,
        incoming: impl Into<Incoming>,
        shutdown: impl Future<Output = ()> + Send,
    ) {
        let incoming = self.watched("probes", incoming);
        api::http::serve_probes(self.service.clone(), incoming, shutdown).await;
    }

    /// A port whose refusals are among the metrics.
    fn watched(&self, port: &'static str, incoming: impl Into<Incoming>) -> Incoming {
        let incoming = incoming.into();
        self.service.metrics.watch_port(port, incoming.refused());
        incoming
    }

    /// Serves gRPC on a free port of 127.0.0.1, for clients in this process.
    ///
    /// # Errors
    /// If no port can be bound.
    pub async fn serve_local(&self) -> std::io::Result<LocalServer> {
        let listener = TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let (stop, stopped) = oneshot::channel();
        let coordinator = self.clone();
        let task = tokio::spawn(async move {
            let shutdown = async {
                // A dropped server stops as well.
                let _ = stopped.await;
            };
            coordinator.serve(listener, shutdown).await
        });
        Ok(LocalServer {
            address,
            stop,
            task,
        })
    }
}

impl LocalServer {
    /// Drains and waits for the end.
    pub async fn shut_down(self) {
        let _ = self.stop.send(());
        // Its errors are the transport's, and the transport is gone.
        let _ = self.task.await;
    }
}
