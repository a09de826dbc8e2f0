//! Connections that came to nothing: how many, and why.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Refused connections are logged once in this time.
const PAUSE: Duration = Duration::from_secs(1);

/// Why a connection came to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// All places of the port are taken by connections that have sent something.
    PortFull,
    /// All places of its address are.
    AddressFull,
    /// It sent nothing in its time.
    Silent,
    /// It had sent nothing when another one needed its place.
    Displaced,
    /// It speaks plain text to TLS.
    PlainText,
    /// Its handshake failed: a certificate is missing or not accepted, or it took too long.
    Handshake,
}

impl Refusal {
    /// Every reason.
    pub const ALL: [Self; 6] = [
        Self::PortFull,
        Self::AddressFull,
        Self::Silent,
        Self::Displaced,
        Self::PlainText,
        Self::Handshake,
    ];

    /// Stable snake_case name, for metrics.
    pub const fn tag(self) -> &'static str {
        match self {
            Self::PortFull => "port_full",
            Self::AddressFull => "address_full",
            Self::Silent => "silent",
            Self::Displaced => "displaced",
            Self::PlainText => "plain_text",
            Self::Handshake => "handshake",
        }
    }
}

/// Counts what one port refused; copies share the counts.
#[derive(Debug, Clone, Default)]
pub struct Refused(Arc<[AtomicU64; Refusal::ALL.len()]>);

impl Refused {
    /// Connections that this came of.
    pub fn of(&self, why: Refusal) -> u64 {
        self.0[why as usize].load(Ordering::Relaxed)
    }

    pub(crate) fn add(&self, why: Refusal) {
        // Nothing else depends on the counts.
        self.0[why as usize].fetch_add(1, Ordering::Relaxed);
    }
}

/// Whether it is time to tell of refusals again: whoever causes them must not fill the log as well.
#[derive(Debug, Default)]
pub(crate) struct Told {
    count: u64,
    last: Option<Instant>,
}

impl Told {
    /// Counts one more: how many came since the last word, when it is time for the next.
    pub(crate) fn next(&mut self) -> Option<u64> {
        self.count += 1;
        if self.last.is_some_and(|last| last.elapsed() < PAUSE) {
            return None;
        }
        self.last = Some(Instant::now());
        Some(std::mem::take(&mut self.count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_a_name_and_a_count_of_its_own() {
        let refused = Refused::default();
        for (index, why) in Refusal::ALL.into_iter().enumerate() {
            (0..=index).for_each(|_| refused.add(why));
        }
        let copy = refused.clone();
        let counts = Refusal::ALL.map(|why| copy.of(why));
        assert_eq!(counts, [1, 2, 3, 4, 5, 6]);
        let mut tags = Refusal::ALL.map(Refusal::tag).to_vec();
        tags.sort_unstable();
        tags.dedup();
        assert_eq!(tags.len(), Refusal::ALL.len());
    }
}
