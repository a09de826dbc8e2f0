//! Cases of the slot arena: split, attention, observation, compaction, rotation, transfer.

use super::{Arenas, Check, Named, Suite, refused};
use crate::backend::{
    AttentionItem, Backend, HeadPages, KvType, ObserveItem, PageId, PageShape, QkvShape, Reduce,
    RotateItem, SplitItem, SplitQkv,
};
use crate::latent::{CentroidState, LatentHead, LatentId, LatentKind, LatentState};
use crate::reference::ReferenceBackend;

/// Head layouts: of one head, grouped by 2, 3, 4, 7 and 8, of SmolLM2 and of wider heads.
pub(super) const SHAPES: [QkvShape; 7] = [
    QkvShape {
        heads: 1,
        kv_heads: 1,
        head_dim: 8,
    },
    QkvShape {
        heads: 9,
        kv_heads: 3,
        head_dim: 64,
    },
    QkvShape {
        heads: 4,
        kv_heads: 2,
        head_dim: 24,
    },
    QkvShape {
        heads: 4,
        kv_heads: 1,
        head_dim: 128,
    },
    QkvShape {
        heads: 8,
        kv_heads: 1,
        head_dim: 80,
    },
    QkvShape {
        heads: 7,
        kv_heads: 1,
        head_dim: 64,
    },
    QkvShape {
        heads: 3,
        kv_heads: 3,
        head_dim: 16,
    },
];

/// What a rotated key may differ by once it is stored.
fn stored<B: Backend>(suite: &Suite<'_, B>) -> f32 {
    match suite.kv {
        KvType::F32 => suite.tolerance.elementwise,
        // One unit in the last place of a half, where the f32 values lie on different sides of a
        // tie.
        KvType::F16 => 1.0 / 1024.0,
        // One step, likewise, and as much for all elements together where the scale is another.
        KvType::Q8 => 1.5 / 127.0,
    }
}

/// `write_slots` and `read_slots`.
pub(super) fn slots<B: Backend>(suite: &mut Suite<'_, B>) -> Check {
    let mut arenas = Arenas::new(suite, 16, &[100, 64])?;
    for (head, first, count) in [(0, 0, 0), (0, 0, 1), (0, 31, 2), (1, 5, 59), (0, 33, 67)] {
        let (keys, values) = (
            suite.random.values(count * 16),
            suite.random.values(count * 16),
        );
        let table = HeadPages {
            pages: &arenas.tables[head],
            len: first + count,
        };
        suite
            .backend
            .write_slots(&mut arenas.pages, table, first, &keys, &values)
            .named("write_slots")?;
        ReferenceBackend
            .write_slots(&mut arenas.reference, table, first, &keys, &values)
            .named("write_slots")?;
        for (head, len) in [(0, 100), (1, 64)] {
            arenas.compare(
                suite,
                &format!("write_slots {count} at {first}"),
                head,
                len,
                0.0,
            )?;
        }
    }
    let extremes = [1e9, -1e9, 65504.0, 1e-9, 6e-8, -0.0, 2049.0, 1.000_488_3].repeat(2);
    let table = HeadPages {
        pages: &arenas.tables[0],
        len: 1,
    };
    suite
        .backend
        .write_slots(&mut arenas.pages, table, 0, &extremes, &extremes)
        .named("write_slots")?;
    ReferenceBackend
        .write_slots(&mut arenas.reference, table, 0, &extremes, &extremes)
        .named("write_slots")?;
    arenas.compare(suite, "write_slots of extreme values", 0, 1, 0.0)
}

