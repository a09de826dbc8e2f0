//! Grouped-query attention over the bounded cache.

use std::ops::Range;

use palimpsest_kernels::{
    AssociativeLayer, AttentionItem, Backend, ObserveItem, QkNorm, QkvShape, ReadoutItem,
    SplitItem, SplitQkv,
};
use palimpsest_models::weights::LayerWeights;

use crate::error::Result;
use crate::kv::SequenceCache;
use crate::policy::Observe;
use crate::upload::{stack, vector};

/// Attention weights of one layer.
pub struct AttentionWeights<B: Backend> {
    /// Query, key and value projections, stacked `[(H+2K)*D, E]`.
    pub qkv: B::Matrix,
    /// Their biases `[(H+2K)*D]` (Qwen2).
    pub qkv_bias: Option<B::Buffer>,
    /// Per-head norms of queries and keys (Qwen3).
    pub qk_norm: Option<HeadNorms<B>>,
    /// Output projection `[E, H*D]`.
    pub output: B::Matrix,
    /// Its bias `[E]` (gpt-oss).
    pub output_bias: Option<B::Buffer>,
    /// Logits of attention sinks `[H]` (gpt-oss).
    pub sinks: Option<Vec<f32>>,
}

/// RMS norms of the queries and the keys of every head.
pub struct HeadNorms<B: Backend> {
    /// The queries' norm `[D]`.
    pub q: B::Buffer,
    /// The keys' norm `[D]`.
    pub k: B::Buffer,
}

impl<B: Backend> AttentionWeights<B> {
    pub(super) fn load(backend: &B, weights: &LayerWeights<'_>) -> Result<Self> {
        let biases = [&weights.q_bias, &weights.k_bias, &weights.v_bias];
        let widths = [weights.q.rows, weights.k.rows, weights.v.rows];
        let qkv_bias = if biases.iter().any(|b| b.is_some()) {
            let mut all = Vec::new();
            for (bias, width) in biases.into_iter().zip(widths) {
                match bias {
                    Some(bias) => all.extend_from_slice(bias),
                    None => all.resize(all.len() + width, 0.0),
                }
            }
            Some(vector(backend, &all)?)
        } else {
            None
        };
        let qk_norm = match (&weights.q_norm, &weights.k_norm) {
            (Some(q), Some(k)) => Some(HeadNorms {
                q: vector(backend, q)?,
                k: vector(backend, k)?,
            }),
            _ => None,
        };
        Ok(Self {
            qkv: stack(backend, &[&weights.q, &weights.k, &weights.v])?,
            qkv_bias,
            qk_norm,
            output: stack(backend, &[&weights.o])?,
            output_bias: match &weights.o_bias {
                Some(bias) => Some(vector(backend, bias)?),
                None => None,
            },
            sinks: weights.sinks.clone(),
        })
    }
}

/// Rows of one sequence in a step, with its cache already grown by them.
pub struct Span<'a> {
    /// The sequence.
    pub cache: &'a mut SequenceCache,
    /// Its token rows.
    pub rows: Range<usize>,
}

impl Span<'_> {
    /// Absolute position of the first row.
    pub fn first_position(&self) -> u64 {
        self.cache.seen - self.rows.len() as u64
    }

    /// For each row the first slot of `head` that a sliding window of `window` positions leaves
    /// visible.
    fn first_visible(&self, head: usize, window: usize) -> Vec<u32> {
        let positions = &self.cache.heads[head].positions;
        let start = |row: usize| {
            let position = self.first_position() + row as u64;
            positions.partition_point(|&p| u64::from(p) + window as u64 <= position) as u32
        };
        (0..self.rows.len()).map(start).collect()
    }
}

/// Where a layer's attention reads and writes.
pub struct AttentionArgs<'a, B: Backend> {
    /// Layer index.
    pub layer: usize,
    /// Head layout.
    pub shape: QkvShape,
    /// Rows of the step.
    pub rows: usize,
    /// Fused projections `[T, (H+2K)*D]`.
    pub qkv: &'a B::Buffer,
    /// Rotary cosines `[T, D/2]`.
    pub cos: &'a B::Buffer,
    /// Rotary sines `[T, D/2]`.
    pub sin: &'a B::Buffer,
    /// Per-head norms of queries and keys.
    pub qk_norm: Option<QkNorm<'a, B::Buffer>>,
    /// Logits of attention sinks `[H]`.
    pub sinks: Option<&'a [f32]>,
    /// Sliding window of the layer.
    pub sliding_window: Option<usize>,
    /// `E`: stride of the boundaries.
    pub stride: u64,
    /// The layer's part of trained associative memories.
    pub associative: Option<AssociativeLayer<'a, B>>,
}

