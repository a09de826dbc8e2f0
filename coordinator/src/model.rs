//! The model that a worker group serves, as the coordinator needs it: what its ranks report,
//! checked once.

use std::sync::{Arc, OnceLock};

use palimpsest_guide::Vocabulary;
use palimpsest_proto::contract::{Contract, ContractError, Offer};
use palimpsest_proto::error::{Reason, RequestError};
use palimpsest_proto::internal::v1::{ModelInfo, RankInfo};
use palimpsest_proto::kv::{Geometry, PAGE_SLOTS};
use palimpsest_proto::v1;

use crate::config::Config;
use crate::scheduler::Cost;
use crate::snapshots::{Room, Root, Salt};
use crate::text::{self, ChatTemplate, Infilling, NoInfilling, Rendered, Tokenizer};

/// Why ranks do not make a group.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No rank at all.
    #[error("a worker group needs at least one rank")]
    NoRanks,
    /// Rank numbers and world size do not fit.
    #[error("rank {index} of {count} reports rank {rank} of {world_size}")]
    Ranks {
        /// Place in the list.
        index: usize,
        /// Length of the list.
        count: usize,
        /// Reported rank.
        rank: u32,
        /// Reported world size.
        world_size: u32,
    },
    /// A rank holds something else than rank 0.
    #[error("rank {rank} holds another model, build or option than rank 0: start all ranks alike")]
    Digest {
        /// The rank.
        rank: u32,
    },
    /// A rank sent no model, or one without layers, heads, vocabulary or stride.
    #[error("rank 0 reports no usable model: {0} is missing")]
    Incomplete(&'static str),
    /// The contract of requests that do not say has no room on a rank, so no step would ever run.
    #[error(
        "the default contract (budget {budget}, policy {policy}, memory {memory}) never fits: a \
         sequence needs {} of pages and {} of latent memory on each rank, which has {} and {}; \
         start with a smaller --kv-budget, or with more --kv-memory-mib or --latent-memory-mib",
        mib(needed.pages), mib(needed.latent), mib(room.pages), mib(room.latent)
    )]
    DefaultNeverFits {
        /// Budget of the default contract.
        budget: u32,
        /// Its policy.
        policy: String,
        /// Its latent memory.
        memory: String,
        /// What a sequence under it reserves.
        needed: Cost,
        /// What the smallest rank has.
        room: Cost,
    },
    /// The contract of requests that do not say means nothing.
    #[error("the default contract of rank 0 cannot be kept: {0}")]
    DefaultContract(#[from] ContractError),
    /// Another group took over with another model or less memory.
    #[error("the new group cannot take over: its model or arena is not that of the old one")]
    OtherModel,
    /// The model's tokenizer or template.
    #[error(transparent)]
    Text(#[from] text::Error),
}

/// Bytes for people.
fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

/// A model and the group that holds it.
#[derive(Debug)]
pub struct ServedModel {
    /// As rank 0 reports it.
    pub info: ModelInfo,
    /// Number of ranks.
    pub world_size: u32,
    /// What one rank holds.
    pub geometry: Geometry,
    /// Cache of the smallest rank.
    pub room: Cost,
    /// Room for snapshots on the smallest rank.
    pub snapshots: Room,
    /// Of all ranks alike.
    pub digest: Vec<u8>,
    /// What a request gets that asks for nothing.
    pub default_contract: Contract,
    /// The model's tokenizer.
    pub tokenizer: Arc<Tokenizer>,
    /// The model's chat template, if it has one.
    pub template: Option<ChatTemplate>,
    /// How it is asked for a text between two others, if it has the tokens for that.
    pub infilling: Result<Infilling, NoInfilling>,
    /// Made for the first request with a guide.
    guides: OnceLock<Result<Vocabulary, palimpsest_guide::Error>>,
    /// What clients call it, where that is not what its ranks do.
    served_names: Vec<String>,
}

impl ServedModel {
    /// Checks what all ranks of a group report, in rank order.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn new(ranks: Vec<RankInfo>) -> Result<Self, Error> {
        let count = ranks.len();
        let least =
            |bytes: fn(&RankInfo) -> u64| ranks.iter().map(bytes).min().ok_or(Error::NoRanks);
        let room = Cost {
            pages: least(|rank| rank.kv_arena_bytes)?,
            latent: least(|rank| rank.kv_latent_bytes)?,
        };
        let has_store = ranks.iter().all(|rank| rank.snapshot_store);
        let snapshots = Room {
            memory: least(|rank| rank.snapshot_bytes)?,
            store: if has_store { u64::MAX } else { 0 },
        };
        for (index, rank) in ranks.iter().enumerate() {
            if rank.rank as usize != index || rank.world_size as usize != count {
                return Err(Error::Ranks {
                    index,
                    count,
                    rank: rank.rank,
                    world_size: rank.world_size,
                });
            }
            if rank.digest != ranks[0].digest {
                return Err(Error::Digest { rank: rank.rank });
            }
        }
        let first = ranks.into_iter().next().ok_or(Error::NoRanks)?;
        let info = first.model.ok_or(Error::Incomplete("model"))?;
        let needed = [
            ("layers", u64::from(info.layers)),
            ("kv_heads", u64::from(info.kv_heads)),
            ("head_dim", u64::from(info.head_dim)),
            ("kv_element_bytes", u64::from(info.kv_element_bytes)),
            ("vocabulary", info.vocabulary),
            ("stride", u64::from(info.stride)),
        ];
        if let Some((name, _)) = needed.iter().find(|(_, value)| *value == 0) {
            return Err(Error::Incomplete(name));
        }
        let template = match info.chat_template.as_str() {
            "" => None,
            source => Some(ChatTemplate::new(source, &info.bos_token, &info.eos_token)?),
        };
        let tokenizer = Tokenizer::from_bytes(&info.tokenizer)?;
        let template = template
            .map(|template: ChatTemplate| template.guarded(&tokenizer))
            .transpose()?;
        let default_contract = complete(&v1::KvContract::default(), &info)?;
        Ok(Self {
            default_contract,
            world_size: first.world_size,
            geometry: geometry(&info, first.world_size),
            room,
            snapshots,
            digest: first.digest.to_vec(),
            infilling: Infilling::of(&tokenizer),
            tokenizer: Arc::new(tokenizer),
            template,
            guides: OnceLock::new(),
            served_names: Vec::new(),
            info,
        })
    }

    /// The same, by other names; none: by that of its ranks.
    #[must_use]
    pub fn called(self, names: &[String]) -> Self {
        Self {
            served_names: names.to_vec(),
            ..self
        }
    }

    /// The name that answers show.
    pub fn name(&self) -> &str {
        self.served_names.first().unwrap_or(&self.info.name)
    }

    /// All names that a request may use, that of answers first.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let others = self.served_names.iter().skip(1).map(String::as_str);
        std::iter::once(self.name()).chain(others)
    }

    /// Refuses the name of another model. The empty one means whichever is served.
    ///
    /// # Errors
    /// `UnknownModel`.
    pub fn check_name(&self, name: &str) -> Result<(), RequestError> {
        if name.is_empty() || self.names().any(|own| own == name) {
            return Ok(());
        }
        let message = format!(
            "this server has the model {:?} only: leave `model` empty or name it",
            self.name()
        );
        Err(RequestError::new(Reason::UnknownModel, message))
    }

    /// Whether requests admitted for this model can run on the group of `ranks`.
    ///
    /// # Errors
    /// As [`Self::new`], and [`Error::OtherModel`].
    pub fn check_successor(&self, ranks: Vec<RankInfo>) -> Result<(), Error> {
        let next = Self::new(ranks)?;
        let same = next.digest == self.digest
            && next.geometry == self.geometry
            && self.room.fits(&next.room);
        same.then_some(()).ok_or(Error::OtherModel)
    }

    /// Room for snapshots on each rank, as far as the coordinator uses it.
    pub fn snapshot_room(&self, config: &Config) -> Room {
        Room {
            store: self.snapshots.store.min(config.snapshot_store_bytes),
            ..self.snapshots
        }
    }

    /// What names the states of a request under `contract`, which those of `salt` alone may use.
    pub fn snapshot_root<'a>(&'a self, contract: &'a Contract, salt: Salt<'a>) -> Root<'a> {
        Root {
            model: &self.info.state_digest,
            contract,
            stride: self.geometry.stride,
            salt,
        }
    }

    /// KV heads of all ranks together, over all layers.
    pub fn all_heads(&self) -> u64 {
        self.geometry.layers * self.geometry.total_kv_heads
    }

    /// Bytes of one token in a cache that keeps everything, all ranks together.
    pub fn token_bytes(&self) -> u64 {
        self.all_heads() * self.geometry.entry_bytes()
    }

    /// Strides of tokens that a cache that keeps everything would hold in the memory of the fullest
    /// rank.
    pub fn full_cache_strides(&self) -> u64 {
        let pages = self.geometry.heads() * self.geometry.stride.div_ceil(PAGE_SLOTS);
        self.room.pages / (pages * self.geometry.page_bytes())
    }

    /// The contract of a request that `asked`, with the group's defaults for what it leaves open.
    ///
    /// # Errors
    /// Those of [`Contract::complete`].
    pub fn contract(&self, asked: &v1::KvContract) -> Result<Contract, ContractError> {
        complete(asked, &self.info)
    }

    /// The vocabulary as guides see it. The first call takes tenths of a second.
    ///
    /// # Errors
    /// Why answers of this model cannot be guided.
    pub fn guide_vocabulary(&self) -> Result<&Vocabulary, palimpsest_guide::Error> {
        let info = &self.info;
        let make = || Vocabulary::new(&info.tokenizer, info.vocabulary as usize, &info.eos_ids);
        self.guides.get_or_init(make).as_ref().map_err(Clone::clone)
    }

    /// The prompt for a conversation.
    ///
    /// # Errors
    /// [`text::Error::NoTemplate`], or what the template says.
    pub fn render(&self, chat: &v1::Chat) -> Result<Rendered, text::Error> {
        let template = self.template.as_ref().ok_or(text::Error::NoTemplate)?;
        template.render(chat)
    }
}

