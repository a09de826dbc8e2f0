//! The side that faces clients: ports, keys, and their end.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, bail};
use palimpsest_coordinator::api::http::serve_waiting;
use palimpsest_coordinator::keys::ApiKeys;
use palimpsest_coordinator::{Config, Coordinator};
use palimpsest_tls::{Incoming, Limits, ServerFiles, ServerTls};
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::args::FrontArgs;

/// Ports that are bound, before a model is loaded: what is wrong with them is found at once.
pub struct Front {
    grpc: Incoming,
    http: Option<Incoming>,
    probes: Option<Incoming>,
    keys: Option<Arc<ApiKeys>>,
}

impl Front {
    /// Reads the keys and binds the ports.
    pub async fn open(args: &FrontArgs) -> anyhow::Result<Self> {
        let keys = match &args.api_keys_file {
            Some(path) => {
                let text = std::fs::read_to_string(path)
                    .with_context(|| format!("cannot read {}", path.display()))?;
                let keys = ApiKeys::parse(&text).with_context(|| path.display().to_string())?;
                Some(Arc::new(keys))
            }
            None => None,
        };
        let addresses = [Some(args.listen), (!args.no_http).then_some(args.http)];
        let open = addresses
            .iter()
            .flatten()
            .find(|address| !address.ip().is_loopback());
        let knows_clients = keys.is_some() || args.tls_client_ca.is_some();
        if let Some(address) = open.filter(|_| !knows_clients && !args.insecure_no_keys) {
            bail!(
                "{address} can be reached from outside: give --api-keys-file or --tls-client-ca, \
                 or --insecure-no-keys to serve anyone"
            );
        }
        let tls = tls(args)?;
        if let Some(address) = open.filter(|_| tls.is_none() && keys.is_some()) {
            tracing::warn!(%address, "API keys and prompts travel in plain text: give --tls-cert, or put TLS in front");
        }
        let incoming = |listener, tls| Incoming::new(listener, tls, Limits::default());
        let http = if args.no_http {
            None
        } else {
            Some(bind(args.http, "--http").await?)
        };
        let probes = match args.health {
            Some(address) => Some(incoming(bind(address, "--health").await?, None)),
            None => None,
        };
        let grpc = incoming(bind(args.listen, "--listen").await?, tls.clone());
        Ok(Self {
            grpc,
            http: http.map(|http| incoming(http, tls)),
            probes,
            keys,
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
    pub fn config(&self, args: &FrontArgs) -> Config {
        let (max_running, max_queued) = (args.max_running, args.max_queued);
        Config {
            max_running,
            max_queued,
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

    /// Serves until a signal, then drains.
    pub async fn serve(self, coordinator: &Coordinator) -> anyhow::Result<()> {
        let signal = async {
            crate::serve::shutdown_signal().await;
            Ok(())
        };
        self.serve_until(coordinator, signal).await
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

/// TLS of both ports, if it was asked for.
fn tls(args: &FrontArgs) -> anyhow::Result<Option<ServerTls>> {
    let Some((cert, key)) = args.tls_cert.clone().zip(args.tls_key.clone()) else {
        return Ok(None);
    };
    let files = ServerFiles {
        cert,
        key,
        client_ca: args.tls_client_ca.clone(),
    };
    Ok(Some(ServerTls::open(files)?))
}

async fn bind(address: SocketAddr, flag: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| {
        format!(
            "cannot listen on {address}; is another server running? choose an address with {flag}"
        )
    })
}
