//! Boundary selection: slot for slot what sorting gives, ties and NaN included.

use super::{Check, Failure, Named, Random, Suite, refused};
use crate::backend::{Backend, SelectBudget, SelectHead};
use crate::reference::ReferenceBackend;

/// Scores of one head and its candidates.
type Head = (Vec<f32>, std::ops::Range<usize>);

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
    (scores, first..len - behind)
}

fn check<B: Backend>(suite: &mut Suite<'_, B>, budget: SelectBudget, heads: &[Head]) -> Check {
    let scores: Vec<f32> = heads
        .iter()
        .flat_map(|(scores, _)| scores.iter().copied())
        .collect();
    let head = |(scores, candidates): &Head| SelectHead {
        len: scores.len(),
        candidates: candidates.clone(),
    };
    let heads: Vec<SelectHead> = heads.iter().map(head).collect();
    let lens: Vec<usize> = heads.iter().map(|head| head.len).collect();
    let case = format!("select {budget:?} of {lens:?}");
    let kept = ReferenceBackend
        .select(budget, &scores, &heads)
        .named(&case)?;
    let want = ReferenceBackend.kept(&kept).named(&case)?;
    let kept = suite
        .backend
        .select(budget, &suite.upload(&scores)?, &heads)
        .named(&case)?;
    compare(
        suite,
        &case,
        &suite.backend.kept(&kept).named(&case)?,
        &want,
    )?;
    let case = format!("keep_lists of {lens:?}");
    let kept = suite.backend.keep_lists(&lens, &want).named(&case)?;
    compare(
        suite,
        &case,
        &suite.backend.kept(&kept).named(&case)?,
        &want,
    )
}

/// Slot numbers are small enough for f32 to hold them.
fn compare<B: Backend>(
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

/// `select`, `kept` and `keep_lists`.
pub(super) fn select<B: Backend>(suite: &mut Suite<'_, B>) -> Check {
    // Heads, pools, mean places, floor. Every head for itself; two pools; all heads in one; no
    // place at all; room for all.
    let budgets = [
        (4, 4, 20, 20),
        (6, 2, 30, 4),
        (6, 2, 30, 30),
        (3, 1, 40, 6),
        (4, 2, 0, 0),
        (4, 2, 400, 60),
        (4, 1, 7, 0),
    ];
    for (heads, pools, take, floor) in budgets {
        for coarse in [true, false] {
            let lens = [0, 1, 31, 33, 260, 300, 90];
            let heads: Vec<Head> = (0..heads)
                .map(|i| head(&mut suite.random, lens[(i + take) % lens.len()], coarse))
                .collect();
            check(suite, SelectBudget { pools, take, floor }, &heads)?;
        }
    }
    check(
        suite,
        SelectBudget {
            pools: 1,
            take: 3,
            floor: 0,
        },
        &[],
    )?;
    let scores = suite.upload(&[1.0; 4])?;
    let item = |candidates| [SelectHead { len: 4, candidates }];
    let budget = SelectBudget {
        pools: 1,
        take: 2,
        floor: 1,
    };
    let backend = suite.backend;
    refused(
        "candidates past the slots",
        backend.select(budget, &scores, &item(0..5)),
    )?;
    refused(
        "a floor above the mean",
        backend.select(SelectBudget { floor: 3, ..budget }, &scores, &item(0..4)),
    )?;
    refused(
        "heads that fill no pool",
        backend.select(SelectBudget { pools: 2, ..budget }, &scores, &item(0..4)),
    )?;
    refused(
        "no pool",
        backend.select(SelectBudget { pools: 0, ..budget }, &scores, &item(0..4)),
    )?;
    let longer = [SelectHead {
        len: 5,
        candidates: 0..4,
    }];
    refused(
        "fewer scores than slots",
        backend.select(budget, &scores, &longer),
    )?;
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
