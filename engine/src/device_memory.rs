//! What a rank takes of a GPU's memory, counted before anything is loaded.
//!
//! Weights and cache are exact. Workspaces are those of the largest usual step: activations, which
//! are allocated when the rank opens, and what the device keeps besides, for which there is an
//! allowance.

use palimpsest_kernels::{KvType, PageShape};
use palimpsest_models::config::ModelConfig;
use palimpsest_proto::kv;

use crate::shard::Shard;

// A coordinator admits by the first, a rank allocates by the second.
const _: () = assert!(
    kv::NOTE_BYTES == PageShape::NOTE_BYTES as u64 && kv::PAGE_SLOTS == PageShape::SLOTS as u64
);

/// What a rank's cache may take. Fixed at start: neither part makes room for the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheBytes {
    /// Pages of slots, with their notes.
    pub pages: usize,
    /// Latent memories.
    pub latent: usize,
}

impl CacheBytes {
    /// Divides `all`: memories get `latent` of it, or [`kv::LATENT_SHARE`] where that is not said.
    pub fn of(all: usize, latent: Option<usize>) -> Self {
        let latent = latent.unwrap_or(all / kv::LATENT_SHARE as usize).min(all);
        Self {
            pages: all - latent,
            latent,
        }
    }
}

/// Sizes of a step that memory is set aside for. A larger one allocates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepSize {
    /// Token rows.
    pub rows: usize,
    /// Rows of logits: sequences that sample.
    pub logit_rows: usize,
}

impl StepSize {
    /// The smallest step.
    pub const ONE: Self = Self {
        rows: 1,
        logit_rows: 1,
    };

    /// As coordinators plan them where they are not told otherwise: four strides of prompts, beside
    /// as many sequences as a large batch has.
    pub const fn usual(stride: usize) -> Self {
        Self {
            rows: 4 * stride + 64,
            logit_rows: 64,
        }
    }

    /// The smallest size that has room for both.
    pub fn max(self, other: Self) -> Self {
        Self {
            rows: self.rows.max(other.rows),
            logit_rows: self.logit_rows.max(other.logit_rows),
        }
    }
}

/// Bytes of a device's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceMemory {
    /// Matrices.
    pub weights: usize,
    /// Pages, notes and latent memories.
    pub cache: usize,
    /// Activations, and what the device keeps besides.
    pub workspaces: usize,
}

/// What is allowed for: descriptors, the library's workspace, a piece of a file's weights, captured
/// graphs, trained scorers.
const ALLOWANCE: usize = 256 << 20;
/// Lists of slots that stay and go at a boundary, scores and partial attention, for each slot of
/// the pages: 8 bytes of lists, a quarter more where sizes are rounded up, what one sequence or one
/// layer needs of the others, and page tables.
const SLOT_BYTES: usize = 13;

/// What decides how much memory a rank takes, besides its part of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RankSize {
    /// Bytes of an element of weights and products.
    pub element_bytes: usize,
    /// The cache.
    pub cache: CacheBytes,
    /// Element type of cached keys and values.
    pub kv: KvType,
    /// The largest usual step.
    pub step: StepSize,
}

/// The device has less memory free than the rank takes; nothing was loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the device has {} free of {}; the weights take {}, the cache {} and workspaces {}: choose a \
     smaller --kv-memory-mib, or more GPUs",
    gib(*free), gib(*total), gib(needed.weights), gib(needed.cache), gib(needed.workspaces)
)]
pub struct DoesNotFit {
    /// What the rank takes.
    pub needed: DeviceMemory,
    /// Bytes free.
    pub free: usize,
    /// Bytes of the device.
    pub total: usize,
}

fn gib(bytes: usize) -> String {
    format!("{:.1} GiB", bytes as f64 / (1u64 << 30) as f64)
}