fn complete(asked: &v1::KvContract, info: &ModelInfo) -> Result<Contract, ContractError> {
    let open = v1::KvContract::default();
    let offer = Offer {
        defaults: info.default_kv.as_ref().unwrap_or(&open),
        pooled: &info.pooled_policies,
    };
    Contract::complete(asked, offer)
}

/// What one of `world_size` ranks holds of a model.
pub fn geometry(info: &ModelInfo, world_size: u32) -> Geometry {
    let world_size = world_size.max(1);
    Geometry {
        layers: u64::from(info.layers),
        kv_heads: u64::from(info.kv_heads.div_ceil(world_size)),
        total_kv_heads: u64::from(info.kv_heads),
        head_dim: u64::from(info.head_dim),
        element_bytes: u64::from(info.kv_element_bytes),
        scale_bytes: u64::from(info.kv_scale_bytes),
        stride: u64::from(info.stride),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor::fake::Script;

    #[test]
    fn a_model_has_the_names_that_it_is_given_and_no_other() {
        let model = || ServedModel::new(vec![Script::endless(0, 1).rank]).unwrap();
        let own = model().info.name.clone();
        assert_eq!(model().names().collect::<Vec<_>>(), [own.as_str()]);
        let named = model().called(&["main".into(), "org/other".into()]);
        assert_eq!((named.name(), named.info.name.as_str()), ("main", &*own));
        for name in ["", "main", "org/other"] {
            assert_eq!(named.check_name(name), Ok(()));
        }
        let error = named.check_name(&own).unwrap_err();
        assert_eq!(error.reason, Reason::UnknownModel);
        assert!(error.message.contains("\"main\""), "{error}");
    }

    #[test]
    fn ranks_must_make_a_group() {
        let ranks = |n: u32| {
            (0..n)
                .map(|rank| Script::endless(rank, n).rank)
                .collect::<Vec<_>>()
        };
        assert_eq!(ServedModel::new(ranks(2)).unwrap().geometry.kv_heads, 1);
        assert!(matches!(ServedModel::new(vec![]), Err(Error::NoRanks)));
        assert!(matches!(
            ServedModel::new(ranks(2)[..1].to_vec()),
            Err(Error::Ranks {
                count: 1,
                world_size: 2,
                ..
            })
        ));
        let mut other = ranks(2);
        other[1].digest = b"else"[..].into();
        assert!(matches!(
            ServedModel::new(other),
            Err(Error::Digest { rank: 1 })
        ));
        let mut flat = ranks(1);
        flat[0].model.as_mut().unwrap().stride = 0;
        assert!(matches!(
            ServedModel::new(flat),
            Err(Error::Incomplete("stride"))
        ));
        let mut small = ranks(1);
        small[0].kv_arena_bytes -= 1;
        let served = ServedModel::new(ranks(1)).unwrap();
        assert!(matches!(
            served.check_successor(small),
            Err(Error::OtherModel)
        ));
        served.check_successor(ranks(1)).unwrap();
    }
}
