//! Where the ranks of an epoch find each other: a [`Store`] kept by rank 0, served to the others
//! over gRPC.

use std::sync::Arc;
use std::time::{Duration, Instant};

use palimpsest_collective::{CollectiveError, MemoryStore, Store};
use palimpsest_proto::internal::v1::rendezvous_client::RendezvousClient;
use palimpsest_proto::internal::v1::rendezvous_server::Rendezvous;
use palimpsest_proto::internal::v1::{GetRequest, GetResponse, SetRequest, SetResponse};
use palimpsest_tls::{Connector, explain};
use tokio::runtime::Handle;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};

/// Values are addresses and ids: anything longer is not ours.
const MAX_VALUE: usize = 1 << 20;
/// Longest wait that is granted to one call.
const MAX_WAIT: Duration = Duration::from_secs(120);

/// Rank 0's side.
pub(super) struct RendezvousService(pub Arc<MemoryStore>);

#[tonic::async_trait]
impl Rendezvous for RendezvousService {
    async fn set(&self, request: Request<SetRequest>) -> Result<Response<SetResponse>, Status> {
        let SetRequest { key, value } = request.into_inner();
        if key.len() > MAX_VALUE || value.len() > MAX_VALUE {
            return Err(Status::invalid_argument(
                "a rendezvous value has at most 1 MiB",
            ));
        }
        self.0.set(&key, &value).map_err(|error| status(&error))?;
        Ok(Response::new(SetResponse {}))
    }

    async fn get(&self, request: Request<GetRequest>) -> Result<Response<GetResponse>, Status> {
        let GetRequest { key, limit_millis } = request.into_inner();
        let deadline = Instant::now() + Duration::from_millis(limit_millis).min(MAX_WAIT);
        let store = self.0.clone();
        let found = tokio::task::spawn_blocking(move || store.get(&key, deadline)).await;
        let value = found
            .map_err(|_| Status::internal("the wait failed"))?
            .map_err(|error| status(&error))?;
        Ok(Response::new(GetResponse {
            value: value.into(),
        }))
    }
}

/// The other ranks' side. Its methods block and must not be called on a thread of the runtime.
pub(super) struct RemoteStore {
    client: RendezvousClient<Channel>,
    runtime: Handle,
    limit: Duration,
}

impl RemoteStore {
    /// A store at `address`, which is only contacted when it is used. Needs a tokio runtime.
    pub fn new(
        address: &str,
        limit: Duration,
        connector: Connector,
    ) -> Result<Self, CollectiveError> {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|error| {
            CollectiveError::Misuse(format!("`{address}` is no address of rank 0: {error}"))
        })?;
        let channel = endpoint
            .connect_timeout(limit)
            .connect_with_connector_lazy(connector);
        Ok(Self {
            client: RendezvousClient::new(channel),
            runtime: Handle::current(),
            limit,
        })
    }
}

impl Store for RemoteStore {
    fn set(&self, key: &str, value: &[u8]) -> Result<(), CollectiveError> {
        let mut request = Request::new(SetRequest {
            key: key.to_owned(),
            value: value.to_vec().into(),
        });
        request.set_timeout(self.limit);
        self.runtime
            .block_on(self.client.clone().set(request))
            .map_err(|status| error(key, &status))?;
        Ok(())
    }

    fn get(&self, key: &str, deadline: Instant) -> Result<Vec<u8>, CollectiveError> {
        let left = deadline.saturating_duration_since(Instant::now());
        let limit_millis = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
        let mut request = Request::new(GetRequest {
            key: key.to_owned(),
            limit_millis,
        });
        // A little more than the wait itself, so that the store's own answer comes first.
        request.set_timeout(left + Duration::from_millis(500));
        let found = self
            .runtime
            .block_on(self.client.clone().get(request))
            .map_err(|status| error(key, &status))?;
        Ok(found.into_inner().value.to_vec())
    }
}

fn status(error: &CollectiveError) -> Status {
    match error {
        CollectiveError::Deadline { .. } => Status::deadline_exceeded(error.to_string()),
        other => Status::internal(other.to_string()),
    }
}

fn error(key: &str, status: &Status) -> CollectiveError {
    match status.code() {
        tonic::Code::DeadlineExceeded | tonic::Code::Cancelled => CollectiveError::Deadline {
            operation: "rendezvous",
            missing: key.to_owned(),
        },
        _ => {
            let said = explain(status).unwrap_or_else(|| status.message().to_owned());
            CollectiveError::PeerGone(format!("rank 0 keeps the rendezvous and says: {said}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use palimpsest_collective::conformance;
    use palimpsest_proto::internal::v1::rendezvous_server::RendezvousServer;
    use tokio::net::TcpListener;
    use tonic::transport::Server;
    use tonic::transport::server::TcpIncoming;

    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_store_of_rank_0_conforms_from_afar() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        let service = RendezvousServer::new(RendezvousService(Arc::default()));
        tokio::spawn(
            Server::builder()
                .add_service(service)
                .serve_with_incoming(TcpIncoming::from(listener)),
        );
        let store = RemoteStore::new(&address, Duration::from_secs(5), Connector::default())
            .expect("an address");
        tokio::task::spawn_blocking(move || conformance::run_store(&store))
            .await
            .expect("the store conforms");
    }
}
