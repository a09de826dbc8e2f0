//! The boundary against what it promises: what is protected stays, what is lost was handed to the
//! memory in order, and slots keep their contents.

use std::sync::Arc;

use palimpsest_kernels::cpu::{Activations, CpuBackend, CpuOptions};
use palimpsest_kernels::{
    Attention as _, AttentionItem, Buffers, Cache, KvType, LatentHead, LatentKind, LatentMemory,
    LatentState, QkvShape,
};
use palimpsest_models::config::Rotary;
use palimpsest_proto::contract::PolicyName;
use proptest::prelude::*;

use super::*;
use crate::kv::{Bounded, HeadBudget};
use crate::memory::Memory;
use crate::peers::Peers;
use crate::policy::{self, Policy, Site};
use crate::random::splitmix;
use crate::shard::HeadLayout;

const LAYERS: usize = 2;
const KV_HEADS: usize = 2;
const DIM: usize = 16;
const STRIDE: u64 = 16;

/// `DIM` pseudo-random values in [-1, 1), a function of where they stand.
fn noise(seed: u64, head: usize, position: u32) -> Vec<f32> {
    let at =
        |i: usize| splitmix(splitmix(seed ^ (head as u64) << 40 ^ u64::from(position)) ^ i as u64);
    (0..DIM)
        .map(|i| (at(i) >> 40) as f32 / (1u64 << 23) as f32 - 1.0)
        .collect()
}

/// A key that can be recognised: its first value is its position.
fn marked_key(head: usize, position: u32) -> Vec<f32> {
    let mut key = noise(1, head, position);
    key[0] = position as f32;
    key
}

/// An arena without an engine.
struct Bench {
    backend: CpuBackend,
    pages: <CpuBackend as Cache>::Pages,
    pool: PagePool,
    inv_freq: Vec<f32>,
    rotary: RotaryTables,
    trained_length: u64,
    scores: Scores<CpuBackend>,
}

impl Bench {
    fn new(dtype: KvType, trained_length: u64) -> Self {
        let options = CpuOptions {
            threads: Some(1),
            activations: Activations::F32,
            simd: None,
        };
        let backend = CpuBackend::new(options);
        let pages = backend
            .alloc_pages(
                PageShape {
                    head_dim: DIM,
                    dtype,
                },
                64,
            )
            .expect("a small arena");
        let inv_freq: Vec<f32> = (0..DIM / 2)
            .map(|i| 1000f32.powf(-2.0 * i as f32 / DIM as f32))
            .collect();
        let rotary = Rotary {
            inv_freq: inv_freq.clone(),
            scale: vec![1.0; DIM / 2],
        };
        let rotary = RotaryTables::alike(rotary, LAYERS);
        let scores = Scores::new(&backend).expect("room for none");
        Self {
            backend,
            pages,
            pool: PagePool::new(64),
            inv_freq,
            rotary,
            trained_length,
            scores,
        }
    }

    /// The policies that need no training.
    fn policies(&self) -> Vec<Arc<dyn Policy>> {
        let mut site = Site {
            backend: &self.backend,
            kv_heads: 0..KV_HEADS,
            trained: None,
        };
        let installed = policy::install(&mut site).expect("nothing to upload");
        installed.into_iter().map(|found| found.policy).collect()
    }

    /// Adds one stride of entries to every head; `key` and `value` are functions of (head,
    /// position, rotary position).
    fn fill(&mut self, cache: &mut SequenceCache, key: &dyn Fn(usize, u32, u64) -> Vec<f32>) {
        let (first, rotary) = (cache.seen as u32, cache.next_rotary);
        cache
            .grow(STRIDE as usize, &mut self.pool)
            .expect("the arena is large enough");
        for (index, head) in cache.heads.iter_mut().enumerate() {
            let old = head.len() - STRIDE as usize;
            let new = || (0..STRIDE as u32).map(|i| (first + i, rotary + u64::from(i)));
            let keys: Vec<f32> = new().flat_map(|(p, r)| key(index, p, r)).collect();
            let values: Vec<f32> = new().flat_map(|(p, _)| noise(2, index, p)).collect();
            self.backend
                .write_slots(&mut self.pages, head.view(head.len()), old, &keys, &values)
                .expect("they fit");
            for (slot, mass) in head
                .mass
                .iter_mut()
                .flat_map(|mass| mass.iter_mut().enumerate())
            {
                *mass += noise(u64::from(first), index, slot as u32)[0].abs();
            }
        }
    }

