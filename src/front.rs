//! The side that faces clients: ports, keys, and their end.

use crate::args::FrontArgs;
use anyhow::{Context, bail};
use palimpsest_coordinator::api::http::serve_waiting;
use palimpsest_coordinator::keys::ApiKeys;
use palimpsest_coordinator::{Config, Coordinator};
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::sync::watch;

/// Ports that are bound, before a model is loaded: what is wrong with them is found at once.
pub struct Front {
    grpc: TcpListener,
    http: Option<TcpListener>,
    keys: Option<Arc<ApiKeys>>,
}

impl Front {
    /// Reads the keys and binds the ports.
    pub async fn open(args: &FrontArgs) -> anyhow::Result<Self> {
        let keys = match &args.api_keys_file {
            Some(path) => {
                let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
                let keys = ApiKeys::parse(&text).with_context(|| path.display().to_string())?;
                Some(Arc::new(keys))
            }
            None => None,
        };
        let addresses = [Some(args.listen), (!args.no_http).then_some(args.http)];
        let open = addresses.iter().flatten().find(|address| !address.ip().is_loopback());
        if let Some(address) = open.filter(|_| keys.is_none() && !args.insecure_no_keys) {
            bail!("{address} can be reached from outside: give --api-keys-file, or --insecure-no-keys to serve anyone");
        }
        let http = if args.no_http { None } else { Some(bind(args.http, "--http").await?) };
        Ok(Self { grpc: bind(args.listen, "--listen").await?, http, keys })
    }

    /// Does `work` and answers probes meanwhile.
    pub async fn wait_for<T>(&self, work: impl Future<Output = T>) -> T {
        let Some(http) = &self.http else { return work.await };
        let (done, finished) = watch::channel(false);
        let finished = async {
            let mut finished = finished;
            // A sender that is gone has finished as well.
            let _ = finished.wait_for(|done| *done).await;
        };
        let work = async {
            let result = work.await;
            done.send_replace(true);
            result
        };
        tokio::join!(work, serve_waiting(http, finished)).0
    }

    /// Limits and keys for a coordinator.
    pub fn config(&self, args: &FrontArgs) -> Config {
        let (max_running, max_queued) = (args.max_running, args.max_queued);
        Config { max_running, max_queued, keys: self.keys.clone(), ..Config::default() }
    }

    /// Where clients find the service.
    pub fn describe(&self) -> String {
        let address = |listener: &TcpListener| listener.local_addr().map_or_else(|_| "?".into(), |a| a.to_string());
        let http = self.http.as_ref().map(|http| format!(" and http://{}/v1", address(http)));
        format!("grpc://{}{}", address(&self.grpc), http.unwrap_or_default())
    }

    /// Serves until a signal, then drains.
    pub async fn serve(self, coordinator: &Coordinator) -> anyhow::Result<()> {
        let (stop, stopping) = watch::channel(false);
        let stopped = |mut stopping: watch::Receiver<bool>| async move {
            // A sender that is gone has stopped as well.
            let _ = stopping.wait_for(|stop| *stop).await;
        };
        let grpc = coordinator.serve(self.grpc, stopped(stopping.clone()));
        let http = async {
            if let Some(listener) = self.http {
                coordinator.serve_http(listener, stopped(stopping.clone())).await;
            }
            Ok(())
        };
        let signal = async {
            crate::serve::shutdown_signal().await;
            stop.send_replace(true);
            Ok(())
        };
        // A transport that fails ends the others too.
        tokio::try_join!(grpc, http, signal)?;
        Ok(())
    }
}

async fn bind(address: SocketAddr, flag: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| {
        format!("cannot listen on {address}; is another server running? choose an address with {flag}")
    })
}
