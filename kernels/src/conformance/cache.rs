//! Cases of the slot arena: split, rotation, transfer.

use super::arenas::{Arenas, heads};
use super::report::Failure;
use super::shapes::SHAPES;
use super::suite::{Check, Named, Suite, refused};
use crate::backend::{
    Cache, HeadPages, KvType, PageId, PageShape, QkNorm, QkvShape, RotateItem, SplitItem, SplitQkv,
};
use crate::reference::ReferenceBackend;

impl<B: Cache> Suite<'_, B> {
    /// Cases of [`Cache`].
    ///
    /// # Errors
    /// The [`Failure`] that ended the part; values that differ are told by [`Suite::finish`].
    pub fn cache(&mut self) -> Result<(), Failure> {
        slots(self)?;
        for shape in SHAPES {
            let step = Step::new(self, shape);
            for normed in [false, true] {
                split(self, &step, normed)?;
            }
        }
        rotation(self)?;
        refusals(self)
    }
}

/// What a rotated key may differ by once it is stored.
fn stored<B>(suite: &Suite<'_, B>) -> f32 {
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
fn slots<B: Cache>(suite: &mut Suite<'_, B>) -> Check {
    let mut arenas = Arenas::new(suite, 16, &[100, 64])?;
    for (head, first, count) in [(0, 0, 0), (0, 0, 1), (0, 31, 2), (1, 5, 59), (0, 33, 67)] {
        let (keys, values) = (
            suite.random.values(count * 16),
            suite.random.values(count * 16),
        );
        let table = HeadPages::new(&arenas.tables[head], first + count);
        suite
            .backend
            .write_slots(&mut arenas.pages, table, first, &keys, &values)
            .named("write_slots")?;
        ReferenceBackend
            .write_slots(&mut arenas.reference, table, first, &keys, &values)
            .named("write_slots")?;
        let case = format!("write_slots {count} at {first}");
        for (head, len) in [(0, 100), (1, 64)] {
            arenas.compare(suite, &case, head, len, 0.0)?;
        }
    }
    let extremes = [1e9, -1e9, 65504.0, 1e-9, 6e-8, -0.0, 2049.0, 1.000_488_3].repeat(2);
    let table = HeadPages::new(&arenas.tables[0], 1);
    suite
        .backend
        .write_slots(&mut arenas.pages, table, 0, &extremes, &extremes)
        .named("write_slots")?;
    ReferenceBackend
        .write_slots(&mut arenas.reference, table, 0, &extremes, &extremes)
        .named("write_slots")?;
    arenas.compare(suite, "write_slots of extreme values", 0, 1, 0.0)
}

/// Rows of a sequence in a step, and its slots before.
struct Sequence {
    rows: usize,
    before: usize,
}

/// A step of three ragged sequences, and one without rows.
struct Step {
    shape: QkvShape,
    sequences: [Sequence; 4],
    /// Rows of all sequences.
    rows: usize,
    qkv: Vec<f32>,
    cos: Vec<f32>,
    sin: Vec<f32>,
    query_norm: Vec<f32>,
    key_norm: Vec<f32>,
}

impl Step {
    fn new<B>(suite: &mut Suite<'_, B>, shape: QkvShape) -> Self {
        let sequence = |rows, before| Sequence { rows, before };
        let sequences = [
            sequence(1, 31),
            sequence(0, 3),
            sequence(70, 5),
            sequence(3, 32),
        ];
        let rows = sequences.iter().map(|sequence| sequence.rows).sum();
        let qkv = suite.random.values(rows * shape.width());
        let angles = suite.random.values(rows * shape.head_dim / 2);
        Self {
            shape,
            sequences,
            rows,
            qkv,
            cos: angles.iter().map(|x| x.cos()).collect(),
            sin: angles.iter().map(|x| x.sin()).collect(),
            query_norm: suite.random.values(shape.head_dim),
            key_norm: suite.random.values(shape.head_dim),
        }
    }

    /// Slots of each head after the step.
    fn lens(&self) -> Vec<usize> {
        let len = |sequence: &Sequence| vec![sequence.rows + sequence.before; self.shape.kv_heads];
        self.sequences.iter().flat_map(len).collect()
    }

    /// Where the keys and values of each head go.
    fn items<'a>(&self, tables: &'a [Vec<PageId>]) -> Vec<SplitItem<'a>> {
        let (mut items, mut start) = (Vec::new(), 0);
        for (s, sequence) in self.sequences.iter().enumerate() {
            items.extend((0..self.shape.kv_heads).map(|kv_head| SplitItem {
                rows: start..start + sequence.rows,
                kv_head,
                slots: HeadPages::new(&tables[s * self.shape.kv_heads + kv_head], sequence.before),
            }));
            start += sequence.rows;
        }
        items
    }
}

/// `split_qkv`, with and without norms.
fn split<B: Cache>(suite: &mut Suite<'_, B>, step: &Step, normed: bool) -> Check {
    let shape = step.shape;
    let case = format!("split_qkv {shape:?}, norms {normed}");
    let lens = step.lens();
    let mut arenas = Arenas::new(suite, shape.head_dim, &lens)?;
    let tables = arenas.tables.clone();
    let items = step.items(&tables);

    let mut want = vec![0.0; step.rows * shape.heads * shape.head_dim];
    let args = SplitQkv {
        shape,
        qkv: &step.qkv,
        rows: step.rows,
        cos: &step.cos,
        sin: &step.sin,
        qk_norm: normed.then_some(QkNorm {
            query: &step.query_norm,
            key: &step.key_norm,
            eps: 1e-6,
        }),
        items: &items,
    };
    ReferenceBackend
        .split_qkv(args, &mut arenas.reference, &mut want)
        .named(&case)?;

    let query_norm = suite.upload(&step.query_norm)?;
    let key_norm = suite.upload(&step.key_norm)?;
    let args = SplitQkv {
        shape,
        qkv: &suite.upload(&step.qkv)?,
        rows: step.rows,
        cos: &suite.upload(&step.cos)?,
        sin: &suite.upload(&step.sin)?,
        qk_norm: normed.then_some(QkNorm {
            query: &query_norm,
            key: &key_norm,
            eps: 1e-6,
        }),
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
    Ok(())
}

/// `rotate_keys`: a third of the slots turn by nothing.
fn rotation<B: Cache>(suite: &mut Suite<'_, B>) -> Check {
    let lens = [0, 1, 32, 100, 333];
    let mut arenas = Arenas::new(suite, 48, &lens)?;
    for (head, &len) in lens.iter().enumerate() {
        arenas.fill(suite, head, len)?;
    }
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
    let tables = arenas.tables.clone();
    let items: Vec<RotateItem<'_>> = heads(&tables, &lens)
        .into_iter()
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
        let case = format!("rotate_keys of {len}");
        arenas.compare(suite, &case, head, len, stored(suite))?;
    }
    Ok(())
}

/// Page tables and slots that do not fit are refused.
fn refusals<B: Cache>(suite: &mut Suite<'_, B>) -> Check {
    let backend = suite.backend;
    let shape = PageShape {
        head_dim: 16,
        dtype: suite.kv,
    };
    let mut pages = backend.alloc_pages(shape, 2).named("alloc_pages")?;
    let (good, bad) = ([PageId(1), PageId(0)], [PageId(1), PageId(2)]);
    let head = |pages, len| HeadPages::new(pages, len);
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
    let rotate = [RotateItem {
        slots: head(&good, 40),
        delta: &zeros[..39],
    }];
    refused(
        "delta of another length",
        backend.rotate_keys(&mut pages, &rotate, &zeros[..8]),
    )
}
