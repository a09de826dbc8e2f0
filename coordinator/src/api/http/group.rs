//! The worker group that serves, for people and their dashboards.

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use crate::driver::Readiness;
use crate::ranks::RankShown;
use crate::service::Service;

/// `GET /v1/group`.
pub async fn show(State(service): State<Service>) -> Json<Value> {
    let readiness = match *service.driver.readiness().borrow() {
        Readiness::Ready => "ready",
        Readiness::Starting => "starting",
        Readiness::Lost => "lost",
        Readiness::Draining => "draining",
        Readiness::Ended => "ended",
    };
    let ranks: Vec<Value> = service.ranks.shown().iter().map(object).collect();
    let (model, config) = (&service.model, &service.config);
    Json(json!({
        "object": "group", "version": env!("CARGO_PKG_VERSION"), "model": model.name(),
        "architecture": model.info.architecture, "parameters": model.info.parameters,
        "layers": model.info.layers, "kv_heads": model.info.kv_heads,
        "context_length": model.info.context_length, "stride": model.info.stride,
        "kv_bytes_per_token": model.token_bytes(),
        "readiness": readiness, "ranks": ranks,
        "max_running": config.max_running, "max_queued": config.max_queued,
    }))
}

fn object(rank: &RankShown) -> Value {
    json!({
        "rank": rank.rank, "device": rank.device, "page_bytes": rank.page_bytes,
        "latent_bytes": rank.latent_bytes, "snapshot_bytes": rank.snapshot_bytes,
    })
}
