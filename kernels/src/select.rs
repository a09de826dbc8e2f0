//! Which slots stay at a boundary, on the host: what the CPU's
//! [`Boundary::select`](crate::backend::Boundary::select) does, and parts of it for budgets that
//! are pooled over more than one rank.

use std::ops::Range;

use crate::backend::{SelectBudget, SelectHead};
use crate::error::{Error, Result};
use crate::shapes::HeadPages;

/// Scored slots of one KV head at a boundary, on the host.
#[derive(Debug, Clone)]
pub struct SelectItem<'a> {
    /// One number per slot `[L]`, higher: keep. NaN loses against everything.
    pub scores: &'a [f32],
    /// Slots that compete; those before and behind stay.
    pub candidates: Range<usize>,
}

/// Heads with their part of `scores`, which are those of all heads, one after the other.
///
/// # Errors
/// [`Error::Shape`] when there are fewer scores than slots.
pub fn scored<'a>(scores: &'a [f32], heads: &[SelectHead]) -> Result<Vec<SelectItem<'a>>> {
    let want = heads.iter().map(|head| head.len).sum();
    if scores.len() < want {
        return Err(Error::Shape {
            op: "select",
            what: "scores",
            got: scores.len(),
            want,
        });
    }
    let mut rest = scores;
    let item = |head: &SelectHead| {
        let (own, others) = rest.split_at(head.len);
        rest = others;
        SelectItem {
            scores: own,
            candidates: head.candidates.clone(),
        }
    };
    Ok(heads.iter().map(item).collect())
}

/// Slots that stay, increasing, of heads with `lens` slots.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct KeptLists {
    lens: Vec<usize>,
    lists: Vec<Vec<u32>>,
}

impl KeptLists {
    /// Lists that were checked.
    ///
    /// # Errors
    /// [`Error::Shape`] for another number of heads, [`Error::Index`] for a slot that is not there
    /// or not in order.
    pub fn new(lens: &[usize], lists: &[Vec<u32>]) -> Result<Self> {
        let op = "keep_lists";
        if lens.len() != lists.len() {
            return Err(Error::Shape {
                op,
                what: "heads",
                got: lists.len(),
                want: lens.len(),
            });
        }
        for (&len, list) in lens.iter().zip(lists) {
            let increasing = list.windows(2).all(|pair| pair[0] < pair[1]);
            if let Some(&index) = list
                .last()
                .filter(|&&last| !increasing || last as usize >= len)
            {
                return Err(Error::Index {
                    op,
                    what: "kept slot",
                    index: index as usize,
                    len,
                });
            }
        }
        Ok(Self {
            lens: lens.to_vec(),
            lists: lists.to_vec(),
        })
    }

    /// The lists.
    pub fn lists(&self) -> &[Vec<u32>] {
        &self.lists
    }

    /// Slots of head `index` that go, increasing.
    pub(crate) fn lost(&self, index: usize) -> Vec<u32> {
        let mut kept = self.lists[index].iter().peekable();
        (0..self.lens[index] as u32)
            .filter(|slot| kept.next_if_eq(&slot).is_none())
            .collect()
    }

    /// Checks that the lists are of these heads.
    pub(crate) fn check(&self, op: &'static str, heads: &[HeadPages<'_>]) -> Result<()> {
        check_lens(op, &self.lens, heads)
    }
}

/// Checks that heads have the lengths that lists were made for.
pub(crate) fn check_lens(op: &'static str, lens: &[usize], heads: &[HeadPages<'_>]) -> Result<()> {
    if lens.len() != heads.len() {
        return Err(Error::Shape {
            op,
            what: "heads",
            got: heads.len(),
            want: lens.len(),
        });
    }
    match heads.iter().zip(lens).find(|(head, len)| head.len != **len) {
        Some((head, &want)) => Err(Error::Shape {
            op,
            what: "slots of a head",
            got: head.len,
            want,
        }),
        None => Ok(()),
    }
}

/// Checks the arguments of `select`.
pub(crate) fn check_select(budget: SelectBudget, heads: &[SelectHead]) -> Result<()> {
    let op = "select";
    if budget.floor > budget.take {
        return Err(Error::Index {
            op,
            what: "floor",
            index: budget.floor,
            len: budget.take + 1,
        });
    }
    if budget.pools == 0 || !heads.len().is_multiple_of(budget.pools) {
        return Err(Error::Multiple {
            op,
            what: "heads",
            got: heads.len(),
            multiple: budget.pools,
        });
    }
    let outside = |head: &&SelectHead| {
        head.candidates.start > head.candidates.end || head.candidates.end > head.len
    };
    match heads.iter().find(outside) {
        Some(head) => Err(Error::Index {
            op,
            what: "candidate",
            index: head.candidates.end,
            len: head.len + 1,
        }),
        None => Ok(()),
    }
}

