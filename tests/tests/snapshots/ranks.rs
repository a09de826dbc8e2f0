//! Groups of ranks in this process that hand a sequence on by files.

use std::path::Path;
use std::sync::Arc;

use palimpsest_collective::local::LocalGroup;
use palimpsest_collective::{Collective, Place};
use palimpsest_engine::decoder::Logits;
use palimpsest_engine::indexer::Indexer;
use palimpsest_engine::kv::Contract;
use palimpsest_engine::offline::OfflineSequence;
use palimpsest_engine::runner::Runner;
use palimpsest_engine::snapshot::file::Identity;
use palimpsest_engine::snapshot::{Extent, Snapshot};
use palimpsest_kernels::cpu::{Activations, CpuBackend};
use palimpsest_kernels::{KvType, PageShape};
use palimpsest_tests::{EngineOptions, HEAD_DIM, HEADS, KV_HEADS, LAYERS, STRIDE, engine};

/// Tokens of an answer.
const ANSWER: usize = 5;

/// What every rank of a group has in common.
pub struct Group<'a> {
    pub model: &'a Path,
    pub indexer: &'a Indexer,
    pub kv: KvType,
    pub contract: &'a Contract,
    pub ranks: usize,
}

/// What a rank comes to.
#[derive(Debug, PartialEq)]
pub struct End {
    /// Greedily chosen.
    pub answer: Vec<usize>,
    /// Bits of the logits of the last tokens.
    pub logits: Vec<u32>,
    pub digest: u64,
    pub evicted: u64,
}

/// Which state the files of a test hold.
pub fn identity(kv: KvType) -> Identity {
    Identity {
        name: b"a state".to_vec(),
        model: b"a model".to_vec(),
        stride: STRIDE,
        shape: PageShape {
            head_dim: HEAD_DIM,
            dtype: kv,
        },
        layers: LAYERS,
        total_kv_heads: KV_HEADS,
        group: HEADS / KV_HEADS,
    }
}

impl Group<'_> {
    /// Goes on from the files of another group, or from nothing, with `tokens`. Returns a file of
    /// each rank.
    pub fn read(&self, files: &[Vec<u8>], tokens: &[u32]) -> Vec<Vec<u8>> {
        self.on_each(|runner| {
            let mut sequence = self.begin(runner, files);
            sequence.feed(tokens, Logits::None).expect("a step");
            let snapshot = sequence.snapshot().expect("a snapshot");
            snapshot.encode(&identity(self.kv)).expect("a file")
        })
    }

    /// Goes on likewise, and answers. All ranks say the same.
    pub fn answer(&self, files: &[Vec<u8>], tokens: &[u32]) -> Vec<End> {
        self.on_each(|runner| {
            let mut sequence = self.begin(runner, files);
            let mut logits = sequence.feed(tokens, Logits::Last).expect("a step");
            let (mut answer, mut all) = (Vec::new(), Vec::new());
            for _ in 0..ANSWER {
                all.extend(logits.iter().map(|logit| logit.to_bits()));
                let best = |&a: &usize, &b: &usize| logits[a].total_cmp(&logits[b]);
                let token = (0..logits.len()).max_by(best).expect("a vocabulary");
                answer.push(token);
                logits = sequence
                    .feed(&[token as u32], Logits::Last)
                    .expect("a step");
            }
            End {
                answer,
                logits: all,
                digest: sequence.digest().expect("a digest"),
                evicted: sequence.cache().evicted,
            }
        })
    }

    fn begin<'r>(
        &self,
        runner: &'r mut Runner<CpuBackend>,
        files: &[Vec<u8>],
    ) -> OfflineSequence<'r, CpuBackend> {
        if files.is_empty() {
            return OfflineSequence::open(runner, self.contract.clone()).expect("a contract");
        }
        let decoder = runner.decoder();
        let extent = Extent::of(&decoder.shard().head_layout(decoder.config()));
        let read = |file: &Vec<u8>| Snapshot::decode(file, &identity(self.kv)).expect("a file");
        let parts = files.iter().map(read).collect();
        let snapshot = Snapshot::join(parts, &extent).expect("all heads");
        OfflineSequence::resume(runner, &snapshot).expect("a snapshot of this")
    }

    /// What each rank does, on a thread of its own.
    fn on_each<T: Send>(&self, act: impl Fn(&mut Runner<CpuBackend>) -> T + Sync) -> Vec<T> {
        let ends = LocalGroup::new(self.ranks).into_iter().enumerate();
        std::thread::scope(|scope| {
            let threads: Vec<_> = ends
                .map(|(rank, end)| {
                    let act = &act;
                    scope.spawn(move || act(&mut self.rank(rank, Arc::new(end))))
                })
                .collect();
            let join =
                |thread: std::thread::ScopedJoinHandle<'_, T>| thread.join().expect("a rank");
            threads.into_iter().map(join).collect()
        })
    }

    fn rank(&self, rank: usize, end: Arc<dyn Collective>) -> Runner<CpuBackend> {
        let options = EngineOptions {
            activations: Activations::F32,
            kv: self.kv,
            place: Place {
                rank,
                world_size: self.ranks,
            },
            ..EngineOptions::default()
        };
        let mut runner = engine(self.model, options, Some(self.indexer));
        if self.ranks > 1 {
            runner.join(1, Some(end));
        }
        runner
    }
}
