//! What happens when a sequence reaches a multiple of the stride: score, rank, evict, memorise,
//! compact.

use palimpsest_kernels::{
    Backend, Features, HeadPages, PageShape, Reduce, RotateItem, ScoreItem, SelectHead,
};

use super::allocation::{Allocation, Columns};
use super::cache::{Entries, SequenceCache};
use super::pages::PagePool;
use super::{Bounded, Positions, budget, sharing};
use crate::error::Result;
use crate::peers::Peers;
use crate::policy::{Attention, HeadView};
use crate::rope::RotaryTables;

/// What a boundary needs besides the sequence.
pub struct BoundaryContext<'a, B: Backend> {
    /// The device.
    pub backend: &'a B,
    /// The slot arena.
    pub pages: &'a mut B::Pages,
    /// Its free list.
    pub pool: &'a mut PagePool,
    /// `D`.
    pub head_dim: usize,
    /// `E`.
    pub stride: u64,
    /// Trained context length, which `Positions::Compacted` stays within.
    pub trained_length: u64,
    /// What the layers' keys are turned by.
    pub rotary: &'a RotaryTables,
    /// Trained features of associative memories.
    pub features: Option<Features<'a, B::Buffer>>,
    /// Where scores go.
    pub scores: &'a mut Scores<B>,
    /// The other ranks.
    pub peers: &'a mut Peers,
}

/// Scores of the heads of a sequence, one after the other; grows to the largest number of slots
/// seen.
pub struct Scores<B: Backend> {
    buffer: B::Buffer,
    len: usize,
}

impl<B: Backend> Scores<B> {
    /// Room for none.
    ///
    /// # Errors
    /// Those of [`palimpsest_kernels::Buffers::alloc`].
    pub fn new(backend: &B) -> Result<Self> {
        Ok(Self {
            buffer: backend.alloc(0)?,
            len: 0,
        })
    }

    fn reserve(&mut self, backend: &B, len: usize) -> Result<()> {
        if len > self.len {
            (self.buffer, self.len) = (backend.alloc(len)?, len);
        }
        Ok(())
    }
}

/// What the sequence is held to, if it is bounded and stands at a boundary.
fn bound(cache: &SequenceCache, stride: u64) -> Option<&Bounded> {
    cache
        .contract
        .bounded()
        .filter(|_| cache.seen.is_multiple_of(stride))
}

/// Starts to bring the sequence back to its budget, if it stands at a boundary and exceeds it:
/// ranks, hands the losers to the memory, and moves what stays together. Where the policy has a
/// rule for the device, that goes from scores to compacted pages without waiting for the host.
/// Returns what stays, for [`finish`]; nothing may be done with the sequence before.
///
/// # Errors
/// Those of the kernels. The sequence must then be dropped: it may be half compacted.
pub fn begin<B: Backend>(
    cache: &mut SequenceCache,
    ctx: &mut BoundaryContext<'_, B>,
) -> Result<Option<B::Kept>> {
    let exceeded = |bounded: &&Bounded| cache.seen > u64::from(bounded.exact_slots());
    let Some(bounded) = bound(cache, ctx.stride).filter(exceeded) else {
        return Ok(None);
    };
    let kept = choose(cache, ctx, bounded)?;
    let heads: Vec<HeadPages<'_>> = cache
        .heads
        .iter()
        .map(|head| head.view(head.len()))
        .collect();
    if let Some(memory) = &cache.memory {
        ctx.backend
            .memorise(ctx.pages, memory.id, ctx.features, &heads, &kept)?;
    }
    ctx.backend.compact(ctx.pages, &heads, &kept)?;
    Ok(Some(kept))
}

/// Waits until it is known what stays at a boundary, and brings the host's view of the sequence up
/// to date.
///
/// # Errors
/// As [`begin`].
pub fn finish<B: Backend>(
    cache: &mut SequenceCache,
    ctx: &mut BoundaryContext<'_, B>,
    kept: Option<B::Kept>,
) -> Result<()> {
    if let Some(kept) = kept {
        let terms = cache.policy.needs().terms;
        for (head, kept) in cache.heads.iter_mut().zip(&ctx.backend.kept(&kept)?) {
            cache.evicted += (head.len() - kept.len()) as u64;
            head.retain(kept, terms);
            ctx.pool.give_back(
                &mut head.pages,
                head.positions.len().div_ceil(PageShape::SLOTS),
            );
        }
    }
    if bound(cache, ctx.stride).is_none() {
        return Ok(());
    }
    let observed = cache.policy.needs().attention.observed();
    if observed.is_some_and(|observe| observe.forgets) {
        // Below the budget too: the first ranking must not see attention from earlier strides.
        cache
            .heads
            .iter_mut()
            .flat_map(|head| &mut head.mass)
            .for_each(|mass| mass.fill(0.0));
    }
    if cache.contract.positions() == Positions::Compacted {
        reindex(cache, ctx)?;
    }
    cache.check_integrity();
    Ok(())
}

