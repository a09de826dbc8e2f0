//! Budgets pooled over all KV heads of all layers, across ranks: one exact threshold, found by radix select.
//!
//! Every rank counts its candidates by eight bits of their score's key at a time; the summed histograms tell each rank
//! the same threshold. Ties at the threshold go in the order of layer, KV head and position, for which the number of
//! ties of every head is summed once more. So five small sums per boundary, whatever the number of layers, and the
//! answer of a single rank, slot for slot.

use super::budget::floor_of;
use crate::error::Result;
use palimpsest_kernels::SelectItem;
use palimpsest_kernels::select::{Ranked, ranked, split_best, with_protected};

pub use palimpsest_proto::kv::GROUP_CAP;

/// Heads of this rank among those of the model.
#[derive(Debug, Clone, Copy)]
pub struct Columns {
    /// KV heads here.
    pub own: usize,
    /// The first of them.
    pub first: usize,
    /// KV heads of the model.
    pub total: usize,
}

/// Adds counts of all ranks.
pub type SumCounts<'a> = &'a mut dyn FnMut(&mut [u64]) -> Result<()>;

/// Chooses the slots to keep out of `heads` (layer-major) such that all heads of all ranks keep `take` candidates on
/// average, the best ones, though no column more than [`GROUP_CAP`] times its share. Returns all slots that stay.
pub(super) fn select(
    heads: &[SelectItem<'_>],
    columns: Columns,
    take: usize,
    sum: SumCounts<'_>,
) -> Result<Vec<Vec<u32>>> {
    let chosen = choose(heads, columns, take, sum)?;
    Ok(heads.iter().zip(chosen).map(|(item, chosen)| with_protected(item, chosen)).collect())
}

/// The candidates that stay, not in order.
fn choose(heads: &[SelectItem<'_>], columns: Columns, take: usize, sum: SumCounts<'_>) -> Result<Vec<Vec<u32>>> {
    let layers = heads.len() / columns.own;
    let mut keep = vec![Vec::new(); heads.len()];
    let slot = |r: &Ranked| r.slot;
    let mut rest = Vec::new();
    let mut num_own = 0;
    for column in 0..columns.own {
        let mut pool = Vec::new();
        let mut room = cap(take, layers);
        for head in (column..heads.len()).step_by(columns.own) {
            let mut all = ranked(&heads[head], head);
            let own = split_best(&mut all, floor_of(take));
            keep[head].extend(all[..own].iter().map(slot));
            pool.extend_from_slice(&all[own..]);
            room -= own;
            num_own += own;
        }
        let survivors = split_best(&mut pool, room);
        rest.extend_from_slice(&pool[..survivors]);
    }
    let total = take * layers * columns.total;
    let Some(threshold) = threshold(&rest, num_own, total, sum)? else {
        rest.iter().for_each(|r| keep[r.head as usize].push(slot(r)));
        return Ok(keep);
    };
    let mut room = room_for_ties(&rest, &threshold, columns, layers, sum)?;
    rest.sort_unstable();
    for r in &rest {
        let wanted = match r.key().cmp(&threshold.key) {
            std::cmp::Ordering::Greater => true,
            std::cmp::Ordering::Equal if room[r.head as usize] > 0 => {
                room[r.head as usize] -= 1;
                true
            }
            _ => false,
        };
        if wanted {
            keep[r.head as usize].push(slot(r));
        }
    }
    Ok(keep)
}

/// Most candidates that one column keeps.
fn cap(take: usize, layers: usize) -> usize {
    (take * layers * GROUP_CAP.0 as usize).div_ceil(GROUP_CAP.1 as usize)
}

/// The worst key that is kept, and how many candidates with that very key are.
struct Threshold {
    key: u32,
    ties: u64,
}

/// `None`: every candidate is kept.
fn threshold(rest: &[Ranked], num_own: usize, total: usize, sum: SumCounts<'_>) -> Result<Option<Threshold>> {
    const BITS: u32 = 8;
    const BINS: usize = 1 << BITS;
    let (mut prefix, mut left) = (0u32, 0u64);
    for shift in (0..u32::BITS).step_by(BITS as usize).rev() {
        // The last count is of what the floors took, which the first round needs.
        let mut counts = vec![0u64; BINS + 1];
        let is_in_prefix = |key: u32| shift + BITS == u32::BITS || (key ^ prefix) >> (shift + BITS) == 0;
        for r in rest.iter().filter(|r| is_in_prefix(r.key())) {
            counts[(r.key() >> shift) as usize % BINS] += 1;
        }
        counts[BINS] = num_own as u64;
        sum(&mut counts)?;
        if shift + BITS == u32::BITS {
            left = total as u64 - counts[BINS];
            if counts[..BINS].iter().sum::<u64>() <= left {
                return Ok(None);
            }
        }
        let mut digit = BINS - 1;
        while counts[digit] < left {
            left -= counts[digit];
            digit -= 1;
        }
        prefix |= (digit as u32) << shift;
    }
    Ok(Some(Threshold { key: prefix, ties: left }))
}

/// How many ties each head of this rank keeps.
fn room_for_ties(
    rest: &[Ranked],
    threshold: &Threshold,
    columns: Columns,
    layers: usize,
    sum: SumCounts<'_>,
) -> Result<Vec<u64>> {
    let everywhere = |head: usize| head / columns.own * columns.total + columns.first + head % columns.own;
    let mut ties = vec![0u64; layers * columns.total];
    for r in rest.iter().filter(|r| r.key() == threshold.key) {
        ties[everywhere(r.head as usize)] += 1;
    }
    sum(&mut ties)?;
    let mut left = threshold.ties;
    for count in &mut ties {
        *count = (*count).min(left);
        left -= *count;
    }
    Ok((0..layers * columns.own).map(|head| ties[everywhere(head)]).collect())
}

#[cfg(test)]
mod tests {
    use super::super::budget::FLOOR_SHARE;
    use super::*;
    use proptest::prelude::*;
    use std::sync::{Barrier, Mutex};

    /// All but two slots in front and one behind.
    fn candidates(head: &[f32]) -> std::ops::Range<usize> {
        let first = head.len().min(2);
        first..head.len().saturating_sub(1).max(first)
    }

    /// The slow, obvious version, on one rank: full sorts, one candidate at a time.
    fn reference(heads: &[Vec<f32>], columns: usize, take: usize) -> Vec<Vec<u32>> {
        let mut keep = vec![Vec::new(); heads.len()];
        let mut in_column = vec![0; columns];
        let mut left = take * heads.len();
        let mut all: Vec<(f32, usize, u32)> = Vec::new();
        for (h, head) in heads.iter().enumerate() {
            all.extend(candidates(head).map(|slot| (head[slot], h, slot as u32)));
        }
        all.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)).then(a.2.cmp(&b.2)));
        let floor = (take as f32 * FLOOR_SHARE) as usize;
        for pass in 0..2 {
            all.retain(|&(_, h, s)| {
                let room: &mut Vec<u32> = &mut keep[h];
                let fits = left > 0 && in_column[h % columns] < cap(take, heads.len() / columns);
                let wanted = fits && (pass == 1 || room.len() < floor);
                if wanted {
                    room.push(s);
                    left -= 1;
                    in_column[h % columns] += 1;
                }
                !wanted
            });
        }
        for (kept, head) in keep.iter_mut().zip(heads) {
            kept.extend((0..head.len()).filter(|slot| !candidates(head).contains(slot)).map(|slot| slot as u32));
            kept.sort_unstable();
        }
        keep
    }

    /// Heads of `columns` dealt to ranks of these widths, each selecting in a thread of its own.
    fn on_ranks(heads: &[Vec<f32>], total: usize, take: usize, widths: &[usize]) -> Vec<Vec<u32>> {
        let (barrier, shared) = (Barrier::new(widths.len()), Mutex::new(Vec::<u64>::new()));
        let mut keep = vec![Vec::new(); heads.len()];
        let found = std::thread::scope(|scope| {
            let run = |rank: usize| {
                let first: usize = widths[..rank].iter().sum();
                let columns = Columns { own: widths[rank], first, total };
                let everywhere: Vec<usize> =
                    (0..heads.len()).filter(|h| (first..first + columns.own).contains(&(h % total))).collect();
                let own: Vec<_> = everywhere
                    .iter()
                    .map(|&h| SelectItem { scores: &heads[h], candidates: candidates(&heads[h]) })
                    .collect();
                let (barrier, shared) = (&barrier, &shared);
                scope.spawn(move || {
                    let mut sum = |counts: &mut [u64]| {
                        {
                            let mut all = shared.lock().expect("no panic");
                            all.resize(counts.len(), 0);
                            all.iter_mut().zip(&*counts).for_each(|(a, c)| *a += c);
                        }
                        barrier.wait();
                        counts.copy_from_slice(&shared.lock().expect("no panic"));
                        barrier.wait();
                        shared.lock().expect("no panic").clear();
                        barrier.wait();
                        Ok(())
                    };
                    (everywhere, select(&own, columns, take, &mut sum).expect("no failure"))
                })
            };
            let ranks: Vec<_> = (0..widths.len()).map(run).collect();
            ranks.into_iter().map(|rank| rank.join().expect("no panic")).collect::<Vec<_>>()
        });
        for (everywhere, slots) in found {
            for (head, slots) in everywhere.into_iter().zip(slots) {
                keep[head] = slots;
            }
        }
        keep
    }

    proptest! {
        #[test]
        fn any_number_of_ranks_gives_the_sorted_reference(
            scores in prop::collection::vec(prop::collection::vec(-3i8..4, 0..24), 12),
            take in 0usize..24,
        ) {
            let heads: Vec<Vec<f32>> =
                scores.iter().map(|s| s.iter().map(|&v| f32::from(v) * 1.7).collect()).collect();
            let expected = reference(&heads, 4, take);
            for widths in [&[4][..], &[2, 2], &[2, 1, 1], &[1, 1, 1, 1]] {
                prop_assert_eq!(&on_ranks(&heads, 4, take, widths), &expected, "{:?}", widths);
            }
        }
    }
}
