//! Which epoch a rank is in, and which join may end it.

use palimpsest_proto::internal::v1::{JoinRequest, Lead};
use tonic::Status;

/// Which epoch this rank joined last, and whose.
#[derive(Clone, Debug, Default)]
pub(super) struct Standing {
    pub epoch: u64,
    pub lead: Lead,
}

impl Standing {
    /// Whether `request` may end this epoch: it is of whoever leads, and of a later epoch.
    pub fn check(&self, rank: usize, request: &JoinRequest) -> Result<(), Status> {
        let (known, asked) = (&self.lead, request.lead.clone().unwrap_or_default());
        if asked.term < known.term
            || (asked.term == known.term && asked.leader != known.leader && known.term > 0)
        {
            let message = format!(
                "rank {rank} follows another coordinator, of term {}; this is term {}",
                known.term, asked.term
            );
            return Err(Status::failed_precondition(message));
        }
        if request.epoch <= self.epoch {
            let message = format!(
                "rank {rank} is in epoch {}; epoch {} is stale",
                self.epoch, request.epoch
            );
            return Err(Status::failed_precondition(message));
        }
        Ok(())
    }
}
