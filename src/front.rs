//! The side that faces clients: ports, keys, and their end.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, bail};
use palimpsest_coordinator::api::http::serve_waiting;
use palimpsest_coordinator::hosts::AllowedHosts;
use palimpsest_coordinator::keys::ApiKeys;
use palimpsest_coordinator::origins::AllowedOrigins;
use palimpsest_coordinator::responses::Limits as ResponseLimits;
use palimpsest_coordinator::scheduler::Company;
use palimpsest_coordinator::sessions::Limits as SessionLimits;
use palimpsest_coordinator::{Config, Coordinator};
use palimpsest_tls::{Incoming, Limits, ServerFiles, ServerTls};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::descriptors;
use crate::intake::Intake;
use crate::responses::ResponseConfig;
use crate::runtimes::Background;
use crate::sessions::SessionConfig;

/// Threads of what clients ask. The kernels have their own, and this machine's cores are theirs.
const CLIENT_THREADS: usize = 2;
/// Connections of the port of probes: a kubelet, scrapers, and whoever looks.
const PROBE_CONNECTIONS: usize = 256;

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
    /// Hosts beside addresses and localhost that HTTP is asked by, where no keys are.
    pub allowed_hosts: Vec<String>,
    /// Origins whose pages may ask over HTTP and read the answers.
    pub cors: Vec<String>,
    /// Whether HTTP serves the console.
    pub console: bool,
    /// What clients call the model, the name that answers show first; none: as its ranks call it.
    pub served_names: Vec<String>,
    /// Connections that each port of clients has at once.
    pub max_connections: usize,
    /// Those of one address.
    pub max_connections_per_address: usize,
    /// What gRPC and HTTP show; both are plain text without it.
    pub tls: Option<ServerFiles>,
    /// Sequences that run at once.
    pub max_running: usize,
    /// Requests that may wait.
    pub max_queued: usize,
    /// Whether HTTP refuses fields that do nothing.
    pub strict: bool,
    /// Bytes that a rank's kept states may take in its store.
    pub snapshot_store_bytes: u64,
    /// Whether clients with different keys use each other's.
    pub share_snapshots: bool,
    /// What requests may take before they wait.
    pub intake: Intake,
    /// What requests that run beside each other owe each other.
    pub company: Company,
    /// Where sessions are kept, and what they may take.
    pub sessions: SessionConfig,
    /// Where responses are kept, and what they may take.
    pub responses: ResponseConfig,
}

/// Ports that are bound, before a model is loaded: what is wrong with them is found at once. What
/// comes in is taken on threads of its own.
pub struct Front {
    grpc: Incoming,
    http: Option<Incoming>,
    probes: Option<Incoming>,
    keys: Option<Arc<ApiKeys>>,
    allowed_hosts: AllowedHosts,
    cors: AllowedOrigins,
    console: bool,
    served_names: Vec<String>,
    max_running: usize,
    max_queued: usize,
    strict: bool,
    snapshot_store_bytes: u64,
    share_snapshots: bool,
    client_threads: Background,
    probe_threads: Background,
    intake: Intake,
    company: Company,
    /// Their place is nobody's yet.
    sessions: SessionLimits,
    /// Their place is nobody's yet.
    responses: ResponseLimits,
}

impl Front {
    /// Reads the keys and binds the ports.
    pub async fn open(config: FrontConfig) -> anyhow::Result<Self> {
        let keys = config.api_keys_file.as_deref().map(ApiKeys::open);
        let keys = keys.transpose()?.map(Arc::new);
        check_exposure(&config, keys.is_some())?;
        check_places(&config)?;
        let sessions = config.sessions.open()?;
        let responses = config.responses.open()?;
        let allowed_hosts = AllowedHosts::new(config.allowed_hosts.iter().map(String::as_str))
            .context("--allowed-host")?;
        let cors = allowed_origins(&config.cors, keys.is_some())?;
        let connections = config.max_connections.saturating_mul(2);
        descriptors::allow(connections.saturating_add(PROBE_CONNECTIONS));
        let (client_threads, probe_threads) = (
            Background::start("clients", CLIENT_THREADS)?,
            Background::start("probes", 1)?,
        );
        let limits = Limits {
            connections: config.max_connections,
            connections_per_address: config.max_connections_per_address,
            ..Limits::default()
        };
        let probe_limits = Limits {
            connections: PROBE_CONNECTIONS,
            connections_per_address: PROBE_CONNECTIONS,
            ..Limits::default()
        };
        let tls = config.tls.map(ServerTls::open).transpose()?;
        let clients = |address, flag| bind(&client_threads, address, flag);

        let http = match config.http {
            Some(address) => {
                let listener = clients(address, "--http").await?;
                Some(Incoming::new(listener, tls.clone(), limits))
            }
            None => None,
        };
        let probes = match config.health {
            Some(address) => {
                let listener = bind(&probe_threads, address, "--health").await?;
                Some(Incoming::new(listener, None, probe_limits))
            }
            None => None,
        };
        let grpc = Incoming::new(clients(config.listen, "--listen").await?, tls, limits);
        Ok(Self {
            grpc,
            http: http.map(Incoming::counting_requests),
            probes: probes.map(Incoming::counting_requests),
            keys,
            allowed_hosts,
            cors,
            console: config.console,
            served_names: config.served_names,
            max_running: config.max_running,
            max_queued: config.max_queued,
            strict: config.strict,
            snapshot_store_bytes: config.snapshot_store_bytes,
            share_snapshots: config.share_snapshots,
            client_threads,
            probe_threads,
            intake: config.intake,
            company: config.company,
            sessions,
            responses,
        })
    }

