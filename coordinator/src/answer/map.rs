//! How much a sequence retains of each of its tokens.

use palimpsest_proto::v1::RetentionReport;

/// What stands for all heads.
const ALL: usize = 255;

/// For each of the first `tokens` positions the share of all KV heads that hold it, in 255ths and
/// rounded up: what one head of many holds is never told as nothing.
pub(super) fn shares(report: &RetentionReport, tokens: u64) -> Vec<u8> {
    let heads = report.heads.len();
    let mut held = vec![0usize; usize::try_from(tokens).unwrap_or(0)];
    for &position in report.heads.iter().flat_map(|head| &head.positions) {
        if let Some(held) = held.get_mut(position as usize) {
            *held += 1;
        }
    }
    let share = |held: usize| match heads {
        0 => 0,
        // A head lists a position once.
        heads => (held.min(heads) * ALL).div_ceil(heads) as u8,
    };
    held.into_iter().map(share).collect()
}

#[cfg(test)]
mod tests {
    use palimpsest_proto::v1::HeadRetention;
    use proptest::prelude::*;

    use super::*;

    fn report(heads: &[Vec<u32>]) -> RetentionReport {
        let head = |positions: &Vec<u32>| HeadRetention {
            positions: positions.clone(),
            ..Default::default()
        };
        RetentionReport {
            heads: heads.iter().map(head).collect(),
        }
    }

    #[test]
    fn all_none_and_one_of_many_are_told_apart() {
        let mut heads = vec![vec![0, 2]; 999];
        heads.push(vec![0, 1]);
        assert_eq!(shares(&report(&heads), 4), [255, 1, 255, 0]);
        assert_eq!(shares(&report(&[]), 2), [0, 0]);
        assert_eq!(shares(&report(&[vec![]]), 0), [0u8; 0]);
    }

    proptest! {
        /// The definition, position by position.
        #[test]
        fn a_share_is_the_part_of_the_heads_that_list_a_position(
            heads in prop::collection::vec(
                prop::collection::btree_set(0u32..40, 0..30), 1..12
            ),
            tokens in 0u64..50,
        ) {
            let lists: Vec<Vec<u32>> =
                heads.iter().map(|head| head.iter().copied().collect()).collect();
            let found = shares(&report(&lists), tokens);
            prop_assert_eq!(found.len() as u64, tokens);
            for (position, share) in found.into_iter().enumerate() {
                let holds = heads.iter().filter(|head| head.contains(&(position as u32)));
                let exact = 255.0 * holds.count() as f64 / heads.len() as f64;
                let off = f64::from(share) - exact;
                prop_assert!((0.0..1.0).contains(&off), "{share} for {exact}");
            }
        }
    }
}
