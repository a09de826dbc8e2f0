//! The registry in which ranks find each other and coordinators claim the lead.

use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use palimpsest_registry::{Claim, Registry, RegistryError};
#[cfg(feature = "etcd")]
use palimpsest_registry::{EtcdOptions, EtcdRegistry, EtcdUser};
use palimpsest_tls::ClientFiles;
#[cfg(feature = "etcd")]
use palimpsest_tls::ClientTls;

/// How long a rank that was claimed by a process that died stays claimed, and some more.
pub const CLAIM_LIMIT: Duration = Duration::from_secs(30);

/// Where etcd is.
#[derive(Debug, Clone)]
#[cfg_attr(not(feature = "etcd"), allow(dead_code))]
pub struct EtcdConfig {
    /// Addresses of its members, all of http:// or all of https://.
    pub endpoints: Vec<String>,
    /// Name and password.
    pub user: Option<(String, String)>,
    /// What is trusted and shown where the endpoints speak TLS.
    pub tls: ClientFiles,
    /// Time after which the claim of a process that died without a word is free again.
    pub lease: Duration,
    /// Time to wait for etcd when it is not there yet.
    pub patience: Duration,
}

/// Opens the registry that was asked for.
#[cfg(feature = "etcd")]
pub async fn open(config: EtcdConfig) -> anyhow::Result<Arc<dyn Registry>> {
    let encrypted = config
        .endpoints
        .iter()
        .filter(|endpoint| endpoint.starts_with("https://"))
        .count();
    if encrypted != 0 && encrypted != config.endpoints.len() {
        bail!("--etcd mixes http:// and https://: give endpoints of one kind");
    }
    if encrypted == 0 && (config.tls.ca.is_some() || config.tls.identity.is_some()) {
        bail!("--etcd-ca and --etcd-cert are for endpoints of https://");
    }
    let tls = if encrypted > 0 {
        Some(ClientTls::open(config.tls)?)
    } else {
        None
    };
    let options = EtcdOptions {
        endpoints: config.endpoints,
        user: config
            .user
            .map(|(name, password)| EtcdUser { name, password }),
        tls,
        lease: config.lease,
        ..EtcdOptions::default()
    };
    Ok(Arc::new(connect(options, config.patience).await?))
}

/// This build has none.
#[cfg(not(feature = "etcd"))]
pub async fn open(_: EtcdConfig) -> anyhow::Result<Arc<dyn Registry>> {
    bail!("this build knows no etcd: build with --features cluster");
}

/// Connects to etcd, which may start beside this process: not being there is no reason to give up
/// before `patience` is.
#[cfg(feature = "etcd")]
async fn connect(options: EtcdOptions, patience: Duration) -> Result<EtcdRegistry, RegistryError> {
    const PAUSE: Duration = Duration::from_secs(1);
    let since = tokio::time::Instant::now();
    let mut is_told = false;
    loop {
        match EtcdRegistry::connect(options.clone()).await {
            Err(RegistryError::Unreachable { why, .. }) if since.elapsed() + PAUSE < patience => {
                if !is_told {
                    eprintln!(
                        "waiting for etcd at {}: {why}",
                        options.endpoints.join(", ")
                    );
                }
                is_told = true;
                tokio::time::sleep(PAUSE).await;
            }
            connected => return connected,
        }
    }
}

/// Waits until another process has what was claimed; for ever where nothing was.
pub async fn lost(claim: Option<&Claim>) -> RegistryError {
    match claim {
        Some(claim) => claim.lost().await,
        None => std::future::pending().await,
    }
}
