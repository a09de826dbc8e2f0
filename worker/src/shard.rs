//! What part of a model a rank holds.
//!
//! Attention is split by KV head with its query heads. With more ranks than KV heads several ranks share one: its query
//! heads are dealt to them, its keys and values are held by each, so their cache is not divided further. Feed-forward columns
//! are dealt so that every rank holds the same number of weights in all, whatever its share of attention; embedding and output
//! rows are split evenly.

use std::ops::Range;

use crate::model::config::ModelConfig;

/// Columns in one block of any quantised type whose blocks are short, and of 8-bit activations: splits of input columns
/// fall on multiples of it where there are enough for all.
const BLOCK: usize = 32;

/// Where a rank stands in its group.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Place {
    /// This rank, from 0.
    pub rank: usize,
    /// Number of ranks.
    pub world_size: usize,
}

impl Place {
    /// The only rank of a group.
    pub const ALONE: Self = Self { rank: 0, world_size: 1 };
}

impl Default for Place {
    fn default() -> Self {
        Self::ALONE
    }
}

/// Why a model cannot be split so.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ShardError {
    /// The rank is not one of the group.
    #[error("rank {rank} is out of range: a group of {world_size} has ranks 0 to {}", world_size.saturating_sub(1))]
    Rank {
        /// The rank.
        rank: usize,
        /// Number of ranks.
        world_size: usize,
    },
    /// Something of the model is too narrow for this many ranks.
    #[error("{what} of the model has {units} parts to deal, too few for {world_size} ranks: use a smaller --tp")]
    TooNarrow {
        /// What is too narrow.
        what: &'static str,
        /// Parts that can be dealt.
        units: usize,
        /// Number of ranks.
        world_size: usize,
    },
}

/// A rank's part of a model.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Shard {
    /// The rank.
    pub place: Place,
    /// KV heads whose cache this rank holds.
    pub kv_heads: Range<usize>,
    /// Query heads whose attention it computes: those of its KV heads, or some of those of a shared one.
    pub query_heads: Range<usize>,
    /// Whether it speaks for its KV heads: the first of the ranks that share one does.
    pub leads: bool,
    /// `D`.
    pub head_dim: usize,
    /// Feed-forward columns.
    pub ffn: Range<usize>,
    /// Rows of the embedding and of the output projection.
    pub vocabulary: Range<usize>,
}

impl Shard {
    /// The whole model.
    pub fn whole(config: &ModelConfig) -> Self {
        Self {
            place: Place::ALONE,
            kv_heads: 0..config.kv_heads,
            query_heads: 0..config.heads,
            leads: true,
            head_dim: config.head_dim,
            ffn: 0..config.ffn,
            vocabulary: 0..config.vocabulary,
        }
    }

    /// The part of `place`. All ranks of a group compute all parts alike.
    ///
    /// # Errors
    /// See [`ShardError`].
    pub fn new(config: &ModelConfig, place: Place) -> Result<Self, ShardError> {
        let Place { rank, world_size } = place;
        if rank >= world_size {
            return Err(ShardError::Rank { rank, world_size });
        }
        if world_size == 1 {
            return Ok(Self::whole(config));
        }
        let too_narrow = |what, units| Err(ShardError::TooNarrow { what, units, world_size });
        if world_size > config.heads {
            return too_narrow("attention", config.heads);
        }
        let Attention { kv_heads, query_heads, leads } = attention(config, place);
        let unit = column_unit(config.ffn, world_size);
        let units = config.ffn / unit;
        if units < world_size {
            return too_narrow("the feed-forward layer", units);
        }
        if config.vocabulary < world_size {
            return too_narrow("the vocabulary", config.vocabulary);
        }
        let dealt = feed_forward_units(config, world_size, unit);
        let first: usize = dealt[..rank].iter().sum();
        Ok(Self {
            place,
            kv_heads,
            query_heads,
            leads,
            head_dim: config.head_dim,
            ffn: first * unit..(first + dealt[rank]) * unit,
            vocabulary: even(config.vocabulary, rank, world_size),
        })
    }

    /// Whether this is the whole model.
    pub fn is_whole(&self) -> bool {
        self.place.world_size == 1
    }

    /// Query heads whose attention this rank computes.
    pub fn heads(&self) -> usize {
        self.query_heads.len()
    }

    /// Rows of the query projection, of all heads' rows in order; also columns of the output projection.
    pub fn query_rows(&self) -> Range<usize> {
        self.query_heads.start * self.head_dim..self.query_heads.end * self.head_dim
    }

    /// Rows of the key projection, and of the value projection.
    pub fn key_rows(&self) -> Range<usize> {
        self.kv_heads.start * self.head_dim..self.kv_heads.end * self.head_dim
    }
}

/// Part `index` of `width` things dealt to `count`, the first ones getting one more.
pub fn even(width: usize, index: usize, count: usize) -> Range<usize> {
    let (base, extra) = (width / count, width % count);
    let start = index * base + index.min(extra);
    start..start + base + usize::from(index < extra)
}

/// Columns that stay together when `width` of them are dealt to `count`.
fn column_unit(width: usize, count: usize) -> usize {
    if width.is_multiple_of(BLOCK) && width / BLOCK >= count { BLOCK } else { 1 }
}

/// A rank's part of attention.
struct Attention {
    kv_heads: Range<usize>,
    query_heads: Range<usize>,
    leads: bool,
}

