//! Opening a rank: a model file becomes a [`Runner`] and the [`RankInfo`] that tells the
//! coordinator what it is.

use std::path::PathBuf;
use std::sync::Arc;

use palimpsest_collective::Place;
use palimpsest_kernels::{Backend, KvType};
use palimpsest_models::config::ModelConfig;
use palimpsest_models::tokenizer::TokenizerFiles;
use palimpsest_models::{DigestCache, Model};
use palimpsest_proto::contract::{Contract, HeadBudget, NO_MEMORY, Offer, Positions};
use palimpsest_proto::internal::v1::{ModelInfo, RankInfo};
use palimpsest_proto::v1::KvContract;
use prost::Message;
use xxhash_rust::xxh3::Xxh3;

use crate::decoder::Decoder;
use crate::device_memory::{CacheBytes, StepSize};
use crate::error::{Error, Result};
use crate::guides::Guides;
use crate::indexer::{Indexer, ModelShape};
use crate::kept::Kept;
use crate::memory;
use crate::policy::retention::RetentionWeights;
use crate::policy::{self, Policy, Retention};
use crate::runner::Runner;
use crate::shard::Shard;

/// How a rank runs its model.
pub struct RankOptions {
    /// A GGUF file or a directory with config.json.
    pub model: PathBuf,
    /// Name on the wire; the model's own when empty.
    pub name: String,
    /// Element type of cached keys and values.
    pub kv: KvType,
    /// Bytes of the cache.
    pub cache: CacheBytes,
    /// Bytes of host memory for snapshots; 0: none are kept.
    pub snapshot_bytes: u64,
    /// Tokens between two boundaries.
    pub stride: u32,
    /// Trained scorers and memories.
    pub indexer: Option<Indexer>,
    /// Contract of requests that do not say.
    pub default_kv: KvContract,
    /// The largest step that memory is allocated for at start. `None`: it is allocated when steps
    /// come, for devices that commit memory as it is used.
    pub step: Option<StepSize>,
    /// Which part of the model this rank holds.
    pub place: Place,
    /// Where digests of the model's files are kept.
    pub digests: DigestCache,
}

/// A rank ready to run.
pub struct Rank<B: Backend> {
    /// What the coordinator is told.
    pub info: RankInfo,
    /// The device thread's state.
    pub runner: Runner<B>,
}

/// Default budget in entries per KV head.
pub const DEFAULT_BUDGET: u32 = 1024;

impl<B: Backend> Rank<B> {
    /// Opens a rank of a group. One that is not alone needs [`Runner::join`] before its first plan.
    /// `progress` is called with the fraction of the weights packed.
    ///
    /// # Errors
    /// What is wrong with the model or the indexer.
    pub fn open(
        backend: B,
        mut options: RankOptions,
        progress: &mut dyn FnMut(f32),
    ) -> Result<Self> {
        let place = options.place;
        let model = Model::open(&options.model)?;
        if options.indexer.is_none() && model.is_random() {
            options.indexer = Some(random_indexer(model.config()));
        }
        let shard = Shard::new(model.config(), place)?;
        let decoder = Decoder::load(
            backend,
            model.weights(),
            shard,
            options.stride.into(),
            progress,
        )?;
        let mut runner = Runner::new(decoder, options.kv, options.cache)?;
        runner.keep_in(Kept::new(options.snapshot_bytes));
        if let Some(indexer) = &options.indexer {
            runner.set_indexer(indexer)?;
        }
        if let Some(step) = options.step {
            runner.decoder.reserve(step)?;
        }
        let tokenizer = model.tokenizer()?;
        let vocabulary = runner.decoder().config().vocabulary;
        runner.guide_by(Guides::new(tokenizer.clone(), vocabulary));
        let memories = memory::names(runner.decoder().memories().features().is_some());
        let default_kv = default_contract(&options, runner.policies(), &memories)?;
        let mut info = model_info(
            runner.decoder().config(),
            tokenizer,
            runner.policies(),
            default_kv,
        );
        if !options.name.is_empty() {
            info.name = options.name;
        }
        info.kv_element_bytes = options.kv.bytes() as u32;
        info.kv_scale_bytes = options.kv.scale_bytes() as u32;
        info.stride = options.stride;
        info.memories = memories.into_iter().map(str::to_string).collect();
        let device = runner.decoder().backend().name();
        let weights = model.weights().digest(&options.digests);
        let arithmetic = runner.decoder().backend().arithmetic();
        info.state_digest =
            state_digest(weights, options.indexer.as_ref(), options.kv, &arithmetic);
        let digest = group_digest(&info, weights, options.indexer.as_ref(), &device);
        let info = RankInfo {
            rank: place.rank as u32,
            world_size: place.world_size as u32,
            model: Some(info),
            kv_arena_bytes: runner.arena_bytes() as u64,
            kv_latent_bytes: runner.latent_bytes() as u64,
            device,
            digest: digest.to_le_bytes().to_vec().into(),
            epoch: 0,
            lead: None,
            snapshot_bytes: options.snapshot_bytes,
            snapshot_store: false,
        };
        Ok(Self { info, runner })
    }
}

