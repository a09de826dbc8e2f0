//! What a rank would hold: every plan is checked against the contract between coordinator and
//! ranks, and entries are counted as a bounded cache would keep them.

use std::collections::BTreeMap;

use palimpsest_proto::contract::Contract;
use palimpsest_proto::internal::v1::{
    CacheState, ModelInfo, RankInfo, SequenceInit, SequenceOutput, SequenceStep, StepOutput,
    StepPlan,
};
use palimpsest_proto::kv::Geometry;
use palimpsest_proto::v1::{Embedding, HeadRetention, Pooling, RetentionReport, TokenLogprob};

use super::script::Script;
use super::snapshots::{FakeSnapshot, SharedSnapshots};
use crate::scheduler::{Capacity, Cost};

/// A sequence on a fake rank.
struct Held {
    init: SequenceInit,
    contract: Contract,
    tokens: Vec<u32>,
    /// Its next token was not chosen with the last step.
    due: bool,
}

/// Which step of which epoch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
struct StepId {
    epoch: u64,
    step: u64,
}

/// What a fake rank holds.
#[derive(Default)]
pub(super) struct Sequences {
    held: BTreeMap<u64, Held>,
    last: StepId,
    snapshots: SharedSnapshots,
}

impl Sequences {
    /// None yet, on a rank that may have kept some earlier.
    pub(super) fn beside(snapshots: SharedSnapshots) -> Self {
        Self {
            snapshots,
            ..Self::default()
        }
    }

    /// Carries a plan out, as `script` says.
    ///
    /// # Errors
    /// What of the plan a rank may rely on and does not find.
    pub(super) fn execute(
        &mut self,
        script: &Script,
        plan: &StepPlan,
    ) -> Result<StepOutput, String> {
        let this = StepId {
            epoch: plan.epoch,
            step: plan.step,
        };
        if this <= self.last {
            return Err(format!("{this:?} after {:?}", self.last));
        }
        self.last = this;
        for id in &plan.release {
            self.held
                .remove(id)
                .ok_or(format!("release of {id}, which holds nothing"))?;
        }
        if let Some(orders) = &plan.snapshots {
            self.snapshots.lock().obey(orders)?;
        }
        let mut digest = plan.step;
        let mut sequences = Vec::new();
        for step in &plan.sequences {
            let output = self.advance(script, step)?;
            digest = digest.wrapping_mul(0x9E37_79B9_7F4A_7C15)
                ^ (step.sequence << 32)
                ^ u64::from(output.token());
            sequences.push(output);
        }
        self.check_memory(script)?;
        Ok(StepOutput {
            epoch: plan.epoch,
            step: plan.step,
            sequences,
            digest,
            error: String::new(),
            seconds: 0.0,
            snapshots: self.snapshots.lock().take_reports(),
            mask_wait_seconds: 0.0,
        })
    }

    /// Forgets a sequence that has failed.
    pub(super) fn forget(&mut self, id: u64) {
        self.held.remove(&id);
    }

    /// Whether all that is held fits the rank's cache.
    fn check_memory(&self, script: &Script) -> Result<(), String> {
        let geometry = geometry(&script.rank);
        let mut capacity = Capacity::new(Cost {
            pages: script.rank.kv_arena_bytes,
            latent: script.rank.kv_latent_bytes,
        });
        if let Some(held) = self
            .held
            .values()
            .find(|held| !capacity.take(cost(held, &geometry)))
        {
            return Err(format!(
                "{:?} does not fit beside {} bytes reserved",
                held.contract,
                capacity.reserved_bytes()
            ));
        }
        Ok(())
    }

    fn begin(&mut self, id: u64, init: &SequenceInit) -> Result<(), String> {
        let kv = init.kv.as_ref().ok_or(format!("{id} without contract"))?;
        let held = Held {
            init: init.clone(),
            contract: Contract::try_from(kv).map_err(|error| error.to_string())?,
            tokens: match init.fork.is_empty() {
                true => Vec::new(),
                false => self.snapshots.lock().begin_with(&init.fork)?,
            },
            due: false,
        };
        match self.held.insert(id, held) {
            Some(_) => Err(format!("{id} begins twice")),
            None => Ok(()),
        }
    }

    fn advance(&mut self, script: &Script, step: &SequenceStep) -> Result<SequenceOutput, String> {
        let id = step.sequence;
        if let Some(init) = &step.init {
            self.begin(id, init)?;
        }
        let held = self.held.get_mut(&id).ok_or(format!("{id} without init"))?;
        let stride = u64::from(script.rank.model.as_ref().map_or(1, |model| model.stride));
        let end = end_of(step, held, stride)?;
        let prompt_logprobs = scored(&held.init, step);
        held.tokens.extend(&step.tokens);
        let is_guided = held.init.guide.is_some() || held.init.calls.is_some();
        held.due = script.late_guides && is_guided && step.sample && !held.due;
        let token = (step.sample && !held.due)
            .then(|| (script.answer)(&held.tokens, held.init.prompt_tokens as usize));
        let wanted = held
            .init
            .sampling
            .as_ref()
            .is_some_and(|sampling| sampling.logprobs.is_some());
        let logprob = token.filter(|_| wanted).map(|id| TokenLogprob {
            id,
            logprob: -0.5,
            ..Default::default()
        });
        let cache = cache(held, &script.rank, stride);
        let retention = step
            .retention_report
            .then(|| retention(held, &script.rank, stride));
        let kept_bytes = match step.keep.is_empty() {
            true => 0,
            false => {
                if !end.is_multiple_of(stride) {
                    return Err(format!("{id}: a state kept at {end}, stride {stride}"));
                }
                let kept = FakeSnapshot {
                    tokens: held.tokens.clone(),
                    bytes: cache.held_bytes,
                };
                let room = script.rank.snapshot_bytes;
                self.snapshots.lock().keep(&step.keep, kept, room)?;
                cache.held_bytes
            }
        };
        Ok(SequenceOutput {
            sequence: id,
            token,
            logprob,
            cache: Some(cache),
            retention,
            error: String::new(),
            guide_failed: false,
            awaits_guide: held.due,
            kept_bytes,
            prompt_logprobs,
            embedding: embedding(&held.init, end),
        })
    }
}

