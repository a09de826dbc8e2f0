//! How a product's units are added up: a single unit as it is, or several in the fixed point of
//! [`crate::fixed`].

use std::marker::PhantomData;
use std::ops::AddAssign;

use super::cell::PANEL;
use super::simd::Simd;
use crate::fixed::{LIMIT, POISON, STEP};
use crate::quant::GROUP;

/// Where the units of a matrix end.
pub(crate) struct Ends<'a> {
    /// Columns, increasing, the last one the end of the matrix.
    columns: &'a [usize],
    /// Those that do not cut through a group of quantised weights. No shard of such weights ends
    /// elsewhere.
    groups: Vec<usize>,
}

impl<'a> Ends<'a> {
    /// Units that end at `columns`.
    pub fn new(columns: &'a [usize]) -> Self {
        Self {
            columns,
            groups: columns
                .iter()
                .copied()
                .filter(|end| end.is_multiple_of(GROUP))
                .collect(),
        }
    }

    /// Ends for cells of so many inputs: 1, or [`GROUP`].
    #[inline(always)]
    pub fn of(&self, inputs: usize) -> &[usize] {
        if inputs == 1 {
            self.columns
        } else {
            &self.groups
        }
    }
}

/// Sums of one unit for a token row and the output rows of a panel.
pub(crate) type Line = [f32; PANEL];

/// What becomes of the units of a product. A total holds the sums of one token row and the output
/// rows of a panel.
pub(crate) trait Form {
    /// Type of the result.
    type Out: Copy + AddAssign + Send + Sync;
    /// Sum over units, in memory.
    type Total: Copy;

    /// Nothing yet, of `units` units to come.
    fn zero(units: usize) -> Self::Total;
    /// Adds units.
    fn add<'a, S: Simd>(s: S, total: &mut Self::Total, units: impl Iterator<Item = &'a Line>);
    /// The result.
    fn values<S: Simd>(s: S, total: &Self::Total) -> [Self::Out; PANEL];
}

/// One unit, as it is.
pub(crate) struct Single;

impl Form for Single {
    type Out = f32;
    type Total = Line;

    fn zero(_: usize) -> Line {
        [0.0; PANEL]
    }

    #[inline(always)]
    fn add<'a, S: Simd>(_: S, total: &mut Line, units: impl Iterator<Item = &'a Line>) {
        units.for_each(|unit| *total = *unit);
    }

    #[inline(always)]
    fn values<S: Simd>(_: S, total: &Line) -> Line {
        *total
    }
}

/// A sum of units in two words of 32 bits, so that eight lanes fill one register: `high` counts
/// sixteenths, `low` the steps that are left over. Adding an origin rounds a number to a count,
/// which are the last bits of what comes out; sums of 255 counts of at most 2^22 fit.
#[derive(Clone, Copy)]
pub(crate) struct FixedLines {
    high: [i32; PANEL],
    low: [i32; PANEL],
    /// Bits of the largest magnitude among the units; those of NaN are larger than any.
    largest: [i32; PANEL],
}

/// One count of `high`.
const HIGH: f64 = 1.0 / 16.0;
/// Steps of one count of `high`, as a shift.
const HIGH_SHIFT: u32 = 23;
/// In the middle of the numbers whose last bit is worth `HIGH`; these reach as far as units do.
const HIGH_ORIGIN: f32 = 3.0 * LIMIT;
/// In the middle of the numbers whose last bit is worth a step; these reach as far as half of
/// `HIGH`.
const LOW_ORIGIN: f32 = 3.0 / 32.0;
const _: () = assert!(HIGH == STEP * (1u64 << HIGH_SHIFT) as f64);
const _: () = assert!(HIGH_ORIGIN.next_up() as f64 - HIGH_ORIGIN as f64 == HIGH);
const _: () = assert!(LOW_ORIGIN.next_up() as f64 - LOW_ORIGIN as f64 == STEP);

impl FixedLines {
    fn zero(units: usize) -> Self {
        let origins = |origin: f32| {
            [(origin.to_bits() as i32)
                .wrapping_mul(units as i32)
                .wrapping_neg(); PANEL]
        };
        Self {
            high: origins(HIGH_ORIGIN),
            low: origins(LOW_ORIGIN),
            largest: [0; PANEL],
        }
    }

    #[inline(always)]
    fn add<'a, S: Simd>(&mut self, s: S, units: impl Iterator<Item = &'a Line>) {
        let [mut highs, mut lows, mut largest] =
            [&self.high, &self.low, &self.largest].map(|x| s.load_i32(x));
        for unit in units {
            let unit = s.load(unit);
            let high = s.add(unit, s.splat(HIGH_ORIGIN));
            // Both differences are exact: what is left over has no more bits than the unit.
            let rest = s.sub(unit, s.sub(high, s.splat(HIGH_ORIGIN)));
            let low = s.add(rest, s.splat(LOW_ORIGIN));
            highs = s.add_i32(highs, s.bits(high));
            lows = s.add_i32(lows, s.bits(low));
            largest = s.max_i32(largest, s.and(s.bits(unit), s.splat_i32(i32::MAX)));
        }
        s.store_i(highs, &mut self.high);
        s.store_i(lows, &mut self.low);
        s.store_i(largest, &mut self.largest);
    }
}

/// Units in fixed point. The result is an f32 for a rank with all units of a matrix, else its share
/// of them, to be added to what other ranks have.
pub(crate) struct Fixed<T>(PhantomData<T>);

/// The result of a sum in fixed point.
pub(crate) trait Sum: Copy + AddAssign + Send + Sync {
    /// The product that has such results.
    const OP: &'static str;
    /// From the words of a total.
    fn values<S: Simd>(s: S, total: &FixedLines) -> [Self; PANEL];
}

impl<T: Sum> Form for Fixed<T> {
    type Out = T;
    type Total = FixedLines;

    fn zero(units: usize) -> FixedLines {
        FixedLines::zero(units)
    }

    #[inline(always)]
    fn add<'a, S: Simd>(s: S, total: &mut FixedLines, units: impl Iterator<Item = &'a Line>) {
        total.add(s, units);
    }

    #[inline(always)]
    fn values<S: Simd>(s: S, total: &FixedLines) -> [T; PANEL] {
        T::values(s, total)
    }
}

/// [`crate::fixed::to_f32`] of the share that is all.
impl Sum for f32 {
    const OP: &'static str = "matmul_units";

    #[inline(always)]
    fn values<S: Simd>(s: S, total: &FixedLines) -> [Self; PANEL] {
        let [high, low, largest] = [&total.high, &total.low, &total.largest].map(|x| s.load_i32(x));
        let limit = s.splat_i32(LIMIT.to_bits() as i32);
        let mut values = [0.0; PANEL];
        s.store(
            s.choose(
                largest,
                limit,
                s.splat(f32::NAN),
                s.weigh(high, HIGH, low, STEP),
            ),
            &mut values,
        );
        values
    }
}

impl Sum for i64 {
    const OP: &'static str = "matmul_share";

    #[inline(always)]
    fn values<S: Simd>(_: S, total: &FixedLines) -> [Self; PANEL] {
        let FixedLines { high, low, largest } = total;
        let sum = |i: usize| (Self::from(high[i]) << HIGH_SHIFT) + Self::from(low[i]);
        std::array::from_fn(|i| {
            if largest[i] > LIMIT.to_bits() as i32 {
                POISON
            } else {
                sum(i)
            }
        })
    }
}
