//! Which epoch a rank is in, and which join may end it.

use palimpsest_proto::internal::v1::{JoinRequest, Lead};
use tonic::Status;

/// A coordinator that takes over counts one term on: a rank that was away for that many, or begins
/// with so late a one, is asked by nobody who counts.
const MAX_TERM_STEP: u64 = 1 << 20;
/// Groups that may have formed since this rank joined one; a million a second for twelve days.
const MAX_EPOCH_STEP: u64 = 1 << 40;

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
        plausible("term", known.term, asked.term, MAX_TERM_STEP)?;
        plausible("epoch", self.epoch, request.epoch, MAX_EPOCH_STEP)
    }
}

/// Refuses a number after which nobody could count on: one `Join` in the largest term would keep
/// this rank from its coordinators for ever.
fn plausible(what: &str, known: u64, asked: u64, most: u64) -> Result<(), Status> {
    if asked.saturating_sub(known) <= most {
        return Ok(());
    }
    Err(Status::invalid_argument(format!(
        "{what} {asked} is more than {most} after {what} {known}: no coordinator has counted that \
         far"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn join(term: u64, epoch: u64) -> JoinRequest {
        JoinRequest {
            epoch,
            lead: Some(Lead {
                term,
                leader: "a".into(),
            }),
            ..JoinRequest::default()
        }
    }

    /// Whoever joined a rank in term or epoch u64::MAX had it for good.
    #[test]
    fn terms_and_epochs_that_nobody_has_counted_to_are_refused() {
        let standing = Standing {
            epoch: 7,
            lead: join(3, 7).lead.unwrap_or_default(),
        };
        standing.check(0, &join(3, 8)).expect("the next epoch");
        standing.check(0, &join(4, 8)).expect("the next term");
        standing
            .check(0, &join(3 + MAX_TERM_STEP, 7 + MAX_EPOCH_STEP))
            .expect("the last of both");
        for far in [
            join(u64::MAX, 8),
            join(4 + MAX_TERM_STEP, 8),
            join(4, u64::MAX),
            join(4, 8 + MAX_EPOCH_STEP),
        ] {
            let refused = standing.check(0, &far).expect_err("too far");
            assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{far:?}");
        }
        let fresh = Standing::default();
        fresh.check(0, &join(500, 90_000)).expect("an old cluster");
        fresh
            .check(0, &join(u64::MAX, 1))
            .expect_err("too far for a fresh rank as well");
    }
}