/// Where a sequence stands after a step, which begins where it stands and ends at a boundary at the
/// latest.
fn end_of(step: &SequenceStep, held: &Held, stride: u64) -> Result<u64, String> {
    let (id, position) = (step.sequence, held.tokens.len() as u64);
    // A step without tokens is for a token that is due, and only for that.
    let is_choice = step.tokens.is_empty() && step.sample && step.keep.is_empty();
    if step.position != position || held.due != is_choice {
        let (count, at) = (step.tokens.len(), step.position);
        return Err(format!("{id}: {count} tokens at {at}, not {position}"));
    }
    let end = position + step.tokens.len() as u64;
    let crosses = end > position && position / stride != (end - 1) / stride;
    let most = held.init.max_tokens;
    if crosses || end > most {
        return Err(format!(
            "{id}: tokens {position}..{end}, stride {stride}, at most {most}"
        ));
    }
    Ok(end)
}

/// With the end of a prompt that is pooled, always the same.
fn embedding(init: &SequenceInit, end: u64) -> Option<Embedding> {
    let is_pooled = init.pooling() != Pooling::Unspecified;
    (is_pooled && end == init.prompt_tokens).then(|| Embedding {
        values: vec![0.6, 0.8],
    })
}

/// A log-probability for every token of the prompt that follows one of the step's. It is the
/// token's position, so that a test sees what is missing or told twice.
fn scored(init: &SequenceInit, step: &SequenceStep) -> Vec<TokenLogprob> {
    let asked = init
        .sampling
        .as_ref()
        .and_then(|sampling| sampling.prompt_logprobs);
    if asked.is_none() {
        return Vec::new();
    }
    let sampling = init.sampling.as_ref();
    let from = sampling.map_or(0, |sampling| sampling.prompt_logprobs_from);
    let following = step.tokens.iter().skip(1).copied().chain(step.next);
    let left = init.prompt_tokens.saturating_sub(step.position + 1);
    following
        .zip(step.position + 1..)
        .take(left as usize)
        .filter(|(_, position)| *position >= from)
        .map(|(id, position)| TokenLogprob {
            id,
            logprob: -(position as f32),
            ..Default::default()
        })
        .collect()
}

/// Positions that a `window` cache holds: those below `sinks` and those from `recent` on.
struct Window {
    sinks: u64,
    recent: u64,
}

/// The sinks and the last of the budget at the last boundary, and the tail since.
fn held_positions(held: &Held, stride: u64) -> Window {
    let fed = held.tokens.len() as u64;
    let everything = Window {
        sinks: fed,
        recent: fed,
    };
    let Contract::Bounded(contract) = &held.contract else {
        return everything;
    };
    let boundary = fed - fed % stride;
    let budget = u64::from(contract.exact_slots());
    if boundary <= budget {
        return everything;
    }
    let sinks = u64::from(contract.sinks).min(budget);
    Window {
        sinks,
        recent: boundary - (budget - sinks),
    }
}

fn cache(held: &Held, rank: &RankInfo, stride: u64) -> CacheState {
    let geometry = geometry(rank);
    let fed = held.tokens.len() as u64;
    let Window { sinks, recent } = held_positions(held, stride);
    let entries = (sinks + fed - recent) * geometry.heads();
    CacheState {
        held_entries: entries,
        evicted_entries: fed * geometry.heads() - entries,
        held_bytes: entries * geometry.entry_bytes(),
    }
}

fn retention(held: &Held, rank: &RankInfo, stride: u64) -> RetentionReport {
    let geometry = geometry(rank);
    let Window { sinks, recent } = held_positions(held, stride);
    let positions: Vec<u32> = (0..sinks)
        .chain(recent..held.tokens.len() as u64)
        .map(|at| at as u32)
        .collect();
    let head = |layer: u64, head: u64| HeadRetention {
        layer: layer as u32,
        kv_head: rank.rank * geometry.kv_heads as u32 + head as u32,
        positions: positions.clone(),
    };
    let heads =
        (0..geometry.layers).flat_map(|layer| (0..geometry.kv_heads).map(move |kv| (layer, kv)));
    RetentionReport {
        heads: heads.map(|(layer, kv)| head(layer, kv)).collect(),
    }
}

fn cost(held: &Held, geometry: &Geometry) -> Cost {
    Cost::of(&held.contract, geometry, held.init.max_tokens)
}

fn geometry(rank: &RankInfo) -> Geometry {
    crate::model::geometry(
        rank.model.as_ref().unwrap_or(&ModelInfo::default()),
        rank.world_size,
    )
}