/// `split_qkv`: three ragged sequences, with and without norms.
pub(super) fn split<B: Backend>(suite: &mut Suite<'_, B>) -> Check {
    for shape in SHAPES {
        let QkvShape {
            heads,
            kv_heads,
            head_dim,
        } = shape;
        // (rows, slots before); the second sequence has no rows in this step.
        let sequences = [(1, 31), (0, 3), (70, 5), (3, 32)];
        let rows: usize = sequences.iter().map(|sequence| sequence.0).sum();
        let lens: Vec<usize> = sequences
            .iter()
            .flat_map(|s| vec![s.0 + s.1; kv_heads])
            .collect();
        let mut arenas = Arenas::new(suite, head_dim, &lens)?;
        let qkv = suite.random.values(rows * shape.width());
        let angles = suite.random.values(rows * head_dim / 2);
        let cos: Vec<f32> = angles.iter().map(|x| x.cos()).collect();
        let sin: Vec<f32> = angles.iter().map(|x| x.sin()).collect();
        let norms = [suite.random.values(head_dim), suite.random.values(head_dim)];
        for normed in [false, true] {
            let case = format!("split_qkv {shape:?}, norms {normed}");
            let tables = arenas.tables.clone();
            let (mut items, mut start) = (Vec::new(), 0);
            for (s, &(count, len)) in sequences.iter().enumerate() {
                items.extend((0..kv_heads).map(|kv_head| SplitItem {
                    rows: start..start + count,
                    kv_head,
                    slots: HeadPages {
                        pages: &tables[s * kv_heads + kv_head],
                        len,
                    },
                }));
                start += count;
            }
            let mut want = vec![0.0; rows * heads * head_dim];
            let qk_norm = normed.then_some((&norms[0], &norms[1], 1e-6));
            let args = SplitQkv {
                shape,
                qkv: &qkv,
                rows,
                cos: &cos,
                sin: &sin,
                qk_norm,
                items: &items,
            };
            ReferenceBackend
                .split_qkv(args, &mut arenas.reference, &mut want)
                .named(&case)?;
            let device =
                [&qkv, &cos, &sin, &norms[0], &norms[1]].map(|values| suite.upload(values));
            let [qkv, cos, sin, q_norm, k_norm] = device;
            let (qkv, cos, sin, q_norm, k_norm) = (qkv?, cos?, sin?, q_norm?, k_norm?);
            let qk_norm = normed.then_some((&q_norm, &k_norm, 1e-6));
            let args = SplitQkv {
                shape,
                qkv: &qkv,
                rows,
                cos: &cos,
                sin: &sin,
                qk_norm,
                items: &items,
            };
            let mut q = suite.backend.alloc(want.len()).named(&case)?;
            suite
                .backend
                .split_qkv(args, &mut arenas.pages, &mut q)
                .named(&case)?;
            let got = suite.download(&q, want.len())?;
            suite.compare(&case, &got, &want, suite.tolerance.elementwise)?;
            for (head, &len) in lens.iter().enumerate() {
                arenas.compare(suite, &case, head, len, stored(suite))?;
            }
        }
    }
    Ok(())
}

/// One sequence of an attention case: rows, slots, sliding window, centroids.
#[derive(Debug, Clone, Copy)]
struct Sequence {
    rows: usize,
    slots: usize,
    window: Option<usize>,
    centroids: usize,
}

const fn sequence(rows: usize, slots: usize, window: Option<usize>, centroids: usize) -> Sequence {
    Sequence {
        rows,
        slots,
        window,
        centroids,
    }
}

/// `attention` and `observe`: batches of sequences of very different sizes.
pub(super) fn attention<B: Backend>(suite: &mut Suite<'_, B>) -> Check {
    let batches: [&[Sequence]; 6] = [
        &[sequence(1, 1, None, 0)],
        &[
            sequence(1, 33, None, 1),
            sequence(1, 128, None, 0),
            sequence(1, 129, Some(40), 0),
        ],
        &[
            sequence(2, 300, Some(130), 130),
            sequence(0, 40, None, 0),
            sequence(5, 5, None, 7),
        ],
        &[sequence(33, 33, None, 0), sequence(1, 257, None, 32)],
        &[sequence(65, 200, Some(1), 0), sequence(13, 413, None, 3)],
        &[
            sequence(130, 390, None, 20),
            sequence(40, 384, Some(256), 0),
        ],
    ];
    for shape in SHAPES {
        for batch in batches {
            attention_case(suite, shape, batch)?;
        }
    }
    Ok(())
}

/// A memory for every sequence but some without centroids; some have room for more, some hold
/// nothing.
fn memories<B: Backend>(
    suite: &mut Suite<'_, B>,
    arenas: &mut Arenas<B>,
    shape: QkvShape,
    batch: &[Sequence],
) -> Check<Vec<Option<LatentId>>> {
    let mut ids = Vec::new();
    for (s, sequence) in batch.iter().enumerate() {
        let (count, kv_heads) = (sequence.centroids, shape.kv_heads);
        if count == 0 && s % 2 == 0 {
            ids.push(None);
            continue;
        }
        let id = arenas.latent(
            suite,
            LatentKind::Centroids {
                most: count + s + 1,
            },
            kv_heads,
        )?;
        for head in 0..kv_heads {
            let (keys, values) = (
                suite.random.values(count * shape.head_dim),
                suite.random.values(count * shape.head_dim),
            );
            let counts = (0..count)
                .map(|_| 1.0 + suite.random.below(30) as f32)
                .collect();
            let state = LatentState::Centroids(CentroidState::new(&keys, &values, counts));
            arenas.write_state(suite, LatentHead { id, head }, &state)?;
        }
        ids.push(Some(id));
    }
    Ok(ids)
}

