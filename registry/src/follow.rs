//! Following who is in a group.

use std::collections::BTreeMap;

use tokio::sync::mpsc;

use crate::record::RankRecord;

/// Changes that may wait for who follows a group; who is further behind is told all anew.
pub(crate) const WAITING: usize = 16;

/// What happens to the ranks of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RankEvent {
    /// All ranks that are claimed, in order: the first event, and again after every gap in what was
    /// told (the registry was away or has forgotten what happened, or the reader was slow). What
    /// happened within the gap is not told.
    All(Vec<RankRecord>),
    /// A rank was claimed, or its record was written anew.
    Claimed(RankRecord),
    /// A rank is nobody's.
    Freed(u32),
}

impl RankEvent {
    /// Brings what was known of a group, by rank, up to date.
    pub fn apply(self, known: &mut BTreeMap<u32, RankRecord>) {
        match self {
            Self::All(ranks) => {
                *known = ranks
                    .into_iter()
                    .map(|record| (record.rank, record))
                    .collect()
            }
            Self::Claimed(record) => drop(known.insert(record.rank, record)),
            Self::Freed(rank) => drop(known.remove(&rank)),
        }
    }
}

/// Follows the ranks of a group until it is dropped.
#[derive(Debug)]
pub struct RankWatch(mpsc::Receiver<RankEvent>);

impl RankWatch {
    pub(crate) fn new() -> (mpsc::Sender<RankEvent>, Self) {
        let (events, receiver) = mpsc::channel(WAITING);
        (events, Self(receiver))
    }

    /// The next event; waits for it, as long as the registry is away too. `None` when this process'
    /// registry has ended.
    pub async fn next(&mut self) -> Option<RankEvent> {
        self.0.recv().await
    }
}
