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

use std::time::Duration;

use super::plan::TokenBudget;

/// Prompt tokens that a step may take however slow the machine is, unless less is configured.
const LEAST_TOKENS: u64 = 16;
/// What prompts may add to a step in which others decode, as a share of the target.
const BUSY_SHARE: f64 = 0.25;
/// Targets that a step may be expected to last with all that is in it.
const MOST_TARGETS: f64 = 4.0;

/// What a step does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Work {
    /// Tokens of prompts.
    pub(super) prefill: u64,
    /// Sequences that decode.
    pub(super) decodes: u64,
}

/// Sizes the steps of one group.
#[derive(Debug)]
pub(super) struct Pace {
    most: TokenBudget,
    /// Seconds for the prompts of a step in which nobody decodes.
    target: f64,
    cost: Option<Cost>,
    /// Seconds of the last step without a prompt.
    decoding: f64,
}

/// Seconds of a prompt token, each an estimate from above.
#[derive(Debug, Clone, Copy)]
struct Cost {
    /// What it adds to a step.
    added: f64,
    /// The whole step's seconds for each of its prompt tokens.
    whole: f64,
}

impl Pace {
    /// The pace of a group that is not known yet.
    pub(super) const fn new(most: TokenBudget, target: Duration) -> Self {
        Self {
            most,
            target: target.as_secs_f64(),
            cost: None,
            decoding: 0.0,
        }
    }

    /// Forgets what was measured: another group may be another machine.
    pub(super) const fn forget(&mut self) {
        (self.cost, self.decoding) = (None, 0.0);
    }

    /// Prompt tokens that the next step may take. `busy`: others wait for their next token.
    pub(super) fn allowance(&self, busy: bool) -> u64 {
        let (most, share) = if busy {
            (self.most.busy, BUSY_SHARE)
        } else {
            (self.most.idle, 1.0)
        };
        let least = LEAST_TOKENS.min(most);
        let Some(Cost { added, whole }) = self.cost else {
            return least;
        };
        let tokens = (share * self.target / added).min(MOST_TARGETS * self.target / whole);
        // A step that took no time allows for any number: the cast ends at the largest.
        (tokens as u64).clamp(least, most)
    }

