//! Codes of four bits that stand for values of a table.

use std::marker::PhantomData;

use super::four::nibbles;
use super::{Affine, Cell, Lines, PANEL, Quads, Scales, Unpack, interleave};
use crate::cpu::simd::Simd;
use crate::quant::{GROUP, Group, IQ4_VALUES, MXFP4_VALUES};

/// A table of 16 values or fewer.
pub(crate) trait Values: Copy + Send + Sync {
    const VALUES: [i8; 16];
    /// Whether no value is beyond 16 on either side, so that one dot product of u8 x i8 will do.
    const IS_NARROW: bool = {
        let (mut i, mut narrow) = (0, true);
        while i < 16 {
            narrow &= -16 <= Self::VALUES[i] && Self::VALUES[i] < 16;
            i += 1;
        }
        narrow
    };
    /// Added to the values of tables in registers, which are not negative.
    const OFFSET: i32 = if Self::IS_NARROW { 16 } else { 128 };
    /// The values plus [`Self::OFFSET`].
    const UNSIGNED: [u8; 16] = {
        let (mut i, mut values) = (0, [0; 16]);
        while i < 16 {
            values[i] = (Self::VALUES[i] as i32 + Self::OFFSET) as u8;
            i += 1;
        }
        values
    };
    /// The code of each value, by the bits of the value; 0 for what the table does not hold.
    const CODES: [u8; 256] = {
        let (mut i, mut codes) = (16, [0; 256]);
        while i > 0 {
            i -= 1;
            codes[Self::VALUES[i] as u8 as usize] = i as u8;
        }
        codes
    };
}

/// Those of IQ4_NL and IQ4_XS.
#[derive(Clone, Copy)]
pub(crate) struct Iq4;

impl Values for Iq4 {
    const VALUES: [i8; 16] = IQ4_VALUES;
}

/// Those of MXFP4.
#[derive(Clone, Copy)]
pub(crate) struct Mxfp4;

impl Values for Mxfp4 {
    const VALUES: [i8; 16] = MXFP4_VALUES;
}

/// Those of IQ3_XXS: its eight magnitudes with either sign.
#[derive(Clone, Copy)]
pub(crate) struct Iq3Xxs;

impl Values for Iq3Xxs {
    const VALUES: [i8; 16] = [
        4, 12, 20, 28, 36, 44, 52, 62, -4, -12, -20, -28, -36, -44, -52, -62,
    ];
}

/// Those of IQ3_S: its eight magnitudes with either sign.
#[derive(Clone, Copy)]
pub(crate) struct Iq3S;

impl Values for Iq3S {
    const VALUES: [i8; 16] = [1, 3, 5, 7, 9, 11, 13, 15, -1, -3, -5, -7, -9, -11, -13, -15];
}

/// Those of the IQ2 types, and those of the IQ1 types in eighths.
#[derive(Clone, Copy)]
pub(crate) struct Iq1And2;

impl Values for Iq1And2 {
    const VALUES: [i8; 16] = [0, 1, 7, 8, 9, 25, 43, -1, -7, -8, -9, -25, -43, 0, 0, 0];
}

/// 4-bit codes as in [`super::U4`], which stand for values of `V`. `W` is the scale of all inputs,
/// or a pair of scales of 16 inputs each.
#[derive(Clone, Copy)]
#[repr(C, align(16))]
pub(crate) struct Table<W, V> {
    pub scale: W,
    codes: [[u8; 32]; 4],
    values: PhantomData<V>,
}

/// The scales of a cell: one for all inputs, or one for each half of them.
pub(crate) trait HalfScales: Copy + Send + Sync {
    const ZERO: Self;
    /// Whether each half has scales of its own.
    const IS_PAIR: bool;
    /// The scales of a half of the inputs.
    fn half<S: Simd>(&self, s: S, half: usize) -> S::F;
    fn pack(rows: &[Group; PANEL]) -> Self;
}

impl<W: Scales> HalfScales for W {
    const ZERO: Self = <W as Scales>::ZERO;
    const IS_PAIR: bool = false;
    #[inline(always)]
    fn half<S: Simd>(&self, s: S, _: usize) -> S::F {
        self.load(s)
    }
    fn pack(rows: &[Group; PANEL]) -> Self {
        W::store(rows.map(|group| group.scale.of(0)))
    }
}

impl HalfScales for [[f32; PANEL]; 2] {
    const ZERO: Self = [[0.0; PANEL]; 2];
    const IS_PAIR: bool = true;
    #[inline(always)]
    fn half<S: Simd>(&self, s: S, half: usize) -> S::F {
        s.load(&self[half])
    }
    fn pack(rows: &[Group; PANEL]) -> Self {
        [0, 1].map(|half| rows.map(|group| group.scale.of(half)))
    }
}

impl<W, V: Values> Table<W, V> {
    /// Hands over each quad, its codes as they are.
    #[inline(always)]
    pub fn quads<S: Simd>(&self, s: S, to: &mut impl Quads<S>) {
        let mask = s.splat_bytes(&[15; 4]);
        for (i, codes) in self.codes.iter().enumerate() {
            let v = s.load_i(codes);
            to.take(s, 2 * i, s.and(v, mask));
            to.take(s, 2 * i + 1, s.and(s.shr::<4>(v), mask));
        }
    }
}

/// Looks codes up and hands the values on.
pub(crate) struct LookUp<S: Simd, Q> {
    pub values: S::I,
    pub to: Q,
}

impl<S: Simd, Q: Quads<S>> Quads<S> for LookUp<S, Q> {
    #[inline(always)]
    fn take(&mut self, s: S, quad: usize, codes: S::I) {
        self.to.take(s, quad, s.look_up(self.values, codes));
    }
}

impl<W: HalfScales, V: Values> Cell for Table<W, V> {
    const INPUTS: usize = GROUP;
    const ZERO: Self = Self {
        scale: W::ZERO,
        codes: [[0; 32]; 4],
        values: PhantomData,
    };
    #[inline(always)]
    fn unpack<S: Simd, const P: usize>(&self, s: S, p: usize, out: &mut [Lines<P>]) {
        let halves = [0, 1].map(|half| Affine::scaled(s, V::OFFSET, self.scale.half(s, half)));
        let mut unpack = LookUp {
            values: s.splat_table(&V::UNSIGNED),
            to: Unpack { halves, p, out },
        };
        self.quads(s, &mut unpack);
    }
}

impl<W: HalfScales, V: Values> Table<W, V> {
    /// Groups whose codes are values of the table, without minima.
    pub fn pack(rows: &[Group; PANEL]) -> Self {
        let code = |r: usize, k: usize| V::CODES[usize::from(rows[r].codes[k] as u8)];
        Self {
            scale: W::pack(rows),
            codes: nibbles(&interleave(code)),
            values: PhantomData,
        }
    }
}
