//! Records that kernels read, as `kernels/cu` declares them.

use std::ops::Range;

use bytemuck::{Pod, Zeroable};

/// No entry: `NONE` of `kernels/cu/common.cuh`.
pub(crate) const NONE: u32 = u32::MAX;

/// One KV head of one sequence: `struct Item` of `kernels/cu/common.cuh`, which says what a field
/// counts. A kernel that gives `extra`, `count`, `output` or `flags` a meaning of its own says so.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub(crate) struct Item {
    pub(crate) row: u32,
    pub(crate) rows: u32,
    pub(crate) kv_head: u32,
    pub(crate) len: u32,
    pub(crate) table: u32,
    pub(crate) first: u32,
    pub(crate) extra: u32,
    pub(crate) count: u32,
    pub(crate) output: u32,
    pub(crate) flags: u32,
}

impl Item {
    /// An item without slots for some rows of a KV head.
    pub(crate) fn new(rows: &Range<usize>, kv_head: usize) -> Self {
        Self {
            row: rows.start as u32,
            rows: rows.len() as u32,
            kv_head: kv_head as u32,
            first: NONE,
            ..Self::zeroed()
        }
    }

    /// An item that kernels do nothing for.
    pub(crate) fn padding() -> Self {
        Self::new(&(0..0), 0)
    }
}

/// How one row of logits is sampled: `struct Sample` of `kernels/cu/sample.cu`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub(crate) struct Sample {
    /// Row of the logits, or [`NONE`].
    pub(crate) row: u32,
    pub(crate) first_edit: u32,
    pub(crate) edits: u32,
    pub(crate) top_k: u32,
    pub(crate) temperature: f32,
    pub(crate) top_p: f32,
    /// Of min-p.
    pub(crate) least_mass: u64,
    /// 53 random bits.
    pub(crate) uniform: u64,
    /// First word of the tokens that may be chosen, or [`NONE`].
    pub(crate) mask: u32,
    pub(crate) unused: u32,
}

/// How an item's observed probabilities are reduced: `struct Reduction` of
/// `kernels/cu/attention_exact.cu`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub(crate) struct Reduction {
    pub(crate) item: u32,
    /// 1 for the maximum over rows, 0 for their sum.
    pub(crate) is_max: u32,
    /// First entry of the row weights, or [`NONE`].
    pub(crate) row_weights: u32,
    /// First entry of the result.
    pub(crate) weights: u32,
}

/// Where a pool is cut: `struct Cut` of `kernels/cu/rank.cuh`. Only kernels look inside.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub(crate) struct Cut([u32; 2]);

/// What a head keeps for itself: `struct Floor` of `kernels/cu/select.cu`. Only kernels look
/// inside.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub(crate) struct Floor([u32; 4]);
