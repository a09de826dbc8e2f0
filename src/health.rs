//! `palimpsest health`: asks a server or a rank what a probe would, for images without a shell.

use std::time::Duration;

use anyhow::Context;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::client::{self, Server};

/// Whom to ask for what.
#[derive(Debug)]
pub struct Config {
    /// A server or a rank.
    pub server: Server,
    /// Service; the whole process when empty.
    pub service: String,
    /// Time to wait for the answer.
    pub timeout: Duration,
}

/// Succeeds when the service serves.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let status = tokio::time::timeout(config.timeout, ask(&config)).await;
    let status = status.with_context(|| {
        format!(
            "no answer from {} within {} s",
            config.server.address,
            config.timeout.as_secs()
        )
    })??;
    anyhow::ensure!(status == ServingStatus::Serving, "{}", status.as_str_name());
    println!("{}", status.as_str_name());
    Ok(())
}

async fn ask(config: &Config) -> anyhow::Result<ServingStatus> {
    let mut client = HealthClient::new(client::channel(&config.server).await?);
    let request = HealthCheckRequest {
        service: config.service.clone(),
    };
    let answer = client
        .check(request)
        .await
        .map_err(|status| match status.code() {
            tonic::Code::NotFound => anyhow::anyhow!(
                "{} knows no service `{}`",
                config.server.address,
                config.service
            ),
            _ => anyhow::anyhow!("{}: {}", status.code(), status.message()),
        })?;
    Ok(answer.into_inner().status())
}
