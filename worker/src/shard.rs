//! What part of a model a rank holds.
//!
//! Attention is split by KV head with its query heads. With more ranks than KV heads several ranks
//! share one, two in general: its query heads are dealt to them, its keys and values are held by
//! each, so their cache is not divided further. Feed-forward columns are dealt so that every rank
//! holds the same number of weights in all, whatever its share of attention; embedding and output
//! rows are split evenly.
//!
//! Products that ranks sum (attention output, feed-forward output) are summed unit by unit
//! ([`palimpsest_kernels::fixed`]). Units depend on the model alone and no rank holds a part of
//! one, so the sum has the same bits for any number of ranks:
//!
//! ```text
//! feed-forward columns   |    |  |   |    |   | |   |    |  |    |     units: wherever one of DEGREES cuts
//! 2 ranks                |            0           |       1      |
//! 3 ranks                |      0         |    1     |     2     |
//! ```
//! A unit of attention is what a rank has of a KV head's query heads where as many as may share it
//! do. Few and long units are what a product wants, which adds up each of them apart.

use std::collections::BTreeSet;
use std::ops::Range;

use crate::kv::Sharing;
use crate::model::config::ModelConfig;

/// Columns in one block of any quantised type whose blocks are short, and of 8-bit activations:
/// splits of input columns fall on multiples of it where a model's width is one.
const BLOCK: usize = 32;

/// Numbers of ranks whose shares of the feed-forward layer are as even as blocks allow. Others deal
/// the units of these.
const DEGREES: [usize; 6] = [2, 3, 4, 6, 8, 16];

