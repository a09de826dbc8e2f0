//! How many prompt tokens a step may take, from the seconds that the steps before it took.
//!
//! ```text
//! seconds of a step = what it takes anyhow (weights, those that decode) + prompt tokens × added
//! ```
//! A prompt is cut as one likes without a change of its state, so the size of a step is a matter of
//! time alone. A group that is not known yet starts with few tokens. What a step of them takes
//! bounds what a token costs from above, so the next step may take as many as fit the target at
//! that cost, and after three or four steps the size is right: at most what is configured on a fast
//! machine, and far from the limit of a step on a slow one.
//!
//! Where nobody decodes, that is all. Where somebody does, [`beside`] says how much is read and in
//! which steps.

mod beside;
#[cfg(test)]
mod tests;

use std::time::Duration;

use self::beside::Beside;
pub use self::beside::Company;
pub(super) use self::beside::Work;
use super::plan::TokenBudget;

/// Prompt tokens that a step may take however slow the machine is, unless less is configured.
const LEAST_TOKENS: u64 = 16;
/// Targets that a step may be expected to last with all that is in it.
const MOST_TARGETS: f64 = 4.0;
/// A step that lasts this many times what it takes anyhow gains little from another prompt.
const ENOUGH: f64 = 8.0;

/// For whom a step is sized.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Who {
    /// Nobody decodes.
    Nobody,
    /// So many sequences decode, at least one of them in this step.
    InStep(u64),
    /// Sequences decode, none of them in this step: they wait for its end.
    Waiting,
}

/// Sizes the steps of one group.
#[derive(Debug)]
pub(super) struct Pace {
    most: TokenBudget,
    /// Seconds for the prompts of a step in which nobody decodes.
    target: f64,
    cost: Option<Cost>,
    /// Seconds of the last step of fewer than [`LEAST_TOKENS`] tokens: those that hardly depend on
    /// its tokens.
    smallest: Option<f64>,
    beside: Beside,
}

/// Seconds of a prompt token, each an estimate from above.
#[derive(Debug, Clone, Copy)]
struct Cost {
    /// What it adds to a step.
    added: f64,
    /// The whole step's seconds for each of its prompt tokens.
    whole: f64,
    /// What it adds to the smallest of steps; 0 while that is not known.
    more: f64,
}

impl Pace {
    /// The pace of a group that is not known yet.
    pub(super) const fn new(most: TokenBudget, target: Duration, company: Company) -> Self {
        Self {
            most,
            target: target.as_secs_f64(),
            cost: None,
            smallest: None,
            beside: Beside::new(company),
        }
    }

    /// Forgets what was measured: another group may be another machine.
    pub(super) fn forget(&mut self) {
        (self.cost, self.smallest) = (None, None);
        self.beside.forget();
    }

    /// Prompt tokens that the next step may take. 0 only where somebody decodes in it.
    pub(super) fn allowance(&self, who: Who) -> u64 {
        let most = match who {
            Who::Nobody => self.most.idle,
            Who::InStep(_) | Who::Waiting => self.most.busy,
        };
        let least = LEAST_TOKENS.min(most);
        let wanted = match who {
            Who::Nobody => f64::INFINITY,
            Who::InStep(decodes) => match self.beside.wanted(decodes, most) {
                Some(wanted) => wanted,
                None => return 0,
            },
            Who::Waiting => self.beside.piece(),
        };
        let Some(Cost { added, whole, .. }) = self.cost else {
            return least;
        };
        let fitting = (self.target / added).min(MOST_TARGETS * self.target / whole);
        // A step that took no time allows for any number: the cast ends at the largest.
        (fitting.min(wanted) as u64).clamp(least, most)
    }

    /// Prompt tokens of a step after which another prompt gains nothing from sharing it, so that
    /// one that is first in order is done first. At least 1.
    pub(super) fn enough(&self) -> u64 {
        let (Some(smallest), Some(cost)) = (self.smallest, self.cost) else {
            return u64::MAX;
        };
        if cost.more <= 0.0 {
            return u64::MAX;
        }
        ((ENOUGH * smallest / cost.more) as u64).max(1)
    }

    /// Takes in how many `seconds` a step took.
    pub(super) fn observe(&mut self, work: Work, seconds: f64) {
        if work.prefill + work.decodes == 0 {
            // A plan that only releases, asks what was done in the background, or waits for guides.
            return;
        }
        // Of a few tokens one learns what a step takes, and not what a token does.
        let telling = LEAST_TOKENS.min(self.most.busy).min(self.most.idle);
        let is_telling = work.prefill >= telling;
        if !is_telling && work.prefill + work.decodes < LEAST_TOKENS {
            self.smallest = Some(seconds);
        }
        if work.prefill > 0 && (is_telling || self.cost.is_none()) {
            let undisturbed = self.beside.undisturbed(work.decodes);
            let smallest = self.smallest.unwrap_or(seconds);
            let tokens = work.prefill as f64;
            self.cost = Some(Cost {
                added: (seconds - undisturbed).max(0.0) / tokens,
                whole: seconds / tokens,
                more: (seconds - smallest).max(0.0) / tokens,
            });
        }
        self.beside.observe(work, seconds, is_telling);
        self.beside.settle(self.target);
    }
}
