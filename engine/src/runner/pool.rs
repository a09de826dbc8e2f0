//! A text's embedding: its tokens' final states, pooled.

use palimpsest_proto::v1::Pooling;

/// What of a sequence's prompt is pooled, and what was so far.
pub(super) struct Pool {
    pooling: Pooling,
    /// In the order of the tokens and in double precision: however a prompt is cut into steps, the
    /// bits are the same.
    sum: Vec<f64>,
}

impl Pool {
    /// Nothing yet; `None` where nothing is pooled.
    pub(super) fn new(pooling: Pooling, hidden: usize) -> Option<Self> {
        (pooling != Pooling::Unspecified).then(|| Self {
            pooling,
            sum: vec![0.0; hidden],
        })
    }

    /// Rows that are pooled of a step with `count` tokens of the prompt, the last of which are its
    /// end or not.
    pub(super) fn rows(&self, count: usize, is_end: bool) -> std::ops::Range<usize> {
        match self.pooling {
            Pooling::Last if is_end => count.saturating_sub(1)..count,
            Pooling::Last => 0..0,
            Pooling::Mean | Pooling::Unspecified => 0..count,
        }
    }

    /// Adds states `[rows, E]`.
    pub(super) fn add(&mut self, states: &[f32]) {
        for state in states.chunks_exact(self.sum.len()) {
            for (sum, &value) in self.sum.iter_mut().zip(state) {
                *sum += f64::from(value);
            }
        }
    }

    /// The direction of what was pooled, of length 1. A mean has the direction of its sum.
    pub(super) fn embedding(&self) -> Vec<f32> {
        let length = self.sum.iter().map(|x| x * x).sum::<f64>().sqrt();
        let unit = |x: &f64| (x / length) as f32;
        self.sum.iter().map(unit).collect()
    }
}
