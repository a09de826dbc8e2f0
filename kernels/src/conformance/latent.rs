//! Cases of latent memories and pairwise indexers.

use super::cache::SHAPES;
use super::{Arenas, Check, Failure, Named, Suite, refused};
use crate::backend::{AssociativeLayer, Backend, HeadPages, IndexItem, IndexShape, ReadoutItem};
use crate::latent::{
    AssociativeState, CentroidState, LatentHead, LatentId, LatentKind, LatentState,
};
use crate::reference::ReferenceBackend;

/// Trained features of a layer.
const FEATURES: usize = 19;
/// Layers.
const LAYERS: usize = 2;

/// `memorise`: two boundaries of heads that lose nothing, one slot, some and all of them, in
/// memories of all sizes.
pub(super) fn memorise<B: Backend>(suite: &mut Suite<'_, B>) -> Check {
    let lens = [0, 1, 33, 100, 333, 64];
    let centroids = [1, 7, 40, 400].map(|most| LatentKind::Centroids { most });
    let associative = [1, 8, FEATURES].map(|features| LatentKind::Associative { features });
    for dim in [8, 48, 128] {
        let mut arenas = Arenas::new(suite, dim, &lens)?;
        let features = suite.random.values(LAYERS * FEATURES * dim);
        for kind in centroids.into_iter().chain(associative) {
            let id = arenas.latent(suite, kind, lens.len())?;
            let on_device = suite.upload(&features)?;
            for round in 0..2 {
                for (head, &len) in lens.iter().enumerate() {
                    arenas.fill(suite, head, len)?;
                }
                let keep = |suite: &mut Suite<'_, B>, (head, &len): (usize, &usize)| -> Vec<u32> {
                    (0..len as u32)
                        .filter(|_| suite.random.below([2, 1, 3, 900][(head + round) % 4]) > 0)
                        .collect()
                };
                let lists: Vec<Vec<u32>> = lens
                    .iter()
                    .enumerate()
                    .map(|head| keep(suite, head))
                    .collect();
                let tables = arenas.tables.clone();
                let heads: Vec<HeadPages<'_>> = tables
                    .iter()
                    .zip(&lens)
                    .map(|(pages, &len)| HeadPages { pages, len })
                    .collect();
                let case = format!("memorise {kind:?}, D {dim}, boundary {round}");
                let kept = suite.backend.keep_lists(&lens, &lists).named(&case)?;
                let with = Some((&on_device, FEATURES));
                suite
                    .backend
                    .memorise(&mut arenas.pages, id, with, &heads, &kept)
                    .named(&case)?;
                let kept = ReferenceBackend.keep_lists(&lens, &lists).named(&case)?;
                let with = Some((&features, FEATURES));
                ReferenceBackend
                    .memorise(&mut arenas.reference, id, with, &heads, &kept)
                    .named(&case)?;
                (0..lens.len()).try_for_each(|head| {
                    compare_state(suite, &case, &arenas, LatentHead { id, head })
                })?;
            }
        }
    }
    memorise_refusals(suite)
}

/// Compares the state of a head. Before its first entry a backend may show zeros.
fn compare_state<B: Backend>(
    suite: &mut Suite<'_, B>,
    case: &str,
    arenas: &Arenas<B>,
    head: LatentHead,
) -> Check {
    let got = suite
        .backend
        .read_latent(&arenas.pages, head)
        .named("read_latent")?;
    let want = ReferenceBackend
        .read_latent(&arenas.reference, head)
        .named("read_latent")?;
    // A sum of hundreds, in another order.
    let allowed = 10.0 * suite.tolerance.elementwise;
    match (&got, &want) {
        (LatentState::Centroids(got), LatentState::Centroids(want)) => {
            suite.compare(&format!("{case}, counts"), got.counts(), want.counts(), 0.0)?;
            suite.compare(&format!("{case}, keys"), &got.keys(), &want.keys(), allowed)?;
            suite.compare(
                &format!("{case}, values"),
                &got.values(),
                &want.values(),
                allowed,
            )
        }
        (LatentState::Associative(got), LatentState::Associative(want)) => {
            let zeros = |values: &[f32], len: usize| {
                if values.is_empty() {
                    vec![0.0; len]
                } else {
                    values.to_vec()
                }
            };
            let (sums, norms) = (
                zeros(&want.sums, got.sums.len()),
                zeros(&want.norms, got.norms.len()),
            );
            suite.compare(&format!("{case}, A"), &got.sums, &sums, allowed)?;
            suite.compare(&format!("{case}, b"), &got.norms, &norms, allowed)
        }
        _ => Err(Failure::Accepted {
            case: format!("{case}: a state of another kind"),
        }),
    }
}