    /// Takes in how many `seconds` a step took.
    pub(super) fn observe(&mut self, work: Work, seconds: f64) {
        if work.prefill == 0 {
            if work.decodes > 0 {
                self.decoding = seconds;
            }
            return;
        }
        // Of a few tokens one learns what a step takes, and not what a token does.
        let telling = LEAST_TOKENS.min(self.most.busy).min(self.most.idle);
        if work.prefill < telling && self.cost.is_some() {
            return;
        }
        let anyhow = if work.decodes > 0 { self.decoding } else { 0.0 };
        let tokens = work.prefill as f64;
        self.cost = Some(Cost {
            added: (seconds - anyhow).max(0.0) / tokens,
            whole: seconds / tokens,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: TokenBudget = TokenBudget {
        busy: 256,
        idle: 1024,
    };

    /// Seconds of a step on some machine.
    struct Machine {
        step: f64,
        prompt_token: f64,
        decode: f64,
    }

    impl Machine {
        fn seconds(&self, work: Work) -> f64 {
            self.step + work.prefill as f64 * self.prompt_token + work.decodes as f64 * self.decode
        }
    }

    /// Prompt tokens of the first steps on a machine where so many decode, and the longest step.
    fn sizes(machine: &Machine, decodes: u64) -> (Vec<u64>, f64) {
        let mut pace = Pace::new(MOST, Duration::from_secs(1));
        let alone = Work {
            prefill: 0,
            decodes,
        };
        if decodes > 0 {
            pace.observe(alone, machine.seconds(alone));
        }
        let mut longest = 0.0f64;
        let mut sizes = Vec::new();
        for _ in 0..8 {
            let prefill = pace.allowance(decodes > 0);
            let work = Work { prefill, decodes };
            let seconds = machine.seconds(work);
            longest = longest.max(seconds);
            pace.observe(work, seconds);
            sizes.push(prefill);
        }
        (sizes, longest)
    }

    #[test]
    fn a_slow_machine_never_comes_near_the_limit_of_a_step() {
        // 200 s for 1,024 tokens.
        let machine = Machine {
            step: 0.5,
            prompt_token: 200.0 / 1024.0,
            decode: 0.4,
        };
        for decodes in [0, 1, 16] {
            let (sizes, longest) = sizes(&machine, decodes);
            assert!(longest < 12.0, "{longest} s with {decodes} decoding");
            assert!(sizes.iter().all(|&size| size == 16), "{sizes:?}");
        }
    }

    #[test]
    fn a_fast_machine_takes_all_that_is_configured_after_its_first_step() {
        let machine = Machine {
            step: 0.01,
            prompt_token: 0.0001,
            decode: 0.0002,
        };
        assert_eq!(sizes(&machine, 0).0[..3], [16, 1024, 1024]);
        assert_eq!(sizes(&machine, 8).0[..3], [16, 256, 256]);
    }

    #[test]
    fn steps_come_to_last_what_they_may() {
        let machine = Machine {
            step: 0.1,
            prompt_token: 0.003,
            decode: 0.01,
        };
        let (idle, longest) = sizes(&machine, 0);
        assert!(longest <= 1.0 && idle[3] > 280, "{longest} s, {idle:?}");
        // Those that decode take 0.14 s anyhow; a quarter of the target is added to that.
        let (busy, longest) = sizes(&machine, 4);
        assert!(longest <= 0.39 && busy[3] > 80, "{longest} s, {busy:?}");
    }

    #[test]
    fn where_a_step_takes_long_anyhow_prompts_are_still_read() {
        // A token that decodes costs half a second, a prompt token little beside it.
        let machine = Machine {
            step: 0.5,
            prompt_token: 0.001,
            decode: 0.0,
        };
        let (sizes, longest) = sizes(&machine, 1);
        assert!(sizes[3] > 200, "{sizes:?}");
        assert!(longest < 1.0, "{longest} s");
    }

    #[test]
    fn a_few_tokens_and_one_that_decodes_tell_nothing_and_a_slow_step_counts_at_once() {
        let mut pace = Pace::new(MOST, Duration::from_secs(1));
        let prefill = |prefill| Work {
            prefill,
            decodes: 0,
        };
        pace.observe(prefill(1), 3.0);
        assert_eq!(pace.allowance(false), 16, "the first step of all");
        pace.observe(prefill(16), 0.02);
        assert_eq!(pace.allowance(false), 800);
        pace.observe(prefill(3), 0.9);
        assert_eq!(pace.allowance(false), 800);
        pace.observe(prefill(400), 4.0);
        assert_eq!(pace.allowance(false), 100);
        // Though those that decoded took longer before: the whole step bounds what is believed.
        let both = Work {
            prefill: 16,
            decodes: 1,
        };
        let alone = Work {
            prefill: 0,
            decodes: 16,
        };
        pace.observe(alone, 3.2);
        pace.observe(both, 3.1);
        assert!(pace.allowance(true) <= 20, "{}", pace.allowance(true));
        pace.forget();
        assert_eq!(pace.allowance(false), 16, "another group");
    }

    #[test]
    fn less_than_the_least_may_be_configured() {
        let most = TokenBudget { busy: 1, idle: 4 };
        let mut pace = Pace::new(most, Duration::from_secs(1));
        assert_eq!((pace.allowance(true), pace.allowance(false)), (1, 4));
        let work = Work {
            prefill: 4,
            decodes: 0,
        };
        pace.observe(work, 0.0);
        assert_eq!((pace.allowance(true), pace.allowance(false)), (1, 4));
    }
}
