//! Which of the sequences that wait is started next.

use std::collections::BTreeMap;

use super::sequence::{Place, Waiting};
use super::shares::Shares;
use crate::flow::Flow;

/// The order of starts: the highest priority, then the flow that was served least, then arrival. A
/// start is charged with all tokens that are to be read, so that a flow does not take all places at
/// once; tokens of the answer are charged as they come.
#[derive(Debug, Default)]
pub(super) struct Starts {
    shares: Shares,
    /// Who was next and had no room: small ones do not overtake it for ever.
    head: Option<Place>,
}

impl Starts {
    /// A sequence of the flow waits.
    pub(super) fn enter(&mut self, flow: &Flow) {
        self.shares.enter(flow);
    }

    /// One that waited has gone without a start.
    pub(super) fn leave(&mut self, flow: &Flow) {
        self.shares.leave(flow);
    }

    /// Who starts next; the same until it starts, goes, is held, or one of a higher priority comes.
    pub(super) fn next(&mut self, waiting: &BTreeMap<Place, Waiting>) -> Option<Place> {
        let ready = || waiting.iter().filter(|(_, one)| one.hold.is_none());
        let (first, _) = ready().next()?;
        let is_ready = |head: &Place| waiting.get(head).is_some_and(|one| one.hold.is_none());
        let head = self
            .head
            .filter(|head| head.priority == first.priority && is_ready(head));
        if head.is_some() {
            return head;
        }
        let equals = ready().take_while(|(place, _)| place.priority == first.priority);
        let least = equals
            .min_by_key(|(place, waiting)| (self.shares.served(&waiting.arrival.flow), place.id));
        self.head = least.map(|(place, _)| *place);
        self.head
    }

    /// The next one has started, and so many tokens are to be read.
    pub(super) fn start(&mut self, flow: &Flow, tokens: u64) {
        self.head = None;
        self.shares.serve(flow, tokens);
        self.shares.leave(flow);
    }

    /// One that started takes tokens of its answer.
    pub(super) fn charge(&mut self, flow: &Flow, tokens: u64) {
        self.shares.charge(flow, tokens);
    }
}
