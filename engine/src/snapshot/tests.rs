use std::sync::Arc;

use palimpsest_kernels::parts::*;
use palimpsest_kernels::reference::ReferenceBackend;
use palimpsest_kernels::{KvType, PageList};

use super::*;
use crate::device_memory::CacheBytes;
use crate::kv::{Bounded, HeadBudget, Positions};
use crate::memory::Memory;
use crate::policy::{H2o, Policy, Window};
use crate::shard::HeadLayout;

const DIM: usize = 8;

fn arena(pages: usize) -> Arena<ReferenceBackend> {
    let shape = PageShape {
        head_dim: DIM,
        dtype: KvType::F16,
    };
    let bytes = CacheBytes {
        pages: pages * shape.cost(),
        latent: 0,
    };
    Arena::new(&ReferenceBackend, DIM, KvType::F16, bytes).expect("an arena")
}

fn contract() -> Contract {
    Contract::Bounded(Bounded {
        policy: palimpsest_proto::contract::PolicyName::new("h2o").expect("a name"),
        budget: 20,
        head_budget: HeadBudget::Uniform,
        sinks: 2,
        window: 4,
        positions: Positions::Absolute,
        memory: palimpsest_proto::contract::LatentMemory::parse("centroid", 4).expect("a memory"),
    })
}

fn cache(
    arena: &mut Arena<ReferenceBackend>,
    contract: Contract,
    policy: impl Policy + 'static,
) -> SequenceCache {
    let layout = HeadLayout::alone(2, 2);
    let kind = LatentKind::Centroids { most: 2 };
    let memory = Memory::open(&ReferenceBackend, &mut arena.pages, kind, 4, DIM);
    SequenceCache::new(
        layout,
        contract,
        Arc::new(policy),
        Some(memory.expect("room")),
    )
}

/// A sequence of 40 tokens whose heads hold different slots, and something of everything.
fn filled(arena: &mut Arena<ReferenceBackend>) -> SequenceCache {
    let mut cache = cache(arena, contract(), H2o);
    cache.grow(40, &mut arena.pool).expect("room");
    let memory = cache.memory.as_ref().expect("a memory").id;
    for (index, head) in cache.heads.iter_mut().enumerate() {
        let values: Vec<f32> = (0..40 * DIM).map(|i| (i + index) as f32 / 3.0).collect();
        ReferenceBackend
            .write_slots(&mut arena.pages, head.view(40), 0, &values, &values)
            .expect("slots");
        let keep: Vec<u32> = (0..40)
            .filter(|slot| slot % 4 != index as u32 % 4 || *slot == 39)
            .collect();
        head.retain(&keep, 0);
        head.mass[0]
            .iter_mut()
            .enumerate()
            .for_each(|(i, mass)| *mass = i as f32);
        head.sums = vec![index as f64];
        cache.evicted += 40 - keep.len() as u64;
        let key = [index as f32; DIM];
        let state = LatentState::Centroids(palimpsest_kernels::latent::CentroidState::new(
            &key,
            &key,
            vec![3.0],
        ));
        let at = LatentHead {
            id: memory,
            head: index,
        };
        ReferenceBackend
            .write_latent(&mut arena.pages, at, &state)
            .expect("a state");
    }
    cache
}

fn digest(arena: &Arena<ReferenceBackend>, cache: &SequenceCache) -> u64 {
    cache
        .digest(&ReferenceBackend, &arena.pages, DIM)
        .expect("a digest")
}

