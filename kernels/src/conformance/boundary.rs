//! Cases of a boundary: selection, slot for slot what sorting gives, ties and NaN included; and
//! compaction.

use std::ops::Range;

use super::arenas::{Arenas, heads};
use super::report::Failure;
use super::suite::{Check, Named, Random, Suite, refused};
use crate::backend::{Boundary, HeadPages, PageId, PageShape, SelectBudget, SelectHead};
use crate::reference::ReferenceBackend;

impl<B: Boundary> Suite<'_, B> {
    /// Cases of [`Boundary`].
    ///
    /// # Errors
    /// The [`Failure`] that ended the part; values that differ are told by [`Suite::finish`].
    pub fn boundary(&mut self) -> Result<(), Failure> {
        compaction(self)?;
        refused_compactions(self)?;
        selections(self)?;
        refused_selections(self)?;
        refused_lists(self)
    }
}

/// Scores of one head and its candidates.
struct Head {
    scores: Vec<f32>,
    candidates: Range<usize>,
}

/// Few values, so that ties are everywhere; then many.
fn head(random: &mut Random, len: usize, coarse: bool) -> Head {
    let special = [
        f32::NAN,
        -f32::NAN,
        f32::INFINITY,
        f32::NEG_INFINITY,
        0.0,
        -0.0,
        f32::MIN_POSITIVE,
    ];
    let scores = (0..len)
        .map(|_| match random.below(12) {
            0 => special[random.below(special.len())],
            _ if coarse => random.below(5) as f32 - 2.0,
            _ => random.value(),
        })
        .collect();
    let first = random.below(len.min(5) + 1);
    let behind = random.below((len - first).min(40) + 1);
    Head {
        scores,
        candidates: first..len - behind,
    }
}

/// `select`, `kept` and `keep_lists`.
fn check<B: Boundary>(suite: &mut Suite<'_, B>, budget: SelectBudget, heads: &[Head]) -> Check {
    let scores: Vec<f32> = heads
        .iter()
        .flat_map(|head| head.scores.iter().copied())
        .collect();
    let lens: Vec<usize> = heads.iter().map(|head| head.scores.len()).collect();
    let heads: Vec<SelectHead> = heads
        .iter()
        .map(|head| SelectHead {
            len: head.scores.len(),
            candidates: head.candidates.clone(),
        })
        .collect();
    let case = format!("select {budget:?} of {lens:?}");
    let kept = ReferenceBackend
        .select(budget, &scores, &heads)
        .named(&case)?;
    let want = ReferenceBackend.kept(&kept).named(&case)?;
    let kept = suite
        .backend
        .select(budget, &suite.upload(&scores)?, &heads)
        .named(&case)?;
    let got = suite.backend.kept(&kept).named(&case)?;
    compare(suite, &case, &got, &want)?;

    let case = format!("keep_lists of {lens:?}");
    let kept = suite.backend.keep_lists(&lens, &want).named(&case)?;
    let got = suite.backend.kept(&kept).named(&case)?;
    compare(suite, &case, &got, &want)
}

/// Slot numbers are small enough for f32 to hold them.
fn compare<B: Boundary>(
    suite: &mut Suite<'_, B>,
    case: &str,
    got: &[Vec<u32>],
    want: &[Vec<u32>],
) -> Check {
    if got.len() != want.len() {
        return Err(Failure::Length {
            case: case.to_owned(),
            got: got.len(),
            want: want.len(),
        });
    }
    let floats = |list: &[u32]| list.iter().map(|&slot| slot as f32).collect::<Vec<f32>>();
    got.iter()
        .zip(want)
        .try_for_each(|(got, want)| suite.compare(case, &floats(got), &floats(want), 0.0))
}