/// Rotates and stores the step's keys and values, attends, and observes attention for the policies
/// that ask for it. `q` and `out`: `[T, H, D]`.
///
/// # Errors
/// Those of the kernels.
pub fn attend<B: Backend>(
    backend: &B,
    args: &AttentionArgs<'_, B>,
    spans: &mut [Span<'_>],
    pages: &mut B::Pages,
    q: &mut B::Buffer,
    out: &mut B::Buffer,
) -> Result<()> {
    let kv_heads = args.shape.kv_heads;
    let head_index = |kv_head: usize| args.layer * kv_heads + kv_head;
    let mut splits = Vec::with_capacity(spans.len() * kv_heads);
    for span in spans.iter() {
        for kv_head in 0..kv_heads {
            let head = &span.cache.heads[head_index(kv_head)];
            splits.push(SplitItem {
                rows: span.rows.clone(),
                kv_head,
                slots: head.view(head.len() - span.rows.len()),
            });
        }
    }
    let split = SplitQkv {
        shape: args.shape,
        qkv: args.qkv,
        rows: args.rows,
        cos: args.cos,
        sin: args.sin,
        qk_norm: args.qk_norm,
        items: &splits,
    };
    backend.split_qkv(split, pages, q)?;

    let visible: Vec<Option<Vec<u32>>> = spans
        .iter()
        .flat_map(|span| (0..kv_heads).map(move |h| (span, h)))
        .map(|(span, h)| {
            args.sliding_window
                .map(|w| span.first_visible(head_index(h), w))
        })
        .collect();
    let items: Vec<_> = spans
        .iter()
        .enumerate()
        .flat_map(|(s, span)| (0..kv_heads).map(move |h| (s * kv_heads + h, span, h)))
        .map(|(i, span, h)| AttentionItem {
            sinks: sinks_of(args.sinks, args.shape, h),
            ..attention_item(span, head_index(h), h, visible[i].as_deref())
        })
        .collect();
    backend.attention(args.shape, pages, q, &items, out)?;
    read_out(backend, args, spans, pages, q, out)?;
    observe(backend, args, spans, pages, q)
}

/// Adds what associative memories remember.
fn read_out<B: Backend>(
    backend: &B,
    args: &AttentionArgs<'_, B>,
    spans: &[Span<'_>],
    pages: &B::Pages,
    q: &B::Buffer,
    out: &mut B::Buffer,
) -> Result<()> {
    let (kv_heads, mut items) = (args.shape.kv_heads, Vec::new());
    for span in spans {
        let Some(memory) = span.cache.filled_memory() else {
            continue;
        };
        for kv_head in 0..kv_heads {
            let Some(memory) = memory.readout(args.layer * kv_heads + kv_head) else {
                continue;
            };
            items.push(ReadoutItem {
                rows: span.rows.clone(),
                kv_head,
                memory,
            });
        }
    }
    match args.associative {
        Some(weights) if !items.is_empty() => Ok(backend.readout(weights, pages, q, &items, out)?),
        _ => Ok(()),
    }
}

fn attention_item<'a>(
    span: &'a Span<'_>,
    index: usize,
    kv_head: usize,
    first_visible: Option<&'a [u32]>,
) -> AttentionItem<'a> {
    let head = &span.cache.heads[index];
    let centroids = span
        .cache
        .filled_memory()
        .and_then(|memory| memory.centroids(index));
    AttentionItem {
        rows: span.rows.clone(),
        kv_head,
        slots: head.view(head.len()),
        first_visible,
        centroids,
        sinks: None,
    }
}

/// Sinks of the query heads of a KV head.
fn sinks_of(all: Option<&[f32]>, shape: QkvShape, kv_head: usize) -> Option<&[f32]> {
    let group = shape.heads / shape.kv_heads;
    Some(&all?[kv_head * group..(kv_head + 1) * group])
}

