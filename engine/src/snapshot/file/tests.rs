use palimpsest_kernels::{KvType, LatentKind, PageShape, StoredParts};
use palimpsest_proto::contract::PolicyName;
use proptest::prelude::*;

use super::*;
use crate::kv::{Bounded, Contract, HeadBudget, Positions};
use crate::snapshot::latent::LatentArrays;
use crate::snapshot::{Extent, HeadState, Snapshot, SnapshotError};

const DIM: usize = 8;
const POSITION: u32 = 40;

fn contract(positions: Positions) -> Contract {
    Contract::Bounded(Bounded {
        policy: PolicyName::new("h2o").expect("a name"),
        budget: 8,
        head_budget: HeadBudget::Column,
        sinks: 1,
        window: 2,
        positions,
        memory: palimpsest_proto::contract::LatentMemory::parse("centroid", 2).expect("one"),
    })
}

/// Heads of two layers, each with entries of its own, and something of everything.
fn sample(dtype: KvType, extent: Extent, compacted: bool) -> Snapshot {
    let shape = PageShape {
        head_dim: DIM,
        dtype,
    };
    let (mut heads, mut slots) = (Vec::new(), Vec::new());
    for layer in 0..extent.layers {
        for kv_head in extent.kv_heads.clone() {
            heads.push(head(layer, kv_head, &extent, compacted));
            let bytes = StoredParts::of(shape, heads[heads.len() - 1].len()).bytes();
            slots.extend((0..bytes).map(|i| (i * 7 + 31 * layer + 3 * kv_head) as u8));
        }
    }
    let positions = if compacted {
        Positions::Compacted
    } else {
        Positions::Absolute
    };
    Snapshot {
        shape,
        contract: contract(positions),
        policy: "h2o".into(),
        per_query_head: true,
        memory: Some(LatentKind::Centroids { most: 2 }),
        position: u64::from(POSITION),
        next_rotary: if compacted { 20 } else { POSITION.into() },
        heads,
        slots,
        extent,
    }
}

fn head(layer: usize, kv_head: usize, extent: &Extent, compacted: bool) -> HeadState {
    let len = 4 + (layer + kv_head) as u32;
    let line = |query: usize| {
        (0..len)
            .map(|slot| slot as f32 + query as f32 / 8.0)
            .collect()
    };
    let number = |i: usize| (layer * 100 + kv_head * 10 + i) as f32;
    HeadState {
        positions: (1..=len)
            .map(|slot| POSITION - 1 - 3 * (len - slot))
            .collect(),
        rotary: (0..if compacted { len } else { 0 }).collect(),
        terms: (0..2 * len).map(|i| i as f32).collect(),
        mass: extent.queries.clone().map(line).collect(),
        sums: extent
            .queries
            .clone()
            .flat_map(|q| [q as f64, 0.5])
            .collect(),
        notes: (0..len).map(|slot| slot << 20).collect(),
        latent: Some(LatentArrays::Centroids {
            keys: (0..DIM).map(number).collect(),
            values: (DIM..2 * DIM).map(number).collect(),
            counts: vec![number(3)],
        }),
    }
}

/// KV heads of a model of three, with two query heads each.
fn extent(kv_heads: std::ops::Range<usize>, queries: std::ops::Range<usize>) -> Extent {
    Extent {
        layers: 2,
        kv_heads,
        total_kv_heads: 3,
        group: 2,
        queries,
    }
}

fn whole(dtype: KvType) -> Snapshot {
    sample(dtype, extent(0..3, 0..2), false)
}

fn identity(dtype: KvType) -> Identity {
    Identity {
        name: vec![0xab; 32],
        model: vec![1, 2, 3],
        stride: 8,
        shape: PageShape {
            head_dim: DIM,
            dtype,
        },
        layers: 2,
        total_kv_heads: 3,
        group: 2,
    }
}

