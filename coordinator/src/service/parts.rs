//! What a call is made of on its way to the driver.

use palimpsest_proto::v1::generate_request::Input;
use palimpsest_proto::v1::{GenerateRequest, Guide, Pooling};
use tokio::time::Instant;

use crate::keys::TenantPermit;
use crate::request::{Checked, Cut, GuidedCalls, Prompt};
use crate::sessions::Opening;

/// A prompt and what is asked of it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Prompted {
    /// The prompt, which is tokenised once.
    pub input: Option<Input>,
    /// One for each answer; their own inputs are not read.
    pub choices: Vec<GenerateRequest>,
    /// Where in a conversation beginnings end whose states are kept as well; sessions have none.
    pub cuts: Vec<Cut>,
}

impl Prompted {
    /// Whether no token of an answer is asked for.
    pub(super) fn only_reads(&self) -> bool {
        let reads = |request: &GenerateRequest| {
            let stopping = request.stopping.as_ref();
            let tokens = stopping.and_then(|stopping| stopping.max_tokens);
            tokens == Some(0) || request.embedding() != Pooling::Unspecified
        };
        self.choices.iter().all(reads)
    }
}

/// A choice whose fields were checked, and its place among those of its tenant.
pub(super) struct Choice {
    pub(super) checked: Checked,
    pub(super) permit: Option<TenantPermit>,
}

/// A guide that can be used, and what was left out of it.
pub(super) struct CompiledGuide {
    pub(super) guide: Guide,
    pub(super) warnings: Vec<String>,
}

/// A prompt that is not tokenised yet, and its choices.
pub(super) struct CheckedPrompt {
    pub(super) input: Option<Input>,
    pub(super) choices: Vec<Choice>,
    pub(super) cuts: Vec<Cut>,
}

/// A prompt as all its choices have it.
pub(super) struct SharedPrompt {
    pub(super) prompt: Prompt,
    /// Lengths of the beginnings whose states are kept as well.
    pub(super) marks: Vec<u64>,
    /// What the client should know of it.
    pub(super) warning: Option<String>,
    /// How calls in its answers are guided.
    pub(super) calls: GuidedCalls,
}

impl SharedPrompt {
    pub(super) fn of(prompt: Prompt) -> Self {
        Self {
            prompt,
            marks: Vec::new(),
            warning: None,
            calls: GuidedCalls::default(),
        }
    }
}

/// By what prompts of a call are checked.
pub(super) struct Rules {
    pub(super) opening: Opening,
    /// When the call came.
    pub(super) arrived: Instant,
    /// There is no session to go on from.
    pub(super) needs_input: bool,
}