/// Which slots every head keeps, protected ones included.
fn choose<B: Backend>(
    cache: &SequenceCache,
    ctx: &mut BoundaryContext<'_, B>,
    bounded: &Bounded,
) -> Result<B::Kept> {
    let (sinks, window) = (bounded.sinks, u64::from(bounded.window));
    let take = bounded.exact_slots() as usize - sinks as usize - window as usize;
    let window_start = cache.seen.saturating_sub(window);
    score(cache, ctx)?;
    let ranked = cache.heads.iter().map(|head| {
        let first = head.positions.partition_point(|&p| p < sinks);
        let last = head
            .positions
            .partition_point(|&p| u64::from(p) < window_start)
            .max(first);
        SelectHead {
            len: head.len(),
            candidates: first..last,
        }
    });
    let heads: Vec<SelectHead> = ranked.collect();
    let columns = Columns {
        own: cache.layout.kv_heads.len(),
        first: cache.layout.kv_heads.start,
        total: cache.layout.total_kv_heads,
    };
    let mut sum = |counts: &mut [u64]| {
        if !cache.layout.leads {
            // The rank that leads this head counts the same candidates.
            counts.fill(0);
        }
        ctx.peers.sum_counts(counts)
    };
    let allocation = Allocation {
        columns,
        take,
        head_budget: bounded.head_budget,
    };
    budget::select(
        ctx.backend,
        &ctx.scores.buffer,
        &heads,
        allocation,
        &mut sum,
    )
}

/// Scores of all slots of all heads, on the device: computed there where the policy has a rule for
/// it, else here.
fn score<B: Backend>(cache: &SequenceCache, ctx: &mut BoundaryContext<'_, B>) -> Result<()> {
    let total = cache.heads.iter().map(|head| head.len()).sum();
    ctx.scores.reserve(ctx.backend, total)?;
    let rules: Option<Vec<_>> = (0..cache.heads.len())
        .map(|index| {
            cache
                .policy
                .rule(cache.layout.layer_of(index), cache.layout.kv_head_of(index))
        })
        .collect();
    if let Some(rules) = rules {
        let heads = cache.heads.iter().zip(rules);
        let items: Vec<_> = heads
            .map(|(head, rule)| ScoreItem {
                slots: head.view(head.len()),
                rule,
            })
            .collect();
        let at = u32::try_from(cache.seen - 1).expect("grow refuses positions beyond 32 bits");
        return Ok(ctx
            .backend
            .score(ctx.pages, at, &items, &mut ctx.scores.buffer)?);
    }
    let attention = attention(cache, ctx)?;
    let mut all = Vec::with_capacity(total);
    for (index, attention) in attention.iter().enumerate() {
        all.extend(scores(cache, ctx, index, attention)?);
    }
    Ok(ctx.backend.upload(&all, &mut ctx.scores.buffer, 0)?)
}

/// What the policy goes by for every head, one number per slot: attention, over all query heads of
/// the KV head, or what else it keeps.
fn attention<B: Backend>(
    cache: &SequenceCache,
    ctx: &mut BoundaryContext<'_, B>,
) -> Result<Vec<Vec<f32>>> {
    match cache.policy.needs().attention {
        Attention::Observed(observe) => {
            let observed: Vec<_> = cache.heads.iter().map(|head| head.mass.clone()).collect();
            sharing::reduce(cache, &observed, observe.reduce, ctx.peers)
        }
        Attention::Predicted => {
            let mut predicted = Vec::with_capacity(cache.heads.len());
            for index in 0..cache.heads.len() {
                let entries = entries(cache, ctx, index)?;
                let mut of_heads = cache
                    .policy
                    .predict(&view(cache, ctx, index, &entries, &[]));
                // Nothing is predicted before any query counts.
                let nothing = vec![0.0; cache.heads[index].len()];
                of_heads.resize(cache.layout.query_heads, nothing);
                predicted.push(of_heads);
            }
            sharing::reduce(cache, &predicted, Reduce::Sum, ctx.peers)
        }
        Attention::ByHook => Ok(cache
            .heads
            .iter()
            .map(|head| head.mass.first().cloned().unwrap_or_default())
            .collect()),
        Attention::Unused => Ok(vec![Vec::new(); cache.heads.len()]),
    }
}

