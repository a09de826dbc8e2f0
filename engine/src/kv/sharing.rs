//! What the query heads of a KV head have to say of its slots, brought together.
//!
//! Policies that look at attention keep what each query head gave to each slot apart, and add it up
//! at a boundary, query head by query head. With more ranks than KV heads, ranks that share one
//! have some of its query heads each: they tell each other, and add up the same numbers in the same
//! order as a rank that has them all. So the bits do not depend on the number of ranks.

use palimpsest_kernels::Reduce;

use super::cache::SequenceCache;
use crate::error::Result;
use crate::peers::Peers;
use crate::shard::Sharing;

/// One number per slot of every head, from `parts` of every head: for each of this rank's query
/// heads one number per slot.
///
/// # Errors
/// Those of the collective. All ranks of the group call it at the same boundaries, where heads are
/// shared.
pub(super) fn reduce(
    cache: &SequenceCache,
    parts: &[Vec<Vec<f32>>],
    how: Reduce,
    peers: &mut Peers,
) -> Result<Vec<Vec<f32>>> {
    let Some(Sharing {
        first_rank,
        query_heads,
    }) = &cache.layout.sharing
    else {
        let of_head = |parts: &Vec<Vec<f32>>| {
            add_up(&parts.iter().map(Vec::as_slice).collect::<Vec<_>>(), how)
        };
        return Ok(parts.iter().map(of_head).collect());
    };
    let own: Vec<f32> = parts.iter().flatten().flatten().copied().collect();
    // Ranks hold different numbers of slots; all are told what all have, and take what they need.
    let longest = peers.max(own.len() as u64)? as usize;
    let all = peers.gather(&own, longest)?;
    let mut rest: Vec<&[f32]> = (0..query_heads.len())
        .map(|i| &all[(first_rank + i) * longest..][..longest])
        .collect();
    let mut reduced = Vec::with_capacity(cache.heads.len());
    for head in &cache.heads {
        let mut views = Vec::new();
        for (rest, &count) in rest.iter_mut().zip(query_heads) {
            for _ in 0..count {
                let (view, behind) = rest.split_at(head.len());
                views.push(view);
                *rest = behind;
            }
        }
        reduced.push(add_up(&views, how));
    }
    Ok(reduced)
}

/// Mean or maximum over query heads, in their order. Empty without any.
fn add_up(parts: &[&[f32]], how: Reduce) -> Vec<f32> {
    let Some((first, others)) = parts.split_first() else {
        return Vec::new();
    };
    let mut all = first.to_vec();
    for part in others {
        for (all, &one) in all.iter_mut().zip(*part) {
            *all = match how {
                Reduce::Sum => *all + one,
                Reduce::Max => all.max(one),
            };
        }
    }
    if how == Reduce::Sum {
        all.iter_mut().for_each(|all| *all /= parts.len() as f32);
    }
    all
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use palimpsest_collective::local::LocalGroup;
    use palimpsest_kernels::reference::ReferenceBackend;

    use super::*;
    use crate::kv::Contract;
    use crate::policy::H2o;
    use crate::shard::HeadLayout;
    use crate::slots::HeadSlots;

    const HEADS: usize = 5;

    /// A cache of two layers of one KV head with so many slots.
    fn cache(slots: [u32; 2], sharing: Option<Sharing>) -> SequenceCache {
        let layout = HeadLayout {
            sharing,
            ..HeadLayout::alone(2, 1)
        };
        let mut cache = SequenceCache::new(layout, Contract::Full, Arc::new(H2o), None);
        for (head, slots) in cache.heads.iter_mut().zip(slots) {
            *head = HeadSlots {
                positions: (0..slots).collect(),
                ..HeadSlots::default()
            };
        }
        cache
    }

    /// What a query head gave to the slots of a layer: numbers whose sum depends on the order in
    /// which they are added.
    fn given(kv_head: usize, layer: usize, query_head: usize, slots: u32) -> Vec<f32> {
        let at = |slot: u32| {
            1.0 / (3.0 + (7 * kv_head + 31 * layer + 11 * query_head) as f32 + slot as f32)
        };
        (0..slots).map(at).collect()
    }

    fn parts(
        kv_head: usize,
        slots: [u32; 2],
        query_heads: std::ops::Range<usize>,
    ) -> Vec<Vec<Vec<f32>>> {
        let layer = |layer: usize| {
            query_heads
                .clone()
                .map(|h| given(kv_head, layer, h, slots[layer]))
                .collect()
        };
        vec![layer(0), layer(1)]
    }

    #[test]
    fn sharers_have_the_bits_of_a_rank_with_all_query_heads() {
        // Two KV heads with different numbers of slots, dealt to two ranks and to three.
        let slots = [[6, 9], [11, 2]];
        let dealt = [
            (0, 0, 0..3),
            (0, 0, 3..5),
            (1, 2, 0..2),
            (1, 2, 2..4),
            (1, 2, 4..5),
        ];
        for how in [Reduce::Sum, Reduce::Max] {
            let threads = LocalGroup::new(dealt.len())
                .into_iter()
                .zip(dealt.clone())
                .map(|(end, (kv_head, first_rank, own))| {
                    std::thread::spawn(move || {
                        let mut peers = Peers::alone();
                        peers.join(&ReferenceBackend, Arc::new(end));
                        peers.begin_step();
                        let query_heads = if kv_head == 0 {
                            vec![3, 2]
                        } else {
                            vec![2, 2, 1]
                        };
                        let cache = cache(
                            slots[kv_head],
                            Some(Sharing {
                                first_rank,
                                query_heads,
                            }),
                        );
                        let own = parts(kv_head, slots[kv_head], own);
                        (
                            kv_head,
                            reduce(&cache, &own, how, &mut peers).expect("a group"),
                        )
                    })
                });
            for thread in threads.collect::<Vec<_>>() {
                let (kv_head, shared) = thread.join().expect("no panic");
                let all = parts(kv_head, slots[kv_head], 0..HEADS);
                let alone = reduce(&cache(slots[kv_head], None), &all, how, &mut Peers::alone())
                    .expect("alone");
                assert_eq!(shared, alone, "KV head {kv_head}, {how:?}");
                let longest = slots[kv_head][1] as usize;
                assert_eq!(alone[1].len(), longest, "one number per slot");
            }
        }
    }
}
