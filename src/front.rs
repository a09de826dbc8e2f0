//! The side that faces clients: ports, keys, and their end.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, bail};
use palimpsest_coordinator::api::http::serve_waiting;
use palimpsest_coordinator::keys::ApiKeys;
use palimpsest_coordinator::{Config, Coordinator};
use palimpsest_tls::{Incoming, Limits, ServerFiles, ServerTls};
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::texts;

/// What faces clients.
#[derive(Debug, Clone)]
pub struct FrontConfig {
    /// Address of gRPC.
    pub listen: SocketAddr,
    /// Address of HTTP: OpenAI's API, probes and metrics.
    pub http: Option<SocketAddr>,
    /// Address of a port without TLS for probes and metrics alone.
    pub health: Option<SocketAddr>,
    /// File of API keys.
    pub api_keys_file: Option<PathBuf>,
    /// Whether anyone may ask who reaches an address beyond loopback.
    pub insecure_no_keys: bool,
    /// What gRPC and HTTP show; both are plain text without it.
    pub tls: Option<ServerFiles>,
    /// Sequences that run at once.
    pub max_running: usize,
    /// Requests that may wait.
    pub max_queued: usize,
}

/// Ports that are bound, before a model is loaded: what is wrong with them is found at once.
pub struct Front {
    grpc: Incoming,
    http: Option<Incoming>,
    probes: Option<Incoming>,
    keys: Option<Arc<ApiKeys>>,
    max_running: usize,
    max_queued: usize,
}

impl Front {
    /// Reads the keys and binds the ports.
    pub async fn open(config: FrontConfig) -> anyhow::Result<Self> {
        let keys = match &config.api_keys_file {
            Some(path) => {
                let keys = ApiKeys::parse(&texts::read(path)?)
                    .with_context(|| path.display().to_string())?;
                Some(Arc::new(keys))
            }
            None => None,
        };
        check_exposure(&config, keys.is_some())?;
        let tls = config.tls.map(ServerTls::open).transpose()?;
        let incoming = |listener, tls| Incoming::new(listener, tls, Limits::default());

        let http = match config.http {
            Some(address) => Some(incoming(bind(address, "--http").await?, tls.clone())),
            None => None,
        };
        let probes = match config.health {
            Some(address) => Some(incoming(bind(address, "--health").await?, None)),
            None => None,
        };
        let grpc = incoming(bind(config.listen, "--listen").await?, tls);
        Ok(Self {
            grpc,
            http,
            probes,
            keys,
            max_running: config.max_running,
            max_queued: config.max_queued,
        })
    }

    /// Does `work` and answers probes meanwhile.
    pub async fn wait_for<T>(&mut self, work: impl Future<Output = T>) -> T {
        let (done, finished) = watch::channel(false);
        let work = async {
            let result = work.await;
            done.send_replace(true);
            result
        };
        let (http, probes) = (self.http.as_mut(), self.probes.as_mut());
        tokio::join!(
            work,
            probed(http, finished.clone()),
            probed(probes, finished)
        )
        .0
    }

    /// Limits and keys for a coordinator.
    pub fn config(&self) -> Config {
        Config {
            max_running: self.max_running,
            max_queued: self.max_queued,
            keys: self.keys.clone(),
            ..Config::default()
        }
    }

    /// Where clients find the service.
    pub fn describe(&self) -> String {
        let address = |port: &Incoming| {
            port.local_addr()
                .map_or_else(|_| "?".into(), |a| a.to_string())
        };
        let scheme = if self.grpc.is_encrypted() {
            "https"
        } else {
            "http"
        };
        let http = self
            .http
            .as_ref()
            .map(|http| format!(" and {scheme}://{}/v1", address(http)));
        format!(
            "{scheme}://{} (gRPC){}",
            address(&self.grpc),
            http.unwrap_or_default()
        )
    }

    /// Serves until `end`, drains, and returns what came of `end`.
    pub async fn serve_until(
        self,
        coordinator: &Coordinator,
        end: impl Future<Output = anyhow::Result<()>>,
    ) -> anyhow::Result<()> {
        let (stop, stopping) = watch::channel(false);
        let stopped = |mut stopping: watch::Receiver<bool>| async move {
            // A sender that is gone has stopped as well.
            let _ = stopping.wait_for(|stop| *stop).await;
        };
        let grpc = coordinator.serve(self.grpc, stopped(stopping.clone()));
        let http = async {
            if let Some(listener) = self.http {
                coordinator
                    .serve_http(listener, stopped(stopping.clone()))
                    .await;
            }
            Ok(())
        };
        let probes = async {
            if let Some(port) = self.probes {
                coordinator
                    .serve_probes(port, stopped(stopping.clone()))
                    .await;
            }
            Ok(())
        };
        let end = async {
            let ended = end.await;
            stop.send_replace(true);
            Ok(ended)
        };
        // A transport that fails ends the others too.
        tokio::try_join!(grpc, http, probes, end)?.3
    }
}

/// Answers probes at a port, if there is one, until `finished`.
async fn probed(port: Option<&mut Incoming>, mut finished: watch::Receiver<bool>) {
    let Some(port) = port else { return };
    let finished = async {
        // A sender that is gone has finished as well.
        let _ = finished.wait_for(|done| *done).await;
    };
    serve_waiting(port, finished).await;
}

/// Refuses to serve everyone beyond this machine unless the operator says so, and warns of secrets
/// in plain text.
fn check_exposure(config: &FrontConfig, has_keys: bool) -> anyhow::Result<()> {
    let exposed = [Some(config.listen), config.http]
        .into_iter()
        .flatten()
        .find(|address| !address.ip().is_loopback());
    let Some(address) = exposed else {
        return Ok(());
    };
    let asks_certificates = config
        .tls
        .as_ref()
        .is_some_and(|files| files.client_ca.is_some());
    if !has_keys && !asks_certificates && !config.insecure_no_keys {
        bail!(
            "{address} can be reached from outside: give --api-keys-file or --tls-client-ca, or \
             --insecure-no-keys to serve anyone"
        );
    }
    if config.tls.is_none() && has_keys {
        tracing::warn!(
            %address,
            "API keys and prompts travel in plain text: give --tls-cert, or put TLS in front"
        );
    }
    Ok(())
}

async fn bind(address: SocketAddr, flag: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| {
        format!(
            "cannot listen on {address}; is another server running? choose an address with {flag}"
        )
    })
}
