//! Sums of what lies on a device, on the stream that asks for them.
//!
//! NCCL's call returns before the sum is on the stream, so it is polled until then: what is put
//! there next has to come behind. Nobody waits here for the sum itself. Who waits for the stream
//! asks [`DeviceSums::check`], which ends the communicator when its deadline has passed or NCCL
//! reports an error, and with it the kernel that the stream hangs in.

use std::sync::PoisonError;
use std::time::Instant;

use palimpsest_kernels::sums::{DeviceSums, Summand};
use palimpsest_kernels::{Error, Result};

use super::NcclCollective;
use super::api::{Api, Operation};
use crate::communicator::{Collective, CollectiveError};

fn failed(error: CollectiveError) -> Error {
    Error::Sums(Box::new(error))
}

impl<A: Api> NcclCollective<A> {
    fn deadline(&self) -> Instant {
        *self.deadline.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, mut summand: Summand<'_>) -> std::result::Result<(), CollectiveError> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        self.with(|api, comm| api.enqueue(comm, &mut summand))?;
        self.wait(Operation::AllReduce.name(), self.deadline())?;
        self.with(|api, comm| api.complete(comm, &mut summand))
    }
}

impl<A: Api> DeviceSums for NcclCollective<A> {
    fn set_deadline(&self, deadline: Instant) {
        *self.deadline.lock().unwrap_or_else(PoisonError::into_inner) = deadline;
    }

    fn all_reduce(&self, summand: Summand<'_>) -> Result<()> {
        self.put(summand).map_err(failed)
    }

    fn check(&self) -> Result<()> {
        self.with(|api, comm| api.poll(comm)).map_err(failed)?;
        if Instant::now() < self.deadline() {
            return Ok(());
        }
        let (operation, missing) = (Operation::AllReduce.name(), "unknown to NCCL".into());
        Err(failed(
            self.fail(CollectiveError::Deadline { operation, missing }),
        ))
    }

    fn gather(&self, word: u64) -> Result<Vec<u64>> {
        let mut all = vec![0; self.place.world_size];
        let bytes = bytemuck::cast_slice_mut(&mut all);
        self.all_gather(bytemuck::bytes_of(&word), bytes, self.deadline())
            .map_err(failed)?;
        Ok(all)
    }
}