fn memorise_refusals<B: Backend>(suite: &mut Suite<'_, B>) -> Check {
    let backend = suite.backend;
    let mut arenas = Arenas::new(suite, 16, &[40, 40])?;
    let tables = arenas.tables.clone();
    let head = |index: usize, len| HeadPages {
        pages: &tables[index],
        len,
    };
    let features = suite.upload(&[0.0; 2 * 3 * 16])?;
    let pages = &mut arenas.pages;
    refused(
        "no centroid",
        backend.alloc_latent(pages, LatentKind::Centroids { most: 0 }, 1),
    )?;
    refused(
        "no feature",
        backend.alloc_latent(pages, LatentKind::Associative { features: 0 }, 1),
    )?;
    let two = backend
        .alloc_latent(pages, LatentKind::Associative { features: 3 }, 2)
        .named("alloc_latent")?;
    let kept = backend
        .keep_lists(&[40, 40], &[vec![1], vec![2]])
        .named("keep_lists")?;
    let heads = [head(0, 40), head(1, 40)];
    let mut call = |case, id, features, heads: &[HeadPages<'_>]| {
        refused(case, backend.memorise(pages, id, features, heads, &kept))
    };
    call(
        "a memory that is not there",
        LatentId(7),
        Some((&features, 3)),
        &heads,
    )?;
    call("no features for an associative memory", two, None, &heads)?;
    call(
        "fewer features than the memory has",
        two,
        Some((&features, 2)),
        &heads,
    )?;
    call(
        "features that fill no layer",
        two,
        Some((&features, 5)),
        &heads,
    )?;
    call(
        "heads of other lengths",
        two,
        Some((&features, 3)),
        &[head(0, 40), head(1, 39)],
    )?;
    let one = backend
        .alloc_latent(pages, LatentKind::Centroids { most: 2 }, 1)
        .named("alloc_latent")?;
    refused(
        "a memory with fewer heads",
        backend.memorise(pages, one, None, &heads, &kept),
    )?;
    let state = |keys: usize, counts: usize| {
        LatentState::Centroids(CentroidState::new(
            &vec![0.0; keys],
            &vec![0.0; keys],
            vec![1.0; counts],
        ))
    };
    let first = LatentHead { id: one, head: 0 };
    refused(
        "more centroids than there is room",
        backend.write_latent(pages, first, &state(48, 3)),
    )?;
    refused(
        "keys of another width",
        backend.write_latent(pages, first, &state(17, 1)),
    )?;
    let other = LatentState::empty(LatentKind::Associative { features: 2 });
    refused(
        "a state of another kind",
        backend.write_latent(pages, first, &other),
    )?;
    backend.free_latent(pages, one);
    refused("a memory that was freed", backend.read_latent(pages, first))
}

