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

use palimpsest_proto::count::next;
use palimpsest_proto::internal::v1::{self as wire, RankInfo};

use super::succession::{Implausible, last_term};
use crate::ids::Epoch;

/// A coordinator's lead over a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lead {
    /// Tells this process from others.
    leader: String,
    /// `None` before its first group has formed.
    term: Option<u64>,
    /// The epoch of its last group; 0 before the first.
    epoch: u64,
}

/// Why a coordinator may not lead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum NoLead {
    /// The ranks follow another coordinator, of this term.
    Superseded(u64),
    /// A rank follows a term that nobody can have taken.
    Implausible(Implausible),
}

impl Lead {
    /// The lead of a coordinator that has not formed a group yet.
    pub fn new() -> Self {
        Self {
            leader: format!("{:016x}", rand::random::<u64>()),
            term: None,
            epoch: 0,
        }
    }

    /// What to ask ranks to join under, if they follow it.
    pub(super) fn over(&self, ranks: &[RankInfo]) -> Result<wire::Lead, NoLead> {
        let known = self.term.unwrap_or(0);
        let last = last_term(known, ranks).map_err(NoLead::Implausible)?;
        let Some(term) = self.term else {
            return Ok(self.in_term(next(last).ok_or(NoLead::Superseded(last))?));
        };
        let is_mine = |lead: &wire::Lead| {
            lead.term < term || (lead.term == term && lead.leader == self.leader)
        };
        if ranks
            .iter()
            .filter_map(|rank| rank.lead.as_ref())
            .all(is_mine)
        {
            Ok(self.in_term(term))
        } else {
            Err(NoLead::Superseded(last))
        }
    }

    /// Its first group has met under `lead`, or another one.
    pub(super) fn taken(&mut self, lead: &wire::Lead, epoch: Epoch) {
        self.term = Some(lead.term);
        self.epoch = epoch.0;
    }

    /// The epoch of its last group; 0 before the first.
    pub(super) const fn last_epoch(&self) -> u64 {
        self.epoch
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
        first.taken(&led, Epoch(1));
        let ranks = [following(&led), RankInfo::default()];
        assert_eq!(
            first.over(&ranks).as_ref(),
            Ok(&led),
            "one of its ranks was started anew"
        );
        let next = second.over(&ranks).expect("it takes over");
        assert_eq!(next.term, 2);
        second.taken(&next, Epoch(2));
        let ranks = [following(&led), following(&next)];
        assert_eq!(first.over(&ranks), Err(NoLead::Superseded(2)));
        assert_eq!(second.over(&ranks), Ok(next));
        // Where all ranks were started anew, a term may be taken twice; the first one to join them
        // has it.
        let mut third = Lead::new();
        let again = third.over(&[RankInfo::default()]).expect("nobody leads");
        third.taken(&again, Epoch(3));
        assert_eq!(first.over(&[following(&again)]), Err(NoLead::Superseded(1)));
    }
}
