//! What lost groups say of a sequence that was in their last step.
//!
//! A step that breaks a group names nobody, so all of its sequences are suspects. Once may be
//! chance: they are replayed together. A sequence that was there `max_replays` times is replayed
//! alone, that is in steps of its own, which take turns with the steps of the others. There it
//! either breaks the group, and is the one to end, or it passes the place at which the group was
//! lost, and joins the others again: its state is a function of its tokens, so that place was not
//! its doing. If it is a suspect once more, it stays alone to its end. So a sequence that only
//! shared steps with another one that breaks groups is slowed down and never ended, and `n`
//! sequences lose at most `n × (max_replays + 2)` groups.

/// A sequence's record.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Suspicion {
    /// Groups that were lost in a step with the sequence.
    losses: u32,
    /// Tokens that it had with the furthest of these steps.
    place: u64,
    /// It passed that place alone.
    is_cleared: bool,
}

impl Suspicion {
    /// A group was lost in a step after which the sequence would have had so many tokens.
    pub(super) const fn lose(&mut self, tokens: u64) {
        self.losses = self.losses.saturating_add(1);
        // Who was lost at an earlier place since has still to pass the later one.
        if tokens > self.place {
            self.place = tokens;
        }
        self.is_cleared = false;
    }

    /// It has come so far, in a step of its own.
    pub(super) const fn pass(&mut self, tokens: u64) {
        self.is_cleared |= tokens >= self.place;
    }

    /// Groups that were lost in a step with the sequence.
    pub(super) const fn losses(&self) -> u32 {
        self.losses
    }

    /// Whether it may share no step.
    pub(super) const fn stands_alone(&self, max_replays: u32) -> bool {
        self.losses > 0
            && self.losses >= max_replays
            && (self.losses > max_replays || !self.is_cleared)
    }

    /// Whether it has had all its replays, the last of them alone.
    pub(super) const fn is_proven(&self, max_replays: u32) -> bool {
        self.losses > max_replays
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A chance loss on the way back to the place that broke the group cleared it too early.
    #[test]
    fn the_furthest_place_is_the_one_to_pass() {
        let mut one = Suspicion::default();
        one.lose(100);
        one.lose(10);
        one.pass(10);
        assert!(one.stands_alone(2));
        one.pass(100);
        assert!(!one.stands_alone(2));
    }

    #[test]
    fn twice_alone_until_it_has_passed_and_once_more_for_good() {
        let mut one = Suspicion::default();
        assert!(!one.stands_alone(0) && !one.stands_alone(2));
        one.lose(40);
        assert!(!one.stands_alone(2));
        one.lose(40);
        assert!(one.stands_alone(2) && !one.is_proven(2));
        one.pass(39);
        assert!(one.stands_alone(2));
        one.pass(40);
        assert!(!one.stands_alone(2));
        one.lose(60);
        one.pass(60);
        assert!(one.stands_alone(2) && one.is_proven(2));
    }
}