/// `readout`: sequences with and without rows, memories of all sizes up to the layer's.
pub(super) fn readout<B: Backend>(suite: &mut Suite<'_, B>) -> Check {
    for shape in SHAPES {
        let (dim, layer) = (shape.head_dim, LAYERS - 1);
        let mut arenas = Arenas::new(suite, dim, &[])?;
        let (features, gates) = (
            suite.random.values(LAYERS * FEATURES * dim),
            suite.random.values(LAYERS * shape.kv_heads),
        );
        let mut items = Vec::new();
        for (rows, used, holds) in [
            (1..2, 1, true),
            (2..2, 8, true),
            (2..39, FEATURES, true),
            (39..44, 7, true),
            (44..46, 5, false),
        ] {
            let id = arenas.latent(
                suite,
                LatentKind::Associative { features: used },
                shape.kv_heads,
            )?;
            for kv_head in 0..shape.kv_heads {
                let memory = LatentHead { id, head: kv_head };
                let norms = suite.random.values(used).iter().map(|n| n * n).collect();
                let state = LatentState::Associative(AssociativeState {
                    sums: suite.random.values(used * dim),
                    norms,
                });
                if holds {
                    arenas.write_state(suite, memory, &state)?;
                }
                items.push(ReadoutItem {
                    rows: rows.clone(),
                    kv_head,
                    memory,
                });
            }
        }
        // The first and the last row belong to no item and have to stay as they are.
        let len = 47 * shape.heads * dim;
        let (q, mut want) = (suite.random.values(len), suite.random.values(len));
        let case = format!("readout {shape:?}");
        let (device_q, mut out) = (suite.upload(&q)?, suite.upload(&want)?);
        let weights = AssociativeLayer {
            shape,
            features: &features,
            count: FEATURES,
            gates: &gates,
            layer,
        };
        ReferenceBackend
            .readout(weights, &arenas.reference, &q, &items, &mut want)
            .named(&case)?;
        let (device_features, device_gates) = (suite.upload(&features)?, suite.upload(&gates)?);
        let weights = AssociativeLayer {
            shape,
            features: &device_features,
            count: FEATURES,
            gates: &device_gates,
            layer,
        };
        suite
            .backend
            .readout(weights, &arenas.pages, &device_q, &items, &mut out)
            .named(&case)?;
        let got = suite.download(&out, len)?;
        // Denominators may be small, so differences are those of a quotient.
        suite.compare(&case, &got, &want, 10.0 * suite.tolerance.attention)?;
        let mut call = |case, weights, item| {
            refused(
                case,
                suite
                    .backend
                    .readout(weights, &arenas.pages, &device_q, &[item], &mut out),
            )
        };
        call(
            "KV head out of range",
            weights,
            ReadoutItem {
                kv_head: shape.kv_heads,
                ..items[0].clone()
            },
        )?;
        let memory = LatentHead {
            id: LatentId(9),
            head: 0,
        };
        call(
            "a memory that is not there",
            weights,
            ReadoutItem {
                memory,
                ..items[0].clone()
            },
        )?;
        call(
            "a layer that is not there",
            AssociativeLayer {
                layer: LAYERS,
                ..weights
            },
            items[0].clone(),
        )?;
    }
    Ok(())
}

/// `index`: new queries over slots that some have seen before, across tiles and tasks.
pub(super) fn index<B: Backend>(suite: &mut Suite<'_, B>) -> Check {
    for (heads, dim) in [(1, 1), (4, 8), (3, 5), (2, 16)] {
        let shape = IndexShape { heads, dim };
        let mut inputs = Vec::new();
        for (rows, slots) in [
            (0, 0),
            (1, 1),
            (1, 9),
            (5, 5),
            (3, 260),
            (17, 300),
            (256, 300),
            (300, 300),
        ] {
            let mut scores = suite.random.values(slots);
            scores[slots - rows..].fill(f32::NEG_INFINITY);
            let random = &mut suite.random;
            let inputs_of = [
                random.values(rows * heads * dim),
                random.values(rows * heads),
                random.values(slots * dim),
            ];
            inputs.push((rows, inputs_of, scores));
        }
        let items =
            |scores: &mut [Vec<f32>], backend: &dyn Fn(&mut [IndexItem<'_>]) -> Check| {
                let items = inputs.iter().zip(scores).map(
                    |((rows, [queries, weights, keys], _), scores)| IndexItem {
                        rows: *rows,
                        queries,
                        weights,
                        keys,
                        scores,
                    },
                );
                backend(&mut items.collect::<Vec<_>>())
            };
        let mut want: Vec<Vec<f32>> = inputs.iter().map(|(_, _, scores)| scores.clone()).collect();
        let mut got = want.clone();
        let case = format!("index {shape:?}");
        items(&mut want, &|items| {
            ReferenceBackend.index(shape, items).named(&case)
        })?;
        items(&mut got, &|items| {
            suite.backend.index(shape, items).named(&case)
        })?;
        for (got, want) in got.iter().zip(&want) {
            suite.compare(&case, got, want, suite.tolerance.elementwise)?;
        }
    }
    let (shape, zeros) = (IndexShape { heads: 1, dim: 2 }, [0.0; 4]);
    let mut one = [0.0];
    let item = IndexItem {
        rows: 2,
        queries: &zeros,
        weights: &zeros[..2],
        keys: &zeros[..2],
        scores: &mut one,
    };
    refused(
        "more rows than slots",
        suite.backend.index(shape, &mut [item]),
    )?;
    let item = IndexItem {
        rows: 1,
        queries: &zeros[..2],
        weights: &zeros[..1],
        keys: &zeros,
        scores: &mut one,
    };
    refused(
        "keys of another size",
        suite.backend.index(shape, &mut [item]),
    )
}