fn attention_case<B: Backend>(
    suite: &mut Suite<'_, B>,
    shape: QkvShape,
    batch: &[Sequence],
) -> Check {
    let QkvShape {
        heads,
        kv_heads,
        head_dim,
    } = shape;
    let lens: Vec<usize> = batch.iter().flat_map(|s| vec![s.slots; kv_heads]).collect();
    let mut arenas = Arenas::new(suite, head_dim, &lens)?;
    for (head, &len) in lens.iter().enumerate() {
        arenas.fill(suite, head, len)?;
    }
    let memories = memories(suite, &mut arenas, shape, batch)?;
    let firsts: Vec<Option<Vec<u32>>> = batch
        .iter()
        .map(|s| {
            let first = |i: usize, window| (s.slots - s.rows + i + 1).saturating_sub(window) as u32;
            s.window
                .map(|window| (0..s.rows).map(|i| first(i, window)).collect())
        })
        .collect();
    let (mut items, mut start) = (Vec::new(), 1);
    for (s, sequence) in batch.iter().enumerate() {
        items.extend((0..kv_heads).map(|kv_head| AttentionItem {
            rows: start..start + sequence.rows,
            kv_head,
            slots: arenas.head(s * kv_heads + kv_head, sequence.slots),
            first_visible: firsts[s].as_deref(),
            centroids: memories[s].map(|id| LatentHead { id, head: kv_head }),
        }));
        start += sequence.rows;
    }
    // The first and the last row belong to no item and have to stay as they are.
    let len = (start + 1) * heads * head_dim;
    let mut q = suite.random.values(len);
    q.iter_mut().for_each(|q| *q *= 3.0);
    let mut want = vec![7.0; len];
    let case = format!("attention {shape:?} {batch:?}");
    ReferenceBackend
        .attention(shape, &arenas.reference, &q, &items, &mut want)
        .named(&case)?;
    let device_q = suite.upload(&q)?;
    let mut out = suite.upload(&vec![7.0; len])?;
    suite
        .backend
        .attention(shape, &arenas.pages, &device_q, &items, &mut out)
        .named(&case)?;
    let got = suite.download(&out, len)?;
    suite.compare(&case, &got, &want, suite.tolerance.attention)?;

    let case = format!("observe {shape:?} {batch:?}");
    let reduces = [Reduce::Sum, Reduce::Max];
    let weights: Vec<f32> = suite.random.values(len).iter().map(|w| w.abs()).collect();
    let items: Vec<ObserveItem<'_>> = items
        .into_iter()
        .enumerate()
        .map(|(i, attend)| {
            let row_weights = (i % 3 == 1).then_some(&weights[..attend.rows.len()]);
            ObserveItem {
                attend,
                reduce: reduces[(i + i / kv_heads) % 2],
                row_weights,
            }
        })
        .collect();
    let (mut want, mut got) = (vec![Vec::new(); items.len()], vec![Vec::new(); items.len()]);
    ReferenceBackend
        .observe(shape, &arenas.reference, &q, &items, &mut want)
        .named(&case)?;
    suite
        .backend
        .observe(shape, &arenas.pages, &device_q, &items, &mut got)
        .named(&case)?;
    for (got, want) in got.iter().zip(&want) {
        suite.compare(&case, got, want, suite.tolerance.attention)?;
    }
    Ok(())
}

/// `compact` and `rotate_keys`.
pub(super) fn boundary<B: Backend>(suite: &mut Suite<'_, B>) -> Check {
    let lens = [0, 1, 32, 100, 333];
    let mut arenas = Arenas::new(suite, 48, &lens)?;
    for (head, &len) in lens.iter().enumerate() {
        arenas.fill(suite, head, len)?;
    }
    let tables = arenas.tables.clone();
    let mut delta = || {
        if suite.random.below(3) == 0 {
            0.0
        } else {
            -(suite.random.below(30_000) as f32)
        }
    };
    let deltas: Vec<Vec<f32>> = lens
        .iter()
        .map(|&len| (0..len).map(|_| delta()).collect())
        .collect();
    let inv_freq: Vec<f32> = (0..24)
        .map(|i| 10_000f32.powf(-(i as f32) / 24.0))
        .collect();
    let heads = || {
        tables
            .iter()
            .zip(&lens)
            .map(|(pages, &len)| HeadPages { pages, len })
    };
    let items: Vec<RotateItem<'_>> = heads()
        .zip(&deltas)
        .map(|(slots, delta)| RotateItem { slots, delta })
        .collect();
    suite
        .backend
        .rotate_keys(&mut arenas.pages, &items, &inv_freq)
        .named("rotate_keys")?;
    ReferenceBackend
        .rotate_keys(&mut arenas.reference, &items, &inv_freq)
        .named("rotate_keys")?;
    for (head, &len) in lens.iter().enumerate() {
        arenas.compare(
            suite,
            &format!("rotate_keys of {len}"),
            head,
            len,
            stored(suite),
        )?;
    }
    // Odd slots; then all; then none.
    for keep_one_in in [2, 1, 0] {
        let keeps: Vec<Vec<u32>> = lens
            .iter()
            .map(|&len| {
                (0..len as u32)
                    .filter(|slot| keep_one_in > 0 && (slot + 1) % keep_one_in == 0)
                    .collect()
            })
            .collect();
        let heads: Vec<HeadPages<'_>> = heads().collect();
        let kept = suite
            .backend
            .keep_lists(&lens, &keeps)
            .named("keep_lists")?;
        suite
            .backend
            .compact(&mut arenas.pages, &heads, &kept)
            .named("compact")?;
        let kept = ReferenceBackend
            .keep_lists(&lens, &keeps)
            .named("keep_lists")?;
        ReferenceBackend
            .compact(&mut arenas.reference, &heads, &kept)
            .named("compact")?;
        for (head, keep) in keeps.iter().enumerate() {
            arenas.compare(
                suite,
                &format!("compact to {}", keep.len()),
                head,
                keep.len(),
                stored(suite),
            )?;
        }
    }
    Ok(())
}

