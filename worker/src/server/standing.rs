//! Which epoch a rank is in, and which join may end it.

use palimpsest_proto::count::can_follow;
use palimpsest_proto::internal::v1::{JoinRequest, Lead};
use tonic::Status;

/// Which epoch this rank joined last, and whose.
#[derive(Clone, Debug, Default)]
pub(super) struct Standing {
    pub epoch: u64,
    pub lead: Lead,
}

impl Standing {
    /// Whether `request` may end this epoch: it is of whoever leads, and of a later epoch, that one
    /// can have counted to.
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
        // One that was started anew knows of none.
        if self.epoch > 0 && !can_follow(request.epoch, self.epoch) {
            return Err(cannot_be_next(rank, "epoch", request.epoch));
        }
        if known.term > 0 && !can_follow(asked.term, known.term) {
            return Err(cannot_be_next(rank, "term", asked.term));
        }
        Ok(())
    }
}

fn cannot_be_next(rank: usize, what: &str, asked: u64) -> Status {
    Status::failed_precondition(format!(
        "{what} {asked} cannot be the next one of rank {rank}: does something else than its \
         coordinator reach its port?"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asks(epoch: u64, term: u64) -> JoinRequest {
        let lead = Lead {
            term,
            leader: "a".into(),
        };
        JoinRequest {
            epoch,
            lead: Some(lead),
            ..JoinRequest::default()
        }
    }

    /// One such call and the rank refused its own coordinator for ever.
    #[test]
    fn no_call_takes_a_rank_to_where_nobody_can_follow() {
        let standing = Standing {
            epoch: 7,
            lead: asks(7, 2).lead.unwrap_or_default(),
        };
        assert!(standing.check(0, &asks(8, 2)).is_ok());
        for (asked, what) in [(asks(u64::MAX, 2), "epoch"), (asks(8, u64::MAX), "term")] {
            let refused = standing.check(0, &asked).expect_err(what);
            assert!(
                refused
                    .message()
                    .starts_with(&format!("{what} 18446744073709551615")),
                "{refused}"
            );
        }
    }
}
