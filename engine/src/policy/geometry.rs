//! Policies that score by the keys and values themselves. Their scores are not comparable across
//! heads.

use palimpsest_kernels::ScoreRule;

use super::{HeadView, Needs, Policy};

/// Negative key norm: small keys attract attention (arXiv 2406.11430).
#[derive(Debug, Default)]
pub struct KNorm;

impl Policy for KNorm {
    fn name(&self) -> &'static str {
        "knorm"
    }

    fn comparable(&self) -> bool {
        false
    }

    fn rule(&self, _layer: usize, _kv_head: usize) -> Option<ScoreRule> {
        Some(ScoreRule::KeyNorm)
    }
}

/// Negative cosine to the mean direction of the cached keys (KeyDiff, arXiv 2504.15364).
#[derive(Debug, Default)]
pub struct KeyDiff;

impl KeyDiff {
    /// Its name.
    pub const NAME: &'static str = "keydiff";
}

impl Policy for KeyDiff {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn comparable(&self) -> bool {
        false
    }

    fn rule(&self, _layer: usize, _kv_head: usize) -> Option<ScoreRule> {
        Some(ScoreRule::KeyDirection)
    }
}

/// Spread of a token's channels relative to the next partition (LagKV, arXiv 2504.04704). Scores
/// are ranks within a partition; the last partition has no successor and ranks highest.
#[derive(Debug, Default)]
pub struct LagKv;

impl LagKv {
    /// Slots of one partition.
    pub const LAG: usize = 128;
}

impl Policy for LagKv {
    fn name(&self) -> &'static str {
        "lagkv"
    }

    fn comparable(&self) -> bool {
        false
    }

    fn needs(&self) -> Needs {
        Needs {
            entries: true,
            ..Needs::default()
        }
    }

    fn score(&self, head: &HeadView<'_>, scores: &mut [f32]) {
        let dim = head.head_dim;
        let first = head
            .positions
            .partition_point(|&p| (p as usize) < head.sinks);
        scores.fill(1.0);
        let mut start = first;
        while start + 2 * Self::LAG <= scores.len() {
            let part = start * dim..(start + Self::LAG) * dim;
            let lag = part.end..part.end + Self::LAG * dim;
            let k = spread(&head.keys[part.clone()], &head.keys[lag.clone()], dim);
            let v = spread(&head.values[part], &head.values[lag], dim);
            let joint: Vec<f32> = k.iter().zip(&v).map(|(k, v)| k + v).collect();
            let mut order: Vec<usize> = (0..joint.len()).collect();
            order.sort_by(|&a, &b| joint[a].total_cmp(&joint[b]).then(b.cmp(&a)));
            for (rank, slot) in order.into_iter().enumerate() {
                scores[start + slot] = rank as f32 / Self::LAG as f32;
            }
            start += Self::LAG;
        }
    }
}

/// Softmax over the partition of each token's standard deviation across channels, channels scaled
/// by the range they have in the lagging partition.
fn spread(part: &[f32], lag: &[f32], dim: usize) -> Vec<f32> {
    let mut low = vec![f32::INFINITY; dim];
    let mut high = vec![f32::NEG_INFINITY; dim];
    for row in lag.chunks_exact(dim) {
        for ((low, high), &x) in low.iter_mut().zip(&mut high).zip(row) {
            *low = low.min(x);
            *high = high.max(x);
        }
    }
    let deviation = |row: &[f32]| {
        let scaled = || {
            row.iter()
                .zip(low.iter().zip(&high))
                .map(|(x, (l, h))| (x - l) / (h - l).max(1e-6))
        };
        let mean = scaled().sum::<f32>() / dim as f32;
        (scaled().map(|x| (x - mean) * (x - mean)).sum::<f32>() / (dim - 1) as f32).sqrt()
    };
    let all: Vec<f32> = part.chunks_exact(dim).map(deviation).collect();
    let top = all.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weights: Vec<f32> = all.iter().map(|x| (x - top).exp()).collect();
    let sum: f32 = weights.iter().sum();
    weights.into_iter().map(|w| w / sum).collect()
}
