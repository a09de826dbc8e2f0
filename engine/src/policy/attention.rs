//! Policies that score by attention probabilities. Probabilities are comparable across heads.

use palimpsest_kernels::Reduce;

use super::{Attention, HeadView, Needs, Observe, Policy};

/// Attention that is observed, and nothing else.
fn observed(observe: Observe) -> Needs {
    Needs {
        attention: Attention::Observed(observe),
        ..Needs::default()
    }
}

/// Sum of all attention received (H2O, arXiv 2306.14048).
#[derive(Debug, Default)]
pub struct H2o;

impl Policy for H2o {
    fn name(&self) -> &'static str {
        "h2o"
    }

    fn comparable(&self) -> bool {
        true
    }

    fn needs(&self) -> Needs {
        observed(Observe {
            last_rows: None,
            reduce: Reduce::Sum,
            forgets: false,
        })
    }

    fn score(&self, head: &HeadView<'_>, scores: &mut [f32]) {
        scores.copy_from_slice(head.mass);
    }
}

/// Attention of the last token (TOVA, arXiv 2401.06104), per KV head.
#[derive(Debug, Default)]
pub struct Tova;

impl Policy for Tova {
    fn name(&self) -> &'static str {
        "tova"
    }

    fn comparable(&self) -> bool {
        true
    }

    fn needs(&self) -> Needs {
        observed(Observe {
            last_rows: Some(1),
            reduce: Reduce::Sum,
            forgets: true,
        })
    }

    fn score(&self, head: &HeadView<'_>, scores: &mut [f32]) {
        scores.copy_from_slice(head.mass);
    }
}

/// Attention of the last queries, smoothed over neighbouring slots (SnapKV, arXiv 2404.14469).
#[derive(Debug, Default)]
pub struct SnapKv;

impl SnapKv {
    /// Queries observed before a boundary.
    pub const QUERIES: u64 = 64;
    /// Width of the average pooling.
    pub const KERNEL: usize = 5;
}

impl Policy for SnapKv {
    fn name(&self) -> &'static str {
        "snapkv"
    }

    fn comparable(&self) -> bool {
        true
    }

    fn needs(&self) -> Needs {
        observed(Observe {
            last_rows: Some(Self::QUERIES),
            reduce: Reduce::Sum,
            forgets: true,
        })
    }

    fn score(&self, head: &HeadView<'_>, scores: &mut [f32]) {
        let half = Self::KERNEL / 2;
        for (slot, score) in scores.iter_mut().enumerate() {
            let near =
                &head.mass[slot.saturating_sub(half)..(slot + half + 1).min(head.mass.len())];
            *score = near.iter().sum::<f32>() / Self::KERNEL as f32;
        }
    }
}
