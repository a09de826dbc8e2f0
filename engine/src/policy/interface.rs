//! What a policy is: a number per slot, and what it needs for that.

use std::ops::Range;

use palimpsest_kernels::{Reduce, ScoreRule};

/// Scores slots at a boundary. Implementations are pure functions of their view.
pub trait Policy: Send + Sync {
    /// Name on the wire.
    fn name(&self) -> &'static str;

    /// Whether scores of different heads and layers can be compared, so that budgets may be pooled.
    fn comparable(&self) -> bool;

    /// What it needs besides the positions of slots.
    fn needs(&self) -> Needs {
        Needs::default()
    }

    /// What observed attention of each of the rows at `positions` is multiplied with; `None`: 1.
    fn row_weights(&self, positions: Range<u64>) -> Option<Vec<f32>> {
        let _ = positions;
        None
    }

    /// What each of this rank's query heads is predicted to give to every slot, for policies with
    /// [`Attention::Predicted`]; attention of the view is empty. The mean over all query heads of
    /// the KV head is what [`Self::score`] sees.
    fn predict(&self, head: &HeadView<'_>) -> Vec<Vec<f32>> {
        let _ = head;
        Vec::new()
    }

    /// How the device scores a head's slots by itself; `None`: [`Self::score`] does, here.
    fn rule(&self, layer: usize, kv_head: usize) -> Option<ScoreRule> {
        let _ = (layer, kv_head);
        None
    }

    /// Writes one score per slot, higher = keep. Policies with a rule are not asked; without
    /// either, all slots are worth the same.
    fn score(&self, head: &HeadView<'_>, scores: &mut [f32]) {
        let _ = head;
        scores.fill(0.0);
    }
}

/// What a policy needs besides the positions of slots. What it does not ask for costs nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Needs {
    /// Where the numbers in [`HeadView::mass`] come from.
    pub attention: Attention,
    /// Whether keys and values of all slots are downloaded at a boundary.
    pub entries: bool,
    /// Values that the policy's hook stores with every slot, on the host.
    pub terms: usize,
    /// Whether the policy's hook notes numbers with the slots, on the device.
    pub notes: bool,
    /// Whether the policy's hook works on the host in every layer. A step with such a sequence
    /// goes to the device call by call, because the host waits for it.
    pub host: bool,
}

/// One number per slot that a policy goes by.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Attention {
    /// None.
    #[default]
    Unused,
    /// Attention that the slots were given.
    Observed(Observe),
    /// Attention that [`Policy::predict`] says the slots will be given.
    Predicted,
    /// What the policy's hook writes to the first line of `mass` of a head's slots.
    ByHook,
}

impl Attention {
    /// Which attention rows are observed.
    pub fn observed(self) -> Option<Observe> {
        match self {
            Self::Observed(observe) => Some(observe),
            _ => None,
        }
    }

    /// Numbers kept with every slot from step to step, where a rank has `query_heads` query heads
    /// of each KV head.
    pub fn kept(self, query_heads: usize) -> usize {
        match self {
            Self::Observed(_) => query_heads,
            Self::ByHook => 1,
            Self::Unused | Self::Predicted => 0,
        }
    }

    /// Whether what is kept for it (numbers of slots, and sums) is kept for each query head of a
    /// rank, rather than for each KV head.
    pub fn is_per_query_head(self) -> bool {
        match self {
            Self::Observed(_) | Self::Predicted => true,
            Self::ByHook | Self::Unused => false,
        }
    }
}

/// Which attention rows a policy looks at. Rows are chosen by absolute position, so the answer does
/// not depend on how a sequence was cut into pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Observe {
    /// Only rows among the last this many before a boundary; `None`: all rows.
    pub last_rows: Option<u64>,
    /// How rows are reduced.
    pub reduce: Reduce,
    /// Whether it starts anew after each boundary.
    pub forgets: bool,
}

/// One KV head of one layer at a boundary.
#[derive(Debug, Clone, Copy)]
pub struct HeadView<'a> {
    /// Decoder layer.
    pub layer: usize,
    /// KV head, over all ranks.
    pub kv_head: usize,
    /// Absolute position of the last token read.
    pub at: u64,
    /// Rotary position of the next token.
    pub next_rotary: u64,
    /// Protected first positions.
    pub sinks: usize,
    /// `D`.
    pub head_dim: usize,
    /// Inverse rotary frequencies `[D/2]`.
    pub inv_freq: &'a [f32],
    /// Absolute position of every slot.
    pub positions: &'a [u32],
    /// What the policy's hook stored, [`Needs::terms`] values per slot.
    pub terms: &'a [f32],
    /// What the policy asks for as [`Needs::attention`], one number per slot, over all query heads
    /// of the KV head; empty if it asks for nothing.
    pub mass: &'a [f32],
    /// Keys (post-RoPE) `[L, D]`, empty unless the policy needs entries.
    pub keys: &'a [f32],
    /// Values `[L, D]`, likewise.
    pub values: &'a [f32],
    /// Sums that the policy's hook keeps of the head.
    pub sums: &'a [f64],
}
