//! Cases of attention: batches of sequences of very different sizes.

use super::arenas::Arenas;
use super::report::Failure;
use super::shapes::SHAPES;
use super::suite::{Check, Named, Suite, refused};
use crate::backend::{
    Attention, AttentionItem, HeadPages, LatentMemory, ObserveItem, PageId, PageShape, QkvShape,
    Reduce,
};
use crate::latent::{CentroidState, LatentHead, LatentId, LatentKind, LatentState};
use crate::reference::ReferenceBackend;

impl<B: Attention> Suite<'_, B> {
    /// Cases of [`Attention`], all without centroids.
    ///
    /// # Errors
    /// The [`Failure`] that ended the part; values that differ are told by [`Suite::finish`].
    pub fn attention(&mut self) -> Result<(), Failure> {
        for shape in SHAPES {
            for batch in batches() {
                let arenas = filled(self, shape, &batch)?;
                let mut case = Case {
                    shape,
                    memories: vec![None; batch.len()],
                    batch,
                    sinks: None,
                };
                check(self, &case, &arenas)?;
                if self.backend.offers_sinks() {
                    // From far below all other logits to far above them.
                    let sinks = self.random.values(shape.heads).into_iter();
                    case.sinks = Some(sinks.map(|sink| 150.0 * sink * sink * sink).collect());
                    check(self, &case, &arenas)?;
                }
            }
        }
        refusals(self)
    }
}

impl<B: Attention + LatentMemory> Suite<'_, B> {
    /// The cases of [`Self::attention`], where some sequences have centroids besides: for a device
    /// that has [`LatentMemory`] too.
    ///
    /// # Errors
    /// The [`Failure`] that ended the part; values that differ are told by [`Suite::finish`].
    pub fn attention_with_centroids(&mut self) -> Result<(), Failure> {
        for shape in SHAPES {
            for batch in batches() {
                check_with_centroids(self, shape, batch)?;
            }
        }
        check_with_centroids(self, SHAPES[1], several_runs())?;
        refusals(self)?;
        refused_memories(self)
    }

    /// Cases of [`Attention`] with the sizes of served requests.
    ///
    /// # Errors
    /// As [`Self::attention`].
    pub fn large_attention(&mut self) -> Result<(), Failure> {
        for batch in large_batches() {
            check_with_centroids(self, LARGE, batch)?;
        }
        Ok(())
    }
}

/// A batch of which some sequences have centroids.
fn check_with_centroids<B: Attention + LatentMemory>(
    suite: &mut Suite<'_, B>,
    shape: QkvShape,
    batch: Vec<Sequence>,
) -> Check {
    let mut arenas = filled(suite, shape, &batch)?;
    let memories = memories(suite, &mut arenas, shape, &batch)?;
    let case = Case {
        shape,
        batch,
        memories,
        sinks: None,
    };
    check(suite, &case, &arenas)
}

/// Two of the groups of heads of Llama 3.1 8B.
const LARGE: QkvShape = QkvShape {
    heads: 8,
    kv_heads: 2,
    head_dim: 128,
};

