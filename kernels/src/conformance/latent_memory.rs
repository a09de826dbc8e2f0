//! Cases of latent memories.

use std::ops::Range;

use super::arenas::{Arenas, heads};
use super::report::Failure;
use super::shapes::SHAPES;
use super::suite::{Check, Named, Suite, refused};
use crate::backend::{
    AssociativeLayer, Boundary, Features, HeadPages, LatentMemory, QkvShape, ReadoutItem,
};
use crate::latent::{
    AssociativeState, CentroidState, LatentHead, LatentId, LatentKind, LatentState,
};
use crate::reference::ReferenceBackend;

impl<B: LatentMemory> Suite<'_, B> {
    /// Cases of [`LatentMemory`].
    ///
    /// # Errors
    /// The [`Failure`] that ended the part; values that differ are told by [`Suite::finish`].
    pub fn latent_memory(&mut self) -> Result<(), Failure> {
        for dim in [8, 48, 128] {
            memories(self, dim)?;
        }
        refused_merges(self)?;
        refused_states(self)?;
        for shape in SHAPES {
            readout(self, shape)?;
        }
        Ok(())
    }
}

/// Trained features of a layer.
const FEATURES: usize = 19;
/// Layers.
const LAYERS: usize = 2;
/// Slots of the heads that are merged.
const LENS: [usize; 6] = [0, 1, 33, 100, 333, 64];

/// `memorise`: two boundaries of heads that lose nothing, one slot, some and all of them, in
/// memories of all sizes.
fn memories<B: LatentMemory>(suite: &mut Suite<'_, B>, dim: usize) -> Check {
    let centroids = [1, 7, 40, 400].map(|most| LatentKind::Centroids { most });
    let associative = [1, 8, FEATURES].map(|features| LatentKind::Associative { features });
    let mut arenas = Arenas::new(suite, dim, &LENS)?;
    let features = suite.random.values(LAYERS * FEATURES * dim);
    for kind in centroids.into_iter().chain(associative) {
        let id = arenas.latent(suite, kind, LENS.len())?;
        for round in 0..2 {
            let case = format!("memorise {kind:?}, D {dim}, boundary {round}");
            boundary(suite, &mut arenas, id, &features, round).map_err(|error| match error {
                Failure::Refused { error, .. } => Failure::Refused {
                    case: case.clone(),
                    error,
                },
                other => other,
            })?;
            for head in 0..LENS.len() {
                compare_state(suite, &case, &arenas, LatentHead { id, head })?;
            }
        }
    }
    Ok(())
}

/// Fills the heads anew, drops some slots of each, and merges these on both backends.
fn boundary<B: LatentMemory>(
    suite: &mut Suite<'_, B>,
    arenas: &mut Arenas<B>,
    id: LatentId,
    features: &Vec<f32>,
    round: usize,
) -> Check {
    for (head, &len) in LENS.iter().enumerate() {
        arenas.fill(suite, head, len)?;
    }
    let mut keep = |head: usize, len: usize| -> Vec<u32> {
        let one_in = [2, 1, 3, 900][(head + round) % 4];
        (0..len as u32)
            .filter(|_| suite.random.below(one_in) > 0)
            .collect()
    };
    let lists: Vec<Vec<u32>> = LENS
        .iter()
        .enumerate()
        .map(|(head, &len)| keep(head, len))
        .collect();
    let tables = arenas.tables.clone();
    let heads = heads(&tables, &LENS);

    let on_device = suite.upload(features)?;
    let trained = Features {
        values: &on_device,
        count: FEATURES,
    };
    let kept = suite
        .backend
        .keep_lists(&LENS, &lists)
        .named("keep_lists")?;
    suite
        .backend
        .memorise(&mut arenas.pages, id, Some(trained), &heads, &kept)
        .named("memorise")?;

    let trained = Features {
        values: features,
        count: FEATURES,
    };
    let kept = ReferenceBackend
        .keep_lists(&LENS, &lists)
        .named("keep_lists")?;
    ReferenceBackend
        .memorise(&mut arenas.reference, id, Some(trained), &heads, &kept)
        .named("memorise")
}

