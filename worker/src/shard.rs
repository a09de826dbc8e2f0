//! What part of a model a rank holds.
//!
//! Attention is split by KV head with its query heads; with more ranks than KV heads several ranks share a head, each
//! holding a part of its slots and of its projections. Feed-forward columns are dealt so that every rank holds the same
//! number of weights in all, whatever its share of attention; embedding and output rows are split evenly.

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

/// Part of a KV head that several ranks share.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Part {
    /// This rank among the sharers.
    pub index: usize,
    /// Number of sharers; 1: the head is not shared.
    pub count: usize,
    /// Rank of the first sharer; the others follow it.
    pub first_rank: usize,
}

/// A rank's part of a model.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Shard {
    /// The rank.
    pub place: Place,
    /// KV heads whose cache this rank holds, or shares.
    pub kv_heads: Range<usize>,
    /// Its part of those heads. Shared heads are held one per rank.
    pub part: Part,
    /// `G`: query heads per KV head.
    pub group: usize,
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
            part: Part { index: 0, count: 1, first_rank: 0 },
            group: config.heads / config.kv_heads,
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
        let (kv_heads, part) = attention(config.kv_heads, place);
        let group = config.heads / config.kv_heads;
        let unit = column_unit(config.ffn, world_size);
        let units = config.ffn / unit;
        if units < world_size {
            return too_narrow("the feed-forward layer", units);
        }
        if config.vocabulary < world_size {
            return too_narrow("the vocabulary", config.vocabulary);
        }
        if part.count > group * config.head_dim {
            return too_narrow("a KV head", group * config.head_dim);
        }
        let dealt = feed_forward_units(config, world_size, unit);
        let first: usize = dealt[..rank].iter().sum();
        Ok(Self {
            place,
            kv_heads,
            part,
            group,
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
        self.kv_heads.len() * self.group
    }

    /// Rows of the query projection, of all heads' rows in order.
    pub fn query_rows(&self) -> Range<usize> {
        self.rows_of(self.group * self.head_dim)
    }

    /// Rows of the key projection, and of the value projection.
    pub fn key_rows(&self) -> Range<usize> {
        self.rows_of(self.head_dim)
    }

    /// Columns of the output projection.
    pub fn output_columns(&self) -> Range<usize> {
        let width = self.group * self.head_dim;
        let own = self.columns_of_part(self.part.index);
        if self.part.count == 1 {
            self.kv_heads.start * width..self.kv_heads.end * width
        } else {
            self.kv_heads.start * width + own.start..self.kv_heads.start * width + own.end
        }
    }

    /// Columns of a shared head's output that sharer `index` multiplies.
    pub fn columns_of_part(&self, index: usize) -> Range<usize> {
        let width = self.group * self.head_dim;
        let unit = column_unit(width, self.part.count);
        let units = even(width / unit, index, self.part.count);
        units.start * unit..units.end * unit
    }

    /// Rows of a shared head's projection of `width` rows that sharer `index` computes.
    pub fn rows_of_part(&self, width: usize, index: usize) -> Range<usize> {
        even(width, index, self.part.count)
    }

    fn rows_of(&self, width: usize) -> Range<usize> {
        if self.part.count == 1 {
            return self.kv_heads.start * width..self.kv_heads.end * width;
        }
        let own = self.rows_of_part(width, self.part.index);
        let first = self.kv_heads.start * width;
        first + own.start..first + own.end
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

/// KV heads of a rank, and its part of them.
fn attention(kv_heads: usize, place: Place) -> (Range<usize>, Part) {
    let Place { rank, world_size } = place;
    if world_size <= kv_heads {
        return (even(kv_heads, rank, world_size), Part { index: 0, count: 1, first_rank: rank });
    }
    let sharers = |head: usize| even(world_size, head, kv_heads);
    let head = (0..kv_heads).find(|&head| sharers(head).contains(&rank)).unwrap_or(0);
    let ranks = sharers(head);
    (head..head + 1, Part { index: rank - ranks.start, count: ranks.len(), first_rank: ranks.start })
}

/// Feed-forward units of every rank, such that attention and feed-forward weights together come out even.
fn feed_forward_units(config: &ModelConfig, world_size: usize, unit: usize) -> Vec<usize> {
    let units = config.ffn / unit;
    let unit_weights = (3 * unit * config.hidden) as f64;
    let head_weights = 2 * config.hidden * config.head_dim * (config.heads / config.kv_heads + 1);
    let attention_weights = |rank: usize| {
        let (heads, part) = attention(config.kv_heads, Place { rank, world_size });
        (heads.len() * head_weights) as f64 / part.count as f64
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
        let attention = shard.query_rows().len() + 2 * shard.key_rows().len() + shard.output_columns().len();
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
                let whole = layer_weights(config, &Shard::whole(config)) as f64 / world_size as f64;
                for shard in &shards {
                    let own = layer_weights(config, shard) as f64 / whole;
                    assert!((0.95..1.05).contains(&own), "{own} of the mean in {shard:?}");
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
                covers(&|s| s.key_rows(), config.kv_heads * dim);
                covers(&|s| s.output_columns(), config.heads * dim);
                covers(&|s| s.ffn.clone(), config.ffn);
                covers(&|s| s.vocabulary.clone(), config.vocabulary);
                assert!(shards.iter().all(|s| s.ffn.start % BLOCK == 0 && s.output_columns().start % BLOCK == 0));
            }
        }
    }

    #[test]
    fn a_head_is_shared_when_there_are_more_ranks_than_heads() {
        let config = config(9, 3, 64, 576, 1536);
        let part = |rank| {
            Shard::new(&config, Place { rank, world_size: 4 }).map(|s| (s.kv_heads.start, s.part.index, s.part.count))
        };
        assert_eq!([part(0), part(1), part(2), part(3)], [Ok((0, 0, 2)), Ok((0, 1, 2)), Ok((1, 0, 1)), Ok((2, 0, 1))]);
        let error = Shard::new(&config, Place { rank: 4, world_size: 4 }).unwrap_err();
        assert!(error.to_string().contains("ranks 0 to 3"), "{error}");
        let error = Shard::new(&config, Place { rank: 0, world_size: 2000 }).unwrap_err();
        assert!(error.to_string().contains("smaller --tp"), "{error}");
    }
}