fn encoded(snapshot: &Snapshot) -> Vec<u8> {
    let identity = identity(snapshot.shape.dtype);
    snapshot.encode(&identity).expect("a file")
}

fn refusal(bytes: &[u8], expected: &Identity) -> SnapshotError {
    Snapshot::decode(bytes, expected).expect_err("refused")
}

/// Why a snapshot that was changed is refused when it is read again.
fn impossible(change: impl FnOnce(&mut Snapshot)) -> SnapshotError {
    let mut snapshot = whole(KvType::F16);
    change(&mut snapshot);
    refusal(&encoded(&snapshot), &identity(KvType::F16))
}

#[test]
fn what_was_written_is_read() {
    for dtype in [KvType::F32, KvType::F16, KvType::Q8] {
        for compacted in [false, true] {
            for extent in [extent(0..3, 0..2), extent(1..3, 0..2), extent(2..3, 1..2)] {
                let snapshot = sample(dtype, extent, compacted);
                let read = Snapshot::decode(&encoded(&snapshot), &identity(dtype));
                assert_eq!(read.expect("a snapshot"), snapshot);
            }
        }
    }
    let mut associative = whole(KvType::F16);
    associative.memory = Some(LatentKind::Associative { features: 3 });
    for (index, head) in associative.heads.iter_mut().enumerate() {
        let rows = if index % 2 == 0 { 3 } else { 0 };
        head.latent = Some(LatentArrays::Associative {
            sums: vec![0.5; rows * DIM],
            norms: vec![1.5; rows],
        });
    }
    let read = Snapshot::decode(&encoded(&associative), &identity(KvType::F16));
    assert_eq!(read.expect("a snapshot"), associative);
}

#[test]
fn a_part_of_a_file_is_no_file() {
    let bytes = encoded(&sample(KvType::Q8, extent(2..3, 1..2), false));
    let identity = identity(KvType::Q8);
    for end in 0..bytes.len() {
        refusal(&bytes[..end], &identity);
    }
    let short = refusal(&bytes[..bytes.len() - 1], &identity);
    assert!(matches!(short, SnapshotError::Length { .. }), "{short}");
    let long = refusal(&[&bytes[..], &[0]].concat(), &identity);
    assert!(matches!(long, SnapshotError::Length { .. }), "{long}");
}

#[test]
fn no_bit_may_differ() {
    let one = Extent {
        layers: 1,
        kv_heads: 0..1,
        total_kv_heads: 1,
        group: 1,
        queries: 0..1,
    };
    let identity = Identity {
        layers: 1,
        total_kv_heads: 1,
        group: 1,
        ..identity(KvType::Q8)
    };
    let mut bytes = sample(KvType::Q8, one, false)
        .encode(&identity)
        .expect("a file");
    for bit in 0..8 * bytes.len() {
        let (byte, flip) = (bit / 8, 1 << (bit % 8));
        bytes[byte] ^= flip;
        let read = Snapshot::decode(&bytes, &identity);
        assert!(read.is_err(), "bit {bit} of {}", 8 * bytes.len());
        bytes[byte] ^= flip;
    }
    // What lies behind the header is most of a real file.
    let end = bytes.len() - 1;
    bytes[end] ^= 1;
    let damaged = refusal(&bytes, &identity);
    assert!(
        matches!(damaged, SnapshotError::Checksum { .. }),
        "{damaged}"
    );
}

#[test]
fn a_file_of_something_else_is_refused_by_name() {
    let bytes = encoded(&whole(KvType::F16));
    let own = identity(KvType::F16);
    let what = |change: &dyn Fn(&mut Identity)| {
        let mut expected = own.clone();
        change(&mut expected);
        match refusal(&bytes, &expected) {
            SnapshotError::Foreign { what, .. } => what,
            other => panic!("{other}"),
        }
    };
    assert_eq!(what(&|id| id.name[5] = 0), "name");
    assert_eq!(what(&|id| id.model.push(0)), "model or set of scorers");
    assert_eq!(what(&|id| id.stride = 16), "stride");
    assert_eq!(what(&|id| id.shape.dtype = KvType::Q8), "element type");
    assert_eq!(what(&|id| id.shape.head_dim = 16), "head size");
    assert_eq!(what(&|id| id.layers = 3), "number of layers");
    assert_eq!(what(&|id| id.total_kv_heads = 6), "number of KV heads");
    assert_eq!(what(&|id| id.group = 1), "number of query heads");
    let elsewhere = Identity {
        layers: 5,
        ..own.clone()
    };
    assert!(whole(KvType::F16).encode(&elsewhere).is_err());
}