/// Compares the state of a head. Before its first entry a backend may show zeros.
fn compare_state<B: LatentMemory>(
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

/// Memories, features and heads that do not fit are refused.
fn refused_merges<B: LatentMemory>(suite: &mut Suite<'_, B>) -> Check {
    let backend = suite.backend;
    let mut arenas = Arenas::new(suite, 16, &[40, 40])?;
    let tables = arenas.tables.clone();
    let values = suite.upload(&[0.0; 2 * 3 * 16])?;
    let pages = &mut arenas.pages;
    let none = LatentKind::Centroids { most: 0 };
    refused("no centroid", backend.alloc_latent(pages, none, 1))?;
    let none = LatentKind::Associative { features: 0 };
    refused("no feature", backend.alloc_latent(pages, none, 1))?;
    let two = backend
        .alloc_latent(pages, LatentKind::Associative { features: 3 }, 2)
        .named("alloc_latent")?;
    let one = backend
        .alloc_latent(pages, LatentKind::Centroids { most: 2 }, 1)
        .named("alloc_latent")?;
    let kept = backend
        .keep_lists(&[40, 40], &[vec![1], vec![2]])
        .named("keep_lists")?;
    let all = heads(&tables, &[40, 40]);
    let shorter = heads(&tables, &[40, 39]);
    let some = |count| {
        Some(Features {
            values: &values,
            count,
        })
    };
    let mut call = |case, id, features, heads: &[HeadPages<'_>]| {
        refused(case, backend.memorise(pages, id, features, heads, &kept))
    };
    call("a memory that is not there", LatentId(7), some(3), &all)?;
    call("no features for an associative memory", two, None, &all)?;
    call("fewer features than the memory has", two, some(2), &all)?;
    call("features that fill no layer", two, some(5), &all)?;
    call("heads of other lengths", two, some(3), &shorter)?;
    call("a memory with fewer heads", one, None, &all)
}

/// States that do not fit, and memories that are gone, are refused.
fn refused_states<B: LatentMemory>(suite: &mut Suite<'_, B>) -> Check {
    let backend = suite.backend;
    let mut arenas = Arenas::new(suite, 16, &[40])?;
    let pages = &mut arenas.pages;
    let id = backend
        .alloc_latent(pages, LatentKind::Centroids { most: 2 }, 1)
        .named("alloc_latent")?;
    let first = LatentHead { id, head: 0 };
    let state = |keys: usize, counts: usize| {
        let zeros = vec![0.0; keys];
        LatentState::Centroids(CentroidState::new(&zeros, &zeros, vec![1.0; counts]))
    };
    let other = LatentState::empty(LatentKind::Associative { features: 2 });
    let mut write =
        |case, state: &LatentState| refused(case, backend.write_latent(pages, first, state));
    write("more centroids than there is room", &state(48, 3))?;
    write("keys of another width", &state(17, 1))?;
    write("a state of another kind", &other)?;
    backend.free_latent(pages, id);
    refused("a memory that was freed", backend.read_latent(pages, first))
}

/// A sequence whose memory is read: its rows, the features of its memory, and whether that holds
/// anything.
struct Reader {
    rows: Range<usize>,
    used: usize,
    holds: bool,
}

/// Sequences with and without rows, memories of all sizes up to the layer's. The first and the last
/// row belong to none.
fn readers() -> [Reader; 5] {
    let reader = |rows, used| Reader {
        rows,
        used,
        holds: true,
    };
    [
        reader(1..2, 1),
        reader(2..2, 8),
        reader(2..39, FEATURES),
        reader(39..44, 7),
        Reader {
            holds: false,
            ..reader(44..46, 5)
        },
    ]
}

/// Memories of all heads of all [`readers`], on both backends.
fn written<B: LatentMemory>(
    suite: &mut Suite<'_, B>,
    arenas: &mut Arenas<B>,
    shape: QkvShape,
) -> Check<Vec<ReadoutItem>> {
    let mut items = Vec::new();
    for Reader { rows, used, holds } in readers() {
        let kind = LatentKind::Associative { features: used };
        let id = arenas.latent(suite, kind, shape.kv_heads)?;
        for kv_head in 0..shape.kv_heads {
            let memory = LatentHead { id, head: kv_head };
            let norms = suite.random.values(used).iter().map(|n| n * n).collect();
            let state = LatentState::Associative(AssociativeState {
                sums: suite.random.values(used * shape.head_dim),
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
    Ok(items)
}

/// `readout`.
fn readout<B: LatentMemory>(suite: &mut Suite<'_, B>, shape: QkvShape) -> Check {
    let mut arenas = Arenas::new(suite, shape.head_dim, &[])?;
    let features = suite.random.values(LAYERS * FEATURES * shape.head_dim);
    let gates = suite.random.values(LAYERS * shape.kv_heads);
    let items = written(suite, &mut arenas, shape)?;
    // The first and the last row have to stay as they are.
    let len = 47 * shape.heads * shape.head_dim;
    let (q, mut want) = (suite.random.values(len), suite.random.values(len));
    let case = format!("readout {shape:?}");
    let (device_q, mut out) = (suite.upload(&q)?, suite.upload(&want)?);
    let weights = AssociativeLayer {
        shape,
        features: &features,
        count: FEATURES,
        gates: &gates,
        layer: LAYERS - 1,
    };
    ReferenceBackend
        .readout(weights, &arenas.reference, &q, &items, &mut want)
        .named(&case)?;
    let weights = AssociativeLayer {
        shape,
        features: &suite.upload(&features)?,
        count: FEATURES,
        gates: &suite.upload(&gates)?,
        layer: LAYERS - 1,
    };
    suite
        .backend
        .readout(weights, &arenas.pages, &device_q, &items, &mut out)
        .named(&case)?;
    let got = suite.download(&out, len)?;
    // Denominators may be small, so differences are those of a quotient.
    suite.compare(&case, &got, &want, 10.0 * suite.tolerance.attention)?;

    let mut refuse = |mistake, weights, item| {
        let readout = suite
            .backend
            .readout(weights, &arenas.pages, &device_q, &[item], &mut out);
        refused(mistake, readout)
    };
    let item = &items[0];
    let beyond = ReadoutItem {
        kv_head: shape.kv_heads,
        ..item.clone()
    };
    refuse("KV head out of range", weights, beyond)?;
    let missing = ReadoutItem {
        memory: LatentHead {
            id: LatentId(9),
            head: 0,
        },
        ..item.clone()
    };
    refuse("a memory that is not there", weights, missing)?;
    let layer = AssociativeLayer {
        layer: LAYERS,
        ..weights
    };
    refuse("a layer that is not there", layer, item.clone())
}