/// The policy's score of every slot of a head.
fn scores<B: Backend>(
    cache: &SequenceCache,
    ctx: &BoundaryContext<'_, B>,
    index: usize,
    attention: &[f32],
) -> Result<Vec<f32>> {
    let entries = entries(cache, ctx, index)?;
    let mut scores = vec![0.0; cache.heads[index].len()];
    cache
        .policy
        .score(&view(cache, ctx, index, &entries, attention), &mut scores);
    Ok(scores)
}

/// Keys and values of a head, if the policy reads them.
fn entries<B: Backend>(
    cache: &SequenceCache,
    ctx: &BoundaryContext<'_, B>,
    index: usize,
) -> Result<Entries> {
    if cache.policy.needs().entries {
        Entries::read(ctx.backend, ctx.pages, &cache.heads[index], ctx.head_dim)
    } else {
        Ok(Entries::default())
    }
}

/// A head as policies see it.
fn view<'a, B: Backend>(
    cache: &'a SequenceCache,
    ctx: &BoundaryContext<'a, B>,
    index: usize,
    entries: &'a Entries,
    attention: &'a [f32],
) -> HeadView<'a> {
    let (head, layer) = (&cache.heads[index], cache.layout.layer_of(index));
    HeadView {
        layer,
        kv_head: cache.layout.kv_head_of(index),
        at: cache.seen - 1,
        next_rotary: cache.next_rotary,
        sinks: cache
            .contract
            .bounded()
            .map_or(0, |bounded| bounded.sinks as usize),
        head_dim: ctx.head_dim,
        inv_freq: &ctx.rotary.of_layer(layer).inv_freq,
        positions: &head.positions,
        terms: &head.terms,
        mass: attention,
        keys: &entries.keys,
        values: &entries.values,
        sums: &head.sums,
    }
}

/// Re-indexes rotary positions when the next stride would leave the trained range: every head's
/// slots become adjacent and end just before the next token. Done as rarely as the range allows,
/// because each rotation rounds the keys once.
fn reindex<B: Backend>(cache: &mut SequenceCache, ctx: &mut BoundaryContext<'_, B>) -> Result<()> {
    if cache.next_rotary + ctx.stride <= ctx.trained_length {
        return Ok(());
    }
    // The next token has one position on all ranks, whichever holds the longest head.
    let longest = ctx
        .peers
        .max(cache.heads.iter().map(|h| h.len()).max().unwrap_or(0) as u64)?;
    let next = longest.min(ctx.trained_length.saturating_sub(ctx.stride));
    let mut deltas = Vec::with_capacity(cache.heads.len());
    for head in &mut cache.heads {
        let len = head.len() as u64;
        let fresh: Vec<u32> = (0..len)
            .map(|slot| (next + slot).saturating_sub(len) as u32)
            .collect();
        let delta = fresh
            .iter()
            .zip(&head.rotary)
            .map(|(&new, &old)| (f64::from(new) - f64::from(old)) as f32);
        deltas.push(delta.collect::<Vec<f32>>());
        head.rotary = fresh;
    }
    for (table, rotary) in ctx.rotary.tables().iter().enumerate() {
        let has_it =
            |(index, _): &(usize, _)| ctx.rotary.index(cache.layout.layer_of(*index)) == table;
        if rotary.inv_freq.iter().all(|&freq| freq == 0.0) {
            continue;
        }
        let heads = cache.heads.iter().zip(&deltas).enumerate().filter(has_it);
        let items: Vec<_> = heads
            .map(|(_, (head, delta))| RotateItem {
                slots: head.view(head.len()),
                delta,
            })
            .collect();
        ctx.backend
            .rotate_keys(ctx.pages, &items, &rotary.inv_freq)?;
    }
    cache.next_rotary = next;
    Ok(())
}

#[cfg(test)]
mod tests;
