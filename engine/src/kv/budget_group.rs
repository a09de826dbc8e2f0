//! Budgets pooled over the KV heads of all ranks, of a layer or of all of them: exact thresholds,
//! found by radix select.
//!
//! Every rank counts its candidates by eight bits of their score's key at a time; the summed
//! histograms tell each rank the same thresholds. Ties at a threshold go in the order of layer, KV
//! head and position, for which the number of ties of every head is summed once more. So five small
//! sums per boundary, whatever the number of layers, and the answer of a single rank, slot for
//! slot.

use std::cmp::Ordering;

use palimpsest_kernels::SelectItem;
use palimpsest_kernels::select::{Ranked, ranked, split_best, with_protected};
pub use palimpsest_proto::kv::GROUP_CAP;

use super::allocation::{Columns, floor_of};
use crate::error::Result;

/// Heads that share a budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pool {
    /// The heads of a layer share: AdaKV's allocation (arXiv 2407.11550), with its safeguard as our
    /// floor.
    Layer,
    /// All heads share, though no column gets more than [`GROUP_CAP`] times its share.
    Model,
}

/// The pools of a boundary.
struct Pools {
    of: Pool,
    columns: Columns,
    layers: usize,
}

impl Pools {
    fn count(&self) -> usize {
        match self.of {
            Pool::Layer => self.layers,
            Pool::Model => 1,
        }
    }

    fn of_layer(&self, layer: usize) -> usize {
        match self.of {
            Pool::Layer => layer,
            Pool::Model => 0,
        }
    }

    /// The pool of a head of this rank.
    fn of_head(&self, head: usize) -> usize {
        self.of_layer(head / self.columns.own)
    }

    /// Heads of a pool, on all ranks.
    fn heads(&self) -> usize {
        self.layers * self.columns.total / self.count()
    }
}

/// Adds counts of all ranks.
pub type SumCounts<'a> = &'a mut dyn FnMut(&mut [u64]) -> Result<()>;