#[test]
fn what_was_taken_is_given_back_bit_for_bit() {
    let mut arena = arena(64);
    let first = filled(&mut arena);
    let snapshot = Snapshot::take(&ReferenceBackend, &arena, &first).expect("a snapshot");
    assert_eq!(
        (snapshot.position(), snapshot.contract()),
        (40, &contract())
    );
    // Keys and values of 30 or 31 slots, two bytes each, are most of it.
    let slots = first.held_entries() as usize * 4 * DIM;
    assert!(
        (slots..slots + 3500).contains(&snapshot.bytes()),
        "{}",
        snapshot.bytes()
    );

    let mut second = cache(&mut arena, contract(), H2o);
    snapshot
        .restore(&ReferenceBackend, &mut arena, &mut second)
        .expect("a restored sequence");
    assert_eq!(digest(&arena, &second), digest(&arena, &first));
    assert_eq!(second.evicted, first.evicted);
    assert_eq!(second.heads[1].sums, [1.0]);
    let again = Snapshot::take(&ReferenceBackend, &arena, &second).expect("a snapshot");
    assert_eq!(again, snapshot);
}

#[test]
fn a_sequence_that_cannot_take_it_is_left_as_it_was() {
    let mut arena = arena(64);
    let first = filled(&mut arena);
    let snapshot = Snapshot::take(&ReferenceBackend, &arena, &first).expect("a snapshot");
    let refused = |arena: &mut Arena<_>, cache: &mut SequenceCache| {
        let free = arena.pool.free();
        let before = (cache.seen, cache.held_entries());
        let error = snapshot
            .restore(&ReferenceBackend, arena, cache)
            .expect_err("refused");
        assert_eq!(arena.pool.free(), free, "{error}");
        assert_eq!((cache.seen, cache.held_entries()), before, "{error}");
        error
    };

    let mut begun = cache(&mut arena, contract(), H2o);
    begun.grow(1, &mut arena.pool).expect("room");
    assert!(matches!(
        refused(&mut arena, &mut begun),
        Error::Snapshot(SnapshotError::NotEmpty { seen: 1 })
    ));
    let mut other = cache(&mut arena, Contract::Full, H2o);
    let what = |error| match error {
        Error::Snapshot(SnapshotError::Foreign { what, .. }) => what,
        other => panic!("{other}"),
    };
    assert_eq!(what(refused(&mut arena, &mut other)), "contract");
    let mut other = cache(&mut arena, contract(), Window);
    assert_eq!(what(refused(&mut arena, &mut other)), "policy");
    let mut other = cache(&mut arena, contract(), H2o);
    other.layout = HeadLayout::alone(1, 4);
    assert_eq!(what(refused(&mut arena, &mut other)), "part of a model");
    let mut other = cache(&mut arena, contract(), H2o);
    other.memory = None;
    assert_eq!(what(refused(&mut arena, &mut other)), "latent memory");

    // Four heads of at most 31 slots need four pages.
    let mut fresh = cache(&mut arena, contract(), H2o);
    let spare = arena.pool.free() - 3;
    let mut held = PageList::default();
    arena.pool.take(spare, &mut held).expect("pages");
    assert!(matches!(
        refused(&mut arena, &mut fresh),
        Error::PagesExhausted { needed: 4, free: 3 }
    ));
    arena.pool.give_back(&mut held, 0);
    snapshot
        .restore(&ReferenceBackend, &mut arena, &mut fresh)
        .expect("there is room now");
    assert_eq!(digest(&arena, &fresh), digest(&arena, &first));
}

#[test]
fn a_failure_half_way_gives_all_pages_back_and_forgets_the_memory() {
    let mut arena = arena(64);
    let first = filled(&mut arena);
    let mut snapshot = Snapshot::take(&ReferenceBackend, &arena, &first).expect("a snapshot");
    // The last head's state fits no memory of two centroids.
    snapshot.heads[3].latent = Some(LatentArrays::Centroids {
        keys: vec![0.0; 3 * DIM],
        values: vec![0.0; 3 * DIM],
        counts: vec![1.0; 3],
    });
    let mut fresh = cache(&mut arena, contract(), H2o);
    let (free, before) = (arena.pool.free(), digest(&arena, &fresh));
    let failed = snapshot.restore(&ReferenceBackend, &mut arena, &mut fresh);
    assert!(matches!(failed, Err(Error::Kernel(_))), "{failed:?}");
    assert_eq!((arena.pool.free(), digest(&arena, &fresh)), (free, before));
}
