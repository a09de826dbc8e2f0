//! Boundary selection by its definition: full sorts, one candidate at a time.

use super::cache::ReferencePages;
use super::device::ReferenceBackend;
use crate::backend::{Boundary, HeadPages, SelectBudget, SelectHead};
use crate::error::Result;
use crate::select::{KeptLists, SelectItem, check_select, scored};

/// For each head the slots that stay, increasing.
fn select(budget: SelectBudget, items: &[SelectItem<'_>]) -> Vec<Vec<u32>> {
    let mut stays: Vec<Vec<bool>> = items
        .iter()
        .map(|item| {
            (0..item.scores.len())
                .map(|slot| !item.candidates.contains(&slot))
                .collect()
        })
        .collect();
    for pool in 0..budget.pools {
        let heads: Vec<usize> = (pool..items.len()).step_by(budget.pools).collect();
        // NaN below everything, both zeros one.
        let score = |x: f32| (!x.is_nan(), if x.is_nan() { 0.0 } else { x + 0.0 });
        let mut all: Vec<((bool, f32), usize, usize)> = Vec::new();
        for &head in &heads {
            all.extend(
                items[head]
                    .candidates
                    .clone()
                    .map(|slot| (score(items[head].scores[slot]), head, slot)),
            );
        }
        all.sort_by(|(a, head_a, slot_a), (b, head_b, slot_b)| {
            b.0.cmp(&a.0)
                .then(b.1.total_cmp(&a.1))
                .then(head_a.cmp(head_b))
                .then(slot_a.cmp(slot_b))
        });
        let (mut own, mut left) = (vec![0; items.len()], budget.take * heads.len());
        for for_itself in [true, false] {
            for &(_, head, slot) in &all {
                if left > 0 && !stays[head][slot] && (!for_itself || own[head] < budget.floor) {
                    stays[head][slot] = true;
                    own[head] += 1;
                    left -= 1;
                }
            }
        }
    }
    let slots = |stays: &Vec<bool>| {
        (0..stays.len() as u32)
            .filter(|&slot| stays[slot as usize])
            .collect()
    };
    stays.iter().map(slots).collect()
}

impl Boundary for ReferenceBackend {
    type Kept = KeptLists;

    fn select(
        &self,
        budget: SelectBudget,
        scores: &Vec<f32>,
        heads: &[SelectHead],
    ) -> Result<KeptLists> {
        check_select(budget, heads)?;
        let lens: Vec<usize> = heads.iter().map(|head| head.len).collect();
        KeptLists::new(&lens, &select(budget, &scored(scores, heads)?))
    }

    fn keep_lists(&self, lens: &[usize], lists: &[Vec<u32>]) -> Result<KeptLists> {
        KeptLists::new(lens, lists)
    }

    fn kept(&self, kept: &KeptLists) -> Result<Vec<Vec<u32>>> {
        Ok(kept.lists().to_vec())
    }

    fn compact(
        &self,
        pages: &mut ReferencePages,
        heads: &[HeadPages<'_>],
        kept: &KeptLists,
    ) -> Result<()> {
        let op = "compact";
        kept.check(op, heads)?;
        for (head, list) in heads.iter().zip(kept.lists()) {
            for (to, &from) in list.iter().enumerate() {
                let from = pages.entry(op, head.pages, from as usize)?;
                let to = pages.entry(op, head.pages, to)?;
                pages.keys[to] = pages.keys[from].clone();
                pages.values[to] = pages.values[from].clone();
                pages.notes[to] = pages.notes[from];
            }
        }
        Ok(())
    }
}
