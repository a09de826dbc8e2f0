//! What a fake rank is to say, and when it is to fail.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use palimpsest_proto::internal::v1::RankInfo;

use super::model::{IM_END, model};

/// The next token from all tokens so far and the length of the prompt.
pub type Answer = Arc<dyn Fn(&[u32], usize) -> u32 + Send + Sync>;

/// A way to fail, in a given step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The step fails as a whole.
    Error,
    /// No answer ever comes.
    Hang,
    /// Another digest than that of the other ranks.
    Diverge,
    /// The rank ends.
    Vanish,
    /// The first sequence of the step fails alone.
    FailSequence,
    /// It fails alone by its guide.
    FailGuide,
    /// The answer is one of another step.
    WrongStep,
}

/// What a fake rank does.
#[derive(Clone)]
pub struct Script {
    /// Model and arena, as the rank reports them.
    pub rank: RankInfo,
    /// The model.
    pub answer: Answer,
    /// Duration of a step.
    pub step_time: Duration,
    /// What each token adds to that.
    pub token_time: Duration,
    /// A token that breaks the rank: every step with it fails.
    pub poison: Option<u32>,
    /// Faults by the number of plans that the rank has had, from 0.
    pub faults: HashMap<usize, Fault>,
    /// Every token of a guided sequence comes a step late.
    pub late_guides: bool,
}

impl Script {
    /// A rank of a group of `world_size` whose model repeats the bytes of `text` and then ends.
    pub fn saying(text: &str, rank: u32, world_size: u32) -> Self {
        let text = text.as_bytes().to_vec();
        let answer = move |tokens: &[u32], prompt: usize| {
            text.get(tokens.len() - prompt)
                .map_or(IM_END, |&byte| u32::from(byte))
        };
        Self::answering(Arc::new(answer), rank, world_size)
    }

    /// A rank whose model writes letters that depend on all tokens before, and never ends.
    pub fn endless(rank: u32, world_size: u32) -> Self {
        let letters = |tokens: &[u32], _: usize| {
            let hash = tokens.iter().fold(17u32, |hash, &token| {
                hash.wrapping_mul(31).wrapping_add(token + 1)
            });
            u32::from(b'a') + (hash >> 8) % 26
        };
        Self::answering(Arc::new(letters), rank, world_size)
    }

    /// The same rank, with so much host memory for snapshots, and a store for them.
    #[must_use]
    pub fn keeping(mut self, bytes: u64) -> Self {
        self.rank.snapshot_bytes = bytes;
        self.rank.snapshot_store = true;
        self
    }

    /// A rank with this model.
    pub fn answering(answer: Answer, rank: u32, world_size: u32) -> Self {
        let rank = RankInfo {
            rank,
            world_size,
            model: Some(model()),
            kv_arena_bytes: 64 << 20,
            kv_latent_bytes: 8 << 20,
            device: "fake".into(),
            digest: b"fake"[..].into(),
            epoch: 0,
            lead: None,
            snapshot_bytes: 0,
            snapshot_store: false,
        };
        Self {
            rank,
            answer,
            step_time: Duration::ZERO,
            token_time: Duration::ZERO,
            poison: None,
            faults: HashMap::new(),
            late_guides: false,
        }
    }

    /// The same with a fault in plan number `plan`, from 0.
    #[must_use]
    pub fn with_fault(mut self, plan: usize, fault: Fault) -> Self {
        self.faults.insert(plan, fault);
        self
    }

    /// The same with steps that take this long.
    #[must_use]
    pub const fn with_step_time(mut self, step_time: Duration) -> Self {
        self.step_time = step_time;
        self
    }
    /// The same with steps that take this much longer for each of their tokens.
    #[must_use]
    pub const fn with_token_time(mut self, token_time: Duration) -> Self {
        self.token_time = token_time;
        self
    }

    /// The same, with a late token for every one that is guided.
    #[must_use]
    pub const fn with_late_guides(mut self) -> Self {
        self.late_guides = true;
        self
    }

    /// The same, broken by every step with this token.
    #[must_use]
    pub const fn broken_by(mut self, token: u32) -> Self {
        self.poison = Some(token);
        self
    }
}
