//! How the tokens after the pieces of a step are chosen, of which a part is not known before the
//! device has its work.
//!
//! A mask that is late holds nobody up: its choice is left out of the step, and the step ends
//! without it. Its logits come back instead, so that a later step makes the same choice. The ranks
//! of a group may have a mask at different times, so they agree: what is late on one is late on
//! all.

use std::time::{Duration, Instant};

use palimpsest_guide::{Error, Mask};
use palimpsest_kernels::sample::SampleItem;

use crate::cancel::Cancel;
use crate::error::Result;
use crate::guides::Pending;
use crate::peers::Peers;

/// Time that the others of a step wait for a mask. Most masks are made long before the step has
/// gone through the layers, and take a millisecond where they are not.
const GRACE: Duration = Duration::from_millis(5);
/// Time that a step waits where nobody else is in it: a new sequence should not wait for long to
/// enter the next.
const PATIENCE: Duration = Duration::from_millis(50);
/// How long one mask is waited for before the others are looked at.
const TICK: Duration = Duration::from_millis(2);

/// The choices of a step: one for each of its pieces, then those that earlier steps left out.
#[derive(Default)]
pub struct Choices<'a> {
    each: Vec<Choice<'a>>,
    /// Time that was waited for masks.
    waited: Duration,
}

struct Choice<'a> {
    /// `None`: the logits come back.
    item: Option<SampleItem<'a>>,
    /// What its guide says; `None`: it has none.
    mask: Option<Pending>,
    /// It is left out of the step.
    late: bool,
}

impl Choice<'_> {
    fn is_missing(&self) -> bool {
        let mask = self.mask.as_ref();
        mask.is_some_and(|mask| mask.made().is_none())
    }

    fn item(&self) -> Option<SampleItem<'_>> {
        let Some(mask) = &self.mask else {
            return self.item;
        };
        let made = mask.made().filter(|_| !self.late)?;
        let mask = made.ok()?;
        self.item.map(|item| SampleItem {
            mask: Some(mask.words()),
            ..item
        })
    }
}

impl<'a> Choices<'a> {
    /// Of `pieces` pieces, all of whose logits come back.
    pub fn none(pieces: usize) -> Self {
        let mut choices = Self::default();
        (0..pieces).for_each(|_| choices.push(None, None));
        choices
    }

    /// Adds the choice of the next piece: by `item`, if it is made where the logits are, among the
    /// tokens of `mask`, if it has a guide.
    pub fn push(&mut self, item: Option<SampleItem<'a>>, mask: Option<Pending>) {
        self.each.push(Choice {
            item,
            mask,
            late: false,
        });
    }

    /// Waits for masks, and settles which choices are left out of the step.
    ///
    /// # Errors
    /// [`crate::Error::Cancelled`], and those of the collective.
    pub(super) fn wait(&mut self, cancel: &Cancel, peers: &mut Peers) -> Result<()> {
        if self.each.iter().all(|choice| choice.mask.is_none()) {
            return Ok(());
        }
        let started = Instant::now();
        loop {
            for mask in self.each.iter_mut().filter_map(|one| one.mask.as_mut()) {
                mask.wait(Duration::ZERO);
            }
            let missing = self.each.iter().filter(|one| one.is_missing()).count();
            self.waited = started.elapsed();
            let has_company = missing < self.each.len();
            let limit = if has_company { GRACE } else { PATIENCE };
            if missing == 0 || self.waited >= limit {
                break;
            }
            cancel.check()?;
            let mut missing = self.each.iter_mut().filter(|one| one.is_missing());
            if let Some(mask) = missing.next().and_then(|one| one.mask.as_mut()) {
                mask.wait(TICK.min(limit - self.waited));
            }
        }
        let late = self.each.iter().map(|one| u64::from(one.is_missing()));
        let mut late: Vec<u64> = late.collect();
        peers.sum_counts(&mut late)?;
        for (choice, late) in self.each.iter_mut().zip(late) {
            choice.late = late > 0;
        }
        Ok(())
    }

    /// The choices that are made where the logits are. A guide that cannot go on makes none, nor
    /// does one that is late.
    pub(super) fn items(&self) -> Vec<Option<SampleItem<'_>>> {
        self.each.iter().map(Choice::item).collect()
    }

    /// What the guide says of a choice, after the step; `None`: it has none.
    pub fn mask(&self, choice: usize) -> Option<std::result::Result<&Mask, &Error>> {
        self.each[choice].mask.as_ref().and_then(Pending::made)
    }

    /// The mask of a choice that was left out of the step; `None`: it was not.
    pub fn take_late(&mut self, choice: usize) -> Option<Pending> {
        let choice = &mut self.each[choice];
        choice.mask.take_if(|_| choice.late)
    }

    /// Time that the step waited for masks.
    pub fn waited(&self) -> Duration {
        self.waited
    }
}
