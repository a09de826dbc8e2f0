//! Buckets: sizes that steps of decoding are padded to, so that many of them launch the same.

use crate::backend::DecodeStep;

/// Sequences that a step of decoding is padded to. `None`: there are none, or too many for a
/// bucket.
pub fn bucket(rows: usize) -> Option<usize> {
    match rows {
        0 => None,
        1..=2 => Some(rows),
        3..=4 => Some(4),
        5..=8 => Some(8),
        9..=64 => Some(rows.next_multiple_of(if rows <= 32 { 8 } else { 16 })),
        65..=128 => Some(rows.next_multiple_of(32)),
        129..=256 => Some(rows.next_multiple_of(64)),
        _ => None,
    }
}

/// `count` rounded up to four sizes for each power of two.
fn coarse(count: usize) -> usize {
    let step = (count.next_power_of_two() / 8).max(1);
    count.next_multiple_of(step)
}

/// Sizes that all steps of a bucket have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bucket {
    /// Sequences, padded.
    pub(crate) rows: usize,
    /// KV heads of all of them in a layer: items of a call.
    pub(crate) items: usize,
    /// Splits of attention, in the layer that has most.
    pub(crate) splits: usize,
    /// Whether any head has more than one of them.
    pub(crate) merges: bool,
}

impl Bucket {
    /// The bucket of a step, where attention is split into runs of `split` slots. `None`: there is
    /// none for so many sequences.
    pub(super) fn of(step: &DecodeStep<'_>, split: usize) -> Option<Self> {
        let rows = bucket(step.rows)?;
        let splits =
            |layer: &Vec<usize>| -> usize { layer.iter().map(|slots| slots.div_ceil(split)).sum() };
        let most = step.slots.iter().map(splits).max().unwrap_or(0);
        Some(Self {
            rows,
            items: rows * step.kv_heads,
            // As if the sequences that are missing to the bucket were like those that are there.
            splits: coarse((most * rows).div_ceil(step.rows.max(1))),
            merges: step.slots.iter().flatten().any(|&slots| slots > split),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_hold_their_sequences_and_are_few() {
        let all: Vec<usize> = (1..=256)
            .map(|rows| bucket(rows).expect("a bucket"))
            .collect();
        assert!(all.iter().zip(1..).all(|(&bucket, rows)| bucket >= rows));
        let mut sizes = all;
        sizes.dedup();
        assert_eq!(sizes, [1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256]);
        assert_eq!((bucket(0), bucket(257)), (None, None));
    }

    #[test]
    fn coarse_counts_waste_a_quarter_at_most() {
        for count in 1..5000 {
            let got = coarse(count);
            assert!(
                got >= count && got <= count + count / 4 + 1,
                "{count}: {got}"
            );
        }
        assert_eq!(coarse(0), 0);
    }
}
