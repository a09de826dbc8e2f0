//! Sums whose order does not matter: f32 values rounded to a fixed step and added as integers.
//!
//! The columns of a row-parallel matrix are cut into *units*, the same ones whatever the number of
//! ranks. Within a unit a product is summed in f32, in order; its result is rounded to a multiple
//! of [`STEP`] and added as an integer. Integers add up to the same in any order and grouping, so a
//! sum over all units has the same bits however the units were dealt to ranks. It is rounded to f32
//! once, at the end.
//!
//! Source: Demmel and Nguyen, "Fast Reproducible Floating-Point Summation" (ARITH 2013),
//! pre-rounding to a common step; theirs finds the step from the largest value, ours is fixed, so
//! that ranks need no round to agree on it. Trees of partial sums (Zhang et al., "Deterministic
//! Inference across Tensor Parallel Sizes", arXiv 2511.17826) stay in floating point
//! and make numbers of ranks agree that are powers of two; integers do it for all.
//!
//! ```text
//!          63                 56 55                                                     0
//!         +---------------------+--------------------------------------------------------+
//!         | how many are poison | sum of units / STEP, below 2^55 in magnitude           |
//!         +---------------------+--------------------------------------------------------+
//! ```
//! A unit that is not finite, or beyond [`LIMIT`], adds [`POISON`] instead: the sum becomes NaN, as
//! broken weights would make it in floating point.

use crate::error::{Error, Result};

/// What a unit is rounded to a multiple of: 2^-27, what f32 resolves between 1/16 and 1/8.
pub const STEP: f64 = 1.0 / (1u64 << 27) as f64;

/// Largest magnitude of a unit: 262144. Half precision ends at 65504, and models are made to run in
/// it.
pub const LIMIT: f32 = (1 << 18) as f32;

/// Most units of a matrix, and most ranks.
pub const MAX_UNITS: usize = 255;

/// What a unit without a valid value adds. `MAX_UNITS` of them do not add up to a valid sum, nor do
/// valid ones to it.
pub const POISON: i64 = 1 << 56;

/// The result of one unit.
pub fn from_f32(unit: f32) -> i64 {
    // NaN is not within the limit either.
    if unit.abs() <= LIMIT {
        (f64::from(unit) / STEP).round_ties_even() as i64
    } else {
        POISON
    }
}

/// A sum as a rank hands it to others: poison counts once for it, however many of its units were.
/// Experts of a layer are as many matrices, each of which may add poison.
pub fn one_poison(sum: i64) -> i64 {
    if sum.unsigned_abs() < 1 << 55 {
        sum
    } else {
        POISON
    }
}

/// A sum of units as f32, rounded to nearest; NaN when one of them was poison.
pub fn to_f32(sum: i64) -> f32 {
    if sum.unsigned_abs() < 1 << 55 {
        (sum as f64 * STEP) as f32
    } else {
        f32::NAN
    }
}

/// Checks that units ending at columns `ends` cut `cols` columns: increasing, the last one at the
/// end, [`MAX_UNITS`] at most.
pub(crate) fn check_ends(op: &'static str, ends: &[usize], cols: usize) -> Result<()> {
    if ends.len() > MAX_UNITS {
        return Err(Error::Index {
            op,
            what: "unit",
            index: ends.len() - 1,
            len: MAX_UNITS,
        });
    }
    let last = ends.last().copied().unwrap_or(0);
    if last != cols {
        return Err(Error::Shape {
            op,
            what: "all units together",
            got: last,
            want: cols,
        });
    }
    match ends.windows(2).find(|pair| pair[0] >= pair[1]) {
        Some(pair) => Err(Error::Index {
            op,
            what: "end of a unit",
            index: pair[0],
            len: pair[1],
        }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_on_the_step_are_exact_and_others_round_to_even() {
        for value in [
            0.0,
            1.0,
            -1.5,
            262144.0,
            -262144.0,
            2f32.powi(-27),
            1.0 + 2f32.powi(-23),
        ] {
            assert_eq!(to_f32(from_f32(value)), value);
        }
        let half = 2f32.powi(-28);
        assert_eq!(
            [half, 3.0 * half, -half, -3.0 * half].map(from_f32),
            [0, 2, 0, -2]
        );
        assert_eq!(
            [half * 1.01, -half * 1.01, f32::MIN_POSITIVE].map(from_f32),
            [1, -1, 0]
        );
    }

    #[test]
    fn any_order_gives_the_same_sum() {
        let unit = |i: u32| (f64::from(i.wrapping_mul(2_654_435_761)) / 2e8 - 10.0) as f32;
        let forward = (0..255).map(unit).map(from_f32).sum::<i64>();
        let backward = (0..255)
            .rev()
            .map(unit)
            .map(from_f32)
            .fold(0, i64::wrapping_add);
        assert_eq!(forward, backward);
        let exact: f64 = (0..255).map(|i| f64::from(unit(i))).sum();
        assert!((f64::from(to_f32(forward)) - exact).abs() < 255.0 * STEP + exact.abs() * 1e-7);
    }

    #[test]
    fn poison_stays() {
        for bad in [
            f32::NAN,
            f32::INFINITY,
            f32::NEG_INFINITY,
            LIMIT.next_up(),
            -LIMIT.next_up(),
        ] {
            for bad_units in [1, 2, 4, 64, 127, 128, MAX_UNITS] {
                for other in [LIMIT, 0.0, -LIMIT] {
                    let others = (MAX_UNITS - bad_units) as i64 * from_f32(other);
                    let sum = (0..bad_units).fold(others, |sum, _| sum.wrapping_add(from_f32(bad)));
                    assert!(
                        to_f32(sum).is_nan(),
                        "{bad_units} times {bad}, others {other}"
                    );
                }
            }
        }
        assert_eq!(
            to_f32(MAX_UNITS as i64 * from_f32(LIMIT)),
            MAX_UNITS as f32 * LIMIT
        );
        for poisons in 1..=16 {
            assert_eq!(one_poison(poisons * POISON - 5), POISON);
        }
        assert_eq!(one_poison(-from_f32(LIMIT)), -from_f32(LIMIT));
    }
}