/// One sequence of a case.
#[derive(Debug, Clone, Copy)]
struct Sequence {
    rows: usize,
    slots: usize,
    /// Of sliding-window models.
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

/// A batch of decoding whose slots lie in several runs, which devices merge.
fn several_runs() -> Vec<Sequence> {
    vec![
        sequence(1, 512, None, 0),
        sequence(1, 513, None, 9),
        sequence(1, 1100, Some(600), 0),
        sequence(2, 40, None, 0),
    ]
}

/// Batches of what is served: the default budget and four times it at and around the ends of pages
/// and runs, beside a prompt that is read; and 210 short sequences.
fn large_batches() -> Vec<Vec<Sequence>> {
    vec![
        vec![
            sequence(1, 1024, None, 256),
            sequence(1, 1025, None, 0),
            sequence(1, 4096, None, 512),
        ],
        vec![
            sequence(1, 4608, None, 0),
            sequence(1, 4607, Some(4096), 100),
        ],
        vec![sequence(20, 4608, None, 256), sequence(1, 2049, None, 0)],
        (0..210)
            .map(|i| sequence(1, 1 + 3 * i, None, i % 5))
            .collect(),
    ]
}

/// Batches: of one row; of decoding; with sliding windows; of prefill; of all together.
fn batches() -> [Vec<Sequence>; 6] {
    [
        vec![sequence(1, 1, None, 0)],
        vec![
            sequence(1, 33, None, 1),
            sequence(1, 128, None, 0),
            sequence(1, 129, Some(40), 0),
        ],
        vec![
            sequence(2, 300, Some(130), 130),
            sequence(0, 40, None, 0),
            sequence(5, 5, None, 7),
        ],
        vec![sequence(33, 33, None, 0), sequence(1, 257, None, 32)],
        vec![sequence(65, 200, Some(1), 0), sequence(13, 413, None, 3)],
        vec![
            sequence(130, 390, None, 20),
            sequence(40, 384, Some(256), 0),
        ],
    ]
}

/// Arenas with the slots of all sequences.
fn filled<B: Attention>(
    suite: &mut Suite<'_, B>,
    shape: QkvShape,
    batch: &[Sequence],
) -> Check<Arenas<B>> {
    let lens: Vec<usize> = batch
        .iter()
        .flat_map(|sequence| vec![sequence.slots; shape.kv_heads])
        .collect();
    let mut arenas = Arenas::new(suite, shape.head_dim, &lens)?;
    for (head, &len) in lens.iter().enumerate() {
        arenas.fill(suite, head, len)?;
    }
    Ok(arenas)
}

/// A memory for every sequence but some without centroids; some have room for more, some hold
/// nothing.
fn memories<B: LatentMemory>(
    suite: &mut Suite<'_, B>,
    arenas: &mut Arenas<B>,
    shape: QkvShape,
    batch: &[Sequence],
) -> Check<Vec<Option<LatentId>>> {
    let mut ids = Vec::new();
    for (s, sequence) in batch.iter().enumerate() {
        let count = sequence.centroids;
        if count == 0 && s % 2 == 0 {
            ids.push(None);
            continue;
        }
        let most = count + s + 1;
        let id = arenas.latent(suite, LatentKind::Centroids { most }, shape.kv_heads)?;
        for head in 0..shape.kv_heads {
            let keys = suite.random.values(count * shape.head_dim);
            let values = suite.random.values(count * shape.head_dim);
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

/// A batch of sequences, with the memory of each.
struct Case {
    shape: QkvShape,
    batch: Vec<Sequence>,
    memories: Vec<Option<LatentId>>,
    /// One for each query head.
    sinks: Option<Vec<f32>>,
}

impl Case {
    /// First visible slots of each row, for each sequence with a window.
    fn first_visible(&self) -> Vec<Option<Vec<u32>>> {
        let firsts = |sequence: &Sequence| {
            let before = sequence.slots - sequence.rows;
            let window = sequence.window?;
            let first = |row: usize| (before + row + 1).saturating_sub(window) as u32;
            Some((0..sequence.rows).map(first).collect())
        };
        self.batch.iter().map(firsts).collect()
    }

    /// The items of the call; the first row belongs to none.
    fn items<'a, B: Attention>(
        &'a self,
        arenas: &'a Arenas<B>,
        firsts: &'a [Option<Vec<u32>>],
    ) -> Vec<AttentionItem<'a>> {
        let (mut items, mut start) = (Vec::new(), 1);
        let group = self.shape.heads / self.shape.kv_heads;
        let sinks = |kv_head: usize| {
            let all = self.sinks.as_ref()?;
            Some(&all[kv_head * group..(kv_head + 1) * group])
        };
        for (s, sequence) in self.batch.iter().enumerate() {
            items.extend((0..self.shape.kv_heads).map(|kv_head| AttentionItem {
                rows: start..start + sequence.rows,
                kv_head,
                slots: arenas.head(s * self.shape.kv_heads + kv_head, sequence.slots),
                first_visible: firsts[s].as_deref(),
                centroids: self.memories[s].map(|id| LatentHead { id, head: kv_head }),
                sinks: sinks(kv_head),
            }));
            start += sequence.rows;
        }
        items
    }

    /// Rows of the call: the first and the last belong to no item and have to stay as they are.
    fn rows(&self) -> usize {
        self.batch
            .iter()
            .map(|sequence| sequence.rows)
            .sum::<usize>()
            + 2
    }
}

/// `attention` and `observe`.
fn check<B: Attention>(suite: &mut Suite<'_, B>, case: &Case, arenas: &Arenas<B>) -> Check {
    let (shape, firsts) = (case.shape, case.first_visible());
    let items = case.items(arenas, &firsts);
    let len = case.rows() * shape.heads * shape.head_dim;
    let mut q = suite.random.values(len);
    q.iter_mut().for_each(|q| *q *= 3.0);

    let mut want = vec![7.0; len];
    let with = if case.sinks.is_some() {
        " with sinks"
    } else {
        ""
    };
    let name = format!("attention{with} {shape:?} {:?}", case.batch);
    ReferenceBackend
        .attention(shape, &arenas.reference, &q, &items, &mut want)
        .named(&name)?;
    let device_q = suite.upload(&q)?;
    let mut out = suite.upload(&vec![7.0; len])?;
    suite
        .backend
        .attention(shape, &arenas.pages, &device_q, &items, &mut out)
        .named(&name)?;
    let got = suite.download(&out, len)?;
    suite.compare(&name, &got, &want, suite.tolerance.attention)?;

    let weights: Vec<f32> = suite.random.values(len).iter().map(|w| w.abs()).collect();
    let items = observed(items, shape.kv_heads, &weights);
    let name = format!("observe{with} {shape:?} {:?}", case.batch);
    let (mut want, mut got) = (vec![Vec::new(); items.len()], vec![Vec::new(); items.len()]);
    ReferenceBackend
        .observe(shape, &arenas.reference, &q, &items, &mut want)
        .named(&name)?;
    suite
        .backend
        .observe(shape, &arenas.pages, &device_q, &items, &mut got)
        .named(&name)?;
    for (got, want) in got.iter().zip(&want) {
        suite.compare(&name, got, want, suite.tolerance.attention)?;
    }
    Ok(())
}

/// The items, observed by sum and by maximum in turn, every third one with weights of its rows.
fn observed<'a>(
    items: Vec<AttentionItem<'a>>,
    kv_heads: usize,
    weights: &'a [f32],
) -> Vec<ObserveItem<'a>> {
    let reduces = [Reduce::Sum, Reduce::Max];
    let item = |(i, attend): (usize, AttentionItem<'a>)| ObserveItem {
        row_weights: (i % 3 == 1).then_some(&weights[..attend.rows.len()]),
        attend,
        reduce: reduces[(i + i / kv_heads) % 2],
    };
    items.into_iter().enumerate().map(item).collect()
}