impl DeviceMemory {
    /// What `shard` takes.
    pub fn of(config: &ModelConfig, shard: &Shard, size: &RankSize) -> Self {
        let RankSize {
            element_bytes,
            cache,
            kv,
            step,
        } = *size;
        let (query, key) = (shard.part.query_rows().len(), shard.part.key_rows().len());
        let (hidden, ffn) = (config.hidden, shard.part.ffn.len());
        let matrix =
            |outputs: usize, inputs: usize| outputs * inputs.next_multiple_of(8) * element_bytes;
        let layer = matrix(query + 2 * key, hidden)
            + matrix(hidden, query)
            + match config.differences.experts {
                Some(experts) => {
                    let expert = matrix(2 * ffn, hidden) + matrix(hidden, ffn);
                    experts.count * expert + matrix(experts.count, hidden)
                }
                None => matrix(2 * ffn, hidden) + matrix(hidden, ffn),
            };
        let tables = if config.tied_embeddings { 1 } else { 2 };
        let weights = config.layers * layer + tables * matrix(shard.part.vocabulary.len(), hidden);
        let row = 2 * hidden + (query + 2 * key) + 2 * query + 3 * ffn + config.head_dim;
        let activations =
            4 * step.rows * row + 4 * step.logit_rows * (hidden + shard.part.vocabulary.len());
        let cast = (step.rows * hidden.max(query).max(ffn) * element_bytes).next_power_of_two();
        // A row-parallel product in fixed point.
        let sums = if shard.is_whole() {
            0
        } else {
            (8 * step.rows * hidden).next_power_of_two()
        };
        let page = PageShape {
            head_dim: config.head_dim,
            dtype: kv,
        };
        let slots = cache.pages / page.cost() * PageShape::SLOTS;
        let workspaces = activations + cast + sums + SLOT_BYTES * slots + ALLOWANCE;
        Self {
            weights,
            cache: cache.pages + cache.latent,
            workspaces,
        }
    }

    /// The sum of the three.
    pub const fn bytes(&self) -> usize {
        self.weights
            .saturating_add(self.cache)
            .saturating_add(self.workspaces)
    }

    /// Checks that it fits into `free` bytes of a device's `total`.
    ///
    /// # Errors
    /// [`DoesNotFit`] with all the numbers.
    pub fn check(self, free: usize, total: usize) -> Result<(), DoesNotFit> {
        if self.bytes() <= free {
            Ok(())
        } else {
            Err(DoesNotFit {
                needed: self,
                free,
                total,
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use palimpsest_models::Model;

    use super::*;

    #[test]
    fn what_does_not_fit_is_refused_with_numbers() {
        let tiny = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../tests/fixtures/models/llama"
        );
        let config = Model::open(std::path::Path::new(tiny))
            .expect("a fixture")
            .config()
            .clone();
        // Llama-3.1-8B.
        let config = ModelConfig {
            heads: 32,
            kv_heads: 8,
            head_dim: 128,
            hidden: 4096,
            ffn: 14336,
            vocabulary: 128_256,
            layers: 32,
            tied_embeddings: false,
            ..config
        };
        let shard = Shard::whole(&config);
        let of = |gib: usize| {
            let cache = CacheBytes::of(gib << 30, None);
            let size = RankSize {
                element_bytes: 2,
                cache,
                kv: KvType::F16,
                step: StepSize::usual(256),
            };
            DeviceMemory::of(&config, &shard, &size)
        };
        let needed = of(40);
        assert_eq!((needed.weights, needed.cache), (16_059_990_016, 40 << 30));
        assert!(
            (1 << 30..4 << 30).contains(&needed.workspaces),
            "{needed:?}"
        );
        needed.check(79 << 30, 80 << 30).expect("it fits");
        let refused = of(63)
            .check(79 << 30, 80 << 30)
            .expect_err("weights and cache alone are as much as is free");
        assert_eq!(refused.free, 79 << 30);
        let text = refused.to_string();
        assert!(
            text.contains("79.0 GiB free of 80.0")
                && text.contains("63.0 GiB")
                && text.contains("15.0 GiB"),
            "{text}"
        );
    }
}
