//! How the tokens after the pieces of a step are chosen, of which a part is not known before the
//! device has its work.

use std::time::{Duration, Instant};

use palimpsest_guide::{Error, Mask};
use palimpsest_kernels::sample::SampleItem;

use crate::cancel::Cancel;
use crate::error::Result;
use crate::guides::Pending;

/// The choices of a step, one for each of its pieces.
#[derive(Default)]
pub struct Choices<'a> {
    each: Vec<Choice<'a>>,
    /// Time that was waited for masks.
    waited: Duration,
}

struct Choice<'a> {
    /// `None`: the logits come back.
    item: Option<SampleItem<'a>>,
    mask: Guidance,
}

/// What a guide says of a choice.
enum Guidance {
    /// There is none.
    None,
    Pending(Pending),
    Known(std::result::Result<Mask, Error>),
}

impl Choice<'_> {
    fn item(&self) -> Option<SampleItem<'_>> {
        match &self.mask {
            Guidance::None => self.item,
            Guidance::Known(Ok(mask)) => self.item.map(|item| SampleItem {
                mask: Some(mask.words()),
                ..item
            }),
            Guidance::Known(Err(_)) | Guidance::Pending(_) => None,
        }
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
        let mask = mask.map_or(Guidance::None, Guidance::Pending);
        self.each.push(Choice { item, mask });
    }

    /// Waits for all masks.
    ///
    /// # Errors
    /// [`crate::Error::Cancelled`].
    pub(super) fn wait(&mut self, cancel: &Cancel) -> Result<()> {
        let started = Instant::now();
        for choice in &mut self.each {
            if let Guidance::Pending(pending) = &choice.mask {
                choice.mask = Guidance::Known(pending.wait(cancel)?);
                self.waited = started.elapsed();
            }
        }
        Ok(())
    }

    /// The choices that are made where the logits are. A guide that cannot go on makes none.
    pub(super) fn items(&self) -> Vec<Option<SampleItem<'_>>> {
        self.each.iter().map(Choice::item).collect()
    }

    /// What the guide says of the choice of a piece, after the step; `None`: it has none.
    pub fn mask(&self, piece: usize) -> Option<std::result::Result<&Mask, &Error>> {
        match &self.each[piece].mask {
            Guidance::Known(mask) => Some(mask.as_ref()),
            Guidance::None | Guidance::Pending(_) => None,
        }
    }

    /// Time that the step waited for masks.
    pub fn waited(&self) -> Duration {
        self.waited
    }
}
