//! Kept states of sessions: where they are is the driver's to change.

use std::sync::Arc;

use async_trait::async_trait;
use palimpsest_proto::error::{Reason, RequestError};

use crate::driver::{DriverHandle, Move, MoveError};
use crate::model::ServedModel;
use crate::sessions::pins::{Pinned, Pins};
use crate::snapshots::{Chain, Salt};

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

    /// Bytes that were moved.
    async fn move_state(&self, state: &Pinned, what: Move) -> Result<u64, RequestError> {
        let tenant = state.tenant.as_deref().filter(|_| !self.shares);
        let salt = Salt {
            tenant: tenant.unwrap_or_default(),
            ..Salt::default()
        };
        let root = self.model.snapshot_root(&state.contract, salt);
        let chain = Arc::new(Chain::of(&root, &state.tokens));
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

    async fn forget(&self, state: &Pinned) -> Result<(), RequestError> {
        self.move_state(state, Move::Forget).await.map(|_| ())
    }
}