    fn pass(&mut self, cache: &mut SequenceCache) {
        let Self {
            backend,
            pages,
            pool,
            rotary,
            trained_length,
            scores,
            ..
        } = self;
        let mut ctx = BoundaryContext {
            backend,
            pages,
            pool,
            head_dim: DIM,
            stride: STRIDE,
            trained_length: *trained_length,
            rotary,
            features: None,
            scores,
            peers: &mut Peers::alone(),
        };
        let kept = begin(cache, &mut ctx).expect("a boundary");
        finish(cache, &mut ctx, kept).expect("a boundary");
    }

    fn slots(&self, cache: &SequenceCache, index: usize) -> (Vec<f32>, Vec<f32>) {
        let head = &cache.heads[index];
        let all: Vec<u32> = (0..head.len() as u32).collect();
        let (mut keys, mut values) = (vec![0.0; all.len() * DIM], vec![0.0; all.len() * DIM]);
        self.backend
            .read_slots(
                &self.pages,
                head.view(head.len()),
                &all,
                &mut keys,
                &mut values,
            )
            .expect("slots that exist");
        (keys, values)
    }
}

/// A memory that has room for all that a test evicts keeps each entry as a centroid: what it was
/// given, in order.
fn recorder(bench: &mut Bench) -> Memory {
    let kind = LatentKind::Centroids { most: 256 };
    let id = bench
        .backend
        .alloc_latent(&mut bench.pages, kind, LAYERS * KV_HEADS)
        .expect("room");
    Memory { id, kind, bytes: 0 }
}

/// Positions of the entries that the memory was given, per head.
fn recorded(bench: &Bench, memory: &Memory) -> Vec<Vec<u32>> {
    let of_head = |head: usize| {
        let state = bench
            .backend
            .read_latent(
                &bench.pages,
                LatentHead {
                    id: memory.id,
                    head,
                },
            )
            .expect("a head");
        let LatentState::Centroids(state) = state else {
            panic!("centroids")
        };
        assert!(
            state.counts().iter().all(|&n| n == 1.0),
            "the recorder has room for all"
        );
        let mut lost = Vec::new();
        for (key, value) in state
            .keys()
            .chunks_exact(DIM)
            .zip(state.values().chunks_exact(DIM))
        {
            let position = key[0] as u32;
            assert_eq!(key, marked_key(head, position));
            assert_eq!(value, noise(2, head, position));
            lost.push(position);
        }
        lost
    };
    (0..LAYERS * KV_HEADS).map(of_head).collect()
}

/// Scores that do their worst: protected slots rank lowest, others NaN or infinite.
struct Hostile;

impl Policy for Hostile {
    fn name(&self) -> &'static str {
        "hostile"
    }
    fn comparable(&self) -> bool {
        true
    }
    fn score(&self, head: &HeadView<'_>, scores: &mut [f32]) {
        for (score, &position) in scores.iter_mut().zip(head.positions) {
            let near_end = head.at - u64::from(position) < STRIDE;
            *score = match splitmix(u64::from(position)) % 4 {
                _ if near_end || (position as usize) < head.sinks => f32::NEG_INFINITY,
                0 => f32::NAN,
                1 => f32::INFINITY,
                _ => 0.0,
            };
        }
    }
}

fn contract(budget: u32, sinks: u32, window: u32, head_budget: HeadBudget) -> Bounded {
    Bounded {
        // The tests give the cache its policy themselves.
        policy: PolicyName::new("any").expect("a name"),
        budget,
        sinks,
        window,
        head_budget,
        positions: Positions::Absolute,
        memory: None,
    }
}

