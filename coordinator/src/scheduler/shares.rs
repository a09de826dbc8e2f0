//! What each flow was served, so that none is served more than another that waits.
//!
//! This is the Virtual Token Counter of Sheng et al., "Fairness in Serving Large Language Models"
//! (OSDI 2024), which is start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996) where the
//! price of a request is known only when it has been served. Who was served least is next. A flow
//! that begins to wait is lifted to the least of those that wait already, or, if nobody waits, to
//! the one that was served last: it does not save up while it asks for nothing.
//!
//! Of two flows that both wait, one is ahead of the other by one quantum at most, the largest
//! number of tokens that are served at once.

use std::collections::BTreeMap;

use crate::flow::Flow;

/// Accounts of flows that do not wait. Beyond these the flow that is ahead by least is forgotten,
/// which forgives it what it is ahead.
const MOST_IDLE: usize = 1024;

/// Tokens served, by flow.
#[derive(Debug, Default)]
pub(super) struct Shares {
    accounts: BTreeMap<Flow, Account>,
    /// Flows among them that wait.
    waiting: usize,
    /// What the flow that was served last had been served before: the virtual time. A flow without
    /// an account has been served as much.
    floor: u64,
    last: Option<Flow>,
}

#[derive(Debug, Default)]
struct Account {
    /// Tokens, and those by which the flow was lifted.
    served: u64,
    /// Its sequences that wait.
    waiting: usize,
}

impl Shares {
    /// One more sequence of the flow waits.
    pub(super) fn enter(&mut self, flow: &Flow) {
        let level = self.level();
        let account = self.accounts.entry(flow.clone()).or_default();
        if account.waiting == 0 {
            account.served = account.served.max(level);
            self.waiting += 1;
        }
        account.waiting += 1;
    }

    /// One of its sequences waits no more.
    pub(super) fn leave(&mut self, flow: &Flow) {
        let Some(account) = self.accounts.get_mut(flow) else {
            return;
        };
        account.waiting -= 1;
        if account.waiting == 0 {
            self.waiting -= 1;
            self.forget();
        }
    }

    /// What the flow was served.
    pub(super) fn served(&self, flow: &Flow) -> u64 {
        let account = self.accounts.get(flow);
        account.map_or(self.floor, |account| account.served)
    }

    /// The flow is the next one, and is served so many tokens.
    pub(super) fn serve(&mut self, flow: &Flow, tokens: u64) {
        self.floor = self.floor.max(self.served(flow));
        self.charge(flow, tokens);
        if self.last.as_ref() != Some(flow) {
            self.last = Some(flow.clone());
        }
    }

    /// The flow is served tokens outside its turn.
    pub(super) fn charge(&mut self, flow: &Flow, tokens: u64) {
        if let Some(account) = self.accounts.get_mut(flow) {
            account.served = account.served.saturating_add(tokens);
            return;
        }
        let account = Account {
            served: self.floor.saturating_add(tokens),
            waiting: 0,
        };
        self.accounts.insert(flow.clone(), account);
        self.forget();
    }

    /// To where a flow is lifted that begins to wait.
    fn level(&self) -> u64 {
        let waiting = self.accounts.values().filter(|account| account.waiting > 0);
        let least = waiting.map(|account| account.served).min();
        let last = || self.last.as_ref().map(|flow| self.served(flow));
        least.or_else(last).unwrap_or(0).max(self.floor)
    }

    /// Drops accounts that say no more than none, once there are many.
    fn forget(&mut self) {
        if self.accounts.len() - self.waiting <= MOST_IDLE {
            return;
        }
        let floor = self.floor;
        self.accounts
            .retain(|_, account| account.waiting > 0 || account.served > floor);
        while self.accounts.len() - self.waiting > MOST_IDLE {
            let idle = self.accounts.iter().filter(|(_, it)| it.waiting == 0);
            let least = idle.min_by_key(|(_, account)| account.served);
            let Some(flow) = least.map(|(flow, _)| flow.clone()) else {
                return;
            };
            self.accounts.remove(&flow);
        }
    }
}

#[cfg(test)]
mod tests;
