//! Which of several coordinators a group follows.
//!
//! ```text
//! leader A, term 1 ──────── stopped, cut off ──────────── wakes: Join(term 1) refused ─▶ ends
//! standby B                    takes the claim: Join(term 2) ─▶ leads
//! ```
//! A claim in the registry says who may lead, and runs out while its holder knows nothing of it:
//! the holder's process is stopped, or cut off from the registry alone. So the ranks decide: each
//! follows the largest term it has heard of. A coordinator takes a term larger than all of them
//! once, for its first group, and never again.

use palimpsest_proto::internal::v1::{self as wire, RankInfo};

/// A coordinator's lead over a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lead {
    /// Tells this process from others.
    leader: String,
    /// `None` before its first group has formed.
    term: Option<u64>,
}

impl Lead {
    /// The lead of a coordinator that has not formed a group yet.
    pub fn new() -> Self {
        Self {
            leader: format!("{:016x}", rand::random::<u64>()),
            term: None,
        }
    }

    /// What to ask ranks to join under, or the term of the coordinator that has taken over.
    pub(super) fn over(&self, ranks: &[RankInfo]) -> Result<wire::Lead, u64> {
        let followed = ranks.iter().filter_map(|rank| rank.lead.as_ref());
        let last = followed.clone().map(|lead| lead.term).max().unwrap_or(0);
        let Some(term) = self.term else {
            return Ok(self.in_term(last + 1));
        };
        let is_mine = |lead: &wire::Lead| {
            lead.term < term || (lead.term == term && lead.leader == self.leader)
        };
        if followed.clone().all(is_mine) {
            Ok(self.in_term(term))
        } else {
            Err(last)
        }
    }

    /// Its first group has formed under `lead`, or another one.
    pub(super) fn taken(&mut self, lead: &wire::Lead) {
        self.term = Some(lead.term);
    }

    fn in_term(&self, term: u64) -> wire::Lead {
        wire::Lead {
            term,
            leader: self.leader.clone(),
        }
    }
}

impl Default for Lead {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn following(lead: &wire::Lead) -> RankInfo {
        RankInfo {
            lead: Some(lead.clone()),
            ..RankInfo::default()
        }
    }

    #[test]
    fn the_last_to_take_the_lead_has_it() {
        let (mut first, mut second) = (Lead::new(), Lead::new());
        let ranks = [RankInfo::default(), RankInfo::default()];
        let led = first.over(&ranks).expect("nobody leads");
        assert_eq!(led.term, 1);
        first.taken(&led);
        let ranks = [following(&led), RankInfo::default()];
        assert_eq!(
            first.over(&ranks).as_ref(),
            Ok(&led),
            "one of its ranks was started anew"
        );
        let next = second.over(&ranks).expect("it takes over");
        assert_eq!(next.term, 2);
        second.taken(&next);
        let ranks = [following(&led), following(&next)];
        assert_eq!(first.over(&ranks), Err(2));
        assert_eq!(second.over(&ranks), Ok(next));
        // Where all ranks were started anew, a term may be taken twice; the first one to join them
        // has it.
        let mut third = Lead::new();
        let again = third.over(&[RankInfo::default()]).expect("nobody leads");
        third.taken(&again);
        assert_eq!(first.over(&[following(&again)]), Err(1));
    }
}