/// Page tables, slots and rows that do not fit are refused.
pub(super) fn refusals<B: Backend>(suite: &mut Suite<'_, B>) -> Check {
    let backend = suite.backend;
    let shape = QkvShape {
        heads: 2,
        kv_heads: 1,
        head_dim: 16,
    };
    let mut pages = backend
        .alloc_pages(
            PageShape {
                head_dim: 16,
                dtype: suite.kv,
            },
            2,
        )
        .named("alloc_pages")?;
    let (good, bad) = ([PageId(1), PageId(0)], [PageId(1), PageId(2)]);
    let head = |pages, len| HeadPages { pages, len };
    let zeros = [0.0; 40 * 16];
    refused(
        "page out of range",
        backend.write_slots(&mut pages, head(&bad, 40), 0, &zeros, &zeros),
    )?;
    refused(
        "short page table",
        backend.write_slots(&mut pages, head(&good[..1], 40), 0, &zeros, &zeros),
    )?;
    refused(
        "keys without values",
        backend.write_slots(&mut pages, head(&good, 40), 0, &zeros, &[]),
    )?;
    let (mut keys, mut values) = ([0.0; 16], [0.0; 16]);
    refused(
        "missing slot",
        backend.read_slots(&pages, head(&good, 40), &[40], &mut keys, &mut values),
    )?;
    let kept = backend
        .keep_lists(&[40], &[vec![3, 5]])
        .named("keep_lists")?;
    refused(
        "lists of a longer head",
        backend.compact(&mut pages, &[head(&good, 39)], &kept),
    )?;
    refused(
        "lists of one head for two",
        backend.compact(&mut pages, &[head(&good, 40); 2], &kept),
    )?;
    refused(
        "compacted page out of range",
        backend.compact(&mut pages, &[head(&bad, 40)], &kept),
    )?;
    let rotate = [RotateItem {
        slots: head(&good, 40),
        delta: &zeros[..39],
    }];
    refused(
        "delta of another length",
        backend.rotate_keys(&mut pages, &rotate, &zeros[..8]),
    )?;
    let item = AttentionItem {
        rows: 0..2,
        kv_head: 0,
        slots: head(&good, 40),
        first_visible: None,
        centroids: None,
    };
    let memory = backend
        .alloc_latent(&mut pages, LatentKind::Centroids { most: 2 }, 1)
        .named("alloc_latent")?;
    let associative = backend
        .alloc_latent(&mut pages, LatentKind::Associative { features: 2 }, 1)
        .named("alloc_latent")?;
    let (q, mut out) = (suite.upload(&zeros[..64])?, suite.upload(&zeros[..64])?);
    let mut attend = |name, item| {
        refused(
            name,
            backend.attention(shape, &pages, &q, &[item], &mut out),
        )
    };
    attend(
        "more rows than slots",
        AttentionItem {
            slots: head(&good, 1),
            ..item.clone()
        },
    )?;
    attend(
        "rows past the queries",
        AttentionItem {
            rows: 1..3,
            ..item.clone()
        },
    )?;
    attend(
        "KV head out of range",
        AttentionItem {
            kv_head: 1,
            ..item.clone()
        },
    )?;
    attend(
        "attended page out of range",
        AttentionItem {
            slots: head(&bad, 40),
            ..item.clone()
        },
    )?;
    attend(
        "row that sees nothing",
        AttentionItem {
            first_visible: Some(&[0, 40]),
            ..item.clone()
        },
    )?;
    let with = |id, head| AttentionItem {
        centroids: Some(LatentHead { id, head }),
        ..item.clone()
    };
    attend("a memory that is not there", with(LatentId(9), 0))?;
    attend("a head that a memory has not", with(memory, 1))?;
    attend("centroids of an associative memory", with(associative, 0))
}