/// Chooses the slots to keep out of `heads` (layer-major) such that the heads of a pool keep `take`
/// candidates on average, the best ones, on all ranks together. Returns all slots that stay.
pub(super) fn select(
    heads: &[SelectItem<'_>],
    columns: Columns,
    take: usize,
    pool: Pool,
    sum: SumCounts<'_>,
) -> Result<Vec<Vec<u32>>> {
    let chosen = choose(heads, columns, take, pool, sum)?;
    Ok(heads
        .iter()
        .zip(chosen)
        .map(|(item, chosen)| with_protected(item, chosen))
        .collect())
}

/// The candidates that stay, not in order.
fn choose(
    heads: &[SelectItem<'_>],
    columns: Columns,
    take: usize,
    pool: Pool,
    sum: SumCounts<'_>,
) -> Result<Vec<Vec<u32>>> {
    let pools = Pools {
        of: pool,
        columns,
        layers: heads.len() / columns.own,
    };
    let mut keep = vec![Vec::new(); heads.len()];
    let slot = |r: &Ranked| r.slot;
    let mut rest = Vec::new();
    let mut num_own = vec![0; pools.count()];
    for column in 0..columns.own {
        let mut others = Vec::new();
        let mut room = cap(take, pools.layers);
        for head in (column..heads.len()).step_by(columns.own) {
            let mut all = ranked(&heads[head], head);
            let own = split_best(&mut all, floor_of(take));
            keep[head].extend(all[..own].iter().map(slot));
            others.extend_from_slice(&all[own..]);
            room -= own;
            num_own[pools.of_head(head)] += own as u64;
        }
        let survivors = if pool == Pool::Model {
            split_best(&mut others, room)
        } else {
            others.len()
        };
        rest.extend_from_slice(&others[..survivors]);
    }
    let thresholds = thresholds(&rest, &pools, &num_own, take * pools.heads(), sum)?;
    let mut room = match thresholds.iter().any(Option::is_some) {
        true => room_for_ties(&rest, &pools, &thresholds, sum)?,
        false => Vec::new(),
    };
    rest.sort_unstable();
    for r in &rest {
        let head = r.head as usize;
        let wanted = match thresholds[pools.of_head(head)]
            .as_ref()
            .map(|threshold| r.key().cmp(&threshold.key))
        {
            None | Some(Ordering::Greater) => true,
            Some(Ordering::Equal) if room[head] > 0 => {
                room[head] -= 1;
                true
            }
            Some(_) => false,
        };
        if wanted {
            keep[head].push(slot(r));
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

/// The threshold of every pool; `None` where every candidate is kept. `num_own`: how many
/// candidates of each pool the floors took on this rank. `total`: how many the heads of a pool
/// keep.
fn thresholds(
    rest: &[Ranked],
    pools: &Pools,
    num_own: &[u64],
    total: usize,
    sum: SumCounts<'_>,
) -> Result<Vec<Option<Threshold>>> {
    const BITS: u32 = 8;
    const BINS: usize = 1 << BITS;
    let start = || Some(Threshold { key: 0, ties: 0 });
    let mut found: Vec<Option<Threshold>> = num_own.iter().map(|_| start()).collect();
    for shift in (0..u32::BITS).step_by(BITS as usize).rev() {
        let is_first = shift + BITS == u32::BITS;
        // The last count of a pool is of what the floors took, which the first round needs.
        let mut counts = vec![0u64; found.len() * (BINS + 1)];
        for r in rest {
            let pool = pools.of_head(r.head as usize);
            let is_in_prefix =
                |at: &Threshold| is_first || (r.key() ^ at.key) >> (shift + BITS) == 0;
            if found[pool].as_ref().is_some_and(is_in_prefix) {
                counts[pool * (BINS + 1) + (r.key() >> shift) as usize % BINS] += 1;
            }
        }
        counts
            .chunks_exact_mut(BINS + 1)
            .zip(num_own)
            .for_each(|(counts, &own)| counts[BINS] = own);
        sum(&mut counts)?;
        for (threshold, counts) in found.iter_mut().zip(counts.chunks_exact(BINS + 1)) {
            let Some(at) = threshold else { continue };
            if is_first {
                at.ties = total as u64 - counts[BINS];
                if counts[..BINS].iter().sum::<u64>() <= at.ties {
                    *threshold = None;
                    continue;
                }
            }
            let mut digit = BINS - 1;
            while counts[digit] < at.ties {
                at.ties -= counts[digit];
                digit -= 1;
            }
            at.key |= (digit as u32) << shift;
        }
        if found.iter().all(Option::is_none) {
            break;
        }
    }
    Ok(found)
}

/// How many ties each head of this rank keeps.
fn room_for_ties(
    rest: &[Ranked],
    pools: &Pools,
    thresholds: &[Option<Threshold>],
    sum: SumCounts<'_>,
) -> Result<Vec<u64>> {
    let Columns { own, first, total } = pools.columns;
    let everywhere = |head: usize| head / own * total + first + head % own;
    let mut ties = vec![0u64; pools.layers * total];
    for r in rest {
        let threshold = thresholds[pools.of_head(r.head as usize)].as_ref();
        ties[everywhere(r.head as usize)] +=
            u64::from(threshold.is_some_and(|threshold| r.key() == threshold.key));
    }
    sum(&mut ties)?;
    let mut left: Vec<u64> = thresholds
        .iter()
        .map(|threshold| threshold.as_ref().map_or(0, |t| t.ties))
        .collect();
    for (index, count) in ties.iter_mut().enumerate() {
        let left = &mut left[pools.of_layer(index / total)];
        *count = (*count).min(*left);
        *left -= *count;
    }
    Ok((0..pools.layers * own)
        .map(|head| ties[everywhere(head)])
        .collect())
}

#[cfg(test)]
mod tests {
    use std::sync::{Barrier, Mutex};

    use proptest::prelude::*;

    use super::super::allocation::FLOOR_SHARE;
    use super::*;

    /// All but two slots in front and one behind.
    fn candidates(head: &[f32]) -> std::ops::Range<usize> {
        let first = head.len().min(2);
        first..head.len().saturating_sub(1).max(first)
    }

    /// The slow, obvious version, on one rank: full sorts, one candidate at a time.
    fn reference(heads: &[Vec<f32>], columns: usize, take: usize, pool: Pool) -> Vec<Vec<u32>> {
        let mut keep = vec![Vec::new(); heads.len()];
        let mut in_column = vec![0; columns];
        let layers = heads.len() / columns;
        let mut left = match pool {
            Pool::Layer => vec![take * columns; layers],
            Pool::Model => vec![take * heads.len()],
        };
        let pool_of = |head: usize| {
            if pool == Pool::Layer {
                head / columns
            } else {
                0
            }
        };
        let mut all: Vec<(f32, usize, u32)> = Vec::new();
        for (h, head) in heads.iter().enumerate() {
            all.extend(candidates(head).map(|slot| (head[slot], h, slot as u32)));
        }
        all.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)).then(a.2.cmp(&b.2)));
        let floor = (take as f32 * FLOOR_SHARE) as usize;
        for pass in 0..2 {
            all.retain(|&(_, h, s)| {
                let room: &mut Vec<u32> = &mut keep[h];
                let is_capped = pool == Pool::Model && in_column[h % columns] >= cap(take, layers);
                let fits = left[pool_of(h)] > 0 && !is_capped;
                let wanted = fits && (pass == 1 || room.len() < floor);
                if wanted {
                    room.push(s);
                    left[pool_of(h)] -= 1;
                    in_column[h % columns] += 1;
                }
                !wanted
            });
        }
        for (kept, head) in keep.iter_mut().zip(heads) {
            kept.extend(
                (0..head.len())
                    .filter(|slot| !candidates(head).contains(slot))
                    .map(|slot| slot as u32),
            );
            kept.sort_unstable();
        }
        keep
    }

    /// Heads of `columns` dealt to ranks of these widths, each selecting in a thread of its own.
    fn on_ranks(
        heads: &[Vec<f32>],
        total: usize,
        (take, pool): (usize, Pool),
        widths: &[usize],
    ) -> Vec<Vec<u32>> {
        let (barrier, shared) = (Barrier::new(widths.len()), Mutex::new(Vec::<u64>::new()));
        let mut keep = vec![Vec::new(); heads.len()];
        let found = std::thread::scope(|scope| {
            let run = |rank: usize| {
                let first: usize = widths[..rank].iter().sum();
                let columns = Columns {
                    own: widths[rank],
                    first,
                    total,
                };
                let everywhere: Vec<usize> = (0..heads.len())
                    .filter(|h| (first..first + columns.own).contains(&(h % total)))
                    .collect();
                let own: Vec<_> = everywhere
                    .iter()
                    .map(|&h| SelectItem {
                        scores: &heads[h],
                        candidates: candidates(&heads[h]),
                    })
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
                    (
                        everywhere,
                        select(&own, columns, take, pool, &mut sum).expect("no failure"),
                    )
                })
            };
            let ranks: Vec<_> = (0..widths.len()).map(run).collect();
            ranks
                .into_iter()
                .map(|rank| rank.join().expect("no panic"))
                .collect::<Vec<_>>()
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
            for pool in [Pool::Layer, Pool::Model] {
                let expected = reference(&heads, 4, take, pool);
                for widths in [&[4][..], &[2, 2], &[2, 1, 1], &[1, 1, 1, 1]] {
                    let kept = on_ranks(&heads, 4, (take, pool), widths);
                    prop_assert_eq!(&kept, &expected, "{:?} {:?}", pool, widths);
                }
            }
        }
    }
}
