//! Policies that look at positions only.

use super::{HeadView, Policy};
use crate::random::splitmix;

/// Keeps everything. The boundary never evicts for it.
#[derive(Debug, Default)]
pub struct Full;

impl Policy for Full {
    fn name(&self) -> &'static str {
        palimpsest_proto::contract::FULL
    }

    fn comparable(&self) -> bool {
        false
    }
}

/// Sinks and the most recent positions (StreamingLLM, arXiv 2309.17453).
#[derive(Debug, Default)]
pub struct Window;

impl Policy for Window {
    fn name(&self) -> &'static str {
        "window"
    }

    fn comparable(&self) -> bool {
        false
    }

    fn score(&self, head: &HeadView<'_>, scores: &mut [f32]) {
        for (score, &position) in scores.iter_mut().zip(head.positions) {
            // Exact for 2^24 positions; beyond, age keeps the order within any bounded cache.
            *score = -((head.at - u64::from(position)) as f32);
        }
    }
}

/// A fixed pseudo-random rank per (layer, head, position): the control that every policy must beat.
#[derive(Debug, Default)]
pub struct RandomPolicy;

impl Policy for RandomPolicy {
    fn name(&self) -> &'static str {
        "random"
    }

    fn comparable(&self) -> bool {
        true
    }

    fn score(&self, head: &HeadView<'_>, scores: &mut [f32]) {
        for (score, &position) in scores.iter_mut().zip(head.positions) {
            let seed =
                (head.layer as u64) << 48 ^ (head.kv_head as u64) << 32 ^ u64::from(position);
            *score = (splitmix(seed) >> 40) as f32;
        }
    }
}
