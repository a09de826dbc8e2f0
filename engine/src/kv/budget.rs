//! How many slots stay, and of which heads.
//!
//! Candidates are the slots that are neither sinks nor in the window. Every head first keeps its
//! own best `floor` candidates; the rest of the pool's slots go to the best remaining candidates of
//! the pool. Ties are broken by layer, then KV head, then position, smaller first, so the answer
//! depends on the scores alone. A pool that stays on a rank is
//! [`palimpsest_kernels::Boundary::select`]'s work; those over all ranks are in [`budget_group`].

use palimpsest_kernels::select::scored;
use palimpsest_kernels::{Backend, SelectBudget, SelectHead};

use super::HeadBudget;
use super::allocation::{Allocation, floor_of};
use super::budget_group::{self, Pool, SumCounts};
use crate::error::Result;

/// Chooses the slots that stay, protected ones included. `heads` is layer-major (`layer *
/// columns.own + kv_head`), `scores` has one number for each of its slots. `sum` is called for
/// pools over all ranks alone: [`HeadBudget::Layer`] and [`HeadBudget::Group`].
///
/// # Errors
/// Those of the kernels and of `sum`.
pub fn select<B: Backend>(
    backend: &B,
    scores: &B::Buffer,
    heads: &[SelectHead],
    allocation: Allocation,
    sum: SumCounts<'_>,
) -> Result<B::Kept> {
    let Allocation {
        columns,
        take,
        head_budget,
    } = allocation;
    let on_rank =
        |pools, floor| Ok(backend.select(SelectBudget { pools, take, floor }, scores, heads)?);
    let pool = match head_budget {
        HeadBudget::Uniform => return on_rank(heads.len(), take),
        HeadBudget::Column => return on_rank(columns.own, floor_of(take)),
        HeadBudget::Layer => Pool::Layer,
        HeadBudget::Group => Pool::Model,
    };
    let lens: Vec<usize> = heads.iter().map(|head| head.len).collect();
    let mut all = vec![0.0; lens.iter().sum()];
    backend.download(scores, 0, &mut all)?;
    let items = scored(&all, heads)?;
    Ok(backend.keep_lists(
        &lens,
        &budget_group::select(&items, columns, take, pool, sum)?,
    )?)
}
