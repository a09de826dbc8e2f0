//! Guides of sequences, which follow their tokens on threads beside the device's: while a step goes
//! through the layers, the masks of its tokens are made.

mod lane;
mod pending;
mod rules;
mod source;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use palimpsest_models::tokenizer::TokenizerFiles;

use self::lane::{Lane, Work};
pub use self::pending::Pending;
pub(crate) use self::rules::Rules;
use self::source::Source;

/// Threads that make masks, on machines that have so many.
const MOST_LANES: usize = 4;

/// What a rank's sequences are guided with.
#[derive(Default)]
pub struct Guides {
    source: Option<Arc<Source>>,
    /// Started for the first sequence that needs them.
    lanes: Vec<Lane>,
    opened: usize,
    /// What masks are held back by, in turn, for tests.
    delays: Arc<[Duration]>,
}

impl Guides {
    /// Guides over a model's `vocabulary` tokens.
    pub fn new(tokenizer: TokenizerFiles, vocabulary: usize) -> Self {
        Self {
            source: Some(Arc::new(Source::new(tokenizer, vocabulary))),
            ..Self::default()
        }
    }

    /// Holds masks back, each sequence's by these times in turn: for tests of what is late.
    pub(crate) fn delay(&mut self, delays: &[Duration]) {
        self.delays = delays.into();
    }

    /// Begins to follow an answer. The guide is compiled beside the device's work; what is wrong
    /// with it is known with the first mask.
    pub(crate) fn open(&mut self, rules: Rules) -> Guided {
        if self.lanes.is_empty() {
            let cores = std::thread::available_parallelism().map_or(1, usize::from);
            let lanes = cores.min(MOST_LANES);
            self.lanes = (0..lanes).map(|_| Lane::start()).collect();
        }
        // The lanes take turns; all that concerns one sequence comes in its order on one of them.
        let lane = self.lanes[self.opened % self.lanes.len()].clone();
        self.opened += 1;
        let work = Work::new(self.source.clone(), rules, self.delays.clone());
        lane.compile(&work);
        Guided {
            lane,
            work,
            unseen: Vec::new(),
        }
    }
}

/// The guide of one sequence. Its state follows from the tokens of the answer.
pub(crate) struct Guided {
    lane: Lane,
    work: Work,
    /// Tokens of the answer that no mask was asked for after.
    unseen: Vec<u32>,
}

impl Guided {
    /// Takes note of the next tokens of the answer.
    pub(crate) fn observe(&mut self, tokens: &[u32]) {
        self.unseen.extend_from_slice(tokens);
    }

    /// Starts on the mask of the token after all that were observed.
    pub(crate) fn request(&mut self) -> Pending {
        self.lane.mask(&self.work, std::mem::take(&mut self.unseen))
    }
}
