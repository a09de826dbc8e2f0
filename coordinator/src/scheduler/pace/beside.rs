//! Which steps take how much of a prompt while other sequences decode.
//!
//! Two things are promised, each as a factor: the gap between two tokens of those that decode, over
//! what it is where nothing is read, and the time of reading, over what it takes alone. Steps of
//! one size cannot always keep both. Let a step without a prompt take `D` seconds, a prompt token
//! add `a` to it, and a prompt token read alone take `c`. With `n` tokens in every step,
//!
//! ```text
//! gap     = (D + n·a) / D
//! reading = (D + n·a) / (n·c)
//! ```
//! so a gap of 3 means a reading of 1.5·a/c at best, and `a` is more than `c` where `n` is small:
//! rows that are computed together share the weights. So reading is followed: seconds that pass
//! while it goes on are owed to it, and what is read is paid back at the price of `c` a token.
//!
//! - Where all that is owed fits into a step within the factor of gaps, every step pays it. This is
//!   so where weights dominate: a large model, or a GPU.
//! - Elsewhere at most one step of three is *long*. It pays for all three, with a piece that is
//!   large enough to be cheap, and the other two read nothing. So the median gap is that of
//!   undisturbed steps, and the mean gap is what the promise to reading costs. A long step lasts
//!   [`LONGEST`] undisturbed ones at most. It lasts as long where reading alone was not measured.
//!
//! What is measured is smoothed exponentially, because steps at boundaries evict and a machine has
//! other work.

use std::collections::BTreeMap;

/// Steps of which at most one is long. Of three, two are as undisturbed, so the median is.
const PERIOD: u32 = 3;
/// Undisturbed steps that a long one lasts at most, whatever is promised to reading: prompts take
/// 19 of 22 parts of the time then.
const LONGEST: f64 = 20.0;
/// Weight of the latest step in an average.
const LATEST: f64 = 0.25;
/// Pieces of this size are what reading alone is measured by; smaller ones count for less.
const WHOLE_PIECE: f64 = 256.0;
/// Steps with prompts after which one without is made, to measure it.
const STALE: u32 = 32;

/// What sequences that decode and prompts that are read owe each other. Both are factors over the
/// time alone, at least 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Company {
    /// Gap between two tokens in at least two of three steps.
    pub gap: f64,
    /// Time of reading a prompt, as far as steps of 20 times the undisturbed ones suffice.
    pub reading: f64,
}

impl Default for Company {
    fn default() -> Self {
        Self {
            gap: 3.0,
            reading: 1.4,
        }
    }
}

/// What a step does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::scheduler) struct Work {
    /// Tokens of prompts.
    pub(in crate::scheduler) prefill: u64,
    /// Sequences that decode.
    pub(in crate::scheduler) decodes: u64,
    /// Some prompt waited to be read, whether or not the step took any of it.
    pub(in crate::scheduler) is_reading: bool,
}

/// What was measured, and what is owed.
#[derive(Debug)]
pub(super) struct Beside {
    company: Company,
    /// Seconds of a step without a prompt, by the number of sequences that decode in it.
    undisturbed: BTreeMap<u64, f64>,
    /// Steps with prompts since the last one without.
    age: u32,
    /// Seconds that a prompt token adds where others decode.
    added: Option<f64>,
    /// Seconds of a prompt token where nobody decodes.
    alone: Option<f64>,
    /// Seconds of reading alone that prompts are owed.
    owed: f64,
    /// Steps since the last long one, with it.
    since_long: u32,
}

impl Beside {
    pub(super) const fn new(company: Company) -> Self {
        Self {
            company,
            undisturbed: BTreeMap::new(),
            age: 0,
            added: None,
            alone: None,
            owed: 0.0,
            since_long: PERIOD,
        }
    }

    pub(super) fn forget(&mut self) {
        *self = Self::new(self.company);
    }

    /// Seconds of a step without a prompt in which so many decode: as measured, or as it took with
    /// fewer, or with more where nothing else is known. 0 where nothing is, or nobody decodes.
    pub(super) fn undisturbed(&self, decodes: u64) -> f64 {
        if decodes == 0 {
            return 0.0;
        }
        let fewer = self.undisturbed.range(..=decodes).next_back();
        let near = fewer.or_else(|| self.undisturbed.first_key_value());
        near.map_or(0.0, |(_, &seconds)| seconds)
    }

    /// Tokens of the next step, in which so many decode and which takes `most` prompt tokens at
    /// most; `None`: no prompt. As few as may be where that is not known yet.
    pub(super) fn wanted(&self, decodes: u64, most: u64) -> Option<f64> {
        if self.age >= STALE {
            return None;
        }
        let (Some(added), false) = (self.added, self.undisturbed.is_empty()) else {
            return (self.since_long >= PERIOD).then_some(0.0);
        };
        let undisturbed = self.undisturbed(decodes);
        let longest = (LONGEST - 1.0) * undisturbed / added;
        let due = self.due(added, undisturbed).min(longest).min(most as f64);
        let is_short = undisturbed + due * added <= self.company.gap * undisturbed;
        (is_short || self.since_long >= PERIOD).then_some(due)
    }

    /// Tokens of a step for which others wait, who decode in the next one.
    pub(super) fn piece(&self) -> f64 {
        let longest = |added: f64| (LONGEST - 1.0) * self.undisturbed(1) / added;
        self.added.map_or(0.0, longest)
    }

    /// Takes a step in. `is_telling`: it has enough prompt tokens to tell what one takes.
    pub(super) fn observe(&mut self, work: Work, seconds: f64, is_telling: bool) {
        if work.decodes == 0 {
            self.owed = 0.0;
            if is_telling {
                let tokens = work.prefill as f64;
                let weight = tokens / (tokens + WHOLE_PIECE);
                self.alone = Some(blended(self.alone, seconds / tokens, weight));
            }
            return;
        }
        if work.prefill == 0 {
            let known = self.undisturbed.get(&work.decodes).copied();
            let average = blended(known, seconds, LATEST);
            self.undisturbed.insert(work.decodes, average);
            self.age = 0;
        } else {
            self.age += 1;
        }
        if !work.is_reading {
            (self.owed, self.since_long) = (0.0, PERIOD);
            return;
        }
        let undisturbed = self.undisturbed(work.decodes);
        if is_telling {
            let added = (seconds - undisturbed).max(0.0) / work.prefill as f64;
            self.added = Some(blended(self.added, added, LATEST));
        }
        let read = work.prefill as f64 * self.alone.unwrap_or(0.0);
        self.owed = (self.owed + seconds / self.company.reading - read).max(0.0);
        let is_long = work.prefill > 0 && seconds > self.company.gap * undisturbed;
        self.since_long = if is_long {
            1
        } else {
            self.since_long.saturating_add(1)
        };
    }

    /// Lets no more be owed than `most` seconds: what a machine cannot do is not made up for.
    pub(super) const fn settle(&mut self, most: f64) {
        self.owed = self.owed.min(most);
    }

    /// Tokens that pay what is owed, and for the step itself; any number where none does.
    fn due(&self, added: f64, undisturbed: f64) -> f64 {
        let reading = self.company.reading;
        let gained = self.alone.unwrap_or(0.0) - added / reading;
        let owed = self.owed + undisturbed / reading;
        if gained > 0.0 {
            owed / gained
        } else {
            f64::MAX
        }
    }
}

/// An average that a value moves by `weight` of the way.
fn blended(average: Option<f64>, value: f64, weight: f64) -> f64 {
    let before = average.unwrap_or(value);
    before + weight * (value - before)
}

#[cfg(test)]
mod tests;