/// Everything a boundary promises about the positions held and lost.
fn check(cache: &SequenceCache, lost: &[Vec<u32>], before: &[usize], context: &str) {
    let contract = cache.contract.bounded().expect("bounded");
    let (seen, slots) = (cache.seen as u32, contract.exact_slots() as usize);
    for (head, lost) in cache.heads.iter().zip(lost) {
        let is_held = |p: u32| head.positions.binary_search(&p).is_ok();
        assert!(
            (0..contract.sinks.min(seen)).all(is_held),
            "{context}: a sink was evicted"
        );
        assert!(
            (seen.saturating_sub(contract.window)..seen).all(is_held),
            "{context}: the window was evicted"
        );
        let mut all: Vec<u32> = head.positions.iter().chain(lost).copied().collect();
        all.sort_unstable();
        assert!(
            all.into_iter().eq(0..seen),
            "{context}: an entry was lost without a trace, or twice"
        );
    }
    for (lost, &before) in lost.iter().zip(before) {
        assert!(
            lost[before..].is_sorted(),
            "{context}: evicted entries arrive in position order"
        );
    }
    let held =
        |heads: &mut dyn Iterator<Item = usize>| heads.map(|h| cache.heads[h].len()).sum::<usize>();
    let full = slots.min(seen as usize);
    match contract.head_budget {
        HeadBudget::Uniform => assert!(
            cache.heads.iter().all(|h| h.len() == full),
            "{context}: uniform budgets"
        ),
        HeadBudget::Column => {
            for column in 0..KV_HEADS {
                let count = held(&mut (column..LAYERS * KV_HEADS).step_by(KV_HEADS));
                assert_eq!(count, full * LAYERS, "{context}: column {column}");
            }
        }
        HeadBudget::Layer => {
            for layer in 0..LAYERS {
                let count = held(&mut (layer * KV_HEADS..(layer + 1) * KV_HEADS));
                assert_eq!(count, full * KV_HEADS, "{context}: layer {layer}");
            }
        }
        HeadBudget::Group => assert_eq!(
            held(&mut (0..LAYERS * KV_HEADS)),
            full * LAYERS * KV_HEADS,
            "{context}"
        ),
    }
    assert_eq!(
        cache.evicted as usize,
        lost.iter().map(Vec::len).sum::<usize>(),
        "{context}: evictions are counted"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn protected_slots_survive_every_policy(
        policy in 0usize..16,
        sinks in 0u32..6,
        window in 1u32..40,
        room in 1u32..30,
        scope in 0usize..HeadBudget::ALL.len(),
        strides in 1usize..8,
    ) {
        let mut bench = Bench::new(KvType::F32, 1 << 20);
        let mut policies = bench.policies();
        policies.push(Arc::new(Hostile));
        let policy = policies[policy % policies.len()].clone();
        let contract = contract(sinks + window + room, sinks, window, HeadBudget::ALL[scope]);
        let context = format!("{} under {contract:?}", policy.name());
        let layout = HeadLayout::alone(LAYERS, KV_HEADS);
        let memory = recorder(&mut bench);
        let recorder = Some(Memory { ..memory });
        let mut cache = SequenceCache::new(layout, contract.into(), policy.clone(), recorder);
        for _ in 0..strides {
            let before: Vec<usize> = recorded(&bench, &memory).iter().map(Vec::len).collect();
            bench.fill(&mut cache, &|head, position, _| marked_key(head, position));
            bench.pass(&mut cache);
            check(&cache, &recorded(&bench, &memory), &before, &context);
            for index in 0..cache.heads.len() {
                let (keys, values) = bench.slots(&cache, index);
                let held = &cache.heads[index].positions;
                let marked = held.iter().flat_map(|&p| marked_key(index, p));
                prop_assert!(marked.eq(keys), "{context}: keys moved wrongly");
                let written = held.iter().flat_map(|&p| noise(2, index, p));
                prop_assert!(written.eq(values), "{context}: values");
            }
            let observed = policy.needs().attention.observed();
            if observed.is_some_and(|observe| observe.forgets) {
                let mut mass = cache.heads.iter().flat_map(|h| h.mass.iter().flatten());
                prop_assert!(mass.all(|&m| m == 0.0), "{context}: old attention");
            }
        }
        let pages = bench.pool.total();
        cache.reclaim(&bench.backend, &mut bench.pages, &mut bench.pool);
        prop_assert_eq!(bench.pool.free(), pages);
    }
}

/// Value pairs `(i, i + D/2)` turned by `position * inv_freq[i]`, in f64.
fn rotated(x: &[f32], position: u64, inv_freq: &[f32]) -> Vec<f32> {
    let half = x.len() / 2;
    let mut out = vec![0.0; x.len()];
    for i in 0..half {
        let (sin, cos) = (position as f64 * f64::from(inv_freq[i])).sin_cos();
        let (a, b) = (f64::from(x[i]), f64::from(x[i + half]));
        out[i] = (a * cos - b * sin) as f32;
        out[i + half] = (a * sin + b * cos) as f32;
    }
    out
}

/// Softmax attention of one query, in f64.
fn attention(query: &[f32], keys: &[Vec<f32>], values: &[Vec<f32>]) -> Vec<f64> {
    let dot = |key: &Vec<f32>| {
        query
            .iter()
            .zip(key)
            .map(|(&a, &b)| f64::from(a) * f64::from(b))
            .sum::<f64>()
    };
    let weights: Vec<f64> = keys
        .iter()
        .map(|key| (dot(key) / (query.len() as f64).sqrt()).exp())
        .collect();
    let total: f64 = weights.iter().sum();
    let of = |d: usize| {
        weights
            .iter()
            .zip(values)
            .map(|(w, v)| w * f64::from(v[d]))
            .sum::<f64>()
            / total
    };
    (0..query.len()).map(of).collect()
}

/// Largest difference, over boundaries and heads, between attention over the re-indexed cache and
/// attention over the same keys rotated freshly at their new positions.
fn reindexing_error(dtype: KvType) -> f64 {
    let trained = 64;
    let mut bench = Bench::new(dtype, trained);
    let mut contract = contract(24, 2, 4, HeadBudget::Group);
    contract.positions = Positions::Compacted;
    let policy = policy::find(&bench.policies(), "random").expect("a known policy");
    let layout = HeadLayout::alone(LAYERS, KV_HEADS);
    let mut cache = SequenceCache::new(layout, contract.into(), policy, None);
    let inv_freq = bench.inv_freq.clone();
    let (mut worst, mut rewinds) = (0f64, 0);
    for _ in 0..16 {
        bench.fill(&mut cache, &|head, position, rotary| {
            rotated(&noise(1, head, position), rotary, &inv_freq)
        });
        let before = cache.next_rotary;
        bench.pass(&mut cache);
        rewinds += usize::from(cache.next_rotary < before);
        assert!(
            cache.next_rotary + STRIDE <= trained,
            "the next stride stays within the trained range"
        );
        for (index, head) in cache.heads.iter().enumerate() {
            assert!(head.rotary.windows(2).all(|p| p[0] < p[1]), "order is kept");
            assert!(
                head.rotary
                    .last()
                    .is_some_and(|&p| u64::from(p) + 1 == cache.next_rotary),
                "the end is adjacent"
            );
            let fresh: Vec<_> = (head.positions.iter().zip(&head.rotary))
                .map(|(&p, &r)| rotated(&noise(1, index, p), u64::from(r), &inv_freq))
                .collect();
            let values: Vec<_> = head.positions.iter().map(|&p| noise(2, index, p)).collect();
            // A query sharp enough that a wrong rotation shows.
            let query: Vec<f32> = noise(3, index, 0).iter().map(|v| 4.0 * v).collect();
            let query = rotated(&query, cache.next_rotary - 1, &inv_freq);
            let shape = QkvShape {
                heads: 1,
                kv_heads: 1,
                head_dim: DIM,
            };
            let slots = head.view(head.len());
            let item = AttentionItem {
                rows: 0..1,
                kv_head: 0,
                slots,
                first_visible: None,
                centroids: None,
                sinks: None,
            };
            let mut q = bench.backend.alloc(DIM).expect("small");
            let mut out = bench.backend.alloc(DIM).expect("small");
            bench.backend.upload(&query, &mut q, 0).expect("it fits");
            bench
                .backend
                .attention(shape, &bench.pages, &q, &[item], &mut out)
                .expect("valid arguments");
            let mut got = vec![0.0; DIM];
            bench.backend.download(&out, 0, &mut got).expect("it fits");
            let want = attention(&query, &fresh, &values);
            worst = got
                .iter()
                .zip(&want)
                .map(|(&g, w)| (f64::from(g) - w).abs())
                .fold(worst, f64::max);
        }
    }
    assert!(rewinds >= 3, "only {rewinds} boundaries re-indexed");
    worst
}

#[test]
fn reindexed_keys_attend_as_if_rotated_freshly() {
    let exact = reindexing_error(KvType::F32);
    assert!(exact < 2e-5, "f32 cache: {exact}");
    // Each rotation rounds the keys once to half precision.
    let half = reindexing_error(KvType::F16);
    assert!(half < 5e-3, "f16 cache: {half}");
    // Half a step of 1/127 each time.
    let eight = reindexing_error(KvType::Q8);
    assert!(eight < 5e-2, "8-bit cache: {eight}");
}