fn attention(config: &ModelConfig, place: Place) -> Attention {
    let Place { rank, world_size } = place;
    let group = config.heads / config.kv_heads;
    if world_size <= config.kv_heads {
        let kv_heads = even(config.kv_heads, rank, world_size);
        let query_heads = kv_heads.start * group..kv_heads.end * group;
        return Attention { kv_heads, query_heads, leads: true };
    }
    let sharers = |head: usize| even(world_size, head, config.kv_heads);
    let head = (0..config.kv_heads).find(|&head| sharers(head).contains(&rank)).unwrap_or(0);
    let ranks = sharers(head);
    let own = even(group, rank - ranks.start, ranks.len());
    let first = head * group;
    Attention { kv_heads: head..head + 1, query_heads: first + own.start..first + own.end, leads: rank == ranks.start }
}

/// Feed-forward units of every rank, such that attention and feed-forward weights together come out even.
fn feed_forward_units(config: &ModelConfig, world_size: usize, unit: usize) -> Vec<usize> {
    let units = config.ffn / unit;
    let unit_weights = (3 * unit * config.hidden) as f64;
    let attention_weights = |rank: usize| {
        let own = attention(config, Place { rank, world_size });
        (2 * config.hidden * config.head_dim * (own.query_heads.len() + own.kv_heads.len())) as f64
    };
    let attention: Vec<f64> = (0..world_size).map(attention_weights).collect();
    let mean = (attention.iter().sum::<f64>() + units as f64 * unit_weights) / world_size as f64;
    let wanted = |own: &f64| ((mean - own) / unit_weights).max(1.0);
    let mut dealt: Vec<usize> = attention.iter().map(|own| wanted(own) as usize).collect();
    // What rounding down, or the least share of one unit, left over goes where it is missed most.
    while dealt.iter().sum::<usize>() != units {
        let lack = |rank: usize| mean - attention[rank] - dealt[rank] as f64 * unit_weights;
        let by_lack = |a: &usize, b: &usize| lack(*a).total_cmp(&lack(*b)).then(b.cmp(a));
        if dealt.iter().sum::<usize>() < units {
            let neediest = (0..world_size).max_by(by_lack).unwrap_or(0);
            dealt[neediest] += 1;
        } else {
            let fullest = (0..world_size).filter(|&rank| dealt[rank] > 1).min_by(by_lack).unwrap_or(0);
            dealt[fullest] -= 1;
        }
    }
    dealt
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Model;

    /// A configuration of these widths.
    fn config(heads: usize, kv_heads: usize, head_dim: usize, hidden: usize, ffn: usize) -> ModelConfig {
        let tiny = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/models/llama");
        let tiny = Model::open(std::path::Path::new(tiny)).expect("a fixture").config().clone();
        ModelConfig { heads, kv_heads, head_dim, hidden, ffn, vocabulary: 49152, layers: 30, ..tiny }
    }

    /// Weights of one layer that a rank multiplies.
    fn layer_weights(config: &ModelConfig, shard: &Shard) -> usize {
        let attention = 2 * shard.query_rows().len() + 2 * shard.key_rows().len();
        config.hidden * (attention + 3 * shard.ffn.len())
    }

    #[test]
    fn ranks_hold_everything_once_and_about_the_same() {
        let smollm2 = config(9, 3, 64, 576, 1536);
        let qwen3_8b = config(32, 8, 128, 4096, 12288);
        let qwen25_7b = config(28, 4, 128, 3584, 18944);
        for (config, sizes) in
            [(&smollm2, vec![1, 2, 3, 4, 6]), (&qwen3_8b, vec![2, 4, 8, 16]), (&qwen25_7b, vec![3, 8])]
        {
            for world_size in sizes {
                let shards: Vec<_> = (0..world_size)
                    .map(|rank| Shard::new(config, Place { rank, world_size }).expect("it can be split"))
                    .collect();
                // Keys and values of a shared head are held by each of its ranks.
                let whole = shards.iter().map(|s| layer_weights(config, s)).sum::<usize>() as f64 / world_size as f64;
                for shard in &shards {
                    let own = layer_weights(config, shard) as f64 / whole;
                    assert!((0.95..1.05).contains(&own), "{own} of the mean in {shard:?}");
                }
                for head in 0..config.kv_heads {
                    let holders = shards.iter().filter(|s| s.kv_heads.contains(&head));
                    assert_eq!(holders.filter(|s| s.leads).count(), 1, "one speaks for KV head {head}");
                }
                let covers = |part: &dyn Fn(&Shard) -> Range<usize>, width: usize| {
                    let mut next = 0;
                    for shard in &shards {
                        assert_eq!(part(shard).start, next, "{shard:?}");
                        next = part(shard).end;
                    }
                    assert_eq!(next, width);
                };
                let dim = config.head_dim;
                covers(&|s| s.query_rows(), config.heads * dim);
                covers(&|s| s.ffn.clone(), config.ffn);
                covers(&|s| s.vocabulary.clone(), config.vocabulary);
                assert!(shards.iter().all(|s| s.ffn.start % BLOCK == 0 && s.query_rows().start % BLOCK == 0));
            }
        }
    }

    #[test]
    fn a_head_is_shared_when_there_are_more_ranks_than_heads() {
        let config = config(9, 3, 64, 576, 1536);
        let part = |rank| {
            let shard = Shard::new(&config, Place { rank, world_size: 4 }).expect("it can be split");
            (shard.kv_heads.start, shard.query_heads, shard.leads)
        };
        let parts = [part(0), part(1), part(2), part(3)];
        assert_eq!(parts, [(0, 0..2, true), (0, 2..3, false), (1, 3..6, true), (2, 6..9, true)]);
        let error = Shard::new(&config, Place { rank: 4, world_size: 4 }).unwrap_err();
        assert!(error.to_string().contains("ranks 0 to 3"), "{error}");
        let error = Shard::new(&config, Place { rank: 0, world_size: 2000 }).unwrap_err();
        assert!(error.to_string().contains("smaller --tp"), "{error}");
    }
}