#[test]
fn other_files_are_told_apart() {
    let own = identity(KvType::F16);
    for (version, want) in [("2", true), ("99999", true), ("0", false), ("x", false)] {
        let metadata = [("format", FORMAT), ("version", version)];
        let metadata = metadata.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let none: [(String, &tensors::Tensor<'_>); 0] = [];
        let bytes = safetensors::serialize(none, Some(metadata.into_iter().collect()));
        let refused = refusal(&bytes.expect("a file"), &own);
        let is_future = matches!(refused, SnapshotError::Future { known: VERSION, .. });
        assert_eq!(is_future, want, "version {version}: {refused}");
    }
    let none: [(String, &tensors::Tensor<'_>); 0] = [];
    let bytes = safetensors::serialize(none, None).expect("a file");
    let refused = refusal(&bytes, &own);
    assert!(refused.to_string().contains("format"), "{refused}");
    let refused = refusal(b"no header at all, and much longer than one", &own);
    assert!(matches!(
        refused,
        SnapshotError::NotOne(_) | SnapshotError::Length { .. }
    ));
}

#[test]
fn states_that_cannot_be_are_refused_though_the_checksum_holds() {
    let texts = [
        impossible(|s| s.heads[1].positions[1] = s.heads[1].positions[0]),
        impossible(|s| s.heads[1].positions.iter_mut().for_each(|p| *p -= 1)),
        impossible(|s| s.position = 1 << 33),
        impossible(|s| s.next_rotary = 3),
        impossible(|s| s.extent.kv_heads = 1..4),
        impossible(|s| s.extent.queries = 0..1),
        impossible(|s| s.per_query_head = false),
        impossible(|s| s.heads[2].rotary = s.heads[2].positions.clone()),
        impossible(|s| s.heads[0].latent = None),
        impossible(|s| s.memory = None),
    ];
    for text in texts {
        let impossible = matches!(text, SnapshotError::Impossible(_));
        assert!(impossible, "{text}");
    }
    let many = impossible(|s| {
        s.heads[0].latent = Some(LatentArrays::Centroids {
            keys: vec![0.0; 3 * DIM],
            values: vec![0.0; 3 * DIM],
            counts: vec![1.0; 3],
        });
    });
    assert!(
        matches!(
            many,
            SnapshotError::TooLarge {
                found: 3,
                most: 2,
                ..
            }
        ),
        "{many}"
    );
}

#[test]
fn more_entries_than_the_contract_allows_are_refused() {
    let mut snapshot = whole(KvType::F16);
    snapshot.position = 4000;
    snapshot.next_rotary = 4000;
    for head in &mut snapshot.heads {
        head.positions = (3900..4000).collect();
        head.mass = vec![vec![0.0; 100]; 2];
        head.notes.clear();
        head.terms.clear();
    }
    snapshot.slots = vec![0; 6 * StoredParts::of(snapshot.shape, 100).bytes()];
    let refused = refusal(&encoded(&snapshot), &identity(KvType::F16));
    let SnapshotError::TooLarge { found, most, .. } = refused else {
        panic!("{refused}")
    };
    assert_eq!(found, 600);
    assert!(most < 600, "{most}");
    snapshot.contract = Contract::Full;
    let refused = refusal(&encoded(&snapshot), &identity(KvType::F16));
    assert!(matches!(refused, SnapshotError::Impossible(_)), "{refused}");
}

#[test]
fn parts_of_one_rank_count_become_those_of_another() {
    let whole = whole(KvType::Q8);
    let cut = |kv_heads, queries| {
        Snapshot::join(vec![whole.clone()], &extent(kv_heads, queries)).expect("covered")
    };
    // One rank, three, two, and six that share heads.
    let three = vec![cut(0..1, 0..2), cut(1..2, 0..2), cut(2..3, 0..2)];
    assert_eq!(three[1], sample(KvType::Q8, extent(1..2, 0..2), false));
    let six: Vec<_> = (0..6)
        .map(|rank| cut(rank / 2..rank / 2 + 1, rank % 2..rank % 2 + 1))
        .collect();
    assert_eq!(six[3], sample(KvType::Q8, extent(1..2, 1..2), false));
    for parts in [&three, &six] {
        for extent in [extent(0..3, 0..2), extent(0..2, 0..2), extent(2..3, 1..2)] {
            let joined = Snapshot::join(parts.clone(), &extent).expect("covered");
            assert_eq!(joined, sample(KvType::Q8, extent, false));
        }
    }

    let missing = Snapshot::join(three[..2].to_vec(), &whole.extent).expect_err("a head");
    let want = SnapshotError::Missing {
        kv_head: 2,
        query_head: 0,
    };
    assert_eq!(missing, want);
    let missing = Snapshot::join(six[..5].to_vec(), &whole.extent).expect_err("a query head");
    assert!(matches!(
        missing,
        SnapshotError::Missing {
            kv_head: 2,
            query_head: 1
        }
    ));
    assert!(Snapshot::join(Vec::new(), &whole.extent).is_err());
    let mut other = three.clone();
    other[2].position += 8;
    let foreign = Snapshot::join(other, &whole.extent).expect_err("another state");
    assert!(matches!(foreign, SnapshotError::Foreign { .. }));
}

#[test]
fn a_file_is_described_without_a_model() {
    let snapshot = whole(KvType::Q8);
    let Description {
        header,
        entries,
        parts,
    } = describe(&encoded(&snapshot)).expect("a description");
    assert_eq!(header.identity(), identity(KvType::Q8));
    assert_eq!(entries, [4, 5, 6, 5, 6, 7]);
    assert_eq!(parts["keys"], 33 * DIM);
    assert_eq!(parts["value_scales"], 33 * 2);
    assert_eq!(parts["memory_keys"], 6 * 4 * DIM);
}

/// Files that were written once, which the fuzzer begins with: whoever changes what they mean
/// changes the version.
#[test]
fn files_of_this_version_stay_readable() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus/snapshot");
    let wanted = [
        ("f16", sample(KvType::F16, extent(1..2, 0..2), true)),
        ("q8", sample(KvType::Q8, extent(2..3, 1..2), false)),
    ];
    for (name, want) in wanted {
        let path = std::path::Path::new(folder).join(name);
        let bytes = std::fs::read(path).expect("a file of the corpus");
        let read = Snapshot::decode(&bytes, &identity(want.shape.dtype));
        assert_eq!(read.expect("a snapshot"), want, "{name}");
    }
}

proptest! {
    /// Behind a checksum that holds, any change is refused or gives a state that can be written.
    #[test]
    fn changes_with_a_new_checksum_never_break_the_reader(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut bytes = encoded(&sample(KvType::Q8, extent(2..3, 1..2), false));
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Some(sealed) = seal(&bytes) {
            let expected = describe(&sealed).map(|described| described.header.identity());
            if let Ok(snapshot) = expected.and_then(|id| Snapshot::decode(&sealed, &id)) {
                let within = |head: &HeadState| head.len() as u64 <= snapshot.position;
                prop_assert!(snapshot.heads.iter().all(within));
                prop_assert_eq!(snapshot.heads.len(), snapshot.extent.heads());
            }
        }
    }
}
