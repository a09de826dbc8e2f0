//! Large values weigh more in what attention returns.

use super::{HeadView, Needs, Policy};

/// The L1 norm of each value, the factor that VATP (arXiv 2406.12335) weighs attention with.
#[derive(Debug, Default)]
pub struct ValueNorm;

impl Policy for ValueNorm {
    fn name(&self) -> &'static str {
        "value-norm"
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
        let values = head.values.chunks_exact(head.head_dim);
        for (score, value) in scores.iter_mut().zip(values) {
            *score = value.iter().map(|v| v.abs()).sum();
        }
    }
}