/// Ranks that a model with few KV heads can be dealt to, if it has as many query heads.
const SHARED_PARTS: usize = 8;

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
    pub const ALONE: Self = Self {
        rank: 0,
        world_size: 1,
    };
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
    #[error(
        "{what} of the model has {units} parts to deal, too few for {world_size} ranks: use a \
         smaller --tp"
    )]
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
    /// Query heads whose attention it computes: those of its KV heads, or some of those of a
    /// shared one.
    pub query_heads: Range<usize>,
    /// Whether it speaks for its KV heads: the first of the ranks that share one does.
    pub leads: bool,
    /// `D`.
    pub head_dim: usize,
    /// Feed-forward columns.
    pub ffn: Range<usize>,
    /// Where the units among them end, from the first column here.
    pub ffn_units: Vec<usize>,
    /// Where the units among the columns of the output projection end, from the first column here.
    pub query_units: Vec<usize>,
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
            ffn_units: feed_forward_units(config),
            query_units: attention_units(config),
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
        let too_narrow = |what, units| {
            Err(ShardError::TooNarrow {
                what,
                units,
                world_size,
            })
        };
        if world_size > most_ranks(config) {
            return too_narrow("attention", most_ranks(config));
        }
        let Attention {
            kv_heads,
            query_heads,
            leads,
        } = attention(config, place);
        let units = feed_forward_units(config);
        if units.len() < world_size {
            return too_narrow("the feed-forward layer", units.len());
        }
        if config.vocabulary < world_size {
            return too_narrow("the vocabulary", config.vocabulary);
        }
        let cuts = cuts_at_units(config, world_size, &units);
        let ffn = cuts[rank]..cuts[rank + 1];
        let queries = query_heads.start * config.head_dim..query_heads.end * config.head_dim;
        Ok(Self {
            place,
            kv_heads,
            query_heads,
            leads,
            head_dim: config.head_dim,
            ffn_units: within(&units, &ffn),
            query_units: within(&attention_units(config), &queries),
            ffn,
            vocabulary: even(config.vocabulary, rank, world_size),
        })
    }

    /// The ranks that share this rank's KV head, where there are more ranks than KV heads.
    pub fn sharing(&self, config: &ModelConfig) -> Option<Sharing> {
        let Place { rank, world_size } = self.place;
        if world_size <= config.kv_heads {
            return None;
        }
        let ranks = sharers(config, world_size, self.kv_heads.start);
        let query_heads = |rank| {
            attention(config, Place { rank, world_size })
                .query_heads
                .len()
        };
        debug_assert!(ranks.contains(&rank), "it shares its own KV head");
        Some(Sharing {
            first_rank: ranks.start,
            query_heads: ranks.map(query_heads).collect(),
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

    /// Rows of the query projection, of all heads' rows in order; also columns of the output
    /// projection.
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
        return Attention {
            kv_heads,
            query_heads,
            leads: true,
        };
    }
    let is_sharer = |head: &usize| sharers(config, world_size, *head).contains(&rank);
    let head = (0..config.kv_heads).find(is_sharer).unwrap_or(0);
    let ranks = sharers(config, world_size, head);
    let parts = even(most_sharers(config), rank - ranks.start, ranks.len());
    let own = part(config, parts.start).start..part(config, parts.end - 1).end;
    let first = head * group;
    Attention {
        kv_heads: head..head + 1,
        query_heads: first + own.start..first + own.end,
        leads: rank == ranks.start,
    }
}

/// Ranks that may share a KV head, each with a part of its query heads: more of them where there
/// are few KV heads.
fn most_sharers(config: &ModelConfig) -> usize {
    let group = config.heads / config.kv_heads;
    (SHARED_PARTS / config.kv_heads).max(2).min(group)
}

/// Ranks among which attention can be dealt.
fn most_ranks(config: &ModelConfig) -> usize {
    config.kv_heads * most_sharers(config)
}

/// Query heads, counted from the first of their KV head, that are dealt together.
fn part(config: &ModelConfig, index: usize) -> Range<usize> {
    even(config.heads / config.kv_heads, index, most_sharers(config))
}

/// Ends of the units of the output projection, in columns.
fn attention_units(config: &ModelConfig) -> Vec<usize> {
    let group = config.heads / config.kv_heads;
    let parts = |kv_head: usize| {
        (0..most_sharers(config)).map(move |i| kv_head * group + part(config, i).end)
    };
    (0..config.kv_heads)
        .flat_map(parts)
        .map(|head| head * config.head_dim)
        .collect()
}

/// Those of `ends` that lie in `columns`, from its first one.
fn within(ends: &[usize], columns: &Range<usize>) -> Vec<usize> {
    ends.iter()
        .filter(|&&end| columns.start < end && end <= columns.end)
        .map(|end| end - columns.start)
        .collect()
}

/// Ranks that share a KV head, where there are more of them than KV heads.
fn sharers(config: &ModelConfig, world_size: usize, kv_head: usize) -> Range<usize> {
    even(world_size, kv_head, config.kv_heads)
}

/// Columns of a block of the feed-forward layer: the least that can be dealt.
fn block(config: &ModelConfig) -> usize {
    if config.ffn.is_multiple_of(BLOCK) {
        BLOCK
    } else {
        1
    }
}

/// Ends of the units of the feed-forward layer.
fn feed_forward_units(config: &ModelConfig) -> Vec<usize> {
    let blocks = config.ffn / block(config);
    let degrees = DEGREES
        .into_iter()
        .filter(|&degree| degree <= blocks.min(most_ranks(config)));
    let ends: BTreeSet<usize> = degrees
        .flat_map(|degree| even_cuts(config, degree))
        .chain([config.ffn])
        .collect();
    ends.into_iter().collect()
}

/// Feed-forward columns at which the ranks' parts end, but for the last one, such that attention
/// and feed-forward weights together come out as even as whole blocks allow. Every rank has a
/// block.
fn even_cuts(config: &ModelConfig, world_size: usize) -> Vec<usize> {
    let block = block(config);
    let blocks = config.ffn / block;
    let block_weights = (3 * block * config.hidden) as f64;
    let attention_weights = |rank: usize| {
        let own = attention(config, Place { rank, world_size });
        (2 * config.hidden * config.head_dim * (own.query_heads.len() + own.kv_heads.len())) as f64
    };
    let attention: Vec<f64> = (0..world_size).map(attention_weights).collect();
    let mean = (attention.iter().sum::<f64>() + blocks as f64 * block_weights) / world_size as f64;
    let (mut wanted, mut last) = (0.0, 0);
    let cut = |rank: usize| {
        wanted += (mean - attention[rank]) / block_weights;
        last = (wanted.round().max(0.0) as usize).clamp(last + 1, blocks - (world_size - 1 - rank));
        last * block
    };
    (0..world_size - 1).map(cut).collect()
}

/// Where the parts of all ranks begin and end: at the units' ends next to [`even_cuts`], each rank
/// with one unit at least. There are as many units as ranks, or more.
fn cuts_at_units(config: &ModelConfig, world_size: usize, units: &[usize]) -> Vec<usize> {
    let mut cuts = vec![0];
    let mut next = 0;
    for (rank, wanted) in even_cuts(config, world_size).into_iter().enumerate() {
        let most = units.len() - (world_size - 1 - rank);
        let nearest = (next..most)
            .min_by_key(|&unit| units[unit].abs_diff(wanted))
            .unwrap_or(next);
        cuts.push(units[nearest]);
        next = nearest + 1;
    }
    cuts.push(config.ffn);
    cuts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Model;

    /// A configuration of these widths.
    fn config(
        heads: usize,
        kv_heads: usize,
        head_dim: usize,
        hidden: usize,
        ffn: usize,
    ) -> ModelConfig {
        let tiny = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../tests/fixtures/models/llama"
        );
        let tiny = Model::open(std::path::Path::new(tiny))
            .expect("a fixture")
            .config()
            .clone();
        ModelConfig {
            heads,
            kv_heads,
            head_dim,
            hidden,
            ffn,
            vocabulary: 49152,
            layers: 30,
            ..tiny
        }
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
        for (config, sizes) in [
            (&smollm2, vec![1, 2, 3, 4, 6]),
            (&qwen3_8b, vec![2, 4, 8, 16]),
            (&qwen25_7b, vec![3, 8]),
        ] {
            for world_size in sizes {
                let shards: Vec<_> = (0..world_size)
                    .map(|rank| {
                        Shard::new(config, Place { rank, world_size }).expect("it can be split")
                    })
                    .collect();
                // Keys and values of a shared head are held by each of its ranks.
                let whole = shards
                    .iter()
                    .map(|s| layer_weights(config, s))
                    .sum::<usize>() as f64
                    / world_size as f64;
                for shard in &shards {
                    let own = layer_weights(config, shard) as f64 / whole;
                    assert!(
                        (0.95..1.05).contains(&own),
                        "{own} of the mean in {shard:?}"
                    );
                }
                for head in 0..config.kv_heads {
                    let holders = shards.iter().filter(|s| s.kv_heads.contains(&head));
                    assert_eq!(
                        holders.filter(|s| s.leads).count(),
                        1,
                        "one speaks for KV head {head}"
                    );
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
                assert!(
                    shards
                        .iter()
                        .all(|s| s.ffn.start % BLOCK == 0 && s.query_rows().start % BLOCK == 0)
                );
            }
        }
    }

    /// What makes sums the same for any number of ranks: together the ranks hold the units of the
    /// whole model, each of them whole.
    #[test]
    fn units_do_not_depend_on_the_number_of_ranks() {
        let smollm2 = config(9, 3, 64, 576, 1536);
        let qwen3_8b = config(32, 8, 128, 4096, 12288);
        let odd = config(7, 7, 16, 64, 35);
        let tiny = config(6, 3, 16, 64, 192);
        let multi_query = config(16, 1, 64, 1024, 4096);
        for config in [smollm2, qwen3_8b, odd, tiny, multi_query] {
            let whole = Shard::whole(&config);
            assert_eq!(whole.ffn_units.last(), Some(&config.ffn));
            assert!(
                whole.ffn_units.len() <= 23,
                "long units: {:?}",
                whole.ffn_units
            );
            assert!(
                whole.query_units.len() <= 16,
                "long units: {:?}",
                whole.query_units
            );
            let mut split = 0;
            for world_size in 1..=most_ranks(&config) {
                let place = |rank| Place { rank, world_size };
                let Ok(shards) = (0..world_size)
                    .map(|rank| Shard::new(&config, place(rank)))
                    .collect::<Result<Vec<_>, _>>()
                else {
                    assert!(!DEGREES.contains(&world_size), "{world_size} ranks");
                    continue;
                };
                split += 1;
                let units = shards
                    .iter()
                    .flat_map(|s| s.ffn_units.iter().map(|end| s.ffn.start + end));
                assert_eq!(
                    units.collect::<Vec<_>>(),
                    whole.ffn_units,
                    "{world_size} ranks"
                );
                let units = shards
                    .iter()
                    .flat_map(|s| s.query_units.iter().map(|end| s.query_rows().start + end));
                assert_eq!(
                    units.collect::<Vec<_>>(),
                    whole.query_units,
                    "{world_size} ranks"
                );
                assert!(
                    shards
                        .iter()
                        .all(|s| s.query_units.last() == Some(&s.query_rows().len())),
                    "whole units"
                );
            }
            assert!(split >= 4, "{split} numbers of ranks");
            let beyond = Place {
                rank: 0,
                world_size: most_ranks(&config) + 1,
            };
            let error = Shard::new(&config, beyond).unwrap_err().to_string();
            assert!(error.contains("attention of the model has"), "{error}");
        }
    }

    #[test]
    fn a_head_is_shared_when_there_are_more_ranks_than_heads() {
        let config = config(9, 3, 64, 576, 1536);
        let part = |rank| {
            let shard = Shard::new(
                &config,
                Place {
                    rank,
                    world_size: 4,
                },
            )
            .expect("it can be split");
            (shard.kv_heads.start, shard.query_heads, shard.leads)
        };
        let parts = [part(0), part(1), part(2), part(3)];
        assert_eq!(
            parts,
            [
                (0, 0..2, true),
                (0, 2..3, false),
                (1, 3..6, true),
                (2, 6..9, true)
            ]
        );
        let sharing = |rank, world_size| {
            let shard = Shard::new(&config, Place { rank, world_size }).expect("it can be split");
            shard
                .sharing(&config)
                .map(|sharing| (sharing.first_rank, sharing.query_heads))
        };
        assert_eq!(sharing(2, 3), None);
        let shared = |first, heads: &[usize]| Some((first, heads.to_vec()));
        assert_eq!(
            [0, 1, 2, 3].map(|rank| sharing(rank, 4)),
            [
                shared(0, &[2, 1]),
                shared(0, &[2, 1]),
                shared(2, &[3]),
                shared(3, &[3])
            ]
        );
        assert_eq!(sharing(5, 6), shared(4, &[2, 1]));
        let error = Shard::new(
            &config,
            Place {
                rank: 4,
                world_size: 4,
            },
        )
        .unwrap_err();
        assert!(error.to_string().contains("ranks 0 to 3"), "{error}");
        let error = Shard::new(
            &config,
            Place {
                rank: 0,
                world_size: 2000,
            },
        )
        .unwrap_err();
        assert!(error.to_string().contains("smaller --tp"), "{error}");
    }
}
