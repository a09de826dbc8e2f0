//! Which epoch comes next, after what ranks and registry say of the last one.

use palimpsest_proto::count::{can_follow, next};
use palimpsest_proto::internal::v1::RankInfo;

use crate::ids::Epoch;

/// A number that nobody can have counted to. It is not believed, so that one wrong word, of whoever
/// can write to the registry or reach a rank's port, does not stop a group for good.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{who} says that the last {what} was {found}, though {known} is known here: {repair}")]
pub struct Implausible {
    /// Who says so.
    pub who: String,
    /// `epoch` or `term`.
    pub what: &'static str,
    /// The number.
    pub found: u64,
    /// The last one that this coordinator knows of itself.
    pub known: u64,
    /// What an operator can do.
    pub repair: &'static str,
}

/// What to do with a rank that tells such a number.
const RESTART: &str = "restart that rank, and keep all but its coordinator from its port";
/// What to do with a registry that does.
const DELETE: &str = "delete the key `epoch` of the group in the registry, and see who wrote it";
/// What to do where all have counted as far as one can.
const RENEW: &str = "start the group anew, all of its ranks and this coordinator";

/// The epoch after all that are told, where `known` was the last one of this coordinator.
pub(super) fn next_epoch(
    known: u64,
    ranks: &[RankInfo],
    registry: u64,
) -> Result<Epoch, Implausible> {
    let implausible = |who: String, found, repair| Implausible {
        who,
        what: "epoch",
        found,
        known,
        repair,
    };
    if !can_follow(registry, known) {
        return Err(implausible("the registry".into(), registry, DELETE));
    }
    let mut last = known.max(registry);
    for (rank, info) in ranks.iter().enumerate() {
        if !can_follow(info.epoch, known) {
            return Err(implausible(rank_name(rank), info.epoch, RESTART));
        }
        last = last.max(info.epoch);
    }
    let epoch = next(last).ok_or_else(|| implausible("this process".into(), last, RENEW))?;
    Ok(Epoch(epoch))
}

/// The last term that ranks follow, where `known` is this coordinator's own.
pub(super) fn last_term(known: u64, ranks: &[RankInfo]) -> Result<u64, Implausible> {
    let mut last = 0;
    for (rank, info) in ranks.iter().enumerate() {
        let found = info.lead.as_ref().map_or(0, |lead| lead.term);
        if !can_follow(found, known) {
            return Err(Implausible {
                who: rank_name(rank),
                what: "term",
                found,
                known,
                repair: RESTART,
            });
        }
        last = last.max(found);
    }
    Ok(last)
}

fn rank_name(rank: usize) -> String {
    format!("rank {rank}")
}

#[cfg(test)]
mod tests {
    use palimpsest_proto::internal::v1::Lead;

    use super::*;

    fn in_epoch(epoch: u64) -> RankInfo {
        RankInfo {
            epoch,
            ..RankInfo::default()
        }
    }

    #[test]
    fn the_next_epoch_is_later_than_all_that_are_told() {
        let ranks = [in_epoch(4), in_epoch(0)];
        assert_eq!(next_epoch(0, &ranks, 0), Ok(Epoch(5)));
        assert_eq!(next_epoch(0, &ranks, 9), Ok(Epoch(10)));
        assert_eq!(next_epoch(12, &ranks, 9), Ok(Epoch(13)));
    }

    /// The sum wrapped, and no epoch was later than that any more.
    #[test]
    fn a_number_that_nobody_can_have_counted_to_is_refused_and_its_source_is_named() {
        let ranks = [in_epoch(4), in_epoch(u64::MAX)];
        let said = next_epoch(4, &ranks, 0).expect_err("a rank").to_string();
        assert!(said.contains("rank 1 says that the last epoch was 18446744073709551615"));
        assert!(said.contains("restart that rank"), "{said}");
        let said = next_epoch(4, &ranks[..1], 1 << 33).expect_err("the registry");
        assert!(
            said.to_string().contains("delete the key `epoch`"),
            "{said}"
        );
        assert!(
            next_epoch(u64::MAX, &[], 0).is_err(),
            "nothing comes after it"
        );
        let following = RankInfo {
            lead: Some(Lead {
                term: u64::MAX,
                leader: "another".into(),
            }),
            ..in_epoch(4)
        };
        let said = last_term(1, &[following]).expect_err("a rank").to_string();
        assert!(
            said.contains("rank 0 says that the last term was"),
            "{said}"
        );
    }
}
