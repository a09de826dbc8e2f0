//! `palimpsest health`: asks a server or a rank what a probe would, for images without a shell.

use std::time::Duration;

use anyhow::Context;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::args::HealthArgs;
use crate::generate;

/// Succeeds when the service serves.
pub async fn run(args: HealthArgs) -> anyhow::Result<()> {
    let limit = Duration::from_secs(args.timeout);
    let status = tokio::time::timeout(limit, ask(&args)).await;
    let status = status
        .with_context(|| format!("no answer from {} within {} s", args.server, args.timeout))??;
    anyhow::ensure!(status == ServingStatus::Serving, "{}", status.as_str_name());
    println!("{}", status.as_str_name());
    Ok(())
}

async fn ask(args: &HealthArgs) -> anyhow::Result<ServingStatus> {
    let mut client = HealthClient::new(generate::channel(&args.server, &args.tls).await?);
    let request = HealthCheckRequest {
        service: args.service.clone(),
    };
    let answer = client
        .check(request)
        .await
        .map_err(|status| match status.code() {
            tonic::Code::NotFound => {
                anyhow::anyhow!("{} knows no service `{}`", args.server, args.service)
            }
            _ => anyhow::anyhow!("{}: {}", status.code(), status.message()),
        })?;
    Ok(answer.into_inner().status())
}
