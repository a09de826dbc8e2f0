//! The device thread of a rank: it owns the model, the arena and the sequences; a plan goes in, an
//! output comes out.
//!
//! The runner never decides. What a plan asks that a sequence's state does not allow fails that
//! sequence alone.

mod faults;
mod outputs;
mod pool;
mod sequence;
mod snapshots;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use outputs::retention;
use palimpsest_collective::Collective;
use palimpsest_kernels::sample::LogitEdit;
use palimpsest_kernels::{Backend, KvType, PageShape};
use palimpsest_proto::contract::ContractError;
use palimpsest_proto::internal::v1 as internal;
use prost::Message;
use xxhash_rust::xxh3::Xxh3;

use self::outputs::Done;
use self::pool::Pool;
use self::sequence::{Admitted, Due, Sequence};
use crate::cancel::Cancel;
use crate::decoder::{Answer, Arena, Capture, Choices, Decoder};
use crate::device_memory::CacheBytes;
use crate::error::{Error, Result};
use crate::guides::{Guided, Guides, Pending, Rules};
use crate::indexer::Indexer;
use crate::kept::Kept;
use crate::kv::{Contract, HeadBudget, SequenceCache};
use crate::memory::{self, Memory, Payment};
use crate::policy::{self, Policy};
use crate::sampler::{EarlyBans, Sampler};
use crate::trace::Traces;

/// A rank's model, memory and sequences.
pub struct Runner<B: Backend> {
    pub(crate) decoder: Decoder<B>,
    pub(crate) arena: Arena<B>,
    /// Policies that sequences may have: those of the engine, then those that were added.
    policies: Vec<Arc<dyn Policy>>,
    /// How many of them are the engine's.
    built_in: usize,
    sequences: HashMap<u64, Sequence>,
    /// The incarnation of the group that this rank is in.
    epoch: Option<u64>,
    /// See [`Self::is_lost`].
    lost: bool,
    /// Snapshots in host memory.
    kept: Kept,
    guides: Guides,
    /// Time that the last step waited for masks.
    mask_wait: Duration,
    /// Steps of the model so far.
    steps: u64,
    /// Steps in which this rank diverges from the others, for tests.
    diverge_at: Vec<u64>,
    traces: Traces,
}