const REFUSED: QkvShape = QkvShape {
    heads: 2,
    kv_heads: 1,
    head_dim: 16,
};
const PAGES: [PageId; 2] = [PageId(1), PageId(0)];

/// An item of [`REFUSED`] with 40 slots, which is right.
fn item() -> AttentionItem<'static> {
    AttentionItem {
        rows: 0..2,
        kv_head: 0,
        slots: HeadPages::new(&PAGES, 40),
        first_visible: None,
        centroids: None,
        sinks: None,
    }
}

/// An arena for [`item`].
fn two_pages<B: Attention>(suite: &Suite<'_, B>) -> Check<B::Pages> {
    let shape = PageShape {
        head_dim: REFUSED.head_dim,
        dtype: suite.kv,
    };
    suite.backend.alloc_pages(shape, 2).named("alloc_pages")
}

/// `attention` has to refuse an item.
fn refuse<B: Attention>(
    suite: &Suite<'_, B>,
    pages: &B::Pages,
    name: &str,
    item: AttentionItem<'_>,
) -> Check {
    let (q, mut out) = (suite.upload(&[0.0; 64])?, suite.upload(&[0.0; 64])?);
    let answer = suite
        .backend
        .attention(REFUSED, pages, &q, &[item], &mut out);
    refused(name, answer)
}

/// Page tables, slots and rows that do not fit are refused.
fn refusals<B: Attention>(suite: &Suite<'_, B>) -> Check {
    let pages = two_pages(suite)?;
    let attend = |name: &str, item| refuse(suite, &pages, name, item);
    let slots = |pages, len| HeadPages::new(pages, len);
    attend(
        "more rows than slots",
        AttentionItem {
            slots: slots(&PAGES, 1),
            ..item()
        },
    )?;
    attend(
        "rows past the queries",
        AttentionItem {
            rows: 1..3,
            ..item()
        },
    )?;
    attend(
        "KV head out of range",
        AttentionItem {
            kv_head: 1,
            ..item()
        },
    )?;
    attend(
        "attended page out of range",
        AttentionItem {
            slots: slots(&[PageId(1), PageId(2)], 40),
            ..item()
        },
    )?;
    attend(
        "row that sees nothing",
        AttentionItem {
            first_visible: Some(&[0, 40]),
            ..item()
        },
    )
}

/// Memories that are not there, or are of another kind, are refused.
fn refused_memories<B: Attention + LatentMemory>(suite: &Suite<'_, B>) -> Check {
    let mut pages = two_pages(suite)?;
    let mut alloc = |kind| {
        suite
            .backend
            .alloc_latent(&mut pages, kind, 1)
            .named("alloc_latent")
    };
    let memory = alloc(LatentKind::Centroids { most: 2 })?;
    let associative = alloc(LatentKind::Associative { features: 2 })?;
    let attend = |name, id, head| {
        let item = AttentionItem {
            centroids: Some(LatentHead { id, head }),
            ..item()
        };
        refuse(suite, &pages, name, item)
    };
    attend("a memory that is not there", LatentId(9), 0)?;
    attend("a head that a memory has not", memory, 1)?;
    attend("centroids of an associative memory", associative, 0)
}