/// `select` and `keep_lists` with budgets of all kinds.
fn selections<B: Boundary>(suite: &mut Suite<'_, B>) -> Check {
    let budget = |pools, take, floor| SelectBudget { pools, take, floor };
    // Every head for itself; two pools; all heads in one; no place at all; room for all.
    let budgets = [
        (4, budget(4, 20, 20)),
        (6, budget(2, 30, 4)),
        (6, budget(2, 30, 30)),
        (3, budget(1, 40, 6)),
        (4, budget(2, 0, 0)),
        (4, budget(2, 400, 60)),
        (4, budget(1, 7, 0)),
    ];
    let lens = [0, 1, 31, 33, 260, 300, 90];
    for (heads, budget) in budgets {
        for coarse in [true, false] {
            let heads: Vec<Head> = (0..heads)
                .map(|i| {
                    let len = lens[(i + budget.take) % lens.len()];
                    head(&mut suite.random, len, coarse)
                })
                .collect();
            check(suite, budget, &heads)?;
        }
    }
    check(suite, budget(1, 3, 0), &[])
}

/// Candidates, budgets and scores that do not fit are refused.
fn refused_selections<B: Boundary>(suite: &Suite<'_, B>) -> Check {
    let scores = suite.upload(&[1.0; 4])?;
    let item = |candidates| [SelectHead { len: 4, candidates }];
    let budget = SelectBudget {
        pools: 1,
        take: 2,
        floor: 1,
    };
    let select = |name, budget, heads: &[SelectHead]| {
        refused(name, suite.backend.select(budget, &scores, heads))
    };
    select("candidates past the slots", budget, &item(0..5))?;
    let floor = SelectBudget { floor: 3, ..budget };
    select("a floor above the mean", floor, &item(0..4))?;
    let two = SelectBudget { pools: 2, ..budget };
    select("heads that fill no pool", two, &item(0..4))?;
    let none = SelectBudget { pools: 0, ..budget };
    select("no pool", none, &item(0..4))?;
    let longer = [SelectHead {
        len: 5,
        candidates: 0..4,
    }];
    select("fewer scores than slots", budget, &longer)
}

/// Lists that are of no heads, or out of order, are refused.
fn refused_lists<B: Boundary>(suite: &Suite<'_, B>) -> Check {
    let backend = suite.backend;
    refused(
        "kept slot missing",
        backend.keep_lists(&[40], &[vec![3, 40]]),
    )?;
    refused(
        "kept slots not increasing",
        backend.keep_lists(&[40], &[vec![3, 3]]),
    )?;
    refused(
        "lists of other heads",
        backend.keep_lists(&[40, 2], &[vec![3]]),
    )
}

/// `compact`: to odd slots; then to all of them; then to none.
fn compaction<B: Boundary>(suite: &mut Suite<'_, B>) -> Check {
    let lens = [0, 1, 32, 100, 333];
    let mut arenas = Arenas::new(suite, 48, &lens)?;
    for (head, &len) in lens.iter().enumerate() {
        arenas.fill(suite, head, len)?;
    }
    let tables = arenas.tables.clone();
    let heads = heads(&tables, &lens);
    for keep_one_in in [2, 1, 0] {
        let keeps: Vec<Vec<u32>> = lens
            .iter()
            .map(|&len| {
                (0..len as u32)
                    .filter(|slot| keep_one_in > 0 && (slot + 1) % keep_one_in == 0)
                    .collect()
            })
            .collect();
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
            let case = format!("compact to {}", keep.len());
            arenas.compare(suite, &case, head, keep.len(), 0.0)?;
        }
    }
    Ok(())
}

/// Lists of other heads, and pages that are not there, are refused.
fn refused_compactions<B: Boundary>(suite: &Suite<'_, B>) -> Check {
    let backend = suite.backend;
    let shape = PageShape {
        head_dim: 16,
        dtype: suite.kv,
    };
    let mut pages = backend.alloc_pages(shape, 2).named("alloc_pages")?;
    let (good, bad) = ([PageId(1), PageId(0)], [PageId(1), PageId(2)]);
    let kept = backend
        .keep_lists(&[40], &[vec![3, 5]])
        .named("keep_lists")?;
    let mut compact =
        |name, heads: &[HeadPages<'_>]| refused(name, backend.compact(&mut pages, heads, &kept));
    let head = |pages, len| HeadPages::new(pages, len);
    compact("lists of a longer head", &[head(&good, 39)])?;
    compact("lists of one head for two", &[head(&good, 40); 2])?;
    compact("compacted page out of range", &[head(&bad, 40)])
}
