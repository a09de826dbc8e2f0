//! Which epoch a rank is in, and which join may end it.

use palimpsest_proto::count::MAX_LEAP;
use palimpsest_proto::internal::v1::{JoinRequest, Lead};
use tonic::Status;

/// How far a rank follows at once that knows a term or an epoch. It is far less than a fresh rank
/// or a coordinator believes, so that a number taken here in error stops neither of them.
const MAX_STEP: u64 = 1 << 20;
/// How far a fresh rank follows, which may come to an old group. Coordinators believe twice as
/// much.
const MAX_FIRST_STEP: u64 = MAX_LEAP / 2;

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
        plausible("term", known.term, asked.term)?;
        plausible("epoch", self.epoch, request.epoch)
    }
}

/// Refuses a number after which nobody could count on: one `Join` in the largest term would keep
/// this rank from its coordinators for ever.
fn plausible(what: &str, known: u64, asked: u64) -> Result<(), Status> {
    let most = if known == 0 { MAX_FIRST_STEP } else { MAX_STEP };
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
            .check(0, &join(3 + MAX_STEP, 7 + MAX_STEP))
            .expect("the last of both");
        for far in [
            join(u64::MAX, 8),
            join(4 + MAX_STEP, 8),
            join(4, u64::MAX),
            join(4, 8 + MAX_STEP),
        ] {
            let refused = standing.check(0, &far).expect_err("too far");
            assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{far:?}");
        }
        let fresh = Standing::default();
        // A rank that starts in an old group believes more than one that was there.
        let old = join(2 + MAX_STEP, 2 + MAX_STEP);
        fresh.check(0, &old).expect("an old group");
        const { assert!(MAX_FIRST_STEP < MAX_LEAP) };
        fresh
            .check(0, &join(u64::MAX, 1))
            .expect_err("too far for a fresh rank as well");
    }
}
