//! Which slots stay: ranking under a head budget.
//!
//! Candidates are the slots that are neither sinks nor in the window. Every head first keeps its own best `floor`
//! candidates; the rest of the pool's slots go to the best remaining candidates of the pool. Ties are broken by layer,
//! then KV head, then position, smaller first, so the answer depends on the scores alone.

use super::budget_group::{self, Columns, SumCounts};
use super::contract::HeadBudget;
use crate::error::Result;

/// Scored candidates of one KV head: slot indices, increasing, with one score each (higher = keep).
#[derive(Debug, Clone, Default)]
pub struct Candidates {
    /// Slot indices.
    pub slots: Vec<u32>,
    /// Scores, as long as `slots`.
    pub scores: Vec<f32>,
}

/// Share of the mean evictable slots that every head keeps for itself under a pooled budget (method section 9).
pub const FLOOR_SHARE: f32 = 0.15;

/// Order-preserving map of scores to integers; NaN ranks below everything.
fn key(score: f32) -> u32 {
    if score.is_nan() {
        return 0;
    }
    // -0.0 and 0.0 are one score.
    let bits = (score + 0.0).to_bits();
    if bits >> 31 == 0 { bits | 0x8000_0000 } else { !bits }
}

/// Chooses the slots to keep. `heads` is layer-major (`layer * columns.own + kv_head`), `take` the mean number of
/// candidates that a head may keep. Returns the kept candidate slots of every head, increasing. `sum` is called for
/// [`HeadBudget::Group`] alone.
///
/// # Errors
/// Those of `sum`.
pub fn select(
    heads: &[Candidates],
    columns: Columns,
    take: usize,
    scope: HeadBudget,
    sum: SumCounts<'_>,
) -> Result<Vec<Vec<u32>>> {
    let mut keep = vec![Vec::new(); heads.len()];
    match scope {
        HeadBudget::Uniform => {
            for head in 0..heads.len() {
                select_pool(heads, &[head], take, take, &mut keep);
            }
        }
        HeadBudget::Column => {
            for column in 0..columns.own {
                let pool: Vec<_> = (column..heads.len()).step_by(columns.own).collect();
                select_pool(heads, &pool, take, floor_of(take), &mut keep);
            }
        }
        HeadBudget::Group => keep = budget_group::select(heads, columns, take, sum)?,
    }
    for slots in &mut keep {
        slots.sort_unstable();
    }
    Ok(keep)
}

/// Candidates that every head keeps for itself under a pooled budget.
pub(super) fn floor_of(take: usize) -> usize {
    (take as f32 * FLOOR_SHARE) as usize
}

/// One candidate in a pool. The derived order is ascending in rank: best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ranked {
    inverted_key: u32,
    pub head: u32,
    pub index: u32,
}

impl Ranked {
    /// Order-preserving key of the score.
    pub fn key(&self) -> u32 {
        !self.inverted_key
    }
}

/// The candidates of `head`.
pub(super) fn ranked(candidates: &Candidates, head: usize) -> Vec<Ranked> {
    debug_assert_eq!(candidates.slots.len(), candidates.scores.len());
    let rank =
        |(index, &score): (usize, &f32)| Ranked { inverted_key: !key(score), head: head as u32, index: index as u32 };
    candidates.scores.iter().enumerate().map(rank).collect()
}

fn select_pool(heads: &[Candidates], pool: &[usize], take: usize, floor: usize, keep: &mut [Vec<u32>]) {
    let mut left = take * pool.len();
    let mut rest = Vec::new();
    for &head in pool {
        let candidates = &heads[head];
        let mut ranked = ranked(candidates, head);
        let own = split_best(&mut ranked, floor.min(left));
        keep[head].extend(ranked[..own].iter().map(|r| candidates.slots[r.index as usize]));
        left -= own;
        rest.extend_from_slice(&ranked[own..]);
    }
    let pooled = split_best(&mut rest, left);
    for r in &rest[..pooled] {
        keep[r.head as usize].push(heads[r.head as usize].slots[r.index as usize]);
    }
}

/// Moves the best `count` to the front, in any order; returns how many there are.
pub(super) fn split_best(ranked: &mut [Ranked], count: usize) -> usize {
    if count == 0 || count >= ranked.len() {
        return count.min(ranked.len());
    }
    ranked.select_nth_unstable(count - 1);
    count
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The slow, obvious version: full sorts, one candidate at a time.
    fn reference(heads: &[Candidates], kv_heads: usize, take: usize, scope: HeadBudget) -> Vec<Vec<u32>> {
        let pools: Vec<Vec<usize>> = match scope {
            HeadBudget::Uniform => (0..heads.len()).map(|h| vec![h]).collect(),
            HeadBudget::Column => {
                (0..kv_heads).map(|c| (0..heads.len()).filter(|h| h % kv_heads == c).collect()).collect()
            }
            HeadBudget::Group => unreachable!("see budget_group"),
        };
        let floor = if scope == HeadBudget::Uniform { take } else { (take as f32 * FLOOR_SHARE) as usize };
        let mut keep = vec![Vec::new(); heads.len()];
        for pool in pools {
            let mut all: Vec<(f32, usize, u32)> = Vec::new();
            for &h in &pool {
                all.extend(heads[h].slots.iter().zip(&heads[h].scores).map(|(&s, &v)| (v, h, s)));
            }
            all.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)).then(a.2.cmp(&b.2)));
            let mut left = take * pool.len();
            for pass in 0..2 {
                all.retain(|&(_, h, s)| {
                    let room: &mut Vec<u32> = &mut keep[h];
                    let wanted = left > 0 && (pass == 1 || room.len() < floor);
                    if wanted {
                        room.push(s);
                        left -= 1;
                    }
                    !wanted
                });
            }
        }
        keep.iter_mut().for_each(|k| k.sort_unstable());
        keep
    }

    proptest! {
        #[test]
        fn selection_equals_the_sorted_reference(
            scores in prop::collection::vec(prop::collection::vec(-3i8..4, 0..40), 6),
            take in 0usize..40,
            scope in 0usize..2,
        ) {
            let heads: Vec<_> = scores.iter().map(|s| Candidates {
                slots: (0..s.len() as u32).map(|i| 4 + 3 * i).collect(),
                scores: s.iter().map(|&v| f32::from(v)).collect(),
            }).collect();
            let scope = [HeadBudget::Uniform, HeadBudget::Column][scope];
            let columns = Columns { own: 2, first: 0, total: 2 };
            let got = select(&heads, columns, take, scope, &mut |_| panic!("nothing to exchange")).expect("no exchange");
            prop_assert_eq!(&got, &reference(&heads, 2, take, scope));
            let total: usize = got.iter().map(Vec::len).sum();
            prop_assert!(total <= take * heads.len());
        }
    }

    #[test]
    fn keys_are_ordered_and_nan_loses() {
        let order = [f32::NAN, f32::NEG_INFINITY, -2.0, -1e-30, 0.0, 1e-30, 3.0, f32::INFINITY];
        for pair in order.windows(2) {
            assert!(key(pair[0]) < key(pair[1]), "{pair:?}");
        }
        assert_eq!(key(-0.0), key(0.0));
    }
}