/// Adds the attention that slots receive from the rows a policy looks at, for each query head
/// apart: who shares a KV head with other ranks has some of its query heads only (`kv::sharing`).
fn observe<B: Backend>(
    backend: &B,
    args: &AttentionArgs<'_, B>,
    spans: &mut [Span<'_>],
    pages: &B::Pages,
    q: &B::Buffer,
) -> Result<()> {
    let kv_heads = args.shape.kv_heads;
    // Every query head has its own reduction, as if it had a KV head of its own.
    let shape = QkvShape {
        kv_heads: args.shape.heads,
        ..args.shape
    };
    for span in spans.iter_mut() {
        let Some(wanted) = span.cache.policy.needs().attention.observed() else {
            continue;
        };
        let Some(skip) = rows_to_skip(span, wanted, args.stride) else {
            continue;
        };
        let observed = span.first_position() + skip as u64..span.cache.seen;
        let weights = span.cache.policy.row_weights(observed);
        if weights
            .as_ref()
            .is_some_and(|weights| weights.iter().all(|w| *w == 0.0))
        {
            continue;
        }
        let range = args.layer * kv_heads..(args.layer + 1) * kv_heads;
        let group = span.cache.layout.query_heads;
        let mut mass: Vec<Vec<f32>> = range
            .clone()
            .flat_map(|h| std::mem::take(&mut span.cache.heads[h].mass))
            .collect();
        let visible: Vec<Option<Vec<u32>>> = range
            .clone()
            .map(|h| {
                args.sliding_window
                    .map(|w| span.first_visible(h, w).split_off(skip))
            })
            .collect();
        let items: Vec<_> = (0..shape.heads)
            .map(|query_head| {
                let h = query_head / group;
                let mut attend =
                    attention_item(span, range.start + h, query_head, visible[h].as_deref());
                attend.rows.start += skip;
                attend.sinks = sinks_of(args.sinks, shape, query_head);
                ObserveItem {
                    attend,
                    reduce: wanted.reduce,
                    row_weights: weights.as_deref(),
                }
            })
            .collect();
        backend.observe(shape, pages, q, &items, &mut mass)?;
        drop(items);
        let mut mass = mass.into_iter();
        for h in range {
            span.cache.heads[h].mass = mass.by_ref().take(group).collect();
        }
    }
    Ok(())
}

/// Rows at the start of the span that the policy does not look at; `None` when it looks at none of
/// them.
fn rows_to_skip(span: &Span<'_>, wanted: Observe, stride: u64) -> Option<usize> {
    let Some(last) = wanted.last_rows else {
        return Some(0);
    };
    let boundary = span.cache.seen.next_multiple_of(stride);
    let first_wanted = boundary - last.min(boundary);
    let skip = first_wanted.saturating_sub(span.first_position()) as usize;
    (skip < span.rows.len()).then_some(skip)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use palimpsest_kernels::Reduce;

    use super::*;
    use crate::kv::Contract;
    use crate::policy::Full;
    use crate::shard::HeadLayout;

    #[test]
    fn observed_rows_are_the_last_before_a_boundary_however_the_sequence_is_cut() {
        let stride = 16;
        for last in [None, Some(1), Some(5), Some(16), Some(64)] {
            let wanted = Observe {
                last_rows: last,
                reduce: Reduce::Sum,
                forgets: false,
            };
            for first in 0..48u64 {
                for count in 1..=stride - first % stride {
                    let mut cache = SequenceCache::new(
                        HeadLayout::alone(1, 1),
                        Contract::Full,
                        Arc::new(Full),
                        None,
                    );
                    cache.seen = first + count;
                    // The span does not start at row 0 of the step.
                    let span = Span {
                        cache: &mut cache,
                        rows: 3..3 + count as usize,
                    };
                    let is_observed = |position: u64| {
                        let boundary = (position / stride + 1) * stride;
                        last.is_none_or(|last| position + last >= boundary)
                    };
                    let want = (0..count as usize).find(|&row| is_observed(first + row as u64));
                    assert_eq!(
                        rows_to_skip(&span, wanted, stride),
                        want,
                        "{last:?}: {count} rows from {first}"
                    );
                }
            }
        }
    }
}