/// Scorers for random weights: the default contract of such a model is that of a trained one.
fn random_indexer(config: &ModelConfig) -> Indexer {
    let shape = ModelShape {
        layers: config.layers,
        kv_heads: config.kv_heads,
        hidden: config.hidden,
    };
    let mut indexer = Indexer::new(shape);
    indexer.set(&RetentionWeights::random(shape));
    indexer
}

/// What must be the same on all ranks of a group: model, indexer, options, arithmetic and build.
fn group_digest(info: &ModelInfo, weights: u128, indexer: Option<&Indexer>, device: &str) -> u64 {
    let mut hash = Xxh3::new();
    hash.update(&info.encode_to_vec());
    hash.update(&weights.to_le_bytes());
    if let Some(indexer) = indexer {
        indexer.digest(&mut hash);
    }
    // Threads may differ, results do not depend on them.
    hash.update(device.split(',').next().unwrap_or(device).as_bytes());
    hash.update(env!("CARGO_PKG_VERSION").as_bytes());
    hash.digest()
}

/// Changes whenever the same tokens leave another state than before, and whenever the digest of a
/// state's origin is made of other things. 2: the device's arithmetic is one of them.
const STATE_VERSION: u32 = 2;

/// What the bits of a sequence's state are a function of, beside its tokens, its contract and the
/// stride.
fn state_digest(
    weights: u128,
    indexer: Option<&Indexer>,
    kv: KvType,
    arithmetic: &str,
) -> bytes::Bytes {
    let mut hash = Xxh3::new();
    hash.update(&STATE_VERSION.to_le_bytes());
    // With its length: what follows must not pass for a part of it.
    hash.update(&(arithmetic.len() as u64).to_le_bytes());
    hash.update(arithmetic.as_bytes());
    hash.update(&weights.to_le_bytes());
    hash.update(kv.name().as_bytes());
    if let Some(indexer) = indexer {
        indexer.digest(&mut hash);
    }
    hash.digest128().to_le_bytes().to_vec().into()
}

/// Fills what the operator left open: the learned policy and its memory where there is one, else
/// the best that needs no training. What depends on the budget of a request stays open.
///
/// # Errors
/// [`Error::InvalidContract`] and [`Error::Contract`] for what the operator asked for and no
/// request could get.
fn default_contract(
    options: &RankOptions,
    policies: &[Arc<dyn Policy>],
    memories: &[&'static str],
) -> Result<KvContract> {
    let mut kv = options.default_kv.clone();
    if kv.policy.is_empty() {
        let learned = policies.iter().any(|p| p.name() == Retention::NAME);
        kv.policy = if learned {
            Retention::NAME
        } else {
            policy::BEST_UNTRAINED
        }
        .into();
    }
    let policy = policy::find(policies, &kv.policy)?;
    if kv.budget == 0 {
        kv.budget = DEFAULT_BUDGET;
    }
    if kv.memory.is_empty() {
        // The memory pays for its bytes beside the learned policy, and not beside the heuristics:
        // EVALUATION.md.
        kv.memory = if kv.policy == Retention::NAME {
            memory::CENTROID
        } else {
            NO_MEMORY
        }
        .into();
    }
    if !memories.contains(&kv.memory.as_str()) {
        let names = memories.join(", ");
        return Err(Error::Contract(format!(
            "memory `{}` is not one of {names}",
            kv.memory
        )));
    }
    if kv.head_budget.is_empty() {
        let head_budget = if policy.comparable() {
            HeadBudget::Column
        } else {
            HeadBudget::Uniform
        };
        kv.head_budget = head_budget.name().into();
    }
    if kv.positions.is_empty() {
        kv.positions = Positions::Absolute.name().into();
    }
    let offer = Offer {
        defaults: &kv,
        pooled: &policy::pooled(policies),
    };
    Contract::complete(&options.default_kv, offer)?;
    Ok(kv)
}

fn model_info(
    config: &ModelConfig,
    tokenizer: TokenizerFiles,
    policies: &[Arc<dyn Policy>],
    default_kv: KvContract,
) -> ModelInfo {
    ModelInfo {
        name: config.name.clone(),
        architecture: config.architecture.name().into(),
        context_length: config.context_length as u64,
        layers: config.layers as u32,
        heads: config.heads as u32,
        kv_heads: config.kv_heads as u32,
        head_dim: config.head_dim as u32,
        vocabulary: config.vocabulary as u64,
        parameters: config.parameters,
        kv_element_bytes: 0,
        kv_scale_bytes: 0,
        stride: 0,
        tokenizer: tokenizer.tokenizer_json.into(),
        chat_template: tokenizer.chat_template.unwrap_or_default(),
        bos_token: tokenizer.bos_token.unwrap_or_default(),
        eos_token: tokenizer.eos_token.unwrap_or_default(),
        eos_ids: tokenizer.eos_ids,
        policies: policies.iter().map(|p| p.name().to_string()).collect(),
        pooled_policies: policy::pooled(policies),
        memories: Vec::new(),
        default_kv: Some(default_kv),
        state_digest: bytes::Bytes::new(),
        embedding_length: config.hidden as u64,
    }
}