    /// Does `work` and answers probes meanwhile, on their port and on that of HTTP.
    pub async fn wait_for<T>(&mut self, work: impl Future<Output = T>) -> T {
        let (done, finished) = watch::channel(false);
        let cors = self.cors.clone();
        let http = probed(&self.client_threads, self.http.take(), cors, &finished);
        let result = self.probe_while(work).await;
        done.send_replace(true);
        self.http = back(http).await;
        result
    }

    /// Does `work` and answers probes meanwhile, on their port alone.
    pub async fn probe_while<T>(&mut self, work: impl Future<Output = T>) -> T {
        let (done, finished) = watch::channel(false);
        let cors = AllowedOrigins::default();
        let probes = probed(&self.probe_threads, self.probes.take(), cors, &finished);
        let result = work.await;
        done.send_replace(true);
        self.probes = back(probes).await;
        result
    }

    /// Limits and keys for a coordinator. The places of its sessions and responses are nobody's
    /// yet.
    pub fn config(&self) -> Config {
        Config {
            max_running: self.max_running,
            max_queued: self.max_queued,
            strict: self.strict,
            keys: self.keys.clone(),
            allowed_hosts: self.allowed_hosts.clone(),
            cors: self.cors.clone(),
            console: self.console,
            served_names: self.served_names.clone(),
            snapshot_store_bytes: self.snapshot_store_bytes,
            share_snapshots: self.share_snapshots,
            company: self.company,
            sessions: self.sessions.clone(),
            responses: self.responses.clone(),
            ..self.intake.limits()
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
        let http = self.http.as_ref().map(|http| {
            let at = address(http);
            let console = match self.console {
                true => format!(", for people at {scheme}://{at}/console"),
                false => String::new(),
            };
            format!(" and {scheme}://{at}/v1{console}")
        });
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
        let (served, stopped) = (coordinator.clone(), raised(stopping.clone()));
        let grpc = self
            .client_threads
            .spawn(async move { Ok(served.serve(self.grpc, stopped).await?) });
        let http = self.http.map(|port| {
            let (served, stopped) = (coordinator.clone(), raised(stopping.clone()));
            self.client_threads
                .spawn(async move { served.serve_http(port, stopped).await })
        });
        let probes = self.probes.map(|port| {
            let (served, stopped) = (coordinator.clone(), raised(stopping.clone()));
            self.probe_threads
                .spawn(async move { served.serve_probes(port, stopped).await })
        });
        let grpc = async { grpc.await.context("the server of gRPC failed")? };
        let end = async {
            let ended = end.await;
            stop.send_replace(true);
            Ok(ended)
        };
        // A server that fails ends the others too.
        tokio::try_join!(grpc, done(http), done(probes), end)?.3
    }
}

/// Waits until `flag` is raised, or nobody can raise it any more.
async fn raised(mut flag: watch::Receiver<bool>) {
    let _ = flag.wait_for(|raised| *raised).await;
}

/// Answers probes at a port, if there is one, until `finished`; the port comes back then. Pages of
/// the origins in `cors` may read the answers.
fn probed(
    threads: &Background,
    port: Option<Incoming>,
    cors: AllowedOrigins,
    finished: &watch::Receiver<bool>,
) -> Option<JoinHandle<Incoming>> {
    let mut port = port?;
    let finished = raised(finished.clone());
    Some(threads.spawn(async move {
        serve_waiting(&mut port, &cors, finished).await;
        port
    }))
}

/// The port that was waited on.
async fn back(port: Option<JoinHandle<Incoming>>) -> Option<Incoming> {
    match port?.await {
        Ok(port) => Some(port),
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// Waits until a server has ended, if there is one.
async fn done(server: Option<JoinHandle<()>>) -> anyhow::Result<()> {
    match server {
        Some(server) => server.await.context("the server of HTTP failed"),
        None => Ok(()),
    }
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

/// Refuses one place for sessions and for responses.
fn check_places(config: &FrontConfig) -> anyhow::Result<()> {
    let places = [&config.sessions.place, &config.responses.place];
    if let [Some(sessions), Some(responses)] = places
        && is_one_place(sessions, responses)
    {
        bail!("--session-store and --response-store name one place: give each its own");
    }
    Ok(())
}

/// Whose pages may ask, with a warning where those of everyone may without a key.
fn allowed_origins(origins: &[String], has_keys: bool) -> anyhow::Result<AllowedOrigins> {
    let allowed = AllowedOrigins::new(origins.iter().map(String::as_str)).context("--cors")?;
    if allowed.is_any() && !has_keys {
        tracing::warn!(
            "pages of any site that somebody visits may ask, and read the answers: name origins \
             with --cors, or give --api-keys-file"
        );
    }
    Ok(allowed)
}

/// Binds a port on the threads that will take what comes.
async fn bind(
    threads: &Background,
    address: SocketAddr,
    flag: &str,
) -> anyhow::Result<TcpListener> {
    let bound = threads.spawn(TcpListener::bind(address)).await?;
    bound.with_context(|| {
        format!(
            "cannot listen on {address}; is another server running? choose an address with {flag}"
        )
    })
}

/// Whether two places of stores are one: the same directory, or the same URL.
fn is_one_place(one: &str, other: &str) -> bool {
    let path = |place: &str| std::fs::canonicalize(place).ok();
    one == other || path(one).is_some_and(|one| path(other) == Some(one))
}

#[cfg(test)]
mod tests;
