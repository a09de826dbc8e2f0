//! Cases of a pairwise indexer: new queries over slots that some have seen before, across tiles and
//! tasks.

use super::report::Failure;
use super::suite::{Check, Named, Random, Suite, refused};
use crate::backend::{IndexItem, IndexShape, Indexing};
use crate::reference::ReferenceBackend;

impl<B: Indexing> Suite<'_, B> {
    /// Cases of [`Indexing`].
    ///
    /// # Errors
    /// The [`Failure`] that ended the part; values that differ are told by [`Suite::finish`].
    pub fn indexing(&mut self) -> Result<(), Failure> {
        for (heads, dim) in [(1, 1), (4, 8), (3, 5), (2, 16)] {
            check(self, IndexShape { heads, dim })?;
        }
        refusals(self)
    }
}

/// New rows of each sequence, and slots.
const SEQUENCES: [(usize, usize); 8] = [
    (0, 0),
    (1, 1),
    (1, 9),
    (5, 5),
    (3, 260),
    (17, 300),
    (256, 300),
    (300, 300),
];

/// What an item reads.
struct Input {
    rows: usize,
    queries: Vec<f32>,
    weights: Vec<f32>,
    keys: Vec<f32>,
    /// Before the call: no query has seen the slots of the new rows.
    scores: Vec<f32>,
}

impl Input {
    fn new(random: &mut Random, shape: IndexShape, rows: usize, slots: usize) -> Self {
        let mut scores = random.values(slots);
        scores[slots - rows..].fill(f32::NEG_INFINITY);
        Self {
            rows,
            queries: random.values(rows * shape.heads * shape.dim),
            weights: random.values(rows * shape.heads),
            keys: random.values(slots * shape.dim),
            scores,
        }
    }
}

/// Items whose scores are `scores`.
fn items<'a>(inputs: &'a [Input], scores: &'a mut [Vec<f32>]) -> Vec<IndexItem<'a>> {
    inputs
        .iter()
        .zip(scores)
        .map(|(input, scores)| IndexItem {
            rows: input.rows,
            queries: &input.queries,
            weights: &input.weights,
            keys: &input.keys,
            scores,
        })
        .collect()
}

/// `index`.
fn check<B: Indexing>(suite: &mut Suite<'_, B>, shape: IndexShape) -> Check {
    let inputs: Vec<Input> = SEQUENCES
        .iter()
        .map(|&(rows, slots)| Input::new(&mut suite.random, shape, rows, slots))
        .collect();
    let mut want: Vec<Vec<f32>> = inputs.iter().map(|input| input.scores.clone()).collect();
    let mut got = want.clone();
    let case = format!("index {shape:?}");
    ReferenceBackend
        .index(shape, &mut items(&inputs, &mut want))
        .named(&case)?;
    suite
        .backend
        .index(shape, &mut items(&inputs, &mut got))
        .named(&case)?;
    for (got, want) in got.iter().zip(&want) {
        suite.compare(&case, got, want, suite.tolerance.elementwise)?;
    }
    Ok(())
}

/// Rows and keys that do not fit are refused.
fn refusals<B: Indexing>(suite: &Suite<'_, B>) -> Check {
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
