//! Of whom a call is.

use std::sync::Arc;

use palimpsest_tls::Peer;
use tonic::metadata::MetadataMap;
use tonic::{Extensions, Status};

use super::timeout::grpc_timeout;
use crate::budget::Charge;
use crate::keys::Tenant;
use crate::service::Call;
use crate::trace;

/// Metadata key of a response that names its request.
pub const REQUEST_ID_KEY: &str = "palimpsest-request-id";

/// What metadata and extensions of a request say.
pub(super) fn call_of(metadata: &MetadataMap, extensions: &Extensions) -> Result<Call, Status> {
    let traceparent = metadata
        .get("traceparent")
        .and_then(|value| value.to_str().ok());
    Ok(Call {
        parent: trace::parent(traceparent),
        timeout: grpc_timeout(metadata)?,
        charge: extensions.get::<Charge>().cloned(),
        tenant: extensions.get::<Arc<Tenant>>().cloned(),
        network: extensions.get::<Peer>().and_then(Peer::network),
        ..Call::default()
    })
}
