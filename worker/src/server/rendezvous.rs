//! Where the ranks of an epoch find each other: a [`Store`] kept by rank 0, served to the others
//! over gRPC.

use std::sync::Arc;
use std::time::{Duration, Instant};

use palimpsest_collective::{CollectiveError, MemoryStore, Store, StoreLimits};
use palimpsest_proto::internal::v1::rendezvous_client::RendezvousClient;
use palimpsest_proto::internal::v1::rendezvous_server::Rendezvous;
use palimpsest_proto::internal::v1::{GetRequest, GetResponse, SetRequest, SetResponse};
use palimpsest_tls::{Connector, explain};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};

/// Values are addresses and ids: anything longer is not ours.
const MAX_VALUE: usize = 1 << 20;
/// Keys name an epoch, a purpose and ranks.
const MAX_KEY: usize = 1 << 10;
/// Longest wait that is granted to one call.
const MAX_WAIT: Duration = Duration::from_secs(120);
/// Calls that may wait at once. A rank waits for one key at a time.
const MAX_WAITERS: usize = 1024;

/// What rank 0 keeps for its group.
pub(super) struct EpochStore {
    values: MemoryStore,
    /// Told of each value, for those who wait without a thread.
    changed: watch::Sender<()>,
    waiters: Semaphore,
}

impl EpochStore {
    /// An empty store that lets so many wait at once.
    pub fn new(waiters: usize) -> Self {
        Self {
            values: MemoryStore::new(StoreLimits::default()),
            changed: watch::channel(()).0,
            waiters: Semaphore::new(waiters),
        }
    }

    /// Forgets the keys that do not begin with `prefix` and a slash.
    pub fn keep_only(&self, prefix: &str) {
        self.values.retain(|key| {
            key.strip_prefix(prefix)
                .is_some_and(|rest| rest.starts_with('/'))
        });
    }

    /// The value of a key. Whoever waits holds no thread, and nothing at all once the call is
    /// dropped.
    async fn wait_for(&self, key: &str, limit: Duration) -> Result<Vec<u8>, Status> {
        let _waiting = self.waiters.try_acquire().map_err(|_| {
            Status::resource_exhausted("too many calls wait at the rendezvous: try again")
        })?;
        let mut changes = self.changed.subscribe();
        let found = async {
            loop {
                // Values that come between this look and the wait below are seen by it.
                if let Some(value) = self.values.find(key) {
                    return value;
                }
                if changes.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        timeout(limit, found).await.map_err(|_| {
            status(&CollectiveError::Deadline {
                operation: "rendezvous",
                missing: key.to_owned(),
            })
        })
    }
}

impl Default for EpochStore {
    fn default() -> Self {
        Self::new(MAX_WAITERS)
    }
}

impl Store for EpochStore {
    fn set(&self, key: &str, value: &[u8]) -> Result<(), CollectiveError> {
        self.values.set(key, value)?;
        self.changed.send_replace(());
        Ok(())
    }

    fn get(&self, key: &str, deadline: Instant) -> Result<Vec<u8>, CollectiveError> {
        self.values.get(key, deadline)
    }
}

/// Rank 0's side.
pub(super) struct RendezvousService(pub Arc<EpochStore>);

#[tonic::async_trait]
impl Rendezvous for RendezvousService {
    async fn set(&self, request: Request<SetRequest>) -> Result<Response<SetResponse>, Status> {
        let SetRequest { key, value } = request.into_inner();
        check("value", value.len(), MAX_VALUE)?;
        check("key", key.len(), MAX_KEY)?;
        self.0.set(&key, &value).map_err(|error| status(&error))?;
        Ok(Response::new(SetResponse {}))
    }

    async fn get(&self, request: Request<GetRequest>) -> Result<Response<GetResponse>, Status> {
        let GetRequest { key, limit_millis } = request.into_inner();
        check("key", key.len(), MAX_KEY)?;
        let limit = Duration::from_millis(limit_millis).min(MAX_WAIT);
        let value = self.0.wait_for(&key, limit).await?;
        Ok(Response::new(GetResponse {
            value: value.into(),
        }))
    }
}

fn check(what: &str, bytes: usize, most: usize) -> Result<(), Status> {
    if bytes <= most {
        return Ok(());
    }
    Err(Status::invalid_argument(format!(
        "a rendezvous {what} has at most {most} bytes, not {bytes}"
    )))
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
        CollectiveError::StoreFull { .. } => Status::resource_exhausted(error.to_string()),
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

    fn get(key: &str, limit_millis: u64) -> Request<GetRequest> {
        Request::new(GetRequest {
            key: key.to_owned(),
            limit_millis,
        })
    }

    fn set(key: String, bytes: usize) -> Request<SetRequest> {
        Request::new(SetRequest {
            key,
            value: vec![0; bytes].into(),
        })
    }

    /// Without a bound, calls for keys that never come held a thread each for two minutes, and
    /// there were no threads left for the rank's own work.
    #[tokio::test(start_paused = true)]
    async fn waiting_calls_have_a_bound_and_leave_when_they_are_dropped() {
        let store = Arc::new(EpochStore::new(2));
        let service = Arc::new(RendezvousService(store.clone()));
        let ask = || {
            let service = service.clone();
            tokio::spawn(async move { service.get(get("epoch-1/never", u64::MAX)).await })
        };
        let (first, second) = (ask(), ask());
        while store.waiters.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        let third = ask().await.expect("no panic").expect_err("two wait");
        assert_eq!(third.code(), tonic::Code::ResourceExhausted);
        first.abort();
        first.await.expect_err("it was dropped");
        assert_eq!(store.waiters.available_permits(), 1, "its place is free");
        // Time is the runtime's: two minutes pass as soon as everybody waits.
        let late = second.await.expect("no panic").expect_err("it never came");
        assert_eq!(late.code(), tonic::Code::DeadlineExceeded);
    }

    #[tokio::test]
    async fn a_value_that_comes_while_somebody_waits_is_told() {
        let store = Arc::new(EpochStore::default());
        let service = RendezvousService(store.clone());
        let waiting = tokio::spawn(async move { service.get(get("epoch-1/0", 60_000)).await });
        while store.waiters.available_permits() == MAX_WAITERS {
            tokio::task::yield_now().await;
        }
        store.set("epoch-1/0", b"here").expect("room");
        let found = waiting.await.expect("no panic").expect("a value");
        assert_eq!(&found.into_inner().value[..], b"here");
    }

    /// A flood of values ends in a refusal, and the next epoch has room again.
    #[tokio::test]
    async fn values_of_an_epoch_have_a_bound() {
        let store = Arc::new(EpochStore::default());
        let service = RendezvousService(store.clone());
        let long = service.set(set("epoch-1/0".into(), MAX_VALUE + 1)).await;
        assert_eq!(
            long.expect_err("too long").code(),
            tonic::Code::InvalidArgument
        );
        let most = StoreLimits::default().bytes / MAX_VALUE;
        let mut taken = 0;
        let refused = loop {
            let key = format!("epoch-1/{taken}");
            match service.set(set(key, MAX_VALUE)).await {
                Ok(_) => taken += 1,
                Err(status) => break status,
            }
            assert!(taken <= most, "the store is bounded");
        };
        assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
        store.keep_only("epoch-2");
        service
            .set(set("epoch-2/0".into(), 4))
            .await
            .expect("room again");
    }
}
