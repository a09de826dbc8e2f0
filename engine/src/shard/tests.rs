//! What ranks hold, by shape and by the bytes of real files.

use std::path::Path;

use palimpsest_models::Model;
use palimpsest_models::weights::{FeedForwardWeights, GatedWeights, LayerWeights};

use super::*;

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
    let attention = 2 * shard.part.query_rows().len() + 2 * shard.part.key_rows().len();
    config.hidden * (attention + 3 * shard.part.ffn.len())
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
                let holders = shards.iter().filter(|s| s.part.kv_heads.contains(&head));
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
            covers(&|s| s.part.query_rows(), config.heads * dim);
            covers(&|s| s.part.ffn.clone(), config.ffn);
            covers(&|s| s.part.vocabulary.clone(), config.vocabulary);
            assert!(
                shards.iter().all(
                    |s| s.part.ffn.start % BLOCK == 0 && s.part.query_rows().start % BLOCK == 0
                )
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
                .flat_map(|s| s.ffn_units.iter().map(|end| s.part.ffn.start + end));
            assert_eq!(
                units.collect::<Vec<_>>(),
                whole.ffn_units,
                "{world_size} ranks"
            );
            let units = shards.iter().flat_map(|s| {
                s.query_units
                    .iter()
                    .map(|end| s.part.query_rows().start + end)
            });
            assert_eq!(
                units.collect::<Vec<_>>(),
                whole.query_units,
                "{world_size} ranks"
            );
            assert!(
                shards
                    .iter()
                    .all(|s| s.query_units.last() == Some(&s.part.query_rows().len())),
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
        (
            shard.part.kv_heads.start,
            shard.part.query_heads,
            shard.leads,
        )
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

fn open(name: &str) -> Model {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/fixtures/models")
        .join(name);
    let file = path.join("model.gguf");
    Model::open(if file.is_file() { &file } else { &path }).unwrap()
}

fn dense<'a, 'b>(layer: &'b LayerWeights<'a>) -> &'b GatedWeights<'a> {
    match &layer.feed_forward {
        FeedForwardWeights::Dense(gated) => gated,
        FeedForwardWeights::Routed { .. } => panic!("a dense model"),
    }
}

/// Laid side by side, the shards of all ranks are the whole matrices, whatever the order of rows in
/// the file.
#[test]
fn shards_of_all_ranks_make_the_whole() {
    // The fixtures' feed-forward layers are too narrow for more than two; the last one's ranks
    // share KV heads.
    let wide = "random:smollm2-135m";
    for (name, world_size) in [
        ("gguf-llama", 2),
        ("llama", 2),
        ("qwen2", 2),
        ("qwen3", 2),
        (wide, 3),
        (wide, 4),
    ] {
        let model = if name == wide {
            Model::open(Path::new(wide)).unwrap()
        } else {
            open(name)
        };
        let all = model
            .weights()
            .layer(0, &Part::whole(model.config()))
            .unwrap();
        let shards: Vec<_> = (0..world_size)
            .map(|rank| Shard::new(model.config(), Place { rank, world_size }).unwrap())
            .collect();
        let parts: Vec<_> = shards
            .iter()
            .map(|shard| model.weights().layer(0, &shard.part).unwrap())
            .collect();
        // Keys of a shared head are with each of its ranks; one of them leads.
        let leaders: Vec<_> = parts
            .iter()
            .zip(&shards)
            .filter(|(_, shard)| shard.leads)
            .map(|(part, _)| part)
            .collect();
        let below = |part: &dyn Fn(&LayerWeights<'_>) -> Vec<u8>| {
            parts.iter().flat_map(part).collect::<Vec<u8>>()
        };
        assert_eq!(
            below(&|l| l.q.bytes.to_vec()),
            all.q.bytes.to_vec(),
            "{name}"
        );
        let keys: Vec<u8> = leaders.iter().flat_map(|l| l.k.bytes.to_vec()).collect();
        assert_eq!(keys, all.k.bytes.to_vec(), "{name}");
        assert_eq!(
            below(&|l| dense(l).up.bytes.to_vec()),
            dense(&all).up.bytes.to_vec(),
            "{name}"
        );
        let biases: Vec<f32> = leaders
            .iter()
            .flat_map(|l| l.k_bias.clone().unwrap_or_default())
            .collect();
        assert_eq!(biases, all.k_bias.clone().unwrap_or_default(), "{name}");
        let down = &dense(&all).down;
        for row in 0..down.rows {
            let beside: Vec<u8> = parts
                .iter()
                .flat_map(|l| dense(l).down.clone().into_rows(row..row + 1).bytes.to_vec())
                .collect();
            assert_eq!(
                beside,
                down.clone().into_rows(row..row + 1).bytes.to_vec(),
                "{name}"
            );
        }
    }
}

#[test]
fn a_feed_forward_layer_of_two_blocks_is_not_split_in_four() {
    let model = open("llama");
    let error = Shard::new(
        model.config(),
        Place {
            rank: 0,
            world_size: 4,
        },
    )
    .unwrap_err()
    .to_string();
    assert!(
        error.contains("the feed-forward layer") && error.contains("smaller --tp"),
        "{error}"
    );
}
