//! Kept states of sessions: where they are is the driver's to change.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use palimpsest_proto::error::{Reason, RequestError};
use tokio::time::timeout;

use crate::driver::{DriverHandle, Move, MoveError};
use crate::model::ServedModel;
use crate::sessions::pins::{Pinned, Pins};
use crate::snapshots::{Chain, Salt};

/// Time until all ranks must have said that they keep nothing of a log any more.
const FORGET_LIMIT: Duration = Duration::from_secs(30);

/// Moves what the ranks keep.
#[derive(Debug)]
pub struct DriverPins {
    driver: DriverHandle,
    model: Arc<ServedModel>,
    /// Whether tenants use each other's states.
    shares: bool,
}

impl DriverPins {
    /// The states of a driver's ranks. `shares`: tenants use each other's.
    pub fn new(driver: DriverHandle, model: Arc<ServedModel>, shares: bool) -> Self {
        Self {
            driver,
            model,
            shares,
        }
    }

    /// The names of a log's states.
    fn chain(&self, state: &Pinned) -> Chain {
        let tenant = state.tenant.as_deref().filter(|_| !self.shares);
        let salt = Salt {
            tenant: tenant.unwrap_or_default(),
            ..Salt::default()
        };
        let root = self.model.snapshot_root(&state.contract, salt);
        Chain::of(&root, &state.tokens)
    }

    /// Bytes that were moved.
    async fn move_state(&self, state: &Pinned, what: Move) -> Result<u64, RequestError> {
        let chain = Arc::new(self.chain(state));
        match self.driver.move_state(chain, what).await {
            Ok(moved) => Ok(moved.bytes),
            // A state is only ever a shortcut.
            Err(MoveError::NotKept | MoveError::NoStore) => Ok(0),
            // The store is full. The state stays in memory, and leaves it when room is short.
            Err(MoveError::NoRoom) if what == Move::Suspend => Ok(0),
            Err(error @ (MoveError::NoRoom | MoveError::Failed(_) | MoveError::Ended)) => Err(
                RequestError::new(Reason::StoreUnavailable, error.to_string()),
            ),
        }
    }
}

#[async_trait]
impl Pins for DriverPins {
    async fn suspend(&self, state: &Pinned) -> Result<u64, RequestError> {
        self.move_state(state, Move::Suspend).await
    }

    async fn resume(&self, state: &Pinned) -> Result<u64, RequestError> {
        self.move_state(state, Move::Resume).await
    }

    fn links(&self, state: &Pinned) -> Arc<[u64]> {
        self.chain(state).links().collect()
    }

    async fn forget(&self, state: &Pinned, shared: usize) -> Result<(), RequestError> {
        let shared = shared as u64 * self.model.geometry.stride;
        let forgotten = self.move_state(state, Move::Forget { shared });
        let forgotten = timeout(FORGET_LIMIT, forgotten).await;
        forgotten.unwrap_or_else(|_| Err(still_kept())).map(|_| ())
    }
}

fn still_kept() -> RequestError {
    let message = "no worker group has said in time that it keeps nothing of it any more: try \
                   again when there is one";
    RequestError::new(Reason::StoreUnavailable, message)
}