impl<B: Backend> Runner<B> {
    /// A runner whose sequences share a cache of `bytes`.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn new(mut decoder: Decoder<B>, kv: KvType, bytes: CacheBytes) -> Result<Self> {
        let arena = Arena::new(decoder.backend(), decoder.config().head_dim, kv, bytes)?;
        let policies = decoder.install(None)?;
        Ok(Self {
            traces: Traces::new(decoder.shard().place.rank),
            decoder,
            arena,
            built_in: policies.len(),
            policies,
            sequences: HashMap::new(),
            epoch: None,
            lost: false,
            kept: Kept::new(0),
            guides: Guides::default(),
            mask_wait: Duration::ZERO,
            steps: 0,
            diverge_at: Vec::new(),
        })
    }

    /// The model.
    pub fn decoder(&self) -> &Decoder<B> {
        &self.decoder
    }

    /// Policies this rank knows.
    pub fn policies(&self) -> &[Arc<dyn Policy>] {
        &self.policies
    }

    /// Keeps snapshots in `kept` from now on.
    pub fn keep_in(&mut self, kept: Kept) {
        self.kept = kept;
    }

    /// Guides answers by `guides` from now on. A guided sequence fails without them.
    pub fn guide_by(&mut self, guides: Guides) {
        self.guides = guides;
    }

    /// Snapshots in host memory.
    pub fn kept(&self) -> &Kept {
        &self.kept
    }

    /// Adds a policy that requests may then name.
    pub fn add_policy(&mut self, policy: Arc<dyn Policy>) {
        self.policies.push(policy);
    }

    /// Installs what was trained for the model, and the policies that rank by it.
    ///
    /// # Errors
    /// [`Error::Indexer`] when it was made for another model.
    pub fn set_indexer(&mut self, indexer: &Indexer) -> Result<()> {
        let policies = self.decoder.install(Some(indexer))?;
        let installed = policies.len();
        self.policies.splice(..self.built_in, policies);
        self.built_in = installed;
        Ok(())
    }

    /// An empty cache for one sequence under `contract`. It must come back by [`Self::reclaim`].
    ///
    /// # Errors
    /// [`Error::Contract`] for a policy or memory that is not known, or a memory that is too small;
    /// those of the kernels when the device has no room for the memory.
    pub(crate) fn open_cache(&mut self, contract: Contract) -> Result<SequenceCache> {
        let policy = policy::find(&self.policies, contract.policy())?;
        self.open_cache_under(contract, policy)
    }

    /// An empty cache for one sequence under `contract`, which `policy` ranks or only observes. It
    /// must come back by [`Self::reclaim`].
    ///
    /// # Errors
    /// As [`Self::open_cache`], but for the name of the policy.
    pub(crate) fn open_cache_under(
        &mut self,
        contract: Contract,
        policy: Arc<dyn Policy>,
    ) -> Result<SequenceCache> {
        self.check_head_budget(&contract, &*policy)?;
        let (backend, config) = (self.decoder.backend(), self.decoder.config());
        let (memory, entries) = match contract.memory() {
            Some(memory) => (memory.name.as_str(), memory.slots.get()),
            None => (memory::NONE, 0),
        };
        let layout = self.decoder.shard().head_layout(config);
        let payment = Payment {
            entries,
            entry_bytes: self.arena.shape.dtype.slot_bytes(config.head_dim),
            head_dim: config.head_dim,
        };
        let features = self.decoder.memories().features();
        let pages = &mut self.arena.pages;
        let memory = memory::kind(memory, payment, features)?
            .map(|kind| Memory::open(backend, pages, kind, layout.heads(), config.head_dim))
            .transpose()?;
        Ok(SequenceCache::new(layout, contract, policy, memory))
    }

    /// Whether heads share a budget only by scores that can be compared.
    fn check_head_budget(&self, contract: &Contract, policy: &dyn Policy) -> Result<()> {
        let head_budget = match contract.bounded() {
            Some(bounded) if !policy.comparable() => bounded.head_budget,
            _ => HeadBudget::Uniform,
        };
        if head_budget == HeadBudget::Uniform {
            return Ok(());
        }
        let pooled = policy::pooled(&self.policies);
        Err(ContractError::not_comparable(
            policy.name(),
            head_budget.name(),
            pooled.iter().map(String::as_str),
        )
        .into())
    }

    /// Takes back what a sequence holds.
    pub(crate) fn reclaim(&mut self, cache: &mut SequenceCache) {
        self.arena.reclaim(self.decoder.backend(), cache);
    }

    /// See [`Decoder::set_capture`].
    pub fn capture(&mut self, capture: Option<Capture>) {
        self.decoder.set_capture(capture);
    }

    /// Abandons the step under way, from another thread, and every later one until
    /// [`Self::join`]. What was half done is dropped.
    pub fn cancel(&self) -> Cancel {
        self.decoder.cancel().clone()
    }

    /// Joins an epoch of the group: sequences of an earlier one are dropped, weights stay. From
    /// here on plans of other epochs are refused. Steps that were to be abandoned are of an earlier
    /// epoch.
    pub fn join(&mut self, epoch: u64, collective: Option<Arc<dyn Collective>>) {
        let sequences: Vec<u64> = self.sequences.keys().copied().collect();
        sequences.into_iter().for_each(|id| self.end(id));
        self.traces.end_all();
        self.epoch = Some(epoch);
        self.decoder.cancel().clear();
        if let Some(collective) = collective {
            self.decoder.join(collective);
        }
    }

    /// Bytes of pages that a sequence of `tokens` tokens takes when nothing is evicted.
    pub fn full_cache_bytes(&self, tokens: usize) -> usize {
        let config = self.decoder.config();
        config.layers
            * self.decoder.shard().part.kv_heads.len()
            * tokens.div_ceil(PageShape::SLOTS)
            * self.arena.shape.cost()
    }

    /// Element type of the slot arena.
    pub fn kv_type(&self) -> KvType {
        self.arena.shape.dtype
    }

    /// Bytes of the slot arena, notes included.
    pub fn arena_bytes(&self) -> usize {
        self.arena.pool.total() * self.arena.shape.cost()
    }

    /// Bytes that latent memories may take beside it.
    pub fn latent_bytes(&self) -> usize {
        self.arena.latent_bytes
    }

    /// Pages that live sequences hold.
    pub fn held_pages(&self) -> u64 {
        let sequences = self.sequences.values();
        sequences.map(|s| s.cache.held_pages()).sum()
    }

    /// Digest of a live sequence's whole state, for tests and divergence checks.
    ///
    /// # Errors
    /// Those of the kernels.
    pub fn digest(&self, sequence: u64) -> Result<Option<u64>> {
        let backend = self.decoder.backend();
        let head_dim = self.arena.shape.head_dim;
        self.sequences
            .get(&sequence)
            .map(|s| s.cache.digest(backend, &self.arena.pages, head_dim))
            .transpose()
    }

    /// Whether the device has failed. What is on it is gone, the weights too: only a new process
    /// can go on.
    pub fn is_lost(&self) -> bool {
        self.lost
    }

    /// Whether plans of this epoch are carried out.
    pub fn is_in(&self, epoch: u64) -> bool {
        self.epoch.is_none_or(|joined| joined == epoch)
    }

    /// Carries out one plan.
    pub fn execute(&mut self, plan: &internal::StepPlan) -> internal::StepOutput {
        let started = Instant::now();
        if let Some(joined) = self.epoch.filter(|&number| number != plan.epoch) {
            let error = format!(
                "this rank is in epoch {joined}, the plan is of epoch {}",
                plan.epoch
            );
            return internal::StepOutput {
                epoch: plan.epoch,
                step: plan.step,
                error,
                ..Default::default()
            };
        }
        for id in &plan.release {
            self.end(*id);
        }
        let (mut outputs, mut admitted) = (Vec::new(), Vec::new());
        for step in &plan.sequences {
            match self.admit(step) {
                Ok(sequence) => admitted.push(Admitted { step, sequence }),
                Err(error) => {
                    self.end(step.sequence);
                    outputs.push(outputs::failed(step.sequence, &error));
                }
            }
        }
        self.mask_wait = Duration::ZERO;
        let done = self.step(plan, &mut admitted);
        self.traces.step(plan, started);
        let error = match done {
            Ok(done) => {
                outputs.extend(done);
                self.keep(admitted, &mut outputs);
                String::new()
            }
            Err(failure) => {
                self.lost |= matches!(
                    failure,
                    Error::Kernel(palimpsest_kernels::Error::Device { .. })
                );
                outputs.clear();
                self.discard(admitted);
                failure.to_string()
            }
        };
        outputs::sort(&mut outputs, plan);
        internal::StepOutput {
            epoch: plan.epoch,
            step: plan.step,
            digest: self.step_digest(plan, &outputs),
            sequences: outputs,
            error,
            seconds: started.elapsed().as_secs_f64(),
            snapshots: Vec::new(),
            mask_wait_seconds: self.mask_wait.as_secs_f64(),
        }
    }

    /// The step of the admitted sequences, if there are any.
    fn step(
        &mut self,
        plan: &internal::StepPlan,
        admitted: &mut [Admitted<'_>],
    ) -> Result<Vec<internal::SequenceOutput>> {
        if admitted.is_empty() {
            return Ok(Vec::new());
        }
        self.steps += 1;
        self.diverge(plan);
        self.run(admitted)
    }

    /// After a step that was done: its sequences stay, but for those that cannot go on.
    fn keep(&mut self, admitted: Vec<Admitted<'_>>, outputs: &mut [internal::SequenceOutput]) {
        for a in admitted {
            if !a.step.keep.is_empty() {
                let output = outputs.iter_mut().find(|o| o.sequence == a.step.sequence);
                let kept = self.keep_state(&a.step.keep, &a.sequence.cache);
                if let Some(output) = output.filter(|output| output.error.is_empty()) {
                    output.kept_bytes = kept;
                }
            }
            self.sequences.insert(a.step.sequence, a.sequence);
        }
        for broken in outputs.iter().filter(|o| !o.error.is_empty()) {
            self.end(broken.sequence);
        }
    }

    /// After a step that failed: none of its sequences can go on.
    fn discard(&mut self, admitted: Vec<Admitted<'_>>) {
        for mut a in admitted {
            self.traces.end(a.step.sequence);
            self.reclaim(&mut a.sequence.cache);
        }
    }

    /// Drops a sequence, if there is such a one.
    fn end(&mut self, id: u64) {
        self.traces.end(id);
        if let Some(mut sequence) = self.sequences.remove(&id) {
            self.reclaim(&mut sequence.cache);
        }
    }

    /// Takes the sequence out of the table for this step, creating it in its first.
    fn admit(&mut self, step: &internal::SequenceStep) -> Result<Sequence> {
        let refuse = |what: String| Error::Plan {
            sequence: step.sequence,
            what,
        };
        if step.init.is_some() && self.sequences.contains_key(&step.sequence) {
            return Err(refuse("started twice".into()));
        }
        let mut sequence = match &step.init {
            Some(init) => self.create(init)?,
            None => self
                .sequences
                .remove(&step.sequence)
                .ok_or_else(|| refuse("is not known here".into()))?,
        };
        let (stride, vocabulary) = (self.decoder.stride(), self.decoder.config().vocabulary);
        if let Some(what) = sequence.problem(step, stride, vocabulary) {
            self.reclaim(&mut sequence.cache);
            return Err(refuse(what));
        }
        sequence.observe(&step.tokens, step.position);
        Ok(sequence)
    }

    fn create(&mut self, init: &internal::SequenceInit) -> Result<Sequence> {
        let contract = Contract::try_from(&init.kv.clone().unwrap_or_default())?;
        let mut cache = self.open_cache(contract)?;
        if !init.fork.is_empty()
            && let Err(error) = self.begin_with(&init.fork, &mut cache)
        {
            self.reclaim(&mut cache);
            return Err(error);
        }
        let sampling = init.sampling.clone().unwrap_or_default();
        let mut sequence = Sequence {
            cache,
            sampler: Sampler::new(sampling, init.banned.clone()).with_early_bans(EarlyBans {
                tokens: init.banned_at_first.clone(),
                until: init.banned_until,
            }),
            guide: Rules::of(init).map(|rules| self.guides.open(rules)),
            prompt_tokens: init.prompt_tokens,
            pool: Pool::new(init.pooling(), self.decoder.config().hidden),
            due: None,
        };
        sequence.observe(&init.forked_tokens, 0);
        Ok(sequence)
    }

    /// Runs the admitted sequences. An error is the step's: no sequence of it can go on.
    fn run(&mut self, admitted: &mut [Admitted<'_>]) -> Result<Vec<internal::SequenceOutput>> {
        // Those that read nothing come last.
        admitted.sort_by_key(Admitted::is_due);
        let reading = admitted.partition_point(|a| !a.is_due());
        let (reading, due) = admitted.split_at_mut(reading);
        // First of all, so that masks are made while the step goes through the layers.
        let masks: Vec<Option<Pending>> = reading
            .iter_mut()
            .map(|a| {
                let guide = a.sequence.guide.as_mut().filter(|_| a.step.sample);
                guide.map(Guided::request)
            })
            .collect();
        let edits: Vec<Vec<LogitEdit>> = reading
            .iter()
            .map(|a| a.sequence.sampler.edits(a.next_position()))
            .collect();
        let mut choices = Choices::default();
        for ((a, edits), mask) in reading.iter().zip(&edits).zip(masks) {
            // Log-probabilities are the model's own: they need the logits before the edits, here.
            let here = !a.step.sample || a.sequence.sampler.reports_logprobs();
            let item = (!here).then(|| a.sequence.sampler.item(edits, a.next_position()));
            choices.push(item, mask);
        }
        let due = due.iter_mut().filter_map(|a| a.sequence.due.take());
        let kept = due.map(|Due { logits, mask }| {
            choices.push(None, Some(mask));
            Answer::Logits(logits)
        });
        let kept: Vec<Answer> = kept.collect();
        let mut answers = self.read(reading, &mut choices)?;
        answers.extend(kept);
        self.mask_wait = choices.waited();
        Ok(self.outputs(admitted, answers, &mut choices))
    }

    /// Reads the tokens of the step. Returns what each sequence gets.
    fn read(
        &mut self,
        reading: &mut [Admitted<'_>],
        choices: &mut Choices<'_>,
    ) -> Result<Vec<Answer>> {
        if reading.is_empty() {
            self.decoder.settle(choices)?;
            return Ok(Vec::new());
        }
        let following: Vec<Vec<u32>> = reading.iter().map(Admitted::following).collect();
        let mut pieces: Vec<_> = reading
            .iter_mut()
            .zip(&following)
            .map(|(a, next)| a.piece(next))
            .collect();
        let answers = self.decoder.step(&mut self.arena, &mut pieces, choices)?;
        drop(pieces);
        self.pool_states(reading);
        Ok(answers)
    }

    /// What the coordinator is told of each sequence. One whose guide is late keeps its logits.
    fn outputs(
        &mut self,
        admitted: &mut [Admitted<'_>],
        answers: Vec<Answer>,
        choices: &mut Choices<'_>,
    ) -> Vec<internal::SequenceOutput> {
        let entry_bytes = (self.arena.shape.bytes() / PageShape::SLOTS) as u64;
        let mut known = self.decoder.take_known().into_iter();
        let answers = admitted.iter_mut().zip(answers).enumerate();
        let output = |(index, (a, answer)): (usize, (&mut Admitted<'_>, Answer))| {
            let answer = match (choices.take_late(index), answer) {
                (Some(mask), Answer::Logits(logits)) => {
                    a.sequence.due = Some(Due { logits, mask });
                    None
                }
                (_, answer) => Some(answer),
            };
            let done = Done {
                answer,
                mask: choices.mask(index),
                prompt_logprobs: known.next().unwrap_or_default(),
            };
            outputs::output(a, done, entry_bytes)
        };
        answers.map(output).collect()
    }

    /// Adds the final states of the last step to those of its sequences that are pooled.
    fn pool_states(&mut self, admitted: &mut [Admitted<'_>]) {
        for (a, states) in admitted.iter_mut().zip(self.decoder.take_states()) {
            if let Some(pool) = &mut a.sequence.pool {
                pool.add(&states);
            }
        }
    }

    /// Digest of what must agree on all ranks of a group: the plan, the numbers that every rank has
    /// of every sequence after the last layer, how much was evicted, and the sampled tokens. Which
    /// slots a head keeps is decided by the ranks that hold it alone; a wrong decision there
    /// reaches all ranks through the next sum.
    fn step_digest(&self, plan: &internal::StepPlan, outputs: &[internal::SequenceOutput]) -> u64 {
        let mut hash = Xxh3::new();
        hash.update(&plan.encode_to_vec());
        for state in self.decoder.state_digests() {
            hash.update(&state.to_le_bytes());
        }
        let shard = self.decoder.shard();
        for output in outputs {
            hash.update(&output.sequence.to_le_bytes());
            hash.update(&output.token.unwrap_or(u32::MAX).to_le_bytes());
            let cache = self.sequences.get(&output.sequence).map(|s| &s.cache);
            // Where ranks share a pool they evict different numbers; otherwise every KV head evicts
            // the same.
            if let Some(cache) = cache.filter(|cache| !shares_pools(cache)) {
                hash.update(&(cache.evicted / shard.part.kv_heads.len() as u64).to_le_bytes());
            }
        }
        hash.digest()
    }
}

/// Whether ranks share the budget of a sequence.
fn shares_pools(cache: &SequenceCache) -> bool {
    cache
        .contract
        .bounded()
        .is_some_and(|bounded| bounded.head_budget.spans_ranks())
}