/// Order-preserving map of scores to integers; NaN ranks below everything.
fn key(score: f32) -> u32 {
    if score.is_nan() {
        return 0;
    }
    // -0.0 and 0.0 are one score.
    let bits = (score + 0.0).to_bits();
    if bits >> 31 == 0 {
        bits | 0x8000_0000
    } else {
        !bits
    }
}

/// One candidate in a pool. The derived order is ascending in rank: best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ranked {
    inverted_key: u32,
    /// Head it belongs to.
    pub head: u32,
    /// Its slot.
    pub slot: u32,
}

impl Ranked {
    /// Order-preserving key of the score.
    pub fn key(&self) -> u32 {
        !self.inverted_key
    }
}

/// The candidates of head `head`.
pub fn ranked(item: &SelectItem<'_>, head: usize) -> Vec<Ranked> {
    let rank = |slot: usize| Ranked {
        inverted_key: !key(item.scores[slot]),
        head: head as u32,
        slot: slot as u32,
    };
    item.candidates.clone().map(rank).collect()
}

/// Moves the best `count` to the front, in any order; returns how many there are.
pub fn split_best(ranked: &mut [Ranked], count: usize) -> usize {
    if count == 0 || count >= ranked.len() {
        return count.min(ranked.len());
    }
    ranked.select_nth_unstable(count - 1);
    count
}

/// All slots of a head that stay, in order, once its candidates `chosen` are known.
pub fn with_protected(item: &SelectItem<'_>, mut chosen: Vec<u32>) -> Vec<u32> {
    chosen.sort_unstable();
    // Protected slots stand before and behind the candidates, so order is kept by concatenation.
    let behind = item.candidates.end as u32..item.scores.len() as u32;
    (0..item.candidates.start as u32)
        .chain(chosen)
        .chain(behind)
        .collect()
}

/// See [`Boundary::select`](crate::backend::Boundary::select).
///
/// # Errors
/// A floor above the mean, candidates that are not slots, heads that do not fill the pools.
pub fn select(budget: SelectBudget, items: &[SelectItem<'_>]) -> Result<KeptLists> {
    let head = |item: &SelectItem<'_>| SelectHead {
        len: item.scores.len(),
        candidates: item.candidates.clone(),
    };
    check_select(budget, &items.iter().map(head).collect::<Vec<_>>())?;
    let mut chosen = vec![Vec::new(); items.len()];
    for pool in 0..budget.pools {
        let heads = (pool..items.len()).step_by(budget.pools);
        let mut left = budget.take * heads.len();
        let mut rest = Vec::new();
        for head in heads {
            let mut ranked = ranked(&items[head], head);
            let own = split_best(&mut ranked, budget.floor);
            chosen[head].extend(ranked[..own].iter().map(|r| r.slot));
            left -= own;
            rest.extend_from_slice(&ranked[own..]);
        }
        let pooled = split_best(&mut rest, left);
        rest[..pooled]
            .iter()
            .for_each(|r| chosen[r.head as usize].push(r.slot));
    }
    let lens = items.iter().map(|item| item.scores.len()).collect();
    let lists = items
        .iter()
        .zip(chosen)
        .map(|(item, chosen)| with_protected(item, chosen))
        .collect();
    Ok(KeptLists { lens, lists })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::backend::Boundary;
    use crate::reference::ReferenceBackend;

    proptest! {
        #[test]
        fn selection_equals_the_sorted_reference(
            scores in prop::collection::vec(prop::collection::vec(-3i8..4, 0..40), 6),
            take in 0usize..40,
            pools in 0usize..3,
        ) {
            let scores: Vec<Vec<f32>> = scores
                .iter()
                .map(|scores| scores.iter().map(|&score| f32::from(score)).collect())
                .collect();
            let item = |scores: &Vec<f32>| SelectHead {
                len: scores.len(),
                candidates: scores.len().min(3)..scores.len(),
            };
            let heads: Vec<SelectHead> = scores.iter().map(item).collect();
            let flat = scores.concat();
            let items = scored(&flat, &heads).expect("as many as slots");
            let pools = [6, 2, 1][pools];
            let floor = if pools == 6 { take } else { take * 15 / 100 };
            let budget = SelectBudget { pools, take, floor };
            let got = select(budget, &items).expect("valid arguments");
            let want = ReferenceBackend.select(budget, &flat, &heads).expect("valid arguments");
            prop_assert_eq!(got, want);
        }
    }

    #[test]
    fn keys_are_ordered_and_nan_loses() {
        let order = [
            f32::NAN,
            f32::NEG_INFINITY,
            -2.0,
            -1e-30,
            0.0,
            1e-30,
            3.0,
            f32::INFINITY,
        ];
        for pair in order.windows(2) {
            assert!(key(pair[0]) < key(pair[1]), "{pair:?}");
        }
        assert_eq!(key(-0.0), key(0.0));
        assert_eq!(key(-f32::NAN), 0);
    }
}
