//! A group of ranks answers as one rank does: same logits, same decisions, same entries, bit for
//! bit, and nothing exchanged beyond the usual.

mod default_model;
mod families;
mod group;
mod likelihood;

use palimpsest_engine::kv::{Bounded, Contract, HeadBudget, Positions};
use palimpsest_engine::peers::Calls;
use palimpsest_tests::{
    KV_HEADS, LAYERS, STRIDE, VOCABULARY, bounded, contract, memory, random, tiny_indexer_of_two,
    tiny_model,
};

use palimpsest_tests::certificates::Authority;
use palimpsest_tests::mesh::{secured, tcp_group};

use crate::group::{EXACT, answer, assert_same, group, group_over};

fn tokens(seed: u64, count: usize) -> Vec<u32> {
    random(seed, count)
        .iter()
        .map(|v| ((v + 1.0) * 0.5 * VOCABULARY as f32) as u32 % VOCABULARY as u32)
        .collect()
}

/// Contracts whose scores, memories and positions take different ways through a rank.
fn contracts() -> Vec<Contract> {
    let mut all = vec![Contract::Full, contract("window", HeadBudget::Uniform, 0)];
    for policy in ["random", "retention", "query-indexer", "h2o", "snapkv"] {
        all.extend(HeadBudget::ALL.map(|budget| contract(policy, budget, 0)));
    }
    // Its scores cannot be compared between heads, so these share no budget.
    all.push(contract("keydiff", HeadBudget::Uniform, 0));
    all.extend(
        ["tova", "expected-attention"].map(|policy| contract(policy, HeadBudget::Column, 0)),
    );
    all.push(contract("retention", HeadBudget::Column, 12));
    all.push(Contract::Bounded(Bounded {
        memory: memory("associative", 12),
        ..bounded("retention", HeadBudget::Column, 12)
    }));
    for budget in HeadBudget::ALL {
        all.push(Contract::Bounded(Bounded {
            positions: Positions::Compacted,
            ..bounded("retention", budget, 12)
        }));
    }
    all
}

#[test]
fn every_number_of_ranks_gives_the_answer_of_one() {
    let (model, indexer) = (tiny_model(1), tiny_indexer_of_two(5));
    let prompt = tokens(9, 300);
    for contract in contracts() {
        let one = answer(
            &mut group(model.path(), 1, EXACT, Some(&indexer)),
            &contract,
            &prompt,
            24,
        );
        // From 4 on ranks share KV heads, unevenly and evenly.
        for world_size in [2, 3, 4, 6] {
            let many = answer(
                &mut group(model.path(), world_size, EXACT, Some(&indexer)),
                &contract,
                &prompt,
                24,
            );
            assert_same(&one, &many, &format!("{world_size} ranks, {contract:?}"));
        }
    }
}

/// Encryption must not reach the numbers.
#[test]
fn ranks_over_tls_give_the_answer_of_ranks_in_the_clear() {
    let (model, indexer) = (tiny_model(1), tiny_indexer_of_two(5));
    let (prompt, secure) = (tokens(9, 300), secured(&Authority::new("ours")));
    let contract = contract("retention", HeadBudget::Group, 12);
    for world_size in [2, 3] {
        let mut over_tls = group_over(
            tcp_group(world_size, &secure),
            model.path(),
            EXACT,
            Some(&indexer),
        );
        let mut in_the_clear = group(model.path(), world_size, EXACT, Some(&indexer));
        assert_same(
            &answer(&mut in_the_clear, &contract, &prompt, 24),
            &answer(&mut over_tls, &contract, &prompt, 24),
            &format!("{world_size} ranks over TLS"),
        );
    }
}

/// One sum after the embedding, two in every layer, one gather of logits where some are wanted;
/// where ranks share a pool, five small sums more at a boundary that evicts.
#[test]
fn nothing_is_exchanged_beyond_the_usual() {
    let (model, indexer) = (tiny_model(1), tiny_indexer_of_two(5));
    let (prompt, answer_tokens) = (tokens(9, 96), 4);
    let steps = 96 / STRIDE + answer_tokens;
    let sums = steps * (1 + 2 * LAYERS as u64);
    for head_budget in HeadBudget::ALL {
        let contract = contract("retention", head_budget, 0);
        let many = answer(
            &mut group(model.path(), 3, EXACT, Some(&indexer)),
            &contract,
            &prompt,
            answer_tokens as usize,
        );
        // Budget 40: boundaries at 48, 64, 80 and 96 evict.
        let counts = if head_budget.spans_ranks() { 4 * 5 } else { 0 };
        let usual = Calls {
            sums,
            gathers: 1 + answer_tokens,
            counts,
        };
        assert_eq!(many.calls, vec![usual; 3], "{head_budget:?}");
    }
    // Sharers of a KV head tell each other what its query heads observed: a gather, and how long it
    // is, at each of these boundaries.
    let contract = contract("h2o", HeadBudget::Column, 0);
    let many = answer(
        &mut group(model.path(), 4, EXACT, None),
        &contract,
        &prompt,
        answer_tokens as usize,
    );
    let usual = Calls {
        sums,
        gathers: 1 + answer_tokens + 4,
        counts: 4,
    };
    assert_eq!(many.calls, vec![usual; 4]);
}

/// With pools of one KV head index a rank holds what its own heads hold in a whole model; pooled
/// over the model, at most the stated cap more; pooled over each layer, what the pools leave it.
#[test]
fn a_rank_holds_its_heads_share() {
    let (model, indexer) = (tiny_model(1), tiny_indexer_of_two(5));
    let prompt = tokens(9, 96);
    for head_budget in HeadBudget::ALL {
        let contract = contract("retention", head_budget, 0);
        let many = answer(
            &mut group(model.path(), KV_HEADS, EXACT, Some(&indexer)),
            &contract,
            &prompt,
            1,
        );
        for kv_head in 0..KV_HEADS {
            let own = many
                .kept
                .iter()
                .filter(|(head, _)| head.1 == kv_head)
                .map(|(_, kept)| kept.positions.len())
                .sum::<usize>();
            // The answer's token came after the last boundary.
            let held = own - LAYERS;
            let (share, protected) = (40 * LAYERS, 10 * LAYERS);
            let most = match head_budget {
                HeadBudget::Uniform | HeadBudget::Column => {
                    assert_eq!(held, share, "{head_budget:?}, KV head {kv_head}");
                    continue;
                }
                HeadBudget::Layer => protected + (share - protected) * KV_HEADS,
                HeadBudget::Group => protected + (share - protected) * 3 / 2,
            };
            assert!(
                held <= most,
                "{head_budget:?}: {held} entries of KV head {kv_head}"
            );
        }
    }
}
